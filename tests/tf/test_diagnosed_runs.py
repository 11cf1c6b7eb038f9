"""`gradwatch.diagnose` on real, short trainings: the cause, its first step, and the same from a record."""

from __future__ import annotations

import logging

import keras
import numpy as np
import pytest
import tensorflow as tf

import gradwatch
from gradwatch.reading import reader

STEPS, RATE, AT = 120, 0.03, 70  # AT is the index of the step at which a fault begins
CENTRES = np.random.default_rng(1).normal(size=(4, 8))


class Training:
    """One small network that is trained again and again with SGD."""

    def __init__(self):
        keras.utils.set_random_seed(0)
        layers = [keras.layers.Dense(16, "relu", name="one"), keras.layers.Dense(4, name="head")]
        self.model = keras.Sequential([keras.layers.Input((8,)), *layers])
        self.optimizer = keras.optimizers.SGD(RATE, 0.9)
        self.optimizer.build(self.model.trainable_variables)
        self.initial = self.model.get_weights()
        self.alerts = []

        @gradwatch.watch(policy="observe()", name="diagnosed", on_alert=self.alerts.append)
        @tf.function
        def step(x, y, root):
            with tf.GradientTape() as tape:
                out = self.model(x)
                loss = tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(y, out, from_logits=True))
                none = tf.reduce_mean(out) - tf.stop_gradient(tf.reduce_mean(out))
                loss = loss + tf.cond(root, lambda: tf.sqrt(none * none), lambda: 0.0)
            gradients = tape.gradient(loss, self.model.trainable_variables)
            self.optimizer.apply(gradients, self.model.trainable_variables)
            return loss

        self.step = step

    def run(self, *, change=None, rate=lambda i: RATE, start=1.0, root=lambda i: False):
        """Trains anew; `change(i, x, y)` gives the batch of step i."""
        rng = np.random.default_rng(3)
        self.model.set_weights([w * (start if w.ndim > 1 else 1.0) for w in self.initial])
        for v in self.optimizer.variables:
            if "learning_rate" not in v.path:
                v.assign(tf.zeros(v.shape, v.dtype))
        self.step.monitor.reset()
        for i in range(STEPS):
            y = rng.integers(0, 4, 16)
            x = (CENTRES[y] + rng.normal(size=(16, 8))).astype(np.float32)
            x, y = (x, y) if change is None else change(i, x, y)
            self.optimizer.learning_rate = rate(i)
            self.step(tf.constant(x), tf.constant(y, tf.int32), tf.constant(root(i)))
        return gradwatch.diagnose(self.step.monitor)


@pytest.fixture(scope="module")
def training():
    return Training()


def test_a_run_that_learns_is_healthy(training):
    found = training.run()
    assert found.healthy, str(found)
    assert "The loss fell from" in found.why


def test_a_rate_that_is_too_high_is_told_with_one_that_trains(training):
    found = training.run(rate=lambda i: 100 * RATE)
    assert found.kind == "learning_rate_too_high", str(found)
    tried = float(found.next.split("try ")[1].split()[0])
    assert 0.03 * RATE < tried < 3 * RATE
    assert training.run(rate=lambda i: tried).healthy


def test_a_jump_of_the_rate_is_dated_to_its_step(training):
    found = training.run(rate=lambda i: RATE if i < AT else 60 * RATE)
    assert (found.kind, found.first_step) == ("rate_jump", AT + 1), str(found)


def test_a_batch_out_of_scale_is_dated_to_its_step(training):
    found = training.run(change=lambda i, x, y: (x * 400 if i == AT else x, y))
    assert (found.kind, found.first_step) == ("bad_batch", AT + 1), str(found)


def test_labels_that_are_wrong_from_a_step_on_are_dated_to_it(training):
    found = training.run(change=lambda i, x, y: (x, (y + 1) % 4 if i >= AT else y))
    assert (found.kind, found.first_step) == ("corrupt_labels", AT + 1), str(found)


def test_a_nan_in_the_input_is_told_from_one_that_the_loss_makes(training):
    def broken(i, x, y):
        if i == AT:
            x[3, 2] = np.nan
        return x, y

    found = training.run(change=broken)
    assert (found.kind, found.first_step) == ("nonfinite_input", AT + 1), str(found)
    found = training.run(root=lambda i: i == AT)
    assert (found.kind, found.first_step) == ("loss_operation", AT + 1), str(found)


def test_weights_that_begin_out_of_scale_are_known_by_their_first_norms(training):
    found = training.run(start=20.0)
    assert (found.kind, found.first_step) == ("bad_start", 1), str(found)


def test_a_run_in_which_nothing_moves_is_told_with_a_higher_rate(training):
    found = training.run(rate=lambda i: 1e-7)
    assert found.kind == "dead_run", str(found)
    assert float(found.next.split("try ")[1].split()[0]) > 1e-4


def test_the_first_sentence_of_an_alert_is_the_verdict_and_the_end_of_the_run_tells_why_and_next(training, caplog):
    with caplog.at_level(logging.INFO, logger="gradwatch"):
        training.run()
        training.alerts.clear()
        training.run(change=lambda i, x, y: (x * 400 if i == AT else x, y))
        assert reader.poll_now(30.0)
        fired = [alert for alert in training.alerts if alert.phase == "fired"]
        assert fired, "no alert"
        assert all(alert.message.startswith("A batch was out of scale. The input of step") for alert in fired)
        assert {alert.cause for alert in fired} == {"bad_batch"}
        assert {alert.advice for alert in fired} == {gradwatch.diagnose(training.step.monitor).next}
        assert "out of scale" in str(fired[0].as_json())
        reader.mark_active(training.step.monitor, False)
    ended = [record.getMessage() for record in caplog.records if "ended after" in record.getMessage()]
    assert len(ended) == 1
    assert all(word in ended[0] for word in ("Verdict: A batch was out of scale.", "\nWhy: ", "\nNext: "))
    [reading] = [r for r in reader.readings() if r.name == "diagnosed"]
    assert reading.diagnosis.kind == "bad_batch"


def test_a_record_gives_the_verdict_of_its_monitor(tmp_path):
    weight = tf.Variable(tf.ones([4, 4]), name="kernel")
    optimizer = keras.optimizers.SGD(0.01)

    @gradwatch.watch(record=tmp_path, policy="observe()")
    @tf.function
    def step(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((x @ weight) ** 2)
        optimizer.apply([tape.gradient(loss, weight)], [weight])
        return loss

    rng = np.random.default_rng(0)
    for i in range(60):
        step(tf.constant(rng.normal(size=(8, 4)) * (500 if i == 40 else 1), tf.float32))
    assert step.monitor.flush_record()
    run = gradwatch.open_run(tmp_path)
    assert run.info["inputs"] == {"input": "float32"}
    now, then = gradwatch.diagnose(step.monitor), gradwatch.diagnose(run)
    assert now.kind == then.kind == "bad_batch"
    assert now.first_step == then.first_step == 41
    assert (now.verdict, now.next) == (then.verdict, then.next)


def test_rows_of_an_embedding_that_begin_out_of_scale_are_told_by_the_size_of_the_table():
    table = keras.layers.Embedding(50, 4, name="items")
    table.build()
    head = keras.layers.Dense(3)
    head.build((None, 4))
    rows = table.embeddings.numpy()
    rows[::10] *= 2000.0
    table.embeddings.assign(rows)
    variables = [*table.trainable_variables, *head.trainable_variables]
    optimizer = keras.optimizers.Adam(1e-3)

    @gradwatch.watch
    @tf.function
    def step(x, y):
        with tf.GradientTape() as tape:
            out = head(tf.reduce_sum(table(x), 1))
            loss = tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(y, out, from_logits=True))
        optimizer.apply(tape.gradient(loss, variables), variables)
        return loss

    rng = np.random.default_rng(0)
    for _ in range(60):
        x = rng.integers(0, 50, (16, 5))
        step(tf.constant(x, tf.int32), tf.constant(x[:, 0] % 3, tf.int32))
    assert step.monitor.run_facts["variables"]["items/embeddings"] == (50, 4)
    found = gradwatch.diagnose(step.monitor)
    assert (found.kind, found.first_step) == ("embedding_rows", 1), str(found)


def test_the_cause_is_still_named_when_the_device_has_forgotten_it(training):
    """A rate that rose 1,100 steps ago: the window of 1,024 steps holds nothing but NaN."""
    training.run(rate=lambda i: RATE if i < AT else 1e4 * RATE)
    monitor = training.step.monitor
    rng = np.random.default_rng(4)
    x, y = tf.constant(rng.normal(size=(16, 8)), tf.float32), tf.constant(rng.integers(0, 4, 16), tf.int32)
    for _ in range(1100):
        training.step(x, y, tf.constant(False))
    found = gradwatch.diagnose(monitor)
    assert monitor.history()["step"][0] > AT + 1
    assert (found.kind, found.first_step) == ("rate_jump", AT + 1), str(found)
    assert training.run().healthy
