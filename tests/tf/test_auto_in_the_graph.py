"""`auto` in the graph: what a person meets in the first steps, who asks for it and who does not."""

from __future__ import annotations

import functools

import keras
import numpy as np
import pytest
import support
import tensorflow as tf

import gradwatch
from gradwatch import policies
from gradwatch.demo.command import demo

MODES = {name: support.MODES[mode] for name, mode in support.PLAIN_MODES.items()}
DATA = support.batches(4)

#: |w| counts as at least what Glorot's initialisation would give, so the oracle has weights beyond that.
SCALE = 10.0


def trained(optimizer, mode="eager"):
    """(weights before, weights after each step, history) of four steps with `auto`."""
    net = support.model()
    net.set_weights([SCALE * w for w in net.get_weights()])
    step = MODES[mode](
        functools.partial(gradwatch.watch, policy="auto", jit_compile=False), support.train_step(net, optimizer)
    )
    seen = [support.weights(net)]
    for x, y in DATA:
        step(x, y)
        seen.append(support.weights(net))
    return seen, step.monitor.history()


def test_watch_monitor_callback_and_demo_have_one_default_when_no_policy_is_named():
    step = gradwatch.watch(lambda: None)
    assert step.monitor.guard.policy == policies.auto()
    assert gradwatch.Monitor().guard.policy == policies.auto()
    assert gradwatch.KerasCallback().monitor.guard.policy == policies.auto()
    (option,) = (parameter for parameter in demo.params if parameter.name == "policy")
    assert policies.parse(option.default) == policies.auto()


def test_auto_implies_no_share_of_clipped_steps():
    assert gradwatch.Monitor(policy="auto").snapshot().expected_clip_ratio is None


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_the_first_step_is_held_back_whole_and_the_next_one_moves(kind, mode):
    optimizer = keras.optimizers.Adam(0.01) if kind == "adam" else support.sgd(0.5, momentum=0.9)
    weights, history = trained(optimizer, mode)
    assert history["clip_norm"][0] == 0.0 == history["applied_norm"][0]
    for before, after in zip(weights[0], weights[1]):
        np.testing.assert_array_equal(before, after)
    assert any((before != after).any() for before, after in zip(weights[1], weights[2]))
    if kind == "adam":
        # a tenth of the first norm, which the sketch knows to 1 %
        assert history["clip_norm"][1:] == pytest.approx(0.1 * history["norm"][0], rel=0.02)


def test_a_clip_without_an_optimizer_passes_its_first_step_as_it_came():
    monitor = gradwatch.Monitor(policy="auto", jit_compile=False)
    (first,), decision = monitor.clip([tf.constant([3.0, 4.0])])
    np.testing.assert_array_equal(first, [3.0, 4.0])
    assert float(decision.applied_norm) == 5.0
    (second,), _ = monitor.clip([tf.constant([300.0, 400.0])])
    assert np.linalg.norm(second) == pytest.approx(10.0, rel=0.02)  # twice the median
