"""What all monitors over variables of the same shapes compute alike is traced once, and each step holds a call of it.

To make one operation takes TensorFlow a third of a millisecond, and a graph some 6 kB for it (docs/decisions/0018).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from gradwatch.tf import compat, devices, gradients


def inline() -> bool:
    """Whether a step is to hold operations and no call: in eager mode, under a strategy, under XLA, with a GPU."""
    accelerated = devices.has_accelerator()
    return bool(tf.executing_eagerly() or tf.distribute.has_strategy() or compat.in_xla() or accelerated)


class _Handle(NamedTuple):
    """A variable inside of a function that is shared: it knows what it looks like, and not which one it is."""

    handle: tf.Tensor
    dtype: tf.DType
    shape: tf.TensorShape


def once_for_all(compute: Callable[..., Any], variables: Sequence[Any], *how: Any) -> Callable[..., Any]:
    """`compute(*how, ..., variables)`, traced once for all variables of these shapes, and not in each step."""
    if inline() or not all(hasattr(v, "handle") for v in variables):
        return lambda *given: compute(*how, *given, variables)
    function = _traced_once(compute, tuple((v.dtype, v.shape) for v in variables), how)
    return lambda *given: function([v.handle for v in variables], *given)


@functools.lru_cache(maxsize=256)
def _traced_once(compute: Callable[..., Any], kinds: Any, how: tuple[Any, ...]) -> Callable[..., Any]:
    def run(handles: Sequence[tf.Tensor], *given: Any) -> Any:
        # handles, for a function that was given variables refuses to be called once those are gone
        return compute(*how, *given, [_Handle(handle, *kind) for handle, kind in zip(handles, kinds)])

    return tf.function(run, autograph=False)


def numbers(variable: Any) -> tf.Tensor:
    """Of a variable, as `gradients.values` gives them."""
    if not isinstance(variable, _Handle):
        return gradients.values(tf.convert_to_tensor(variable))
    x = tf.raw_ops.ReadVariableOp(resource=variable.handle, dtype=variable.dtype)
    x.set_shape(variable.shape)
    return gradients.values(x)
