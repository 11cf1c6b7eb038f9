"""model.fit with KerasCallback: one fit after another, saving and loading, resuming, stopping."""

from __future__ import annotations

import copy
import dataclasses
import functools
import gc
import pickle
import warnings

import keras
import loops
import numpy as np
import pytest
import support
import tensorflow as tf

import gradwatch
from gradwatch.core.snapshot import Event
from gradwatch.errors import NothingToWatch
from gradwatch.tf import hook, watchers

X, Y = (np.concatenate([np.asarray(b[i]) for b in support.batches(6)]) for i in (0, 1))


def compiled(optimizer=None, **options):
    net = support.model()
    net.compile(optimizer=support.sgd() if optimizer is None else optimizer, loss="mse", jit_compile=False, **options)
    return net


def fit(net, *callbacks, **options):
    return net.fit(X, Y, batch_size=8, shuffle=False, verbose=0, callbacks=list(callbacks), **options)


def test_trap_23_a_model_that_was_fitted_before_is_watched_and_afterwards_is_not():
    net, callback = compiled(), gradwatch.KerasCallback(support.monitor())
    fit(net)
    fit(net, callback)
    assert callback.monitor.snapshot().steps == 6
    fit(net)
    assert callback.monitor.snapshot().steps == 6
    fit(net, callback)
    assert callback.monitor.snapshot().steps == 12


def test_two_callbacks_one_after_the_other_watch_their_own_fit():
    net = compiled()
    first, second = (gradwatch.KerasCallback(support.monitor()) for _ in range(2))
    fit(net, first)
    fit(net, second)
    assert [c.monitor.snapshot().steps for c in (first, second)] == [6, 6]


def test_a_fit_watched_after_an_interrupted_one_goes_back_to_unwatched():
    net, callback = compiled(), gradwatch.KerasCallback(support.monitor())
    with pytest.raises(KeyboardInterrupt):
        fit(net, callback, Interrupt("on_train_batch_end"))
    fit(net, callback)
    steps = callback.monitor.snapshot().steps
    assert steps == 7
    fit(net)
    assert callback.monitor.snapshot().steps == steps
    assert watchers.attached(net.optimizer) is None


class Interrupt(keras.callbacks.Callback):
    """Ends the fit with an error at the start of training, in the first batch, or at the end of the first epoch."""

    def __init__(self, when):
        super().__init__()
        setattr(self, when, self._interrupt)

    def _interrupt(self, *args, **kwargs):
        raise KeyboardInterrupt


def tiny(**options):
    """A callback whose clipping stops a training for all to see."""
    return gradwatch.KerasCallback(support.monitor(gradwatch.policies.fixed(1e-6)), **options)


DEATHS = ("on_train_begin", "on_train_batch_begin", "on_train_batch_end", "on_epoch_end", "on_train_end")


def trained(eagerly, *fits):
    """The weights after several fits, each with its callbacks; one that is interrupted leaves no trace in them."""
    net = support.model()
    net.compile(support.sgd(), "mse", jit_compile=False, run_eagerly=eagerly)
    initial = net.get_weights()
    for callbacks in fits:
        try:
            fit(net, *callbacks)
        except KeyboardInterrupt:
            net.set_weights(initial)
    return support.weights(net)


@functools.cache
def trained_plainly(eagerly, fits):
    return trained(eagerly, *[[]] * fits)


@pytest.mark.parametrize("when", DEATHS)
@pytest.mark.parametrize("eagerly", [False, True], ids=["function", "run_eagerly"])
def test_nothing_is_left_of_a_callback_whose_fit_died_whoever_comes_next(when, eagerly):
    def dying():
        dead = tiny()
        # the one that ends the fit stands where ours has just heard of it, or has not heard of its end
        return dead, [Interrupt(when), dead] if when == "on_train_end" else [dead, Interrupt(when)]

    dead, callbacks = dying()
    support.assert_close(trained(eagerly, callbacks, []), trained_plainly(eagerly, 1))
    assert dead.monitor.snapshot().steps <= 6
    # a new callback ends well in between, and the fit after it is its own
    dead, callbacks = dying()
    second = gradwatch.KerasCallback(support.monitor(gradwatch.policies.observe()))
    support.assert_close(trained(eagerly, callbacks, [second], []), trained_plainly(eagerly, 2))
    assert second.monitor.snapshot().steps == 6
    assert dead.monitor.snapshot().steps <= 6


@pytest.mark.parametrize("when", ["on_train_batch_begin", "on_train_batch_end"])
@pytest.mark.parametrize("call", ["train_on_batch", "custom loop", "evaluate"])
def test_after_a_fit_that_died_other_ways_to_train_are_unwatched(call, when):
    nets = [compiled(), compiled()]
    dead = tiny()
    with pytest.raises(KeyboardInterrupt):
        fit(nets[0], dead, Interrupt(when))
    steps = dead.monitor.snapshot().steps
    nets[0].set_weights(support.model().get_weights())
    for net in nets:
        if call == "train_on_batch":
            net.train_on_batch(X, Y)
        elif call == "custom loop":
            support.train_step(net, net.optimizer)(X, Y)
        else:
            net.evaluate(X, Y, verbose=0)
    support.assert_same(support.weights(nets[0]), support.weights(nets[1]))
    assert dead.monitor.snapshot().steps == steps


def test_an_error_of_a_watched_fit_is_not_raised_again_by_a_plain_one():
    net, other = compiled(), support.model()
    monitor = support.monitor()
    monitor.clip([tf.ones_like(v) for v in other.trainable_variables], other.trainable_variables)
    with pytest.raises(gradwatch.errors.LayoutError):
        fit(net, gradwatch.KerasCallback(monitor))
    fit(net)
    assert monitor.snapshot().steps == 1


def test_a_train_function_that_is_made_anew_during_the_fit_is_watched_too():
    class Unfreeze(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                self.model.make_train_function(force=True)

    net, callback = compiled(), gradwatch.KerasCallback(support.monitor())
    fit(net, callback, Unfreeze(), epochs=2)
    assert callback.monitor.snapshot().steps == 12
    fit(net)
    assert callback.monitor.snapshot().steps == 12


# -- one fit after another --------------------------------------------------------------------------------


class Traced(keras.Sequential):
    """Counts how often its train step is traced."""

    traces = 0

    def train_step(self, data):
        type(self).traces += 1
        return super().train_step(data)


def traced(**options):
    Traced.traces = 0
    net = support.model(kind=Traced)
    net.compile(**{"optimizer": support.sgd(), "loss": "mse", "jit_compile": False, **options})
    return net


def test_a_fit_is_not_traced_again_when_nothing_has_changed():
    net, callback = traced(), gradwatch.KerasCallback(support.monitor())
    fit(net, callback)
    once = Traced.traces
    for _ in range(3):
        fit(net, callback)
    assert Traced.traces == once
    assert callback.monitor.snapshot().steps == 24
    fit(net)
    plain = Traced.traces
    fit(net)
    fit(net, callback)
    assert Traced.traces == plain
    assert callback.monitor.snapshot().steps == 30


CHANGES = {
    "compile": lambda net: net.compile(support.sgd(0.5), "mae", jit_compile=False),
    "run_eagerly": lambda net: setattr(net, "run_eagerly", True),
    "steps_per_execution": lambda net: setattr(net, "steps_per_execution", 3),
    "trainable": lambda net: setattr(net.layers[0], "trainable", False),
    "train function": lambda net: net.make_train_function(force=True),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_fit_after_a_change_trains_as_an_unwatched_one_does(change):
    def train(*callbacks):
        net = compiled()
        fit(net, *callbacks)
        change(net)
        fit(net, *callbacks)
        return support.weights(net)

    callback = gradwatch.KerasCallback(support.monitor(gradwatch.policies.observe()))
    got = train(callback)

    # what a model without a train function of before does: it has none to keep
    def anew():
        net = compiled()
        fit(net)
        net.train_function = None
        change(net)
        fit(net)
        return support.weights(net)

    support.assert_close(got, anew())
    assert callback.monitor.snapshot().steps == 12


def test_another_monitor_watches_the_next_fit_alone():
    net, first = compiled(), gradwatch.KerasCallback(support.monitor())
    fit(net, first)
    second = gradwatch.KerasCallback(support.monitor())
    fit(net, second)
    fit(net, first)
    assert [c.monitor.snapshot().steps for c in (first, second)] == [12, 6]


# -- copies -----------------------------------------------------------------------------------------------


def test_a_deep_copy_of_a_callback_is_configured_as_it_is_and_begins_with_no_run():
    net = compiled()
    callback = gradwatch.KerasCallback(support.monitor(name="run"), optimizer=net.optimizer, stop_after=7)
    fit(net, callback)
    twin = copy.deepcopy(callback)
    assert (twin.stop_after, twin.monitor.name, twin.monitor is callback.monitor) == (7, "run", False)
    assert twin.monitor.guard.policy.name == callback.monitor.guard.policy.name
    assert twin.monitor.snapshot().steps == 0
    fit(net, twin)
    assert (callback.monitor.snapshot().steps, twin.monitor.snapshot().steps) == (6, 6)


def test_a_callback_pickles():
    callback = gradwatch.KerasCallback(name="run", policy=gradwatch.policies.percentile(80), stop_after=7)
    fit(compiled(), callback)
    twin = pickle.loads(pickle.dumps(callback))
    assert (twin.stop_after, twin.monitor.name, twin.monitor.snapshot().steps) == (7, "run", 0)
    fit(compiled(), twin)
    assert twin.monitor.snapshot().steps == 6


def test_copies_of_one_callback_watch_a_search_of_several_models():
    """As KerasTuner does: each trial gets a deep copy of the callbacks that `search` was given."""
    original = gradwatch.KerasCallback(**support.monitor_options())
    for _ in range(2):
        net, twin = compiled(), copy.deepcopy(original)
        fit(net, twin)
        assert twin.monitor.snapshot().steps == 6
    assert original.monitor.snapshot().steps == 0


def test_a_callback_takes_the_options_of_a_monitor():
    callback = gradwatch.KerasCallback(**support.monitor_options(name="mine", on_nonfinite="skip"))
    fit(compiled(), callback)
    assert callback.monitor.name == "mine"
    assert callback.monitor.guard.on_nonfinite == "skip"
    assert callback.monitor.snapshot().steps == 6


def test_saturated_clipping_counts_for_stop_after(monkeypatch):
    callback = gradwatch.KerasCallback(support.monitor(), stop_after=3)
    fit(compiled(), callback)
    seen = callback.monitor.snapshot()
    event = Event("saturated", step=2, norm=1e9, threshold=1.0, shares={})
    dead = dataclasses.replace(
        seen, active={**seen.active, "saturated": True}, last_events={**seen.last_events, "saturated": event}
    )
    callback.monitor.reset()
    net = compiled()
    monkeypatch.setattr(type(callback.monitor), "snapshot", lambda self: dead)
    fit(net, callback, epochs=5)
    assert net.stop_training


def test_a_fit_that_lives_on_its_brakes_is_stopped():
    """At a rate of 1e12 every update is clipped and the loss is beyond measure, though nothing is NaN."""
    net, callback = compiled(support.sgd(1e12)), gradwatch.KerasCallback(stop_after=3)
    fit(net, callback, epochs=50)
    snapshot = callback.monitor.snapshot()
    assert net.stop_training
    assert snapshot.steps < 150
    assert snapshot.nonfinite_steps == 0


def test_fits_with_a_callback_of_their_own_leave_no_graph_behind():
    net, counts = compiled(), []
    for _ in range(4):
        fit(net, gradwatch.KerasCallback())
        gc.collect()
        counts.append(sum(type(thing).__name__ == "FuncGraph" for thing in gc.get_objects()))
    assert counts[3] == counts[2] == counts[1]


def test_a_run_that_exploded_and_then_became_nan_is_stopped_with_both_said(monkeypatch, caplog):
    callback = gradwatch.KerasCallback(support.monitor(), stop_after=3)
    fit(compiled(), callback)
    seen = callback.monitor.snapshot()
    event = Event("explosion", step=2, norm=1e9, threshold=1.0, shares={})
    broken = dataclasses.replace(
        seen,
        active={**seen.active, "explosion": True},
        last_events={**seen.last_events, "explosion": event},
        nonfinite_streak=seen.steps - 3,
    )
    callback.monitor.reset()
    monkeypatch.setattr(type(callback.monitor), "snapshot", lambda self: broken)
    with caplog.at_level("ERROR", "gradwatch"):
        fit(compiled(), callback)
    assert "exploding for 5 steps, and NaN or Inf in the last 3 of them" in caplog.text


def test_what_watch_attached_is_watched_again_after_the_fit():
    net = compiled()
    step = gradwatch.watch(optimizer=net.optimizer, **support.monitor_options())(support.train_step(net, net.optimizer))
    fit(net, gradwatch.KerasCallback(support.monitor()))
    assert step.monitor.snapshot().steps == 0
    step(*support.batches(1)[0])
    assert step.monitor.snapshot().steps == 1


def test_evaluate_and_predict_are_not_steps():
    net, callback = compiled(), gradwatch.KerasCallback(support.monitor())
    fit(net, callback, validation_data=(X, Y), validation_batch_size=8)
    net.evaluate(X, Y, verbose=0)
    net.predict(X, verbose=0)
    assert callback.monitor.snapshot().steps == 6


def test_the_numbers_stand_in_the_history():
    net, callback = compiled(), gradwatch.KerasCallback(support.monitor())
    history = fit(net, callback, epochs=2).history
    snapshot = callback.monitor.snapshot()
    assert {"loss", "gradient_norm", "clip_norm", "clipped_steps"} <= set(history)
    assert history["gradient_norm"][-1] == pytest.approx(snapshot.norm)
    assert history["clip_norm"] == [support.CLIP] * 2
    assert snapshot.extra["loss"] > 0


@pytest.mark.parametrize("watched", [True, False])
def test_trap_24_a_saved_model_carries_the_users_optimizer(watched, tmp_path):
    net = compiled(keras.optimizers.Adam(0.01))
    fit(net, *([gradwatch.KerasCallback(support.monitor())] if watched else []))
    net.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert type(loaded.optimizer) is keras.optimizers.Adam
    assert int(loaded.optimizer.iterations.numpy()) == 6
    support.assert_same(support.weights(loaded, loaded.optimizer), support.weights(net, net.optimizer))


def test_trap_24_checkpoints_during_a_watched_fit_load_and_go_on(tmp_path):
    net = compiled(keras.optimizers.Adam(0.01))
    fit(net, gradwatch.KerasCallback(support.monitor()), keras.callbacks.ModelCheckpoint(tmp_path / "m.keras"))
    loaded = keras.models.load_model(tmp_path / "m.keras")
    callback = gradwatch.KerasCallback(support.monitor())
    fit(loaded, callback)
    assert int(loaded.optimizer.iterations.numpy()) == 12
    assert callback.monitor.snapshot().steps == 6


def test_trap_25_the_state_of_an_unwatched_optimizer_loads_into_a_watched_one(tmp_path):
    old = compiled(keras.optimizers.Adam(0.01))
    fit(old)
    old.save_weights(tmp_path / "w.weights.h5")
    new = compiled(keras.optimizers.Adam(0.01))
    new.optimizer.build(new.trainable_variables)
    hook.install()
    watchers.attach(new.optimizer, watchers.Scope(support.monitor()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        new.load_weights(tmp_path / "w.weights.h5")
    support.assert_same(support.weights(new, new.optimizer), support.weights(old, old.optimizer))


def test_backup_and_restore_brings_the_monitor_back_with_the_run(tmp_path):
    class Crash(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise RuntimeError("power cut")

    def callbacks():
        return [
            gradwatch.KerasCallback(support.monitor(name="run"), backup_dir=tmp_path / "monitor"),
            keras.callbacks.BackupAndRestore(tmp_path / "keras"),
        ]

    whole_net, whole = compiled(), gradwatch.KerasCallback(support.monitor())
    fit(whole_net, whole, epochs=4)
    with pytest.raises(RuntimeError, match="power cut"):
        fit(compiled(), *callbacks(), Crash(), epochs=4)
    net, (watcher, backup) = compiled(), callbacks()
    fit(net, watcher, backup, epochs=4)
    support.assert_close(support.weights(net), support.weights(whole_net))
    assert watcher.monitor.snapshot().steps == whole.monitor.snapshot().steps == 24
    support.assert_same([watcher.monitor.history()["norm"]], [whole.monitor.history()["norm"]])
    assert not list((tmp_path / "monitor").iterdir())


def test_a_hopeless_training_is_stopped_on_demand():
    callback = gradwatch.KerasCallback(support.monitor(on_nonfinite="propagate"), stop_after=10)
    net = compiled(keras.optimizers.SGD(1e6))
    fit(net, callback, epochs=50)
    assert net.stop_training
    assert callback.monitor.snapshot().steps < 50 * 6


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: support.sgd(keras.optimizers.schedules.CosineDecay(0.01, 10)),
        pytest.param(
            lambda: support.multi(support.sgd()),
            marks=pytest.mark.skipif(
                not hasattr(keras.optimizers, "MultiOptimizer"), reason="this Keras has no MultiOptimizer"
            ),
        ),
    ],
    ids=["schedule", "MultiOptimizer"],
)
def test_an_optimizer_without_a_plain_learning_rate_does_not_end_the_fit(optimizer):
    callback = gradwatch.KerasCallback(support.monitor())
    fit(compiled(optimizer()), callback)
    assert callback.monitor.snapshot().steps == 6


@pytest.mark.parametrize("mode", ["fit", "fit, run_eagerly"])
def test_a_train_step_that_is_decorated_as_a_method_is_watched(mode):
    class Mine(loops.Overridden):
        @gradwatch.watch(**support.monitor_options())
        def train_step(self, data):
            return super().train_step(data)

    net = support.model(kind=Mine)
    net.compile(optimizer=support.sgd(), loss="mse", **loops.FIT[mode])
    fit(net)
    assert Mine.train_step.monitor.snapshot().steps == 6


def test_two_models_in_one_process_do_not_disturb_each_other():
    watched, other, reference = compiled(), compiled(), compiled()
    callback = gradwatch.KerasCallback(support.monitor(gradwatch.policies.fixed(1e-6)))
    fit(watched, callback)
    fit(other)
    fit(reference)
    support.assert_same(support.weights(other), support.weights(reference))
    assert callback.monitor.snapshot().steps == 6


def test_a_finished_fit_holds_on_to_nothing():
    import weakref

    net, callback = compiled(), gradwatch.KerasCallback(support.monitor())
    fit(net, callback)
    optimizer = weakref.ref(net.optimizer)
    del net, callback
    gc.collect()
    assert optimizer() is None


class Gan(keras.Model):
    """As in public tutorials: optimizers of its own, and none given to compile."""

    def __init__(self):
        super().__init__()
        self.generator, self.critic = support.model(0), support.model(1)

    def compile(self, g_optimizer, c_optimizer, **options):
        super().compile(jit_compile=False, **options)
        self.g_optimizer, self.c_optimizer = g_optimizer, c_optimizer

    def train_step(self, data):
        x, y = data
        for _ in range(2):
            support.train_step(self.critic, self.c_optimizer)(x, y)
        return {"loss": support.train_step(self.generator, self.g_optimizer)(x, y)}


def test_a_model_with_optimizers_of_its_own_takes_a_callback_for_each():
    gan, g, c = Gan(), support.sgd(), keras.optimizers.Adam(0.01)
    gan.compile(g, c)
    callbacks = [
        gradwatch.KerasCallback(support.monitor(name="generator"), optimizer=g),
        gradwatch.KerasCallback(support.monitor(name="critic"), optimizer=c),
    ]
    history = fit(gan, *callbacks).history
    assert [callback.monitor.snapshot().steps for callback in callbacks] == [6, 12]
    assert {"generator_gradient_norm", "critic_gradient_norm"} <= set(history)


def test_a_callback_that_would_be_blind_raises_in_the_first_batch_and_lets_go():
    gan = Gan()
    gan.compile(support.sgd(), support.sgd())
    callback = gradwatch.KerasCallback(support.monitor())
    with pytest.raises(NothingToWatch, match="one callback for each"):
        fit(gan, callback)
    assert callback.monitor.snapshot().steps == 0
    assert watchers.attached(gan.optimizer) is None
    fit(gan)


# -- mixed precision --------------------------------------------------------------------------------------


def test_the_loss_scaler_that_compile_makes_is_the_one_that_is_watched():
    net = support.model(policy="mixed_float16")
    net.compile(optimizer=support.sgd(), loss="mse", jit_compile=False)
    callback = gradwatch.KerasCallback(support.monitor())
    fit(net, callback)
    assert isinstance(net.optimizer, keras.optimizers.LossScaleOptimizer)
    snapshot = callback.monitor.snapshot()
    assert snapshot.steps == 6
    assert snapshot.loss_scale == float(net.optimizer.dynamic_scale.numpy()) >= 2.0**10
    assert 0.1 < snapshot.norm < 10.0


def test_trap_10_overflows_while_the_loss_scale_is_sought_are_counted_but_raise_no_alarm():
    net = support.model(policy="mixed_float16")
    optimizer = keras.optimizers.LossScaleOptimizer(support.sgd(), initial_scale=2.0**22)
    net.compile(optimizer=optimizer, loss="mse", jit_compile=False)
    callback = gradwatch.KerasCallback(support.monitor())
    fit(net, callback, epochs=5)
    snapshot = callback.monitor.snapshot()
    assert snapshot.steps == 30
    assert 3 < snapshot.nonfinite_steps < 25
    assert snapshot.nonfinite_streak == 0
    assert snapshot.loss_scale == float(optimizer.dynamic_scale.numpy()) < 2.0**20
    assert snapshot.anomalies["nonfinite"] == 0
    # Keras 3.5 counts on the inner one only
    assert int(optimizer.inner_optimizer.iterations.numpy()) == 30 - snapshot.nonfinite_steps


def test_a_loss_scaler_that_never_finds_a_scale_does_raise_the_alarm():
    net = support.model(policy="mixed_float16")
    net.compile(optimizer=support.sgd(), loss="mse", jit_compile=False)
    callback = gradwatch.KerasCallback(support.monitor())
    net.fit(np.full_like(X, np.nan), Y, batch_size=1, epochs=2, verbose=0, callbacks=[callback])
    assert callback.monitor.snapshot().anomalies["nonfinite"] == 1


# -- the accumulation that fit does ------------------------------------------------------------------------


def test_trap_13_accumulation_counts_updates_and_not_micro_batches():
    net, callback = compiled(support.sgd(gradient_accumulation_steps=3)), gradwatch.KerasCallback(support.monitor())
    fit(net, callback)
    assert callback.monitor.snapshot().steps == 2
    assert int(net.optimizer.iterations.numpy()) == 2


def test_an_accumulating_optimizer_inside_a_loss_scaler_is_watched_at_its_updates():
    net = support.model(policy="mixed_float16")
    inner = support.sgd(gradient_accumulation_steps=3)
    net.compile(optimizer=keras.optimizers.LossScaleOptimizer(inner, initial_scale=16.0), loss="mse", jit_compile=False)
    callback = gradwatch.KerasCallback(support.monitor())
    fit(net, callback)
    snapshot = callback.monitor.snapshot()
    assert snapshot.steps == int(inner.iterations.numpy()) == 2
    assert 0.1 < snapshot.norm < 10.0
