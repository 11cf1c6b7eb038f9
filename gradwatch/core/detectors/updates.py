"""What became of the update: `nonfinite` gradients, and a run that is `saturated` with clipping and zeroing."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from gradwatch.core import checks
from gradwatch.core.detectors.base import Detector, State, Update
from gradwatch.core.norms import Norms
from gradwatch.core.xp import LARGEST, Namespace

_PATIENCE, _PATIENCE_UNDER_LOSS_SCALING = 1, 10


@dataclass(frozen=True, repr=False)
class nonfinite(Detector):
    """A NaN or Inf in any gradient, or a norm above 1e36, `patience` steps in a row.

    Args:
      patience: steps in a row before the alarm, >= 1. None is 1, and 10 under an optimizer that drops non-finite steps
        to find its loss scale (LossScaleOptimizer), for which a single one is its way of working.
      cooldown_steps: finite steps that end an episode, >= 1.

    Raises:
      ConfigError: an argument is out of range.
    """

    patience: int | None = field(default=None, kw_only=True)
    cooldown_steps: int = field(default=10, kw_only=True)

    kind: ClassVar[str] = "nonfinite"  # type: ignore[misc]

    def __post_init__(self) -> None:
        patience = None if self.patience is None else checks.count("patience", self.patience)
        self._store(patience=patience, cooldown_steps=checks.count("cooldown_steps", self.cooldown_steps))

    def under_loss_scaling(self) -> nonfinite:
        """The same detector for an optimizer that drops non-finite steps; a patience that was given stays."""
        return replace(self, patience=_PATIENCE_UNDER_LOSS_SCALING) if self.patience is None else self

    def init(self, num_variables: int) -> State:
        return {"streak": np.zeros((), np.float32)}

    def update(self, xp: Namespace, state: State, norms: Norms) -> Update:
        streak = xp.where(norms.finite, 0.0, xp.minimum(state["streak"] + 1.0, 1e6))
        alarm = ~norms.finite & (streak >= (_PATIENCE if self.patience is None else self.patience))
        return {"streak": streak}, alarm, {"score": streak, "threshold": streak * 0.0 + LARGEST}


@dataclass(frozen=True, repr=False)
class saturated(Detector):
    """The watch lives on its brakes: most steps are zeroed, skipped or clipped to a small part of their norm.

    A step is hard when less than `kept` of its norm was applied: kept_t = applied norm / norm, relative to what the
    policy means to let through (`Norms.kept`); 0 for a step that was NaN or Inf, zeroed or skipped. Of the hard steps h
    and of all steps n, both forgetting exponentially,

        h_t = (1 - 1/window) h_{t-1} + [kept_t < kept];  n_t = (1 - 1/window) n_{t-1} + 1

    alarm where h_t > share * n_t and h_t >= window * (1 - (1 - 1/window)^20): twenty hard steps in a row from the first
    step on, 34 after a long calm. It judges the steps before this one. A policy that clips often but lightly, such as
    `per_variable`, or rarely but hard, such as percentile(90), does not come near it.

    Args:
      share: of the steps, in (0, 1).
      kept: share of the norm below which a step is hard, in (0, 1).
      window: steps remembered, >= 25.
      cooldown_steps: calm steps that end an episode, >= 1.

    Raises:
      ConfigError: an argument is out of range.

    Example:
      >>> from gradwatch import detectors
      >>> detectors.saturated(0.8)
      saturated(0.8)
    """

    share: float = 0.5
    kept: float = field(default=0.1, kw_only=True)
    window: int = field(default=50, kw_only=True)
    cooldown_steps: int = field(default=10, kw_only=True)

    kind: ClassVar[str] = "saturated"  # type: ignore[misc]

    def __post_init__(self) -> None:
        self._store(
            share=checks.number("share", self.share, above=0, below=1, hint="it is a share, 0.5 and not 50"),
            kept=checks.number("kept", self.kept, above=0, below=1, hint="it is a share, 0.1 and not 10"),
            window=checks.count("window", self.window, least=25),
            cooldown_steps=checks.count("cooldown_steps", self.cooldown_steps),
        )

    def init(self, num_variables: int) -> State:
        return dict.fromkeys(("hard", "steps"), np.zeros((), np.float32))

    def update(self, xp: Namespace, state: State, norms: Norms) -> Update:
        forget = 1.0 - 1.0 / self.window
        least = self.window * (1.0 - forget**20)
        # numpy before 2.0 makes a float64 of a float32 scalar and a number
        hard = xp.number(forget * state["hard"] + xp.where(norms.kept < self.kept, 1.0, 0.0))
        steps = xp.number(forget * state["steps"] + 1.0)
        # a hair below: float32 sums what the formula has in closed form
        alarm = (hard > self.share * steps) & (hard >= least - 1e-3)
        info = {"score": hard / steps, "threshold": hard * 0.0 + LARGEST}
        return {"hard": hard, "steps": steps}, alarm, info
