"""What the detectors say of a step, by kind of anomaly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from gradwatch.core.detectors import Detector
from gradwatch.core.norms import Norms
from gradwatch.core.snapshot import KINDS
from gradwatch.core.xp import LARGEST, Array, Namespace


class Findings(NamedTuple):
    """Each a number of shape () for a kind.

    Attributes:
      alarms: 1.0 or 0.0.
      thresholds: the norm beyond which it alarms; `LARGEST` (vanishing: 0) where there is none.
      scores: the largest of its detectors' statistics; 0 for "explosion" without a detector.
      warmup: 1.0 while a detector of explosions still gathers statistics.
    """

    alarms: dict[str, Array]
    thresholds: dict[str, Array]
    scores: dict[str, Array]
    warmup: Array


def init(detectors: Sequence[Detector], num_variables: int) -> dict[str, Any]:
    """The detectors' states before the first step."""
    return {_key(i, detector): detector.init(num_variables) for i, detector in enumerate(detectors)}


def update(
    xp: Namespace, detectors: Sequence[Detector], state: Mapping[str, Any], now: Norms
) -> tuple[dict[str, Any], Findings]:
    """Ask every detector; several of one kind alarm together, and the nearest threshold is shown."""
    zero = now.total * 0.0
    new: dict[str, Any] = {}
    alarms = dict.fromkeys(KINDS, zero)
    thresholds = {kind: zero + (0.0 if kind == "vanishing" else LARGEST) for kind in KINDS}
    scores: dict[str, Array] = {}
    warmup = zero
    for i, detector in enumerate(detectors):
        key, kind = _key(i, detector), detector.kind
        new[key], alarm, info = detector.update(xp, state[key], now)
        alarms[kind] = xp.maximum(alarms[kind], xp.number(alarm))
        nearest = xp.maximum if kind == "vanishing" else xp.minimum
        thresholds[kind] = nearest(thresholds[kind], info["threshold"])
        scores[kind] = xp.maximum(scores.get(kind, info["score"]), info["score"])
        if kind == "explosion":
            # who does not say so warms up until there is a threshold
            waits = info["warmup"] if "warmup" in info else xp.where(info["threshold"] < LARGEST, 0.0, 1.0)
            warmup = xp.maximum(warmup, waits)
    scores.setdefault("explosion", zero)
    return new, Findings(alarms, thresholds, scores, warmup)


def _key(i: int, detector: Detector) -> str:
    return f"{i}_{detector.kind}"
