"""TensorFlow, set up once for all tests of this folder: two logical CPUs, and programs that compile quickly."""

from __future__ import annotations

import os
from importlib.metadata import version

# The tests compile hundreds of tiny programs once and run each a dozen times: optimising them is what costs.
_QUICK = "--xla_backend_optimization_level=0"
if tuple(int(part) for part in version("tensorflow").split(".")[:2]) >= (2, 21):
    # an unknown flag ends the process
    _QUICK += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_QUICK}"

import pytest  # noqa: E402
import support  # noqa: E402
import tensorflow as tf  # noqa: E402

support.two_logical_cpus()


@pytest.fixture(autouse=True)
def nobody_keeps_watching():
    """A watched step that ends or fails must leave nothing behind that watches others."""
    yield
    from gradwatch.tf import watchers

    assert watchers._context.get() is None
    assert not watchers._inside.get()
    assert not watchers._replicas_inside
    assert not watchers._entered


@pytest.fixture
def reader_of_this_test():
    """What the reader has seen in a test is over with it."""
    from gradwatch.reading.reader import reader

    yield
    reader.close()


@pytest.fixture
def folder(tmp_path):
    """Of the records of a test; not there yet."""
    return tmp_path / "runs"


@pytest.fixture(scope="session")
def mirrored() -> tf.distribute.Strategy:
    import loops

    return loops.two_replicas()
