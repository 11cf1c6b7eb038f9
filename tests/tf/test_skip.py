"""A skipped update leaves weights, slots and iterations as they were, to the bit, and the next one goes on."""

from __future__ import annotations

import keras
import loops
import numpy as np
import pytest
import support
import tensorflow as tf

from gradwatch import policies

GOOD = support.batches(7)
BROKEN = (tf.fill([8, 5], float("nan")), tf.zeros([8, 1]))
SPIKE = tuple(t * 1000.0 for t in support.batches(1, seed=9)[0])


def adam():
    return keras.optimizers.Adam(0.01)


OPTIMIZERS = {
    "SGD with momentum": lambda: support.sgd(momentum=0.9),
    "Adam": adam,
    "AdamW": lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1),
    "EMA": lambda: support.sgd(use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=2),
    "MultiOptimizer": lambda: support.multi(adam()),
}
if not hasattr(keras.optimizers, "MultiOptimizer"):
    del OPTIMIZERS["MultiOptimizer"]

CASES = [(name, mode) for name in OPTIMIZERS for mode in ("function inside", "jit inside")] + [("Adam", "eager")]


def skipping(**options):
    return support.watch(policies.observe(), on_nonfinite="skip", on_explosion="skip", **options)


@pytest.mark.parametrize(("name", "mode"), CASES, ids=" ".join)
def test_trap_26_weights_slots_and_iterations_are_bit_identical_after_a_skip(name, mode):
    net, optimizer = support.model(), OPTIMIZERS[name]()
    step = support.MODES[mode](skipping(), support.train_step(net, optimizer))
    support.run(step, GOOD[:6])
    before = support.weights(net, optimizer)
    assert int(optimizer.iterations.numpy()) == 6
    for bad, reason in ((BROKEN, "nonfinite"), (SPIKE, "explosion")):
        step(*bad)
        support.assert_same(support.weights(net, optimizer), before)
        assert step.monitor.snapshot().skipped_by_reason[reason] == 1
    step(*GOOD[6])
    assert int(optimizer.iterations.numpy()) == 7
    assert np.any(support.weights(net)[0] != before[0])
    assert step.monitor.snapshot().steps == 9
    assert step.monitor.snapshot().skipped_updates == 2


def test_a_run_with_skipped_steps_equals_one_that_never_saw_their_batches():
    def train(data):
        net, optimizer = support.model(), adam()
        support.run(skipping()(tf.function(support.train_step(net, optimizer))), data)
        return support.weights(net, optimizer)

    support.assert_same(train([*GOOD[:6], BROKEN, SPIKE, BROKEN, GOOD[6]]), train(GOOD))


@pytest.mark.parametrize("mode", ["function inside", "jit inside"])
def test_an_optimizer_that_writes_to_variables_by_itself_is_undone(mode):
    class Own(keras.optimizers.SGD):
        def update_step(self, gradient, variable, learning_rate):
            variable.assign(variable * 0.5)
            self.assign_sub(variable, gradient * learning_rate)

    net, optimizer = support.model(), Own(0.1)
    step = support.MODES[mode](skipping(), support.train_step(net, optimizer))
    support.run(step, GOOD[:3])
    before = support.weights(net, optimizer)
    step(*BROKEN)
    support.assert_same(support.weights(net, optimizer), before)
    step(*GOOD[4])
    assert np.any(support.weights(net)[0] != before[0])


def test_zeroed_gradients_are_not_a_skipped_step():
    """What makes skip worth its price: with "zero" momentum and iterations move on."""
    net, optimizer = support.model(), adam()
    step = support.watch(on_nonfinite="zero")(tf.function(support.train_step(net, optimizer)))
    support.run(step, GOOD[:3])
    before = support.weights(net, optimizer)
    step(*BROKEN)
    after = support.weights(net, optimizer)
    assert int(optimizer.iterations.numpy()) == 4
    assert all(np.all(np.isfinite(x)) for x in after)
    assert any(np.any(x != y) for x, y in zip(before, after))


def test_the_first_step_can_be_skipped():
    net, optimizer = support.model(), adam()
    before = support.weights(net)
    step = skipping()(tf.function(support.train_step(net, optimizer)))
    step(*BROKEN)
    support.assert_same(support.weights(net), before)
    assert int(optimizer.iterations.numpy()) == 0


@pytest.mark.parametrize("jit_compile", [None, True])
def test_sparse_gradients_stay_sparse_under_skip(jit_compile):
    kinds = []

    class Spy(keras.optimizers.SGD):
        def update_step(self, gradient, variable, learning_rate):
            kinds.append(type(gradient))
            return super().update_step(gradient, variable, learning_rate)

    net = support.embedding_model(20, 2, 3)
    optimizer = Spy(0.1)
    step = skipping()(tf.function(support.train_step(net, optimizer), jit_compile=jit_compile))
    ids = tf.constant([[1, 2], [3, 4]])
    step(ids, tf.ones([2, 1]))
    before = support.weights(net, optimizer)
    step(ids, tf.fill([2, 1], float("inf")))
    assert kinds[0] is tf.IndexedSlices
    support.assert_same(support.weights(net, optimizer), before)


@pytest.mark.parametrize("jit_compile", [None, True])
def test_a_loss_scaler_still_lowers_its_scale_at_a_nan_and_keeps_it_at_an_explosion(jit_compile):
    net = support.model()
    inner = adam()
    optimizer = keras.optimizers.LossScaleOptimizer(inner, initial_scale=64.0)
    optimizer.build(net.trainable_variables)
    loop = loops._tape(loops.Clip(), net, optimizer)
    step = skipping()(tf.function(loop, jit_compile=jit_compile))
    support.run(step, GOOD[:6])
    before, scale = support.weights(net, inner), float(optimizer.dynamic_scale.numpy())
    step(*SPIKE)
    support.assert_same(support.weights(net, inner), before)
    assert float(optimizer.dynamic_scale.numpy()) == scale == 64.0
    step(*BROKEN)
    support.assert_same(support.weights(net, inner), before)
    assert float(optimizer.dynamic_scale.numpy()) == 32.0
    assert int(inner.iterations.numpy()) == 6


def test_under_accumulation_a_bad_micro_batch_drops_its_whole_update():
    def train(data):
        net, optimizer = support.model(), support.sgd(momentum=0.9, weight_decay=0.1, gradient_accumulation_steps=2)
        step = skipping()(tf.function(support.train_step(net, optimizer)))
        support.run(step, data)
        return support.weights(net, optimizer), int(optimizer.iterations.numpy()), step.monitor.snapshot()

    pairs = [b for b in GOOD[:6] for _ in range(2)]
    expected, iterations, _ = train([*pairs, GOOD[6], GOOD[6]])
    for bad in (BROKEN, SPIKE):
        got, same, snapshot = train([*pairs, bad, GOOD[0], GOOD[6], GOOD[6]])
        support.assert_same(got, expected)
        assert same == iterations == 7
        assert (snapshot.steps, snapshot.skipped_updates) == (8, 1)


def mirrored_training(make, **options):
    strategy = loops.two_replicas()
    with strategy.scope():
        net, optimizer = support.model(), make()
        optimizer.build(net.trainable_variables)

    def replica(x, y):
        with tf.GradientTape() as tape:
            loss = optimizer.scale_loss(support.loss_of(net, x, y) / 2.0)
        grads = tape.gradient(loss, net.trainable_variables)
        optimizer.apply_gradients(zip(grads, net.trainable_variables))

    watched = support.watch(policies.observe(), **options)(replica)

    @tf.function
    def step(x, y):
        strategy.run(watched, args=(x, y))

    def on_replicas(first, second):
        """One batch for each of the two replicas."""
        pick = [first, second]
        return tuple(
            strategy.experimental_distribute_values_from_function(lambda c, i=i: pick[c.replica_id_in_sync_group][i])
            for i in range(2)
        )

    return net, optimizer, watched.monitor, lambda first, second: step(*on_replicas(first, second))


def test_trap_21_26_27_skip_is_exact_on_two_replicas_though_one_alone_is_broken():
    net, optimizer, monitor, step = mirrored_training(adam, on_nonfinite="skip", on_explosion="skip")
    for batch in GOOD[:6]:
        step(batch, batch)
    before = support.weights(net, optimizer)
    for bad in (BROKEN, SPIKE):
        step(GOOD[0], bad)
        support.assert_same(support.weights(net, optimizer), before)
    step(GOOD[6], GOOD[6])
    assert int(tf.convert_to_tensor(optimizer.iterations)) == 7
    assert (monitor.snapshot().steps, monitor.snapshot().skipped_updates) == (9, 2)
    for v in net.trainable_variables:
        first, second = loops.two_replicas().experimental_local_results(v.value)
        support.assert_same([first.numpy()], [second.numpy()])


@pytest.mark.parametrize("on_nonfinite", ["zero", "skip"])
def test_trap_28_a_loss_scaler_hears_of_a_nan_on_any_replica(on_nonfinite):
    make = lambda: keras.optimizers.LossScaleOptimizer(support.sgd(momentum=0.9), initial_scale=64.0)  # noqa: E731
    net, optimizer, monitor, step = mirrored_training(make, on_nonfinite=on_nonfinite)
    for bad_replica, scale in ((0, 32.0), (1, 16.0)):
        step(GOOD[0], GOOD[1])
        before = support.weights(net)
        step(*([BROKEN, GOOD[2]] if bad_replica == 0 else [GOOD[2], BROKEN]))
        support.assert_same(support.weights(net), before)
        scales = loops.two_replicas().experimental_local_results(optimizer.dynamic_scale.value)
        assert [float(s.numpy()) for s in scales] == [scale] * 2
        assert monitor.snapshot().nonfinite_steps == bad_replica + 1


def test_a_nan_on_one_replica_is_zeroed_on_all():
    net, _, monitor, step = mirrored_training(support.sgd, on_nonfinite="zero")
    step(GOOD[0], GOOD[1])
    before = support.weights(net)
    step(GOOD[2], BROKEN)
    support.assert_same(support.weights(net), before)
    assert monitor.snapshot().nonfinite_steps == 1
