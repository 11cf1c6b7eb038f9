"""TensorFlow's side of the namespace `gradwatch.core.xp.Namespace`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf


class _TensorFlow:
    """Written with `def`: AutoGraph warns about lambdas on one line."""

    def where(self, condition: Any, yes: Any, no: Any) -> tf.Tensor:
        return tf.where(condition, tf.convert_to_tensor(yes, tf.float32), tf.convert_to_tensor(no, tf.float32))

    def log(self, x: Any) -> tf.Tensor:
        return tf.math.log(x)

    def exp(self, x: Any) -> tf.Tensor:
        return tf.exp(x)

    def sqrt(self, x: Any) -> tf.Tensor:
        return tf.sqrt(x)

    def ceil(self, x: Any) -> tf.Tensor:
        return tf.math.ceil(x)

    def abs(self, x: Any) -> tf.Tensor:
        return tf.abs(x)

    def minimum(self, x: Any, y: Any) -> tf.Tensor:
        return tf.minimum(x, y)

    def maximum(self, x: Any, y: Any) -> tf.Tensor:
        return tf.maximum(x, y)

    def is_finite(self, x: Any) -> tf.Tensor:
        return tf.math.is_finite(x)

    def sum(self, x: Any) -> tf.Tensor:
        return tf.reduce_sum(x)

    def max(self, x: Any) -> tf.Tensor:
        return tf.reduce_max(x)

    def number(self, x: Any) -> tf.Tensor:
        return tf.cast(x, tf.float32)

    def arange(self, n: int) -> tf.Tensor:
        return tf.range(n, dtype=tf.float32)

    def stack(self, xs: Sequence[Any]) -> tf.Tensor:
        return tf.stack(xs)

    def concat(self, xs: Sequence[Any]) -> tf.Tensor:
        return tf.concat(xs, 0)

    def reshape(self, x: Any, shape: tuple[int, ...]) -> tf.Tensor:
        return tf.reshape(x, shape)


class _Fused(_TensorFlow):
    """For XLA on the CPU, where each operand of a concatenation of scalars becomes a kernel of its own."""

    def stack(self, xs: Sequence[Any]) -> tf.Tensor:
        place = tf.range(len(xs))
        out = tf.zeros([len(xs)])
        for i, x in enumerate(xs):
            out = tf.where(place == i, x, out)
        return out


TENSORFLOW = _TensorFlow()
FUSED = _Fused()
