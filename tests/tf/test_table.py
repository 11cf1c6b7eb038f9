"""Every property for every loop of the golden table, in every mode that it runs in."""

from __future__ import annotations

import functools

import loops
import numpy as np
import pytest
import support
import tensorflow as tf

from gradwatch import policies
from gradwatch.core.policies import COMBINATORS, POLICIES

CELLS = [(loop, mode) for loop in loops.LOOPS for mode in loop.modes]
IDS = [f"{loop.name}-{mode}" for loop, mode in CELLS]
every_cell = pytest.mark.parametrize(("loop", "mode"), CELLS, ids=IDS)

BY_NAME = {loop.name: loop for loop in loops.LOOPS}
#: Where bit-identity is checked in every mode; elsewhere in the first mode that compiles.
THOROUGH = {"plain tape", "built-in train_step"}


@functools.cache
def reference(name):
    return loops.reference(BY_NAME[name])


@functools.cache
def record(name, mode, kind):
    policy = {"fixed": policies.fixed(support.CLIP), "observe": policies.observe(), "unwatched": None}[kind]
    return loops.run(BY_NAME[name], mode, policy)


def observed_in(loop):
    return loop.modes if loop.name in THOROUGH else [mode for mode in loop.modes if "eager" not in mode][:1]


def norms_of(name, mode):
    _, expected = reference(name)
    got = {key: monitor.history()["norm"] for key, monitor in record(name, mode, "fixed").monitors.items()}
    assert set(got) == set(expected)
    return got, expected


@every_cell
def test_table_every_update_is_counted_once(loop, mode):
    got, expected = norms_of(loop.name, mode)
    for key, monitor in record(loop.name, mode, "fixed").monitors.items():
        assert monitor.snapshot().steps == len(expected[key]) == len(got[key])


@every_cell
def test_table_the_norms_are_those_of_the_effective_gradient(loop, mode):
    got, expected = norms_of(loop.name, mode)
    for key in expected:
        np.testing.assert_allclose(got[key], expected[key], rtol=10 * loop.tolerance)


@every_cell
def test_table_the_parameters_equal_an_explicit_clip_by_global_norm(loop, mode):
    weights, _ = reference(loop.name)
    support.assert_close(
        record(loop.name, mode, "fixed").weights, weights, rtol=loop.tolerance, atol=loop.tolerance / 10
    )
    clipped = [m.snapshot().clipped_steps for m in record(loop.name, mode, "fixed").monitors.values()]
    assert all(clipped), "nothing was clipped: the test says nothing"


@pytest.mark.parametrize(
    ("loop", "mode"),
    [(loop, mode) for loop in loops.LOOPS for mode in observed_in(loop)],
    ids=lambda x: getattr(x, "name", x),
)
def test_table_with_observe_the_training_is_bit_identical(loop, mode):
    support.assert_same(record(loop.name, mode, "observe").weights, record(loop.name, mode, "unwatched").weights)
    assert all(m.snapshot().steps for m in record(loop.name, mode, "observe").monitors.values())


@pytest.mark.parametrize(
    ("loop", "mode"),
    [(loop, mode) for loop in loops.LOOPS for mode in observed_in(loop)],
    ids=lambda x: getattr(x, "name", x),
)
def test_table_nothing_is_traced_more_often(loop, mode):
    assert record(loop.name, mode, "observe").calls == record(loop.name, mode, "unwatched").calls


@pytest.mark.parametrize(
    ("loop", "mode"),
    [cell for cell in CELLS if cell[0].spike],
    ids=[name for name, cell in zip(IDS, CELLS) if cell[0].spike],
)
def test_table_an_injected_spike_raises_the_alarm(loop, mode):
    for monitor in record(loop.name, mode, "fixed").monitors.values():
        snapshot = monitor.snapshot()
        steps = snapshot.steps // loops.STEPS
        assert snapshot.explosions == 1
        assert (snapshot.last_explosion.step - 1) // steps + 1 == loops.SPIKE_AT
        assert sum(snapshot.last_explosion.shares.values()) == pytest.approx(1.0, abs=1e-3)


@every_cell
def test_table_no_op_needs_the_host(loop, mode):
    types = record(loop.name, mode, "fixed").types
    if types is None:
        pytest.skip("no graph of its own")
    assert "AssignVariableOp" in types or loop.name.startswith("mirrored")
    assert not support.HOST_OPS & set(types)


@pytest.mark.parametrize(
    ("loop", "mode"), [cell for cell in CELLS if cell[0].name in THOROUGH], ids=lambda x: getattr(x, "name", x)
)
def test_a_guard_of_plain_operations_does_the_same(loop, mode):
    plain = loops.run(loop, mode, policies.fixed(support.CLIP), jit_compile=False)
    support.assert_close(plain.weights, reference(loop.name)[0], rtol=loop.tolerance, atol=loop.tolerance / 10)
    for key, monitor in record(loop.name, mode, "fixed").monitors.items():
        got, expected = plain.monitors[key].history(), monitor.history()
        for column in ("norm", "clip_norm", "threshold"):
            np.testing.assert_allclose(got[column], expected[column], rtol=10 * loop.tolerance)
        np.testing.assert_array_equal(got["verdict"], expected["verdict"])


# -- every policy where the gradients are scaled ---------------------------------------------------------------

EVERY_POLICY = {**POLICIES, **COMBINATORS}


@functools.cache
def with_policy(loop, policy):
    """(weights, history) of a loop under one of `EVERY_POLICY`."""
    found = loops.run(BY_NAME[loop], loops.FUNCTION, EVERY_POLICY[policy]())
    return found.weights, found.monitors[""].history()


def test_a_limit_of_values_is_one_of_the_unscaled_gradient():
    """With a scale of 1024 and gradients of 0.05 and 0.5, not 0.1 / 1024."""
    w = tf.Variable([0.0, 0.0])
    optimizer = support.sgd(1.0, loss_scale_factor=1024.0)

    @support.watch(policies.value(0.1))
    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = optimizer.scale_loss(tf.reduce_sum(w * [0.05, 0.5]))
        optimizer.apply_gradients([(tape.gradient(loss, w), w)])

    step()
    np.testing.assert_allclose(w.numpy(), [-0.05, -0.1], rtol=1e-6)


@pytest.mark.parametrize("policy", EVERY_POLICY)
@pytest.mark.parametrize("loop", ["loss_scale_factor", "LossScaleOptimizer"])
def test_every_policy_limits_the_unscaled_gradient_whatever_the_loss_scale(loop, policy):
    """Scaled by 256 or not, the same policy comes to the same bounds and the same weights."""
    (plain, expected), (scaled, got) = with_policy("plain tape", policy), with_policy(loop, policy)
    support.assert_close(scaled, plain[: len(scaled)], rtol=1e-4, atol=1e-5)
    for column in ("norm", "clip_norm", "applied_norm"):
        np.testing.assert_allclose(got[column], expected[column], rtol=1e-4)
