"""What would have been right for a run: a constant clip_norm, a learning rate, and why."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from gradwatch.core.policies import auto
from gradwatch.core.snapshot import KINDS
from gradwatch.diagnosis.verdict import Diagnosis
from gradwatch.errors import RecordError
from gradwatch.report.facts import number
from gradwatch.report.material import verdict_of

#: Of the median of the calm norms: no step should reach far beyond the usual one. The same as `auto`'s.
FACTOR = 2.0
#: Of the reach: a share of their length by which the weights may move. Between the two ends of `auto`'s, 0.1 and 0.03.
SHARE = 0.05
#: Steps around an anomaly that are not calm.
_BEFORE, _AFTER = 20, 50
#: Update ratios of a healthy run lie between these two; 0.001 is usual.
SMALL_UPDATE, LARGE_UPDATE = 1e-4, 1e-2
_USUAL_UPDATE = 1e-3
_FIRST_NORMS = 10
_ABOUT_RATES = ("learning_rate_too_high", "warmup_too_short", "rate_jump")


@dataclass(frozen=True)
class Suggestion:
    """What would have fitted a run.

    Attributes:
      clip_norm: the constant; None where no step was calm.
      clip_why: the numbers that it comes from.
      would_clip: share of the calm steps that it would have clipped, in [0, 1]; None as clip_norm.
      learning_rate: None where it is not known which one the run had.
      rate_was: the largest one of the run; None where it is not known.
      rate_why: the numbers that it comes from.
      diagnosis: the verdict of the run; None where it could not be given.
    """

    clip_norm: float | None
    clip_why: str
    would_clip: float | None
    learning_rate: float | None
    rate_was: float | None
    rate_why: str
    diagnosis: Diagnosis | None

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON types."""
        told = None if self.diagnosis is None else self.diagnosis.to_dict()
        return {**{k: v for k, v in asdict(self).items() if k != "diagnosis"}, "diagnosis": told}


def of(run: Any) -> Suggestion:
    """What would have fitted a `Run`.

    Raises:
      RecordError: the record cannot be read, or holds no step.
    """
    rows = run.steps
    rows = {name: column[rows["verdict"] != "gap"] for name, column in rows.items()}
    if not len(rows["step"]):
        raise RecordError(f"{run.path} holds no step yet; a suggestion needs some")
    diagnosis = verdict_of(run)
    calm = _calm(rows, run.events)
    clip_norm, clip_why = _clip_norm(rows, calm)
    would = None if clip_norm is None else float(np.mean(rows["norm"][calm] > clip_norm))
    rate, was, rate_why = _rate(rows, calm, diagnosis)
    return Suggestion(clip_norm, clip_why, would, rate, was, rate_why, diagnosis)


def _calm(rows: dict[str, np.ndarray], events: dict[str, np.ndarray]) -> np.ndarray:
    """Where the norm was finite, above zero, and no anomaly of too large gradients was near."""
    steps, norms = rows["step"], rows["norm"]
    calm = np.isfinite(norms) & (norms > 0)
    for kind, step in zip(events["kind"].tolist(), events["step"].tolist()):
        if kind in KINDS and kind != "vanishing":
            calm &= (steps < step - _BEFORE) | (steps > step + _AFTER)
    over = norms > rows["threshold"]  # an alarm that went on
    return np.asarray(calm & ~over)


def _clip_norm(rows: dict[str, np.ndarray], calm: np.ndarray) -> tuple[float | None, str]:
    norms = rows["norm"][calm]
    if not len(norms):
        return None, "No step was calm, so that nothing can be said of a usual norm."
    median = float(np.median(norms))
    quantile = FACTOR * median
    why = f"Twice the median norm of the {len(norms):,} calm steps, {number(median)}, is {number(quantile)}"
    reach = rows["reach"][calm]
    linear = reach[np.isfinite(reach) & (reach > 0)]
    if len(linear):
        bound = SHARE * float(np.median(linear))
        said = (
            f"A norm of {number(bound)}, sustained, moves the weights by {SHARE:.0%} of their length in a step, which "
            "is as far as a step may go"
        )
        smaller = "the smaller" if bound < quantile else "the larger, so that the usual norm decides"
        return min(bound, quantile), f"{why}. {said}; it is {smaller}."
    if len(reach) and np.isinf(reach).any():
        first = rows["norm"][np.isfinite(rows["norm"])][:_FIRST_NORMS]
        bound = auto().first * float(np.median(first))
        return min(bound, quantile), (
            f"{why}. The optimizer divides by its own second moment, in which the first norms stay for a thousand "
            f"steps: {auto().first:g} of their median is {number(bound)}. The smaller of the two counts."
        )
    return quantile, f"{why}; how far such a step carries the weights is not known of this run."


def _rate(
    rows: dict[str, np.ndarray], calm: np.ndarray, diagnosis: Diagnosis | None
) -> tuple[float | None, float | None, str]:
    rates = rows["learning_rate"][np.isfinite(rows["learning_rate"])]
    if not len(rates):
        return None, None, "The record does not say the run's learning rate."
    was = float(rates.max())
    calm_rates = rows["learning_rate"][calm]
    calm_rates = calm_rates[np.isfinite(calm_rates)]
    usual_rate = float(np.median(calm_rates)) if len(calm_rates) else was
    if diagnosis is not None and diagnosis.kind in _ABOUT_RATES:
        named = re.search(r"\b(?:try|learning rate of) (\d[\d.]*(?:e[+-]?\d+)?)", diagnosis.causes[0].advice)
        if named:
            return float(named[1].rstrip(".")), was, diagnosis.why
    reach = rows["reach"][calm]
    linear = np.isfinite(reach) & (reach > 0)
    if linear.any():
        share = float(np.median(rows["norm"][calm][linear] / reach[linear]))
        if share > SHARE:
            return (
                _round(usual_rate * SHARE / share),
                was,
                (
                    f"The usual gradient, sustained, would move the weights by {share:.1%} of their length in a step; "
                    f"at this rate it is {SHARE:.0%}."
                ),
            )
    ratios = rows["update_ratio"][calm]
    ratios = ratios[np.isfinite(ratios) & (ratios > 0)]
    if not len(ratios):
        return was, was, "The update ratio is not known, so that nothing speaks against the rate that the run had."
    usual = float(np.median(ratios))
    moved = f"In a calm step the weights moved by {usual:.2g} of their length"
    if usual > LARGE_UPDATE:
        return _round(usual_rate * LARGE_UPDATE / usual), was, f"{moved}, which is more than {LARGE_UPDATE:g}."
    if diagnosis is not None and diagnosis.kind in _ABOUT_RATES:
        return _round(was / 3), was, f"{diagnosis.why} {moved}; a third of the rate is a usual next try."
    if usual < SMALL_UPDATE:
        more = min(10.0, _USUAL_UPDATE / usual)
        return (
            _round(usual_rate * more),
            was,
            f"{moved}, which is less than {SMALL_UPDATE:g}: the run could learn faster.",
        )
    return was, was, f"{moved}, which is usual (between {SMALL_UPDATE:g} and {LARGE_UPDATE:g})."


def _round(rate: float) -> float:
    """Two digits: more would promise what nobody knows."""
    return float(f"{rate:.2g}") if math.isfinite(rate) and rate > 0 else rate


def text(found: Suggestion) -> str:
    """The answer for a terminal."""
    if found.clip_norm is None:
        lines = ["clip_norm      none"]
    else:
        share = f"{found.would_clip:.1%} of the calm steps"
        lines = [f"clip_norm      {number(found.clip_norm)}, which would have clipped {share}"]
    lines.append(f"               {found.clip_why}")
    if found.learning_rate is None:
        lines.append("learning rate  not known")
    elif found.learning_rate == found.rate_was:
        lines.append(f"learning rate  {number(found.learning_rate)}, as it was")
    else:
        lines.append(f"learning rate  {number(found.learning_rate)}, it was {number(found.rate_was)}")
    lines.append(f"               {found.rate_why}")
    lines.append("No constant is right at two learning rates: policies.auto finds the bound while the run goes on.")
    if found.diagnosis is not None:
        lines.append(f"Verdict: {found.diagnosis.verdict}")
    return "\n".join(lines)
