"""What a further model pays: its step holds calls of what the first one traced."""

from __future__ import annotations

import gc
import weakref

import keras
import loops
import pytest
import support
import tensorflow as tf

from gradwatch import policies
from gradwatch.tf import once

DATA = support.batches(3)


def trained(*, watched=True):
    """(the step after a few calls, its model)."""
    net, optimizer = support.model(), support.sgd()
    optimizer.build(net.trainable_variables)

    def step(x, y):
        with tf.GradientTape() as tape:
            loss = support.loss_of(net, x, y)
        grads = tape.gradient(loss, net.trainable_variables)
        optimizer.apply_gradients(zip(grads, net.trainable_variables))
        return loss

    function = support.watch()(tf.function(step)) if watched else tf.function(step)
    for batch in DATA:
        function(*batch)
    return function, net


def operations(step):
    return len(step.get_concrete_function(*DATA[0]).graph.get_operations())


def test_a_watched_step_has_few_operations_of_its_own():
    plain, _ = trained(watched=False)
    watched, _ = trained()
    assert operations(watched) - operations(plain) <= 120


def test_a_further_variable_costs_few_operations():
    """In the step, and in all that it calls: 1,500 variables paid for 40 each once."""

    def nodes(layers, watched):
        net = keras.Sequential([keras.Input((5,)), *[keras.layers.Dense(5) for _ in range(layers)]])
        optimizer = support.sgd()
        optimizer.build(net.trainable_variables)
        function = tf.function(support.train_step(net, optimizer))
        step = support.watch(jit_compile=True)(function) if watched else function
        data = DATA[0][0], DATA[0][0]
        step(*data)
        graph = step.get_concrete_function(*data).graph.as_graph_def()
        return len(graph.node) + sum(len(function.node_def) for function in graph.library.function)

    added = [nodes(layers, True) - nodes(layers, False) for layers in (10, 30)]
    assert (added[1] - added[0]) / 40 <= 16


@pytest.mark.parametrize("recorded", [False, True])
def test_a_step_waits_for_a_turn_only_where_it_writes_more_than_the_state(recorded, tmp_path):
    """XLA holds on to the state while its program runs: a mutex costs a small step 30 microseconds more."""
    net, optimizer = support.model(), support.sgd()
    given = {"record": str(tmp_path)} if recorded else {}
    step = support.watch(jit_compile=True, **given)(tf.function(support.train_step(net, optimizer)))
    step(*DATA[0])
    types = {one.type for one in step.get_concrete_function(*DATA[0]).graph.get_operations()}
    assert ("MutexLock" in types) is recorded


def test_a_further_model_of_the_same_shapes_traces_nothing_anew():
    trained()
    before = once._traced_once.cache_info().currsize
    trained()
    assert once._traced_once.cache_info().currsize == before


def test_what_is_shared_outlives_the_model_that_it_was_traced_for():
    step, net = trained()
    gone = weakref.ref(net)
    expected = step.monitor.snapshot().update_ratio
    del step, net
    keras.backend.clear_session()
    gc.collect()
    assert gone() is None
    step, _ = trained()
    assert step.monitor.snapshot().update_ratio == pytest.approx(expected, rel=1e-6)


def graphs_alive():
    keras.backend.clear_session()
    gc.collect()
    return sum(type(thing).__name__ == "FuncGraph" for thing in gc.get_objects())


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("plain tape", loops.FUNCTION),
        ("plain tape", loops.JIT),
        ("several optimizers (GAN)", loops.FUNCTION),
        ("gradient accumulation", loops.FUNCTION),
        ("loss_scale_factor", loops.FUNCTION),
        ("LossScaleOptimizer", loops.FUNCTION),
        ("MultiOptimizer", loops.FUNCTION),
        ("built-in train_step", "fit"),
    ],
)
def test_no_graph_of_a_watched_step_outlives_its_training(name, mode):
    """One of a step that is not watched does: TensorFlow remembers how to derive Keras' sum over the replicas."""
    loop = next(loop for loop in loops.LOOPS if loop.name == name)
    counts = []
    for _ in range(3):
        loops.run(loop, mode, policies.fixed(support.CLIP))
        counts.append(graphs_alive())
    assert counts[2] == counts[1]


def test_no_graph_outlives_its_training_where_the_guard_is_a_program_of_xla():
    counts = []
    for _ in range(3):
        net, optimizer = support.model(), support.sgd()
        support.run(support.watch(jit_compile=True)(tf.function(support.train_step(net, optimizer))), DATA)
        del net, optimizer
        counts.append(graphs_alive())
    assert counts[2] == counts[1]
