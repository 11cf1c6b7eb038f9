"""Norms against float64 numpy over the whole range of float32, in every way that they are computed."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from gradwatch.core.guard import Guard
from gradwatch.core.policies import fixed
from gradwatch.tf import fused, gradients

WAYS = {
    "eager": gradients.norms,
    "function": tf.function(gradients.norms, autograph=False),
    "XLA": tf.function(gradients.norms, autograph=False, jit_compile=True),
}
SHAPES = {"few": [(3,), (2, 2)], "many small": [(3,)] * 20 + [(2, 3)] * 5, "large": [(200, 200), (7,), (3,)]}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("size", [1e-35, 1e-20, 1.0, 1e18, 1e20, 1e35])
def test_the_norms_are_those_of_float64_over_the_range_of_float32(way, kind, size):
    rng = np.random.default_rng(0)
    arrays = [(rng.normal(size=shape) * size).astype(np.float32) for shape in SHAPES[kind]]
    expected = [np.linalg.norm(x.astype(np.float64).ravel()) for x in arrays]
    np.testing.assert_allclose(WAYS[way]([tf.constant(x) for x in arrays]), expected, rtol=1e-5)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", SHAPES)
def test_one_nan_or_inf_is_told_apart_from_the_other_gradients(way, kind):
    arrays = [np.ones(shape, np.float32) for shape in SHAPES[kind]]
    arrays[0].flat[0], arrays[1].flat[0] = np.nan, -np.inf
    got = np.asarray(WAYS[way]([tf.constant(x) for x in arrays]))
    assert np.isnan(got[0])
    assert np.isposinf(got[1])
    np.testing.assert_allclose(got[2:], [np.sqrt(x.size) for x in arrays[2:]], rtol=1e-6)


@pytest.mark.parametrize("scale", [0.5, 1.0, 0.0])
@pytest.mark.parametrize("kind", SHAPES)
def test_every_gradient_is_scaled_by_its_own_factor(kind, scale):
    arrays = [np.full(shape, i + 1.0, np.float32) for i, shape in enumerate(SHAPES[kind])]
    arrays[0].flat[0] = np.nan if scale == 0.0 else 1.0
    factors = np.linspace(scale, scale / 2, len(arrays)).astype(np.float32)
    for factor in (tf.constant(scale), tf.constant(factors)):
        got = gradients.scaled([tf.constant(x) for x in arrays], factor)
        for x, y, f in zip(arrays, got, np.broadcast_to(factor, len(arrays))):
            np.testing.assert_allclose(y, np.where(f == 0, 0, x * f), rtol=1e-6)


def test_equal_guards_over_as_many_variables_share_one_program():
    one, other = (Guard(fixed(1.0), ()) for _ in range(2))
    assert fused.program(one, 3, jit_compile=False) is fused.program(other, 3, jit_compile=False)
    assert fused.program(one, 3, jit_compile=False) is not fused.program(one, 4, jit_compile=False)
    assert fused.program(one, 3, jit_compile=False) is not fused.program(Guard(fixed(2.0), ()), 3, jit_compile=False)


SAMPLED = {
    "small": [(3,), (2, 2), (0, 4), ()],
    "large": [(300, 400), (50_000,), (7, 11, 13, 17)],
    "columns of a power of two": [(2048, 64), (4, 32768)],
}


@pytest.mark.parametrize("accelerator", [False, True])
@pytest.mark.parametrize("kind", SAMPLED)
def test_a_sample_of_the_gradients_is_about_as_long_as_they_are(kind, accelerator, monkeypatch):
    monkeypatch.setattr(gradients, "has_accelerator", lambda: accelerator)
    rng = np.random.default_rng(0)
    for size in (1e-30, 1.0, 1e20, 1e35):
        arrays = [np.asarray(rng.normal(size=shape) * size, np.float32) for shape in SAMPLED[kind]]
        whole = np.linalg.norm(np.concatenate([x.astype(np.float64).ravel() for x in arrays]))
        rtol = 1e-6 if kind == "small" else 0.1
        np.testing.assert_allclose(gradients.length_of_sample([tf.constant(x) for x in arrays]), whole, rtol=rtol)


@pytest.mark.parametrize("columns", [32, 45, 49, 64, 97, 1000, 1024])
def test_a_sample_misses_no_column(columns):
    x = np.zeros((400_000 // columns, columns), np.float32)
    for column in {0, 1, columns // 2, columns - 1}:
        x[:, column] = 1.0
        np.testing.assert_allclose(gradients.length_of_sample([tf.constant(x)]), np.linalg.norm(x), rtol=0.25)
        x[:, column] = 0.0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "complex64"])
def test_a_sample_is_made_of_numbers_of_every_kind(dtype):
    x = tf.cast(np.linspace(-300.0, 300.0, 20_000), dtype)
    rows = tf.IndexedSlices(tf.reshape(x, [-1, 4]), tf.zeros([5000], tf.int64))
    for gradient in (x, rows):
        np.testing.assert_allclose(gradients.length_of_sample([gradient]), 24497.9, rtol=0.02)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_gradient_of_nan_or_inf_makes_the_length_of_a_sample_so(bad):
    for shape in [(3,), (300, 400)]:
        got = gradients.length_of_sample([tf.ones([4]), tf.fill(shape, np.float32(bad))])
        assert not np.isfinite(got)
