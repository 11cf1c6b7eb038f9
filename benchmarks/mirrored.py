"""What does gradwatch cost under MirroredStrategy?

    python benchmarks/mirrored.py

Two logical CPUs share the cores of this machine, so what counts is the ratio to the unwatched step of the same
strategy, not the time. Keras sums the gradients over the replicas once; the norm needs that sum as well. "handed on" is
gradwatch as it is: the sum is made once and handed to Keras. "summed twice" is what the norm alone would cost.
"global_clipnorm" is Keras' own clipping, unwatched, which clips the part of each replica by itself.
"""

from __future__ import annotations

import argparse
import os
import random
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import overhead
import setting
import tensorflow as tf

import gradwatch
from gradwatch.tf import distribution

CONTENDERS = ("unwatched", "global_clipnorm", "handed on", "summed twice")
UNWATCHED = CONTENDERS[:2]


def make_step(strategy: tf.distribute.Strategy, model: str, contender: str) -> Any:
    """A step of the whole strategy, without arguments, traced."""
    with strategy.scope():
        task = overhead.MODELS[model][0]()
        optimizer = task.optimizer(**({"global_clipnorm": 1.0} if contender == "global_clipnorm" else {}))
        optimizer.build(task.model.trainable_variables)

    def replica(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = task.loss(y, task.model(x, training=True)) / strategy.num_replicas_in_sync
        optimizer.apply_gradients(
            zip(tape.gradient(loss, task.model.trainable_variables), task.model.trainable_variables)
        )
        return loss

    watched = replica if contender in UNWATCHED else gradwatch.watch(replica)

    @tf.function
    def step() -> Any:
        return strategy.reduce("sum", strategy.run(watched, args=(task.x, task.y)), axis=None)

    once = distribution.sums_once
    if contender == "summed twice":
        distribution.sums_once = lambda optimizer: False  # type: ignore[assignment]
    try:
        step()
    finally:
        distribution.sums_once = once  # type: ignore[assignment]
    return step


def measure(strategy: tf.distribute.Strategy, model: str, *, rounds: int, seconds: float) -> dict[str, Any]:
    calls = {name: make_step(strategy, model, name) for name in CONTENDERS}
    times, _ = overhead.interleave(calls, rounds=rounds, seconds=seconds, rng=random.Random(0))
    base = np.array(times["unwatched"])
    return {
        "model": model,
        "rounds": len(base),
        "unwatched_us": float(np.median(base)) * 1e6,
        "ratio": {name: setting.median_interval(np.array(times[name]) / base) for name in CONTENDERS},
        "over_clip": setting.median_interval(np.array(times["handed on"]) / np.array(times["global_clipnorm"])),
    }


def report(entries: list[dict[str, Any]]) -> str:
    head = ["two replicas", "unwatched, ms", *[f"{name} / unwatched" for name in CONTENDERS[1:]]]
    head.append("handed on / global_clipnorm")
    rows = [
        [
            e["model"],
            f"{e['unwatched_us'] / 1e3:.2f}",
            *["{:.3f} ({:.3f} to {:.3f})".format(*e["ratio"][name]) for name in CONTENDERS[1:]],
            "{:.3f} ({:.3f} to {:.3f})".format(*e["over_clip"]),
        ]
        for e in entries
    ]
    return setting.table(head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="quickstart,mlp-2m", help="comma-separated names of overhead.py's models")
    parser.add_argument("--quick", action="store_true", help="10 seconds for each model")
    parser.add_argument("--seconds", type=float, help="most seconds of measuring for each model (60; quick: 10)")
    parser.add_argument("--output", help="file of the results (results/mirrored.json, quick: mirrored-quick.json)")
    options = parser.parse_args()
    seconds = options.seconds or (10.0 if options.quick else 60.0)
    physical = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(physical, [tf.config.LogicalDeviceConfiguration()] * 2)
    facts = setting.machine()
    print(setting.one_line(facts))
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    entries = [measure(strategy, model, rounds=2000, seconds=seconds) for model in options.models.split(",")]
    print("\n" + report(entries))
    setting.write(
        options.output or setting.results_file("mirrored", options.quick), {"machine": facts, "cells": entries}
    )


if __name__ == "__main__":
    main()
