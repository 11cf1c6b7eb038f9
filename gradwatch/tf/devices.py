"""Where a graph will run: what decides between two ways to compute the same."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from gradwatch.tf import compat


def has_accelerator() -> bool:
    return any(device.device_type in ("GPU", "TPU") for device in tf.config.list_logical_devices())


def compiled_by_xla() -> bool:
    """Whether the graph being traced is one that XLA compiles whole."""
    return not tf.executing_eagerly() and compat.in_xla()


def at_hand(x: Any) -> Any:
    """An eager tensor as a numpy array where the host can read it without waiting for a device, else `x` as it is."""
    if not isinstance(x, tf.Tensor) or tf.is_symbolic_tensor(x) or has_accelerator():
        return x
    return x.numpy()
