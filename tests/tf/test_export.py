"""tf.saved_model.save of a module with a watched train step."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import support
import tensorflow as tf

SPEC = [tf.TensorSpec([2])]


class Base(tf.Module):
    def __init__(self, optimizer: keras.optimizers.Optimizer) -> None:
        super().__init__()
        self.w = tf.Variable([1.0, 2.0], name="w")
        self.optimizer = optimizer
        self.optimizer.build([self.w])

    def _train(self, x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(self.w * x)
        self.optimizer.apply_gradients([(tape.gradient(loss, self.w), self.w)])
        return loss

    @tf.function(input_signature=SPEC)
    def infer(self, x):
        return self.w * x


class WatchAbove(Base):
    def __init__(self, optimizer):
        super().__init__(optimizer)
        self.train = support.watch()(tf.function(self._train, input_signature=SPEC))


class WatchBelow(Base):
    def __init__(self, optimizer):
        super().__init__(optimizer)
        self.watched = support.watch()(self._train)
        self.train = tf.function(self.watched, input_signature=SPEC)


class Method(Base):
    @support.watch()
    @tf.function(input_signature=SPEC)
    def train(self, x):
        return self._train(x)


class WithMonitor(WatchAbove):
    def __init__(self, optimizer):
        super().__init__(optimizer)
        self.monitor = self.train.monitor


OPTIMIZERS = {
    "SGD": lambda: keras.optimizers.SGD(0.1),
    "LossScaleOptimizer": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=1.0),
}
CELLS = [(kind, "SGD") for kind in (WatchAbove, WatchBelow, Method, WithMonitor)]
CELLS += [(WatchBelow, "LossScaleOptimizer")]


@pytest.mark.parametrize("exported", ["infer", "train"])
@pytest.mark.parametrize(("kind", "optimizer"), CELLS)
def test_a_module_with_a_watched_step_is_exported_and_its_step_still_clips(kind, optimizer, exported, tmp_path):
    trainer = kind(OPTIMIZERS[optimizer]())
    trainer.train(tf.ones([2]))
    before = trainer.w.numpy()
    tf.saved_model.save(trainer, str(tmp_path / "saved"), signatures=getattr(trainer, exported))
    loaded = tf.saved_model.load(str(tmp_path / "saved"))
    np.testing.assert_allclose(loaded.infer(tf.ones([2])), before)
    loaded.train(tf.constant([30.0, 40.0]))
    np.testing.assert_allclose(loaded.w, before - 0.1 * support.CLIP * np.array([0.6, 0.8]), rtol=1e-6)
    watched = trainer.watched if kind is WatchBelow else trainer.train
    assert watched.monitor.snapshot().steps == 1


def test_a_checkpoint_of_an_optimizer_does_not_hold_its_monitor():
    trainer = WatchAbove(keras.optimizers.SGD(0.1))
    trainer.train(tf.ones([2]))
    assert not any("gradwatch" in name for name in trainer.optimizer._trackable_children())


def test_a_module_that_clips_by_hand_is_exported_with_the_monitor_as_its_attribute(tmp_path):
    class ByHand(tf.Module):
        def __init__(self):
            super().__init__()
            self.w, self.monitor = tf.Variable([1.0, 2.0]), support.monitor()

        @tf.function(input_signature=SPEC)
        def train(self, x):
            (g,), _ = self.monitor.clip([x], [self.w])
            self.w.assign_sub(g)

    trainer = ByHand()
    trainer.train(tf.constant([3.0, 4.0]))
    tf.saved_model.save(trainer, str(tmp_path / "saved"))
    loaded = tf.saved_model.load(str(tmp_path / "saved"))
    loaded.train(tf.constant([3.0, 4.0]))
    np.testing.assert_allclose(loaded.w, np.array([1.0, 2.0]) - 2 * support.CLIP * np.array([0.6, 0.8]), rtol=1e-6)
