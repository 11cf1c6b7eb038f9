"""A program for test_watch: with XLA as users have it, does observe() leave a jitted training alone to the bit?

The tests of this folder compile with XLA's optimisations off, which fuses a step in another way once it is watched.
"""

from __future__ import annotations

import keras
import support
import tensorflow as tf

from gradwatch import policies


def trained(watched: bool) -> list:
    net, optimizer = support.model(), keras.optimizers.Adam(0.01)
    step = tf.function(support.train_step(net, optimizer), jit_compile=True)
    if watched:
        step = support.watch(policies.observe(), jit_compile=True)(step)
    support.run(step, support.batches(50, spike_at=30))
    if watched:
        assert step.monitor.snapshot().steps == 50
        assert step.monitor.snapshot().explosions == 1
    return support.weights(net, optimizer)


if __name__ == "__main__":
    support.assert_same(trained(False), trained(True))
    print("bit-identical")
