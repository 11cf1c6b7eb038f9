"""The sketch against its theorem: no quantile is further than 1 % from the exact one of the same definition."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gradwatch.core import sketch
from gradwatch.core.xp import NUMPY

QUANTILES = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)

#: float32 weights move a rank by less than this (measured: 2e-5 at a window of 1,000, 5e-4 at 10,000).
RANK = 2e-4


def enter(values, decay, state=None):
    state = sketch.init() if state is None else state
    for log_value in np.log(np.asarray(values, np.float64)).astype(np.float32):
        state = sketch.update(NUMPY, state, log_value, True, decay)
    return state


def quantile(state, q):
    return math.exp(sketch.log_quantile(NUMPY, state, q))


def exact(values, decay, q):
    """Smallest value with at least a share q of the weight at or below it; q = 0 forgets a millionth."""
    values = np.asarray(values, np.float64)
    weights = decay ** np.arange(len(values) - 1, -1, -1, dtype=np.float64)
    order = np.argsort(values)
    share = np.cumsum(weights[order]) / weights.sum()
    at = np.searchsorted(share, min(max(q, 1e-6), 1.0 - 1e-6))
    return values[order][min(at, len(values) - 1)]


def assert_within_one_percent(state, values, decay):
    for q in QUANTILES:
        got = quantile(state, q)
        low, high = exact(values, decay, q - RANK), exact(values, decay, q + RANK)
        # 1e-5: the logarithm of a norm in float32
        assert low * (1 - sketch.ACCURACY - 1e-5) <= got <= high * (1 + sketch.ACCURACY + 1e-5), f"q = {q}"


RNG = np.random.default_rng(7)
DISTRIBUTIONS = {
    "normal": np.abs(RNG.normal(5.0, 1.0, 800)),
    "narrow lognormal": RNG.lognormal(0.0, 0.01, 800),
    "lognormal": RNG.lognormal(0.0, 0.3, 800),
    "wide lognormal": RNG.lognormal(0.0, 3.0, 800),
    "Pareto 1.1": 1.0 + RNG.pareto(1.1, 800),
    "two humps six decades apart": np.where(RNG.random(800) < 0.4, 1e-3, 1e3) * RNG.lognormal(0.0, 0.2, 800),
    "constant": np.full(800, 0.37),
    "two values": np.where(np.arange(800) % 2 == 0, 1.0, 1.1),
    "sixteen decades": 10 ** np.append(0.0, RNG.uniform(-8, 8, 799)),
    "falling": 10 ** np.linspace(3, -3, 800),
    "rising": 10 ** np.linspace(-3, 3, 800),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("window", [10, 200, 100_000])
def test_every_quantile_is_within_one_percent_of_the_exact_weighted_one(name, window):
    decay = 1 - 1 / window
    assert_within_one_percent(enter(DISTRIBUTIONS[name], decay), DISTRIBUTIONS[name], decay)


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e30])
def test_accuracy_does_not_depend_on_the_scale_of_the_gradient(scale):
    values = DISTRIBUTIONS["lognormal"] * scale
    assert_within_one_percent(enter(values, 0.99), values, 0.99)


def test_accuracy_does_not_fade_in_a_long_run():
    values = np.random.default_rng(1).lognormal(0.0, 0.5, 12_000)
    state = sketch.init()
    for until in range(4_000, 12_001, 4_000):
        state = enter(values[until - 4_000 : until], 0.999, state)
        assert_within_one_percent(state, values[:until], 0.999)
    assert sketch.weight(state) == pytest.approx(1000, rel=1e-4)


def test_numpy_agrees_on_what_a_quantile_is():
    values = DISTRIBUTIONS["wide lognormal"]
    state = enter(values, 1.0)
    for q in (0.1, 0.5, 0.9):
        theirs = np.percentile(values, 100 * q, method="inverted_cdf")
        assert quantile(state, q) == pytest.approx(theirs, rel=0.0101)


def test_an_old_level_is_forgotten_at_the_promised_pace():
    # after n steps the old level holds decay^n of the weight: the median changes sides at n = log(1/2) / log(decay)
    decay = 0.99
    state = enter(np.full(2000, 1.0), decay)
    flip = math.ceil(math.log(0.5) / math.log(decay))
    state = enter(np.full(flip - 1, 10.0), decay, state)
    assert quantile(state, 0.5) == pytest.approx(1.0, rel=0.0101)
    state = enter([10.0], decay, state)
    assert quantile(state, 0.5) == pytest.approx(10.0, rel=0.0101)


def test_a_value_not_taken_changes_nothing():
    state = enter(DISTRIBUTIONS["lognormal"], 0.99)
    after = sketch.update(NUMPY, state, np.float32(5.0), np.bool_(False), 0.99)
    assert all(np.array_equal(state[name], after[name]) for name in state)


def test_an_empty_sketch_weighs_nothing_and_takes_no_centre_from_a_dropped_value():
    state = sketch.update(NUMPY, sketch.init(), np.float32(70.0), np.bool_(False), 0.99)
    assert sketch.weight(state) == 0
    state = enter([1e-9], 0.99, state)
    assert quantile(state, 0.5) == pytest.approx(1e-9, rel=0.0101)


def test_values_beyond_the_range_count_at_its_ends():
    # centred on 1, the range ends 20.48 log units away; ranks inside of it stay exact
    values = np.concatenate([[1.0], RNG.lognormal(0.0, 0.3, 300), [1e-20] * 30, [1e20] * 30])
    state = enter(values, 1.0)
    assert quantile(state, 0.5) == pytest.approx(exact(values, 1.0, 0.5), rel=0.0101)
    assert quantile(state, 0.0) == pytest.approx(math.exp(-20.48), rel=0.05)
    assert quantile(state, 1.0) == pytest.approx(math.exp(20.48), rel=0.05)


@pytest.mark.parametrize("first", [1e-25, 1e25])
def test_a_first_value_unlike_all_others_costs_the_range_two_steps(first):
    values = RNG.lognormal(0.0, 0.3, 300)
    state = enter([first, *values], 0.999)
    for q in (0.05, 0.5, 0.95):
        # the first value and the one that fell on the end are gone
        assert quantile(state, q) == pytest.approx(exact(values[1:], 0.999, q), rel=0.0101)


def test_the_weights_stay_sorted_and_finite():
    values = np.random.default_rng(5).lognormal(0.0, 8.0, 1500)
    state = enter(values, 0.97)
    assert np.all(np.diff(state["cumulative"]) >= 0)
    assert np.all(np.isfinite(state["cumulative"]))
