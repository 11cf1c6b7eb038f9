"""Norms of gradients of every kind, and scaling them: the only two things done to a gradient.

A gradient is a tf.Tensor of any floating or complex dtype and shape (empty and scalar included) or a
tf.IndexedSlices, which stays one.

Each gradient is read once for its norm. XLA squares in double precision while it reads, on the CPU as a product with
a constant vector: it splits a plain sum of many numbers, and then writes their squares first. On an accelerator the
norms are always compiled. Plain operations on the CPU square in single precision, and again in double precision in the
rare step whose sum overflowed or vanished. Where there are many small gradients they are treated as one array, since an
operation then costs more than what it computes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf

from gradwatch.tf.devices import compiled_by_xla, has_accelerator

Gradient: TypeAlias = tf.Tensor | tf.IndexedSlices

# Up to so many numbers in all gradients, squares in double precision cost less than asking whether they are needed.
_FEW = 1 << 14

# Of the matrix as which a large gradient is squared under XLA: shortest and longest row; rows at least.
_COLUMNS, _ROWS = (64, 1024), 64

# A gradient of so many numbers at most is a small one; so many of them at least are treated as one array.
_SMALL, _MANY = 512, 16

# About so many numbers of a gradient tell about how long it is.
_SAMPLE = 1 << 11

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
    if compiled_by_xla():
        return _in_double(arrays)
    if has_accelerator():
        return _compiled(arrays)
    small, large = _by_size(arrays)
    parts = [_of_small([arrays[i] for i in small])] if small else []
    if large:
        parts.append(_of_large([arrays[i] for i in large]))
    return parts[0] if len(parts) == 1 else tf.gather(tf.concat(parts, 0), np.argsort([*small, *large]))


def _in_double(arrays: Sequence[tf.Tensor]) -> tf.Tensor:
    """float64 holds the largest and the smallest square of float32, and XLA converts while it reads."""
    halves = tf.stack([_half_square(tf.cast(x, tf.float64)) for x in arrays])
    return tf.cast(tf.sqrt(2.0 * halves), tf.float32)


def _half_square(x: tf.Tensor) -> tf.Tensor:
    columns = _columns(x.shape.num_elements() or 0) if compiled_by_xla() and not has_accelerator() else 1
    if columns == 1:
        return tf.nn.l2_loss(x)
    rows = tf.reshape(x, [-1, columns])
    return tf.reduce_sum(tf.linalg.matvec(rows * rows, tf.fill([columns], tf.constant(0.5, x.dtype))))


def _columns(count: int) -> int:
    """Length of the rows in which XLA's matrix-vector product reads so many numbers best; 1 where it does not."""
    if count < _ROWS * _COLUMNS[0]:
        return 1
    return max((n for n in range(_COLUMNS[0], _COLUMNS[1] + 1) if count % n == 0), default=1)


_compiled = tf.function(_in_double, jit_compile=True, autograph=False, reduce_retracing=True)


def _of_small(arrays: Sequence[tf.Tensor]) -> tf.Tensor:
    flat = tf.cast(_side_by_side(arrays), tf.float64)
    return tf.cast(tf.sqrt(tf.math.segment_sum(flat * flat, _owners(arrays))), tf.float32)


def _of_large(arrays: Sequence[tf.Tensor]) -> tf.Tensor:
    if _are_few(arrays):
        return _in_double(arrays)
    squares = 2.0 * tf.stack([tf.cast(tf.nn.l2_loss(x), tf.float32) for x in arrays])
    total = tf.reduce_sum(squares)
    low, high = _TRUSTED
    # ordered comparisons: NaN is not trusted either
    trusted = (total > low) & (total < high)
    return tf.cond(trusted, lambda: tf.sqrt(squares), lambda: _in_double(arrays))


def _by_size(arrays: Sequence[tf.Tensor]) -> tuple[list[int], list[int]]:
    """Which are small ones of one kind and many, and which are the rest."""
    small = [i for i, x in enumerate(arrays) if x.dtype == tf.float32 and 0 < (x.shape.num_elements() or 0) <= _SMALL]
    if len(small) < _MANY:
        small = []
    others = set(small)
    return small, [i for i in range(len(arrays)) if i not in others]


def length_of_sample(gradients: Sequence[Gradient]) -> tf.Tensor:
    """About the L2 norm of all gradients together, float32, shape []: from some thousand numbers of each.

    Gradients of fewer numbers count whole, and so do the rows of IndexedSlices. Of a longer one every k-th number
    counts k times, k such that they stand in all columns. NaN or Inf where one of these numbers is.
    """
    arrays = [g.values if isinstance(g, tf.IndexedSlices) else g for g in gradients]
    strides = tuple(_stride(x.shape) for x in arrays)
    return (_sampled_compiled if has_accelerator() else _sampled)(arrays, strides)


def _sampled(arrays: Sequence[tf.Tensor], strides: tuple[int, ...]) -> tf.Tensor:
    parts = []
    for x, stride in zip(arrays, strides):
        part = tf.reshape(x, [-1])[::stride]
        if part.dtype != tf.float32:
            part = tf.cast(tf.abs(part), tf.float32)
        parts.append(part if stride == 1 else part * stride**0.5)
    return tf.cast(tf.norm(tf.cast(tf.concat(parts, 0), tf.float64)), tf.float32)


def _stride(shape: tf.TensorShape) -> int:
    """Between the numbers of a sample; 1 for a shape that is not known."""
    stride = max((shape.num_elements() or 0) // _SAMPLE, 1)
    while stride > 1 and math.gcd(stride, shape[-1]) > 1:
        stride += 1
    return stride


_sampled_compiled = tf.function(_sampled, jit_compile=True, autograph=False, reduce_retracing=True)


def _side_by_side(arrays: Sequence[tf.Tensor]) -> tf.Tensor:
    return tf.concat([x if x.shape.rank == 1 else tf.reshape(x, [-1]) for x in arrays], 0)


def _owners(arrays: Sequence[tf.Tensor]) -> np.ndarray:
    """For each number of `_side_by_side`, the array it is of."""
    return np.repeat(np.arange(len(arrays), dtype=np.int32), [x.shape.num_elements() for x in arrays])


def _are_few(arrays: Sequence[tf.Tensor]) -> bool:
    sizes = [x.shape.num_elements() for x in arrays]
    return None not in sizes and sum(sizes) <= _FEW


def scaled(gradients: Sequence[Gradient], scale: tf.Tensor) -> list[Gradient]:
    """The gradients times float32 numbers in [0, 1]; 0 drops NaN and Inf too.

    Args:
      scale: shape [] for all of them, or [len(gradients)].
    """
    arrays = [g.values if isinstance(g, tf.IndexedSlices) else g for g in gradients]
    alone = compiled_by_xla() or has_accelerator()
    small, large = ([], list(range(len(arrays)))) if alone else _by_size(arrays)
    out: list[Any] = [None] * len(arrays)
    if small:
        for i, x in zip(small, _scaled_together([arrays[i] for i in small], _of(scale, small))):
            out[i] = x
    if large:
        for i, x in zip(large, _scaled_alone([arrays[i] for i in large], _of(scale, large))):
            out[i] = x
    return [
        tf.IndexedSlices(x, g.indices, g.dense_shape) if isinstance(g, tf.IndexedSlices) else x
        for g, x in zip(gradients, out)
    ]


def _of(scale: tf.Tensor, places: list[int]) -> tf.Tensor:
    return tf.gather(scale, places) if scale.shape.rank else scale


def _scaled_together(arrays: Sequence[tf.Tensor], scale: tf.Tensor) -> list[tf.Tensor]:
    factors = tf.gather(scale, _owners(arrays)) if scale.shape.rank else scale
    flat = tf.math.multiply_no_nan(_side_by_side(arrays), factors)
    parts = tf.split(flat, [x.shape.num_elements() for x in arrays])
    return [part if x.shape.rank == 1 else tf.reshape(part, x.shape) for part, x in zip(parts, arrays)]


def _scaled_alone(arrays: Sequence[tf.Tensor], scale: tf.Tensor) -> list[tf.Tensor]:
    factors = tf.unstack(scale) if scale.shape.rank else [scale] * len(arrays)

    def multiplied() -> list[tf.Tensor]:
        return [_scale(x, factor) for x, factor in zip(arrays, factors)]

    if _are_few(arrays) or has_accelerator() or compiled_by_xla():
        return multiplied()  # XLA multiplies while the update reads the gradient
    # most steps change nothing: a branch costs less than a pass over a large gradient
    return tf.cond(tf.reduce_all(scale >= 1.0), lambda: list(arrays), multiplied)


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
