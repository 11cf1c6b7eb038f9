"""What a step was given: how large its numbers are, for whoever asks later which batch was unlike the others.

The mean square of an array is one pass over it, far less than what a step does with it. It is Inf or NaN as soon as one
number of the array is.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import tensorflow as tf

from gradwatch.core.guard import BEYOND, NOT_KNOWN
from gradwatch.core.xp import HUGE
from gradwatch.tf import compat, devices, distribution
from gradwatch.tf.hidden import hidden_from_debuggers

_LARGEST = float(np.finfo(np.float32).max)


class Inputs:
    """Mean squares of the first and of the last array that the step under way was given.

    Attributes:
      kinds: "input" and "target" -> the name of their dtype, where there is one.
    """

    def __init__(self) -> None:
        self.kinds: dict[str, str] = {}
        self._here = threading.local()  # of a replica, each of which has a thread of its own
        self._found: tuple[Any, Any] | None = None  # the graph, and two numbers: a tensor, or those of the host

    @hidden_from_debuggers
    def expect(self, first: Any, last: Any) -> None:
        """The step that is judged next was given these, of any structure; its arrays that are no numbers do not count.

        Args:
          first: the first array in it is the input.
          last: the last array in it is the target; no target where it is the input.
        """
        of_first = _arrays(first)
        of_last = of_first if last is first else _arrays(last)
        if not of_first:
            self.forget()
            return
        target = of_last[-1] if of_last and of_last[-1] is not of_first[0] else None
        self.kinds = {"input": _kind(of_first[0]).name} | ({} if target is None else {"target": _kind(target).name})
        if _is_at_hand(of_first[0], target):
            of_target = NOT_KNOWN if target is None else _mean_square_at_hand(target)
            self._found = None, [_mean_square_at_hand(of_first[0]), of_target]
            return
        pair = tf.stack([_mean_square(of_first[0]), NOT_KNOWN if target is None else _mean_square(target)])
        # a comparison with NaN is false
        found = _graph(), tf.where(pair <= HUGE, pair, BEYOND)
        if distribution.replicas() > 1:
            self._here.found = found
        else:
            self._found = found

    def forget(self) -> None:
        """The step is over."""
        self._here.found = self._found = None

    def known(self) -> list[Any]:
        """Of this step: mean squares of input and target, each `NOT_KNOWN` where it is not. A replica knows its own."""
        for found in (getattr(self._here, "found", None), self._found):
            if found is None:
                continue
            here = _graph()
            while here is not None and here is not found[0]:
                here = compat.outer_graph(here)
            if here is found[0] and (here is not None or tf.executing_eagerly()):
                return found[1] if isinstance(found[1], list) else tf.unstack(found[1])
        return [NOT_KNOWN, NOT_KNOWN]


def _arrays(given: Any) -> list[Any]:
    """The arrays of numbers in a structure, scalars and variables left out."""
    found = []
    for x in tf.nest.flatten(given):
        if isinstance(x, tf.RaggedTensor):
            x = x.flat_values
        elif isinstance(x, tf.SparseTensor):
            x = x.values
        part = _part(x)
        if isinstance(part, (tf.Tensor, np.ndarray)) and not isinstance(part, tf.Variable):
            rank = part.shape.rank if tf.is_tensor(part) else part.ndim
            if rank != 0 and (_kind(x).is_floating or _kind(x).is_integer):
                found.append(x)
    return found


def _part(x: Any) -> Any:
    """What one replica was given."""
    return x.values[0] if isinstance(x, tf.distribute.DistributedValues) and getattr(x, "values", None) else x


def _kind(x: Any) -> tf.DType:
    dtype = _part(x).dtype
    return tf.as_dtype(dtype) if isinstance(dtype, tf.DType) or dtype.kind in "biufc" else tf.string


def _mean_square(x: Any) -> tf.Tensor:
    if isinstance(x, tf.distribute.DistributedValues):
        return tf.add_n([_mean_square(part) for part in x.values]) / len(x.values)
    x = tf.convert_to_tensor(x)
    size = x.shape.num_elements()
    count = tf.cast(tf.size(x), tf.float32) if size is None else float(size)
    return 2.0 * tf.nn.l2_loss(tf.cast(x, tf.float32)) / tf.maximum(count, 1.0)


def _is_at_hand(*arrays: Any) -> bool:
    """Whether the host can read numbers made of these without waiting for a device."""
    return (
        tf.executing_eagerly()
        and distribution.replicas() == 1
        and not any(isinstance(x, tf.distribute.DistributedValues) for x in arrays)
        and not devices.has_accelerator()
    )


def _mean_square_at_hand(x: Any) -> float:
    """`_mean_square`, and `BEYOND` where there is none, to the bit: one operation, the rest on the host."""
    x = tf.convert_to_tensor(x)
    squares = 2.0 * float(tf.nn.l2_loss(x if x.dtype == tf.float32 else tf.cast(x, tf.float32)).numpy())
    # in float32 it is Inf; a comparison with NaN is false
    finite = squares <= _LARGEST
    # two numbers of float32, divided in float64: that rounds once
    found = squares / float(np.float32(max(x.shape.num_elements(), 1)))
    return found if finite and found <= HUGE else BEYOND


def _graph() -> Any:
    return None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
