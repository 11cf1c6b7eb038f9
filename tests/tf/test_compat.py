"""The private names of Keras and TensorFlow: each is there, and where one is gone or unused gradwatch says so."""

from __future__ import annotations

import re
from pathlib import Path

import keras
import pytest
import support
import tensorflow as tf

import gradwatch
from gradwatch.errors import UnsupportedError
from gradwatch.tf import accumulation, compat

DATA = support.batches(4)
PACKAGE = Path(gradwatch.__file__).parent


@pytest.mark.parametrize("name", compat.PRIVATE_NAMES)
def test_this_version_has_every_private_name(name):
    private = compat.PRIVATE_NAMES[name]
    assert private.present(), f"{private.owner}.{name}: {private.without}"


@pytest.mark.parametrize("name", compat.PRIVATE_NAMES)
def test_a_name_that_is_gone_is_refused_with_what_would_happen(name, monkeypatch):
    gone = compat.dataclasses.replace(compat.PRIVATE_NAMES[name], present=lambda: False)
    monkeypatch.setitem(compat.PRIVATE_NAMES, name, gone)
    with pytest.raises(UnsupportedError, match=re.escape(gone.without)):
        compat.require(name)


def test_no_private_name_of_keras_is_used_outside_of_compat():
    # names that Keras and TensorFlow look for in our classes are not used but defined
    defined = {"_serialize_to_tensors", "_restore_from_tensors", "_implements_train_batch_hooks", "_trackable_children"}
    public = {"make_train_function", "outer_graph", "python_function"}
    for path in PACKAGE.rglob("*.py"):
        if path.name == "compat.py":
            continue
        lines = [line for line in path.read_text().splitlines() if "`" not in line]
        for name in set(compat.PRIVATE_NAMES) - defined - public:
            used = [line for line in lines if re.search(rf"\.{name}\b|[\"']{name}[\"']", line)]
            assert not used, f"{path.name}: {used}"


# -- two replicas -----------------------------------------------------------------------------------------


def replicated(mirrored, optimizer):
    with mirrored.scope():
        net = support.model()
        optimizer.build(net.trainable_variables)

    def replica(x, y):
        with tf.GradientTape() as tape:
            loss = support.loss_of(net, x, y) / 2.0
        grads = tape.gradient(loss, net.trainable_variables)
        optimizer.apply_gradients(zip(grads, net.trainable_variables))

    watched = support.watch()(replica)
    return net, tf.function(lambda x, y: mirrored.run(watched, args=(x, y)))


def base_with(name):
    return next(c for c in keras.optimizers.SGD.__mro__ if name in c.__dict__)


def test_a_sum_over_the_replicas_that_keras_renamed_is_refused_before_anything_is_trained(mirrored, monkeypatch):
    base = base_with(compat.SUM_OVER_REPLICAS)
    update, sums = getattr(base, compat.UPDATE), vars(base)[compat.SUM_OVER_REPLICAS]
    net, step = replicated(mirrored, support.sgd())
    before = support.weights(net)

    def other_update(self, grads, trainable_variables, learning_rate):
        setattr(base, compat.SUM_OVER_REPLICAS, sums)
        try:
            return update(self, grads, trainable_variables, learning_rate)
        finally:
            delattr(base, compat.SUM_OVER_REPLICAS)

    monkeypatch.setattr(base, compat.UPDATE, other_update)
    monkeypatch.delattr(base, compat.SUM_OVER_REPLICAS)
    with pytest.raises(UnsupportedError, match="summed twice"):
        step(*DATA[0])
    support.assert_same(support.weights(net), before)


def test_a_sum_over_the_replicas_that_keras_makes_elsewhere_is_refused_before_anything_is_trained(
    mirrored, monkeypatch
):
    base = base_with(compat.UPDATE)
    net, step = replicated(mirrored, support.sgd())
    before = support.weights(net)

    def other_update(self, grads, trainable_variables, learning_rate):
        context = tf.distribute.get_replica_context()
        summed = context.all_reduce("sum", list(grads))
        pairs = list(zip(summed, [v.value for v in trainable_variables]))
        context.merge_call(self._distributed_tf_update_step, args=(pairs, learning_rate))

    monkeypatch.setattr(base, compat.UPDATE, other_update)
    with pytest.raises(UnsupportedError, match="summed twice"):
        step(*DATA[0])
    support.assert_same(support.weights(net), before)


def test_an_optimizer_class_that_sums_in_its_own_way_is_given_its_own_part(mirrored):
    class SumsItself(keras.optimizers.SGD):
        def apply(self, grads, trainable_variables=None):
            context = tf.distribute.get_replica_context()
            for g, v in zip(context.all_reduce("sum", list(grads)), trainable_variables):
                v.value.assign_sub(0.01 * g)

    net, step = replicated(mirrored, SumsItself(0.01))
    alone = support.model()
    support.run(step, DATA)  # the same batch on both replicas
    support.run(support.train_step(alone, support.sgd(), support.CLIP), DATA)
    support.assert_close(support.weights(net), support.weights(alone))


# -- accumulation -----------------------------------------------------------------------------------------


@pytest.fixture
def unproven(monkeypatch):
    monkeypatch.setattr(accumulation, "_proven", set())


@pytest.mark.parametrize("mode", ["eager", "function inside"])
@pytest.mark.parametrize("name", [compat.OWN_CLIPPING, compat.UPDATE])
def test_an_accumulation_that_keras_renamed_is_refused(mode, name, monkeypatch):
    net, optimizer = support.model(), support.sgd(gradient_accumulation_steps=2)
    optimizer.build(net.trainable_variables)
    step = support.MODES[mode](support.watch(), support.train_step(net, optimizer))
    base = base_with(name)
    for cls in keras.optimizers.SGD.__mro__:
        if name in cls.__dict__:
            monkeypatch.delattr(cls, name)
    assert base
    with pytest.raises(UnsupportedError, match="gradient_accumulation_steps is refused"):
        step(*DATA[0])


@pytest.mark.usefixtures("unproven")
@pytest.mark.parametrize("mode", ["eager", "function inside"])
def test_an_accumulation_that_passes_us_by_is_refused_at_its_first_update(mode, monkeypatch):
    net, optimizer = support.model(), support.sgd(gradient_accumulation_steps=2)
    step = support.MODES[mode](support.watch(), support.train_step(net, optimizer))
    base = base_with(compat.OWN_CLIPPING)
    original = base._backend_apply_gradients

    def renamed(self, grads, trainable_variables):
        # what is called is the class's, not what stands on the instance
        before = vars(self).pop(compat.OWN_CLIPPING)
        try:
            return original(self, grads, trainable_variables)
        finally:
            vars(self)[compat.OWN_CLIPPING] = before

    monkeypatch.setattr(base, "_backend_apply_gradients", renamed)
    with pytest.raises(UnsupportedError, match="passed unseen"):
        support.run(step, DATA[:2])


# -- tf.function ------------------------------------------------------------------------------------------


def test_without_clone_a_function_is_watched_or_says_that_it_was_traced_before(monkeypatch):
    monkeypatch.setattr(compat, "python_function", lambda step: None)
    net = support.model()
    step = support.watch()(tf.function(support.train_step(net, support.sgd())))
    step(*DATA[0])
    assert step.monitor.snapshot().steps == 1
