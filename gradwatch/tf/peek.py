"""The newest steps of a monitor, read at the price of one small vector: what a healer looks at every few steps."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from gradwatch.core import decode, norms
from gradwatch.core.counters import COUNTERS, LIMB
from gradwatch.core.guard import BEYOND, COLUMNS
from gradwatch.core.snapshot import KINDS, VERDICTS
from gradwatch.recovery.signs import Rows
from gradwatch.tf.host_copies import read

_COLUMN = {name: i for i, name in enumerate(COLUMNS)}
_ZERO = VERDICTS.index("zero")


class Look(NamedTuple):
    """Attributes:
    rows: the steps since the look before, at least one.
    active: kind -> whether an episode is under way.
    update_ratio: the newest share of the weights' norm that an update moved, None where not known.
    dropped: the steps whose update the guard dropped.
    nonfinite: whether one of the gradients was not finite.
    rates: the learning rate that was set, in each step; NaN where not known.
    """

    rows: Rows
    active: dict[str, bool]
    update_ratio: float | None
    dropped: list[int]
    nonfinite: bool
    rates: np.ndarray


class Peek:
    """Looks at one monitor: fetches what the device wrote, says whether it needs a closer look, and takes it.

    Args:
      engine: of the monitor.

    Attributes:
      waiting: steps that were fetched and not yet taken.
    """

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._of: Any = None  # the device state that the offsets are of
        self._fetched = self._taken = self.waiting = 0
        self._vector, self._loss = np.zeros(0, np.float32), math.nan
        self._on_device: tuple[tf.Tensor, tf.Tensor] | None = None  # of the look before

    def fetch(self, *, now: bool) -> int:
        """How many steps were new.

        Args:
          now: read the newest state, for which the host waits; else that of the look before, and only mark the newest.
        """
        built = self._engine.on_device
        if built is None:
            return 0
        if built is not self._of:
            self._place(built)
        newest = (read(built.state), built.loss.read())
        state, self._on_device = (newest, None) if now else (self._on_device, newest)
        if state is None:
            return 0
        self._vector, self._loss = np.asarray(state[0]), float(state[1])
        before, self._fetched = self._fetched, self._steps()
        if self._fetched < before:  # a checkpoint took it back
            before = self._taken = max(self._fetched - self._room, 0)
        self.waiting = min(self._fetched - self._taken, self._room)
        return self._fetched - before

    def _steps(self) -> int:
        return int(self._vector[self._low]) + int(self._vector[self._high]) * int(LIMB)

    def _table(self) -> np.ndarray:
        """What waits, a row a step."""
        return self._vector[self._end - self.waiting * len(COLUMNS) : self._end].reshape(self.waiting, len(COLUMNS))

    def is_usual(self, usual_end: float) -> bool:
        """Whether nothing stands out in any of the steps that wait.

        Args:
          usual_end: see `Signs.usual_end`.
        """
        table = self._table()
        norm = table[:, _COLUMN["norm"]]
        losses = table[1:, _COLUMN["loss"]]  # a row holds the loss of the step before
        return bool(
            self._loss <= usual_end
            and (losses <= usual_end).all()
            and (norm >= 0.0).all()
            and (norm <= np.minimum(table[:, _COLUMN["threshold"]], np.float32(BEYOND))).all()
            and (table[:, _COLUMN["verdict"]] <= 1.0).all()
            and not (self._vector[self._active_at] > 0.5).any()
        )

    def _place(self, built: Any) -> None:
        offsets = {field.path: field for field in built.layout.fields}
        steps = COUNTERS.index("steps")
        self._low = offsets["count", "low"].offset + steps
        self._high = offsets["count", "high"].offset + steps
        history = offsets["history",]
        self._end, self._room = history.offset + history.size, history.size // len(COLUMNS)
        self._active = {kind: offsets["episodes", kind, "active"].offset for kind in KINDS}
        self._active_at = np.array(list(self._active.values()))
        self._of, self._on_device = built, None

    def take(self) -> Look | None:
        """The steps that wait; None where there is none."""
        if not self.waiting:
            return None
        table, steps = self._table(), self._fetched
        kept = np.append(table[1:, _COLUMN["loss"]], np.float32(self._loss))
        norm = norms.decode(table[:, _COLUMN["norm"]])
        verdict = table[:, _COLUMN["verdict"]]
        ratio = float(table[-1, _COLUMN["update_ratio"]])
        step = np.arange(steps - self.waiting + 1, steps + 1)
        rates = table[:, _COLUMN["learning_rate"]]
        self._taken, self.waiting = steps, 0
        return Look(
            rows=Rows(
                step=step,
                norm=norm,
                threshold=table[:, _COLUMN["threshold"]],
                verdict=verdict,
                loss=decode.losses(kept),
                kept=_kept(norm, table[:, _COLUMN["applied_norm"]], table[:, _COLUMN["reach"]]),
            ),
            active={kind: bool(self._vector[at] > 0.5) for kind, at in self._active.items()},
            update_ratio=None if ratio < 0.0 else ratio,
            dropped=step[verdict >= _ZERO].tolist(),
            nonfinite=not bool(np.all(np.isfinite(norm))),
            rates=np.where((rates > 0.0) & (rates < BEYOND), rates, np.float32(math.nan)),
        )


def _kept(norm: np.ndarray, applied: np.ndarray, reach: np.ndarray) -> np.ndarray:
    """Share of each norm that was applied; 1 where it is not finite, and where the update is not linear in it."""
    sound = (norm > 0.0) & (norm < BEYOND) & (reach > 0.0) & (reach < BEYOND)
    return np.asarray(np.where(sound, applied / np.where(sound, norm, 1.0), 1.0))
