"""A run that is interrupted and resumed in a new process decides as if it had never stopped."""

from __future__ import annotations

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
from gradwatch import detectors, policies
from gradwatch.errors import LayoutError

DATA = support.batches(100, spike_at=70)


def training():
    """Everything that is trained and saved: (watched step, checkpoint)."""
    net, optimizer = support.model(), keras.optimizers.Adam(0.01)
    optimizer.build(net.trainable_variables)
    monitor = gradwatch.Monitor("resumed", policies.percentile(75, window=40), jit_compile=False)
    step = gradwatch.watch(monitor=monitor)(tf.function(support.train_step(net, optimizer)))
    return step, tf.train.Checkpoint(net=net, optimizer=optimizer, gradwatch=monitor), net


def finish(prefix: str, result: str) -> None:
    """The second half, in a process of its own."""
    step, checkpoint, net = training()
    checkpoint.restore(prefix).expect_partial()
    support.run(step, DATA[50:])
    np.savez(result, *support.weights(net), **step.monitor.history())


def test_fifty_steps_a_new_process_and_fifty_more_equal_a_hundred(tmp_path: Path):
    step, _, net = training()
    support.run(step, DATA)
    whole, expected = step.monitor.history(), support.weights(net)
    assert {0, 1} <= set(whole["verdict"].tolist())
    assert step.monitor.snapshot().explosions == 1

    step, checkpoint, _ = training()
    support.run(step, DATA[:50])
    prefix = checkpoint.write(str(tmp_path / "half"))
    root = Path(gradwatch.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(Path(__file__).parent)])}
    code = "import support; support.two_logical_cpus(); import sys, test_checkpoint as t; t.finish(*sys.argv[1:])"
    child = subprocess.run(
        [sys.executable, "-c", code, prefix, str(tmp_path / "result.npz")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert child.returncode == 0, child.stderr[-3000:]

    resumed = np.load(tmp_path / "result.npz")
    for name, column in whole.items():
        support.assert_same([resumed[name]], [column])
    support.assert_same([resumed[f"arr_{i}"] for i in range(len(expected))], expected)


ALL_POLICIES = {**policies.POLICIES, **policies.COMBINATORS}


def clipped(monitor, *values):
    for value in values:
        monitor.clip([tf.constant([value], tf.float32), tf.ones([2])])
    return monitor


@pytest.mark.parametrize("name", ALL_POLICIES)
def test_every_policy_taken_back_to_a_checkpoint_decides_the_same_again(name, tmp_path: Path):
    monitor = gradwatch.Monitor("p", ALL_POLICIES[name](), detectors.default(), jit_compile=False)
    checkpoint = tf.train.Checkpoint(gradwatch=monitor)
    first, second = np.exp(np.random.default_rng(3).normal(size=(2, 20)))
    clipped(monitor, *first)
    prefix = checkpoint.write(str(tmp_path / "c"))
    whole = clipped(monitor, *second).history()
    checkpoint.restore(prefix)
    again = clipped(monitor, *second).history()
    for key, column in whole.items():
        support.assert_same([again[key]], [column])


@pytest.mark.parametrize("steps_before_restore", [0, 3])
def test_a_restore_brings_back_the_snapshot_before_and_after_the_first_step(steps_before_restore, tmp_path: Path):
    saved = clipped(support.monitor(), *range(1, 12))
    prefix = tf.train.Checkpoint(gradwatch=saved).write(str(tmp_path / "c"))
    fresh = clipped(support.monitor(), *[5.0] * steps_before_restore)
    tf.train.Checkpoint(gradwatch=fresh).restore(prefix)
    clipped(fresh, 12.0)
    assert fresh.snapshot().steps == 12
    assert fresh.history()["norm"].tolist() == clipped(saved, 12.0).history()["norm"].tolist()


def test_a_checkpoint_from_before_the_first_step_restores_to_nothing(tmp_path: Path):
    prefix = tf.train.Checkpoint(gradwatch=support.monitor()).write(str(tmp_path / "c"))
    fresh = support.monitor()
    tf.train.Checkpoint(gradwatch=fresh).restore(prefix)
    assert clipped(fresh, 1.0).snapshot().steps == 1


def test_a_run_goes_back_to_a_checkpoint_from_before_its_first_step(tmp_path: Path):
    monitor = support.monitor()
    checkpoint = tf.train.Checkpoint(gradwatch=monitor)
    prefix = checkpoint.write(str(tmp_path / "c"))
    clipped(monitor, 1.0, 2.0)
    checkpoint.restore(prefix)
    assert clipped(monitor, 1.0).snapshot().steps == 1


def test_a_rollback_to_an_earlier_checkpoint_takes_the_counters_back(tmp_path: Path):
    monitor = clipped(support.monitor(), 1.0, 2.0)
    checkpoint = tf.train.Checkpoint(gradwatch=monitor)
    prefix = checkpoint.write(str(tmp_path / "c"))
    clipped(monitor, 3.0, 4.0)
    checkpoint.restore(prefix)
    assert monitor.snapshot().steps == 2
    assert monitor.snapshot().norm == pytest.approx(np.sqrt(4.0 + 2.0))


@pytest.mark.parametrize(
    "other",
    [
        lambda: clipped(support.monitor(policies.percentile(90)), 1.0),
        lambda: clipped(support.monitor(detectors=detectors.default()), 1.0),
        lambda: clip_three(support.monitor()),
    ],
    ids=["another policy", "other detectors", "another model"],
)
@pytest.mark.parametrize("stepped", [True, False], ids=["after its first step", "before its first step"])
def test_a_checkpoint_of_something_else_is_refused(other, stepped, tmp_path: Path):
    prefix = tf.train.Checkpoint(gradwatch=other()).write(str(tmp_path / "c"))
    fresh = support.monitor()
    if stepped:
        clipped(fresh, 1.0)
    before = fresh.snapshot().steps
    with pytest.raises(LayoutError, match="restore with the same model, policy and detectors"):
        restore_and_step(fresh, prefix)
    assert fresh.snapshot().steps == before


def of_variables(**shapes):
    """A monitor after a step over variables of these names and shapes."""
    monitor = support.monitor()
    variables = [tf.Variable(tf.ones(shape), name=name) for name, shape in shapes.items()]
    return step_over(monitor, variables), variables


def step_over(monitor, variables):
    monitor.clip([tf.ones(v.shape) for v in variables], variables)
    return monitor


@pytest.mark.parametrize(
    ("shapes", "difference"),
    [
        ({"a": [2], "c": [3]}, r"variable 1 is c:0 there and b:0 here"),
        ({"a": [2], "b": [4]}, r"variable 1, b:0, has shape \(4,\) there and \(3,\) here"),
        ({"b": [2], "a": [3]}, r"variable 0 is b:0 there and a:0 here"),
        ({"a": [2], "b": [3, 1]}, r"variable 1, b:0, has shape \(3, 1\) there"),
    ],
    ids=["another name", "another shape", "another order", "another rank"],
)
@pytest.mark.parametrize("way", ["load", "checkpoint"])
def test_the_state_of_another_model_with_as_many_variables_is_refused_at_load(shapes, difference, way, tmp_path):
    other, _ = of_variables(**shapes)
    monitor, _ = of_variables(a=[2], b=[3])
    path = str(tmp_path / "state")
    if way == "load":
        other.save(path)
        with pytest.raises(LayoutError, match=difference):
            monitor.load(path)
    else:
        prefix = tf.train.Checkpoint(gradwatch=other).write(path)
        with pytest.raises(LayoutError, match=difference):
            tf.train.Checkpoint(gradwatch=monitor).restore(prefix)
    assert monitor.snapshot().steps == 1


def test_before_the_first_step_the_variables_are_unknown_and_the_step_refuses(tmp_path: Path):
    other, _ = of_variables(a=[2], c=[3])
    other.save(tmp_path / "state")
    fresh = support.monitor()
    fresh.load(tmp_path / "state")
    with pytest.raises(LayoutError, match="variable 1 is c:0 there and b:0 here"):
        step_over(fresh, [tf.Variable(tf.ones([2]), name="a"), tf.Variable(tf.ones([3]), name="b")])


def test_the_numbers_that_keras_gives_to_layers_need_not_be_the_same(tmp_path: Path):
    """A notebook that has made other models before calls `dense` `dense_7`."""
    first, second = support.model(), support.model()
    assert [v.path for v in first.trainable_variables] != [v.path for v in second.trainable_variables]
    step_over(support.monitor(), first.trainable_variables).save(tmp_path / "state")
    monitor = support.monitor()
    monitor.load(tmp_path / "state")
    assert step_over(monitor, second.trainable_variables).snapshot().steps == 2


def test_a_state_that_names_no_variables_is_refused_as_old(tmp_path: Path):
    monitor, _ = of_variables(a=[2])
    np.savez(tmp_path / "old.npz", layout="fixed(0.5)|6a7a", state=np.array(monitor._engine.on_device.vector()))
    with pytest.raises(LayoutError, match="older gradwatch"):
        monitor.load(tmp_path / "old.npz")


def test_after_a_load_a_rebuilt_model_of_the_same_paths_goes_on(tmp_path: Path):
    monitor, _ = of_variables(a=[2])
    monitor.save(tmp_path / "state")
    monitor.load(tmp_path / "state")
    rebuilt = [tf.Variable(tf.ones([2]), name="a")]
    assert step_over(monitor, rebuilt).snapshot().steps == 2
    with pytest.raises(LayoutError, match="another variable of the same name"):
        step_over(monitor, [tf.Variable(tf.ones([2]), name="a")])


def restore_and_step(monitor, prefix):
    """Before the first step a monitor does not know its layout: the step finds out."""
    tf.train.Checkpoint(gradwatch=monitor).restore(prefix)
    clipped(monitor, 1.0)


def clip_three(monitor):
    monitor.clip([tf.ones([1])] * 3)
    return monitor


def test_a_monitor_that_is_not_in_the_checkpoint_starts_anew(tmp_path: Path):
    prefix = tf.train.Checkpoint(net=support.model()).write(str(tmp_path / "c"))
    monitor = support.monitor()
    tf.train.Checkpoint(net=support.model(), gradwatch=monitor).restore(prefix).expect_partial()
    assert clipped(monitor, 1.0).snapshot().steps == 1


def test_the_checkpoint_manager_saves_and_restores_it(tmp_path: Path):
    monitor = clipped(support.monitor(), 1.0, 2.0)
    manager = tf.train.CheckpointManager(tf.train.Checkpoint(gradwatch=monitor), str(tmp_path), max_to_keep=1)
    manager.save()
    fresh = support.monitor()
    restored = tf.train.CheckpointManager(tf.train.Checkpoint(gradwatch=fresh), str(tmp_path), max_to_keep=1)
    restored.restore_or_initialize()
    assert clipped(fresh, 3.0).snapshot().steps == 3


def test_a_threshold_is_a_setting_that_a_restored_state_may_have_another_of(tmp_path: Path):
    """What spike(5) learned of the norms is as true for spike(6); what another kind of detector remembers is not."""
    w = tf.Variable([1.0, 2.0], name="w")
    before = support.monitor(detectors=["spike(5)", "trend"])
    step_over(before, [w]).save(tmp_path / "state")
    after = support.monitor(detectors=["spike(6, window=500)", "trend(2)"])
    after.load(tmp_path / "state")
    assert step_over(after, [w]).snapshot().steps == 2
    level = [m._engine.tree()["detectors"]["0_explosion"]["level"]["seen"] for m in (before, after)]
    assert level == [1.0, 2.0]


@pytest.mark.parametrize("other", [["trend", "spike"], ["spike"], ["spike(false_alarms_per_million=10)", "trend"], []])
def test_a_state_of_other_kinds_of_detectors_is_refused_and_says_which(tmp_path: Path, other):
    w = tf.Variable([1.0, 2.0], name="w")
    step_over(support.monitor(detectors=["spike", "trend"]), [w]).save(tmp_path / "state")
    after = support.monitor(detectors=other)
    after.load(tmp_path / "state")
    with pytest.raises(LayoutError, match="with the detectors spike, trend"):
        step_over(after, [w])
