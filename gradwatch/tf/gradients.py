"""Norms of gradients of every kind, and scaling them: the only two things done to a gradient.

A gradient is a tf.Tensor of any floating or complex dtype and shape (empty and scalar included) or a
tf.IndexedSlices, which stays one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import tensorflow as tf

Gradient: TypeAlias = tf.Tensor | tf.IndexedSlices

# Up to so many numbers in all gradients, squares in double precision cost less than asking whether they are needed.
_FEW = 1 << 14

# Between these the plain sum of squares of float32 neither overflowed nor lost everything to underflow.
_TRUSTED = (1e-30, 3e38)


def values(gradient: Gradient) -> tf.Tensor:
    """The numbers of a gradient. Repeated rows of IndexedSlices stay apart, as in tf.clip_by_global_norm."""
    x = gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient
    if x.dtype.is_complex:
        x = tf.abs(x)
    # fp16 would overflow at 256^2
    return tf.cast(x, tf.float32) if x.dtype in (tf.float16, tf.bfloat16) else x


def norms(gradients: Sequence[Gradient]) -> tf.Tensor:
    """L2 norm of each gradient, float32, shape [len(gradients)]; NaN or Inf where one holds a NaN or Inf.

    A gradient of finite numbers has a finite norm up to 3e38, although its sum of squares overflows from 1.8e19.
    IndexedSlices count their rows as they are: with repeated ids that is the norm of the rows, not of their
    sum, the same choice as `tf.linalg.global_norm`.
    """
    arrays = [values(gradient) for gradient in gradients]
    if _are_few(arrays) and not _has_accelerator():
        squares = tf.stack([tf.nn.l2_loss(tf.cast(x, tf.float64)) for x in arrays])
        # a sum of squares is Inf or NaN as its parts are; float64 holds the largest square of float32
        return tf.cast(tf.sqrt(2.0 * squares), tf.float32)
    squares = tf.stack([2.0 * tf.cast(tf.nn.l2_loss(x), tf.float32) for x in arrays])
    total = tf.reduce_sum(squares)
    low, high = _TRUSTED
    # ordered comparisons: NaN is not trusted either
    trusted = (total > low) & (total < high)
    if _has_accelerator():
        # a predicate would travel to the host each step; a second pass over the gradients does not
        return tf.where(trusted, tf.sqrt(squares), _careful(arrays))
    return tf.cond(trusted, lambda: tf.sqrt(squares), lambda: _careful(arrays))


def _are_few(arrays: Sequence[tf.Tensor]) -> bool:
    sizes = [x.shape.num_elements() for x in arrays]
    return None not in sizes and sum(sizes) <= _FEW


def _has_accelerator() -> bool:
    return any(tf.config.list_logical_devices(kind) for kind in ("GPU", "TPU"))


def _careful(arrays: Sequence[tf.Tensor]) -> tf.Tensor:
    """norm_i = m_i * |x_i / m_i| with m_i = max |x_i|: no overflow, no underflow."""
    out = []
    for x in arrays:
        magnitude = tf.abs(x)
        largest = tf.reduce_max(tf.concat([tf.reshape(magnitude, [-1]), tf.zeros([1], x.dtype)], 0))
        divisor = tf.where(largest > 0, largest, tf.ones_like(largest))
        scaled = tf.cast(tf.sqrt(2.0 * tf.nn.l2_loss(x / divisor)), tf.float32)
        norm = tf.minimum(tf.cast(largest, tf.float32) * scaled, tf.constant(3e38))
        # max() of NaN differs between CPU and XLA: ask the elements
        good = tf.reduce_all(tf.math.is_finite(x))
        has_nan = tf.reduce_any(tf.math.is_nan(x))
        broken = tf.where(has_nan, tf.constant(float("nan")), tf.constant(float("inf")))
        out.append(tf.where(good, norm, broken))
    return tf.stack(out)


def scaled(gradients: Sequence[Gradient], scale: tf.Tensor) -> list[Gradient]:
    """The gradients times float32 numbers in [0, 1]; 0 drops NaN and Inf too.

    Args:
      scale: shape [] for all of them, or [len(gradients)].
    """
    factors = tf.unstack(scale) if scale.shape.rank else [scale] * len(gradients)
    arrays = [g.values if isinstance(g, tf.IndexedSlices) else g for g in gradients]

    def multiplied() -> list[tf.Tensor]:
        return [_scale(x, factor) for x, factor in zip(arrays, factors)]

    if _are_few(arrays) or _has_accelerator():
        out = multiplied()
    else:
        # most steps change nothing: on the CPU a branch costs less than a pass over a large gradient
        out = tf.cond(tf.reduce_all(scale >= 1.0), lambda: [tf.identity(x) for x in arrays], multiplied)
    return [
        tf.IndexedSlices(x, g.indices, g.dense_shape) if isinstance(g, tf.IndexedSlices) else x
        for g, x in zip(gradients, out)
    ]


def _scale(x: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    # NaN * 0 is NaN, so not a product; a factor of NaN makes all NaN
    if x.dtype in (tf.float16, tf.bfloat16):
        # a factor of 1e-9 would be 0 in fp16
        return tf.cast(tf.math.multiply_no_nan(tf.cast(x, tf.float32), factor), x.dtype)
    return tf.math.multiply_no_nan(x, tf.cast(factor, x.dtype))


def clip_by_value(gradient: Gradient, limit: float | tf.Tensor) -> Gradient:
    """Each element clamped to [-limit, limit], as tf.clip_by_value does. A limit beyond the dtype's range is none."""
    if isinstance(gradient, tf.IndexedSlices):
        return tf.IndexedSlices(clip_by_value(gradient.values, limit), gradient.indices, gradient.dense_shape)
    bound = tf.cast(limit, gradient.dtype)
    return tf.clip_by_value(gradient, -bound, bound)


def clamped_part(part: Gradient, whole: Gradient, limit: float | tf.Tensor) -> Gradient:
    """A replica's part, so that the parts add up to `whole` (the sum of them all) clamped to [-limit, limit].

    IndexedSlices count their rows as they are, and summing puts the rows of the replicas side by side.
    """
    if part is whole or isinstance(part, tf.IndexedSlices):
        return clip_by_value(part, limit)
    one = tf.ones_like(whole)
    divisor = tf.where(tf.equal(whole, 0), one, whole)
    return part * tf.where(tf.equal(whole, 0), one, clip_by_value(whole, limit) / divisor)
