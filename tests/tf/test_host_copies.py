"""The values of variables as the host reads them: the same as TensorFlow says, and copies."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf

from gradwatch.tf.host_copies import squares_of, value_of


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int64", "bool"])
def test_a_value_is_what_tensorflow_reads_and_nobody_changes_it(dtype):
    variable = tf.Variable(tf.cast([[0.0, 1.0], [3.0, 7.0]], dtype))
    value = value_of(variable)
    np.testing.assert_array_equal(value, tf.convert_to_tensor(variable).numpy())
    assert value.dtype == variable.dtype.as_numpy_dtype
    variable.assign(tf.zeros_like(variable))
    assert value.astype(float).sum() > 0
    with pytest.raises(ValueError, match="read-only"):
        value[...] = 1


GRADIENT = tf.ones((4, 3))
UPDATES = {
    "assign": lambda v: v.assign(5.0 * GRADIENT),
    "assign_add": lambda v: v.assign_add(GRADIENT),
    "assign_sub": lambda v: v.assign_sub(GRADIENT),
    "a slice": lambda v: v[1:3].assign(GRADIENT[1:3]),
    "scattered": lambda v: v.scatter_nd_add([[1], [1]], GRADIENT[:2]),
    "sparse": lambda v: v.scatter_sub(tf.IndexedSlices(GRADIENT[:2], [0, 2])),
    "a fused optimizer": lambda v: tf.raw_ops.ResourceApplyGradientDescent(var=v.handle, alpha=0.1, delta=GRADIENT),
}


@pytest.mark.parametrize("mode", ["eager", "function", "jit"])
@pytest.mark.parametrize("update", UPDATES)
def test_no_update_writes_into_a_value_that_is_held(update, mode):
    variable = tf.Variable(tf.reshape(tf.range(12.0), (4, 3)))

    def step():
        UPDATES[update](variable)

    if mode != "eager":
        step = tf.function(step, jit_compile=mode == "jit")
    step()
    for _ in range(2):
        value = value_of(variable)
        then = value.copy()
        step()
        np.testing.assert_array_equal(value, then)
        assert not np.array_equal(value_of(variable), then) or update == "assign" or update == "a slice"
        variable.assign(value)  # which may lend its memory to the variable
        step()
        np.testing.assert_array_equal(value, then)


def test_a_value_costs_no_copy():
    variable = tf.Variable(tf.zeros((4, 3)))
    assert value_of(variable).ctypes.data == value_of(variable).ctypes.data


def test_a_variable_is_read_as_it_is_now_while_a_function_is_traced():
    variable = tf.Variable([1.0, 2.0])

    @tf.function
    def step():
        seen.append(value_of(variable))
        variable.assign_add([1.0, 1.0])

    seen = []
    step()
    np.testing.assert_array_equal(seen[0], [1.0, 2.0])


def test_a_mirrored_variable_is_read_once(mirrored):
    with mirrored.scope():
        variable = tf.Variable([1.0, 2.0])
    np.testing.assert_array_equal(value_of(variable), [1.0, 2.0])


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
