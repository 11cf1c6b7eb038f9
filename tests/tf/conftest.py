"""TensorFlow, set up once for all tests of this folder: two logical CPUs, and programs that compile quickly."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from importlib.metadata import version

# The tests compile hundreds of tiny programs once and run each a dozen times: optimising them is what costs.
_QUICK = "--xla_backend_optimization_level=0"
if tuple(int(part) for part in version("tensorflow").split(".")[:2]) >= (2, 21):
    _QUICK += " --xla_cpu_use_fusion_emitters=false"  # an unknown flag ends the process
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


@contextlib.contextmanager
def guards_that_share_their_program():
    """Tracing the guard is most of what a tiny training costs. It is a pure function: equal ones share it."""
    from gradwatch.core.layout import Layout
    from gradwatch.tf import engine, fused

    made, cache = fused.FusedGuard, {}

    def shared(guard, initial, *, jit_compile):
        key = repr((_content(guard), jit_compile, Layout(initial).fingerprint()))
        if key not in cache:
            cache[key] = made(guard, initial, jit_compile=jit_compile)
        return cache[key]

    fused.FusedGuard = engine.FusedGuard = shared
    try:
        yield
    finally:
        fused.FusedGuard = engine.FusedGuard = made


@pytest.fixture(scope="session", autouse=True)
def quick_guards():
    with guards_that_share_their_program():
        yield


def _content(x):
    """What `x` is made of: fields of tuples and dataclasses, code and cells of functions."""
    if dataclasses.is_dataclass(x):
        return [_content(getattr(x, field.name)) for field in dataclasses.fields(x)]
    if isinstance(x, tuple):
        return [_content(part) for part in x]
    if hasattr(x, "__code__"):
        return x.__code__, [_content(cell.cell_contents) for cell in x.__closure__ or ()]
    return x


@pytest.fixture(scope="session")
def mirrored() -> tf.distribute.Strategy:
    import loops

    return loops.two_replicas()
