"""Run by test_replicas.py: three logical CPUs, of which a process can have but one set."""

from __future__ import annotations

import json
import sys

import keras
import numpy as np
import tensorflow as tf

import gradwatch

COUNT, STEPS = 3, 4


def trained(strategy: tf.distribute.Strategy, data: np.ndarray, *, watched: bool) -> dict:
    """The weights after some steps whose third has a long gradient on the last replica, and what was seen."""
    keras.utils.set_random_seed(0)
    with strategy.scope():
        net = keras.Sequential([keras.Input([37]), keras.layers.Dense(61, activation="tanh"), keras.layers.Dense(7)])
        optimizer = keras.optimizers.SGD(0.05)
        optimizer.build(net.trainable_variables)

    def replica(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(net(x)))
        optimizer.apply_gradients(zip(tape.gradient(loss, net.trainable_variables), net.trainable_variables))
        return loss

    if watched:
        replica = gradwatch.watch(replica, policy="observe")
    step = tf.function(lambda x: strategy.run(replica, args=(x,)))
    for i in range(STEPS):
        parts = data[i] * (100.0 if i == 2 else 1.0) ** (np.arange(COUNT) == COUNT - 1)[:, None, None]

        def give(context, parts=parts):
            return tf.constant(parts[context.replica_id_in_sync_group], tf.float32)

        losses = strategy.experimental_local_results(step(strategy.experimental_distribute_values_from_function(give)))
    seen = {"weights": [w.tolist() for w in net.get_weights()], "losses": [float(x) for x in losses]}
    if watched:
        history = replica.monitor.history()
        seen |= {name: history[name].tolist() for name in ("loss", "replica", "replica_ratio", "input_rms")}
    return seen


def main() -> None:
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * COUNT)
    strategy = tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(COUNT)])
    data = np.random.default_rng(0).normal(size=(STEPS, COUNT, 5, 37)) / 10.0
    plain, watched = (trained(strategy, data, watched=watched) for watched in (False, True))
    json.dump({"plain": plain, "watched": watched, "data": data.tolist()}, sys.stdout)


if __name__ == "__main__":
    main()
