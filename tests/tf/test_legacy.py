"""tf-keras, the Keras 2 of TensorFlow: the same promises for its optimizers, its fit and its loss scaling."""

from __future__ import annotations

import functools
import os
import subprocess
import sys

import numpy as np
import pytest
import support
import tensorflow as tf

import gradwatch
from gradwatch import policies
from gradwatch.errors import NothingToWatch

tf_keras = pytest.importorskip("tf_keras")

DATA = support.batches(8)
SPIKED = support.batches(30, spike_at=20)

OPTIMIZERS = {
    "SGD": lambda: tf_keras.optimizers.SGD(0.01, momentum=0.9),
    "Adam": lambda: tf_keras.optimizers.Adam(0.01),
    "AdamW": lambda: tf_keras.optimizers.AdamW(0.01, weight_decay=0.1),
    "legacy.SGD": lambda: tf_keras.optimizers.legacy.SGD(0.01, momentum=0.9),
    "legacy.Adam": lambda: tf_keras.optimizers.legacy.Adam(0.01),
}


def model(policy="float32"):
    # not by set_random_seed: with it tf-keras 2.18 cannot make a weight on Python 3.12
    layers, glorot = tf_keras.layers, tf_keras.initializers.GlorotUniform
    return tf_keras.Sequential(
        [
            layers.Input((5,)),
            layers.Dense(10, activation="relu", kernel_initializer=glorot(seed=1), dtype=policy),
            layers.Dense(1, kernel_initializer=glorot(seed=2), dtype=policy),
            layers.Activation("linear", dtype="float32"),
        ]
    )


def weights(net, optimizer):
    held = optimizer.variables() if callable(optimizer.variables) else optimizer.variables
    return [v.numpy() for v in [*net.variables, *held]]


@functools.cache
def clipped_explicitly(name):
    net, optimizer = model(), OPTIMIZERS[name]()
    support.run(tf.function(support.train_step(net, optimizer, support.CLIP)), DATA)
    return weights(net, optimizer)


@pytest.mark.parametrize("mode", support.MODES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_clipped_training_equals_an_explicit_clip(name, mode):
    net, optimizer = model(), OPTIMIZERS[name]()
    monitor = support.monitor()
    step = support.MODES[mode](gradwatch.watch(monitor=monitor), support.train_step(net, optimizer))
    support.run(step, DATA)
    assert monitor.snapshot().steps == len(DATA)
    assert monitor.snapshot().clipped_steps > 0
    support.assert_close(weights(net, optimizer), clipped_explicitly(name))


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_with_observe_the_training_is_bit_identical_and_a_spike_is_seen(make):
    results = []
    for decorate in (lambda step: step, support.watch(policies.observe())):
        net, optimizer = model(), make()
        step = decorate(tf.function(support.train_step(net, optimizer)))
        support.run(step, SPIKED)
        results.append(weights(net, optimizer))
    support.assert_same(*results)
    assert step.monitor.snapshot().last_explosion.step == 20
    assert "kernel" in max(step.monitor.snapshot().layer_norms)


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_skipped_step_leaves_weights_slots_and_iterations_to_the_bit(make):
    net, optimizer = model(), make()
    step = support.watch(on_nonfinite="skip")(tf.function(support.train_step(net, optimizer)))
    support.run(step, DATA[:3])
    before = weights(net, optimizer)
    x, y = DATA[3]
    step(x * np.nan, y)
    support.assert_same(before, weights(net, optimizer))
    assert step.monitor.snapshot().skipped_updates == 1
    step(*DATA[4])
    assert step.monitor.snapshot().steps == 5


@pytest.mark.parametrize("mode", ["eager", "function inside"])
def test_with_skip_an_update_returns_the_number_of_updates_as_without(mode):
    net, optimizer = model(), tf_keras.optimizers.SGD(0.01)

    def step(x, y):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(net(x) - y))
        return optimizer.apply_gradients(zip(tape.gradient(loss, net.trainable_variables), net.trainable_variables))

    watched = support.MODES[mode](support.watch(on_nonfinite="skip"), step)
    assert [int(watched(*DATA[0])), int(watched(*DATA[1]))] == [1, 2]


@pytest.mark.parametrize("options", [{}, {"jit_compile": True}, {"run_eagerly": True}], ids=["fit", "jit", "eager"])
def test_fit_counts_every_update_and_leaves_the_next_fit_alone(options):
    x, y = (np.concatenate([batch[i] for batch in DATA]) for i in (0, 1))
    net = model()
    net.compile(OPTIMIZERS["SGD"](), "mse", **options)
    callback = gradwatch.KerasCallback(support.monitor())
    history = net.fit(x, y, batch_size=8, epochs=2, verbose=0, callbacks=[callback])
    assert callback.monitor.snapshot().steps == 2 * len(DATA)
    assert history.history["gradient_norm"][-1] > 0
    net.fit(x, y, batch_size=8, epochs=1, verbose=0)
    assert callback.monitor.snapshot().steps == 2 * len(DATA)


def test_loss_scaling_is_unscaled_and_its_probing_raises_no_alarm():
    net, alone = model("mixed_float16"), model("mixed_float16")
    optimizer = tf_keras.mixed_precision.LossScaleOptimizer(tf_keras.optimizers.SGD(0.01), initial_scale=2.0**40)

    @support.watch(policies.observe())
    @tf.function
    def step(x, y):
        with tf.GradientTape() as tape:
            loss = optimizer.get_scaled_loss(support.loss_of(net, x, y))
        grads = optimizer.get_unscaled_gradients(tape.gradient(loss, net.trainable_variables))
        optimizer.apply_gradients(zip(grads, net.trainable_variables))

    support.run(step, [DATA[0]] * 40)
    seen = step.monitor.snapshot()
    assert seen.steps == 40
    assert seen.nonfinite_steps > 3, "the scale was far too high at first"
    with tf.GradientTape() as tape:
        loss = support.loss_of(alone, *DATA[0])
    expected = tf.linalg.global_norm(tape.gradient(loss, alone.trainable_variables))
    first = step.monitor.history()["norm"]
    assert first[np.isfinite(first)][0] == pytest.approx(float(expected), rel=0.02)


@pytest.mark.parametrize("make", [OPTIMIZERS["SGD"], OPTIMIZERS["legacy.SGD"]], ids=["SGD", "legacy.SGD"])
@pytest.mark.parametrize("summed", [False, True], ids=["sums", "is given sums"])
def test_two_replicas_equal_one_device(mirrored, make, summed):
    with mirrored.scope():
        net, optimizer = model(), make()
    is_old = hasattr(optimizer, "_create_all_weights")
    keywords = {"experimental_aggregate_gradients": False} if is_old else {"skip_gradients_aggregation": True}

    @support.watch()
    def replica(x, y):
        with tf.GradientTape() as tape:
            loss = support.loss_of(net, x, y) / 2.0
        grads = tape.gradient(loss, net.trainable_variables)
        if summed:
            grads = tf.distribute.get_replica_context().all_reduce("sum", grads)
        optimizer.apply_gradients(zip(grads, net.trainable_variables), **(keywords if summed else {}))

    step = tf.function(lambda x, y: mirrored.run(replica, args=(x, y)))
    for x, y in DATA:
        halves = (
            mirrored.experimental_distribute_values_from_function(
                lambda context, t=t: t[4 * context.replica_id_in_sync_group :][:4]
            )
            for t in (x, y)
        )
        step(*halves)
    alone, other = model(), make()
    single = support.watch()(tf.function(support.train_step(alone, other)))
    support.run(single, DATA)
    for column in ("norm", "applied_norm"):
        np.testing.assert_allclose(replica.monitor.history()[column], single.monitor.history()[column], rtol=1e-6)
    support.assert_close(
        [v.numpy() for v in net.trainable_variables], [v.numpy() for v in alone.trainable_variables], rtol=1e-5
    )


def test_an_optimizer_of_tf_keras_can_be_named():
    net, optimizer = model(), OPTIMIZERS["Adam"]()
    step = support.watch(optimizer=optimizer)(support.train_step(net, optimizer))
    step(*DATA[0])
    assert step.monitor.snapshot().steps == 1
    other = support.watch(optimizer=OPTIMIZERS["SGD"]())(support.train_step(net, optimizer))
    with pytest.raises(NothingToWatch):
        other(*DATA[0])


PROGRAM = """
import tensorflow as tf
import gradwatch
assert tf.keras.Model.__module__.startswith("tf_keras"), tf.keras.Model
net = tf.keras.Sequential([tf.keras.layers.Input((3,)), tf.keras.layers.Dense(1)])
optimizer = tf.keras.optimizers.Adam()

@gradwatch.watch
@tf.function
def step(x):
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(net(x) ** 2)
    optimizer.apply_gradients(zip(tape.gradient(loss, net.trainable_variables), net.trainable_variables))

for _ in range(3):
    step(tf.ones([2, 3]))
print("steps", step.monitor.snapshot().steps)
"""


def test_a_program_that_asks_tensorflow_for_the_legacy_keras_is_watched():
    environment = {**os.environ, "TF_USE_LEGACY_KERAS": "1"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=100)
    assert done.stdout == "steps 3\n", done.stderr[-2000:]
