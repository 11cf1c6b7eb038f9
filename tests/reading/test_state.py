"""The state of a run in a word: the worst that is true is said."""

from __future__ import annotations

import pytest

from gradwatch.reading.state import state_of

CALM = {"steps": 100, "running": True, "warmup": False, "active": {}, "idle_seconds": 1.0}


@pytest.mark.parametrize(
    ("change", "word", "tone"),
    [
        ({}, "healthy", "ok"),
        ({"steps": 0}, "waiting for the first step", "info"),
        ({"running": False, "active": {"explosion": True}}, "ended", "info"),
        ({"active": {"explosion": True, "nonfinite": True}}, "NaN or Inf", "critical"),
        ({"active": {"explosion": True, "trend": True}, "warmup": True}, "exploding", "critical"),
        ({"active": {"vanishing": True}}, "vanishing", "warning"),
        ({"active": {"trend": True}}, "growing", "warning"),
        ({"idle_seconds": 599.0}, "healthy", "ok"),
        ({"idle_seconds": 601.0, "warmup": True}, "no step for 601 s", "warning"),
        ({"warmup": True}, "warming up", "info"),
    ],
)
def test_the_worst_that_is_true_is_the_state(change, word, tone):
    assert state_of(**{**CALM, **change}) == (word, tone)
