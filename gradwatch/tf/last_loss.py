"""The loss of the newest step, on the device: a policy gets it at the next step, as `norms.loss`."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from gradwatch.core.xp import HUGE
from gradwatch.tf import compat, devices, distribution
from gradwatch.tf.fused import NO_LOSS
from gradwatch.tf.hidden import hidden_from_debuggers


class LastLoss:
    """One number, which the step tells after it was judged, or which is expected before.

    Attributes:
      variable: the number, shape (); `NO_LOSS` where it is not known. Made by `build`.
    """

    def __init__(self) -> None:
        self.variable: tf.Variable | None = None
        self._here = threading.local()  # each replica has a thread of its own

    def build(self) -> None:
        self.variable = distribution.in_scope(
            lambda: distribution.state_variable(np.float32(NO_LOSS), "gradwatch_loss")
        )

    def value(self) -> tf.Tensor:
        """As this replica has it."""
        return tf.convert_to_tensor(self.variable)

    def put(self, value: float) -> None:
        assert self.variable is not None
        with tf.init_scope():
            self.variable.assign(value)

    def take(self) -> tf.Tensor:
        """The loss of the step before; a step is judged next, and its own loss is what was expected, if anything."""
        return self.exchange(self.begin)

    def begin(self) -> Any:
        """A step is judged next: its own loss as it is kept, where it was expected; from now on none is expected."""
        graph = _graph()
        # weakly: a thread must not keep the graph of a training that is over
        self._here.judged = None if graph is None else weakref.ref(graph)
        return self._expected()

    def exchange(self, own: Callable[[], Any]) -> tf.Tensor:
        """The loss of the step before; `own` gives that of the step which is judged next, as it is kept."""
        assert self.variable is not None
        loss = self.value()
        self.variable.assign(own())
        return loss

    @hidden_from_debuggers
    def tell(self, loss: Any) -> None:
        """The step that was judged last had this loss."""
        if self.variable is not None and loss is not None:
            code = _code(loss, getattr(self.variable, "distribute_strategy", None))
            self.variable.assign(code, read_value=not tf.executing_eagerly())

    def expect(self, loss: Any) -> None:
        """The step that is judged next, here, has this loss."""
        self._here.expected = (_graph(), loss)

    def forget(self) -> None:
        """No step that is judged from now on has the loss that was expected."""
        self._here.expected = None

    def report(self, loss: Any) -> None:
        """This step's loss, said before or after it is judged."""
        judged = getattr(self._here, "judged", None)
        if tf.executing_eagerly() or (judged is not None and judged() is _graph()):
            self.tell(loss)
        else:
            self.expect(loss)

    def _expected(self) -> Any:
        graph, loss = getattr(self._here, "expected", None) or (None, None)
        self.forget()
        here = _graph()
        while here is not None and here is not graph:
            here = compat.outer_graph(here)
        if loss is None or here is not graph:
            return NO_LOSS if tf.executing_eagerly() else tf.constant(NO_LOSS)
        return _code(loss)


def _code(loss: Any, strategy: Any = None) -> Any:
    """A loss as the finite number that stands for it; of several replicas the mean, so that all decide alike."""
    if tf.executing_eagerly() and distribution.replicas() == 1:
        at_hand = devices.at_hand(loss)
        if isinstance(at_hand, (np.ndarray, np.generic, float)):
            return _code_at_hand(at_hand)
    if isinstance(loss, tf.distribute.DistributedValues):
        loss = strategy.reduce(tf.distribute.ReduceOp.MEAN, loss, axis=None)
    x = tf.convert_to_tensor(loss)
    x = x if x.dtype == tf.float32 else tf.cast(x, tf.float32)
    x = x if x.shape.rank == 0 else tf.reshape(x, [])
    if distribution.replicas() > 1:
        x = distribution.mean_over_replicas(x)
    return tf.where(tf.math.is_nan(x), NO_LOSS, tf.minimum(tf.maximum(x, -HUGE), HUGE))


def _code_at_hand(loss: Any) -> np.float32:
    """`_code` of a number that the host has."""
    with np.errstate(all="ignore"):
        x = np.asarray(loss).astype(np.float32).reshape(())[()]
    return np.float32(NO_LOSS) if np.isnan(x) else np.float32(np.clip(x, -HUGE, HUGE))


def _graph() -> Any:
    return None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
