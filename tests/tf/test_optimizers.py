"""Optimizers that are not Keras' own: wrappers, subclasses whose methods take more, and steps over parts of a set."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import support
import tensorflow as tf

import gradwatch
from gradwatch import policies

DATA = support.batches(6)


class Wrap(keras.optimizers.Optimizer):
    """An averaging wrapper, as libraries have them: it applies what it wraps, and keeps it under a name of its own."""

    def __init__(self, base, **options):
        super().__init__(learning_rate=0.0, **options)
        self.base = base

    def build(self, variables):
        super().build(variables)
        self.base.build(variables)

    def apply(self, grads, trainable_variables=None):
        self.base.apply(grads, trainable_variables)

    def update_step(self, gradient, variable, learning_rate):
        raise AssertionError("the wrapped one updates")


class InADict(Wrap):
    """Keeps several, of which it applies one."""

    def __init__(self, base):
        super().__init__(base)
        self.by_name = {"fast": base, "slow": support.sgd()}


class Twice(Wrap):
    """Applies what it wraps twice: look ahead, then step."""

    def apply(self, grads, trainable_variables=None):
        self.base.apply(grads, trainable_variables)
        self.base.apply(grads, trainable_variables)


WRAPPERS = {
    "one": lambda: Wrap(support.sgd()),
    "two deep": lambda: Wrap(Wrap(support.sgd())),
    "in a dict": lambda: InADict(support.sgd()),
    "applied twice": lambda: Twice(support.sgd()),
    "around LossScaleOptimizer": lambda: Wrap(keras.optimizers.LossScaleOptimizer(support.sgd(), initial_scale=1.0)),
    "inside LossScaleOptimizer": lambda: keras.optimizers.LossScaleOptimizer(Wrap(support.sgd()), initial_scale=1.0),
}


@pytest.mark.parametrize("mode", ["eager", "function inside"])
@pytest.mark.parametrize("make", WRAPPERS.values(), ids=WRAPPERS)
def test_an_apply_inside_a_watched_apply_is_no_step_of_its_own(make, mode):
    net, optimizer = support.model(), make()
    step = support.MODES[mode](support.watch(), support.train_step(net, optimizer))
    norms = []
    for x, y in DATA[:3]:
        with tf.GradientTape() as tape:
            loss = support.loss_of(net, x, y)
        norms.append(support.norm_of(tape.gradient(loss, net.trainable_variables)))
        step(x, y)
    assert step.monitor.snapshot().steps == 3
    np.testing.assert_allclose(step.monitor.history()["norm"], norms, rtol=1e-5)


def test_a_wrapping_optimizer_clips_once():
    net, reference = support.model(), support.model()
    step = support.watch()(tf.function(support.train_step(net, Wrap(support.sgd(momentum=0.9)))))
    support.run(step, DATA)
    support.run(tf.function(support.train_step(reference, support.sgd(momentum=0.9), support.CLIP)), DATA)
    assert step.monitor.snapshot().clipped_steps > 0
    support.assert_close(support.weights(net), support.weights(reference))


def test_a_wrapping_optimizer_is_one_step_on_two_replicas(mirrored):
    with mirrored.scope():
        net, optimizer = support.model(), Wrap(support.sgd())
        optimizer.build(net.trainable_variables)

    @support.watch()
    def replica(x, y):
        with tf.GradientTape() as tape:
            loss = support.loss_of(net, x, y) / 2.0
        grads = tape.gradient(loss, net.trainable_variables)
        optimizer.apply_gradients(zip(grads, net.trainable_variables))

    @tf.function
    def step(x, y):
        mirrored.run(replica, args=(x, y))

    support.run(step, DATA)  # the same batch on both: their mean is that of one device
    alone = support.model()
    single = support.watch()(tf.function(support.train_step(alone, support.sgd())))
    support.run(single, DATA)
    np.testing.assert_allclose(replica.monitor.history()["norm"], single.monitor.history()["norm"], rtol=1e-5)
    support.assert_close(support.weights(net), support.weights(alone))


def test_a_wrapped_accumulating_optimizer_is_watched_at_its_updates():
    net, optimizer = support.model(), Wrap(support.sgd(gradient_accumulation_steps=3))
    step = support.watch()(tf.function(support.train_step(net, optimizer)))
    support.run(step, DATA)
    assert step.monitor.snapshot().steps == 2


def test_the_scale_of_a_wrapped_optimizer_is_taken_out_of_the_norms():
    seen = []
    for scale in (None, 64.0):
        net, inner = support.model(), support.sgd(loss_scale_factor=scale)
        optimizer = Wrap(inner)

        def step(x, y, net=net, inner=inner, optimizer=optimizer):
            with tf.GradientTape() as tape:
                loss = inner.scale_loss(support.loss_of(net, x, y))
            grads = tape.gradient(loss, net.trainable_variables)
            optimizer.apply_gradients(zip(grads, net.trainable_variables))

        watched = support.watch()(tf.function(step))
        support.run(watched, DATA)
        seen.append(watched.monitor.history()["norm"])
    np.testing.assert_allclose(*seen, rtol=1e-5)


def test_a_skip_is_exact_for_what_an_optimizer_wraps():
    net, inner = support.model(), keras.optimizers.Adam(0.01)
    step = support.watch(on_nonfinite="skip")(tf.function(support.train_step(net, Wrap(inner))))
    support.run(step, DATA[:2])
    before = support.weights(net, inner)
    step(DATA[2][0] * np.nan, DATA[2][1])
    support.assert_same(support.weights(net, inner), before)
    assert step.monitor.snapshot().skipped_updates == 1


# -- methods that take more -------------------------------------------------------------------------------


class Noted(keras.optimizers.SGD):
    notes: list = []

    def apply(self, grads, trainable_variables=None, *, note=None):
        self.notes.append(note)
        super().apply(grads, trainable_variables)


class More(keras.optimizers.SGD):
    notes: list = []

    def apply(self, gradients, variables=None, closure=None, **others):
        self.notes.append((closure, others))
        return super().apply(gradients, variables)


class OnlyKeywords(keras.optimizers.SGD):
    notes: list = []

    def apply(self, *, grads, trainable_variables, note="none"):
        self.notes.append(note)
        super().apply(grads, trainable_variables)


class OfGradientsAlone(keras.optimizers.SGD):
    notes: list = []

    def apply(self, grads, *variables, note="none"):
        self.notes.append((len(variables), note))
        super().apply(grads, *variables)


class Anything(keras.optimizers.SGD):
    notes: list = []

    def apply(self, *args, **keywords):
        self.notes.append((len(args), sorted(keywords)))
        super().apply(*args, **keywords)


class OfGradientsAndNotes(keras.optimizers.SGD):
    notes: list = []

    def apply_gradients(self, grads_and_vars, note=None, **others):
        self.notes.append((note, others))
        return super().apply_gradients(grads_and_vars)


CALLS = {
    "by keyword": (Noted, lambda o, g, v: o.apply(g, v, note="a"), "a"),
    "without it": (Noted, lambda o, g, v: o.apply(g, v), None),
    "by position": (More, lambda o, g, v: o.apply(g, v, 3), (3, {})),
    "other names": (More, lambda o, g, v: o.apply(gradients=g, variables=v, extra=1), (None, {"extra": 1})),
    "only keywords": (OnlyKeywords, lambda o, g, v: o.apply(grads=g, trainable_variables=v, note="b"), "b"),
    "variables that it knows": (OfGradientsAlone, lambda o, g, v: (o.build(v), o.apply(g, note="d")), (0, "d")),
    "anything": (Anything, lambda o, g, v: o.apply(g, trainable_variables=v), (1, ["trainable_variables"])),
    "apply_gradients": (
        OfGradientsAndNotes,
        lambda o, g, v: o.apply_gradients(zip(g, v), "c", more=2),
        ("c", {"more": 2}),
    ),
}


@pytest.mark.parametrize("watched", [True, False])
@pytest.mark.parametrize(("kind", "call", "expected"), CALLS.values(), ids=CALLS)
def test_arguments_that_are_not_ours_are_handed_on(kind, call, expected, watched):
    kind.notes = []
    gradwatch.watch(lambda: None)  # from now on every class is hooked
    net, optimizer, reference = support.model(), kind(0.01), support.model()

    def step(x, y):
        with tf.GradientTape() as tape:
            loss = support.loss_of(net, x, y)
        call(optimizer, tape.gradient(loss, net.trainable_variables), net.trainable_variables)

    ran = support.watch()(step) if watched else step
    support.run(ran, DATA[:2])
    assert kind.notes == [expected] * 2
    clip_norm = support.CLIP if watched else None
    support.run(support.train_step(reference, support.sgd(), clip_norm), DATA[:2])
    support.assert_close(support.weights(net), support.weights(reference))
    if watched:
        assert ran.monitor.snapshot().steps == 2


def test_what_an_override_of_apply_gradients_clips_is_clipped_when_it_reaches_the_monitor():
    """As docs/loops.md says: the monitor judges the gradient that reaches `apply`."""

    class ClipsItself(keras.optimizers.SGD):
        def apply_gradients(self, grads_and_vars):
            grads, variables = zip(*grads_and_vars)
            grads, _ = tf.clip_by_global_norm(grads, 0.01)
            return super().apply_gradients(zip(grads, variables))

    net = support.model()
    step = support.watch(policies.observe())(support.train_step(net, ClipsItself(0.01)))
    support.run(step, DATA[:2])
    np.testing.assert_allclose(step.monitor.history()["norm"], [0.01] * 2, rtol=1e-5)


# -- parts of a set ---------------------------------------------------------------------------------------


def two_heads(seed=0):
    """(trunk, head a, head b, an optimizer that is built on all of them)"""
    keras.utils.set_random_seed(seed)
    parts = [keras.layers.Dense(3) for _ in range(3)]
    parts[0].build((None, 5))
    for head in parts[1:]:
        head.build((None, 3))
    optimizer = support.sgd(momentum=0.5)
    variables = [v for part in parts for v in part.trainable_variables]
    optimizer.build(variables)
    return parts, variables, optimizer


def gradients_of(parts, used, variables, x):
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.square(used(parts[0](x))))
    return tape.gradient(loss, variables)


@pytest.mark.parametrize("mode", ["eager", "function inside", "jit inside"])
@pytest.mark.parametrize("filtered", [False, True], ids=["None for the other", "the other left out"])
def test_alternating_heads_are_steps_of_one_monitor_and_none_is_a_zero_norm(mode, filtered):
    parts, variables, optimizer = two_heads()
    x, norms = DATA[0][0], []

    def step(x, first):
        used = parts[1] if first else parts[2]
        grads = gradients_of(parts, used, variables, x)
        pairs = list(zip(grads, variables))
        if filtered:
            pairs = [(g, v) for g, v in pairs if g is not None]
        optimizer.apply_gradients(pairs)

    watched = support.MODES[mode](support.watch(policies.observe()), step)
    for first in (True, False, True, False):
        used = parts[1] if first else parts[2]
        norms.append(support.norm_of(gradients_of(parts, used, variables, x)))
        watched(x, first)
    monitor = watched.monitor
    assert monitor.snapshot().steps == 4
    np.testing.assert_allclose(monitor.history()["norm"], norms, rtol=1e-5)
    layers = monitor.snapshot().layer_norms
    assert set(layers) == {v.path for v in variables}
    assert [layers[v.path] == 0.0 for v in parts[1].trainable_variables] == [True, True]
    assert all(layers[v.path] > 0.0 for v in parts[2].trainable_variables)


def test_an_encoder_and_then_a_decoder_with_one_optimizer_are_two_steps_over_the_whole_set():
    parts, variables, optimizer = two_heads()
    reference, their_variables, theirs = two_heads()
    monitor = support.monitor(policies.per_variable())

    def step(parts, optimizer, x):
        with tf.GradientTape(persistent=True) as tape:
            loss = tf.reduce_sum(tf.square(parts[1](parts[0](x))))
        for part in parts[:2]:
            grads = tape.gradient(loss, part.trainable_variables)
            optimizer.apply_gradients(zip(grads, part.trainable_variables))

    watched = gradwatch.watch(monitor=monitor)(tf.function(lambda x: step(parts, optimizer, x)))
    watched(DATA[0][0])
    assert monitor.snapshot().steps == 2
    assert set(monitor.snapshot().layer_norms) == {v.path for v in variables}
    step(reference, theirs, DATA[0][0])
    # the first step of a policy clips nothing: the weights tell that no gradient went to another variable
    support.assert_close(support.weights(*variables), support.weights(*their_variables))


def test_a_gradient_that_is_none_in_a_call_of_clip_is_a_zero_norm():
    monitor = support.monitor(policies.fixed(1.0))
    a, b = tf.Variable([3.0, 4.0], name="a"), tf.Variable([[1.0, 1.0]], name="b")
    first, _ = monitor.clip([a * 1.0, None], [a, b])
    second, decision = monitor.clip([None, b * 3.0], [a, b])
    assert [first[1], second[0]] == [None, None]
    np.testing.assert_allclose(first[0], [0.6, 0.8], rtol=1e-6)
    np.testing.assert_allclose(float(decision.norm), np.sqrt(18.0), rtol=1e-6)
    assert monitor.snapshot().steps == 2
    assert list(monitor.snapshot().layer_norms.values()) == [0.0, pytest.approx(np.sqrt(18.0))]
