"""tf.debugging.enable_check_numerics(), which our own alert recommends, beside a watched step."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import support
import tensorflow as tf

import gradwatch
from gradwatch import detectors, policies
from gradwatch.core.policies import COMBINATORS, POLICIES

DATA = support.batches(3)


@pytest.fixture(autouse=True)
def every_operation_checked():
    tf.debugging.enable_check_numerics()
    try:
        yield
    finally:
        tf.debugging.disable_check_numerics()


def watched(policy, mode, **options):
    net, optimizer = support.model(), support.sgd(momentum=0.9)
    optimizer.build(net.trainable_variables)
    step = support.train_step(net, optimizer)
    return support.watch(policy, **options)(step if mode == "eager" else tf.function(step))


def assert_finite(monitor):
    for array in (monitor._engine.on_device.pack(), monitor._engine.on_device.state):
        assert np.isfinite(np.asarray(tf.convert_to_tensor(array))).all()


@pytest.mark.parametrize("mode", ["eager", "function"])
@pytest.mark.parametrize("name", {**POLICIES, **COMBINATORS})
def test_every_policy_trains_under_check_numerics_and_its_state_is_finite(name, mode):
    step = watched({**POLICIES, **COMBINATORS}[name](), mode)
    support.run(step, DATA)
    assert step.monitor.snapshot().steps == len(DATA)
    assert_finite(step.monitor)


@pytest.mark.parametrize("mode", ["eager", "function"])
def test_the_defaults_with_xla_and_every_detector_train_under_check_numerics(mode):
    step = watched(None, mode, detectors=detectors.default(), jit_compile=True, update_limit=0.5, on_explosion="skip")
    support.run(step, DATA)
    assert step.monitor.snapshot().steps == len(DATA)
    assert_finite(step.monitor)


def test_a_fit_with_the_callback_trains_under_check_numerics():
    net = support.model()
    net.compile(optimizer=support.sgd(), loss="mse", jit_compile=False)
    callback = gradwatch.KerasCallback(support.monitor(policies.auto()))
    x, y = DATA[0]
    net.fit(x, y, batch_size=4, epochs=1, verbose=0, callbacks=[callback])
    assert callback.monitor.snapshot().steps == 2
    assert_finite(callback.monitor)


@pytest.mark.parametrize("mode", ["eager", "function"])
def test_check_numerics_still_names_the_operation_of_the_user_that_made_the_nan(mode):
    w = tf.Variable([-1.0, 2.0])
    optimizer = keras.optimizers.SGD(0.1)
    optimizer.build([w])

    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.math.log(w))
        optimizer.apply_gradients([(tape.gradient(loss, w), w)])

    step = support.watch()(step if mode == "eager" else tf.function(step))
    with pytest.raises(tf.errors.InvalidArgumentError, match="Log"):
        step()


def test_check_numerics_sees_an_update_that_becomes_nan():
    """What we do is hidden from it, what the optimizer does is not."""
    w = tf.Variable([1.0, 2.0])
    optimizer = keras.optimizers.SGD(3e38)
    optimizer.build([w])

    @tf.function
    def step():
        optimizer.apply_gradients([(tf.constant([9.0, 9.0]), w)])

    with pytest.raises(tf.errors.InvalidArgumentError, match=r"-?Inf"):
        support.watch(policies.observe())(step)()


def test_under_jit_compile_tensorflow_refuses_its_own_checks_watched_or_not():
    x = tf.ones([2])
    unwatched = tf.function(lambda: x * 2.0, jit_compile=True)
    with pytest.raises(tf.errors.InvalidArgumentError, match="unsupported operations"):
        unwatched()
    net, optimizer = support.model(), support.sgd()
    step = support.watch()(tf.function(support.train_step(net, optimizer), jit_compile=True))
    with pytest.raises(tf.errors.InvalidArgumentError, match="unsupported operations"):
        support.run(step, DATA)
