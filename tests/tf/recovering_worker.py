"""One of two workers of tests/tf/test_recovery_workers.py: hurt, unable to go back alone, then able to."""

from __future__ import annotations

import json
import sys


def main(result: str) -> None:
    import numpy as np
    import tensorflow as tf

    strategy = tf.distribute.MultiWorkerMirroredStrategy()

    import keras

    import gradwatch
    from gradwatch import detectors, recovery

    index, workers = strategy.cluster_resolver.task_id, strategy.num_replicas_in_sync
    keras.utils.set_random_seed(0)
    with strategy.scope():
        model = keras.Sequential([keras.layers.Input((5,)), keras.layers.Dense(8, "tanh"), keras.layers.Dense(1)])
        optimizer = keras.optimizers.SGD(0.05)

    def replica(x, y):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(x, training=True) - y))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients([(g / workers, v) for g, v in zip(gradients, model.trainable_variables)])
        return loss

    @gradwatch.watch(
        recover=recovery.ladder(recovery.rollback(every=20, calm_steps=10), recovery.lower()),
        detectors=(detectors.spike(warmup_steps=4), detectors.nonfinite()),
    )
    @tf.function
    def step(x, y):
        return strategy.reduce(tf.distribute.ReduceOp.MEAN, strategy.run(replica, args=(x, y)), axis=None)

    def train(first, count):
        for i in range(first, first + count):
            x = np.random.default_rng([i, index]).normal(size=(8, 5)).astype(np.float32)
            step(tf.constant(x), tf.constant(np.tanh(x.sum(1, keepdims=True))))

    def seen():
        now = step.monitor.snapshot()
        return now.recoveries["rollback"], [w.tolist() for w in model.get_weights()]

    train(0, 45)
    for v in model.trainable_variables:
        v.assign(1e3 * (v + 1.0))
    generations = step.monitor._healer._snapshots.generations
    kept, generations.kept = generations.kept, [] if index == 1 else generations.kept
    train(45, 20)
    alone = seen()
    generations.kept = kept
    train(65, 70)
    together = seen()
    with open(f"{result}.{index}", "w") as file:
        json.dump({"alone": alone, "together": together}, file)


if __name__ == "__main__":
    main(sys.argv[1])
