"""The page says how many series Prometheus gets, so that a server for many jobs can be sized."""

from __future__ import annotations

import re
from pathlib import Path

import keras
import pytest
import tensorflow as tf
from prometheus_client import generate_latest

import gradwatch
from gradwatch.exporters import exposition
from gradwatch.reading.reader import reader

PAGE = (Path(__file__).parents[2] / "docs/prometheus.md").read_text(encoding="utf-8").replace("\n", " ")


def stated(sentence: str) -> int:
    [number] = re.findall(sentence, PAGE)
    return int(number.replace(",", ""))


def samples(layers: int) -> tuple[int, int]:
    """(of the monitor, of the process)"""
    text = generate_latest(exposition.registry(layers)).decode()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    own = sum('monitor="series"' in line for line in lines)
    return own, sum('monitor="' not in line for line in lines)


def test_a_monitor_is_as_many_series_as_the_page_says():
    model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(8), keras.layers.Dense(1)])
    optimizer = keras.optimizers.SGD(0.01)
    optimizer.build(model.trainable_variables)

    @gradwatch.watch(name="series")
    @tf.function
    def step(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(model(x) ** 2)
        optimizer.apply_gradients(
            zip(tape.gradient(loss, model.trainable_variables), model.trainable_variables, strict=True)
        )
        return loss

    for _ in range(60):
        step(tf.random.stateless_normal((8, 4), (1, 2)))
    assert reader.poll_now()
    (own, process), (with_layers, _) = samples(0), samples(10)
    assert own == pytest.approx(stated(r"A monitor is about (\d+) series"), abs=15)
    assert process == pytest.approx(stated(r"A process adds about (\d+)"), abs=8)
    assert with_layers - own == 2 * len(model.trainable_variables)
    assert 40 * (own + process) == pytest.approx(stated(r"are about ([\d,]+) series"), rel=0.1)
