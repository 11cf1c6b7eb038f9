"""Policies of policies, against what their parts say alone."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gradwatch.core import policies
from gradwatch.errors import ConfigError
from gradwatch.testing import replay, streams

NORMS = streams.spike(streams.lognormal(np.random.default_rng(0), 300, 0.4), 200, 30.0)
TABLE = streams.lognormal(np.random.default_rng(1), 200, 0.3, many=3) * [0.01, 1.0, 50.0]


def clip_norm(policy, norms=NORMS):
    return replay.policy(policy, norms).clip_norm


def test_smallest_is_the_smallest_of_what_each_says_alone():
    parts = policies.percentile(90, 50), policies.zscore(1.5), policies.fixed(1.7)
    alone = np.array([clip_norm(part) for part in parts])
    together = clip_norm(policies.smallest(*parts))
    assert np.array_equal(together, alone.min(axis=0))
    assert len(set(alone.argmin(axis=0))) == 3, "each decides somewhere"


def test_smallest_works_for_each_variable():
    parts = policies.per_variable(warmup_steps=10), policies.per_variable_norm(1.0)
    alone = [clip_norm(part, TABLE) for part in parts]
    assert np.array_equal(clip_norm(policies.smallest(*parts), TABLE), np.minimum(*alone))


def test_smallest_clips_no_more_steps_than_its_parts_together():
    smallest = policies.smallest(policies.percentile(95), policies.zscore(3))
    assert smallest.expected_clip_ratio == pytest.approx(0.05 + 1 / 10)
    norms = streams.lognormal(np.random.default_rng(2), 3000, 0.3)
    assert np.mean(norms[500:] > clip_norm(smallest, norms)[500:]) < smallest.expected_clip_ratio
    assert policies.smallest(policies.percentile(10), policies.percentile(20)).expected_clip_ratio == 1
    assert policies.smallest(policies.percentile(), policies.fixed(1)).expected_clip_ratio is None


def test_bounded_clamps_from_the_first_step_on():
    alone = clip_norm(policies.median(1.2, 30))
    got = clip_norm(policies.bounded(policies.median(1.2, 30), minimum=1.1, maximum=1.5))
    assert np.array_equal(got, np.clip(alone, np.float32(1.1), np.float32(1.5)))
    assert (got == np.float32(1.1)).any()
    assert got[0] == 1.5


def test_bounds_of_a_policy_are_those_of_bounded():
    """The options `minimum` and `maximum` and the combinator say the same."""
    for options in ({"minimum": 0.9}, {"maximum": 1.4}, {"minimum": 0.9, "maximum": 1.4}):
        for make in (policies.percentile, policies.median, policies.zscore):
            assert np.array_equal(clip_norm(make(**options)), clip_norm(policies.bounded(make(), **options))), make


def test_a_maximum_leaves_no_claim_about_the_share_of_clipped_steps():
    # 1 - q/100 was claimed, while a low maximum clips every step
    for policy in (
        policies.percentile(90, maximum=0.1),
        policies.zscore(maximum=0.1),
        policies.bounded(policies.percentile(90), maximum=0.1),
    ):
        assert policy.expected_clip_ratio is None
    assert policies.bounded(policies.percentile(90), minimum=0.1).expected_clip_ratio == pytest.approx(0.1)
    assert policies.after(5, policies.percentile(90)).expected_clip_ratio == pytest.approx(0.1)


def test_after_lets_everything_pass_until_so_many_norms_were_seen_and_has_learnt_meanwhile():
    norms = NORMS.copy()
    norms[[3, 7]] = math.nan, 0.0  # neither counts
    alone, got = (clip_norm(p, norms) for p in (policies.median(), policies.after(50, policies.median())))
    assert np.all(np.isinf(got[:52]))
    assert np.array_equal(got[52:], alone[52:])


def test_after_holds_for_each_variable():
    got = clip_norm(policies.after(50, policies.per_variable_norm(2.0)), TABLE)
    assert got.shape == TABLE.shape
    assert np.all(np.isinf(got[:50]))
    assert np.all(got[50:] == 2.0)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: policies.smallest(policies.fixed(1)), "two policies or more, got 1"),
        (lambda: policies.smallest(), "two policies or more, got 0"),
        (lambda: policies.smallest(policies.fixed(1), 2.0), "smallest takes policies, such as percentile.*got 2.0"),
        (
            lambda: policies.smallest(policies.fixed(1), policies.per_variable()),
            r"one scope, got fixed\(1\) \(global\)",
        ),
        (lambda: policies.smallest(policies.fixed(1), policies.value(1)), r"got value\(1\), which has no clip_norm"),
        (lambda: policies.bounded(policies.observe(), maximum=1), r"got observe\(\), which has no clip_norm"),
        (lambda: policies.bounded(policies.median()), "minimum, maximum or both, got neither"),
        (lambda: policies.bounded(policies.median(), minimum=2, maximum=1), "must not exceed"),
        (lambda: policies.bounded("median", minimum=2), "bounded takes policies"),
        (lambda: policies.after(0, policies.median()), "steps must be >= 1"),
        (lambda: policies.after(0.5, policies.median()), "steps must be >= 1"),
        (lambda: policies.after(5, policies.value(1.0)), "which has no clip_norm"),
        (lambda: policies.after(policies.median(), 5), "got 5"),
    ],
)
def test_combinations_that_mean_nothing_are_refused(make, says):
    with pytest.raises(ConfigError, match=says):
        make()
