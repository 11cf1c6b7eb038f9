"""`gradwatch.diagnose`: the answer and its form."""

from __future__ import annotations

import json

import numpy as np
import pytest

import gradwatch
from gradwatch.core.snapshot import Event
from gradwatch.diagnosis.causes import KINDS
from gradwatch.diagnosis.observation import Observation, focus


def observation(norms, events=(), **columns):
    n = len(norms)
    found = {"norm": np.asarray(norms, float), "verdict": np.zeros(n, np.int8)}
    found.update({name: np.broadcast_to(np.asarray(x, float), (n,)) for name, x in columns.items()})
    return Observation(step=np.arange(1, n + 1), columns=found, events=tuple(events))


def test_a_calm_run_is_called_healthy_in_as_plain_words_as_a_fault():
    found = gradwatch.diagnose(observation(np.random.default_rng(0).lognormal(0, 0.1, 200)))
    assert found.healthy
    assert found.first_step is None
    assert found.causes[0].kind == "healthy"
    assert str(found).splitlines()[0] == f"Verdict: {found.verdict}"
    assert [line.split(":")[0] for line in str(found).splitlines()] == ["Verdict", "Why", "Next"]


def test_a_diagnosis_is_json_for_scripts():
    norms = np.ones(100)
    norms[60] = np.nan
    found = gradwatch.diagnose(observation(norms, [Event("nonfinite", 61, np.nan, np.inf, {"w": 1.0})]))
    told = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert set(told) == {"verdict", "why", "next", "first_step", "outcome", "nonfinite_since", "causes"}
    assert told["first_step"] == 61
    assert set(told["causes"][0]) == {"kind", "confidence", "evidence", "advice", "runbook"}
    assert all(cause["kind"] in KINDS for cause in told["causes"])


def test_what_is_neither_a_monitor_nor_a_run_is_refused_in_words_that_help():
    with pytest.raises(gradwatch.errors.ConfigError, match=r"step\.monitor"):
        gradwatch.diagnose([1.0, 2.0])


def test_of_a_long_run_the_steps_around_the_first_event_are_judged():
    norms = np.random.default_rng(0).lognormal(0, 0.1, 200_000)
    norms[150_000] = np.nan
    run = observation(norms, [Event("nonfinite", 150_001, np.nan, np.inf, {"w": 1.0})], input_rms=1.0, loss=1.0)
    assert len(focus(run)) <= 4096
    found = gradwatch.diagnose(run)
    assert (found.kind, found.first_step) == ("loss_operation", 150_001)


def test_of_a_long_run_without_events_the_whole_is_judged():
    loss = np.linspace(5, 1, 200_000) + np.random.default_rng(0).normal(size=200_000)
    run = observation(np.ones(200_000), loss=loss, update_ratio=0.004)
    assert len(focus(run)) <= 4096
    found = gradwatch.diagnose(run)
    assert found.healthy
    assert "The loss fell from 4.5" in found.why
