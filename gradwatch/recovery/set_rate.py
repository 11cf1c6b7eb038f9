"""The learning rate that a person set, and the highest one that trouble leaves of it.

What was too high is a rate, not a share of whatever rate is set later: when the person's own rate falls below what was
found to be safe, nothing is left to lower.
"""

from __future__ import annotations

import math
from collections import deque

import numpy as np

_KEPT = 200  # runs of at most so many steps, of each the highest rate
_STEPS = 10


class SetRate:
    """The rates of one monitor's optimizer.

    Args:
      patience: steps before a trouble whose rates may have led to it.

    Attributes:
      newest: the rate that is set now; NaN where it is not known.
      reference: the rate that was too high; None before there was any, or where it is not known.
    """

    def __init__(self, patience: int) -> None:
        self._patience = patience
        self._highest: deque[tuple[int, float]] = deque(maxlen=_KEPT)  # (last step of a run, highest rate in it)
        self.newest: float = math.nan
        self.reference: float | None = None

    def add(self, steps: np.ndarray, rates: np.ndarray) -> None:
        """New steps, oldest first, and the rate that was set in each; NaN where it is not known."""
        known = rates[~np.isnan(rates)]
        self.newest = float(known[-1]) if len(known) else math.nan
        for first in range(0, len(steps), _STEPS):
            run = rates[first : first + _STEPS]
            highest = float(np.fmax.reduce(run))
            self._highest.append((int(steps[min(first + _STEPS, len(steps)) - 1]), highest))

    @property
    def highest(self) -> float:
        """The highest rate of the newest steps; NaN where none is known."""
        newest = self._highest[-1][0] if self._highest else 0
        known = [rate for step, rate in self._highest if step > newest - self._patience and rate > 0.0]
        return max(known, default=math.nan)

    def is_below_limit(self, began: int, answered_at: int, share: float) -> bool:
        """Whether a trouble came at rates that the limit did not touch; False where no rate is known."""
        blamed = self._blamed(began, answered_at)
        return blamed is not None and blamed <= self.limit(share)

    def blame(self, began: int, answered_at: int, *, anew: bool) -> None:
        """The rate is lowered because of this trouble.

        Args:
          anew: what was too high before is forgotten.
        """
        if anew or self.reference is None:
            self.reference = self._blamed(began, answered_at)

    def _blamed(self, began: int, answered_at: int) -> float | None:
        """The highest rate that may have led to a trouble; None where no rate is known.

        Args:
          began: step of the trouble.
          answered_at: step of the answer before: what came until then has had its answer.
        """
        after = max(began - self._patience, answered_at)
        known = [rate for step, rate in self._highest if step > after and rate > 0.0]
        return max(known) if known else None

    def limit(self, share: float) -> float:
        """The highest rate, where `share` of the reference is allowed; Inf where there is no reference."""
        return math.inf if self.reference is None else self.reference * share

    def scale(self, share: float) -> float:
        """What the rate that is set now is multiplied by, in (0, 1]."""
        if self.reference is None or not self.newest > 0.0:
            return min(share, 1.0)
        return min(self.limit(share) / self.newest, 1.0)
