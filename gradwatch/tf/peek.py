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
    dropped: how many of the updates the guard dropped.
    nonfinite: whether one of the gradients was not finite.
    rate: the learning rate that is set, in the newest step; NaN where not known.
    highest_rate: the highest one of the steps; NaN where not known.
    """

    rows: Rows
    active: dict[str, bool]
    update_ratio: float | None
    dropped: int
    nonfinite: bool
    rate: float
    highest_rate: float


class Peek:
    """Looks at one monitor.

    Args:
      engine: of the monitor.
    """

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._of: Any = None  # the device state that the offsets are of
        self._last = 0
        self._waiting: tuple[tf.Tensor, tf.Tensor] | None = None  # of the look before, on the device

    def look(self, *, now: bool) -> Look | None:
        """The new steps; None where there is none.

        Args:
          now: read the newest state, for which the host waits; else that of the look before, and only mark the newest.
        """
        built = self._engine.on_device
        if built is None:
            return None
        if built is not self._of:
            self._place(built)
        newest = (read(built.state), built.loss.read())
        state, self._waiting = (newest, None) if now else (self._waiting, newest)
        return None if state is None else self._decode(state[0].numpy(), float(state[1]))

    def _place(self, built: Any) -> None:
        offsets = {field.path: field for field in built.layout.fields}
        steps = COUNTERS.index("steps")
        self._low = offsets["count", "low"].offset + steps
        self._high = offsets["count", "high"].offset + steps
        history = offsets["history",]
        self._end, self._room = history.offset + history.size, history.size // len(COLUMNS)
        self._active = {kind: offsets["episodes", kind, "active"].offset for kind in KINDS}
        self._of, self._waiting = built, None

    def _decode(self, vector: np.ndarray, newest_loss: float) -> Look | None:
        steps = int(vector[self._low]) + int(vector[self._high]) * int(LIMB)
        if steps < self._last:  # a checkpoint took it back
            self._last = max(steps - self._room, 0)
        count = min(steps - self._last, self._room)
        if count <= 0:
            return None
        self._last = steps
        table = vector[self._end - count * len(COLUMNS) : self._end].reshape(count, len(COLUMNS))
        kept = np.append(table[1:, _COLUMN["loss"]], np.float32(newest_loss))
        norm = norms.decode(table[:, _COLUMN["norm"]])
        verdict = table[:, _COLUMN["verdict"]]
        ratio = float(table[-1, _COLUMN["update_ratio"]])
        rates = table[:, _COLUMN["learning_rate"]]
        known = rates[(rates > 0.0) & (rates < BEYOND)]
        return Look(
            rows=Rows(
                step=np.arange(steps - count + 1, steps + 1),
                norm=norm,
                threshold=table[:, _COLUMN["threshold"]],
                verdict=verdict,
                loss=decode.losses(kept),
                kept=_kept(norm, table[:, _COLUMN["applied_norm"]], table[:, _COLUMN["reach"]]),
            ),
            active={kind: bool(vector[at] > 0.5) for kind, at in self._active.items()},
            update_ratio=None if ratio < 0.0 else ratio,
            dropped=int(np.count_nonzero(verdict >= _ZERO)),
            nonfinite=not bool(np.all(np.isfinite(norm))),
            rate=float(known[-1]) if len(known) else math.nan,
            highest_rate=float(known.max()) if len(known) else math.nan,
        )


def _kept(norm: np.ndarray, applied: np.ndarray, reach: np.ndarray) -> np.ndarray:
    """Share of each norm that was applied; 1 where it is not finite, and where the update is not linear in it."""
    sound = (norm > 0.0) & (norm < BEYOND) & (reach > 0.0) & (reach < BEYOND)
    return np.asarray(np.where(sound, applied / np.where(sound, norm, 1.0), 1.0))
