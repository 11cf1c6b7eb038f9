"""`model.fit(callbacks=[KerasCallback(recover=...)])` goes back, goes on and stops, beside other people's callbacks."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import support
import tensorflow as tf

import gradwatch
from gradwatch import policies, recovery
from gradwatch.recovery import folder

BATCHES = 30  # of an epoch
RNG = np.random.default_rng(0)
X = RNG.normal(size=(16 * BATCHES, 5)).astype(np.float32)
Y = np.tanh(X @ RNG.normal(size=(5, 1))).astype(np.float32)


def data():
    return tf.data.Dataset.from_tensor_slices((X, Y)).batch(16)


def callback(**rollback):
    ladder = recovery.ladder(
        recovery.lower(), recovery.rollback(every=20, calm_steps=10, **rollback), recovery.stop(steps=60)
    )
    return gradwatch.KerasCallback(**support.monitor_options(policies.percentile(90), recover=ladder))


def model(**compiled):
    keras.utils.set_random_seed(0)
    net = keras.Sequential(
        [keras.layers.Input((5,)), keras.layers.Dense(10), keras.layers.BatchNormalization(), keras.layers.Dense(1)]
    )
    net.compile(keras.optimizers.Adam(0.01), "mse", metrics=["mae"], **compiled)
    return net


class Wreck(keras.callbacks.Callback):
    """Damages the weights before a step, numbered through all epochs."""

    def __init__(self, *at):
        super().__init__()
        self.at, self.step = at, 0

    def on_train_batch_begin(self, batch, logs=None):
        self.step += 1
        if self.step in self.at:
            for v in self.model.trainable_variables:
                v.assign(1e3 * (v + 1.0))


def fit(net, *callbacks, epochs=3, **options):
    return net.fit(data(), epochs=epochs, verbose=0, callbacks=list(callbacks), **options).history


def is_finite(net):
    return all(np.all(np.isfinite(x)) for x in support.weights(net, net.optimizer))


@pytest.mark.parametrize("options", [{}, {"jit_compile": True}, {"steps_per_execution": 10}], ids=str)
def test_a_fit_goes_back_and_ends_as_one_that_was_never_hurt(options):
    watch, net = callback(), model(**options)
    wreck = Wreck(5 if "steps_per_execution" in options else 50)  # it is called once for ten steps
    history = fit(net, wreck, watch, epochs=4)
    seen = watch.monitor.snapshot()
    assert seen.recoveries["rollback"] == 1
    assert seen.steps == 4 * BATCHES
    assert int(net.optimizer.iterations.numpy()) == 4 * BATCHES - seen.lost_steps["rollback"]
    assert is_finite(net)
    assert history["loss"][-1] < 0.5
    assert net.evaluate(data(), verbose=0)[0] < 0.5


def test_a_healthy_fit_is_bit_identical_with_the_ladder_armed():
    def run(*callbacks):
        net = model()
        return [fit(net, *callbacks), support.weights(net, net.optimizer)]

    (armed, ours), (plain, theirs) = (
        run(callback()),
        run(gradwatch.KerasCallback(**support.monitor_options(policies.percentile(90)))),
    )
    support.assert_same(ours, theirs)
    assert armed["loss"] == plain["loss"]


def test_a_rollback_at_the_end_of_an_epoch_comes_before_validation_and_checkpoints(tmp_path):
    seen = []

    class Judge(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append((is_finite(self.model), logs["val_loss"]))

    watch, net = callback(), model()
    fit(net, Wreck(2 * BATCHES - 9), watch, Judge(), validation_data=data())
    assert watch.monitor.snapshot().recoveries["rollback"] == 1
    assert watch.monitor.snapshot().last_recoveries[0].step == 2 * BATCHES
    assert all(finite for finite, _ in seen)
    assert max(loss for _, loss in seen[1:]) <= seen[0][1] + 0.05, "the validation saw healthy weights"


def test_checkpoint_callbacks_beside_ours_keep_working_in_the_same_folder(tmp_path):
    best = keras.callbacks.ModelCheckpoint(str(tmp_path / "best.keras"), save_best_only=True, monitor="loss")
    backup = keras.callbacks.BackupAndRestore(str(tmp_path / "backup"), delete_checkpoint=False)
    watch, net = callback(directory=tmp_path), model()
    fit(net, best, backup, Wreck(50), watch, epochs=4)
    assert watch.monitor.snapshot().recoveries["rollback"] == 1
    assert keras.models.load_model(tmp_path / "best.keras").evaluate(data(), verbose=0)[0] < 1.0
    assert (tmp_path / "backup").is_dir()
    found = recovery.latest_healthy(tmp_path, net)
    assert folder.read_health(folder.Path(found + folder.SUFFIX))["verdict"] == "healthy"
    again = model()
    tf.train.Checkpoint(model=again).restore(found).expect_partial()
    assert is_finite(again)


def test_a_fit_that_cannot_be_saved_is_stopped():
    class Break(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if self.params["steps"] and self.model.optimizer.iterations.numpy() == 40:
                self.model.layers[0].kernel.assign(np.full((5, 10), np.nan))

    # every step from 40 on begins with NaN: whatever is brought back is broken again
    watch, net = callback(), model()
    fit(net, Break(), watch, epochs=10)
    assert net.stop_training
    assert watch.monitor.stopped is not None
    assert watch.monitor.stopped.exit_code == 78
    assert watch.monitor.snapshot().recoveries["stop"] == 1


def test_a_second_fit_goes_back_within_itself_and_not_into_the_first():
    watch, net = callback(), model()
    fit(net, watch, epochs=2)
    for v in net.trainable_variables:
        v.assign(0.5 * v)  # between two fits weights are the person's
    fit(net, Wreck(5), watch, epochs=1)
    seen = watch.monitor.snapshot()
    assert seen.recoveries["rollback"] == 1
    assert "before the first step" in seen.last_recoveries[0].text
    assert is_finite(net)
