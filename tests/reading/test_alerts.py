"""Alerts: one for each episode, saying what happened, who caused it, what was done and what to look at."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import dataclass, replace

import pytest
from telemetry.fake import FakeMonitor

from gradwatch.core.snapshot import KINDS, Event
from gradwatch.diagnosis.verdict import Cause, Diagnosis
from gradwatch.reading.alerts import Alert, alerts_between
from gradwatch.reading.harm import HarmWatch
from gradwatch.reading.losses import LOST_SECONDS, SCALING_STREAK_STEPS, STREAK_STEPS
from gradwatch.reading.reading import Reading


def reading(monitor: FakeMonitor, at: float = 1000.0, began: dict[str, float] | None = None) -> Reading:
    times = dict.fromkeys(KINDS, 0.0) | (began or {})
    snapshot = replace(monitor.snapshot(), time=at)
    harm = monitor.__dict__.setdefault("harm", HarmWatch()).look(snapshot, FakeMonitor.history(monitor), times)
    return Reading(monitor.name, snapshot, run_id="id", last_anomaly_time=times, harm=harm)


def test_steps_without_an_anomaly_give_no_alert():
    monitor = FakeMonitor()
    before = reading(monitor)
    for _ in range(100):
        monitor.step()
    assert alerts_between(before, reading(monitor), monitor.history) == []


@pytest.mark.parametrize("kind", KINDS)
def test_an_episode_gives_one_alert_when_it_begins_and_one_when_it_is_over(kind):
    monitor = FakeMonitor()
    told = []
    before = reading(monitor)
    for happens in (monitor.step, lambda: monitor.begin(kind), monitor.step, monitor.step, lambda: monitor.end(kind)):
        happens()
        after = reading(monitor)
        told += alerts_between(before, after, monitor.history)
        before = after
    assert [(alert.kind, alert.phase) for alert in told] == [(kind, "fired"), (kind, "resolved")]


def test_an_alert_carries_the_step_norm_threshold_and_shares_of_its_event():
    monitor = FakeMonitor("generator")
    monitor.step()
    before = reading(monitor)
    monitor.begin("explosion", norm=60.0, threshold=4.0, kernel=0.8, bias=0.2)
    monitor.step()
    (alert,) = alerts_between(before, reading(monitor), monitor.history)
    assert (alert.monitor, alert.step, alert.norm, alert.threshold) == ("generator", 2, 60.0, 4.0)
    assert alert.shares == {"kernel": 0.8, "bias": 0.2}
    assert alert.severity == "info", "it was clipped, and nothing shows that it did any harm"
    assert alert.time == 1000.0
    assert alert.active


def test_the_message_says_what_where_who_what_was_done_and_what_next():
    monitor = FakeMonitor("generator")
    monitor.begin("explosion", norm=60.0, threshold=4.0, kernel=0.8, bias=0.2)
    (alert,) = alerts_between(None, reading(monitor), monitor.history)
    for part in (
        "explosion",
        "generator",
        "step 1",
        "norm 60",
        "threshold 4",
        "kernel (80%)",
        "and 1 more",
        "clipped the norm to 1",
        "Look at the batch of that step and at the learning rate",
    ):
        assert part in alert.message


@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        ("pass", "let the gradients through"),
        ("clip", "clipped the norm to 1"),
        ("zero", "set the gradients of that step to zero"),
        ("skip", "skipped the update"),
    ],
)
def test_what_gradwatch_did_is_read_from_the_history(verdict, words):
    monitor = FakeMonitor()
    monitor.begin("explosion", verdict=verdict)
    (alert,) = alerts_between(None, reading(monitor), monitor.history)
    assert words in alert.action
    assert words in alert.message


def test_what_was_done_stays_unsaid_when_the_history_has_forgotten_it():
    monitor = FakeMonitor()
    monitor.begin("explosion")
    for _ in range(1100):
        monitor.step()
    (alert,) = alerts_between(None, reading(monitor), monitor.history)
    assert alert.action == ""
    assert "gradwatch" not in alert.message.removeprefix("gradient explosion")


def test_an_episode_that_came_and_went_between_two_looks_says_so_and_is_not_resolved_later():
    monitor = FakeMonitor()
    before = reading(monitor)
    monitor.begin("explosion")
    monitor.end("explosion")
    after = reading(monitor)
    (alert,) = alerts_between(before, after, monitor.history)
    assert alert.phase == "fired"
    assert not alert.active
    assert "It was over by step 2" in alert.message
    assert alerts_between(after, reading(monitor), monitor.history) == []


def test_several_episodes_between_two_looks_are_one_alert_about_the_newest():
    monitor = FakeMonitor()
    before = reading(monitor)
    for _ in range(3):
        monitor.begin("explosion")
        monitor.end("explosion")
    (alert,) = alerts_between(before, reading(monitor), monitor.history)
    assert alert.episodes == 3
    assert alert.step == 5
    assert "3 episodes" in alert.message


def test_kinds_that_are_seen_at_one_look_are_told_in_the_order_of_their_steps():
    monitor = FakeMonitor()
    for kind in reversed(KINDS):
        monitor.begin(kind)
    told = alerts_between(None, reading(monitor), monitor.history)
    assert [alert.kind for alert in told] == list(reversed(KINDS))


def test_the_history_is_asked_only_when_an_episode_began():
    monitor = FakeMonitor()
    before = reading(monitor)
    monitor.step()
    monitor.history = lambda: pytest.fail("the history was read without need")
    alerts_between(before, reading(monitor), monitor.history)


def nan_steps(monitor: FakeMonitor, count: int) -> None:
    for _ in range(count):
        monitor.step(math.nan, 0.0, "zero")


def test_a_long_run_of_non_finite_steps_turns_critical_once():
    monitor = FakeMonitor()
    monitor.begin("nonfinite", math.nan, verdict="zero")
    states = [reading(monitor)]
    for _ in range(2 * STREAK_STEPS):
        nan_steps(monitor, 1)
        states.append(reading(monitor))
    told = [a for before, after in zip([None, *states], states) for a in alerts_between(before, after, None)]
    assert [alert.severity for alert in told] == ["info", "critical"]
    assert f"{STREAK_STEPS} steps without a finite gradient" in told[1].message


def test_a_loss_scale_that_probes_is_no_warning_but_one_that_collapses_is_critical():
    monitor = FakeMonitor(loss_scale=2.0**15)
    monitor.begin("nonfinite", math.inf, verdict="zero")
    before = reading(monitor)
    (probing,) = alerts_between(None, before, None)
    assert probing.severity == "info"
    assert "loss scale" in probing.message
    nan_steps(monitor, STREAK_STEPS)
    assert alerts_between(before, reading(monitor), None) == [], "a scale of 2**15 halves fifteen times"
    nan_steps(monitor, SCALING_STREAK_STEPS)
    (collapsed,) = alerts_between(before, reading(monitor), None)
    assert collapsed.severity == "critical"


@pytest.mark.parametrize(("kind", "first"), [("explosion", "info"), ("saturated", "warning")])
def test_an_explosion_that_lasts_turns_critical_once_where_the_loss_is_not_known(kind, first):
    monitor = FakeMonitor()
    monitor.begin(kind)
    began = {kind: 1000.0}
    states = [reading(monitor, 1000.0 + t, began) for t in (0, LOST_SECONDS - 1)]
    states += [reading(monitor, 1000.0 + LOST_SECONDS + t, began) for t in (0, 5)]
    told = [a for before, after in zip([None, *states], states) for a in alerts_between(before, after, None)]
    assert [alert.severity for alert in told] == [first, "critical"]


def test_only_the_top_variables_are_named_and_the_rest_is_counted():
    monitor = FakeMonitor()
    shares = {f"layer{i}": share for i, share in enumerate((0.3, 0.25, 0.2, 0.13, 0.12, *[0.0] * 15))}
    monitor.begin("explosion", **shares)
    (alert,) = alerts_between(None, reading(monitor), None)
    assert "layer0 (30%), layer1 (25%), layer2 (20%) and 2 more." in alert.message
    assert "layer3" not in alert.message


@pytest.mark.parametrize("row", [(0.6, 0.4), (0.9, 0.1), (0.5, 0.2, 0.1, 0.1, 0.1), (0.3, 0.3, 0.2, 0.2), (1.0,)])
def test_the_alert_names_the_culprits_of_its_event_and_nobody_else(row):
    monitor = FakeMonitor()
    monitor.begin("explosion", **{f"layer{i}": share for i, share in enumerate(row)})
    taken = reading(monitor)
    (alert,) = alerts_between(None, taken, None)
    event = Event("explosion", 1, 1.0, 1.0, {f"layer{i}": share for i, share in enumerate(row)})
    carried = alert.message.partition("Carried by ")[2]
    assert [name for name in event.shares if f"{name} (" in carried] == list(event.culprits)


def test_a_hostile_layer_name_stays_on_one_short_line():
    monitor = FakeMonitor()
    monitor.begin("explosion", **{"evil\r\nERROR fake line\x1b[31m" + "x" * 10_000: 1.0})
    (alert,) = alerts_between(None, reading(monitor), monitor.history)
    assert "\n" not in alert.message
    assert "\x1b" not in alert.message
    assert len(alert.message) < 1000


@pytest.mark.parametrize(("norm", "text"), [(math.nan, "NaN"), (math.inf, "Infinity"), (-math.inf, "-Infinity")])
def test_as_json_is_strict_json_even_without_a_finite_number(norm, text):
    alert = Alert("nonfinite", "run", 3, norm, math.inf, "message", "critical", 1000.0)
    again = json.loads(json.dumps(alert.as_json(), allow_nan=False))
    assert again["norm"] == text
    assert again["threshold"] == "Infinity"
    assert (again["kind"], again["step"], again["phase"]) == ("nonfinite", 3, "fired")


def alert_after(*events, **state):
    """The last alert that these calls on a monitor give, a look after each."""
    monitor, before, told = FakeMonitor(**state), None, []
    for event in events:
        event(monitor)
        after = reading(monitor)
        told += alerts_between(before, after, monitor.history)
        before = after
    return told[-1]


def test_a_nan_that_follows_an_explosion_says_so_and_names_nobody():
    @dataclass(frozen=True)
    class Following(Event):
        follows: int = 0

    event = Following("nonfinite", 206, math.nan, math.inf, {f"layer{i}": 1 / 25 for i in range(25)}, follows=203)
    monitor = FakeMonitor(steps=205)
    monitor.begin("nonfinite", math.nan, verdict="zero")
    monitor.state = replace(monitor.state, last_events={**monitor.state.last_events, "nonfinite": event})
    (alert,) = alerts_between(None, reading(monitor), monitor.history)
    assert "It follows the explosion at step 203: lower the learning rate." in alert.message
    assert "square root" not in alert.message
    assert "%" not in alert.message
    assert "layer" not in alert.message


def test_equal_shares_are_a_count():
    shares = {f"layer{i}": 1 / 25 for i in range(25)}
    alert = alert_after(lambda m: m.begin("nonfinite", math.nan, verdict="zero", **shares))
    assert "In all 25 variables." in alert.message
    assert "4%" not in alert.message
    some = {**dict.fromkeys(("a", "b"), 0.5), **dict.fromkeys(("c", "d"), 0.0)}
    alert = alert_after(lambda m: m.begin("nonfinite", math.nan, verdict="zero", **some))
    assert "In 2 of 4 variables: a, b." in alert.message


def test_shares_of_which_none_is_a_tenth_are_not_a_list():
    shares = {f"layer{i}": (0.05 if i == 7 else 0.95 / 39) for i in range(40)}
    alert = alert_after(lambda m: m.begin("explosion", **shares))
    assert "Spread over 40 variables; the largest share is 5% (layer7)." in alert.message


@pytest.mark.parametrize(
    ("norm", "title", "said"),
    [
        (2e38, "gradient overflow", "norm 2e+38, which overflows float32"),
        (math.inf, "Inf in the gradients", "norm inf"),
        (math.nan, "NaN or Inf in the gradients", "norm nan"),
    ],
)
def test_a_norm_too_large_for_float32_is_an_overflow_and_not_a_nan(norm, title, said):
    alert = alert_after(lambda m: m.begin("nonfinite", norm, math.inf, verdict="zero"))
    assert alert.message.startswith(f"{title} at step 1 of run: {said}")
    assert alert.title.startswith(f"{title} (run")
    assert ("learning rate" in alert.message) == (norm == 2e38)


def test_an_explosion_says_whether_the_norm_grew_or_jumped():
    grown = [lambda m, norm=2.0**k: m.step(norm) for k in range(5)]
    alert = alert_after(*grown, lambda m: m.begin("explosion", norm=32.0))
    assert "grew 32 times over 5 steps" in alert.message
    assert alert.advice == "Lower the learning rate."
    calm = [lambda m: m.step(1.0), lambda m: m.step(0.9)] * 3
    alert = alert_after(*calm, lambda m: m.begin("explosion", norm=90.0))
    assert "grew 100 times in one step" in alert.message
    assert alert.advice == "Look at the batch of that step."


def test_the_advice_is_given_once_in_a_run_and_again_when_it_turns_critical():
    monitor, before, advice, messages = FakeMonitor(), None, [], []
    for _ in range(4):
        monitor.begin("vanishing")
        monitor.end("vanishing")
        after = reading(monitor)
        (alert,) = alerts_between(before, after, monitor.history)
        advice.append(alert.advice)
        messages.append(alert.message)
        before = after
    assert "activations" in advice[0]
    assert advice[1:] == [""] * 3
    assert "Episode 4 of its kind in this run." in messages[3]
    monitor.begin("nonfinite", math.nan, verdict="zero")
    before = reading(monitor)
    nan_steps(monitor, STREAK_STEPS)
    (critical,) = alerts_between(before, reading(monitor), monitor.history)
    assert "checkpoint" in critical.advice


def test_the_title_names_the_run_where_it_has_a_name():
    alert = Alert("explosion", "default", 3, 9.0, 5.0, "message", "warning", 1000.0, run_name="lm-77")
    assert alert.title == "gradient explosion (default of lm-77)"
    assert alert.as_json()["run_name"] == "lm-77"


def test_alerts_of_one_look_come_by_step_and_say_the_verdict_once():
    monitor = FakeMonitor()
    for kind in ("trend", "explosion", "nonfinite"):
        monitor.begin(kind)
        monitor.step()
    cause = Cause("rate_jump", 0.9, ("The rate rose.",), "Lower the rate.", "diagnosis.md")
    diagnosis = Diagnosis((cause,), 3, "The learning rate jumped.", "The rate rose.", "Lower the rate.")
    found = alerts_between(None, reading(monitor), monitor.history, lambda: diagnosis)
    assert [alert.kind for alert in found] == ["trend", "explosion", "nonfinite"]
    assert [alert.step for alert in found] == [1, 3, 5]
    assert [alert.message.count("The learning rate jumped.") for alert in found] == [1, 0, 0]
    assert [alert.message.count("Lower the rate.") for alert in found] == [1, 0, 0]
    assert {alert.advice for alert in found} == {"Lower the rate."}, "each can be read alone"


@pytest.mark.parametrize(
    ("verdict", "title", "action"),
    [
        ("clip", "most of the gradients clipped away or zeroed", "clipped 13 and zeroed 4 of the last 20"),
        ("pass", "most of the gradients zeroed", "zeroed 4 of the last 20"),
    ],
)
def test_a_saturated_run_is_told_with_what_was_done_in_the_steps_before(verdict, title, action):
    monitor = FakeMonitor()
    for i in range(30):
        monitor.step(2.0, 0.1, "zero" if i < 24 and i % 3 == 0 else verdict if i % 3 else "pass")
    monitor.begin("saturated", verdict="pass")
    (alert,) = alerts_between(None, reading(monitor), monitor.history)
    assert alert.message.startswith(title)
    assert action in alert.message
    assert "let the gradients through unchanged" not in alert.message


def test_where_a_nan_is_in_some_variables_of_many_the_first_are_named():
    shares = {f"layer{i}": 0.2 if i < 5 else 0.0 for i in range(20)}
    monitor = FakeMonitor()
    monitor.begin("nonfinite", norm=math.nan, **shares)
    (alert,) = alerts_between(None, reading(monitor), None)
    assert "In 5 of 20 variables: layer0, layer1, layer2 and 2 more." in alert.message


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ({"reach": math.inf}, True),
        ({"reach": 4.0}, False),
        ({"reach": None}, False),
        ({"reach": math.inf, "limited_updates": 3}, False),
        ({"reach": math.inf, "recoveries": {"skip": 0}}, False),
    ],
    ids=["Adam", "SGD", "not known", "limited", "recovering"],
)
def test_harm_under_an_adaptive_optimizer_is_answered_by_what_bounds_its_steps(state, told):
    monitor = FakeMonitor(**state)
    monitor.begin("saturated")
    (alert,) = alerts_between(None, reading(monitor), monitor.history)
    assert alert.severity == "warning"
    for text in (alert.advice, alert.message):
        assert ("update_limit=0.05" in text and "recover=gradwatch.recovery.ladder()" in text) == told


def test_an_explosion_that_did_no_harm_needs_no_more_than_clipping():
    monitor = FakeMonitor(reach=math.inf)
    monitor.begin("explosion")
    (alert,) = alerts_between(None, reading(monitor), monitor.history)
    assert alert.severity == "info"
    assert "update_limit" not in alert.message


# -- from the monitor to the sinks and the log -----------------------------------------------------------


def test_alerts_reach_every_sink_from_a_thread_that_is_not_the_training(reader):
    import threading

    monitor = FakeMonitor()
    told = []
    monitor.alert_sinks += [lambda alert: told.append((alert.kind, threading.current_thread().name))] * 2
    reader.register(monitor)
    monitor.begin("explosion")
    reader.poll_now()
    assert [kind for kind, _ in told] == ["explosion", "explosion"]
    assert {thread for _, thread in told} == {"gradwatch-alerts"}


def test_a_sink_that_raises_is_counted_logged_once_and_keeps_nobody_from_hearing(reader, health, log):
    monitor = FakeMonitor()
    told = []

    def broken(alert):
        raise ValueError("no network")

    monitor.alert_sinks += [broken, told.append]
    before = health.internal_errors()["alerts"]
    reader.register(monitor)
    for _ in range(3):
        monitor.begin("explosion")
        reader.poll_now()
    assert len(told) == 3
    assert health.internal_errors()["alerts"] == before + 3
    assert len([r for r in log.records if "broken' raised" in r.message]) == 1


def test_a_sink_that_hangs_stops_neither_the_readings_nor_the_training(reader):
    import threading

    release = threading.Event()
    monitor = FakeMonitor()
    monitor.alert_sinks.append(lambda alert: release.wait(10))
    reader.register(monitor)
    monitor.begin("explosion")
    assert not reader.poll_now(timeout_seconds=0.2)
    monitor.step()
    reader.poll_now(timeout_seconds=0.2)
    assert reader.readings()[0].snapshot.steps == 2
    release.set()


def test_the_log_says_it_too(reader, log):
    monitor = FakeMonitor()
    reader.register(monitor)
    monitor.begin("explosion")
    reader.poll_now()
    monitor.end("explosion")
    reader.poll_now()
    levels = [(r.levelno, r.name) for r in log.records if "gradient explosion" in r.message]
    assert levels == [(logging.INFO, "gradwatch"), (logging.INFO, "gradwatch")], "it was clipped: nobody need look"


@pytest.mark.parametrize(("verdict", "level"), [("clip", logging.INFO), ("pass", logging.WARNING)])
def test_a_flapping_anomaly_is_logged_once_a_minute(reader, log, verdict, level):
    monitor = FakeMonitor()
    reader.register(monitor)
    for _ in range(20):
        monitor.begin("explosion", verdict=verdict)
        monitor.end("explosion")
        reader.poll_now()
    lines = [r for r in log.records if r.levelno >= logging.INFO and "gradient explosion" in r.message]
    assert [r.levelno for r in lines] == [level]


@pytest.mark.parametrize(
    ("missing", "says"),
    [
        (0, ""),
        (1234, "1,234 steps too short yet for its budget"),
        (None, "what the detector remembers never shows"),
    ],
)
def test_an_alert_says_when_the_budget_cannot_be_kept_yet_or_ever(missing, says):
    monitor = FakeMonitor()
    monitor.begin("explosion")
    now = reading(monitor)
    (alert,) = alerts_between(
        None, replace(now, snapshot=replace(now.snapshot, budget_steps_missing=missing)), monitor.history
    )
    assert says in alert.message
    assert ("more than promised" in alert.message) == bool(says)
