"""Going back: to which state, and which steps it costs."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from gradwatch.recovery.generations import Generation
from gradwatch.tf import distribution
from gradwatch.tf.snapshots import Snapshots
from gradwatch.tf.training_state import TrainingState

#: Weights that have grown by so much since a healthy snapshot are hurt.
_GROWN = 2.0


class Returns:
    """The returns of one training.

    Args:
      snapshots: where it can go back to.
      state: what goes back.

    Attributes:
      at: the step of the last return, 0 before there was one.
      is_unproven: whether that went to a snapshot that was not known to be healthy.
    """

    def __init__(self, snapshots: Snapshots, state: TrainingState) -> None:
        self._snapshots, self._state = snapshots, state
        self.at: int = 0
        self._to = 0
        self.is_unproven: bool = False

    @property
    def target(self) -> Generation | None:
        """The newest snapshot that was healthy."""
        return self._snapshots.generations.target()

    def is_hurt(self) -> bool:
        """Whether the weights are not finite any more, or have grown far beyond those of the snapshot."""
        hurt = bool(self._state.nonfinite()) or self._has_grown(self._state.weight_norm())
        return hurt and distribution.same_on_all(float(hurt), self._state.strategy)

    def _has_grown(self, norm: float) -> bool:
        then = None if self.target is None else self.target.facts.get("weight_norm")
        return then is None or not norm <= _GROWN * float(then)

    def go(self, *, older: bool, before: int | None, keep: list[Any]) -> Generation | None:
        """Go back, on all workers or on none; to which state.

        Args:
          older: to the state before the one of the last return: the older of two healthy snapshots, or the newer one
            after a return to one that was not known to be.
          before: the step at which sudden trouble began: then a snapshot from before it is good enough, though nobody
            knows yet whether it is healthy, unless its weights have grown. None for trouble that came slowly.
          keep: variables that stay as they are.
        """
        generations = self._snapshots.generations
        fresh = None if before is None or older else generations.candidate(before)
        if fresh is not None and self._has_grown(float(fresh.facts["weight_norm"])):
            fresh = None
        older = older and not self.is_unproven
        for target in (fresh, generations.target(older=older), generations.target(older=True)):
            # a worker whose disk or memory did not take a snapshot has another one, or none
            if distribution.same_on_all(-1.0 if target is None else target.step, self._state.strategy) and target:
                self._snapshots.restore(target, keep)
                self.is_unproven = target is fresh
                return target
        return None

    def lost(self, step: int, to: Generation, dropped: Collection[int]) -> int:
        """How many steps a return at this step has taken away that no earlier one took, and that were not dropped."""
        # the steps began anew since the last return
        last = self.at if self.at < step else 0
        ranges = [(max(to.step, last), step)]
        if to.step < self._to and last:
            ranges.append((to.step, self._to))  # the last return had left them
        self.at, self._to = step, to.step
        return sum(end - first - sum(first < one <= end for one in dropped) for first, end in ranges)
