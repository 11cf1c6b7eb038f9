"""What is recorded is what was there: steps, gaps, variables, events, alerts, notes, and the facts of the run."""

from __future__ import annotations

import gc
import math
import os
import shutil
import sqlite3
import time
import tracemalloc

import numpy as np
import pytest
from record.recorded import Recorded, history_of
from telemetry.fake import snapshot

from gradwatch.core.guard import HISTORY
from gradwatch.errors import ConfigError
from gradwatch.record import recorder
from gradwatch.record.run import Run, open_run
from gradwatch.record.writer import _FIRST_LAYER_ROWS, Look, RunFile

NAN, INF = math.nan, math.inf


def rows(first, norms, **columns):
    count = len(norms)
    return {
        "step": np.arange(first, first + count),
        "norm": np.asarray(norms, np.float32),
        "verdict": np.zeros(count, np.int8),
        **{name: np.asarray(column, np.float32) for name, column in columns.items()},
    }


def test_every_step_is_recorded_once_and_in_order(recorded):
    norms = np.random.default_rng(0).lognormal(size=50).astype(np.float32)
    for i, norm in enumerate(norms):
        recorded.step(float(norm), loss=float(i))
        if i % 7 == 0:
            recorded.look()
    steps = recorded.look().steps
    assert steps["step"].tolist() == list(range(1, 51))
    assert np.array_equal(steps["norm"].astype(np.float32), norms)
    assert np.array_equal(steps["loss"], np.arange(50.0))
    assert np.all(np.diff(steps["time"]) >= 0)
    assert abs(steps["time"][-1] - time.time()) < 30
    assert recorded.recorded == (50, 0)


def test_nan_and_inf_come_back_as_they_were(recorded):
    recorded.step(NAN, 0.0, "zero")
    recorded.step(INF, 0.0, "skip")
    recorded.step(2.0, 1.0, "clip")
    steps = recorded.look().steps
    assert np.array_equal(steps["norm"], [NAN, INF, 2.0], equal_nan=True)
    assert steps["verdict"].tolist() == ["zero", "skip", "clip"]
    assert np.isnan(steps["reach"]).all()


def test_a_loss_that_is_known_only_at_the_next_look_is_filled_in(recorded):
    recorded.step(1.0)
    assert np.isnan(recorded.look().steps["loss"][0])
    recorded.losses[0] = 7.0
    recorded.step(1.0, loss=8.0)
    assert recorded.look().steps["loss"].tolist() == [7.0, 8.0]


def test_steps_that_came_too_fast_are_a_row_that_says_how_many(recorded):
    recorded.step()
    recorded.look()
    count = HISTORY + 10
    losses = [NAN] * count
    recorded.losses = [NAN, *losses]
    recorded.rows = [*recorded.rows, *((step, 3.0, 3.0, 0, INF, NAN) for step in range(2, count + 2))]  # in no time
    recorded.state = snapshot(steps=count + 1)
    steps = recorded.look().steps
    assert steps["verdict"].tolist()[:2] == ["pass", "gap"]
    assert (steps["step"][1], steps["missed"][1]) == (2, 10)
    assert steps["step"].tolist()[2:] == list(range(12, HISTORY + 12))
    assert np.isnan(steps["norm"][1])


def test_numbers_that_seldom_change_come_back_at_every_step(folder):
    file = RunFile(folder / "a.sqlite", dict)
    ratio = [NAN, 0.5, 0.5, 0.25, 0.25, NAN, NAN, 0.5]
    for first in (1, 9):
        look = rows(first, [1.0] * 8, update_ratio=ratio, reach=[INF] * 8)
        file.write(Look(2.0, 1.0, look, learning_rate=0.1, loss_scale=None))
    steps = Run(file.path).steps
    assert np.array_equal(steps["update_ratio"], ratio * 2, equal_nan=True)
    assert np.array_equal(steps["reach"], [INF] * 16)
    assert np.array_equal(steps["learning_rate"], [0.1] * 16)
    assert np.isnan(steps["loss_scale"]).all()


def test_chunks_together_are_the_steps(folder, monkeypatch):
    file = RunFile(folder / "a.sqlite", dict)
    file.write(Look(2.0, 1.0, rows(1, np.arange(25.0), reach=[5.0] * 3 + [6.0] * 22)))
    whole = Run(file.path).steps
    monkeypatch.setattr("gradwatch.record.run._ROWS", 4)
    again = Run(file.path).steps
    assert all(np.array_equal(whole[name], again[name], equal_nan=name not in ("verdict",)) for name in whole)
    assert again["reach"].tolist() == [5.0] * 3 + [6.0] * 22


def test_variables_are_recorded_once_a_look_with_norm_weight_norm_and_update_ratio(recorded):
    for norm in (1.0, 2.0):
        recorded.step(layer_norms={"a/kernel": norm, "b": NAN}, layer_weight_norms={"a/kernel": 3.0},
                      layer_update_ratio={"a/kernel": 0.01})  # fmt: skip
        run = recorded.look()
    layer = run.layers("a/kernel")
    assert layer["step"].tolist() == [1, 2]
    assert layer["norm"].tolist() == [1.0, 2.0]
    assert layer["weight_norm"].tolist() == [3.0, 3.0]
    assert layer["update_ratio"].tolist() == [0.01, 0.01]
    assert np.isnan(run.layers("b")["weight_norm"]).all()
    assert run.variables == ("a/kernel", "b")


def test_the_variables_of_a_large_model_leave_room_for_the_steps_but_never_miss_an_event(folder):
    file = RunFile(folder / "a.sqlite", dict)
    layers = {f"v{i}": (1.0, 1.0, 1.0) for i in range(_FIRST_LAYER_ROWS // 2)}
    for step in range(1, 6):
        file.write(Look(step, step - 1, rows(step, [1.0]), layers=layers, told=step == 5))
    assert Run(file.path).layers("v0")["step"].tolist() == [1, 2, 5]


def test_an_event_is_recorded_once_with_its_shares_and_its_alerts(recorded):
    for _ in range(3):
        recorded.step()
    recorded.begin("explosion", 50.0, 5.0)
    recorded.look()
    recorded.end("explosion")
    run = recorded.look()
    events = run.events
    assert events["kind"].tolist() == ["explosion"]
    assert (events["step"][0], events["norm"][0], events["threshold"][0]) == (4, 50.0, 5.0)
    assert events["shares"][0] == {"dense/kernel": 0.7, "dense/bias": 0.3}
    assert run.alerts["phase"].tolist() == ["fired", "resolved"]
    assert "gradient explosion at step 4" in run.alerts["message"][0]


def test_a_note_is_kept_with_its_step(recorded):
    recorded.step()
    recorded.recorder.note("unfroze the encoder", 1)
    notes = recorded.look().notes
    assert (notes["step"].tolist(), notes["text"].tolist()) == ([1], ["unfroze the encoder"])


def test_the_facts_of_the_run_come_back(recorded):
    recorded.step()
    info = recorded.look().info
    assert (info["name"], info["id"], info["policy"], info["optimizer"]) == ("run", "run-1", "fixed(1)", "SGD")
    assert info["variables"] == {"a/kernel": (3, 2), "b": ()}
    assert info["versions"]["numpy"] == np.__version__
    assert info["ended"] == "running"
    assert info["end"] is None


def test_a_run_that_is_marked_as_over_says_finished_and_goes_on_with_its_next_step(recorded, reader):
    recorded.step()
    recorded.look()
    reader.mark_active(recorded, False)
    assert recorded.look().info["ended"] == "finished"
    recorded.step()
    assert recorded.look().info["ended"] == "running"


def test_a_return_to_a_checkpoint_is_a_note_and_no_step_of_the_checkpoint_is_recorded_twice(recorded):
    for _ in range(10):
        recorded.step(1.0)
    recorded.look()
    recorded.recorder.resume(4)
    del recorded.rows[4:], recorded.losses[4:]
    recorded.state = snapshot(steps=4)
    for _ in range(2):
        recorded.step(9.0)
    run = recorded.look()
    assert run.steps["step"].tolist() == [*range(1, 11), 5, 6]
    assert run.notes["text"].tolist() == ["set back from step 10 to step 4"]


def test_a_return_to_a_checkpoint_that_is_overtaken_before_the_next_look_is_still_recorded(recorded):
    for _ in range(10):
        recorded.step(1.0)
    recorded.look()
    recorded.recorder.resume(4)
    del recorded.losses[4:]
    recorded.rows = [*recorded.rows[:4], *((step, 9.0, 9.0, 0, INF, NAN) for step in range(5, 21))]  # in no time
    recorded.losses += [NAN] * 16
    recorded.state = snapshot(steps=20)
    run = recorded.look()
    assert run.steps["step"].tolist() == [*range(1, 11), *range(5, 21)]
    assert run.notes["text"].tolist() == ["set back from step 10 to step 4"]


def test_a_run_that_goes_on_from_a_checkpoint_records_its_own_steps_only(folder, reader):
    resumed = Recorded(folder, resumed_at=3)
    for _ in range(5):
        resumed.step()
    assert resumed.look().steps["step"].tolist() == [4, 5]


def test_the_end_of_the_process_writes_the_last_steps_into_one_plain_file(recorded, reader):
    recorded.step()
    recorded.look()
    recorded.step()
    reader.close()
    assert [path.name for path in recorded.recorder.folder.iterdir()] == [recorded.recorder.path.name]
    run = open_run(recorded.recorder.folder)
    assert run.steps["step"].tolist() == [1, 2]
    assert run.info["ended"] == "finished"
    assert run.info["end"] > run.info["start"]


def test_a_monitor_that_is_garbage_leaves_a_whole_record(folder, reader):
    monitor, kept = Recorded(folder), []
    monitor.step()
    path = monitor.look().path
    monitor.step(5.0)
    kept.extend(monitor.rows)
    monitor.recorder._history = lambda: history_of(kept, [NAN] * len(kept))
    del monitor
    assert recorder._writing.flush(20)
    run = Run(path)
    assert run.steps["norm"].tolist() == [1.0, 5.0]
    assert run.info["ended"] == "finished"


def test_two_monitors_are_two_runs_in_one_folder(folder, reader):
    monitors = [Recorded(folder, "same", run_id) for run_id in ("x", "y")]
    for i, monitor in enumerate(monitors):
        monitor.step(float(i))
        monitor.look()
    assert [Run(m.recorder.path).steps["norm"].tolist() for m in monitors] == [[0.0], [1.0]]


@pytest.mark.parametrize("bad", [7, "", b"", True])
def test_a_record_that_is_no_folder_is_refused(bad):
    with pytest.raises(ConfigError, match="record must be the folder"):
        recorder.folder_of(bad)


def test_the_environment_names_the_folder_for_who_does_not(monkeypatch, tmp_path):
    assert recorder.folder_of(None) is None
    monkeypatch.setenv("GRADWATCH_RECORD", str(tmp_path))
    assert recorder.folder_of(None) == tmp_path
    assert recorder.folder_of("runs").name == "runs"


def test_any_tool_reads_the_file(recorded):
    recorded.step(2.0, 1.0, "clip")
    path = recorded.look().path
    with sqlite3.connect(path) as db:
        query = "SELECT step, norm, word FROM steps JOIN verdicts ON verdicts.id = verdict"
        assert db.execute(query).fetchall() == [(1, 2.0, "clip")]
    db.close()


def test_a_look_opens_no_file_and_a_copy_of_the_file_alone_is_a_record(recorded, monkeypatch, tmp_path):
    recorded.step()
    path = recorded.look().path
    monkeypatch.setattr("gradwatch.record.writer.sqlite3.connect", None)
    for _ in range(3):
        recorded.step()
        recorded.recorder.flush(20)
    monkeypatch.undo()
    assert Run(path).steps["step"].tolist() == [1, 2, 3, 4]
    shutil.copy(path, tmp_path / "copy.sqlite")
    assert Run(tmp_path / "copy.sqlite").steps["step"].tolist()[:1] == [1]


def test_memory_and_files_do_not_grow_with_the_looks(folder):
    """Over 3,000 looks, counted in the objects and files that this process holds."""
    file = RunFile(folder / "a.sqlite", dict)
    layers = {f"v{i}": (1.0, 1.0, 1.0) for i in range(10)}

    def write(first, looks):
        for i in range(first, first + looks):
            file.write(
                Look(i + 1.0, float(i), rows(1 + 8 * i, np.arange(8.0)), layers=layers, words=[("notes", (i, 0, "x"))])
            )

    write(0, 300)
    gc.collect()
    tracemalloc.start()
    try:
        write(300, 100)
        gc.collect()
        before, files = tracemalloc.get_traced_memory()[0], len(os.listdir("/proc/self/fd"))
        write(400, 2600)
        gc.collect()
        after = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert after - before < 20_000
    assert len(os.listdir("/proc/self/fd")) == files
    assert (folder / "a.sqlite-wal").stat().st_size < 8e6
    assert len(Run(file.path).steps["step"]) == 24_000


def test_a_step_takes_less_than_a_hundred_bytes(folder):
    """So that a million steps fit into 100 MB; benchmarks/recording.py writes them all."""
    file, rng = RunFile(folder / "a.sqlite", dict), np.random.default_rng(0)
    for first in range(1, 20_000, 256):
        columns = {
            name: rng.lognormal(size=256)
            for name in ("norm", "applied_norm", "clip_norm", "threshold", "score", "loss")
        }
        file.write(Look(first + 1.0, first, {**rows(first, columns["norm"]), **columns}, learning_rate=rng.random()))
    file.fold()
    assert file.path.stat().st_size / 20_224 < 100
