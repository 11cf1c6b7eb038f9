"""Programs that are written down: they compute what numpy computes, and where one cannot be written it is traced."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf

from gradwatch import policies
from gradwatch.core import detectors
from gradwatch.core.guard import Decision, Guard
from gradwatch.core.xp import HUGE, LARGEST, NUMPY
from gradwatch.testing import streams
from gradwatch.tf import compat, program_text, stablehlo
from gradwatch.tf.fused import NO_SIGNALS, FusedGuard

GIVEN = np.array([0.0, -0.0, 1.0, -2.5, 3e38, -3e38, 1e-30, 7.0, math.inf, -math.inf, math.nan, 0.5], np.float32)


def both(body, given=GIVEN):
    """What the program and what numpy make of the numbers."""
    run, count = stablehlo.function(body, given.size)
    got = run(tf.constant(given)).numpy()
    assert got.shape == (count,)
    with np.errstate(all="ignore"):
        return got, np.asarray(body(NUMPY, given), np.float32)


OPERATIONS = {
    "sums": lambda xp, x: 1.5 + x - (2.0 - x) + np.float32(0.25) * x,
    "products": lambda xp, x: x * 3.0 / (2.0 / (x * x + 1.0)),
    "signs": lambda xp, x: xp.abs(-x),
    "comparisons": lambda xp, x: xp.concat(
        [xp.number(c) for c in (x < 1.0, x <= 1.0, x > 1.0, x >= 1.0, x == 1.0, x != 1.0)]
    ),
    "truths": lambda xp, x: xp.number((x > 0.0) & ~(x >= 5.0) | (x < -1.0)),
    "a choice for each": lambda xp, x: xp.where(x > 1.0, x, -1.0),
    "a choice for all": lambda xp, x: xp.where(x[2] > 0.5, x, x * 2.0),
    "a choice by what is known": lambda xp, x: xp.where(np.arange(12) > 5, x, 0.0),
    "whether it is finite": lambda xp, x: xp.number(xp.is_finite(x)),
    "ceil": lambda xp, x: xp.ceil(x),
    "one number": lambda xp, x: xp.stack([x[2]]),
    "many numbers": lambda xp, x: xp.stack([x[i] for i in (2, 3, -1, 7, 2)] + [4.0, np.float32(5.0)]),
    "rows": lambda xp, x: xp.reshape(xp.stack([x[:3], x[3:6]]), (-1,)),
    "parts": lambda xp, x: xp.concat([x[4:], x[:-8], x[2:2], x[11:40]]),
    "a row and a column": lambda xp, x: xp.reshape(xp.reshape(x[2:4], (2, 1)) * xp.reshape(x[5:8], (1, 3)), (6,)),
    "reductions": lambda xp, x: xp.stack([xp.sum(x[2:5]), xp.max(x[2:8]), xp.max(x[2:4] - 9.0), xp.sum(x[7])]),
    "of nothing": lambda xp, x: xp.stack([xp.sum(x[3:3]), x[2]]),
    "places": lambda xp, x: xp.arange(5) + x[2],
    "a sketch": lambda xp, x: xp.concat(
        [xp.reshape(xp.count_below(xp.arange(8) + x[2], 0.5), (1,)), xp.enter(xp.arange(4), x[2] * 2.0, x[11])]
    ),
    "a history": lambda xp, x: xp.push(xp.arange(6), x[2:4]),
    "numbers at the edge": lambda xp, x: xp.stack([x[2] * c for c in (math.inf, LARGEST, HUGE, 1e-37, -0.0, 0.1)]),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_that_of_numpy_to_the_bit(name):
    got, expected = both(OPERATIONS[name])
    assert np.array_equal(got, expected, equal_nan=True)


def test_roots_logarithms_and_powers_are_those_of_numpy():
    x = np.exp(np.linspace(-60.0, 60.0, 400)).astype(np.float32)
    got, expected = both(lambda xp, x: xp.concat([xp.log(x), xp.sqrt(x), xp.exp(xp.minimum(x, 80.0))]), x)
    assert got == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(
    "body",
    [
        lambda xp, x: x if x[0] > 0.0 else -x,
        lambda xp, x: tf.maximum(x, 0.0),
        lambda xp, x: np.maximum(x, 0.0),
        lambda xp, x: x * tf.constant(2.0),
        lambda xp, x: (x > 0.0) * 1.0,
        lambda xp, x: x[::2],
        lambda xp, x: x[12],
    ],
)
def test_what_the_namespace_does_not_have_is_refused_when_it_is_written(body):
    with pytest.raises((program_text.Unwritable, TypeError, ValueError)):
        stablehlo.function(body, 12)


def test_this_version_runs_what_is_written():
    assert stablehlo.works()


# -- the guard ----------------------------------------------------------------------------------------------


def walked(guard, rows):
    """(decisions, how the scalar part was made) on the device."""
    on_device = FusedGuard(guard, guard.init(rows.shape[1]), jit_compile=True)
    vector = tf.constant(on_device.layout.pack(NUMPY, guard.init(rows.shape[1])))
    step, out = tf.function(on_device.step, autograph=False), []
    for row in rows:
        vector, scale, numbers = step(vector, tf.constant(row), tf.constant(row))
        out.append(np.concatenate([np.ravel(scale), numbers]))
    return np.array(out, np.float64), [program is not None for program in on_device._written.values()]


def offline(guard, rows):
    state, out = guard.init(rows.shape[1]), []
    for row in rows:
        state, decision = guard.step(NUMPY, state, row)
        out.append(np.concatenate([np.ravel(x) for x in decision]))
    return np.array(out, np.float64)


def check(got, expected):
    with np.errstate(invalid="ignore"):
        same = (got == expected) | (np.isnan(got) & np.isnan(expected))
        off = np.where(same, 0.0, np.abs(got - expected) / np.maximum(np.abs(expected), 1e-3))
    assert off.max() < 0.021  # the width of a bucket
    verdict = got.shape[1] - len(Decision._fields) + Decision._fields.index("verdict")
    assert np.array_equal(got[:, verdict], expected[:, verdict])


def rows_of(variables, steps=60):
    rows = streams.lognormal(np.random.default_rng(0), steps, 0.4, variables).astype(np.float32)
    rows[40] *= 1000.0
    rows[45, 0] = math.nan
    rows[50] = 0.0
    return rows


@pytest.mark.parametrize("text", ["auto", "percentile", "value(1)", "per_variable"])
def test_a_state_that_is_written_by_its_program_is_that_of_a_step_to_the_bit(text):
    """The state is a variable of the program, as in a tf.function, or a vector that comes in and goes out."""
    guard, rows = Guard(text, detectors.default()), rows_of(3)
    on_device = FusedGuard(guard, guard.init(3), jit_compile=True)
    initial = on_device.layout.pack(NUMPY, guard.init(3))
    state, vector, signals = tf.Variable(initial), tf.constant(initial), tf.constant(NO_SIGNALS)
    step = tf.function(on_device.step, autograph=False)
    update = tf.function(lambda *given: on_device.update(state, *given), autograph=False)
    for row in rows:
        applied = np.minimum(row, 1.0) if text == "value(1)" else row
        vector, *expected = step(vector, tf.constant(row), tf.constant(applied), signals)
        got = update(tf.constant(row), tf.constant(applied), signals)
        for x, y in zip((*got, state), (*expected, vector)):
            assert np.array_equal(x.numpy(), y.numpy(), equal_nan=True)


@pytest.mark.parametrize("text", policies.POLICIES)
def test_every_policy_is_written_down_and_decides_as_numpy_does(text):
    guard, rows = Guard(policies.POLICIES[text](), detectors.default()), rows_of(3)
    got, written = walked(guard, rows)
    assert written == [True]
    check(got, offline(guard, rows))


@pytest.mark.parametrize("variables", [1, 82, 700])
def test_any_number_of_variables_is_written_down(variables):
    guard, rows = Guard("percentile", detectors.default()), rows_of(variables)
    got, written = walked(guard, rows)
    assert written == [True]
    check(got, offline(guard, rows))


def test_a_policy_that_calls_tensorflow_is_traced():
    def update(xp, state, norms):
        total = norms.total if xp is NUMPY else tf.identity(norms.total)
        return state, total * 0.5, {}

    guard, rows = Guard(policies.Policy("half()", lambda n: {}, update), ()), rows_of(2, 60)
    got, written = walked(guard, rows)
    assert written == [False]
    check(got, offline(guard, rows))


def test_a_version_that_cannot_run_it_traces(monkeypatch):
    gone = compat.dataclasses.replace(compat.PRIVATE_NAMES["call_module"], present=lambda: False)
    monkeypatch.setitem(compat.PRIVATE_NAMES, "call_module", gone)
    stablehlo.works.cache_clear()
    try:
        guard, rows = Guard("fixed(1)", ()), rows_of(2)
        got, written = walked(guard, rows)
    finally:
        stablehlo.works.cache_clear()
    assert written == []
    check(got, offline(guard, rows))


def test_a_wrong_result_is_noticed_before_a_training_meets_it(monkeypatch):
    monkeypatch.setattr(compat, "run_module", lambda given, module, shape: tf.zeros(shape))
    stablehlo.works.cache_clear()
    try:
        assert not stablehlo.works()
    finally:
        stablehlo.works.cache_clear()
