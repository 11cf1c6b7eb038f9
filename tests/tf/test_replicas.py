"""What the replicas of a step tell each other: it takes no meeting of its own, and all of them know it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import support
import tensorflow as tf

import gradwatch
from gradwatch import policies
from gradwatch.tf import last_loss

X = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)


def distributed(mirrored, decorated, *, loss=None, dtype="float32"):
    """(step over the parts of both replicas, monitor); a replica's gradient is its part, its loss `loss(part)`."""
    with mirrored.scope():
        weight = tf.Variable(tf.ones([4], dtype))
        optimizer = keras.optimizers.SGD(0.0)
        optimizer.build([weight])

    def replica(x):
        optimizer.apply([tf.cast(1.0 * x, dtype)], [weight])
        return tf.reduce_sum(x) if loss is None else loss(x)

    watch = support.watch(policies.observe())
    if decorated == "replica step":
        replica = watch(replica)
        step = tf.function(lambda x: mirrored.run(replica, args=(x,)))
        return step, replica.monitor
    if decorated == "strategy.run":
        step = watch(tf.function(lambda x: mirrored.run(replica, args=(x,))))
        return step, step.monitor
    return tf.function(lambda x: mirrored.run(replica, args=(x,))), None


def parts(mirrored, values):
    values = tf.constant(np.asarray(values, np.float32))
    return mirrored.experimental_distribute_values_from_function(lambda c: values[c.replica_id_in_sync_group])


def meetings(step, given):
    """How many sums over the replicas the graph of a step holds, of whatever size."""
    graph = step.get_concrete_function(given).graph
    functions = [graph, *(f.graph for f in graph._functions.values() if hasattr(f, "graph"))]
    types = ("CollectiveReduceV2", "NcclAllReduce")
    return sum(op.type in types for g in functions for op in g.get_operations())


@pytest.mark.parametrize("decorated", ["replica step", "strategy.run"])
def test_a_watched_step_sums_over_the_replicas_as_often_as_an_unwatched_one(mirrored, decorated):
    given = parts(mirrored, X)
    unwatched = meetings(distributed(mirrored, None)[0], given)
    assert unwatched > 0
    assert meetings(distributed(mirrored, decorated)[0], given) == unwatched


def test_gradients_of_another_dtype_are_summed_and_the_rest_is_known(mirrored):
    step, monitor = distributed(mirrored, "replica step", dtype="float64")
    step(parts(mirrored, [X[0], 3 * X[0]]))
    np.testing.assert_allclose(monitor.history()["norm"], [4 * np.linalg.norm(X[0])], rtol=1e-6)
    np.testing.assert_allclose(monitor.history()["replica_ratio"], [3.0], rtol=1e-5)
    np.testing.assert_array_equal(monitor.history()["replica"], [1])


LOSSES = [[1.0, 3.0], [2.0, np.nan], [np.inf, 1.0], [-np.inf, -np.inf], [np.inf, -np.inf], [1e30, 1e30], [-2.0, 0.5]]


@pytest.mark.parametrize("decorated", ["replica step", "strategy.run"])
def test_the_loss_is_the_mean_over_the_replicas_before_the_next_step_and_after_it(mirrored, decorated):
    step, monitor = distributed(mirrored, decorated, loss=lambda x: x[0])
    with np.errstate(invalid="ignore"):
        expected = np.mean(np.array(LOSSES, np.float32), 1)
    for i, losses in enumerate(LOSSES):
        step(parts(mirrored, np.repeat(np.array(losses)[:, None], 4, 1)))
        np.testing.assert_array_equal(monitor.history()["loss"], expected[: i + 1])


def test_the_mean_of_the_losses_survives_a_checkpoint(mirrored):
    step, monitor = distributed(mirrored, "replica step", loss=lambda x: x[0])
    step(parts(mirrored, [[1.0] * 4, [4.0] * 4]))
    fingerprint_and_state = monitor._engine.serialize()
    step(parts(mirrored, [[9.0] * 4, [9.0] * 4]))
    monitor._engine.restore(fingerprint_and_state)
    assert monitor.history()["loss"].tolist() == [2.5]
    assert monitor._engine.on_device.packed()[-1] == 2.5, "what a snapshot of a ladder keeps"
    step(parts(mirrored, [[7.0] * 4, [8.0] * 4]))
    assert monitor.history()["loss"].tolist() == [2.5, 7.5]


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_the_sums_of_equal_losses_give_that_loss(count):
    for code in map(np.float32, (0.0, 0.1, -3.5, 1e30, last_loss.NO_LOSS, last_loss.HUGE, -last_loss.HUGE)):
        np.testing.assert_allclose(last_loss.of_sums(count * last_loss.part(tf.constant(code)), count), code, rtol=3e-7)


def test_of_three_replicas_the_gradients_are_summed_as_without_a_monitor(tmp_path):
    """The order in which three numbers are added shows in the last bit, and depends on what travels with them."""
    environment = {key: value for key, value in os.environ.items() if key not in ("XLA_FLAGS", "TF_CONFIG")}
    program = Path(__file__).with_name("three_replicas.py")
    done = subprocess.run([sys.executable, program], env=environment, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr[-3000:]
    saw = json.loads(done.stdout)
    plain, watched = saw["plain"], saw["watched"]
    assert plain["weights"] == watched["weights"]
    assert watched["replica"][2] == 2
    assert watched["replica_ratio"][2] > 5.0
    assert max(watched["replica_ratio"][:2]) < 3.0
    rms = np.sqrt(np.mean(np.square(saw["data"]), (1, 2, 3)))
    np.testing.assert_allclose(np.delete(watched["input_rms"], 2), np.delete(rms, 2), rtol=1e-5)
    np.testing.assert_allclose(watched["loss"][-1], np.mean(watched["losses"]), rtol=1e-6)


def test_an_explosion_on_one_replica_is_seen_in_its_own_step(mirrored):
    step, monitor = distributed(mirrored, "replica step")
    for i in range(6):
        step(parts(mirrored, [X[0], X[0] * (1e4 if i == 4 else np.nan if i == 5 else 1.0)]))
    history = monitor.history()
    np.testing.assert_allclose(history["replica_ratio"][:5], [1, 1, 1, 1, 1e4], rtol=1e-4)
    assert history["replica_ratio"][5] == np.inf
    np.testing.assert_array_equal(history["replica"][4:], [1, 1])


def test_two_replicas_train_under_check_numerics(mirrored):
    tf.debugging.enable_check_numerics()
    try:
        step, monitor = distributed(mirrored, "replica step")
        for _ in range(3):
            step(parts(mirrored, X))
        assert monitor.snapshot().steps == 3
        assert np.isfinite(monitor.history()["loss"]).all()
    finally:
        tf.debugging.disable_check_numerics()


def test_a_step_that_returns_no_loss_has_none(mirrored):
    with mirrored.scope():
        weight = tf.Variable(tf.ones([4]))
        optimizer = keras.optimizers.SGD(0.0)
        optimizer.build([weight])

    @gradwatch.watch
    def replica(x):
        optimizer.apply([x], [weight])

    step = tf.function(lambda x: mirrored.run(replica, args=(x,)))
    for _ in range(2):
        step(parts(mirrored, X))
    assert np.isnan(replica.monitor.history()["loss"]).all()
