"""Under tf.distribute: the norm of the whole batch, one count per step, and clear refusals. Two logical CPUs."""

from __future__ import annotations

import threading
import time

import keras
import numpy as np
import pytest
import support
import tensorflow as tf

import gradwatch
from gradwatch import policies
from gradwatch.errors import UnsupportedError
from gradwatch.tf import distribution

DATA = support.batches(6)


def training(mirrored, **options):
    """(net, the step of a replica, batch -> halves for the replicas); `options` are those of the optimizer."""
    with mirrored.scope():
        net, optimizer = support.model(), support.sgd(**options)
        optimizer.build(net.trainable_variables)

    def replica(x, y):
        with tf.GradientTape() as tape:
            loss = support.loss_of(net, x, y) / 2.0
        grads = tape.gradient(loss, net.trainable_variables)
        optimizer.apply_gradients(zip(grads, net.trainable_variables))
        return loss

    def halves(batch):
        return tuple(
            mirrored.experimental_distribute_values_from_function(
                lambda context, t=t: t[4 * context.replica_id_in_sync_group :][:4]
            )
            for t in batch
        )

    return net, replica, halves


def alone(policy=None):
    net = support.model()
    step = support.watch(policy)(tf.function(support.train_step(net, support.sgd())))
    support.run(step, DATA)
    return net, step.monitor


@pytest.mark.parametrize("policy", ["percentile", "per_variable", "value", "fixed"])
def test_trap_08_norms_and_weights_equal_the_run_on_one_device(mirrored, policy):
    policy = {
        "percentile": policies.percentile(50),
        "per_variable": policies.per_variable(),
        "value": policies.value(0.05),
        "fixed": policies.fixed(support.CLIP),
    }[policy]
    net, replica, halves = training(mirrored)
    watched = support.watch(policy)(replica)
    step = tf.function(lambda x, y: mirrored.run(watched, args=(x, y)))
    for batch in DATA:
        step(*halves(batch))
    single, monitor = alone(policy)
    for column in ("norm", "applied_norm", "clip_norm"):
        np.testing.assert_allclose(watched.monitor.history()[column], monitor.history()[column], rtol=1e-6)
    support.assert_close(support.weights(net), support.weights(single), rtol=1e-6, atol=1e-7)


def sums(step, batch):
    """How many sums of gradients over the replicas the graph of a step holds; what we sum has a handful of numbers."""
    graph = step.get_concrete_function(*batch).graph
    functions = [graph, *(f.graph for f in graph._functions.values() if hasattr(f, "graph"))]
    summing = ("AddN", "CollectiveReduceV2", "NcclAllReduce")
    ops = [op for g in functions for op in g.get_operations() if op.type in summing]
    return sum((op.inputs[0].shape.num_elements() or 0) > 4 for op in ops)


def test_the_gradients_are_summed_once_and_handed_on(mirrored, monkeypatch):
    def counted(decorate):
        _, replica, halves = training(mirrored)
        watched = decorate(replica)
        return sums(tf.function(lambda x, y: mirrored.run(watched, args=(x, y))), halves(DATA[0]))

    def watch(step):
        # the mean of the losses is a sum of its own
        return support.watch()(step, loss=lambda outputs: None)

    unwatched = counted(lambda step: step)
    assert unwatched > 0
    assert counted(watch) == unwatched
    monkeypatch.setattr(distribution, "sums_once", lambda optimizer: False)
    assert counted(watch) == 2 * unwatched


@pytest.mark.parametrize("own", [{}, {"global_clipnorm": 0.1}, {"clipvalue": 0.01}, {"weight_decay": 0.1}])
def test_observe_leaves_two_replicas_alone_to_the_bit_whatever_the_optimizer_clips(mirrored, own):
    results = []
    for decorate in (lambda step: step, support.watch(policies.observe())):
        net, replica, halves = training(mirrored, **own)
        watched = decorate(replica)
        step = tf.function(lambda x, y, w=watched: mirrored.run(w, args=(x, y)))
        for batch in DATA:
            step(*halves(batch))
        results.append(support.weights(net))
    support.assert_same(*results)


def test_a_nan_on_one_replica_is_handled_on_all(mirrored):
    net, replica, halves = training(mirrored)
    watched = support.watch()(replica)
    step = tf.function(lambda x, y: mirrored.run(watched, args=(x, y)))
    step(*halves(DATA[0]))
    before = support.weights(net)
    x, y = DATA[1]
    step(*halves((tf.concat([x[:4], x[4:] * np.nan], 0), y)))
    assert watched.monitor.snapshot().nonfinite_steps == 1
    support.assert_same(support.weights(net), before)
    for replicas in watched.monitor._engine.on_device.state.values[1:]:
        assert np.array_equal(
            replicas.numpy(), watched.monitor._engine.on_device.state.values[0].numpy(), equal_nan=True
        )
    step(*halves(DATA[2]))
    assert all(np.isfinite(w).all() for w in support.weights(net))


def test_trap_22_one_step_of_two_replicas_is_one_step(mirrored):
    _, replica, halves = training(mirrored)
    watched = support.watch()(replica)
    step = tf.function(lambda x, y: mirrored.run(watched, args=(x, y)))
    step(*halves(DATA[0]))
    snapshot = watched.monitor.snapshot()
    assert snapshot.steps == 1
    assert len(watched.monitor.history()["norm"]) == 1
    assert watched.monitor.run_info["strategy"] == "MirroredStrategy"
    assert watched.monitor.run_info["replicas"] == "2"


def test_every_replica_holds_the_same_state(mirrored):
    _, replica, halves = training(mirrored)
    watched = support.watch(policies.percentile(50))(replica)
    step = tf.function(lambda x, y: mirrored.run(watched, args=(x, y)))
    for batch in DATA:
        step(*halves(batch))
    first, second = mirrored.experimental_local_results(watched.monitor._engine.on_device.state)
    support.assert_same([first.numpy()], [second.numpy()])


def test_a_monitor_saved_under_a_strategy_goes_on_on_one_device(mirrored, tmp_path):
    _, replica, halves = training(mirrored)
    watched = support.watch()(replica)
    step = tf.function(lambda x, y: mirrored.run(watched, args=(x, y)))
    for batch in DATA[:3]:
        step(*halves(batch))
    prefix = tf.train.Checkpoint(gradwatch=watched.monitor).write(str(tmp_path / "c"))
    net, monitor = support.model(), support.monitor()
    tf.train.Checkpoint(gradwatch=monitor).restore(prefix)
    gradwatch.watch(monitor=monitor)(tf.function(support.train_step(net, support.sgd())))(*DATA[3])
    assert monitor.snapshot().steps == 4
    np.testing.assert_array_equal(monitor.history()["norm"][:3], watched.monitor.history()["norm"])


def test_the_explicit_form_works_on_a_replica(mirrored):
    monitor = support.monitor()
    with mirrored.scope():
        net = support.model()
        optimizer = support.sgd()
        optimizer.build(net.trainable_variables)

    def replica(x, y):
        with tf.GradientTape() as tape:
            loss = support.loss_of(net, x, y) / 2.0
        grads, _ = monitor.clip(tape.gradient(loss, net.trainable_variables), net.trainable_variables)
        optimizer.apply_gradients(zip(grads, net.trainable_variables))

    _, _, halves = training(mirrored)
    step = tf.function(lambda x, y: mirrored.run(replica, args=(x, y)))
    for batch in DATA:
        step(*halves(batch))
    single, reference = alone()
    np.testing.assert_allclose(monitor.history()["norm"], reference.history()["norm"], rtol=1e-6)
    support.assert_close(support.weights(net), support.weights(single), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("inside", [True, False], ids=["replica step", "around run"])
def test_strategy_run_without_a_function_is_watched_or_refused(mirrored, inside):
    net, replica, halves = training(mirrored)
    monitor = support.monitor()
    watch = gradwatch.watch(monitor=monitor)
    if inside:
        watched = watch(replica)
        step = lambda x, y: mirrored.run(watched, args=(x, y))  # noqa: E731
    else:
        step = watch(lambda x, y: mirrored.run(replica, args=(x, y)))
    for batch in DATA:
        step(*halves(batch))
    single, _ = alone()
    assert monitor.snapshot().steps == len(DATA)
    support.assert_close(support.weights(net), support.weights(single), rtol=1e-6, atol=1e-7)


def test_a_function_inside_strategy_run_is_refused(mirrored):
    _, replica, halves = training(mirrored)
    watched = support.watch()(tf.function(replica))
    with pytest.raises(UnsupportedError, match=r"around strategy\.run"):
        mirrored.run(watched, args=halves(DATA[0]))


def test_trap_09_a_keras_that_does_not_sum_over_replicas_is_refused(mirrored, monkeypatch):
    monkeypatch.setattr(keras, "__version__", "3.4.1")
    _, replica, halves = training(mirrored)
    watched = support.watch()(replica)
    step = tf.function(lambda x, y: mirrored.run(watched, args=(x, y)))
    with pytest.raises(UnsupportedError, match=r"3\.4\.1.*3\.5"):
        step(*halves(DATA[0]))
    assert distribution.keras_version() == (3, 4)


def test_a_strategy_without_common_steps_is_refused():
    strategy = tf.distribute.experimental.CentralStorageStrategy(["CPU:0"])
    with strategy.scope():
        net, optimizer = support.model(), support.sgd()
        step = support.watch()(support.train_step(net, optimizer))
        with pytest.raises(UnsupportedError, match="CentralStorageStrategy"):
            step(*DATA[0])


@pytest.mark.parametrize(
    "make",
    [lambda: tf.distribute.OneDeviceStrategy("CPU:0"), lambda: tf.distribute.MirroredStrategy(["CPU:0"])],
    ids=["OneDeviceStrategy", "MirroredStrategy"],
)
@pytest.mark.parametrize("graph", [True, False], ids=["function", "eager"])
def test_a_strategy_of_one_replica_is_like_none(make, graph):
    strategy = make()
    with strategy.scope():
        net, optimizer = support.model(), support.sgd()
    watched = support.watch()(support.train_step(net, optimizer))
    step = lambda x, y: strategy.run(watched, args=(x, y))  # noqa: E731
    support.run(tf.function(step) if graph else step, DATA)
    single, _ = alone()
    assert watched.monitor.snapshot().steps == len(DATA)
    support.assert_close(support.weights(net), support.weights(single), rtol=1e-6, atol=1e-7)


# -- threads ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", support.MODES)
def test_trap_35_two_training_threads_on_one_monitor_lose_no_step(mode):
    monitor = support.monitor(policies.observe())
    net = support.model()
    step = support.MODES[mode](gradwatch.watch(monitor=monitor), support.train_step(net, support.sgd(1e-4)))
    step(*DATA[0])  # traced once, by one thread
    errors = []

    def train():
        try:
            for _ in range(40):
                support.run(step, DATA[:5])
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=train) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not errors
    assert monitor.snapshot().steps == 401
    assert monitor.snapshot().norm_counts[-1] == 401


@pytest.mark.parametrize("mode", ["eager", "function inside"])
def test_threads_lose_no_step_where_the_guard_is_a_program_of_xla(mode):
    """Which holds on to the state. Reading, judging and writing it one after the other lost 8 and 90 of these steps."""
    monitor = support.monitor(policies.observe(), jit_compile=True)
    step = support.MODES[mode](gradwatch.watch(monitor=monitor), support.train_step(support.model(), support.sgd(1e-4)))
    step(*DATA[0])
    threads = [threading.Thread(target=support.run, args=(step, DATA[:5] * 40)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert monitor.snapshot().steps == 801


@pytest.mark.parametrize("mode", ["eager", "function inside", "function outside"])
def test_no_step_is_lost_however_long_judging_one_takes(mode, monkeypatch):
    """What trap 35 rests on: a race is rare, so that counting steps alone would seldom show it."""
    monitor, step_of_guard = support.monitor(policies.observe()), fused_guard().step

    def pause():
        time.sleep(0.02)
        return np.float32(0.0)

    def slow(self, vector, *args):
        with tf.control_dependencies([vector]):  # it has been read
            vector = vector + tf.ensure_shape(tf.numpy_function(pause, [], tf.float32), [])
        return step_of_guard(self, vector, *args)

    monkeypatch.setattr(fused_guard(), "step", slow)
    step = support.MODES[mode](gradwatch.watch(monitor=monitor), support.train_step(support.model(), support.sgd(1e-4)))
    step(*DATA[0])
    threads = [threading.Thread(target=support.run, args=(step, DATA[:5])) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert monitor.snapshot().steps == 16


def fused_guard():
    """The class, whatever the tests put in its place."""
    monitor = support.monitor()
    monitor.clip([tf.ones([2])])
    return type(monitor._engine.on_device.program())


def test_the_functions_of_the_user_are_left_as_they_are():
    step = gradwatch.watch(monitor=support.monitor())(support.train_step(support.model(), support.sgd()))
    outer = tf.function(lambda x, y: step(x, y))
    outer(*DATA[0])
    assert "_call" not in vars(outer)


def test_functions_of_two_monitors_wait_in_one_order():
    """Two threads, two functions around the same two steps in other orders: neither waits for the other forever."""
    monitors = [support.monitor(policies.observe(), name=f"turn-{i}") for i in range(2)]
    steps = [gradwatch.watch(monitor=m)(support.train_step(support.model(), support.sgd(1e-4))) for m in monitors]
    forth = tf.function(lambda x, y: steps[0](x, y) + steps[1](x, y))
    back = tf.function(lambda x, y: steps[1](x, y) + steps[0](x, y))
    for both in (forth, back):
        both(*DATA[0])
    threads = [threading.Thread(target=support.run, args=(both, DATA[:5] * 10), daemon=True) for both in (forth, back)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert [m.snapshot().steps for m in monitors] == [102, 102]


def test_two_threads_with_a_monitor_each_do_not_mix():
    def train(steps, out):
        net = support.model(seed=steps)
        step = support.watch()(support.train_step(net, support.sgd()))
        for _ in range(steps):
            step(*DATA[0])
        out.append((steps, step.monitor.snapshot().steps))

    out = []
    threads = [threading.Thread(target=train, args=(steps, out)) for steps in (5, 8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert sorted(out) == [(5, 5), (8, 8)]
