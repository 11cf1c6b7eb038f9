"""Detectors: is this step abnormal, judged from the steps before?

A detector is a pair of pure functions over explicit state, like a policy:

    init(num_variables) -> state
    update(xp, state, norms) -> (state, alarm, info)

`alarm` is a boolean of shape (); `info` holds "score" (the detector's statistic) and "threshold" (norm units). All work
on the logarithm of the global norm, so one setting fits every scale, and multiplying the gradients by a constant
multiplies the thresholds by it.

A detector is a value: it compares, copies and pickles by its arguments, its `repr` makes it again, and
`parse("spike(6)")` reads it from a text. That is why the classes are named like functions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from gradwatch.core import values
from gradwatch.core.detectors.base import Detector, State
from gradwatch.core.detectors.falls import vanishing
from gradwatch.core.detectors.rises import spike, trend
from gradwatch.core.detectors.updates import nonfinite, saturated
from gradwatch.errors import ConfigError

__all__ = [
    "DETECTORS",
    "Detector",
    "State",
    "default",
    "nonfinite",
    "parse",
    "parse_all",
    "saturated",
    "spike",
    "trend",
    "vanishing",
]


def default() -> tuple[Detector, ...]:
    """What `gradwatch.watch` uses: one detector of each kind, with its defaults."""
    return spike(), trend(), vanishing(), nonfinite(), saturated()


#: Every detector of this package by name: the contract tests and `parse` read it.
DETECTORS: Mapping[str, Callable[..., Detector]] = {
    "spike": spike,
    "trend": trend,
    "vanishing": vanishing,
    "nonfinite": nonfinite,
    "saturated": saturated,
}

_EXAMPLE = "spike(6, window=500) or trend"


def parse(detector: Detector | str) -> Detector:
    """A detector from its text; a detector is handed back as it is.

    Args:
      detector: a name ("trend"), or a call with numbers ("spike(6)", "nonfinite(patience=10)").

    Raises:
      ConfigError: it is no such text, or the detector refuses the arguments.

    Example:
      >>> from gradwatch import detectors
      >>> detectors.parse("spike(6)") == detectors.spike(6)
      True
    """
    if isinstance(detector, Detector):
        return detector
    if not isinstance(detector, str):
        raise ConfigError(
            "detectors must come from gradwatch.detectors, for example default(), or be their texts, "
            f"for example ['spike(6)', 'nonfinite']; got {detector!r}"
        )
    return values.parse(detector, DETECTORS, "detector", _EXAMPLE)


def parse_all(detectors: Detector | str | Sequence[Detector | str]) -> tuple[Detector, ...]:
    """One detector or several, each as itself or as its text, as a tuple of detectors.

    Raises:
      ConfigError: one is neither.
    """
    several: Sequence[Detector | str] = detectors if isinstance(detectors, (tuple, list)) else [detectors]  # type: ignore[list-item]
    return tuple(parse(one) for one in several)
