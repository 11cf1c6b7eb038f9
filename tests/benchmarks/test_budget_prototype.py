"""The budget of false alarms: the tail model, its estimator, and the promise itself."""

from __future__ import annotations

import math

import budget_prototype as prototype
import detection
import numpy as np
import pytest

from gradwatch.core import norms
from gradwatch.core.xp import NUMPY
from gradwatch.errors import ConfigError


def run(detector, x):
    state, alarms, thresholds = detector.init(1), [], []
    for value in x:
        now = norms.of(NUMPY, np.array([value], np.float32))
        state, alarm, info = detector.update(NUMPY, state, now)
        alarms.append(bool(alarm))
        thresholds.append(float(info["threshold"]))
    return state, np.array(alarms), np.array(thresholds)


def test_it_is_the_formula_of_its_docstring():
    """Oracle: the docstring written out in float64, one stream."""
    rng = np.random.default_rng(0)
    x = rng.lognormal(1, 0.4, 1500)
    x[[700, 701, 1100]] *= 40
    _, alarms, thresholds = run(prototype.spike_budget(50.0), x)
    mean, var, calm = 0.0, 0.25, 50
    big_n, n, s1, s2, s3 = 5 / 0.23, 5.0, 5.0, 10.0, 30.0
    for seen, value in enumerate(np.log(x)):
        std = math.sqrt(max(var, 0.01))
        hazard = n / s1
        c = (s1 * s1 - n * s2 / 2) / (2 * s1 * s3 / 3 - s2 * s2 / 2)
        c = max(c - 0.5 * hazard**2 / math.sqrt(n), 0)
        b = (n - c * s2) / s1
        h = math.log(n / (big_n * 50e-6))
        y = h / b if c == 0 else (-b + math.sqrt(b * b + 4 * c * h)) / (2 * c)
        z, z_max = (value - mean) / std if seen else 0.0, 0.75 + y
        alarm = seen >= 25 and z > z_max
        assert alarms[seen] == alarm, seen
        if seen >= 25:
            assert thresholds[seen] == pytest.approx(math.exp(mean + z_max * std), rel=2e-3)
        if calm >= 50 or (alarm and calm >= 1):
            excess = max(min(z, z_max) - 0.75, 0)
            d = 1 - 1 / 50_000
            big_n, n, s1 = big_n * d + 1, n * d + (excess > 0), s1 * d + excess
            s2, s3 = s2 * d + excess**2, s3 * d + excess**3
        calm = 0 if alarm else calm + 1
        step = max(-2.5 * std, min(2.5 * std, value - mean)) if seen else 0.0
        mean = mean + step / min(seen + 1, 200) if seen else value
        var += (step * step - var) / min(seen + 2, 200)
    assert alarms[[700, 1100]].all()


@pytest.mark.parametrize("stream", ["log-normal 0.3", "Pareto 2.5", "AR(1) 0.9"])
def test_the_promise_is_kept_within_a_factor_of_two_once_the_tail_is_known(stream):
    budget, streams = 1000.0, 100
    judge = detection.Ours(prototype.spike_budget(budget))
    source = detection.STREAMS[stream](np.random.default_rng(5), streams)
    count = 0
    for t, x in zip(range(6000), source):
        found = judge.step(x).sum()
        count += found if t >= 3000 else 0
    assert 0.5 < count / (3000 * streams * budget / 1e6) < 2


def test_a_spike_of_ten_is_caught_and_a_nan_leaves_no_trace():
    x = np.random.default_rng(1).lognormal(0, 0.3, 2000)
    detector = prototype.spike_budget(10.0)
    state, _, _ = run(detector, x)
    after, alarm, _ = detector.update(NUMPY, state, norms.of(NUMPY, np.array([math.nan], np.float32)))
    assert not alarm
    assert all(np.array_equal(state[key], after[key]) for key in state)
    assert detector.update(NUMPY, after, norms.of(NUMPY, np.array([10.0], np.float32)))[1]


def test_the_threshold_scales_with_the_gradients():
    x = np.random.default_rng(2).lognormal(0, 0.3, 300)
    one = run(prototype.spike_budget(), x)[2]
    thousand = run(prototype.spike_budget(), 1000 * x)[2]
    assert thousand[50:] == pytest.approx(1000 * one[50:], rel=1e-3)


def test_a_lasting_shift_is_followed():
    x = np.random.default_rng(3).lognormal(0, 0.3, 3000)
    x[1000:] *= 10
    _, alarms, _ = run(prototype.spike_budget(), x)
    assert alarms[1000]
    assert not alarms[1200:].any()


@pytest.mark.parametrize("bad", [0, -1, 1e5, math.nan, "10"])
def test_a_budget_out_of_range_is_refused(bad):
    with pytest.raises(ConfigError, match="false_alarms_per_million"):
        prototype.spike_budget(bad)
