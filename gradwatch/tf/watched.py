"""What a ladder knows of one of the monitors that it follows."""

from __future__ import annotations

import math
import weakref
from typing import Any

from gradwatch.recovery.rungs import Ladder
from gradwatch.recovery.set_rate import SetRate
from gradwatch.recovery.signs import Signs
from gradwatch.tf.peek import Look, Peek
from gradwatch.tf.thrown import Thrown


class Watched:
    """One monitor of the training, as the healer follows it."""

    def __init__(self, monitor: Any, ladder: Ladder) -> None:
        self.monitor: weakref.ref[Any] = weakref.ref(monitor)
        self.engine: Any = monitor._engine
        self.loss_scaled: bool = False
        self._ladder = ladder
        self.reset()

    def reset(self) -> None:
        """Nothing was seen yet."""
        skip = self._ladder.skip
        bound = (None, 100) if skip is None else (skip.most, skip.window)
        self.signs: Signs = Signs(self._ladder.patience, *bound, holds_rate=self.engine.guard.policy.holds_rate)
        self.peek: Peek = Peek(self.engine)
        self.rate: SetRate = SetRate(self._ladder.patience)
        self.update_ratio: float | None = None
        self.thrown: Thrown | None = None
        self.norm: float = math.nan
        self.loss: float = math.nan

    @property
    def name(self) -> str:
        """Of the monitor; "" once it is gone."""
        monitor = self.monitor()
        return "" if monitor is None else str(monitor.name)

    @property
    def largest_ratio(self) -> float | None:
        """By which share of their norm a step moves the weights, as far as it is known."""
        speed = self.thrown.speed if self.thrown else None
        return max((ratio for ratio in (self.update_ratio, speed) if ratio is not None), default=None)

    def take(self, look: Look) -> None:
        """Read new steps."""
        self.signs.read(look.rows, look.active)
        self.update_ratio = look.update_ratio
        self.rate.add(look.rows.step, look.rates)
        self.norm, self.loss = float(look.rows.norm[-1]), float(look.rows.loss[-1])
