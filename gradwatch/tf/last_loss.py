"""The loss of the newest step, on the device: a policy gets it at the next step, as `norms.loss`.

Under a strategy each replica keeps its own. Their mean is made when it is asked for: in the next step, with what is
summed over the replicas there anyway. Where other processes share the steps it is made at once, since the hosts see it.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from gradwatch.core.xp import HUGE
from gradwatch.tf import compat, devices, distribution, host_copies
from gradwatch.tf.fused import NO_LOSS
from gradwatch.tf.hidden import hidden_from_debuggers

#: Numbers in what `part` gives.
PARTS = 4

# of a loss as it is kept: finite, not known, Inf, -Inf; each lies between two numbers
_INF, _LARGEST = np.nextafter(np.float32(HUGE), np.float32(0.0)), np.finfo(np.float32).max
_ABOVE = np.array([-HUGE, 1e37, _INF, -_LARGEST], np.float32)
_BELOW = np.array([HUGE, _LARGEST, 1e37, -_INF], np.float32)


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

    @hidden_from_debuggers
    def value(self) -> tf.Tensor:
        """The mean over the replicas of this process; for a replica its own."""
        copies = () if distribution.replicas() > 1 else getattr(self.variable, "values", ())
        if len(copies) < 2:
            return tf.convert_to_tensor(self.variable)
        return of_sums(tf.add_n([part(tf.convert_to_tensor(copy)) for copy in copies]), len(copies))

    def read(self) -> tf.Tensor:
        """`value` as the host reads it between two steps."""
        if not hasattr(self.variable, "values"):
            return host_copies.read(self.variable)
        with tf.init_scope():
            return self.value()

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
            strategy = getattr(self.variable, "distribute_strategy", None)
            several = isinstance(loss, tf.distribute.DistributedValues)
            if several and strategy is not None and not distribution.has_several_workers(strategy):
                strategy.extended.update(self.variable, lambda copy, own: copy.assign(_code(own)), args=(loss,))
                return
            self.variable.assign(_code(loss, strategy), read_value=not tf.executing_eagerly())

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
    """A loss as the finite number that stands for it; the mean where several processes share the steps."""
    if tf.executing_eagerly() and distribution.replicas() == 1:
        at_hand = devices.at_hand(loss)
        if isinstance(at_hand, (np.ndarray, np.generic, float)):
            return _code_at_hand(at_hand)
    if isinstance(loss, tf.distribute.DistributedValues):
        loss = strategy.reduce(tf.distribute.ReduceOp.MEAN, loss, axis=None)
    x = tf.convert_to_tensor(loss)
    x = x if x.dtype == tf.float32 else tf.cast(x, tf.float32)
    x = x if x.shape.rank == 0 else tf.reshape(x, [])
    if distribution.replicas() > 1 and distribution.has_several_workers(tf.distribute.get_strategy()):
        x = distribution.sum_of(x) / float(distribution.replicas())
    return tf.where(tf.math.is_nan(x), NO_LOSS, tf.minimum(tf.maximum(x, -HUGE), HUGE))


def part(code: tf.Tensor) -> tf.Tensor:
    """What is to be summed over the replicas for the mean of their losses, shape [PARTS], finite.

    The loss where it is finite, then three numbers that are 1 or 0: it is not known, it is Inf, it is -Inf.
    """
    kinds = tf.cast((code > _ABOVE) & (code < _BELOW), tf.float32)
    return kinds * tf.stack([code, 1.0, 1.0, 1.0])


def of_sums(sums: tf.Tensor, count: int) -> tf.Tensor:
    """The mean as it is kept, of the sum of `part` over so many replicas."""
    loss, unknown, above, below = tf.unstack(sums)
    mean = tf.where(above > 0.0, HUGE, tf.where(below > 0.0, -HUGE, loss / float(count)))
    return tf.where((unknown > 0.0) | ((above > 0.0) & (below > 0.0)), NO_LOSS, mean)


def _code_at_hand(loss: Any) -> np.float32:
    """`_code` of a number that the host has."""
    with np.errstate(all="ignore"):
        x = np.asarray(loss).astype(np.float32).reshape(())[()]
    return np.float32(NO_LOSS) if np.isnan(x) else np.float32(np.clip(x, -HUGE, HUGE))


def _graph() -> Any:
    return None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
