"""What the guard counts: steps and what became of them, and the histogram of norms.

A float32 counts to 2^24 and then sticks, so a counter is two limbs; the low one carries at `LIMB`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from gradwatch.core.norms import Norms
from gradwatch.core.snapshot import KINDS
from gradwatch.core.xp import Array, Namespace

LIMB = float(1 << 20)

#: Upper bounds of the norm histogram: three per decade from 1e-8 to 1e8, rounded to two digits.
BOUNDS = tuple(float(f"{10 ** (k / 3):.1e}") for k in range(-24, 25))

#: What a step can be, each 1.0 or 0.0 in it.
FLAGS = (
    *("steps", "finite", "clipped", "nonfinite", "skipped_nonfinite", "skipped_explosion"),
    *(f"episodes_{kind}" for kind in KINDS),
    *(f"steps_{kind}" for kind in KINDS),
)
COUNTERS = (*FLAGS, *(f"bound_{i}" for i in range(len(BOUNDS))))

State = Mapping[str, Array]


def init() -> dict[str, np.ndarray]:
    """All at zero; shape [len(COUNTERS)] each."""
    return {limb: np.zeros(len(COUNTERS), np.float32) for limb in ("low", "high")}


def update(xp: Namespace, count: State, flags: Mapping[str, Array], now: Norms) -> dict[str, Array]:
    """The counters after the step: the flags and the histogram, which is cumulative as Prometheus wants it."""
    inside = xp.where(now.finite & (now.total <= np.asarray(BOUNDS, np.float32)), 1.0, 0.0)
    low = count["low"] + xp.concat([xp.stack([flags[name] for name in FLAGS]), inside])
    carry = xp.where(low >= LIMB, 1.0, 0.0)
    return {"low": low - carry * LIMB, "high": count["high"] + carry}


def about(count: State, name: str) -> Array:
    """A counter as one float32: good enough for a rate, not for a report."""
    i = COUNTERS.index(name)
    return count["low"][i] + count["high"][i] * LIMB


def limbs(count: Mapping[str, Any], name: str) -> tuple[float, float]:
    """A counter as its two limbs, the low one first; numpy only."""
    i = COUNTERS.index(name)
    return float(count["low"][i]), float(count["high"][i])


def exact(count: Mapping[str, Any]) -> dict[str, int]:
    """Every counter by name, as whole numbers; numpy only."""
    return {name: whole(count["low"][i], count["high"][i]) for i, name in enumerate(COUNTERS)}


def whole(low: Any, high: Any) -> int:
    """Two limbs as one number."""
    return int(low) + int(high) * int(LIMB)
