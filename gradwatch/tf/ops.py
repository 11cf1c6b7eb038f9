"""TensorFlow's side of the namespace `gradwatch.core.xp.Namespace`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf


class _TensorFlow:
    """Written with `def`: AutoGraph warns about lambdas on one line."""

    def _tensor(self, x: Any) -> tf.Tensor:
        return tf.convert_to_tensor(x, tf.float32)

    def where(self, condition: Any, yes: Any, no: Any) -> tf.Tensor:
        return tf.raw_ops.SelectV2(condition=condition, t=self._tensor(yes), e=self._tensor(no))

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
        return tf.raw_ops.Minimum(x=self._tensor(x), y=self._tensor(y))

    def maximum(self, x: Any, y: Any) -> tf.Tensor:
        return tf.raw_ops.Maximum(x=self._tensor(x), y=self._tensor(y))

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

    def parts(self, x: Any, count: int, shape: tuple[int, ...]) -> list[tf.Tensor]:
        """So many arrays of one shape that lie side by side in a vector: one operation for all of them."""
        return list(tf.unstack(x if shape == () else tf.reshape(x, [count, *shape])))

    def count_below(self, ascending: Any, fraction: float) -> tf.Tensor:
        return tf.reduce_sum(tf.cast(ascending < ascending[-1] * fraction, tf.float32))

    def enter(self, cumulative: Any, index: Any, keep: Any) -> tf.Tensor:
        place = tf.range(cumulative.shape[-1], dtype=tf.float32)
        return cumulative * keep + tf.cast(place >= index, tf.float32)

    def push(self, ring: Any, row: Any) -> tf.Tensor:
        return tf.concat([ring[row.shape[0] :], row], 0)


class Traced(_TensorFlow):
    """For one trace of one function: a number that occurs twice is one node of the graph, and nodes cost time."""

    def __init__(self) -> None:
        self._constants: dict[float, tf.Tensor] = {}

    def _tensor(self, x: Any) -> tf.Tensor:
        if not isinstance(x, (int, float)):
            return super()._tensor(x)
        if x not in self._constants:
            self._constants[x] = tf.constant(x, tf.float32)
        return self._constants[x]


class Fused(Traced):
    """For XLA on the CPU, where each operand of a concatenation of scalars becomes a kernel of its own."""

    def __init__(self) -> None:
        super().__init__()
        self._masks: dict[tuple[int, int, int], tf.Tensor] = {}

    def stack(self, xs: Sequence[Any]) -> tf.Tensor:
        """A tree of selects, by the bits of the place: few masks, and one fusion."""
        xs = [self._tensor(x) for x in xs]
        count, rank = len(xs), xs[0].shape.rank
        if count == 1:
            return tf.reshape(xs[0], [1, *xs[0].shape])
        bit = 0
        while len(xs) > 1:
            odd = self._mask(count, bit, rank)
            pairs = [tf.raw_ops.SelectV2(condition=odd, t=t, e=e) for e, t in zip(xs[::2], xs[1::2])]
            xs = pairs + xs[len(pairs) * 2 :]
            bit += 1
        return xs[0]

    def _mask(self, count: int, bit: int, rank: int) -> tf.Tensor:
        key = (count, bit, rank)
        if key not in self._masks:
            places = np.arange(count) >> bit & 1 > 0
            self._masks[key] = tf.constant(places.reshape([count] + [1] * rank))
        return self._masks[key]


TENSORFLOW = _TensorFlow()
