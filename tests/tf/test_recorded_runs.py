"""A watched training is recorded: by watch, Monitor, KerasCallback and the environment, and costs no step anything."""

from __future__ import annotations

import gc

import keras
import numpy as np
import pytest
import tensorflow as tf

import gradwatch
from gradwatch.core import counters
from gradwatch.core.xp import NUMPY
from gradwatch.reading.reader import reader
from gradwatch.record import recorder
from gradwatch.tf import trail

pytestmark = pytest.mark.usefixtures("reader_of_this_test")


def look(folder):
    assert reader.poll_now(20)
    assert recorder._writing.flush(20)
    return gradwatch.open_run(folder)


def training(optimizer=None, **options):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(1)])
    optimizer = optimizer or keras.optimizers.SGD(0.01)

    @gradwatch.watch(**options)
    @tf.function
    def step(x, y):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(x) - y) ** 2)
        optimizer.apply_gradients(zip(tape.gradient(loss, model.trainable_variables), model.trainable_variables))
        return loss

    x = tf.random.normal((8, 4), seed=1)
    return step, lambda scale=1.0: float(step(scale * x, tf.ones((8, 1))))


def test_a_watched_step_is_recorded_with_its_own_loss_rate_and_norm(folder):
    optimizer = keras.optimizers.SGD(0.01)
    step, run_one = training(optimizer, record=folder)
    losses = [run_one() for _ in range(30)]
    look(folder)
    optimizer.learning_rate = 0.005
    losses += [run_one() for _ in range(30)]
    history = step.monitor.history()
    assert np.array_equal(history["loss"], np.float32(losses))
    run = look(folder)
    steps = run.steps
    assert steps["step"].tolist() == list(range(1, 61))
    assert np.array_equal(steps["loss"], np.float32(losses))
    for name in ("norm", "applied_norm", "clip_norm", "threshold", "score", "reach", "update_ratio"):
        assert np.array_equal(steps[name].astype(np.float32), history[name], equal_nan=True), name
    assert steps["learning_rate"][:30] == pytest.approx([0.01] * 30)
    assert steps["learning_rate"][30:] == pytest.approx([0.005] * 30)
    info = run.info
    assert (info["optimizer"], info["optimizer_settings"]["momentum"]) == ("SGD", 0.0)
    assert info["variables"] == {path: tuple(shape) for path, shape in zip(run.variables, [(4, 3), (3,), (3, 1), (1,)])}
    assert info["policy"] == step.monitor.guard.policy.name
    layer = run.layers(run.variables[0])
    assert layer["norm"][-1] == pytest.approx(step.monitor.snapshot().layer_norms[run.variables[0]])
    assert layer["weight_norm"][-1] > 0


def test_without_record_no_thread_no_file_and_no_fact_is_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(recorder.VARIABLE, raising=False)
    step, run_one = training()
    run_one()
    reader.poll_now(20)
    step.monitor.note("goes nowhere")
    assert step.monitor.record_path is None
    assert step.monitor.recorded == (0, 0)
    assert list(tmp_path.iterdir()) == []
    assert "learning_rate" not in step.monitor.snapshot().extra


def test_fit_is_recorded_and_its_end_is_the_end_of_the_run(folder):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(1)])
    model.compile("adam", "mse")
    callback = gradwatch.KerasCallback(record=folder)
    x = np.ones((64, 4), np.float32)
    model.fit(x, np.ones(64), batch_size=4, epochs=2, verbose=0, callbacks=[callback])
    run = look(folder)
    steps = run.steps
    assert steps["step"].tolist() == list(range(1, 33))
    assert run.info["ended"] == "finished"
    assert run.info["optimizer"] == "Adam"
    assert steps["learning_rate"] == pytest.approx([0.001] * 32)
    assert np.isfinite(steps["loss"]).all()
    # each batch's own: all batches are alike, so it falls step by step, but for the first one, which is held back
    assert np.all(np.diff(steps["loss"])[1:] < 0)
    assert steps["loss"][0] == steps["loss"][1]


def test_the_environment_records_every_monitor(folder, monkeypatch):
    monkeypatch.setenv(recorder.VARIABLE, str(folder))
    step, run_one = training()
    run_one()
    assert look(folder).info["id"] == step.monitor.run_id


def test_an_explosion_and_a_note_are_in_the_record(folder):
    step, run_one = training(record=folder)
    for _ in range(40):
        run_one()
    step.monitor.note("now the bad batch")
    run_one(1e6)
    run = look(folder)
    assert run.events["kind"].tolist() == ["explosion"]
    assert run.events["step"].tolist() == [41]
    assert run.alerts["step"].tolist() == [41]
    assert (run.notes["step"].tolist(), run.notes["text"].tolist()) == ([40], ["now the bad batch"])
    assert run.steps["verdict"][-1] == "clip"


def test_a_run_that_goes_on_from_a_saved_state_records_its_own_steps_only(folder, tmp_path):
    step, run_one = training()
    for _ in range(10):
        run_one()
    step.monitor.save(tmp_path / "state.npz")
    step, run_one = training(record=folder)
    step.monitor.load(tmp_path / "state.npz")
    for _ in range(5):
        run_one()
    assert look(folder).steps["step"].tolist() == list(range(11, 16))


def test_a_monitor_set_back_in_mid_run_goes_on_in_the_same_record(folder, tmp_path):
    step, run_one = training(record=folder)
    for _ in range(6):
        run_one()
    step.monitor.save(tmp_path / "state.npz")
    for _ in range(6):
        run_one()
    look(folder)
    step.monitor.load(tmp_path / "state.npz")
    for _ in range(3):
        run_one()
    run = look(folder)
    assert run.steps["step"].tolist() == [*range(1, 13), 7, 8, 9]
    assert run.notes["text"].tolist() == ["set back from step 12 to step 6"]


def test_a_monitor_that_goes_out_of_scope_loses_no_step(folder):
    def train():
        monitor = gradwatch.Monitor("scoped", record=folder)
        for _ in range(5):
            monitor.clip([tf.ones([2])])
        look(folder)
        for _ in range(5):
            monitor.clip([tf.ones([2])])

    train()
    gc.collect()
    assert recorder._writing.flush(20)
    run = gradwatch.open_run(folder)
    assert run.steps["step"].tolist() == list(range(1, 11))
    assert run.info["ended"] == "finished"


def test_a_loss_that_was_infinite_is_told_and_one_that_was_nan_is_not_known():
    monitor = gradwatch.Monitor("losses", policy="observe")
    for loss in (1.0, float("inf"), float("-inf"), float("nan"), 2.0):
        monitor.clip([tf.ones([2])])
        monitor.report(loss=loss)
    expected = [1.0, np.inf, -np.inf, np.nan, 2.0]
    assert np.array_equal(monitor.history()["loss"], np.float32(expected), equal_nan=True)
    assert np.array_equal(monitor.read().history["loss"], np.float32(expected), equal_nan=True)


def test_a_copy_of_a_recorded_monitor_is_recorded_beside_it(folder):
    import copy

    monitor = gradwatch.Monitor("one", record=folder)
    for one in (monitor, copy.copy(monitor)):
        one.clip([tf.ones([2])])
        look(folder)
    assert len(list(folder.glob("*.sqlite"))) == 2


def test_a_schedule_is_recorded_step_by_step(folder):
    rate = keras.optimizers.schedules.ExponentialDecay(0.01, 1, 0.9)
    _, run_one = training(keras.optimizers.SGD(rate), record=folder)
    for _ in range(25):
        run_one()
    steps = look(folder).steps
    np.testing.assert_allclose(steps["learning_rate"], 0.01 * 0.9 ** np.arange(25), rtol=1e-5)
    assert np.isnan(steps["loss_scale"]).all()


def test_a_loss_scale_that_changes_is_recorded_step_by_step(folder):
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.01), initial_scale=2.0**10)
    w = tf.Variable([1.0, 2.0])
    optimizer.build([w])

    @gradwatch.watch(record=folder)
    @tf.function
    def step(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(w * x)
            scaled = optimizer.scale_loss(loss)
        optimizer.apply_gradients([(tape.gradient(scaled, w), w)])
        return loss

    for x in [1.0, 1.0, np.inf, 1.0, np.inf, 1.0]:
        step(tf.constant(x))
    steps = look(folder).steps
    assert steps["loss_scale"].tolist() == [1024.0, 1024.0, 1024.0, 512.0, 512.0, 256.0]
    assert steps["learning_rate"] == pytest.approx([0.01] * 6)


@pytest.mark.parametrize("mode", ["eager", "function", "jit"])
def test_every_variable_is_recorded_step_by_step_around_an_event(folder, mode):
    w, v = tf.Variable([3.0, 4.0], name="w"), tf.Variable([1.0], name="v")
    optimizer = keras.optimizers.SGD(0.1)
    optimizer.build([w, v])

    def step(size):
        grads = [size * tf.constant([0.6, 0.8]), size * tf.constant([2.0])]
        optimizer.apply_gradients(zip(grads, [w, v]))

    detectors = [gradwatch.detectors.spike(warmup_steps=4)]
    run = step if mode == "eager" else tf.function(step, jit_compile=mode == "jit")
    watched = gradwatch.watch(record=folder, policy="observe", detectors=detectors, name=mode)(run)
    lengths, sizes = [], []
    for i in range(1, 71):
        sizes.append(1e-3 * (1.0 + i / 1000) * (1e3 if i == 40 else 1.0))
        before = w.numpy()
        watched(tf.constant(sizes[-1], tf.float32))
        lengths.append((np.linalg.norm(before), np.linalg.norm(w.numpy() - before)))
    recorded = look(folder)
    assert recorded.events["step"].tolist() == [40]
    around = recorded.around("w:0")
    assert around["step"].tolist() == list(range(24, 56))
    np.testing.assert_allclose(around["norm"], sizes[23:55], rtol=1e-5)
    np.testing.assert_allclose(recorded.around("v:0")["norm"], 2 * np.array(sizes[23:55]), rtol=1e-5)
    # measured in each step after the event, 41 to 54: what the last one did is known from the next on
    after = np.array(lengths[40:54])
    np.testing.assert_allclose(around["weight_norm"][17:31], after[:, 0], rtol=1e-5)
    np.testing.assert_allclose(around["update_ratio"][17:31], after[:, 1] / after[:, 0], rtol=1e-2)
    # once it has been read, the next event is kept, too
    for i in range(40):
        watched(tf.constant(1e3 if i == 20 else 1e-3))
    assert set(range(75, 107)) == set(look(folder).around("w:0")["step"][32:].tolist())


@pytest.mark.parametrize("begin", [2**20 - 30, 5 * 2**20 - 3])
def test_the_steps_around_an_event_are_known_where_the_low_bits_of_a_step_wrap(folder, begin):
    step, run_one = training(record=folder, detectors=[gradwatch.detectors.spike(warmup_steps=4)])
    run_one(1.0)
    built = step.monitor._engine.on_device
    built.put(_after(built, begin))
    for i in range(60):
        run_one(1e6 if i == 28 else 1.0)
    reader.close()
    around = gradwatch.open_run(folder).around(gradwatch.open_run(folder).variables[0])
    assert around["step"].tolist() == list(range(begin + 29 - 16, begin + 29 + 16))
    assert np.argmax(around["norm"]) == 16


def _after(built, steps):
    """The state of a device, packed, as if it had made so many steps."""
    packed = built.pack().numpy()
    tree = built.layout.unpack(NUMPY, packed[: built.layout.size])
    i = counters.COUNTERS.index("steps")
    tree["count"]["low"][i], tree["count"]["high"][i] = steps % 2**20, steps // 2**20
    packed[: built.layout.size] = built.layout.pack(NUMPY, tree)
    return packed


@pytest.mark.parametrize(("count", "rows"), [(1, 1024), (82, 1024), (1500, 512), (100_000, 64)])
def test_the_ring_of_many_variables_keeps_fewer_steps(count, rows):
    assert trail.rows_of(count) == rows
    assert 2**20 % rows == 0
    assert rows == 64 or 4 * rows * (1 + 3 * count) <= 2**24


def test_an_event_of_a_run_that_began_anew_is_kept_though_the_run_before_had_one_at_a_later_step(folder):
    step, run_one = training(record=folder, detectors=[gradwatch.detectors.spike(warmup_steps=4)])
    for i in range(1, 101):
        run_one(1e6 if i == 60 else 1.0)
    run = look(folder)
    first = run.around(run.variables[0])["step"].tolist()
    assert first == list(range(44, 76))
    step.monitor.reset()
    for i in range(1, 111):
        run_one(1e6 if i == 50 else 1.0)
    assert look(folder).around(run.variables[0])["step"][len(first) :].tolist() == list(range(34, 66))


def test_an_event_at_the_very_end_keeps_the_steps_before_it(folder):
    _, run_one = training(record=folder, detectors=[gradwatch.detectors.spike(warmup_steps=4)])
    for i in range(40):
        run_one(1e6 if i == 38 else 1.0)
    reader.close()
    run = gradwatch.open_run(folder)
    assert run.around(run.variables[0])["step"].tolist() == list(range(23, 41))
