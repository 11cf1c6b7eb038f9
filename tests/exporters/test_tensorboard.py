"""What gradwatch.TensorBoard wrote, read back with the real tensorboard package."""

from __future__ import annotations

import math
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from telemetry.fake import FakeMonitor

from gradwatch.core.snapshot import VERDICTS
from gradwatch.errors import ConfigError
from gradwatch.exporters.tensorboard import (
    ALERTS,
    CLIP_SHARE,
    HISTOGRAM,
    LAYERS,
    MISSED_STEPS,
    SCALARS,
    TensorBoard,
    _Run,
    folder_name,
)
from gradwatch.reading.steps import StepCursor

pytestmark = pytest.mark.tf

ROOT = Path(__file__).parents[2]


class Run(FakeMonitor):
    """A monitor whose history has all of the real one's columns."""

    def history(self):
        rows = super().history()
        norm = rows["norm"]
        return {**rows, "clip_norm": norm * 0 + 2.0, "threshold": norm * 0 + np.inf, "score": norm * 0.5}


def read(folder):
    """tag -> {step: value} of every event file in `folder`; texts as str, histograms as arrays."""
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    tensor_util = pytest.importorskip("tensorboard.util.tensor_util")
    events = accumulators.EventAccumulator(str(folder), size_guidance={accumulators.TENSORS: 0})
    events.Reload()
    found = {}
    for tag in events.Tags()["tensors"]:
        found[tag] = {e.step: tensor_util.make_ndarray(e.tensor_proto) for e in events.Tensors(tag)}
    return found


def scalars(found, tag):
    return {step: float(value) for step, value in found[tag].items()}


def test_every_step_is_there_once_with_the_trainings_own_number(reader, tmp_path):
    run = Run("train")
    with TensorBoard(tmp_path) as board:
        reader.register(run)
        for i in range(3000):
            run.step(1.0 + i, applied=0.5 + i)
            if i % 700 == 0:
                reader.poll_now()
    found = read(tmp_path / "train")
    assert scalars(found, SCALARS["norm"]) == {i + 1: 1.0 + i for i in range(3000)}
    assert scalars(found, SCALARS["applied_norm"]) == {i + 1: 0.5 + i for i in range(3000)}
    assert scalars(found, SCALARS["clip_norm"])[3000] == 2.0
    assert scalars(found, SCALARS["score"])[3000] == 1500.0
    assert board.missed_steps == 0
    assert scalars(found, MISSED_STEPS)[3000] == 0


def test_a_threshold_that_does_not_exist_is_left_out_and_a_nonfinite_norm_is_not(reader, tmp_path):
    run = Run("train")
    with TensorBoard(tmp_path):
        reader.register(run)
        run.step(1.0)
        run.step(math.nan, applied=0.0, verdict="zero")
    found = read(tmp_path / "train")
    assert SCALARS["threshold"] not in found
    assert math.isnan(scalars(found, SCALARS["norm"])[2])
    assert scalars(found, SCALARS["applied_norm"])[2] == 0.0


def test_histogram_clip_share_and_layers_are_those_of_the_newest_step(reader, tmp_path):
    run = Run("train")
    with TensorBoard(tmp_path):
        reader.register(run)
        for i in range(100):
            run.step(1.0 + i, verdict="clip" if i % 4 == 0 else "pass", layer_norms={"dense/kernel": 3.0 + i})
    found = read(tmp_path / "train")
    (step,) = [s for s in found[HISTOGRAM] if s == 100]
    rows = found[HISTOGRAM][step]
    assert rows.shape == (30, 3)
    assert rows[0, 0] == 1.0
    assert rows[-1, 1] == 100.0
    assert rows[:, 2].sum() == 100
    assert scalars(found, CLIP_SHARE)[100] == 0.25
    assert scalars(found, LAYERS + "dense/kernel")[100] == 102.0


def test_each_alert_is_a_text_at_the_step_at_which_it_began(reader, tmp_path):
    run = Run("train")
    with TensorBoard(tmp_path):
        reader.register(run)
        run.step(1.0)
        reader.poll_now()
        run.begin("explosion", **{"<script>alert(1)</script>**bold**": 1.0})
        reader.poll_now()
    text = read(tmp_path / "train")[ALERTS][2][0].decode()
    assert text.startswith("**info, fired:** gradient explosion at step 2")
    assert "<script>" not in text
    assert "**bold**" not in text


def test_steps_that_came_too_fast_are_counted_and_said(reader, tmp_path, log, health):
    run = Run("train")
    with TensorBoard(tmp_path) as board:
        reader.register(run)
        run.step(1.0)
        reader.poll_now()
        for _ in range(1500):
            run.step(1.0)
    assert board.missed_steps == 1500 - 1024
    assert scalars(read(tmp_path / "train"), MISSED_STEPS)[1501] == 476
    assert "476 steps of 'train' came too fast" in log.text


def test_only_the_given_monitor_is_written_if_one_is_given(reader, tmp_path):
    one, other = Run("one"), Run("other")
    with TensorBoard(tmp_path, one):
        reader.register(one)
        reader.register(other)
        one.step()
        other.step()
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_layers_are_bounded_whatever_the_model(reader, tmp_path):
    run = Run("train")
    with TensorBoard(tmp_path, layers=10):
        reader.register(run)
        run.step(layer_norms={f"layer{i}": float(i) for i in range(1000)})
    assert 0 < sum(tag.startswith(LAYERS) for tag in read(tmp_path / "train")) <= 10


@pytest.mark.parametrize("name", ["../../etc", "..", "a/b", "x" * 10_000, "", "\n<script>", ".hidden"])
def test_a_hostile_name_is_one_folder_inside(name, tmp_path):
    folder = tmp_path / folder_name(name)
    assert folder.resolve().parent == tmp_path
    assert len(folder.name) < 100
    folder.mkdir()


def test_two_names_give_two_folders():
    assert folder_name("a/b") != folder_name("a_b") != folder_name("a b")
    assert folder_name("train") == "train"


def test_a_folder_that_cannot_be_written_is_said_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        TensorBoard(tmp_path / "file" / "logs")


def test_a_disk_that_fails_later_is_counted_and_the_steps_go_on(reader, tmp_path, health, monkeypatch):
    import tensorflow as tf

    def full(*_):
        raise tf.errors.ResourceExhaustedError(None, None, "no space left")

    monkeypatch.setattr(tf.io, "TFRecordWriter", full)
    before = health.internal_errors()["tensorboard"]
    run = Run("train")
    with TensorBoard(tmp_path):
        reader.register(run)
        run.step()
    assert health.internal_errors()["tensorboard"] > before


def test_a_board_that_is_closed_behind_a_slow_disk_still_has_every_step(reader, tmp_path, monkeypatch):
    write = _Run.write

    def slowly(self, look):
        time.sleep(0.3)
        write(self, look)

    monkeypatch.setattr(_Run, "write", slowly)
    run = Run("train")
    reader.register(run)
    board = TensorBoard(tmp_path)
    for _ in range(20):
        run.step(1.0)
        assert reader.poll_now()
    board.close()
    assert list(scalars(read(tmp_path / "train"), SCALARS["norm"])) == list(range(1, 21))


def test_a_cursor_gives_a_run_that_was_set_back_again():
    def history(*steps):
        return {"step": np.array(steps, np.int64)}

    cursor = StepCursor()
    assert list(cursor.take(history(1, 2, 3), 0.0)["step"]) == [1, 2, 3]
    assert list(cursor.take(history(2, 3, 4, 5), 1.0)["step"]) == [4, 5]
    assert list(cursor.take(history(1, 2), 2.0)["step"]) == [1, 2]
    assert cursor.missed == 0


def test_a_fast_run_is_looked_at_more_often():
    cursor = StepCursor()
    for look in range(1, 40):
        cursor.take({"step": np.arange(1, look * 500 + 1)}, look * 0.1)  # 5,000 steps a second
    assert cursor.next_look_seconds() == pytest.approx(1024 / 4 / 5000, rel=0.01)


def test_the_end_of_the_process_writes_the_last_step_of_a_real_training_without_tensorboard(tmp_path):
    code = """
        import sys
        sys.modules["tensorboard"] = None  # importing it now raises ImportError
        import keras, tensorflow as tf, gradwatch
        from gradwatch.exporters.tensorboard import TensorBoard
        model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(1)])
        optimizer = keras.optimizers.SGD(1e-3)
        @gradwatch.watch(name="real")
        @tf.function
        def step(x):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(model(x) ** 2)
            optimizer.apply_gradients(zip(tape.gradient(loss, model.trainable_variables), model.trainable_variables))
        TensorBoard(sys.argv[1])
        for _ in range(300):
            step(tf.random.normal((8, 4)))
        import numpy
        numpy.save(sys.argv[1] + "/norm.npy", step.monitor.history()["norm"])
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(tmp_path)], check=True, timeout=100, cwd=ROOT)
    norms = np.load(tmp_path / "norm.npy")
    found = read(tmp_path / "real")
    assert scalars(found, SCALARS["norm"]) == {i + 1: float(x) for i, x in enumerate(norms)}
    assert [tag for tag in found if tag.startswith(LAYERS)]
    assert VERDICTS[1] == "clip"
