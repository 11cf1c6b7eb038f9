"""The values of variables as the host reads them: the same as TensorFlow says, and copies."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf

from gradwatch.tf.host_copies import copy_of, read, squares_of


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int64", "bool"])
def test_a_variable_reads_as_tensorflow_reads_it_and_the_copy_is_nobodys(dtype):
    variable = tf.Variable(tf.cast([[0.0, 1.0], [3.0, 7.0]], dtype))
    copy = copy_of(variable)
    np.testing.assert_array_equal(copy, tf.convert_to_tensor(variable).numpy())
    assert copy.dtype == variable.dtype.as_numpy_dtype
    variable.assign(tf.zeros_like(variable))
    assert copy.astype(float).sum() > 0
    copy[...] = 1
    assert not np.any(np.asarray(read(variable)).astype(float))


def test_a_variable_is_read_as_it_is_now_while_a_function_is_traced():
    variable = tf.Variable([1.0, 2.0])

    @tf.function
    def step():
        seen.append(copy_of(variable))
        variable.assign_add([1.0, 1.0])

    seen = []
    step()
    np.testing.assert_array_equal(seen[0], [1.0, 2.0])


def test_a_mirrored_variable_is_read_once(mirrored):
    with mirrored.scope():
        variable = tf.Variable([1.0, 2.0])
    np.testing.assert_array_equal(copy_of(variable), [1.0, 2.0])


@pytest.mark.parametrize(
    "values",
    [
        np.array([3.0, -4.0], np.float32),
        np.array([[1e-25, 2e-25]], np.float32),  # below float32's squares
        np.array([1e25, 1e25], np.float32),  # beyond them
        np.array([300.0, 400.0], np.float16),  # beyond those of float16
        np.array([], np.float32),
        np.zeros((), np.float32),
        np.array([2, -3]),
        np.arange(12, dtype=np.float32).reshape(3, 4).T,  # not contiguous
    ],
)
def test_squares_are_summed_as_in_float64(values):
    assert squares_of(values) == pytest.approx(math.fsum(float(x) ** 2 for x in values.reshape(-1)), rel=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_squares_of_what_is_not_finite_are_not_finite(bad):
    assert not math.isfinite(squares_of(np.array([1.0, bad, 2.0], np.float32)))
    assert not math.isfinite(squares_of(tf.constant([1.0, bad], tf.bfloat16).numpy()))
