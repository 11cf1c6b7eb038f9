"""Where a graph will run: what decides between two ways to compute the same."""

from __future__ import annotations

import tensorflow as tf

from gradwatch.tf import compat


def has_accelerator() -> bool:
    return any(tf.config.list_logical_devices(kind) for kind in ("GPU", "TPU"))


def compiled_by_xla() -> bool:
    """Whether the graph being traced is one that XLA compiles whole."""
    return not tf.executing_eagerly() and compat.in_xla()
