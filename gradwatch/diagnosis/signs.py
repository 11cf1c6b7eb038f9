"""Statistics of a run that causes are told by. Scale-free, and robust: medians and ranks, not means."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from gradwatch.diagnosis.observation import Observation


class Signs:
    """What the numbers of one run show; each sign is computed when a cause asks for it, once."""

    def __init__(self, run: Observation) -> None:
        self.run = run

    @cached_property
    def broken(self) -> np.ndarray:
        """Indices of the steps whose gradient held a NaN or Inf."""
        return np.flatnonzero(~np.isfinite(self.run["norm"]))

    def first_event(self, kind: str) -> int | None:
        """Step of the first episode of a kind."""
        return next((event.step for event in self.run.events if event.kind == kind), None)

    def first_step(self, kind: str) -> int | None:
        """The first step that a cause explains."""
        steps = [event.step for event in self.run.events]
        if len(self.broken):
            steps.append(int(self.run.step[self.broken[0]]))
        return min(steps, default=None)
