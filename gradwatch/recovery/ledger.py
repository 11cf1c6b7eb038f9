"""What a ladder has done in a run, for exporters, alerts and the record."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from gradwatch.core.snapshot import RUNGS, Recovery
from gradwatch.errors import TrainingStopped

_KEPT = 100
_KEPT_DROPS = 1000


class Ledger:
    """Counts of one run. Written between two calls of the step, read from any thread.

    Attributes:
      rate_scale: of the learning rate, now.
      stopped: the error with which the run was ended, or None.
      dropped: the newest steps whose update was dropped: they are lost, whatever is gone back to.
    """

    def __init__(self) -> None:
        self._counts = dict.fromkeys(RUNGS, 0)
        self._lost = dict.fromkeys(RUNGS, 0)
        self._newest: deque[Recovery] = deque(maxlen=_KEPT)
        self.rate_scale: float = 1.0
        self.stopped: TrainingStopped | None = None
        self.dropped: deque[int] = deque(maxlen=_KEPT_DROPS)

    def skipped(self, steps: Sequence[int]) -> None:
        """The updates of these steps were dropped by the guard."""
        self._counts["skip"] += len(steps)
        self._lost["skip"] += len(steps)
        self.dropped.extend(steps)

    def answered(self, rungs: tuple[str, ...], step: int, cause: str, text: str, lost_steps: int = 0) -> Recovery:
        """An answer was given, of one rung or of several."""
        for rung in rungs:
            self._counts[rung] += 1
        self._lost["rollback"] += lost_steps
        highest = max(rungs, key=RUNGS.index)  # of going back and a lower rate, going back
        entry = Recovery(highest, step, time.time(), cause, text, lost_steps, self.rate_scale)
        self._newest.append(entry)
        return entry

    def known(self) -> dict[str, Any]:
        """The fields of a `Snapshot`."""
        return {
            "recoveries": dict(self._counts),
            "lost_steps": dict(self._lost),
            "rate_scale": self.rate_scale,
            "last_recoveries": tuple(self._newest),
        }
