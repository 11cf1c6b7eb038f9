"""A watched step that is a method: each instance has its monitor, its traces and its variables."""

from __future__ import annotations

import gc
import weakref

import pytest
import support
import tensorflow as tf

import gradwatch
from gradwatch.errors import LayoutError

DATA = support.batches(4)


def trainer(decorate):
    """A class with a train step, and what its instances hold."""

    class Trainer:
        def __init__(self, seed=0, **model):
            self.net, self.optimizer = support.model(seed, **model), support.sgd()

        @decorate
        def step(self, x, y):
            """Trains."""
            return support.train_step(self.net, self.optimizer)(x, y)

    return Trainer


WAYS = {
    "plain": lambda: support.watch(),
    "function inside": lambda: lambda step: support.watch()(tf.function(step)),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_two_instances_with_two_models_have_a_monitor_each(way):
    kind = trainer(way())
    a, b = kind(0), kind(1)
    for _ in range(2):
        a.step(*DATA[0])
    b.step(*DATA[1])
    assert a.step.monitor is not b.step.monitor
    assert [t.step.monitor.snapshot().steps for t in (a, b)] == [2, 1]
    for t in (a, b):
        assert set(t.step.monitor.snapshot().layer_norms) == {v.path for v in t.net.trainable_variables}
        assert t.step.monitors == {t.step.monitor.name: t.step.monitor}
    assert a.step.monitor.name != b.step.monitor.name


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_two_agents_whose_variables_have_one_name_have_a_monitor_each(way):
    class Agent:
        def __init__(self, size):
            self.size, self.w = size, tf.Variable(1.0, name="w")
            self.optimizer = support.sgd()

        @way()
        def step(self):
            with tf.GradientTape() as tape:
                loss = self.size * self.w
            self.optimizer.apply_gradients([(tape.gradient(loss, self.w), self.w)])
            return loss

    actor, critic = Agent(0.4), Agent(2618.0)
    for agent in (actor, critic, actor):
        agent.step()
    assert actor.step.monitor.history()["norm"].tolist() == pytest.approx([0.4, 0.4])
    assert critic.step.monitor.history()["norm"].tolist() == pytest.approx([2618.0])


def test_a_method_inside_a_function_that_stands_outside_has_a_monitor_for_each_instance():
    kind = trainer(lambda step: tf.function(support.watch()(step)))
    watched = vars(kind)["step"].python_function
    a, b = kind(0), kind(1)
    a.step(*DATA[0])
    b.step(*DATA[0])
    b.step(*DATA[1])
    assert [watched.__get__(t).monitor.snapshot().steps for t in (a, b)] == [1, 2]


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_an_instance_that_is_gone_is_not_kept_by_its_monitor(way):
    kind = trainer(way())
    kept, gone = kind(0), kind(1)
    for t in (kept, gone):
        t.step(*DATA[0])
    references = [weakref.ref(gone), weakref.ref(gone.net), weakref.ref(gone.step.monitor)]
    del gone, t
    gc.collect()
    assert [r() for r in references] == [None] * 3
    kept.step(*DATA[1])
    assert kept.step.monitor.snapshot().steps == 2


def test_a_watched_method_keeps_its_name_and_its_text_and_can_be_called_through_the_class():
    kind = trainer(support.watch())
    t = kind()
    kind.step(t, *DATA[0])
    assert t.step.monitor.snapshot().steps == 1
    assert kind.step.monitor is t.step.monitor  # the first instance has what was made at decoration
    assert (t.step.__name__, t.step.__doc__) == ("step", "Trains.")


def test_a_subclass_that_calls_the_watched_step_of_its_parent_is_watched():
    kind = trainer(support.watch())

    class Sub(kind):
        def step(self, x, y):
            return super().step(x, y)

    t = Sub()
    t.step(*DATA[0])
    assert kind.__dict__["step"].__get__(t).monitor.snapshot().steps == 1


def test_an_instance_without_hash_or_weak_references_is_watched():
    class Slotted:
        __slots__ = ("net", "optimizer")
        __hash__ = None

        @support.watch()
        def step(self, x, y):
            return support.train_step(self.net, self.optimizer)(x, y)

    a, b = Slotted(), Slotted()
    for t in (a, b):
        t.net, t.optimizer = support.model(), support.sgd()
        t.step(*DATA[0])
    assert [t.step.monitor.snapshot().steps for t in (a, b)] == [1, 1]


def test_a_static_method_is_a_function_like_any_other():
    net, optimizer = support.model(), support.sgd()

    class Trainer:
        @staticmethod
        @support.watch()
        def step(x, y):
            return support.train_step(net, optimizer)(x, y)

    Trainer.step(*DATA[0])
    Trainer().step(*DATA[1])
    assert Trainer.step.monitor.snapshot().steps == 2


def test_a_monitor_that_was_given_is_shared_and_two_models_are_refused():
    monitor = support.monitor()
    kind = trainer(gradwatch.watch(monitor=monitor))
    a, b = kind(0), kind(1)
    a.step(*DATA[0])
    assert a.step.monitor is b.step.monitor is monitor
    with pytest.raises(LayoutError, match="monitor"):
        b.step(*DATA[0])


# -- variables that are replaced --------------------------------------------------------------------------


def test_a_step_of_the_module_goes_through_the_folds_when_its_monitor_is_reset_between_them():
    @support.watch()
    def step(net, optimizer, x, y):
        return support.train_step(net, optimizer)(x, y)

    for fold in range(3):
        net, optimizer = support.model(fold), support.sgd()
        if fold:
            with pytest.raises(LayoutError, match=r"monitor\.reset\(\)"):
                step(net, optimizer, *DATA[0])
            step.monitor.reset()
        support.run(lambda x, y, n=net, o=optimizer: step(n, o, x, y), DATA[: fold + 1])
        assert step.monitor.snapshot().steps == fold + 1
        assert set(step.monitor.snapshot().layer_norms) == {v.path for v in net.trainable_variables}


@pytest.mark.parametrize("mode", ["eager", "function inside"])
def test_layers_are_unfrozen_with_a_reset_and_frozen_without(mode):
    net, monitor = support.model(), support.monitor()

    def train(optimizer):
        step = support.MODES[mode](gradwatch.watch(monitor=monitor), support.train_step(net, optimizer))
        step(*DATA[0])

    net.layers[0].trainable = False
    train(support.sgd())
    assert len(monitor.snapshot().layer_norms) == 2
    net.layers[0].trainable = True
    optimizer = support.sgd()
    with pytest.raises(LayoutError, match=r"monitor\.reset\(\)"):
        train(optimizer)
    monitor.reset()
    train(optimizer)
    assert (monitor.snapshot().steps, len(monitor.snapshot().layer_norms)) == (1, 4)
    net.layers[0].trainable = False
    train(optimizer)  # the optimizer still knows all four: two of them rest
    assert monitor.snapshot().steps == 2
    assert sum(norm == 0.0 for norm in monitor.snapshot().layer_norms.values()) == 2
