"""A real training whose gradients the test steers: python steered_training.py MONITOR [OTHER MONITOR].

The first line it prints is the address of its endpoint. Then it trains, some thirty steps a second, and
reads one word a line from its input:

    calm      gradients as they come
    explode   times 100,000
    harm      all weights times 10, until the next word: gradients and loss are really large
    nan       every gradient is NaN
    vanish    times 1 / 100,000
    hang      no steps, until the next word
    end       the run is over; the endpoint stays
    quit      the process ends (so does the end of its input)

With TARGETS in the environment it writes its target file there. A run counts as lost after two seconds, not 120: here a
minute lasts a second. A second monitor, if it is named, trains beside it with a loss scale, and always calmly.
"""

from __future__ import annotations

import os
import sys
import threading
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import tensorflow as tf

import gradwatch
from gradwatch.exporters import prometheus
from gradwatch.reading import harm, losses, reader

FACTORS = {"calm": 1.0, "harm": 1.0, "explode": 1e5, "nan": float("nan"), "vanish": 1e-5}
PAUSE_SECONDS = 0.03
LEARNING_RATE = 1e-6  # small: the weights stay where they are, so that calm is calm again at once

wish = "calm"


def listen() -> None:
    global wish
    for line in sys.stdin:
        wish = line.strip()
    wish = "quit"


def training(name: str, seed: int, *, loss_scaling: bool):
    """A step function over its own model; called with the factor for the gradients."""
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [keras.layers.Input((8,)), keras.layers.Dense(16, activation="tanh"), keras.layers.Dense(1)]
    )
    optimizer = keras.optimizers.SGD(LEARNING_RATE)
    if loss_scaling:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=1024.0)
    optimizer.build(model.trainable_variables)
    data = tf.random.Generator.from_seed(seed)

    @gradwatch.watch(name=name, policy=gradwatch.policies.percentile(90))
    @tf.function
    def step(factor: tf.Tensor) -> tf.Tensor:
        x = data.normal((32, 8))
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(x) - tf.reduce_sum(x, axis=1, keepdims=True)) ** 2)
            watched = optimizer.scale_loss(loss * factor) if loss_scaling else loss * factor
        gradients = tape.gradient(watched, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables))
        return loss

    def run(factor: float) -> None:
        loss = step(tf.constant(factor))
        step.monitor.report(loss=float(loss), learning_rate=LEARNING_RATE)

    def harm(on: bool, kept: list = []) -> None:  # noqa: B006 - what it was is kept from call to call
        if on and not kept:
            kept += [tf.identity(v) for v in model.trainable_variables]
            for v in model.trainable_variables:
                v.assign(10.0 * v)
        elif kept and not on:
            for v, value in zip(model.trainable_variables, kept):
                v.assign(value)
            kept.clear()

    run.monitor, run.harm = step.monitor, harm
    return run


def main(names: list[str]) -> None:
    global wish
    runs = [training(name, seed, loss_scaling=seed > 0) for seed, name in enumerate(names)]
    harm.LOST_SECONDS = 2.0
    losses.PROGRESS_STEPS = 10**9  # it is made to learn nothing
    server = prometheus.serve(port=0, layers=8, file_sd=os.environ.get("TARGETS"))
    threading.Thread(target=listen, daemon=True).start()
    for run in runs:
        run(1.0)
    print(server.url, flush=True)
    while wish != "quit":
        if wish == "end":
            for run in runs:
                reader.mark_active(run.monitor, False)
            while wish == "end":
                time.sleep(PAUSE_SECONDS)
        elif wish in FACTORS:
            runs[0].harm(wish == "harm")
            for index, run in enumerate(runs):
                run(FACTORS[wish] if index == 0 else 1.0)
        time.sleep(PAUSE_SECONDS)


if __name__ == "__main__":
    main(sys.argv[1:])
