"""What only a recorded run needs of each step, kept on the device until the host looks.

Two rings in which a step has its own place: the loss scale of the last 1,024 steps, and the numbers of each variable in
up to as many. A step writes one row; the host reads the rows around an event when it has seen one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from gradwatch.core import norms as _norms
from gradwatch.core.counters import COUNTERS, LIMB, whole
from gradwatch.core.guard import HISTORY
from gradwatch.core.layout import Layout
from gradwatch.core.snapshot import KINDS
from gradwatch.tf import distribution

#: Steps that are kept before an event, and after the one at which it began.
BEFORE, AFTER = 16, 15

UNKNOWN = -1.0  # in place of NaN, which the device does not hold

_MOST_NUMBERS = 1 << 22  # of the variables' ring: 16 MB
_LEAST_ROWS = 64


def rows_of(count: int) -> int:
    """How many steps of so many variables are kept: a power of two, as `LIMB` is."""
    rows = HISTORY
    while rows > _LEAST_ROWS and rows * _width(count) > _MOST_NUMBERS:
        rows //= 2
    return rows


def _width(count: int) -> int:
    """Numbers of a step: its own, and three of each variable."""
    return 1 + 3 * count


class Trail:
    """The rings of one monitor, made with its state.

    Args:
      layout: of the state.
      count: of the variables.
      vector: gives the state, in the graph or on the host.
    """

    def __init__(self, layout: Layout, count: int, vector: Callable[[], tf.Tensor]) -> None:
        fields = {field.path: field.offset for field in layout.fields}
        steps = COUNTERS.index("steps")
        self._step, self._norms = fields["count", "low"] + steps, fields["last", "layer_norms"]
        # step and begun episodes, low limbs and high ones
        self._places = [
            [fields["count", limb] + steps, *(fields["episodes", kind, f"step_{limb}"] for kind in KINDS)]
            for limb in ("low", "high")
        ]
        self._count, self._rows, self._vector = count, rows_of(count), vector
        self._scales, self._ring = distribution.in_scope(self._make)
        self._event: int | None = None  # whose steps are still to come
        self._given = 0  # the last step of the events that were given

    def _make(self) -> tuple[tf.Variable, ...]:
        make = distribution.state_variable
        return (
            make(np.full((HISTORY, 2), UNKNOWN), "gradwatch_scales"),  # low limb of the step, loss scale
            make(np.full((self._rows, _width(self._count)), UNKNOWN), "gradwatch_around"),
        )

    @property
    def variables(self) -> list[tf.Variable]:
        """All of them, for an export."""
        return [self._scales, self._ring]

    # -- the step ---------------------------------------------------------------------------------------

    def hurries(self) -> tf.Tensor:
        """Whether the weights are to be looked at in this step: it is one of the first, or an event has just begun."""
        low = tf.gather(self._vector(), self._places[0])
        return tf.reduce_any(low[0] - low[1:] < float(AFTER))

    def push(self, state: tf.Tensor, weights: tf.Tensor, loss_scale: tf.Tensor | None) -> list[Any]:
        """One step has been judged; returns what was written.

        Args:
          state: after it.
          weights: norms and update ratios of the variables as the step before left them, shape [2 * count].
          loss_scale: shape (); None where there is none.
        """
        step = state[self._step : self._step + 1]
        norms = state[self._norms : self._norms + self._count]
        written = [_write(self._ring, step, tf.concat([step, norms, weights], 0))]
        if loss_scale is not None:
            written.append(_write(self._scales, step, tf.concat([step, loss_scale[None]], 0)))
        return written

    # -- the host ---------------------------------------------------------------------------------------

    def loss_scales(self, steps: np.ndarray) -> np.ndarray:
        """The loss scales of these steps; NaN where they are not known."""
        low, scales = tf.convert_to_tensor(self._scales).numpy().T
        places = steps % HISTORY
        return np.where(low[places] == steps % int(LIMB), scales[places], np.nan)

    def around(self, paths: Sequence[str], *, over: bool = False) -> Mapping[int, Mapping[str, Any]] | None:
        """step -> variable path -> (norm, weight norm, update ratio) around the oldest event that was not given yet.

        None where there is no such event, or the step after its last one is still to come. An event that begins around
        one that was given is not given again.

        Args:
          paths: of the variables.
          over: nothing more comes: an event whose last step is missing is given as it is.
        """
        now, *begun = map(whole, *self._vector().numpy()[self._places])
        if self._event is None:
            self._event = min((step for step in begun if step > self._given), default=None)
        if self._event is None or (now <= self._event + AFTER and not over):
            return None
        first, last, self._event = self._event - BEFORE, self._event + AFTER, None
        self._given = min(last, now)
        return self._numbers(paths, np.arange(max(first, 1), last + 1)) or None

    def begin_anew(self, step: int) -> None:
        """The state is another one, of this step: what began before is not given."""
        self._event, self._given = None, step

    def _numbers(self, paths: Sequence[str], steps: np.ndarray) -> dict[int, dict[str, Any]]:
        """Of those of these steps that are still there."""
        wanted = np.append(steps, steps[-1] + 1)
        rows = tf.convert_to_tensor(self._ring).numpy()[wanted % self._rows]
        there = rows[:, 0] == wanted % int(LIMB)
        gradients, lengths, ratios = np.split(rows[:, 1:], 3, 1)
        # what a step did to the weights is known from the step after it on
        known = there[1:, None]
        after = [np.where(known & (x[1:] >= 0.0), x[1:], np.nan) for x in (lengths, ratios)]
        numbers = np.stack([_norms.decode(gradients[:-1]), *after], 2).astype(np.float64)
        return {
            int(step): {path: tuple(x) for path, x in zip(paths, row.tolist())}
            for step, row, kept in zip(steps, numbers, there[:-1])
            if kept
        }


def _write(ring: tf.Variable, step: tf.Tensor, row: tf.Tensor) -> Any:
    """Puts a row into the place of its step; nothing else of the ring is touched."""
    place = tf.cast(tf.math.floormod(step, float(ring.shape[0])), tf.int32)
    return tf.raw_ops.ResourceScatterUpdate(resource=ring.handle, indices=place, updates=row[None])
