"""Harm: what an anomaly did to the loss makes its severity, and tells which steps were useful."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from telemetry.fake import FakeMonitor

from gradwatch.core.snapshot import KINDS
from gradwatch.reading.alerts import Alert, alerts_between
from gradwatch.reading.harm import LOSS_KINDS, HarmWatch
from gradwatch.reading.losses import (
    BACK_STEPS,
    LOST_SECONDS,
    LOST_STEPS,
    PROGRESS_STEPS,
    SETTLED_STEPS,
    STREAK_STEPS,
    LossWatch,
)
from gradwatch.reading.reading import Reading


class Run:
    """A monitor that is looked at every ten steps, ten seconds apart; keeps the alerts."""

    def __init__(self, every: int = 10, **state) -> None:
        self.monitor = FakeMonitor(**state)
        self.watch, self.now, self.every = HarmWatch(), 1000.0, every
        self.noise = np.random.default_rng(7)
        self.told: list[Alert] = []
        self.reading: Reading | None = None
        self.seen_at = dict.fromkeys(KINDS, 0.0)

    def loss(self, level: float) -> float:
        return float(level * (1 + 0.01 * self.noise.standard_normal()))

    def look(self, seconds: float = 10.0) -> None:
        self.now += seconds
        snapshot = replace(self.monitor.snapshot(), time=self.now)
        for kind in KINDS:
            if snapshot.anomalies[kind] > (self.reading.snapshot.anomalies[kind] if self.reading else 0):
                self.seen_at[kind] = self.now
        harm = self.watch.look(snapshot, self.monitor.history(), self.seen_at)
        reading = Reading("run", snapshot, last_anomaly_time=dict(self.seen_at), harm=harm)
        self.told += alerts_between(self.reading, reading, self.monitor.history)
        self.reading = reading

    def train(self, steps: int, level: float | None = 1.0, seconds: float = 10.0, **step) -> Run:
        for i in range(steps):
            self.monitor.step(loss=math.nan if level is None else self.loss(level), **step)
            if (i + 1) % self.every == 0:
                self.look(seconds)
        self.look(seconds)
        return self

    def explode(self, loss: float | None = 1.0, verdict: str = "clip") -> Run:
        self.monitor.begin("explosion", verdict=verdict, loss=math.nan if loss is None else loss)
        return self

    def calm(self, loss: float = 1.0) -> Run:
        self.monitor.end("explosion", loss=loss)
        return self

    @property
    def severities(self) -> list[tuple[str, str]]:
        return [(alert.kind, alert.severity) for alert in self.told if alert.phase == "fired"]


def test_an_explosion_that_was_clipped_and_left_the_loss_alone_is_told_to_nobody():
    run = Run().train(300).explode()
    run.look()
    run.calm().train(100)
    assert [(alert.phase, alert.severity) for alert in run.told] == [("fired", "info"), ("resolved", "info")]
    assert "What it does to the loss is not known yet." in run.told[0].message, "it has just begun"
    assert "The loss is no worse" in run.reading.harm.newest["explosion"].text
    assert run.reading.harm.useful_steps == run.monitor.state.steps
    assert sum(run.reading.harm.wasted_steps.values()) == 0


def test_a_loss_that_is_back_in_time_was_no_harm():
    run = Run().train(300).explode().calm().train(BACK_STEPS - 20, 3.0).train(100)
    assert run.severities == [("explosion", "info")]
    assert run.reading.harm.wasted_steps["harmful"] == 0


def test_a_loss_that_stays_away_is_a_ticket_and_its_steps_were_not_useful():
    run = Run().train(300).explode().calm().train(BACK_STEPS + 30, 2.0, seconds=0.1).train(100)
    assert run.severities == [("explosion", "info"), ("explosion", "warning")]
    assert "The loss has been above" in run.told[1].message
    assert [alert.phase for alert in run.told] == ["fired", "fired", "resolved"]
    harm = run.reading.harm
    assert BACK_STEPS + 25 <= harm.wasted_steps["harmful"] <= BACK_STEPS + 45, "all of them, not from the judgement on"
    assert harm.useful_steps + sum(harm.wasted_steps.values()) == run.monitor.state.steps


def test_a_loss_that_has_no_way_back_is_a_page():
    run = Run().train(300).explode().calm().train(LOST_STEPS + 50, 2.0, seconds=10 * LOST_SECONDS / LOST_STEPS)
    assert run.severities == [("explosion", s) for s in ("info", "warning", "critical")]


def test_two_hundred_steps_in_two_seconds_are_not_yet_a_page():
    run = Run().train(300).explode().calm().train(LOST_STEPS + 50, 2.0, seconds=0.1)
    assert run.severities == [("explosion", "info"), ("explosion", "warning")]


def test_a_loss_far_above_everything_is_harm_within_thirty_steps():
    run = Run().train(300).explode().calm().train(40, 50.0)
    assert run.severities == [("explosion", "info"), ("explosion", "warning")]


def test_twenty_bad_batches_whose_loss_is_back_at_once_do_no_harm():
    assert Run().train(300).explode().calm().train(20, 50.0).train(300).severities == [("explosion", "info")]


# -- a rise that lasts and is no large one ----------------------------------------------------------------


def noisy(*parts: tuple[int, float], noise: float = 0.25, seed: int = 1) -> np.ndarray:
    """Losses of so many steps at each level."""
    levels = np.repeat([level for _, level in parts], [steps for steps, _ in parts])
    return levels * (1 + noise * np.random.default_rng(seed).standard_normal(len(levels)))


def harmful_from(losses: np.ndarray, every: int = 1) -> int:
    """The step at which a run with these losses is first called harmful, looked at every so many steps; 0: never."""
    watch, snapshot = LossWatch(), FakeMonitor().snapshot()
    for end in range(every, len(losses) + 1, every):
        step = np.arange(max(end - 1023, 1), end + 1)
        rows = {"step": step, "norm": np.ones(len(step)), "loss": losses[step - 1]}
        watch.read(replace(snapshot, steps=end), rows, harmful=False)
        if watch.is_harmful:
            return end
    return 0


@pytest.mark.parametrize("every", [1, 20, 250])
def test_a_loss_that_rises_by_half_under_noise_is_harm_if_it_stays(every):
    step = harmful_from(noisy((1000, 1.0), (500, 1.5)), every)
    assert 1000 + BACK_STEPS <= step <= 1000 + BACK_STEPS + 40 + every


def test_the_same_rise_for_fifty_steps_is_none():
    assert harmful_from(noisy((1000, 1.0), (50, 1.5), (1000, 1.0))) == 0


def test_a_loss_that_wandered_before_may_wander_again():
    wave = 1 + 0.3 * np.sin(np.arange(6000) / 300)
    assert harmful_from(noisy((6000, 1.0), noise=0.15) * wave, 20) == 0


def test_before_500_losses_nobody_knows_how_a_loss_wanders():
    assert harmful_from(noisy((300, 1.0), (200, 1.5))) == 0


def test_an_explosion_that_goes_on_and_harms_nothing_stays_info_however_long_it_lasts():
    run = Run().train(300).explode().train(200)
    assert run.severities == [("explosion", "info")]
    assert run.now - run.seen_at["explosion"] > LOST_SECONDS


@pytest.mark.parametrize(
    ("verdict", "severity"), [("clip", "info"), ("skip", "info"), ("zero", "info"), ("pass", "warning")]
)
def test_without_a_loss_it_counts_whether_the_step_reached_the_weights(verdict, severity):
    run = Run().train(100, None).explode(None, verdict)
    run.look()
    assert run.severities == [("explosion", severity)]
    assert "The loss is not known" in run.told[0].message


def test_without_a_loss_an_explosion_that_lasts_is_a_ticket_and_then_a_page():
    run = Run().train(100, None).explode(None).train(BACK_STEPS + 10, None, seconds=0.1)
    assert run.severities == [("explosion", "info"), ("explosion", "warning")]
    run.train(10, None, seconds=2 * LOST_SECONDS)
    assert run.severities[-1] == ("explosion", "critical")


def test_a_loss_that_is_nan_is_a_page_of_its_own_and_one_story():
    run = Run().train(300)
    run.monitor.begin("nonfinite", math.nan, verdict="zero")
    run.train(STREAK_STEPS + 10, None, norm=math.nan, applied=0.0, verdict="zero")
    assert [told for told in run.severities if told[1] != "info"] == [("loss_nonfinite", "critical")]
    assert "No finite loss for" in run.told[-1].message
    run.train(20)
    assert run.told[-1].kind == "loss_nonfinite"
    assert run.told[-1].phase == "resolved"


def test_a_nan_gradient_of_a_finite_loss_is_a_page_about_the_gradients():
    run = Run().train(300)
    run.monitor.begin("nonfinite", math.nan, verdict="zero", loss=1.0)
    run.train(STREAK_STEPS + 10, norm=math.nan, applied=0.0, verdict="zero")
    assert run.severities[-1] == ("nonfinite", "critical")
    assert run.reading.harm.wasted_steps["nonfinite"] == STREAK_STEPS + 11


def test_a_loss_that_climbs_without_an_anomaly_of_the_gradients_is_a_ticket():
    run = Run().train(400)
    for i in range(80):
        run.train(10, 1.0 + 0.01 * i)
    assert run.severities == [("loss_rising", "warning")]


def test_other_data_are_the_new_normal_once_the_loss_has_settled():
    run = Run(every=50).train(400).train(SETTLED_STEPS + 100, 1.5)
    assert run.severities == [("loss_rising", "warning")]
    assert run.told[-1].phase == "resolved"


def test_a_run_that_gets_nowhere_is_a_ticket():
    run = Run(every=100).train(PROGRESS_STEPS + 300)
    assert run.severities == [("no_progress", "warning")]
    assert "at first" in run.told[0].message


def test_a_run_that_learns_and_one_that_has_converged_are_left_in_peace():
    run = Run(every=100)
    for i in range(40):
        run.train(100, 1.0 + 4.0 * math.exp(-i / 8))
    assert run.told == []


def test_more_steps_than_the_history_holds_are_counted_all_the_same():
    run = Run(every=10_000).train(300)
    for _ in range(1500):
        run.monitor.step(loss=run.loss(1.0))
    for _ in range(7):
        run.monitor.step(math.nan, 0.0, "zero", loss=1.0)
    for _ in range(1400):
        run.monitor.step(loss=run.loss(1.0))
    run.look()
    harm = run.reading.harm
    assert harm.wasted_steps == {"nonfinite": 7, "skipped": 0, "harmful": 0}
    assert harm.useful_steps == 300 + 1500 + 1400


def test_a_skipped_step_is_wasted():
    run = Run().train(300).explode(verdict="skip").calm().train(50)
    assert run.reading.harm.wasted_steps == {"nonfinite": 0, "skipped": 1, "harmful": 0}
    assert run.severities == [("explosion", "info")]


def test_useful_and_wasted_steps_only_go_up():
    run, before = Run(), (0, 0)
    rng = np.random.default_rng(3)
    for _ in range(300):
        run.train(int(rng.integers(1, 30)), float(rng.choice([1.0, 1.0, 1.0, 2.5])), seconds=1.0)
        if rng.random() < 0.1:
            run.explode().calm()
        harm = run.reading.harm
        now = harm.useful_steps, sum(harm.wasted_steps.values())
        assert now[0] >= before[0]
        assert now[1] >= before[1]
        assert sum(now) <= run.monitor.state.steps
        before = now


def test_a_restored_run_is_judged_from_there_on_and_keeps_its_counts():
    run = Run().train(300).explode().calm().train(80, 2.0)
    counted = run.reading.harm.wasted_steps
    run.watch.rebase(run.monitor.snapshot())
    assert run.watch.harm.episodes == {}
    assert run.watch.harm.wasted_steps == counted
    run.train(50, 2.0)
    assert run.watch.harm.episodes == {}, "the loss of now is its normal one"


def test_each_kind_of_the_loss_has_a_title_and_advice():
    from gradwatch.reading import wording

    for kind in LOSS_KINDS:
        assert wording.title(kind, 1.0) != kind
        assert wording.advice(kind, 1.0, None, probing=False, lasting=False, from_way="")
