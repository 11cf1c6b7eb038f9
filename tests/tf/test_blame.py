"""Each sample's own gradient norm is that of a loop written by hand, and nothing is trained meanwhile."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from support import assert_same, batches, loss_of, model, norm_of, sgd, train_step, watch, weights

import gradwatch
from gradwatch.errors import ConfigError
from gradwatch.reading.reader import reader
from gradwatch.record import recorder
from gradwatch.record.batch import Ragged


def batch(bad=(3,), factor=1e3):
    """(x, y) of 8 samples, of which those in `bad` are `factor` times too large."""
    x, y = (np.array(part) for part in batches(1)[0])
    for i in bad:
        x[i] *= factor
    return x, y


def by_hand(net, x, y):
    """The loop: one tape for each sample."""
    norms = []
    for i in range(len(x)):
        with tf.GradientTape() as tape:
            loss = loss_of(net, x[i : i + 1], y[i : i + 1])
        norms.append(norm_of(tape.gradient(loss, net.trainable_variables)))
    return np.array(norms)


def all_ways(net, optimizer):
    net.compile(optimizer, "mse")
    step = train_step(net, optimizer)
    return {
        "loss": lambda x, y: loss_of(net, x, y),
        "loss of each sample": lambda x, y: tf.reduce_mean(tf.square(net(x, training=True) - y), 1),
        "step": step,
        "function": tf.function(step),
        "watched": watch()(tf.function(step)),
        "watched outside": tf.function(watch()(step), jit_compile=True),
        "model": net,
    }


def test_the_norms_are_those_of_a_loop_whatever_is_given_and_nothing_is_trained():
    net, optimizer = model(), keras.optimizers.Adam(0.1)
    optimizer.build(net.trainable_variables)
    x, y = batch()
    expected, before = by_hand(net, x, y), weights(net, optimizer)
    for name, given in all_ways(net, optimizer).items():
        found = gradwatch.blame((x, y), given)
        np.testing.assert_allclose(found.norms, expected, rtol=1e-4, err_msg=name)
        assert found.samples == (3,), name
        assert_same(weights(net, optimizer), before)


def test_a_step_that_was_watched_counts_no_step_while_it_is_looked_at():
    net = model()
    step = watch()(tf.function(train_step(net, sgd())))
    x, y = batch()
    step(x, y)
    state = step.monitor._engine.on_device.vector().numpy()
    gradwatch.blame((x, y), step)
    assert state.tobytes() == step.monitor._engine.on_device.vector().numpy().tobytes()
    step(x, y)
    assert step.monitor.snapshot().steps == 2


def test_a_step_that_clips_by_hand_is_judged_before_clipping():
    net, optimizer, monitor = model(), sgd(), gradwatch.Monitor("by hand", policy="fixed(0.1)", jit_compile=False)
    optimizer.build(net.trainable_variables)

    def step(x, y):
        with tf.GradientTape() as tape:
            loss = loss_of(net, x, y)
        grads, _ = monitor.clip(tape.gradient(loss, net.trainable_variables), net.trainable_variables)
        optimizer.apply_gradients(zip(grads, net.trainable_variables))
        return loss

    x, y = batch()
    np.testing.assert_allclose(gradwatch.blame((x, y), step).norms, by_hand(net, x, y), rtol=1e-4)


def test_under_loss_scaling_the_norms_are_unscaled():
    net = model()
    optimizer = sgd(loss_scale_factor=256.0)
    optimizer.build(net.trainable_variables)

    def step(x, y):
        with tf.GradientTape() as tape:
            loss = optimizer.scale_loss(loss_of(net, x, y))
        optimizer.apply_gradients(zip(tape.gradient(loss, net.trainable_variables), net.trainable_variables))

    x, y = batch()
    np.testing.assert_allclose(gradwatch.blame((x, y), step).norms, by_hand(net, x, y), rtol=1e-4)


def test_moving_averages_and_dropout_are_the_same_for_each_sample_and_afterwards_as_before():
    keras.utils.set_random_seed(0)
    net = keras.Sequential(
        [keras.layers.Input((5,)), keras.layers.BatchNormalization(), keras.layers.Dropout(0.5), keras.layers.Dense(1)]
    )
    x = np.repeat(batch(())[0][:1], 6, 0)
    before = weights(net)
    norms = gradwatch.blame((x, np.ones((6, 1), np.float32)), lambda x, y: loss_of(net, x, y)).norms
    assert np.ptp(norms) == 0.0
    assert_same(weights(net), before)


def test_samples_that_are_alike_are_not_accused():
    net = model()
    found = gradwatch.blame(batch(()), lambda x, y: loss_of(net, x, y))
    assert found.samples == ()
    assert str(found).startswith("No sample stands out of 8: the median norm is")


def test_samples_with_nan_are_named_before_large_ones():
    net = model()
    x, y = batch((1,))
    x[[5, 2]] = np.nan
    found = gradwatch.blame((x, y), lambda x, y: loss_of(net, x, y))
    assert found.samples == (2, 5)
    assert found.shares.tolist() == [0, 0, 0.5, 0, 0, 0.5, 0, 0]
    assert str(found).startswith("Samples 2 (norm nan) and 5 (norm nan) of 8 carried 100%")


def test_the_sentence_names_the_samples_their_norms_and_their_share():
    norms = np.array([1.0, 1.0, 40.0, 1.0, 30.0, 1.0])
    found = gradwatch.Blame(norms, (2, 4))
    assert str(found) == (
        "Samples 2 (norm 40) and 4 (norm 30) of 6 carried 100% of the squared gradient; the median norm is 1."
    )
    assert found.shares[2] == pytest.approx(1600 / 2504)


def test_ragged_rows_and_arguments_without_samples():
    table = tf.Variable(tf.random.normal([10, 4], seed=0))

    def loss(ids, scale):
        rows = tf.ragged.map_flat_values(tf.nn.embedding_lookup, table, ids)
        return scale * tf.reduce_mean(tf.square(tf.reduce_sum(rows, 1)))

    ids = [[1], [2, 3, 4], [], [5, 6]]
    expected = []
    for row in ids:
        total = table.numpy()[row].sum(0)
        # d/d(row) of mean over 4 of (sum of rows)^2, in each of the rows
        expected.append(2.0 * np.sqrt(len(row)) * np.linalg.norm(2 * total / 4))
    splits = np.cumsum([0, *map(len, ids)])
    found = gradwatch.blame((Ragged(np.concatenate(ids).astype(np.int64), (splits,)), 2.0), loss)
    np.testing.assert_allclose(found.norms, expected, rtol=1e-5)


def test_the_event_brings_its_batch_and_the_weights_of_its_step(tmp_path):
    net = model()
    optimizer = sgd()
    step = watch(record=tmp_path, keep_batch=True, weights=True)(tf.function(train_step(net, optimizer)))
    data = batches(9)
    x, y = (np.array(part) for part in data[8])
    x[6] *= 1e4
    for one in [*data[:8], (x, y)]:
        step(*one)
    assert reader.poll_now(20)
    assert recorder._writing.flush(20)
    reader.close()
    expected = by_hand(net, x, y)
    for variable in net.trainable_variables:
        variable.assign(variable * 3.0)  # the training went on
    after = weights(net)
    for given in (step, lambda x, y: loss_of(net, x, y)):
        found = gradwatch.blame(gradwatch.open_event(tmp_path), given)
        np.testing.assert_allclose(found.norms, expected, rtol=1e-4)
        assert (found.samples, found.weights) == ((6,), "step")
        assert_same(weights(net), after)


@pytest.mark.parametrize(
    ("event", "loss", "message"),
    [
        (7, lambda x: x, "event must be what gradwatch.open_event returned"),
        ((1.0,), lambda x: x, "the batch has no samples"),
        ((np.ones(3),), 7, "step_or_loss must be"),
        ((np.ones(3, np.float32),), lambda x: tf.reduce_sum(x), "no gradient came by"),
        ((np.ones((3, 5), np.float32),), model(), "is not compiled"),
    ],
)
def test_what_cannot_be_blamed_says_what_to_give(event, loss, message):
    with pytest.raises(ConfigError, match=message):
        gradwatch.blame(event, loss)
