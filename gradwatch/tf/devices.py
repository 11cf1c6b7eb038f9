"""Where a graph will run: what decides between two ways to compute the same."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf
from tensorflow.python.eager import context

from gradwatch.tf import compat


def has_accelerator() -> bool:
    return any(tf.config.list_logical_devices(kind) for kind in ("GPU", "TPU"))


def compiled_by_xla() -> bool:
    """Whether the graph being traced is one that XLA compiles whole."""
    return not tf.executing_eagerly() and compat.in_xla()


def every_operation_is_checked() -> bool:
    """Whether tf.debugging looks at each operation (`enable_check_numerics`): XLA has not the operations it adds."""
    return bool(context.context().op_callbacks)


def outside_of_graphs(read: Callable[[], tf.Tensor]) -> np.ndarray:
    """The value of `read()`, run outside of the graph that is being built."""
    with context.eager_mode():
        return read().numpy()
