"""What a further model pays: its step holds calls of what the first one traced."""

from __future__ import annotations

import gc
import weakref

import keras
import pytest
import support
import tensorflow as tf

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
