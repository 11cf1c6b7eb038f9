"""tf.saved_model.save of a module with a watched train step."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import support
import tensorflow as tf

SPEC = [tf.TensorSpec([2])]


class Trainer(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = tf.Variable([1.0, 2.0], name="w")
        self.optimizer = keras.optimizers.SGD(0.1)
        self.optimizer.build([self.w])
        self.train = support.watch()(tf.function(self._train, input_signature=SPEC))
        self.monitor = self.train.monitor

    def _train(self, x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(self.w * x)
        self.optimizer.apply_gradients([(tape.gradient(loss, self.w), self.w)])
        return loss

    @tf.function(input_signature=SPEC)
    def infer(self, x):
        return self.w * x


@pytest.mark.parametrize("exported", ["infer", "train"])
def test_a_module_that_holds_the_monitor_of_its_step_is_exported_and_its_step_still_clips(exported, tmp_path):
    trainer = Trainer()
    trainer.train(tf.ones([2]))
    before = trainer.w.numpy()
    tf.saved_model.save(trainer, str(tmp_path / "saved"), signatures=getattr(trainer, exported))
    loaded = tf.saved_model.load(str(tmp_path / "saved"))
    np.testing.assert_allclose(loaded.infer(tf.ones([2])), before)
    loaded.train(tf.constant([30.0, 40.0]))
    np.testing.assert_allclose(loaded.w, before - 0.1 * support.CLIP * np.array([0.6, 0.8]), rtol=1e-6)
    assert trainer.train.monitor.snapshot().steps == 1
