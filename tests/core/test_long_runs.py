"""Ten million steps of nothing happening: no threshold may sink to nothing, stay where it is for ever, or be NaN.

Nobody waits for ten million steps. On a constant stream a policy's state is a deterministic function of the state
before, so that a state which comes back proves all steps to come; on a silent one the state does not change at all.
Real steps, a million of them, are run under XLA by tests/tf/test_long_policies.py.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from gradwatch.core import norms, policies
from gradwatch.core.xp import NUMPY
from gradwatch.errors import ConfigError
from gradwatch.testing import replay, streams

#: Policies with arguments at the edges of what is allowed -> their threshold when every norm is 1.
EXTREMES = {
    **{
        policies.percentile(q, window, winsorise=winsorise): 1.0
        for q, window, winsorise in itertools.product((0, 90, 100), (2, 100, 100_000), (1.05, 1e12))
    },
    **{
        policies.median(factor, window, winsorise=winsorise): factor
        for (factor, winsorise), window in itertools.product(
            ((0.01, 105), (0.525, 2), (1, 1.05), (100, 1)), (2, 100, 100_000)
        )
    },
    **{
        policies.zscore(z_max, decay=decay, winsorise=winsorise): 1 + 0.01 * z_max
        for (z_max, winsorise), decay in itertools.product(((0.01, 150), (1.5, 1), (1e12, 1e12)), (0.5, 0.97, 0.99999))
    },
    **{
        policies.per_variable(ratio, decay=decay, winsorise=winsorise): ratio
        for (ratio, winsorise), decay in itertools.product(
            ((0.01, 105), (0.525, 2), (1.05, 1), (100, 1e12)), (0.5, 0.98, 0.99999)
        )
    },
    policies.smallest(policies.percentile(100, 2), policies.zscore(1.5, decay=0.5)): 1.0,
    policies.bounded(policies.median(1, 2, winsorise=1.05), minimum=1e-30, maximum=1e35): 1.0,
    policies.after(10, policies.per_variable(winsorise=1)): 1.05,
}
#: The same with the memory of a usual run, so that it can be lived through here.
SHORT = [policy for policy in EXTREMES if "100000" not in policy.name and "0.99999" not in policy.name]


def step(policy, state, norm):
    with np.errstate(invalid="raise", over="ignore"):
        state, clip_norm, _ = policy.update(NUMPY, state, norms.of(NUMPY, np.full(1, norm, np.float32)))
    return state, float(np.max(clip_norm))


def leaves(tree):
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value)
        else:
            yield name, value


def with_counters(tree, steps):
    """The state as if its counters of steps had seen so many."""
    return {
        name: with_counters(value, steps) if isinstance(value, dict) else np.float32(steps) if name == "seen" else value
        for name, value in tree.items()
    }


def forgotten(tree):
    """The state when all of it was nearly forgotten: quantiles follow what comes next, whatever the window."""
    return {
        name: forgotten(value)
        if isinstance(value, dict)
        else value * np.float32(1e-8)
        if name == "cumulative"
        else value
        for name, value in tree.items()
    }


def as_bytes(tree):
    return b"".join(np.asarray(value, np.float32).tobytes() for _, value in leaves(tree))


def settled(policy, norm=1.0, steps=120):
    state = policy.init(1)
    for _ in range(steps):
        state, _ = step(policy, state, norm)
    return state


@pytest.mark.parametrize("policy", SHORT, ids=repr)
def test_a_constant_norm_leads_to_a_state_that_comes_back_with_the_threshold_of_the_formula(policy):
    state, thresholds = with_counters(settled(policy, 1e-3), 1e6), {}
    for _ in range(3000):
        key = as_bytes(state)
        if key in thresholds:
            break
        state, thresholds[key] = step(policy, state, 1e-3)
    assert key in thresholds, "it still moves"
    cycle = list(thresholds.values())[list(thresholds).index(key) :]
    # 1 %: the sketch
    assert cycle == pytest.approx([1e-3 * EXTREMES[policy]] * len(cycle), rel=0.0102)


@pytest.mark.parametrize("policy", EXTREMES, ids=repr)
def test_a_silent_run_changes_nothing_before_and_after_the_first_norm(policy):
    for state in (policy.init(1), settled(policy), with_counters(settled(policy), 1e6)):
        _, clip_norm = step(policy, state, 1.0)
        after, silent = step(policy, state, 0.0)
        assert as_bytes(after) == as_bytes(state)
        assert silent == clip_norm > 0


@pytest.mark.parametrize("policy", EXTREMES, ids=repr)
def test_no_threshold_is_locked_in_below_the_norms(policy):
    """From a hundredth of where the norms stand now it rises, in float32, whatever the memory."""
    state = forgotten(with_counters(settled(policy, 0.01), 1e6))
    _, before = step(policy, state, 1e6)
    for _ in range(60):
        state, clip_norm = step(policy, state, 1e6)
    assert clip_norm > before or clip_norm > 1e6


def lowest(policy):
    """Share of the smallest norm below which no threshold may ever be, from the recursions."""
    if isinstance(policy, policies.median):
        return 0.98 * policy.factor
    if isinstance(policy, policies.per_variable):
        return min(policy.ratio, 1 / policy.winsorise)  # below that every norm enters clamped, and gamma rises
    return 0.98


@pytest.mark.parametrize("sigma", [0.02, 0.5])
@pytest.mark.parametrize("policy", SHORT, ids=repr)
def test_no_threshold_sinks_under_a_stationary_run(policy, sigma):
    stream = streams.lognormal(np.random.default_rng(0), 1200, sigma)
    state = with_counters(settled(policy), 1e6)
    clip_norm = replay.policy(policy, stream, state).clip_norm.reshape(-1)
    assert clip_norm.min() >= lowest(policy) * stream.min()
    # and it has come to rest
    assert 0.7 < np.median(clip_norm[800:]) / np.median(clip_norm[400:800]) < 1.4


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: policies.per_variable(0.45), r"winsorise \* ratio must be >= 1.05, got 2 \* 0.45"),
        (lambda: policies.per_variable(0.9, winsorise=1), "AdaGC"),
        (lambda: policies.per_variable(1.04, winsorise=1), "could never rise"),
        (lambda: policies.percentile(winsorise=1.005), "winsorise must be >= 1.05, got 1.005"),
        (lambda: policies.percentile(winsorise=1), "could never rise"),
        (lambda: policies.median(1.0, winsorise=1.005), "could never rise"),
        (lambda: policies.median(0.5), r"winsorise \* factor must be >= 1.05, got 2 \* 0.5"),
        (lambda: policies.zscore(1.4), "clipped forever"),
        (lambda: policies.per_variable(decay=0.9999999), "0.99999"),
        (lambda: policies.zscore(decay=0.9999999), "0.99999"),
    ],
)
def test_arguments_that_would_sink_or_lock_in_are_refused_with_the_reason(make, says):
    with pytest.raises(ConfigError, match=says):
        make()


def test_what_is_refused_would_have_sunk_or_locked_in():
    """The recursions themselves, in plain numbers: why the line is where it is."""
    gamma = 1.0
    for _ in range(5000):
        gamma = 0.98 * gamma + 0.02 * min(1.0, 2.0 * 0.45 * gamma)
    assert gamma < 1e-4
    # a bucket is 2 % wide and answers its middle: 0.5 % above it is the same bucket
    width = math.log(1.01 / 0.99)
    middle = math.ceil(0.0) * width + math.log(2.0 / (math.exp(width) + 1.0))
    assert math.ceil((middle + math.log(1.005)) / width) == 0
    assert math.ceil((middle + math.log(1.05)) / width) > 0


def test_adagc_as_published_is_allowed_and_follows_by_a_thousandth_a_step():
    adagc = policies.per_variable(1.05, decay=0.98, winsorise=1)
    state = settled(adagc)
    clip_norm = replay.policy(adagc, np.full(1001, 100.0), state).clip_norm.reshape(-1)
    assert clip_norm[1000] / clip_norm[0] == pytest.approx(1.001**1000, rel=1e-2)
