"""What only a recorded run needs of each step, kept on the device until the host looks.

The loss scale of the last 1,024 steps, beside the history; and each variable's numbers of the 32 steps around an event,
in a ring that stops 15 steps after an event began and goes on once the host has read it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from gradwatch.core import norms as _norms
from gradwatch.core.counters import COUNTERS, LIMB
from gradwatch.core.guard import HISTORY
from gradwatch.core.layout import Layout
from gradwatch.core.snapshot import KINDS
from gradwatch.tf import distribution
from gradwatch.tf.ops import TENSORFLOW

#: Steps that are kept around an event, and how many of them come after the one at which it began.
AROUND, AFTER = 32, 15

UNKNOWN = -1.0  # in place of NaN, which the device does not hold

_RUNNING = -1.0  # the ring goes on; else the steps that it still takes, 0 where it has stopped


def steps_near(low: np.ndarray, known: int) -> np.ndarray:
    """The steps of which the device keeps the low limb: those nearest to one that the host knows of.

    A training goes on while the host reads, so the ring may be some steps ahead of what was read before it.
    """
    half = int(LIMB) // 2
    return known + (low.astype(np.int64) - known + half) % int(LIMB) - half


class Trail:
    """The rings of one monitor, made with its state.

    Args:
      layout: of the state.
      count: of the variables.
    """

    def __init__(self, layout: Layout, count: int) -> None:
        fields = {field.path: field.offset for field in layout.fields}
        steps = COUNTERS.index("steps")
        self._places = [fields["count", limb] + steps for limb in ("low", "high")]
        self._places += [fields["episodes", kind, f"step_{limb}"] for limb in ("low", "high") for kind in KINDS]
        self._count, self._width = count, 1 + 3 * count
        self._scales, self._ring, self._left, self._collected = distribution.in_scope(self._make)

    def _make(self) -> tuple[tf.Variable, ...]:
        make = distribution.state_variable
        return (
            make(np.full(2 * HISTORY, UNKNOWN), "gradwatch_scales"),  # low limb of the step, loss scale
            make(np.full(AROUND * self._width, UNKNOWN), "gradwatch_around"),
            make(np.array([_RUNNING, 0.0]), "gradwatch_left"),  # and the number of the event
            make(0.0, "gradwatch_read"),
        )

    @property
    def variables(self) -> list[tf.Variable]:
        """All of them, for an export."""
        return [self._scales, self._ring, self._left, self._collected]

    # -- the step ---------------------------------------------------------------------------------------

    def hurries(self) -> tf.Tensor:
        """Whether the weights are to be looked at in this step: an event has just begun."""
        return tf.convert_to_tensor(self._left)[0] > 0.5

    def push(self, state: tf.Tensor, norms: tf.Tensor, weights: tf.Tensor, loss_scale: tf.Tensor | None) -> list[Any]:
        """One step has been judged; returns what was assigned.

        Args:
          state: after it.
          norms: of the gradients, shape [count].
          weights: norms and update ratios of the variables as the step before left them, shape [2 * count].
          loss_scale: shape (); None where there is none.
        """
        low, high, *begun = tf.unstack(tf.gather(state, self._places))
        lows, highs = tf.stack(begun[: len(KINDS)]), tf.stack(begun[len(KINDS) :])
        began = tf.reduce_any(tf.equal(lows, low) & tf.equal(highs, high))
        scale = tf.stack([low, UNKNOWN if loss_scale is None else loss_scale])
        scales = tf.concat([tf.convert_to_tensor(self._scales)[2:], scale], 0)
        left, number = tf.unstack(tf.convert_to_tensor(self._left))
        collected, ring = tf.convert_to_tensor(self._collected), tf.convert_to_tensor(self._ring)
        left = tf.where(tf.equal(left, 0.0) & (number <= collected), _RUNNING, left)
        starts = began & (left < 0.0)
        row = tf.concat([low[None], _norms.encode(TENSORFLOW, norms), weights], 0)
        pushed = tf.where(tf.equal(left, 0.0), ring, tf.concat([ring[self._width :], row], 0))
        left = tf.where(starts, float(AFTER), tf.where(left > 0.0, left - 1.0, left))
        number = tf.where(starts, collected + 1.0, number)
        with tf.control_dependencies([getattr(self._ring.assign(pushed), "op", pushed)]):
            # says that the ring has stopped, so it comes last
            stopped = self._left.assign(tf.stack([left, number]))
        return [self._scales.assign(scales), stopped]

    # -- the host ---------------------------------------------------------------------------------------

    def loss_scales(self, steps: np.ndarray) -> np.ndarray:
        """The loss scales of these steps, which follow one another; NaN where they are not known."""
        low, scales = tf.convert_to_tensor(self._scales).numpy().astype(np.float64).reshape(-1, 2).T
        wanted = steps % int(LIMB)
        # the rings are read one after the other: this one may have gone on meanwhile
        places = np.asarray(len(low) - 1 - (low[-1] - wanted) % LIMB, np.int64)
        inside = (places >= 0) & (low[np.maximum(places, 0)] == wanted)
        found = np.where(inside, scales[np.maximum(places, 0)], UNKNOWN)
        return np.where(found < 0.0, np.nan, found)

    def around(self, paths: Sequence[str], up_to: int, *, over: bool = False) -> Mapping[int, Mapping[str, Any]] | None:
        """step -> variable path -> (norm, weight norm, update ratio) around an event, and the ring goes on.

        None where no event has begun, or its last step is still to come.

        Args:
          paths: of the variables.
          up_to: the newest step that the host knows of; the ring may hold some that are newer.
          over: nothing more comes: an event whose last step is missing is given as it is.
        """
        left, number = tf.convert_to_tensor(self._left).numpy().tolist()
        if number <= float(tf.convert_to_tensor(self._collected)) or left < 0.0 or (left > 0.0 and not over):
            return None
        rows = tf.convert_to_tensor(self._ring).numpy().reshape(AROUND, self._width)
        with tf.init_scope():
            self._collected.assign(number)
        rows = rows[rows[:, 0] >= 0.0]
        steps = steps_near(rows[:, 0], up_to)
        gradients, lengths, ratios = np.split(rows[:, 1:], 3, 1)
        # what a step did to the weights is known from the step after it on
        after = [np.append(x[1:], np.full((1, self._count), np.nan), 0) for x in (lengths, ratios)]
        lengths, ratios = (np.where(x >= 0.0, x, np.nan) for x in after)
        numbers = np.stack([_norms.decode(gradients), lengths, ratios], 2).astype(np.float64)
        return {
            int(step): {path: tuple(x) for path, x in zip(paths, row.tolist())} for step, row in zip(steps, numbers)
        }
