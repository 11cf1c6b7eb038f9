"""What became of a run: the word is told from runs whose loss is known to have gone and come back."""

from __future__ import annotations

import made_runs as runs
import numpy as np
import pytest

import gradwatch

AT, STEPS = 300, 800


def told(change, kind="explosion"):
    columns = runs.healthy(STEPS)
    change(columns)
    return gradwatch.diagnose(runs.observation(columns, events=[runs.event(kind, AT + 1)] if kind else ()))


def spike(columns):
    columns["norm"][AT] *= 50


def away(columns):
    spike(columns)
    columns["loss"][AT : AT + 60] *= 20


def worse(columns):
    spike(columns)
    columns["loss"][AT:] *= 4


def no_better_than_at_the_start(columns):
    spike(columns)
    columns["loss"][AT:] += 3.0


def nothing_finite_for_a_while(columns):
    columns["norm"][AT : AT + 40] = columns["loss"][AT : AT + 40] = np.nan


def nothing_finite_any_more(columns):
    columns["norm"][AT:] = columns["loss"][AT:] = np.nan


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (spike, "survived"),
        (away, "healed"),
        (worse, "harmed"),
        (no_better_than_at_the_start, "lost"),
        (nothing_finite_for_a_while, "healed"),
        (nothing_finite_any_more, "lost"),
    ],
)
def test_the_outcome_is_what_the_loss_did_after_the_trouble(change, word):
    assert told(change).outcome == word


def test_a_run_without_trouble_and_one_whose_loss_is_not_known_have_no_outcome():
    assert told(lambda columns: None, "").outcome == ""
    assert told(lambda columns: columns.pop("loss")).outcome == ""


def test_a_loss_that_is_nan_while_its_gradient_is_finite_is_only_not_known():
    def silent(columns):
        columns["loss"][AT:] = np.nan

    found = told(silent, "")
    assert (found.outcome, found.nonfinite_since) == ("", None)


def test_a_loss_scale_that_looks_for_its_value_has_more_time():
    def scaling(steps):
        def change(columns):
            columns["loss_scale"] = np.full(STEPS, 2.0**15)
            columns["norm"][-steps:] = columns["loss"][-steps:] = np.nan

        return change

    assert told(scaling(30)).nonfinite_since is None
    assert told(scaling(60)).nonfinite_since == STEPS - 59


@pytest.mark.parametrize(("end", "word", "since"), [(8000, "healed", None), (20_000, "lost", 5001)])
def test_of_a_long_run_the_very_end_counts(end, word, since):
    columns = runs.healthy(20_000)
    columns["norm"][5000:end] = columns["loss"][5000:end] = np.nan
    found = gradwatch.diagnose(runs.observation(columns, events=[runs.event("nonfinite", 5001, np.nan)]))
    assert (found.first_step, found.outcome, found.nonfinite_since) == (5001, word, since)


def test_of_several_troubles_the_newest_that_did_not_heal_is_told():
    columns = runs.healthy(20_000)
    columns["learning_rate"][3000:3100] *= 20
    columns["norm"][3001:3100] *= 20
    columns["loss"][3001:3100] *= 20
    columns["norm"][15_000:] = np.nan
    events = [runs.event("explosion", 3002), runs.event("nonfinite", 15_001, np.nan)]
    found = gradwatch.diagnose(runs.observation(columns, events=events))
    assert (found.kind, found.first_step) == ("loss_operation", 15_001), str(found)
