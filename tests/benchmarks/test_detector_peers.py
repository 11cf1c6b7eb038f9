"""Each detector peer alarms where its source says."""

from __future__ import annotations

import math

import detector_peers as peers
import numpy as np
import pytest


def stream(seed=0, steps=3000):
    rng = np.random.default_rng(seed)
    x = rng.lognormal(0, 0.3, steps)
    x[[400, 1500, 1501, 2600]] *= 30
    return x


def alarms(detector, x):
    return [t for t, value in enumerate(x) if detector.step(float(value))]


def test_the_delayed_mean_is_that_of_the_norms_500_to_1000_steps_ago():
    x = stream()
    expected = [t for t in range(500, 3000) if x[t] > 7.5 * x[max(0, t - 999) : t - 499].mean()]
    assert alarms(peers.DelayedMean(), x) == expected
    assert expected


@pytest.mark.parametrize(("sigmas", "window"), [(6, 128), (7, 1000)])
def test_window_sigma_judges_by_the_window_before_the_step(sigmas, window):
    x = stream(seed=1)
    expected = []
    for t in range(window // 2 - 1, 3000):
        past = x[max(0, t - window) : t]
        if x[t] > past.mean() + sigmas * past.std(ddof=1):
            expected.append(t)
    assert alarms(peers.WindowSigma(sigmas, window), x) == expected
    assert 1500 in expected


def test_log_mad_is_scipys_median_absolute_deviation_of_the_log():
    stats = pytest.importorskip("scipy.stats")
    x = stream(seed=2)[:600]
    logs = np.log(x)
    expected = []
    for t in range(25, 600):
        past = logs[max(0, t - 200) : t]
        if logs[t] > np.median(past) + 6 * 1.4826 * stats.median_abs_deviation(past):
            expected.append(t)
    assert alarms(peers.LogMad(), x) == expected
    assert 400 in expected


@pytest.mark.parametrize("threshold", [5.0, 50.0])
def test_page_hinkley_is_rivers(threshold):
    drift = pytest.importorskip("river.drift")
    rng = np.random.default_rng(3)
    x = np.exp(np.r_[rng.normal(0, 0.3, 500), rng.normal(1, 0.3, 500), rng.normal(3, 0.3, 500)])
    theirs, ours = drift.PageHinkley(mode="up", threshold=threshold), peers.PageHinkley(threshold)
    expected = []
    for t, value in enumerate(x):
        theirs.update(math.log(value))
        if theirs.drift_detected:
            expected.append(t)
    assert alarms(ours, x) == expected
    assert expected


def test_zclips_score_is_silent_for_good_after_one_nan():
    x = stream(seed=4)
    assert 1500 in alarms(peers.ZClipScore(), x)
    x[1000] = math.nan
    assert not [t for t in alarms(peers.ZClipScore(), x) if t >= 1000]
