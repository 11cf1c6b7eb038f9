"""What only a recorded run needs of each step, kept on the device until the host looks.

Learning rate and loss scale of the last 1,024 steps, beside the history; and each variable's numbers of the 32 steps
around an event, in a ring that stops 15 steps after an event began and goes on once the host has read it.
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

UNKNOWN = -1.0  # of a rate or a loss scale: the device holds no NaN

_RATES = ("step", "learning_rate", "loss_scale")
_RUNNING = -1.0  # the ring goes on; else the steps that it still takes, 0 where it has stopped


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
        self._rates, self._ring, self._left, self._collected = distribution.in_scope(self._make)

    def _make(self) -> tuple[tf.Variable, ...]:
        def variable(value: Any, name: str) -> tf.Variable:
            # as the monitor's state
            return tf.Variable(
                value,
                trainable=False,
                name=name,
                dtype=tf.float32,
                aggregation=tf.VariableAggregation.NONE,
                experimental_enable_variable_lifting=False,
            )

        return (
            variable(np.full(HISTORY * len(_RATES), UNKNOWN), "gradwatch_rates"),
            variable(np.full(AROUND * self._width, UNKNOWN), "gradwatch_around"),
            variable(np.array([_RUNNING, 0.0]), "gradwatch_left"),  # and the number of the event
            variable(0.0, "gradwatch_read"),
        )

    @property
    def variables(self) -> list[tf.Variable]:
        """All of them, for an export."""
        return [self._rates, self._ring, self._left, self._collected]

    # -- the step ---------------------------------------------------------------------------------------

    def hurries(self) -> tf.Tensor:
        """Whether the weights are to be looked at in this step: an event has just begun."""
        return tf.convert_to_tensor(self._left)[0] > 0.5

    def push(self, state: tf.Tensor, norms: tf.Tensor, weights: tf.Tensor, rates: tf.Tensor) -> list[Any]:
        """One step has been judged; returns what was assigned.

        Args:
          state: after it.
          norms: of the gradients, shape [count].
          weights: norms and update ratios of the variables as the step before left them, shape [2 * count].
          rates: learning rate and loss scale, shape [2]; `UNKNOWN` where there is none.
        """
        low, high, *begun = tf.unstack(tf.gather(state, self._places))
        lows, highs = tf.stack(begun[: len(KINDS)]), tf.stack(begun[len(KINDS) :])
        began = tf.reduce_any(tf.equal(lows, low) & tf.equal(highs, high))
        all_rates = tf.concat([tf.convert_to_tensor(self._rates)[len(_RATES) :], low[None], rates], 0)
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
        return [self._rates.assign(all_rates), stopped]

    # -- the host ---------------------------------------------------------------------------------------

    def rates_of(self, steps: np.ndarray) -> dict[str, np.ndarray]:
        """Learning rate and loss scale of these steps, which follow one another; NaN where they are not known."""
        rows = tf.convert_to_tensor(self._rates).numpy().reshape(-1, len(_RATES))
        low = rows[:, 0].astype(np.int64)
        places = len(low) - 1 - (low[-1] - steps) % int(LIMB)
        inside = (places >= 0) & (low[np.maximum(places, 0)] == steps % int(LIMB))
        found = rows[np.where(inside, places, 0)]
        good = inside[:, None] & (found >= 0.0)
        numbers = np.where(good, found, np.nan).astype(np.float64)
        return {name: numbers[:, i] for i, name in enumerate(_RATES) if i}

    def around(self, paths: Sequence[str], up_to: int, *, over: bool = False) -> Mapping[int, Mapping[str, Any]] | None:
        """step -> variable path -> (norm, weight norm, update ratio) around an event, and the ring goes on.

        None where no event has begun, or its last step is still to come.

        Args:
          paths: of the variables.
          up_to: the newest step that the host knows of.
          over: nothing more comes: an event whose last step is missing is given as it is.
        """
        left, number = tf.convert_to_tensor(self._left).numpy().tolist()
        if number <= float(tf.convert_to_tensor(self._collected)) or left < 0.0 or (left > 0.0 and not over):
            return None
        rows = tf.convert_to_tensor(self._ring).numpy().reshape(AROUND, self._width)
        with tf.init_scope():
            self._collected.assign(number)
        rows = rows[rows[:, 0] >= 0.0]
        # the steps, of which the device keeps the low limb: the newest one at or before `up_to`
        steps = up_to - (up_to - rows[:, 0].astype(np.int64)) % int(LIMB)
        gradients, lengths, ratios = np.split(rows[:, 1:], 3, 1)
        # what a step did to the weights is known from the step after it on
        after = [np.append(x[1:], np.full((1, self._count), np.nan), 0) for x in (lengths, ratios)]
        lengths, ratios = (np.where(x >= 0.0, x, np.nan) for x in after)
        numbers = np.stack([_norms.decode(gradients), lengths, ratios], 2).astype(np.float64)
        return {
            int(step): {path: tuple(x) for path, x in zip(paths, row.tolist())} for step, row in zip(steps, numbers)
        }
