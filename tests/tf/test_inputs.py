"""What the history knows of a step beside its norms: learning rate, size of input and target, the odd replica."""

from __future__ import annotations

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

import gradwatch

RNG = np.random.default_rng(0)
X = RNG.normal(size=(6, 4)).astype(np.float32)
Y = RNG.normal(size=(6, 1)).astype(np.float32)


def rms(x):
    return np.sqrt(np.mean(np.square(np.asarray(x, np.float64))))


def trained(mode, batches, optimizer=None, **options):
    model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(1)])
    optimizer = optimizer or keras.optimizers.SGD(keras.optimizers.schedules.PiecewiseConstantDecay([1], [0.1, 0.4]))

    def step(x, y):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(x) - y) ** 2)
        optimizer.apply_gradients(zip(tape.gradient(loss, model.trainable_variables), model.trainable_variables))
        return loss

    if mode == "fit":
        model.compile(optimizer, "mse")
        callback = gradwatch.KerasCallback(**options)
        data = tf.data.Dataset.from_generator(
            lambda: iter(batches), output_signature=(tf.TensorSpec((None, 4)), tf.TensorSpec((None, 1)))
        )
        model.fit(data, verbose=0, callbacks=[callback])
        return callback.monitor
    if mode == "eager":
        step = gradwatch.watch(step, **options)
    elif mode == "inside":
        step = tf.function(gradwatch.watch(step, **options).__call__, reduce_retracing=True)
    else:
        step = gradwatch.watch(tf.function(step, jit_compile=mode == "jit"), **options)
    for x, y in batches:
        step(tf.constant(x), tf.constant(y))
    return step.monitor if hasattr(step, "monitor") else step.python_function.monitor


@pytest.mark.parametrize("mode", ["eager", "function", "jit", "fit"])
def test_the_history_has_the_size_of_each_input_and_target_and_the_rate_of_each_step(mode):
    batches = [(X, Y), (3 * X, Y), (X[:3], -5 * Y[:3])]
    history = trained(mode, batches).history()
    np.testing.assert_allclose(history["input_rms"], [rms(x) for x, _ in batches], rtol=1e-5)
    np.testing.assert_allclose(history["target_rms"], [rms(y) for _, y in batches], rtol=1e-5)
    np.testing.assert_allclose(history["learning_rate"], [0.1, 0.1, 0.4], rtol=1e-6)
    assert np.isnan(history["replica_ratio"]).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_input_that_is_not_finite_is_told_from_one_that_is_not_known(bad):
    broken = X.copy()
    broken[2, 1] = bad
    history = trained("function", [(X, Y), (broken, Y)]).history()
    assert history["input_rms"][1] == np.inf
    assert np.isfinite(history["input_rms"][0])
    assert np.isfinite(history["target_rms"]).all()


def test_a_step_that_is_given_no_array_has_no_input():
    weight = tf.Variable([1.0])
    optimizer = keras.optimizers.SGD(0.1)

    @gradwatch.watch
    @tf.function
    def step(scale):
        optimizer.apply([tf.constant([1.0]) * scale], [weight])

    step(tf.constant(2.0))
    assert np.isnan(step.monitor.history()["input_rms"]).all()
    assert np.isnan(step.monitor.history()["target_rms"]).all()


def test_the_odd_replica_is_named_with_how_many_times_its_gradient_is_longer(mirrored):
    with mirrored.scope():
        weight = tf.Variable(tf.ones([4]))
        optimizer = keras.optimizers.SGD(0.0)
        optimizer.build([weight])

    def replica_step(x):
        optimizer.apply([x], [weight])
        return tf.reduce_sum(x)

    @gradwatch.watch
    @tf.function
    def step(x):
        return mirrored.run(replica_step, args=(x,))

    parts = [[X[0], X[1]], [X[0], 50 * X[0]], [100 * X[1], X[0]]]
    for part in map(tf.constant, parts):
        give = functools.partial(lambda part, c: part[c.replica_id_in_sync_group], part)
        step(mirrored.experimental_distribute_values_from_function(give))
    history = step.monitor.history()
    lengths = np.linalg.norm(np.array(parts), axis=2)
    np.testing.assert_allclose(history["replica_ratio"], lengths.max(1) / lengths.min(1), rtol=1e-4)
    np.testing.assert_array_equal(history["replica"], lengths.argmax(1))
    np.testing.assert_allclose(history["input_rms"], [rms(part) for part in parts], rtol=1e-5)


def test_a_monitor_that_was_reset_still_knows_the_loss_scale_of_a_step_that_is_not_traced_again():
    weight = tf.Variable([1.0])
    optimizer = keras.mixed_precision.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=64.0)
    optimizer.build([weight])

    @gradwatch.watch
    @tf.function
    def step(x):
        optimizer.apply([x], [weight])

    step(tf.constant([1.0]))
    assert step.monitor.snapshot().loss_scale == 64.0
    step.monitor.reset()
    step(tf.constant([1.0]))
    assert step.monitor.snapshot().loss_scale == 64.0
