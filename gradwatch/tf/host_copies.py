"""The values of variables as the host reads them, between two steps: as few operations as it takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf


def read(variable: Any) -> tf.Tensor:
    """What a variable holds now, read outside of every graph; where it is mirrored, of one replica.

    `tf.convert_to_tensor` says the same, but asks tapes, devices and dispatchers on the way: a quarter of its time is
    the operation.
    """
    if not tf.executing_eagerly():
        with tf.init_scope():
            return read(variable)
    if getattr(variable, "distribute_strategy", None) is None and isinstance(variable, tf.Variable):
        return tf.raw_ops.ReadVariableOp(resource=variable.handle, dtype=variable.dtype)
    return tf.convert_to_tensor(variable)


def copy_of(variable: Any) -> np.ndarray:
    """A copy on the host, that nothing shares; waits for the device."""
    return np.asarray(read(variable).numpy())  # which is a copy


def squares_of(values: np.ndarray) -> float:
    """The sum of the squares in float64; Inf or NaN where one of them is."""
    if values.dtype.kind != "f":
        return _exact(values)
    flat = values.reshape(-1)
    quick = float(np.vdot(flat, flat))  # one pass, no copy
    # below or beyond float32's squares
    return quick if 1e-30 < quick < 1e38 and flat.dtype != np.float16 else _exact(flat)


def _exact(values: np.ndarray) -> float:
    wide = values.astype(np.float64)
    return float(np.sum(wide * wide))
