"""The one table of causes: what each predicts for the numbers of a run, and what to do about it.

A further cause is a row here and a fault in `benchmarks/diagnosis.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from gradwatch.diagnosis.signs import Signs


class Case(NamedTuple):
    """What speaks for a cause: how strongly, in [0, 1], in which sentences, and an advice better than the row's."""

    confidence: float
    sentences: tuple[str, ...]
    advice: str = ""


class Row(NamedTuple):
    """A cause. `evidence` gives None where nothing speaks for it."""

    kind: str
    evidence: Callable[[Signs], Case | None]
    verdict: str
    advice: str


def _learning_rate_too_high(signs: Signs) -> Case | None:
    step = signs.first_event("trend") or signs.first_event("explosion")
    if step is None:
        return None
    at = int(np.searchsorted(signs.run.step, step))
    before, now = signs.run["norm"][max(0, at - 1)], signs.run["norm"][min(at, len(signs.run) - 1)]
    confidence = 0.6 if signs.first_event("trend") else 0.55
    return Case(confidence, (f"The norm grew from {before:.3g} to {now:.3g} at step {step}.",))


def _loss_operation(signs: Signs) -> Case | None:
    if not len(signs.broken):
        return None
    return Case(0.8, (f"The gradient was NaN or Inf in {len(signs.broken)} steps.",))


def _vanishing(signs: Signs) -> Case | None:
    step = signs.first_event("vanishing")
    return None if step is None else Case(0.7, (f"The gradients vanished at step {step}.",))


def _healthy(signs: Signs) -> Case | None:
    return Case(1.0, (f"Nothing stood out in {len(signs.run)} steps.",))


CAUSES = (
    Row(
        "learning_rate_too_high", _learning_rate_too_high, "The learning rate is too high.", "Lower the learning rate."
    ),
    Row(
        "loss_operation",
        _loss_operation,
        "An operation of the loss has no finite gradient.",
        "Look for a log, a square root or a division by zero in the loss.",
    ),
    Row("vanishing", _vanishing, "The gradients of some layers vanish.", "Look at these layers' activations."),
)
HEALTHY = Row("healthy", _healthy, "The run is healthy.", "Nothing needs to be done.")

#: Every kind of cause.
KINDS = (*(row.kind for row in CAUSES), HEALTHY.kind)
