"""Every argument of every factory that is out of range: what, got, and what to do."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest

from gradwatch.core import checks, detectors, policies
from gradwatch.core.detectors import Detector
from gradwatch.core.guard import Guard
from gradwatch.errors import ConfigError

NOT_NUMBERS = (math.nan, math.inf, "1", None, [1.0], True, 10**400)

#: factory, argument, values out of range, what the message must say
CASES = [
    (policies.percentile, "q", (-1, 100.1), "90 and not 0.9"),
    (policies.percentile, "window", (1, 0, -5, 2.5, 100_001), "window"),
    (policies.percentile, "warmup_steps", (0, -1, 1.5, 100_001), "warmup_steps"),
    (policies.percentile, "winsorise", (0.5, -2), "2 and not 0.05"),
    (policies.median, "factor", (0, -1), "> 0"),
    (policies.median, "window", (1, -5, 2.5), "window"),
    (policies.median, "warmup_steps", (0,), ">= 1"),
    (policies.median, "winsorise", (0.05,), ">= 1"),
    (policies.zscore, "z_max", (0, -1.0), "policies.observe()"),
    (policies.zscore, "decay", (97, 0.03, 0.2, 1, 1.5, 0.999999), "0.97 and neither 97 nor 0.03"),
    (policies.zscore, "warmup_steps", (1,), ">= 2"),
    (policies.zscore, "winsorise", (0.9,), ">= 1"),
    (policies.per_variable, "ratio", (0, -1), "> 0"),
    (policies.per_variable, "decay", (98, 0.02, -0.1, 1), "0.97 and neither 97 nor 0.03"),
    (policies.per_variable, "warmup_steps", (0,), ">= 1"),
    (policies.per_variable, "winsorise", (0.5,), ">= 1"),
    (policies.fixed, "clip_norm", (0, -1), "policies.observe()"),
    (policies.per_variable_norm, "clip_norm", (0, -1), "policies.observe()"),
    (policies.value, "limit", (0, -1), "policies.observe()"),
    (detectors.spike, "z_max", (0, -1), "> 0"),
    (detectors.spike, "window", (1,), ">= 2"),
    (detectors.spike, "warmup_steps", (1,), ">= 2"),
    (detectors.spike, "winsorise", (1, 1.05, 1.49), ">= 1.5"),
    (detectors.spike, "min_std", (0,), "> 0"),
    (detectors.spike, "cooldown_steps", (0,), ">= 1"),
    (detectors.trend, "drift", (0,), "> 0"),
    (detectors.trend, "decision", (0,), "> 0"),
    (detectors.trend, "rise", (0.9, 0), ">= 1"),
    (detectors.trend, "window", (1,), ">= 2"),
    (detectors.trend, "warmup_steps", (1,), ">= 2"),
    (detectors.trend, "winsorise", (0.5, 1.0), "> 1"),
    (detectors.trend, "min_std", (0,), "> 0"),
    (detectors.trend, "cooldown_steps", (0,), ">= 1"),
    (detectors.vanishing, "z_max", (0,), "> 0"),
    (detectors.vanishing, "drop", (1, 0.01), "> 1"),
    (detectors.vanishing, "patience", (0,), ">= 1"),
    (detectors.vanishing, "window", (1,), ">= 2"),
    (detectors.vanishing, "warmup_steps", (1,), ">= 2"),
    (detectors.vanishing, "min_std", (0,), "> 0"),
    (detectors.vanishing, "cooldown_steps", (0,), ">= 1"),
    (detectors.nonfinite, "patience", (0,), ">= 1"),
    (detectors.nonfinite, "cooldown_steps", (0,), ">= 1"),
]


@pytest.mark.parametrize(("factory", "argument", "values", "says"), CASES, ids=lambda x: getattr(x, "__name__", str(x)))
def test_an_argument_out_of_range_is_refused_with_what_got_and_what_to_do(factory, argument, values, says):
    left_out = inspect.signature(factory).parameters[argument].default
    for value in (*values, *NOT_NUMBERS):
        if value is None and left_out is None:
            continue  # the same as not giving it
        with pytest.raises(ConfigError) as error:
            factory(**{argument: value})
        message = str(error.value)
        assert argument in message
        assert f"got {value!r}" in message
        if value in values and not isinstance(value, bool) and value == values[0]:
            assert says in message


@pytest.mark.parametrize("factory", [policies.percentile, policies.median, policies.zscore, policies.per_variable])
def test_bounds_of_clip_norm_are_checked_singly_and_together(factory):
    for bounds, says in (
        ({"minimum": -1}, "minimum must be >= 0, got -1; None means no bound"),
        ({"maximum": 0}, "maximum must be > 0, got 0; None means no bound"),
        ({"minimum": math.nan}, "minimum must be >= 0, got nan"),
        ({"minimum": 2.0, "maximum": 1.0}, "minimum must not exceed maximum, got minimum=2.0 and maximum=1.0"),
    ):
        with pytest.raises(ConfigError, match=says):
            factory(**bounds)


def test_options_that_would_lock_a_policy_in_are_refused():
    with pytest.raises(ConfigError, match="clip_norm could never rise; raise winsorise"):
        policies.median(0.5, winsorise=2.0)
    with pytest.raises(ConfigError, match="clipped forever; raise winsorise"):
        policies.zscore(1.0)
    policies.zscore(1.0, winsorise=2.0)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: policies.percentile(0.9), "q must be 0 or from 1 to 100, got 0.9; it is a percentile: write 90"),
        (lambda: policies.percentile(q=0.999), "write 99.9"),
        (lambda: policies.percentile(9000), "90 and not 0.9"),
        (lambda: policies.percentile(window=0.999), "a number of steps, 1000 and not 0.999"),
        (lambda: policies.median(window=0.99), "a number of steps, 1000 and not 0.999"),
        (lambda: policies.median(200), "a multiple, 2 and not 200"),
        (lambda: policies.percentile(winsorise=0.05), "a multiple, 2 and not 0.05"),
        (lambda: policies.zscore(decay=97), "0.97 and neither 97 nor 0.03"),
        (lambda: policies.zscore(decay=0.03), "0.97 and neither 97 nor 0.03"),
        (lambda: policies.per_variable(decay=0.02), "0.97 and neither 97 nor 0.03"),
        (lambda: policies.per_variable(105), "a multiple, 1.05 and neither 105 nor 0.05"),
        (lambda: policies.per_variable(0.05), "ratio must be >= 1.05"),
        (lambda: policies.after(0.1, policies.fixed(1)), "steps must be >= 1"),
    ],
)
def test_a_fraction_in_the_place_of_a_percentage_a_multiple_or_a_number_of_steps_is_refused(make, says):
    with pytest.raises(ConfigError) as raised:
        make()
    assert says in str(raised.value)


def test_the_first_percentile_and_the_smallest_are_percentiles():
    # 1 is taken for what it says: as a fraction it would be the largest norm, a threshold that hardly anybody wants
    assert [policies.percentile(q).q for q in (0, 1, 1.5, 10, 99.9, 100)] == [0, 1, 1.5, 10, 99.9, 100]


@pytest.mark.parametrize("make", [policies.fixed, policies.per_variable_norm, policies.value])
@pytest.mark.parametrize("bound", [1e-50, 1e-38, 1e37, 1e300])
def test_a_bound_that_float32_would_turn_into_0_or_inf_is_refused(make, bound):
    with pytest.raises(ConfigError, match=r"must be from 1e-37 to 1e\+36"):
        make(bound)
    for bounds in ({"minimum": bound}, {"maximum": bound}):
        with pytest.raises(ConfigError, match=r"must be from 1e-37 to 1e\+36"):
            policies.percentile(**bounds)


def test_numbers_of_other_libraries_are_numbers():
    assert policies.percentile(np.float32(75), np.int64(50)).name == "percentile(75, window=50)"
    assert policies.fixed(np.array(2.0)).name == "fixed(2)"
    policies.per_variable(np.float32(1.05), winsorise=np.int64(1))


@pytest.mark.parametrize(("arguments", "says"), [
    ((None, ()), "policy must come from gradwatch.policies"),
    ((1.0, ()), "policy must come from gradwatch.policies"),
    ((policies.percentile, ()), "policy must come from gradwatch.policies"),
    ((policies.observe(), ("spikes",)), "unknown detector 'spikes'; there are: spike, trend"),
    ((policies.observe(), (detectors.spike,)), "detectors must come from gradwatch.detectors"),
    ((policies.observe(), None), "detectors must come from gradwatch.detectors"),
    ((policies.observe(), (Detector("odd", "mine()", dict, print),)), "a detector's kind must be one of 'nonfinite'"),
    ((policies.observe(), (), "ignore"), "on_nonfinite must be one of 'zero', 'skip', 'propagate', got 'ignore'"),
    ((policies.observe(), (), None, "zero"), "on_explosion must be one of 'clip', 'skip', 'observe', got 'zero'"),
    ((policies.value(1.0), (), None, "observe"), "cannot be kept by policies.value"),
])  # fmt: skip
def test_a_guard_of_wrong_parts_is_refused(arguments, says):
    with pytest.raises(ConfigError, match=says):
        Guard(*arguments)


def test_one_detector_needs_no_list():
    assert len(Guard(policies.observe(), detectors.spike()).detectors) == 1


def test_a_guard_takes_detectors_as_texts_too():
    assert Guard("observe", "spike(6)").detectors == (detectors.spike(6),)
    mixed = ["spike(false_alarms_per_million=10)", detectors.trend(), "nonfinite(patience=3)"]
    made = detectors.spike(false_alarms_per_million=10), detectors.trend(), detectors.nonfinite(patience=3)
    assert Guard("percentile(95)", mixed) == Guard(policies.percentile(95), made)


def test_messages_name_the_choices():
    with pytest.raises(ConfigError, match="mode must be one of 'a', 'b', got 3"):
        checks.one_of("mode", 3, ("a", "b"))
