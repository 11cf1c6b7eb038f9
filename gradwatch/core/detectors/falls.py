"""The norm falls: `vanishing`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from gradwatch.core import anchor, checks
from gradwatch.core.detectors.base import State, Update
from gradwatch.core.detectors.level import Level, OnLevel, as_norm
from gradwatch.core.norms import Norms
from gradwatch.core.xp import Namespace


@dataclass(frozen=True, repr=False)
class vanishing(OnLevel):
    """The gradient dies: its norm falls far below its own long-run level and stays there.

    Alarm after `patience` steps in a row with log norm_t below
    max(mean - max(z_max * std, log drop), high - log 1000), all of the steps before. `high` is the run's anchor in its
    own healthy past, which falls by 0.01 % a step at most once the run is 10,000 steps old (before, as a power law):
    a norm that falls by decades so slowly that the mean follows is found all the same, and three decades over a
    training of 100,000 steps are not. A norm of exactly zero is below everything.

    Args:
      z_max: standard deviations of the log norm, > 0.
      drop: the norm must also fall by this factor, > 1.
      patience: steps in a row, >= 1.
      window: steps of the long-run level, >= 2.
      warmup_steps: finite steps before the first alarm, >= 2; steps of norm zero count, so that a network that dies
        at once is found.
      min_std: as in `spike`.
      cooldown_steps: calm steps that end an episode, >= 1.

    Raises:
      ConfigError: an argument is out of range.
    """

    z_max: float = 6.0
    drop: float = 100.0
    patience: int = field(default=5, kw_only=True)
    window: int = field(default=1000, kw_only=True)

    kind: ClassVar[str] = "vanishing"  # type: ignore[misc]

    def __post_init__(self) -> None:
        self._store(
            z_max=checks.number("z_max", self.z_max, above=0),
            drop=checks.number("drop", self.drop, above=1),
            patience=checks.count("patience", self.patience),
        )
        self._check_level()

    def init(self, num_variables: int) -> State:
        return {"level": Level.init(), **dict.fromkeys(("high", "streak", "waited"), np.zeros((), np.float32))}

    def update(self, xp: Namespace, state: State, norms: Norms) -> Update:
        level, held = self._level, state["level"]
        ready = state["waited"] >= self.warmup_steps
        depth = xp.maximum(self.z_max * level.std(xp, held), math.log(self.drop))
        log_threshold = xp.maximum(held["mean"] - depth, state["high"] - anchor.DECADES)
        low = ready & norms.finite & (norms.log < log_threshold)
        streak = xp.where(low, xp.minimum(state["streak"] + 1.0, 1e6), 0.0)
        streak = xp.where(norms.finite, streak, state["streak"])
        waited = xp.where(norms.finite, xp.minimum(state["waited"] + 1.0, 1e6), state["waited"])
        info = {
            "score": xp.where(ready & norms.finite, -level.z(xp, held, norms), 0.0),
            "threshold": xp.where(ready, as_norm(xp, log_threshold), 0.0),
        }
        after = level.update(xp, held, norms)
        high = anchor.follow(xp, state["high"], after["mean"], held["seen"], falls=False)
        high = xp.where(norms.enters, high, state["high"])
        new = {"level": after, "high": high, "streak": streak, "waited": waited}
        return new, low & (streak >= self.patience), info
