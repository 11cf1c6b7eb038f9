"""The first steps of a run, where a rate that is too high kills, and drifts that take a running level along."""

from __future__ import annotations

import math
from pathlib import Path

import dying
import numpy as np
import pytest

from gradwatch.core import detectors
from gradwatch.testing import replay, streams

RECORDED = Path(__file__).parents[2] / "benchmarks" / "results" / "recorded_norms.npz"


def recorded_runs():
    """(names, norms of 2,000 steps, shape [2000, runs])"""
    with np.load(RECORDED) as file:
        return file.files, np.stack([file[name] for name in file.files], axis=1)


# -- the first steps ----------------------------------------------------------------------------------------

RATES = [("sgd", 10.0), ("sgd", 100.0), ("sgd", 1e4), ("adam", 0.3), ("adam", 1.0), ("adam", 10.0)]


@pytest.mark.parametrize(("optimizer", "rate"), RATES)
@pytest.mark.parametrize("make", [detectors.spike, lambda: detectors.spike(false_alarms_per_million=10)])
def test_a_network_that_dies_at_once_raises_before_its_norm_has_grown_a_hundredfold(optimizer, rate, make):
    for seed in range(4):
        norms = dying.norms(optimizer, rate, seed)
        alarm = replay.detector(make(), norms).alarm
        with np.errstate(invalid="ignore"):
            grown = np.flatnonzero(~(norms < 100 * norms[0]))
        by = grown[0] if len(grown) else 25
        assert alarm[: by + 1].any(), f"norms {norms[:8]}"


@pytest.mark.parametrize(("optimizer", "rate"), RATES)
def test_a_hundred_steps_after_a_wild_start_the_threshold_is_within_a_hundred_times_the_recent_median(optimizer, rate):
    for seed in range(4):
        norms = dying.norms(optimizer, rate, seed)
        recent = norms[60:110]
        if not np.all(np.isfinite(recent)):
            continue  # this one is dead
        threshold = replay.detector(detectors.spike(), norms).threshold[110]
        assert 1.3 < threshold / np.median(recent) < 100


@pytest.mark.parametrize("calm", [1.0, 50.0, 1e-3])
@pytest.mark.parametrize("start", [
    [4.0, 52.0],
    [4.0, 52.0, 30.0, 45.0, 52.0, 20.0],
    [1.0, 1e2, 1e5, 1e9, 1e13],
    [1.0, 1e13, math.inf, math.nan, 2e38],
    [3.0, 2e5, 0.02, 4e4, 1.0],
], ids=["4 to 52", "4 to 52 and on", "decades", "decades and overflow", "to and fro"])  # fmt: skip
def test_a_wild_start_alarms_from_the_second_step_on_and_teaches_nothing(start, calm):
    norms = np.concatenate([start, streams.lognormal(np.random.default_rng(0), 120, 0.3) * calm])
    got = replay.detector(detectors.spike(), norms)
    assert got.alarm[1]
    assert not got.alarm[0]
    level = got.threshold[len(start) + 100] / calm
    # a run that knew nothing but the calm part stands at exp(5 * 0.3) = 4.5
    assert 2.0 < level < 15.0
    assert got.alarm[len(start) + 100 :].sum() == 0


def test_a_run_that_starts_far_below_its_usual_norm_is_followed_within_50_steps():
    norms = np.concatenate([[1e-4], streams.lognormal(np.random.default_rng(1), 150, 0.3)])
    alarm = replay.detector(detectors.spike(), norms).alarm
    assert alarm[1]
    assert not alarm[51:].any()


def test_a_run_that_never_settles_is_past_its_start_after_four_times_the_warm_up():
    norms = np.where(np.arange(200) % 2, 1e-2, 1e2)
    state = replay.detector(detectors.spike(), norms[:101]).state
    assert state["level"]["seen"] >= 25
    assert not replay.detector(detectors.spike(), norms).alarm[150:].any()


# docs/detectors.md has these rates, from 20,000 starts each
STARTS = {
    "log-normal 0.1": (lambda rng: streams.lognormal(rng, 25, 0.1, 5000), 0.0005),
    "log-normal 0.3": (lambda rng: streams.lognormal(rng, 25, 0.3, 5000), 0.0005),
    "log-normal 0.8": (lambda rng: streams.lognormal(rng, 25, 0.8, 5000), 0.035),
    "falling as t^-0.7": (lambda rng: streams.decaying(rng, 25, 0.3, 5000), 0.0005),
    "falling as t^-2": (
        lambda rng: streams.lognormal(rng, 25, 0.3, 5000) * (1 + np.arange(25) / 3)[:, None] ** -2.0,
        0.0005,
    ),
}


@pytest.mark.parametrize("case", STARTS)
def test_healthy_starts_rarely_alarm(case):
    make, most = STARTS[case]
    alarm = replay.detector(detectors.spike(), make(np.random.default_rng(2))).alarm
    assert alarm.any(axis=0).mean() <= most


def test_of_the_recorded_healthy_runs_only_two_alarm_in_their_first_25_steps():
    names, norms = recorded_runs()
    alarmed = np.flatnonzero(replay.detector(detectors.spike(), norms[:25]).alarm.any(axis=0))
    assert len(alarmed) <= 2
    assert all(names[i].startswith("heavy-tails") for i in alarmed), "each at a norm 20 times the usual one"


# -- drifts -------------------------------------------------------------------------------------------------


def growing(rate, steps, at=0, sigma=0.3):
    return streams.growth(streams.lognormal(np.random.default_rng(3), steps, sigma), at, rate)


@pytest.mark.parametrize("at", [0, 30, 600])
@pytest.mark.parametrize("rate", [0.01, 0.02, 0.05, 0.2])
def test_growth_is_an_explosion_long_before_the_norm_is_1e18(rate, at):
    steps = at + int(math.log(1e18) / math.log(1 + rate))
    norms = growing(rate, steps, at)
    alarm = replay.detector(detectors.spike(), norms).alarm
    late = np.flatnonzero(norms > 1e6)[0]
    assert alarm[:late].any(), "below six decades"
    assert alarm[late:].mean() > 0.95, "and it does not end while the norm grows"


def test_growth_of_5_percent_is_one_explosion_and_not_a_hundred():
    norms = growing(0.05, 900)
    spike = detectors.spike()
    assert replay.episodes(replay.detector(spike, norms).alarm, spike.cooldown_steps) <= 3


@pytest.mark.parametrize("at", [0, 1000])
@pytest.mark.parametrize("steps", [300, 2_000])
def test_a_fall_of_eight_decades_is_found_however_slow(steps, at):
    rng = np.random.default_rng(4)
    fall = np.concatenate([np.zeros(at), np.arange(steps) / steps])
    norms = streams.lognormal(rng, at + steps, 0.2) * 10.0 ** (-8 * fall)
    alarm = replay.detector(detectors.vanishing(), norms).alarm
    first = np.flatnonzero(alarm)
    assert len(first)
    assert fall[first[0]] < 0.75, "before it has fallen six decades"
    assert alarm[-20:].all()


def test_a_gradient_of_zero_from_the_third_step_on_is_found():
    norms = np.array([4.0, 52.0, *np.zeros(60)])
    assert np.flatnonzero(replay.detector(detectors.vanishing(), norms).alarm)[0] == 29


def test_shifts_by_a_schedule_of_the_learning_rate_do_not_alarm_for_ever():
    calm = streams.lognormal(np.random.default_rng(6), 900, 0.3)
    norms = np.stack([streams.shift(calm, 600, factor) for factor in (0.1, 0.5, 3.0, 30.0)], axis=1)
    for detector in (detectors.spike(), detectors.vanishing()):
        assert not replay.detector(detector, norms).alarm[800:].any()


def test_no_recorded_healthy_run_leaves_its_own_past():
    _, norms = recorded_runs()
    assert not replay.detector(detectors.vanishing(), norms[::4]).alarm.any()
    low = replay.detector(detectors.spike(), norms[::4]).state["low"]
    assert np.all(np.log(np.median(norms[-200:], axis=0)) - low < math.log(30))
