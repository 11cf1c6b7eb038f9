"""Train a classifier the way a team does: resumable, watched, recorded, with alerts that reach somebody.

    python train.py --epochs 20 --data-seed 0

It ends with status 0 when it is done and 3 when the run is lost, so that a scheduler can tell them apart. Started
again with the same --folder, it goes on from the newest checkpoint, and so does what gradwatch learned.
"""

import argparse
import os
import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import gradwatch


def arguments(given=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--data-seed", type=int, default=0)
    parser.add_argument("--policy", default="auto", help="a policy of gradwatch, as text")
    parser.add_argument("--folder", type=Path, default=Path("output"), help="checkpoints and records of this run")
    parser.add_argument("--targets", type=Path, help="folder in which Prometheus looks for trainings")
    return parser.parse_args(given)


def data(seed, batch_size):
    """A made-up task in place of yours: is the sum of twenty numbers positive?"""
    random = np.random.default_rng(seed)
    x = random.normal(size=(4096, 20)).astype("float32")
    y = (x.sum(axis=1, keepdims=True) > 0).astype("float32")
    return tf.data.Dataset.from_tensor_slices((x, y)).shuffle(4096, seed=seed).batch(batch_size, drop_remainder=True)


def alert_channels():
    """Slack if the environment names a webhook; the log in any case."""
    url = os.environ.get("SLACK_WEBHOOK_URL")
    return [gradwatch.notify.Slack(url)] if url else None


def lost(snapshot):
    """Whether to give the run up: NaN for a hundred steps, or an explosion that goes on."""
    return snapshot.nonfinite_streak >= 100 or (
        snapshot.active["explosion"] and snapshot.anomalous_steps["explosion"] > 500
    )


def main(given=None):
    options = arguments(given)
    model = keras.Sequential([keras.Input((20,)), keras.layers.Dense(64, "relu"), keras.layers.Dense(1)])
    optimizer = keras.optimizers.Adam(options.learning_rate)
    loss_fn = keras.losses.BinaryCrossentropy(from_logits=True)

    @gradwatch.watch(
        name="classifier", policy=options.policy, record=options.folder / "runs", on_alert=alert_channels()
    )
    @tf.function
    def train_step(x, y):
        with tf.GradientTape() as tape:
            loss = loss_fn(y, model(x, training=True))
        optimizer.apply_gradients(zip(tape.gradient(loss, model.trainable_variables), model.trainable_variables))
        return loss

    monitor = train_step.monitor
    epoch = tf.Variable(0, dtype=tf.int64, name="epoch")
    checkpoint = tf.train.Checkpoint(model=model, optimizer=optimizer, epoch=epoch, gradwatch=monitor)
    manager = tf.train.CheckpointManager(checkpoint, str(options.folder / "checkpoints"), max_to_keep=3)
    if manager.latest_checkpoint:
        checkpoint.restore(manager.latest_checkpoint)
        print(f"goes on from epoch {int(epoch)}")

    # a free port, which Prometheus finds through the target file: several trainings share a machine
    with gradwatch.serve(port=0, file_sd=options.targets, labels={"team": "research"}) as server:
        print(f"watch it at {server.url}")
        for _ in range(int(epoch), options.epochs):
            for x, y in data(options.data_seed + int(epoch), options.batch_size):
                loss = train_step(x, y)
            epoch.assign_add(1)
            seen = monitor.snapshot()
            print(f"epoch {int(epoch)}: loss {float(loss):.3f}, {seen.clipped_steps} of {seen.steps} steps clipped")
            if lost(seen):
                print(gradwatch.diagnose(monitor), file=sys.stderr)
                return 3
            manager.save()
        gradwatch.reading.mark_active(monitor, False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
