"""What speaks for one cause, and how single signs are put together."""

from __future__ import annotations

import math
from typing import NamedTuple


class Case(NamedTuple):
    """What speaks for a cause.

    Attributes:
      confidence: in [0, 1].
      sentences: the evidence in numbers, the strongest first.
      step: the first step that it explains, as the run counts them.
      advice: better than the table's, with a number; "" for the table's.
      verdict: better than the table's; "" for the table's.
    """

    confidence: float
    sentences: tuple[str, ...]
    step: int | None = None
    advice: str = ""
    verdict: str = ""


def above(x: float, middle: float, sharpness: float = 2.0) -> float:
    """How far x is above `middle` > 0, in [0, 1]: 1 / (1 + (middle / x)^sharpness), 0.5 at the middle; 0 for NaN."""
    if not x > 0:  # NaN too
        return 0.0
    if math.isinf(x):
        return 1.0
    return 1.0 / (1.0 + math.exp(-min(max(sharpness * math.log(x / middle), -60.0), 60.0)))


def both(*signs: float) -> float:
    """That all of them hold, in [0, 1]: the geometric mean, so that one that fails decides."""
    return math.prod(signs) ** (1.0 / len(signs)) if min(signs) > 0 else 0.0


def steps_text(count: int) -> str:
    return f"{count} step{'' if count == 1 else 's'}"


def others_text(count: int) -> str:
    """How many steps are like the one that was named, the named one counted."""
    return "" if count == 1 else f", and so does that of {steps_text(count - 1)} more"


def number_text(x: float) -> str:
    """Two digits, without an exponent where a person would write none: 150, 0.033, 2e+06."""
    return f"{float(f'{x:.2g}'):g}"
