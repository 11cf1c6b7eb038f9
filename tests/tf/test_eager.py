"""A step in eager mode: one function of ours, the same numbers as in a graph, and no wait for a device."""

from __future__ import annotations

import threading

import keras
import numpy as np
import pytest
import tensorflow as tf

import gradwatch
from gradwatch.reading.reader import reader
from gradwatch.tf import devices, stablehlo
from gradwatch.tf.fused import NO_LOSS
from gradwatch.tf.inputs import Inputs
from gradwatch.tf.last_loss import LastLoss
from gradwatch.tf.weights import EVERY

STEPS = EVERY + 5
OPTIMIZERS = {
    "sgd": lambda: keras.optimizers.SGD(keras.optimizers.schedules.PiecewiseConstantDecay([20], [0.01, 0.02]), 0.9),
    "adam": lambda: keras.optimizers.Adam(0.01),
}


def batches():
    out = np.random.default_rng(0).normal(size=(STEPS, 4, 8)).astype(np.float32)
    out[30:32] *= 300.0
    out[40, 0, 0] = np.nan
    return [tf.constant(x) for x in out]


def step_of(optimizer, **options):
    """A watched step whose gradients are sums of its rows, the same to the bit in every mode; and its variables."""
    rows = [keras.Variable(tf.ones([8]) * size, name=f"w{i}") for i, size in enumerate((1.0, 3.0, 0.2))]
    optimizer.build(rows)

    def step(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum([tf.reduce_sum(w * x[i]) for i, w in enumerate(rows)])
        optimizer.apply_gradients(zip(tape.gradient(loss, [w.value for w in rows]), rows))
        return loss

    return step, rows


def counted(monkeypatch):
    """The calls of functions that are made from now on, while nothing is traced."""
    calls = []
    original = tf.function

    class Counting:
        def __init__(self, inner):
            self._inner = inner

        def __call__(self, *args, **keywords):
            if tf.executing_eagerly():
                calls.append(self._inner)
            return self._inner(*args, **keywords)

        def get_concrete_function(self, *args, **keywords):
            return Counting(self._inner.get_concrete_function(*args, **keywords))

    monkeypatch.setattr(tf, "function", lambda function, **options: Counting(original(function, **options)))
    return calls


def test_a_step_calls_one_function_of_ours_and_a_second_one_where_it_looks_at_the_weights(monkeypatch):
    step, _ = step_of(OPTIMIZERS["adam"]())
    stablehlo.works()  # the one trial of a process is no call of a step
    calls = counted(monkeypatch)
    watched, counts = gradwatch.watch(step), []
    for x in batches():
        before = len(calls)
        watched(x)
        counts.append(len(calls) - before)
    looks = [i for i in range(STEPS) if i % EVERY == 0]
    assert counts == [2 if i in looks else 1 for i in range(STEPS)]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("recorded", [False, True], ids=["", "recorded"])
def test_the_numbers_are_those_of_the_same_steps_in_a_function(optimizer, recorded, tmp_path):
    found = {}
    for mode in ("eager", "function"):
        step, rows = step_of(OPTIMIZERS[optimizer]())
        options = {"record": tmp_path / mode} if recorded else {}
        watched = gradwatch.watch(step if mode == "eager" else tf.function(step), **options)
        for x in batches():
            watched(x)
        found[mode] = watched.monitor, [w.numpy() for w in rows]
    (eager, weights), (graph, same_weights) = found["eager"], found["function"]
    np.testing.assert_allclose(weights, same_weights, rtol=1e-6)
    history, expected = eager.history(), graph.history()
    assert history.keys() == expected.keys()
    for name, column in expected.items():
        np.testing.assert_allclose(history[name], column, rtol=1e-6, err_msg=name)
    ours, theirs = eager.snapshot(), graph.snapshot()
    assert (ours.nonfinite_steps, ours.clipped_steps) == (theirs.nonfinite_steps, theirs.clipped_steps) != (0, 0)
    assert ours.update_ratio == pytest.approx(theirs.update_ratio, rel=1e-5)
    assert ours.layer_update_ratio == pytest.approx(theirs.layer_update_ratio, rel=1e-5)
    assert ours.layer_weight_norms == pytest.approx(theirs.layer_weight_norms, rel=1e-6)


@pytest.mark.parametrize(
    "loss", [np.float32(2.5), np.nan, np.inf, -np.inf, 1e300, 7], ids=["number", "nan", "inf", "-inf", "huge", "int"]
)
@pytest.mark.parametrize("kind", [tf.float32, tf.float64, tf.bfloat16, tf.float16])
def test_a_loss_is_the_same_to_the_host_as_to_the_graph(loss, kind):
    told = tf.cast(tf.constant(loss, tf.float64), kind)
    eager, graph = LastLoss(), LastLoss()
    for one in (eager, graph):
        one.build()
    eager.tell(told)
    tf.function(graph.tell)(told)
    assert eager.value().numpy() == graph.value().numpy() != np.float32(NO_LOSS) or np.isnan(loss)


@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16", "float64", "int32", "uint8"])
@pytest.mark.parametrize("size", [1.0, 1e4, np.nan, np.inf])
def test_the_size_of_an_input_is_the_same_to_the_host_as_to_the_graph(kind, size, monkeypatch):
    if kind in ("int32", "uint8") and size != 1.0:
        pytest.skip("whole numbers have neither NaN nor such sizes")
    x = tf.cast(tf.constant(np.linspace(1, 9, 32).reshape(4, 8) * size), kind)
    found = []
    for accelerator in (False, True):
        monkeypatch.setattr(devices, "has_accelerator", lambda a=accelerator: a)
        inputs = Inputs()
        inputs.expect(((x, x[:2]), {}), ((x, x[:2]), {}))
        found.append([np.float32(number) for number in inputs.known()])
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_where_there_is_an_accelerator_the_host_reads_nothing_in_a_step(optimizer, monkeypatch):
    monkeypatch.setattr(devices, "has_accelerator", lambda: True)
    step, _ = step_of(OPTIMIZERS[optimizer]())
    watched, given = gradwatch.watch(step), batches()[:6]
    for x in given[:3]:
        watched(x)
    reads = []
    # a thread that is in `read` when it is put back takes the process down
    reader.close()
    kind, here = type(given[0]), threading.current_thread()
    # what float(), bool() and numpy() of an eager tensor come by
    original = kind._numpy

    def read(self):
        # TensorFlow reads indices, which are on the host, by itself; the reader has a thread of its own
        if not self.dtype.is_integer and threading.current_thread() is here:
            reads.append(self)
        return original(self)

    monkeypatch.setattr(kind, "_numpy", read)
    for x in given[3:]:
        watched(x)
    assert not reads
    monkeypatch.setattr(devices, "has_accelerator", lambda: False)
    watched(given[-1])
    assert reads, "this test sees what is read"
