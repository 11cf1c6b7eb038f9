"""The values of variables as the host reads them, between two steps: as few operations and copies as it takes."""

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


def value_of(variable: Any) -> np.ndarray:
    """What a variable holds now, as an array that stays as it is; waits for the device.

    On a CPU it is the memory of the variable itself. An update writes in place only where nobody else holds that
    memory: else TensorFlow copies it first, and XLA writes to another place. So a value costs nothing but the memory it
    keeps, and a copy where the next step makes one. From an accelerator it is copied.
    """
    value = np.asarray(read(variable))
    value.flags.writeable = False
    return value


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
