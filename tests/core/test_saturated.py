"""Saturated clipping and zeroing: a formula, what must raise it, and what must not."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gradwatch.core import decode, detectors, policies
from gradwatch.core.guard import Guard
from gradwatch.core.norms import Norms
from gradwatch.core.xp import NUMPY
from gradwatch.testing import streams

ONE = np.float32(1.0)


def alarms(kept, **options):
    detector = detectors.saturated(**options)
    state, out = detector.init(1), []
    for x in kept:
        norms = Norms(ONE, np.True_, np.True_, ONE, ONE * 0, ONE[None], ONE[None] * 0, kept=np.float32(x))
        state, alarm, info = detector.update(NUMPY, state, norms)
        out.append((bool(alarm), float(info["score"])))
    return out


def test_it_is_the_share_of_hard_steps_with_forgetting():
    kept = np.random.default_rng(0).choice([0.0, 0.05, 0.09, 0.11, 0.5, 1.0], 400)
    hard, steps = 0.0, 0.0
    for x, (alarm, score) in zip(kept, alarms(kept)):
        hard, steps = 0.98 * hard + (x < 0.1), 0.98 * steps + 1
        assert score == pytest.approx(hard / steps, abs=1e-5)
        assert alarm == (hard > 0.5 * steps and hard >= 50 * (1 - 0.98**20) - 1e-3)


def test_twenty_hard_steps_in_a_row_are_enough_at_the_start_and_34_after_a_long_calm():
    at_once = [alarm for alarm, _ in alarms([0.0] * 30)]
    assert at_once == [False] * 19 + [True] * 11
    later = [alarm for alarm, _ in alarms([1.0] * 300 + [0.0] * 60)]
    assert later.index(True) == 300 + 34


def run(policy, norms, reach=None, **options):
    """(whether saturation was under way after each step, the last snapshot)."""
    guard = Guard(policy, detectors.default(), **options)
    state, active = guard.init(1), []
    for x in np.asarray(norms, np.float32):
        state, _ = guard.step(NUMPY, state, np.array([x]), reach=reach)
        active.append(bool(state["episodes"]["saturated"]["active"]))
    return active, decode.snapshot(guard, state, name="m", paths=("w",))


def dead(steps=120):
    """A run at a loss of 1e21: most steps overflow, the others have norms that mean nothing."""
    rng = np.random.default_rng(1)
    return np.where(rng.random(steps) < 95 / 120, rng.choice([math.nan, math.inf, 2e38], steps), 1e20)


SATURATED = {
    "95 of 120 steps zeroed by the default": (lambda: policies.auto(), dead(), {"reach": np.float32(math.inf)}),
    "growth that auto lags": (lambda: policies.auto(), 1.25 ** np.arange(360), {"reach": np.float32(math.inf)}),
    "growth that auto lags, SGD": (lambda: policies.auto(), 1.25 ** np.arange(360), {"reach": np.float32(1.0)}),
    "95 of 120 steps zeroed": (lambda: policies.percentile(), dead(), {}),
    "95 of 120 steps skipped": (lambda: policies.percentile(), dead(), {"on_nonfinite": "skip"}),
    "95 of 120 steps that pass as they are": (lambda: policies.observe(), dead(), {}),
    "23 of 24 steps clipped": (lambda: policies.fixed(1.0), np.array([1.0, *np.geomspace(1e6, 1e33, 23)]), {}),
    "growth that the policy lags": (lambda: policies.percentile(), 1.25 ** np.arange(360), {}),
    "explosions skipped one after the other": (
        lambda: policies.percentile(),
        np.concatenate([np.ones(100), 1e4 ** (1 + np.arange(50) / 10)]),
        {"on_explosion": "skip"},
    ),
}


@pytest.mark.parametrize("case", SATURATED)
def test_a_run_that_lives_on_its_brakes_raises_it(case):
    make, norms, options = SATURATED[case]
    active, shot = run(make(), norms, **options)
    assert any(active)
    assert shot.anomalies["saturated"] >= 1
    assert shot.last_events["saturated"].threshold == math.inf


def calm(steps, sigma=0.3):
    return streams.lognormal(np.random.default_rng(2), steps, sigma)


HEALTHY = {
    "percentile(90)": (policies.percentile(90), calm(200)),
    "percentile(50), noisy": (policies.percentile(50), calm(200, 0.8)),
    "median(1.1)": (policies.median(1.1), calm(200)),
    "per_variable": (policies.per_variable(), calm(200)),
    "a bound that clips every step to a third": (policies.fixed(0.3), calm(200, 0.1)),
    "auto without an optimizer": (policies.auto(), calm(250)),
    "auto under Adam": (policies.auto(), calm(250), math.inf),
    "auto under Adam, norms that fall to a hundredth": (policies.auto(), calm(900) * 0.995 ** np.arange(900), math.inf),
    "auto under SGD at a rate far too high": (policies.auto(), calm(250), 0.01),
    "a burst of 20 steps": (policies.percentile(), streams.spike(calm(300), 150, 100.0, 20)),
    "a loss scale that probes 16 times": (policies.percentile(), np.concatenate([np.full(16, math.inf), calm(100)])),
    "norms of zero": (policies.percentile(), np.concatenate([calm(50), np.zeros(100)])),
    "a lasting rise of ten": (policies.percentile(), streams.shift(calm(300), 100, 10.0)),
}


@pytest.mark.parametrize("case", HEALTHY)
def test_a_policy_at_its_work_does_not_raise_it(case):
    policy, norms, *reach = HEALTHY[case]
    assert run(policy, norms, *map(np.float32, reach))[1].anomalies["saturated"] == 0


def test_it_ends_when_the_run_recovers():
    active, shot = run(policies.percentile(), np.concatenate([np.full(60, math.nan), calm(120)]))
    assert active[59]
    assert not shot.active["saturated"]
