"""All variables of a training that a return to a snapshot takes back, and the states of its monitors."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from gradwatch.tf import updates
from gradwatch.tf.host_copies import squares_of, value_of


class Values(NamedTuple):
    """What there was at one instant, on the host.

    Attributes:
      variables: id of a variable -> its value.
      monitors: for each monitor what `DeviceState.pack` gave, None before its first step.
    """

    variables: dict[int, np.ndarray]
    monitors: tuple[np.ndarray | None, ...]


class TrainingState:
    """The variables, held weakly: a monitor that outlives its model must not keep it.

    Args:
      engines: of the monitors that watch the training.
    """

    def __init__(self, engines: Sequence[Any]) -> None:
        self.engines: list[Any] = list(engines)
        self._references: dict[int, weakref.ref[Any]] = {}
        self._weights: set[int] = set()  # those that gradients move
        self._left_out: set[int] = set()
        self._never_finite: set[int] = set()  # a mask of -Inf, say

    def add(self, variables: Iterable[Any], *, weights: bool = False) -> list[tf.Variable]:
        """Take in variables of Keras or TensorFlow; those that are new here.

        Args:
          weights: whether gradients move them.
        """
        own = {id(part) for engine in self.engines for v in engine.own_variables() for part in _parts(v)}
        new = []
        for variable in map(updates.tf_variable, variables):
            key = id(variable)
            if not isinstance(variable, tf.Variable) or key in own or key in self._left_out:
                continue
            if weights:
                self._weights.add(key)
            known = self._references.get(key)
            if known is None or known() is not variable:
                self._references[key] = weakref.ref(variable)
                new.append(variable)
        return new

    @property
    def strategy(self) -> Any:
        """The strategy that the training runs under, or None."""
        states = (e.on_device.state for e in self.engines if e.on_device is not None)
        return next((s for state in states if (s := getattr(state, "distribute_strategy", None)) is not None), None)

    def leave_out(self, variables: Iterable[Any]) -> None:
        """These belong to the person: a learning rate that was set since the snapshot stays as it was set."""
        for variable in map(updates.tf_variable, variables):
            self._left_out.add(id(variable))
            self._references.pop(id(variable), None)

    def variables(self) -> list[tf.Variable]:
        """Those that still exist."""
        return [v for reference in list(self._references.values()) if (v := reference()) is not None]

    # -- values -----------------------------------------------------------------------------------------

    def read(self) -> Values:
        """All of it, as it is now; waits for the device."""
        return Values({id(v): value_of(v) for v in self.variables()}, self.read_monitors())

    def read_monitors(self) -> tuple[np.ndarray | None, ...]:
        """The states of the monitors."""
        return tuple(None if e.on_device is None else e.on_device.packed() for e in self.engines)

    def write(self, values: Values) -> None:
        """Go back to a copy. What was not there yet when it was taken stays."""
        with tf.init_scope():
            for v in self.variables():
                value = values.variables.get(id(v))
                # a snapshot of another model cannot come here, an id that is used again can
                if value is not None and value.shape == tuple(v.shape):
                    v.assign(value)
        self.rewind(values.monitors)

    def rewind(self, monitors: Sequence[np.ndarray | None]) -> None:
        """The monitors judge as they did then."""
        for engine, packed in zip(self.engines, monitors):
            if packed is not None:
                engine.rewind(packed)

    # -- health -----------------------------------------------------------------------------------------

    def first_value(self, variable: Any) -> np.ndarray:
        """What this variable holds before the first step: where that is not finite, it never has to be."""
        value = value_of(variable)
        if variable.dtype.is_floating and not math.isfinite(squares_of(value)):
            self._never_finite.add(id(variable))
        else:
            self._never_finite.discard(id(variable))
        return value

    def nonfinite(self, *, weights_alone: bool = False) -> list[str]:
        """Names of the variables that hold a NaN or Inf now, and did not before the first step.

        Args:
          weights_alone: of those that gradients move.
        """
        return [
            str(v.name)
            for v in self.variables()
            if self._must_be_finite(v)
            and (id(v) in self._weights or not weights_alone)
            and not bool(tf.reduce_all(tf.math.is_finite(tf.cast(v, tf.float32))))
        ]

    def _must_be_finite(self, variable: Any) -> bool:
        return bool(variable.dtype.is_floating) and id(variable) not in self._never_finite

    def measure(self, values: Values) -> tuple[float, bool]:
        """Of values: the global norm of the weights, NaN where it is not finite; whether all are finite that must."""
        weights, others = 0.0, 0.0
        for v in self.variables():
            value = values.variables.get(id(v))
            if value is None or not v.dtype.is_floating:
                continue
            if id(v) in self._weights:
                weights += squares_of(value)
            elif self._must_be_finite(v):
                others += squares_of(value)
        norm = math.sqrt(weights) if math.isfinite(weights) else math.nan
        return norm, math.isfinite(weights) and math.isfinite(others)

    def weight_norm(self) -> float:
        """Global norm of the weights that gradients move; NaN where it is not finite, 0 without weights."""
        squares = [float(tf.nn.l2_loss(tf.cast(v, tf.float32))) for v in self.variables() if id(v) in self._weights]
        total = float(np.sqrt(2.0 * np.sum(squares))) if squares else 0.0
        return total if np.isfinite(total) else float("nan")

    def number_of_weights(self) -> int:
        """How many numbers gradients move."""
        return sum(int(np.prod(v.shape)) for v in self.variables() if id(v) in self._weights)

    def largest_share(self) -> float:
        """The square of the largest weight over that of the global norm, in [0, 1]; NaN where one is not finite."""
        found = [tf.cast(v, tf.float32) for v in self.variables() if id(v) in self._weights]
        largest = max((float(tf.reduce_max(tf.abs(v))) for v in found), default=0.0)
        norm = self.weight_norm()
        return (largest / norm) ** 2 if norm else 0.0


def _parts(variable: Any) -> tuple[Any, ...]:
    """The variable, and what each replica has of it, as a graph captures it."""
    return (variable, *getattr(variable, "values", ()))


def variables_of(thing: Any) -> list[Any]:
    """The variables of a model, an optimizer, a module, a collection of such, or a variable itself."""
    if isinstance(thing, tf.Variable) or isinstance(getattr(thing, "value", None), tf.Variable):
        return [thing]
    if isinstance(thing, Mapping):
        return [v for one in thing.values() for v in variables_of(one)]
    if isinstance(thing, (list, tuple)):
        return [v for one in thing for v in variables_of(one)]
    if updates.is_optimizer(thing):
        return updates.slots(thing)
    held = getattr(thing, "variables", None)
    held = held() if callable(held) else held
    return list(held) if isinstance(held, (list, tuple)) else []
