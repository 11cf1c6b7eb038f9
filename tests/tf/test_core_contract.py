"""What numpy computes offline is what the training graph decides: eagerly, as a function, and under XLA."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import tensorflow as tf

from gradwatch import testing
from gradwatch.core import decode, detectors, policies
from gradwatch.core.detectors import DETECTORS
from gradwatch.core.guard import Decision, Guard
from gradwatch.core.policies import COMBINATORS, POLICIES
from gradwatch.core.xp import NUMPY
from gradwatch.testing import conformance, streams
from gradwatch.tf import fused
from gradwatch.tf.fused import FusedGuard


def budgeted():
    return detectors.spike(false_alarms_per_million=10)


@pytest.mark.parametrize(
    "make",
    [*POLICIES.values(), *COMBINATORS.values(), *DETECTORS.values(), budgeted],
    ids=[*POLICIES, *COMBINATORS, *DETECTORS, "budgeted spike"],
)
def test_policy_or_detector_decides_alike_on_every_backend(make):
    conformance.every_backend_decides_alike(conformance.part_of(make()))


def test_the_public_check_includes_every_backend():
    testing.check_policy(policies.observe())

    def update(xp, state, norms):
        on_numpy = isinstance(norms.total, (np.ndarray, np.float32))
        return {}, norms.total * 0.0 + (1.0 if on_numpy else 2.0), {}

    two_faced = policies.Policy("two_faced()", lambda n: {}, update)
    with pytest.raises(AssertionError, match=r"tf\.function disagrees with numpy"):
        testing.check_policy(two_faced, absolute=True)


def long_stream(steps=600, variables=3):
    """Norms as a run has them: noise, spikes, a rise, NaN, zeros, and hostile ones."""
    rng = np.random.default_rng(0)
    rows = streams.lognormal(rng, steps, 0.4, variables) * [0.1, 1.0, 3.0]
    rows = streams.shift(rows, 300, 5.0)
    rows[100::90] *= 30.0
    rows[150::200, 1] = math.nan
    rows[170::200, 2] = math.inf
    rows[400:410] = 0.0
    rows[500:509, 0] = conformance.HOSTILE
    return rows.astype(np.float32)


GUARDS = {
    "percentile": lambda: Guard(policies.percentile(window=100), detectors.default()),
    "zscore": lambda: Guard(policies.zscore(), detectors.default(), "propagate", "observe"),
    "per_variable": lambda: Guard(policies.per_variable(), detectors.default(), "skip", "skip"),
    "two sketches": lambda: Guard("smallest(percentile(80, 100), after(50, median(1.5)))", detectors.default()),
}


@functools.cache
def offline(name):
    """What numpy decides: (guard, its last state, its decisions, one a row)."""
    guard = GUARDS[name]()
    state, decisions = guard.init(3), []
    for row in long_stream():
        state, decision = guard.step(NUMPY, state, row)
        decisions.append(np.concatenate([np.ravel(x) for x in decision]))
    return guard, state, np.array(decisions, np.float64)


@pytest.mark.parametrize("jit_compile", [False, True], ids=["tf.function", "XLA"])
@pytest.mark.parametrize("name", GUARDS)
def test_the_guard_decides_alike_over_a_long_stream(name, jit_compile):
    guard, state, expected = offline(name)
    initial = guard.init(3)
    on_device = FusedGuard(guard, initial, jit_compile=jit_compile)
    layout, fused = on_device.layout, tf.function(on_device.step, autograph=False)
    vector = tf.constant(layout.pack(NUMPY, initial))
    got = []
    for row in long_stream():
        vector, scale, numbers = fused(vector, tf.constant(row), tf.constant(row))
        got.append(np.concatenate([np.ravel(scale), numbers]))
    got = np.array(got, np.float64)
    assert expected.shape == got.shape

    # a norm within rounding of a bucket's edge may fall on either side of it: a bucket is 2 % wide
    with np.errstate(invalid="ignore"):
        same = (got == expected) | (np.isnan(got) & np.isnan(expected))
        off = np.where(same, 0.0, np.abs(got - expected) / np.maximum(np.abs(expected), 1e-3))
    assert off.max() < 0.021
    away = (off > 1e-5).any(axis=1)
    assert away.mean() <= 0.01, f"steps {np.flatnonzero(away)[:10]}"
    verdict = len(expected[0]) - len(Decision._fields) + Decision._fields.index("verdict")
    assert np.array_equal(got[:, verdict], expected[:, verdict])

    there = decode.snapshot(guard, layout.unpack(NUMPY, np.asarray(vector)), name="m", paths="abc")
    here = decode.snapshot(guard, state, name="m", paths="abc")
    for field in ("steps", "clipped_steps", "nonfinite_steps", "skipped_by_reason", "anomalies", "anomalous_steps",
                  "active", "norm_counts", "warmup", "verdict"):  # fmt: skip
        assert getattr(there, field) == getattr(here, field), field
    assert there.norm_sum == pytest.approx(here.norm_sum, rel=1e-6)
    assert there.max_norm == pytest.approx(here.max_norm, rel=1e-6)
    assert {k: e and e.step for k, e in there.last_events.items()} == {
        k: e and e.step for k, e in here.last_events.items()
    }


@pytest.mark.parametrize("variables", [2047, 2048, 7000])
def test_as_many_variables_as_a_sketch_has_buckets_are_told_apart_from_it(variables):
    guard = Guard(policies.percentile(), ())
    state = guard.init(variables)
    on_device = FusedGuard(guard, state, jit_compile=False)
    vector = tf.constant(on_device.layout.pack(NUMPY, state))
    rows = streams.lognormal(np.random.default_rng(0), 3, 0.4, variables).astype(np.float32)
    for row in rows:
        state, decision = guard.step(NUMPY, state, row)
        vector, scale, _ = on_device.step(vector, tf.constant(row), tf.constant(row))
        assert float(scale) == pytest.approx(float(decision.scale), rel=0.02)
    there = on_device.layout.unpack(NUMPY, vector.numpy())
    assert there["last"]["layer_norms"] == pytest.approx(rows[-1], rel=1e-6)
    assert there["recent"]["cumulative"] == pytest.approx(state["recent"]["cumulative"])
    assert there["history"] == pytest.approx(state["history"], rel=0.02)


def test_a_policy_may_call_a_scalar_of_its_own_cumulative():
    def update(xp, state, norms):
        return {"cumulative": state["cumulative"] + norms.total}, state["cumulative"] + 1.0, {}

    counting = policies.Policy("counting()", lambda n: {"cumulative": np.zeros((), np.float32)}, update)
    testing.check_policy(counting, absolute=True)


@pytest.mark.parametrize("jit_compile", [False, True], ids=["tf.function", "XLA"])
def test_compilers_keep_what_rounding_drops_from_the_sum_of_norms(jit_compile):
    guard = Guard(policies.observe(), ())
    state = guard.init(1)
    on_device = FusedGuard(guard, state, jit_compile=jit_compile)
    layout, fused = on_device.layout, tf.function(on_device.step, autograph=False)
    vector = tf.constant(layout.pack(NUMPY, state))
    for x in [1e8] + [0.125] * 80:
        row = tf.constant([x], tf.float32)
        vector, _, _ = fused(vector, row, row)
    snapshot = decode.snapshot(guard, layout.unpack(NUMPY, np.asarray(vector)), name="m", paths="a")
    assert snapshot.norm_sum == 1e8 + 10.0


LISTENED = ("reach_known", "reach_any", "reach", "loss_known", "loss")


@functools.cache  # one program for all that it is told
def listening(jit_compile):
    def update(xp, state, norms):
        seen = {
            "reach_known": xp.number(xp.is_finite(norms.reach)),
            "reach_any": xp.number(norms.reach > 1e38),
            "reach": xp.where(xp.is_finite(norms.reach), norms.reach, 0.0),
            "loss_known": xp.number(xp.is_finite(norms.loss)),
            "loss": xp.where(xp.is_finite(norms.loss), norms.loss, 0.0),
        }
        return seen, norms.total * 0.0 + 1.0, {}

    zeros = dict.fromkeys(LISTENED, np.zeros((), np.float32))
    guard = Guard(policies.Policy("listens()", lambda n: dict(zeros), update), ())
    return FusedGuard(guard, guard.init(2), jit_compile=jit_compile), guard.init(2)


@pytest.mark.parametrize("jit_compile", [False, True], ids=["tf.function", "XLA"])
@pytest.mark.parametrize(
    ("signals", "reach", "loss"),
    [
        (None, math.nan, math.nan),
        ([fused.NO_REACH, 1.0, fused.NO_LOSS, fused.NO_RATIO], math.nan, math.nan),
        ([fused.ANY_REACH, 1.0, -1.5, 0.01], math.inf, -1.5),
        ([12.0, 1.0, 0.0, 0.01], 12.0, 0.0),
        ([12.0, 0.5, 0.0, 0.01], 24.0, 0.0),
        ([12.0, 0.0, 0.0, 0.01], math.nan, 0.0),
    ],
)
def test_a_policy_on_the_device_gets_the_reach_and_the_loss_that_finite_codes_stand_for(
    signals, reach, loss, jit_compile
):
    on_device, state = listening(jit_compile)
    vector = tf.constant(on_device.layout.pack(NUMPY, state))
    rows = tf.ones([2])
    signals = None if signals is None else tf.constant([*signals, *fused.NO_SIGNALS[4:]])
    vector, _, _ = on_device.step(vector, rows, rows, signals)
    seen = on_device.layout.unpack(NUMPY, vector.numpy())["policy"]
    expected = [math.isfinite(reach), reach == math.inf, reach if math.isfinite(reach) else 0.0]
    expected += [math.isfinite(loss), loss if math.isfinite(loss) else 0.0]
    assert [float(seen[name]) for name in LISTENED] == [float(x) for x in expected]
