"""Detectors against loops written from their docstrings, and what they promise about alarms, false and true."""

from __future__ import annotations

import copy
import math
import pickle
import re

import numpy as np
import pytest

from gradwatch.core import detectors, tail
from gradwatch.core.detectors import DETECTORS
from gradwatch.core.xp import NUMPY
from gradwatch.errors import ConfigError
from gradwatch.testing import replay, streams

RNG = np.random.default_rng(11)


def stream(steps=400, sigma=0.3, seed=0):
    return streams.lognormal(np.random.default_rng(seed), steps, sigma)


# -- independent loops --------------------------------------------------------------------------------------


class Level:
    """Winsorised running mean and variance of the log norm with its start, in float64."""

    def __init__(self, window, winsorise, min_std=0.1, warmup=25):
        self.window, self.winsorise, self.min_std, self.warmup = window, winsorise, min_std, warmup
        self.mean, self.var, self.n, self.wild = 0.0, 0.25, 0.0, False

    @property
    def std(self):
        return max(math.sqrt(self.var), self.min_std)

    @property
    def start_margin(self):
        return min(max(5 * self.std, math.log(12)), math.log(30))

    def z(self, x):
        return (math.log(x) - self.mean) / self.std if self.n else 0.0

    def learn(self, x):
        off = math.log(x) - self.mean if self.n else 0.0
        start = self.n < self.warmup
        if start and abs(off) > self.start_margin:
            self.mean += 0.1 * min(off, math.log(30)) if off > 0 else 0.25 * off
            self.n, self.wild = self.n + 0.25, True
            return
        reach = self.winsorise * self.std
        d = min(max(off, -reach), reach)
        share = 1 / 3 if self.wild else 1.0
        before = self.mean
        self.mean = before + d / min(max((self.n + 1) * share, 1), self.window) if self.n else math.log(x)
        self.var += (d * d - self.var) / min(max((self.n + 2) * share, 1), self.window)
        if start:
            self.var = min(self.var, (math.log(30) / 5) ** 2)
        self.n += 1


class Anchor:
    """Where the run was when it was healthy: follows the mean at once in one direction, slowly in the other."""

    def __init__(self, level, nearest):
        self.level, self.nearest, self.at = level, nearest, 0.0

    def follow(self, seen_before):
        slowly = max(1 / (seen_before + 9), 1e-4)
        limit = self.at + slowly if self.nearest is min else self.at - slowly
        self.at = self.nearest(self.level.mean, limit) if seen_before else self.level.mean


def judge_as_documented(norms, z_max=5.0):
    """(alarm, threshold) of `spike` at each step, out of its docstring."""
    level = Level(200, 2.5)
    low = Anchor(level, min)
    out = []
    for x in norms:
        margin = z_max * level.std if level.n >= 25 else level.start_margin
        log_threshold = min(level.mean + margin, low.at + math.log(1000)) if level.n else math.inf
        out.append((math.log(x) > log_threshold, math.exp(log_threshold)))
        before = level.n
        level.learn(x)
        low.follow(before)
    return out


GROWN = np.exp(np.minimum(0.05 * np.maximum(np.arange(700) - 300, 0), 30.0))
WILD_START = np.concatenate([[4.0, 52, 3e3, 2e5, 52, 4, 0.05], np.ones(60)])


@pytest.mark.parametrize("norms", [
    streams.spike(stream(), 200, 40.0, 3) * 1e-5,
    stream(700) * GROWN,
    stream(67, sigma=0.2) * WILD_START,
], ids=["spike", "growth", "wild start"])  # fmt: skip
def test_spike_is_a_zscore_with_a_start_and_an_anchor(norms):
    got = replay.detector(detectors.spike(), norms)
    expected = judge_as_documented(np.asarray(norms, np.float32).astype(float))
    assert got.threshold[0] == math.inf
    assert not got.alarm[0]
    assert got.threshold[1:] == pytest.approx([threshold for _, threshold in expected[1:]], rel=2e-3)
    assert got.alarm.tolist() == [alarm for alarm, _ in expected]
    assert np.array_equal(got.alarm, np.asarray(norms, np.float32) > got.threshold), "threshold and alarm say the same"


def test_the_score_is_the_z_of_the_log_norm():
    norms = stream()
    score, level = replay.detector(detectors.spike(), norms).score, Level(200, 2.5)
    for t, x in enumerate(norms):
        assert score[t] == pytest.approx(level.z(x), abs=1e-4)
        level.learn(x)


def test_trend_is_a_cusum_slowed_down_by_the_correlation_of_neighbours():
    rng = np.random.default_rng(4)
    norms = streams.growth(streams.correlated(rng, 700, 0.3, 0.6), 600, 0.05)
    got = replay.detector(detectors.trend(), norms)
    level, total, last, correlation = Level(200, 2.5), 0.0, 0.0, 0.0
    for t, x in enumerate(norms):
        z = level.z(x)
        r = min(max(correlation, 0.0), 0.95)
        usual = max(1.0, math.log(1.4) / level.std)
        total = min(max(total + min(z - usual, 3.0) * (1 - r) / (1 + r), 0.0), 16.0) if t >= 25 else 0.0
        assert got.score[t] == pytest.approx(total, abs=2e-3)
        assert got.alarm[t] == (total > 8.0)
        near = min(max(z, -2.5), 2.5)
        if total <= 8.0:
            correlation += (near * last - correlation) / min(t + 2, 1000)
        last = near
        level.learn(x)
        if t == 600:
            assert 0.5 < correlation < 0.7, "the log norms were made with 0.6"
    assert correlation < 0.85, "the trend itself hardly passed for correlation"
    assert got.alarm[640:].all()
    assert not got.alarm[:600].any()


def test_vanishing_asks_for_a_deep_fall_that_lasts():
    norms = stream(600)
    norms[300:304] *= 1e-3  # four steps: too short
    norms[400:408] *= 1e-3
    norms[500:520] *= 0.02  # not deep enough
    got = replay.detector(detectors.vanishing(), norms)
    level, streak, expected = Level(1000, 2.5), 0, []
    high = Anchor(level, max)
    for t, x in enumerate(norms):
        deep = level.mean - max(6.0 * level.std, math.log(100.0))
        low = t >= 25 and math.log(x) < max(deep, high.at - math.log(1000.0))
        streak = streak + 1 if low else 0
        expected.append(streak >= 5)
        level.learn(x)
        high.follow(t)
    assert np.array_equal(got.alarm, expected)
    assert np.flatnonzero(got.alarm).tolist() == [404, 405, 406, 407]


def test_vanishing_sees_a_gradient_of_exactly_zero():
    norms = stream(100)
    norms[60:] = 0.0
    alarm = replay.detector(detectors.vanishing(), norms).alarm
    assert np.flatnonzero(alarm)[0] == 64
    assert alarm[64:].all(), "zeros teach nothing, so the alarm stays"


def test_a_nan_among_vanishing_steps_neither_counts_nor_starts_the_count_again():
    norms = stream(100)
    norms[60:] = 1e-6
    norms[63] = math.nan
    alarm = replay.detector(detectors.vanishing(patience=5), norms).alarm
    assert np.flatnonzero(alarm)[0] == 65


def test_nonfinite_counts_the_steps_in_a_row():
    norms = np.array([1.0, math.nan, 1.0, math.inf, math.nan, math.nan, 1.0])
    got = replay.detector(detectors.nonfinite(patience=2), norms)
    assert got.alarm.tolist() == [False, False, False, False, True, True, False]
    assert got.score.tolist() == [0, 1, 0, 1, 2, 3, 0]
    assert replay.detector(detectors.nonfinite(), norms).alarm.tolist() == [
        False, True, False, True, True, True, False]  # fmt: skip


# -- false alarms -------------------------------------------------------------------------------------------

STEPS, MANY = 1000, 500
HEALTHY = {
    "log-normal 0.3": lambda: streams.lognormal(RNG, STEPS, 0.3, MANY),
    "log-normal 0.8": lambda: streams.lognormal(RNG, STEPS, 0.8, MANY),
    "AR(1) 0.9, 0.3": lambda: streams.correlated(RNG, STEPS, 0.3, 0.9, MANY),
    "AR(1) 0.9, 0.8": lambda: streams.correlated(RNG, STEPS, 0.8, 0.9, MANY),
    "training-like decay": lambda: streams.decaying(RNG, STEPS, 0.3, MANY),
}


@pytest.mark.parametrize("case", HEALTHY)
def test_fewer_than_one_false_alarm_in_30000_healthy_steps_after_the_start(case):
    # docs/detectors.md has the measured rates; they are 0.1 in 10,000 steps and below
    norms = HEALTHY[case]()
    for name in ("spike", "trend", "vanishing"):
        detector = DETECTORS[name]()
        alarm = replay.detector(detector, norms).alarm[25:]
        rate = 1e4 * replay.episodes(alarm, detector.cooldown_steps) / alarm.size
        assert rate <= 0.33, f"{name}: {rate:.2f} episodes in 10,000 steps"


def test_without_its_correction_trend_would_cry_wolf_over_correlated_norms():
    """Why the correction exists: the plain CUSUM of the same parameters on an AR(1) of 0.9."""
    norms = streams.correlated(np.random.default_rng(0), STEPS, 0.3, 0.9, 100)
    score = np.zeros(100)
    alarm = np.zeros(norms.shape, bool)
    z = np.log(norms) / 0.3
    for t in range(STEPS):
        score = np.minimum(np.maximum(score + np.minimum(z[t], 4.0) - 1.0, 0.0), 16.0)
        alarm[t] = score > 8.0
    assert 1e4 * replay.episodes(alarm) / alarm.size > 10


def test_heavy_tails_cost_spike_false_alarms_as_documented():
    norms = streams.pareto(RNG, STEPS, 2.5, MANY)
    rate = 1e4 * replay.episodes(replay.detector(detectors.spike(), norms).alarm) / norms.size
    assert rate < 80


# -- a budget of false alarms -------------------------------------------------------------------------------


def test_a_budget_is_kept_by_the_formula_of_the_tail():
    """Oracle: the docstrings of `spike` and `core.tail` written out in float64, one stream."""
    x = np.exp(np.r_[np.full(450, 0.6), np.full(1050, 0.3)] * np.random.default_rng(0).standard_normal(1500))
    x[[700, 701, 1100]] *= 40
    x[[500, 1200, 1300, 1400]] *= 7  # above the tail, and no explosion
    got = replay.detector(detectors.spike(false_alarms_per_million=50), x)
    level, calm = Level(200, 2.5), 50
    big_n, n, s1, s2, s3, outliers, width = 5 / 0.23, 5.0, 5.0, 10.0, 30.0, 0.0, 0.25
    for t, value in enumerate(x):
        hazard = n / s1
        c = (s1 * s1 - n * s2 / 2) / (2 * s1 * s3 / 3 - s2 * s2 / 2)
        c = max(c - 0.5 * hazard**2 / math.sqrt(n), 0)
        b = (n - c * s2) / s1
        h = math.log(n / (big_n * 50e-6))
        z_max = 0.75 + (h / b if c == 0 else (-b + math.sqrt(b * b + 4 * c * h)) / (2 * c))
        unit = max(level.std, 0.8 * math.sqrt(width))
        z = level.z(value)
        epsilon = (0.15 + outliers) / (500 + big_n - 5 / 0.23)
        start = b / (b + 2 * c * (z_max - 0.75))  # hazard of the tail at its beginning over that at z_max
        outlying = start * z_max * unit + 0.4 * max(math.log(epsilon / 50e-6), 0)
        margin = max(z_max * unit, outlying, 3 * 0.1) if t >= 25 else level.start_margin
        alarm = t >= 1 and math.log(value) > level.mean + margin
        passed = z > z_max if t >= 25 else alarm
        assert got.alarm[t] == alarm, t
        if t >= 1:
            assert got.threshold[t] == pytest.approx(math.exp(level.mean + margin), rel=2e-3)
        if calm >= 50 or (passed and calm >= 1):
            excess, d = max(min(z, z_max) - 0.75, 0), 1 - 1 / 50_000
            prior = 1 - d  # the prior is what never decays
            big_n, n = big_n * d + 1 + 5 / 0.23 * prior, n * d + (excess > 0) + 5 * prior
            s1, s2 = s1 * d + excess + 5 * prior, s2 * d + excess**2 + 10 * prior
            s3 = s3 * d + excess**3 + 30 * prior
            counts = passed and t >= 25 and (z - z_max) * level.std < 1.2
            outliers = outliers * d + counts * epsilon / (epsilon + 50e-6)
        calm = 0 if passed else calm + 1
        width += (level.std**2 - width) / min(t + 1, 3000)
        level.learn(value)
    assert got.alarm[[700, 1100]].all()


def test_a_budget_is_kept_where_norms_vary_now_much_now_little():
    """200 steps of one width and 400 of a sixth of it, by turns: nothing about the wide ones is abnormal."""
    sigma = np.where(np.arange(4000) % 600 < 200, 0.6, 0.1)[:, None]
    norms = np.exp(sigma * np.random.default_rng(7).standard_normal((4000, 300)))
    alarm = replay.detector(detectors.spike(false_alarms_per_million=1000), norms).alarm[800:]
    assert 0.5 < alarm.sum() / (alarm.size * 1000 / 1e6) < 2


def test_a_deviation_that_narrows_is_followed_slowly_under_a_budget():
    norms = np.exp(np.r_[np.full(500, 0.6), np.full(9500, 0.1)] * np.random.default_rng(8).standard_normal(10_000))
    threshold = replay.detector(detectors.spike(false_alarms_per_million=10), norms).threshold
    assert threshold[1000] > 6.0
    assert threshold[-1] < 2.0


def test_outliers_that_a_run_has_now_and_then_become_usual():
    x = streams.lognormal(np.random.default_rng(2), 6000, 0.1)
    x[500::500] *= 2.2
    alarm = replay.detector(detectors.spike(false_alarms_per_million=10), x).alarm
    assert alarm.sum() <= 2, "the first ones at most"
    x[5999] *= 20
    assert replay.detector(detectors.spike(false_alarms_per_million=10), x).alarm[5999]


def _tail(steps, peaks, moments):
    """A tail that has seen excesses with these moments, so many that its prior hardly counts."""
    sums = {f"sum{i + 1}": peaks * moment for i, moment in enumerate(moments)}
    return {"steps": np.float64(steps), "peaks": peaks, **sums, "outliers": 0.0}


@pytest.mark.parametrize("rate", [1e-6, 1e-5])
def test_outliers_stand_above_an_exponential_tail_and_start_at_the_level_where_the_hazard_begins_at_nothing(rate):
    """Oracle: moments of exponential excesses (b = 2, c = 0), and of Rayleigh's (b = 0, c = 1.5)."""
    steps, peaks, std, epsilon = 2000.0, 500.0, 0.1, 0.15 / (500 + 2000 - 5 / 0.23)
    outlying, h = 0.4 * math.log(epsilon / rate), math.log(peaks / steps / rate)
    exponential = _tail(steps, peaks, (1 / 2, 2 / 4, 6 / 8))
    rayleigh = _tail(steps, peaks * 1e8, (math.sqrt(math.pi / 6), 1 / 1.5, 0.75 * math.sqrt(math.pi) / 1.5**1.5))
    rayleigh["steps"] = steps * 1e8  # so many that nothing is taken off c
    assert tail.margin(NUMPY, exponential, std, rate) == pytest.approx((0.75 + h / 2) * std + outlying, rel=1e-3)
    reach = (0.75 + math.sqrt(h / 1.5)) * std
    assert tail.limit(NUMPY, rayleigh, rate) * std == pytest.approx(reach, rel=1e-3)
    assert tail.margin(NUMPY, rayleigh, std, rate) == pytest.approx(reach, rel=1e-3), "rarer than the budget by then"
    young = {**rayleigh, "outliers": epsilon * (500 + 2000e8)}  # the same share of outliers as above
    assert tail.margin(NUMPY, young, std, rate) == pytest.approx(outlying, rel=1e-3)
    assert tail.margin(NUMPY, young, 100 * std, rate) == pytest.approx(100 * reach, rel=1e-3)


@pytest.mark.parametrize(("rate", "least", "most"), [(1e-6, 0.98, 1.0), (1e-4, 0.3, 0.4)])
def test_what_passed_the_limit_counts_by_the_odds_that_it_was_an_outlier(rate, least, most):
    """epsilon / (epsilon + p): 0.15 outliers in 2,500 steps are 60 in a million."""
    before = _tail(2000 + 5 / 0.23, 500.0, (1 / 2, 2 / 4, 6 / 8))
    passed = np.float64(tail.limit(NUMPY, before, rate) + 1.0)
    given = {"learns": np.bool_(True), "limit": passed - 1.0, "rate": rate, "decay": 1.0}
    after = tail.update(NUMPY, before, passed, np.float64(0.1), **given)
    assert after["outliers"] == pytest.approx(60e-6 / (60e-6 + rate))
    assert least < after["outliers"] < most
    assert tail.update(NUMPY, before, passed - 1.5, np.float64(0.1), **given)["outliers"] == 0.0


def test_a_young_run_with_a_light_tail_sees_a_spike_of_ten():
    """The limit of the tail is the higher one there; added up, the two hid half of these spikes."""
    norms = streams.lognormal(np.random.default_rng(6), 1250, 0.3, 400)
    norms[-1] *= 10
    alarm = replay.detector(detectors.spike(false_alarms_per_million=10), norms).alarm
    assert alarm[-1].mean() > 0.9


@pytest.mark.parametrize(("budget", "memory", "needs"), [(10, 50_000, 14_500), (100, 50_000, 1000), (100, 2000, 1000)])
def test_the_steps_that_a_budget_needs(budget, memory, needs):
    """Oracle: a count that forgets as the tail does, until it is 0.15 / p - 500."""
    count, steps = 0.0, 0
    while count < needs:
        count, steps = count * (1 - 1 / memory) + 1, steps + 1
    needed = detectors.spike(false_alarms_per_million=budget, memory=memory).budget_steps
    assert needed == pytest.approx(steps, abs=2)


def test_a_budget_that_its_memory_can_never_show_says_so():
    assert detectors.spike(false_alarms_per_million=1).budget_steps is None
    assert detectors.spike(false_alarms_per_million=2, memory=50_000).budget_steps is None
    assert detectors.spike(false_alarms_per_million=2, memory=100_000).budget_steps > 74_500
    assert detectors.spike(false_alarms_per_million=1000).budget_steps == 25, "the start"
    assert detectors.spike().budget_steps == 0


BUDGETED = {
    "log-normal 0.3": lambda rng, steps, many: streams.lognormal(rng, steps, 0.3, many),
    "Pareto 2.5": lambda rng, steps, many: streams.pareto(rng, steps, 2.5, many),
    "AR(1) 0.9": lambda rng, steps, many: streams.correlated(rng, steps, 0.3, 0.9, many),
}


@pytest.mark.parametrize("name", BUDGETED)
def test_a_budget_is_kept_within_a_factor_of_two_once_the_tail_is_known(name):
    norms = BUDGETED[name](np.random.default_rng(5), 6000, 100)
    alarm = replay.detector(detectors.spike(false_alarms_per_million=1000), norms).alarm[3000:]
    assert 0.5 < alarm.sum() / (alarm.size * 1000 / 1e6) < 2


def test_under_a_budget_a_spike_of_ten_is_caught_and_a_shift_followed():
    detector = detectors.spike(false_alarms_per_million=10)
    x = stream(3000, seed=3)
    x[1500] *= 12
    x[2000:] *= 10
    alarm = replay.detector(detector, x).alarm
    assert alarm[1500]
    assert alarm[2000]
    assert not alarm[2200:].any()


@pytest.mark.parametrize("bad", [0, -1, 1e5, math.nan, "10"])
def test_a_budget_out_of_range_is_refused(bad):
    with pytest.raises(ConfigError, match="false_alarms_per_million"):
        detectors.spike(false_alarms_per_million=bad)


def test_a_budget_and_a_limit_are_refused_together():
    with pytest.raises(ConfigError, match="z_max or false_alarms_per_million"):
        detectors.spike(4.0, false_alarms_per_million=10)


# -- true alarms --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("times", "share"), [(10, 0.98), (50, 1.0), (100, 1.0)])
def test_a_spike_is_caught_on_its_own_step(times, share):
    norms = streams.spike(streams.lognormal(RNG, 601, 0.3, 1000), 600, times)
    assert replay.detector(detectors.spike(), norms).alarm[600].mean() >= share


def test_spikes_are_caught_right_after_the_warm_up_too():
    norms = streams.spike(streams.lognormal(RNG, 31, 0.3, 1000), 30, 50)
    assert replay.detector(detectors.spike(), norms).alarm[30].mean() >= 0.99


@pytest.mark.parametrize("times", [10, 100])
def test_a_burst_of_40_steps_is_one_episode(times):
    norms = streams.spike(streams.lognormal(RNG, 900, 0.3, 300), 600, times, width=40)
    spike = detectors.spike()
    alarm = replay.detector(spike, norms).alarm
    each = [replay.episodes(alarm[:, i], spike.cooldown_steps) for i in range(300)]
    assert alarm[600].mean() > 0.98
    assert np.mean(np.array(each) == 1) >= 0.97


def test_growth_of_5_percent_a_step_alarms_within_20_steps():
    norms = streams.growth(streams.lognormal(RNG, 640, 0.3, 500), 600, 0.05)
    alarm = replay.detector(detectors.spike(), norms).alarm | replay.detector(detectors.trend(), norms).alarm
    within_20 = alarm[600:620].any(axis=0).mean()
    assert within_20 >= 0.95
    assert alarm[600:630].any(axis=0).all()


def test_a_single_spike_is_no_trend():
    norms = streams.spike(streams.lognormal(RNG, 700, 0.3, 300), 600, 1000.0)
    assert not replay.detector(detectors.trend(), norms).alarm[600:].any()


def test_a_lasting_rise_stops_alarming_within_the_documented_number_of_steps():
    for times, documented in ((3, 40), (10, 60), (100, 120)):
        norms = streams.shift(streams.lognormal(RNG, 1000, 0.3, 200), 600, times)
        alarm = replay.detector(detectors.spike(), norms).alarm
        last = max(np.flatnonzero(row)[-1] for row in alarm.T if row.any())
        assert last - 600 < documented, f"x {times}"


def test_a_norm_that_doubles_over_250_steps_while_a_run_learns_is_no_trend():
    steps = np.arange(600)
    level = np.where(steps < 80, -0.3 * steps / 80, -0.3 + np.log(2.2) * np.minimum((steps - 80) / 250, 1))
    norms = np.exp(level[:, None]) * streams.lognormal(RNG, 600, 0.12, 200)
    assert not replay.detector(detectors.trend(), norms).alarm.any()
    assert replay.detector(detectors.trend(rise=1), norms).alarm.any(axis=0).mean() > 0.5


def test_trend_falls_silent_after_a_lasting_rise():
    norms = streams.shift(streams.lognormal(RNG, 1400, 0.3, 200), 600, 10.0)
    alarm = replay.detector(detectors.trend(), norms).alarm
    last = max(np.flatnonzero(row)[-1] for row in alarm.T if row.any())
    assert last - 600 < 300


@pytest.mark.parametrize("name", ["spike", "trend", "vanishing"])
def test_a_nan_leaves_no_trace_and_the_next_spike_is_caught(name):
    norms = stream(140)
    with_nan = norms.copy()
    with_nan[100] = math.nan
    never_seen = np.delete(norms, 100)
    a = replay.detector(DETECTORS[name](), with_nan[:105])
    b = replay.detector(DETECTORS[name](), never_seen[:104])
    assert str(a.state) == str(b.state)
    with_nan[110] *= 50
    if name == "spike":
        assert np.flatnonzero(replay.detector(detectors.spike(), with_nan).alarm).tolist() == [110]


@pytest.mark.parametrize("name", ["trend", "vanishing"])
def test_no_alarm_before_the_warm_up_is_over(name):
    norms = np.where(np.arange(60) % 2, 1e-6, 1e6)
    assert not replay.detector(DETECTORS[name](warmup_steps=30), norms).alarm[:30].any()


# -- values -------------------------------------------------------------------------------------------------

MADE = [
    detectors.spike(),
    detectors.spike(6, window=500, cooldown_steps=20),
    detectors.spike(false_alarms_per_million=10),
    detectors.trend(0.5, decision=12),
    detectors.vanishing(8, 1000, patience=2),
    detectors.nonfinite(patience=3, cooldown_steps=50),
    detectors.saturated(0.8, window=100),
]


@pytest.mark.parametrize("made", MADE, ids=repr)
def test_a_detector_is_a_value(made):
    for again in (eval(repr(made), vars(detectors)), detectors.parse(repr(made)), copy.deepcopy(made)):
        assert again == made
        assert hash(again) == hash(made)
    assert pickle.loads(pickle.dumps(made)) == made
    assert detectors.parse(made) is made
    assert all(made != other for other in MADE if other is not made)


def test_detectors_that_differ_in_what_is_not_shown_first_are_not_equal():
    assert detectors.nonfinite(cooldown_steps=50) != detectors.nonfinite()
    assert detectors.spike(min_std=0.2) != detectors.spike()
    assert detectors.spike() == detectors.spike(5.0)


def test_a_level_that_is_allowed_keeps_the_deviation_of_a_healthy_run():
    """At the closest clamping that is taken it rests at 0.79 of a normal's; at 1.05, refused, it would at 0.17."""
    norms = np.exp(np.random.default_rng(5).normal(size=(6000, 8)))
    detector = detectors.spike(winsorise=1.5)
    alarms = replay.detector(detector, norms)
    std = np.sqrt(alarms.state["level"]["var"])
    assert 0.7 < std.mean() < 0.95
    assert alarms.alarm[1000:].mean() < 1e-3
    with pytest.raises(ConfigError, match="deviation of log norms that are clamped closer would sink"):
        detectors.spike(winsorise=1.05)


@pytest.mark.parametrize(("text", "says"), [
    ("spike(0)", "z_max must be > 0"),
    ("spike(5, patience=3)", "spike takes z_max"),
    ("spikes", "unknown detector 'spikes'; there are: spike, trend, vanishing, nonfinite, saturated"),
    ("spike; import os", "a detector is a name with plain numbers"),
    ("__import__('os')", "unknown detector"),
    ("", "a detector is a name with plain numbers"),
])  # fmt: skip
def test_a_text_that_is_no_detector_is_refused(text, says):
    with pytest.raises(ConfigError, match=re.escape(says)):
        detectors.parse(text)
