"""Each step of a monitor once, out of looks at its history.

A monitor keeps its last 1,024 steps. Who looks often enough sees each of them, and the training step knows
nothing of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from gradwatch.core.guard import HISTORY

_YOUNG_LOOKS = 20  # a run gets fast when its tracing is over, so its first looks come quickly
_YOUNG_SECONDS = 0.25


class StepCursor:
    """Remembers up to which step a history was taken.

    Attributes:
      last: the last step taken, counted from 1; 0 before the first.
      missed: steps that had left the history before they were looked for. Steps before the first look do
        not count.
    """

    def __init__(self) -> None:
        self.last: int = 0
        self.missed: int = 0
        self._looks = 0
        self._time = 0.0
        self._rate = 0.0

    def take(self, history: Mapping[str, np.ndarray], now: float) -> dict[str, np.ndarray]:
        """The rows that were not taken before, oldest first, arrays of one length.

        A history that ends before `last` is a run that was set back by a checkpoint: all of it is given
        again, and counting goes on from there.

        Args:
          history: as `Monitor.history()` gives it.
          now: monotonic seconds, for the pace.
        """
        steps = history["step"]
        end = int(steps[-1]) if len(steps) else 0
        if end < self.last:
            self.last = 0
        elif len(steps) and self._looks:
            self.missed += max(0, int(steps[0]) - self.last - 1)
        first = int(np.searchsorted(steps, self.last, side="right"))
        rows = {name: column[first:] for name, column in history.items()}
        if self._looks and now > self._time:
            self._rate = max((len(steps) - first) / (now - self._time), 0.8 * self._rate)
        self.last, self._time, self._looks = end, now, self._looks + 1
        return rows

    def next_look_seconds(self) -> float:
        """How soon to look again: when a quarter of the history is new, so that the pace may quadruple meanwhile."""
        planned = HISTORY / 4 / self._rate if self._rate > 0 else math.inf
        return min(planned, _YOUNG_SECONDS) if self._looks < _YOUNG_LOOKS else planned
