"""TensorFlow, set up once for all tests of this folder: two logical CPUs, and XLA that compiles quickly."""

from __future__ import annotations

import os

# The tests compile hundreds of tiny programs once and run each a dozen times: optimising them is what costs.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0"

import pytest
import support
import tensorflow as tf

support.two_logical_cpus()


@pytest.fixture(autouse=True)
def nobody_keeps_watching():
    """A watched step that ends or fails must leave nothing behind that watches others."""
    yield
    from gradwatch.tf import hook

    assert hook._context.get() is None
    assert not any(hook._inner.values())


@pytest.fixture(scope="session")
def mirrored() -> tf.distribute.Strategy:
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
