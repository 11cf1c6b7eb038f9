"""What is kept of the steps around which trouble began, so that a verdict stays the same while it lasts."""

from __future__ import annotations

from dataclasses import replace

import made_runs as runs
import numpy as np
import pytest
from telemetry.fake import snapshot

import gradwatch
from gradwatch.core.snapshot import Event
from gradwatch.diagnosis.observation import of_reading
from gradwatch.diagnosis.opening import CALM, Opening

AT, STEPS, WINDOW = 752, 5000, 1024  # AT is the step at which the rate jumps
FACTS = {"precision": "float32", "variables": runs.VARIABLES}


def jumped(nonfinite=False, back=STEPS):
    """A run whose rate jumps at step 752; its norms and losses are large from the step after it up to step `back`."""
    columns = runs.healthy(STEPS)
    columns["learning_rate"][AT - 1 : back] *= 20
    columns["reach"][AT - 1 : back] /= 20
    columns["norm"][AT:back] *= 30
    columns["loss"][AT:back] *= 30
    if nonfinite:
        columns["norm"][AT + 6 : back] = columns["loss"][AT + 6 : back] = np.nan
    return columns


def seen(columns, at):
    """(snapshot, history) of a monitor after step `at`, as a device that knows its last 1,024 steps would say it."""
    rows = slice(max(0, at - WINDOW), at)
    history = {name: column[rows] for name, column in columns.items()}
    history |= {"step": np.arange(1, STEPS + 1)[rows], "verdict": np.zeros(len(history["norm"]), np.int32)}
    broken = np.flatnonzero(np.isfinite(columns["norm"][:at]))
    events = dict.fromkeys(("nonfinite", "explosion", "saturated", "vanishing", "trend"))
    if at > AT:
        events["explosion"] = Event("explosion", AT + 1, 30.0, 5.0, {"one/kernel": 1.0})
    streak = at - 1 - int(broken[-1])
    if streak:
        events["nonfinite"] = Event("nonfinite", AT + 7, np.nan, np.inf, {"one/kernel": 1.0}, AT + 1)
    active = {kind: kind == "nonfinite" and streak > 0 for kind in events}
    return snapshot("run", steps=at, nonfinite_streak=streak, last_events=events, active=active), history


def verdict(opening, columns, at):
    now, history = seen(columns, at)
    opening.look(now, history)
    return gradwatch.diagnose(opening.joined(of_reading(now, history, FACTS)))


@pytest.mark.parametrize("nonfinite", [False, True])
def test_the_verdict_stays_what_it_was_while_the_trouble_lasts(nonfinite):
    columns, opening = jumped(nonfinite), Opening()
    for at in range(100, STEPS, 300):
        found = verdict(opening, columns, at)
        assert (found.kind, found.first_step) == (("healthy", None) if at < AT else ("rate_jump", AT)), (at, str(found))
        if nonfinite and at > AT + 20:
            assert found.nonfinite_since == AT + 7
            assert f"Restore a checkpoint from before step {AT}" in found.next


def test_a_monitor_that_nobody_looked_at_then_says_that_it_did_not_see_the_beginning():
    for at in (2500, 4000):
        found = verdict(Opening(), jumped(nonfinite=True), at)
        assert (found.kind, found.first_step, found.nonfinite_since) == ("unseen", AT + 1, AT + 7)
        assert found.confidence < 0.7  # a ladder does not act on it
        assert f"only steps {at - 1023} to {at} are known" in found.why


def test_trouble_that_is_over_is_forgotten_and_the_next_one_is_told():
    columns, opening = jumped(back=1200), Opening()
    columns["loss"][4000:] += 2.5
    columns["norm"][4000:] *= 3
    found = {at: verdict(opening, columns, at) for at in range(100, STEPS + 1, 100)}
    assert found[1100].kind == "rate_jump"
    assert found[3000].healthy, str(found[3000])
    assert (found[4200].kind, found[4200].first_step) == ("corrupt_labels", 4001), str(found[4200])


def test_a_run_that_begins_anew_keeps_nothing_of_the_one_before():
    opening, calm = Opening(), runs.healthy(STEPS)
    assert verdict(opening, jumped(), 1500).kind == "rate_jump"
    history = seen(calm, 1500)[1]  # as many steps as the run before
    quiet = snapshot("run", steps=1500)
    opening.look(quiet, history)
    assert gradwatch.diagnose(opening.joined(of_reading(quiet, history, FACTS))).healthy


@pytest.mark.parametrize("learned", [True, False])
def test_layers_without_a_gradient_are_no_trouble_in_a_run_that_has_converged(learned):
    columns, opening = runs.healthy(STEPS), Opening()
    columns["loss"] = np.exp(0.1 * np.random.default_rng(5).normal(size=STEPS))
    if learned:
        columns["loss"][:100] *= 10

    def at(step):
        quiet, history = seen(columns, min(step, AT))[0], seen(columns, step)[1]
        quiet = replace(
            quiet,
            steps=step,
            layer_norms={"one/kernel": 1e-4, "head/kernel": 1.0},
            layer_weight_norms={"one/kernel": 4.0, "head/kernel": 4.0},
            last_events={**quiet.last_events, "vanishing": Event("vanishing", 4900, 1e-3, 0.1, {"one/kernel": 1.0})},
        )
        opening.look(quiet, history)
        found = of_reading(quiet, history, FACTS)
        return gradwatch.diagnose(replace(opening.joined(found), usual={"one/kernel": 1e-4, "head/kernel": 1.0}))

    at(200)
    assert at(STEPS).kind == ("healthy" if learned else "vanishing")


def test_what_is_kept_does_not_grow_with_the_run():
    columns, opening = jumped(), Opening()
    for at in range(100, STEPS, 50):
        opening.look(*seen(columns, at))
    now, history = seen(columns, STEPS)
    joined = opening.joined(of_reading(now, history, FACTS))
    assert len(joined) <= WINDOW + WINDOW + 512
    assert np.all(np.diff(joined.step) > 0)
    assert CALM < WINDOW  # the end of trouble must be seen in one window
