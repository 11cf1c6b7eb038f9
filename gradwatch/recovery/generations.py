"""Which snapshots there are, when the next one is due, and which of them was healthy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from gradwatch.recovery.rungs import rollback

#: Snapshots that are kept.
KEPT = 2


@dataclass
class Generation:
    """One snapshot.

    Attributes:
      step: of the monitor, when it was taken; 0 is before the first step.
      token: what the store knows it by.
      healthy: whether the run stayed calm for long enough after it.
      harmed_at: the step at which harm was seen before that, None for none: it will never count as healthy.
      facts: loss and norm at the time, for people.
    """

    step: int
    token: Any
    healthy: bool = False
    harmed_at: int | None = None
    facts: dict[str, Any] = field(default_factory=dict)


class Generations:
    """The snapshots of one run, oldest first: at most two, and at most one of them not yet healthy.

    Args:
      rung: says how often, and how long calm.
    """

    def __init__(self, rung: rollback) -> None:
        self._rung = rung
        self.kept: list[Generation] = []
        self._tried = 0  # the step of the last attempt to take one

    def is_due(self, step: int, calm_steps: int) -> bool:
        """Whether to take one now.

        Args:
          step: now.
          calm_steps: steps since harm was last seen.
        """
        if any(not generation.healthy and generation.harmed_at is None for generation in self.kept):
            return False
        newest = max((generation.step for generation in self.kept), default=-self._rung.every)
        return step - max(newest, self._tried) >= self._rung.every and self.is_calm(step, calm_steps)

    def wants(self, step: int) -> bool:
        """Whether one may be due, or ripe, at this step."""
        if any(
            g for g in self.kept if not g.healthy and g.harmed_at is None and step - g.step >= self._rung.calm_steps
        ):
            return True
        return self.is_due(step, step)

    def is_calm(self, step: int, calm_steps: int) -> bool:
        """Whether no harm was seen for long enough; before there were as many steps, never yet."""
        return calm_steps >= min(self._rung.calm_steps, step)

    def tried(self, step: int) -> None:
        """It could not be taken at this step: the next attempt is due `every` steps later."""
        self._tried = step

    def to_drop(self) -> list[Generation]:
        """Those that must go before another one is taken, so that no more than two are ever held."""
        by_worth = sorted(self.kept, key=lambda generation: (generation.healthy, generation.step))
        return by_worth[: max(len(self.kept) - (KEPT - 1), 0)]

    def remove(self, generation: Generation) -> None:
        """It is gone."""
        self.kept.remove(generation)

    def add(self, generation: Generation) -> None:
        """It was taken."""
        self.kept.append(generation)

    def ripe(self, step: int, calm_steps: int) -> list[Generation]:
        """Those that count as healthy from this step on; they are marked so."""
        found = [
            generation
            for generation in self.kept
            if not generation.healthy
            and generation.harmed_at is None
            and step - generation.step >= self._rung.calm_steps
            and calm_steps >= step - generation.step
        ]
        for generation in found:
            generation.healthy = True
        return found

    def harm(self, step: int, calm_steps: int) -> None:
        """Those that are not yet healthy never will be, if harm was seen after they were taken."""
        for generation in self.kept:
            if not generation.healthy and generation.harmed_at is None and calm_steps < step - generation.step:
                generation.harmed_at = step - calm_steps

    def target(self, *, older: bool = False) -> Generation | None:
        """Where to go back to: the newest healthy one, or the one before it where there is one; None: there is none."""
        healthy = [generation for generation in self.kept if generation.healthy]
        if not healthy:
            return None
        return healthy[-2] if older and len(healthy) > 1 else healthy[-1]

    def candidate(self, before: int) -> Generation | None:
        """One from before this step that is not known to be healthy, nor to be harmed by anything earlier."""
        newest = self.kept[-1] if self.kept else None
        if newest is None or newest.healthy or newest.step >= before:
            return None
        return newest if newest.harmed_at is None or newest.harmed_at >= before else None

    def newer_than(self, generation: Generation) -> list[Generation]:
        """Those that a return to this one makes worthless."""
        return [other for other in self.kept if other.step > generation.step]
