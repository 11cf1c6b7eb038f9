"""The traps that others fell into, each a test that fails on the naive implementation.

The numbers are those of the project's list; docs/loops.md tells what each costs the unwary.
"""

from __future__ import annotations

import threading

import keras
import numpy as np
import pytest
import support
import tensorflow as tf

import gradwatch
from gradwatch import detectors, policies
from gradwatch.core.guard import COUNTERS, LIMB
from gradwatch.errors import NothingToWatch

DATA = support.batches(6)


def replica_step(strategy, **wrapper):
    """A model, an optimizer and a train step for one replica, made in the strategy's scope."""
    with strategy.scope():
        net = support.model()
        optimizer = support.sgd()
        if wrapper.get("loss_scale"):
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=wrapper["loss_scale"])
        optimizer.build(net.trainable_variables)

    def step(x, y):
        with tf.GradientTape() as tape:
            # each replica brings its share of the mean over the global batch
            loss = optimizer.scale_loss(support.loss_of(net, x, y) / strategy.num_replicas_in_sync)
        grads = tape.gradient(loss, net.trainable_variables)
        optimizer.apply_gradients(zip(grads, net.trainable_variables))
        return loss

    return net, optimizer, step


# -- reaching the step ------------------------------------------------------------------------------------


def test_trap_01_a_decorator_around_strategy_run_reaches_the_replica_threads(mirrored):
    _, _, step = replica_step(mirrored)

    @support.watch()
    @tf.function
    def distributed(x, y):
        return mirrored.run(step, args=(x, y))

    support.run(distributed, DATA)
    assert distributed.monitor.snapshot().steps == len(DATA)


def test_trap_02_a_decorated_replica_step_is_watched_through_a_loss_scale_optimizer(mirrored):
    _, _, step = replica_step(mirrored, loss_scale=8.0)
    watched = support.watch()(step)

    @tf.function
    def distributed(x, y):
        return mirrored.run(watched, args=(x, y))

    support.run(distributed, DATA)
    assert watched.monitor.snapshot().steps == len(DATA)


def test_trap_03_a_function_traced_before_it_was_decorated_is_watched():
    net = support.model()
    step = tf.function(support.train_step(net, support.sgd()))
    step(*DATA[0])
    watched = support.watch()(step)
    watched(*DATA[1])
    assert watched.monitor.snapshot().steps == 1


def test_trap_03_a_plain_step_over_a_function_traced_before_raises_instead_of_reporting_zeros():
    net = support.model()
    inner = tf.function(support.train_step(net, support.sgd()))
    inner(*DATA[0])
    watched = support.watch()(lambda x, y: inner(x, y))
    with pytest.raises(NothingToWatch, match="traced"):
        watched(*DATA[1])


def test_trap_04_two_monitors_on_one_function_each_see_their_own_step():
    net = support.model()
    step = tf.function(support.train_step(net, support.sgd()))
    a, b = support.watch()(step), support.watch()(step)
    a(*DATA[0])
    b(*DATA[1])
    assert (a.monitor.snapshot().steps, b.monitor.snapshot().steps) == (1, 1)


def test_trap_05_a_decorated_step_passed_as_an_argument_of_a_function_stays_watched():
    net = support.model()
    watched = support.watch()(support.train_step(net, support.sgd()))

    @tf.function
    def epoch(step, x, y):
        return step(x, y)

    epoch(watched, *DATA[0])
    epoch(watched, *DATA[1])
    assert watched.monitor.snapshot().steps == 2


@pytest.mark.parametrize("mode", ["function inside", "function outside", "jit outside"])
def test_trap_06_autograph_still_converts_the_users_body(mode):
    net, optimizer = support.model(), support.sgd()

    def step(x, y):
        with tf.GradientTape() as tape:
            loss = support.loss_of(net, x, y)
            if loss > 1e-9:  # a tensor: needs AutoGraph in a graph
                loss = loss * 2.0
            else:
                loss = loss * 0.0
        grads = tape.gradient(loss, net.trainable_variables)
        optimizer.apply_gradients(zip(grads, net.trainable_variables))
        return loss

    plain = support.model()
    expected = 2.0 * float(support.loss_of(plain, *DATA[0]))
    monitor = support.monitor()
    watched = support.MODES[mode](gradwatch.watch(monitor=monitor), step)
    assert float(watched(*DATA[0])) == pytest.approx(expected, rel=1e-5)
    assert monitor.snapshot().steps == 1


def test_trap_07_the_inner_tape_of_a_gradient_penalty_is_not_a_step():
    def penalty_step(net, optimizer, clip_norm=None):
        def step(x, y):
            with tf.GradientTape() as tape:
                with tf.GradientTape() as inner:
                    inner.watch(x)
                    out = net(x)
                slope = inner.gradient(out, x)
                loss = tf.reduce_mean(tf.square(out - y)) + tf.reduce_mean(tf.square(tf.norm(slope, axis=1) - 1.0))
            grads = tape.gradient(loss, net.trainable_variables)
            grads = [tf.zeros_like(v) if g is None else g for g, v in zip(grads, net.trainable_variables)]
            if clip_norm is not None:
                grads, _ = tf.clip_by_global_norm(grads, clip_norm)
            optimizer.apply_gradients(zip(grads, net.trainable_variables))

        return step

    watched_net, explicit_net = support.model(), support.model()
    watched = support.watch()(tf.function(penalty_step(watched_net, support.sgd())))
    explicit = tf.function(penalty_step(explicit_net, support.sgd(), support.CLIP))
    support.run(watched, DATA)
    support.run(explicit, DATA)
    assert watched.monitor.snapshot().steps == len(DATA)
    assert watched.monitor.snapshot().clipped_steps > 0
    support.assert_close(support.weights(watched_net), support.weights(explicit_net))


# -- what is measured -------------------------------------------------------------------------------------


def scaled_step(net, optimizer):
    def step(x, y):
        with tf.GradientTape() as tape:
            loss = optimizer.scale_loss(support.loss_of(net, x, y))
        grads = tape.gradient(loss, net.trainable_variables)
        optimizer.apply_gradients(zip(grads, net.trainable_variables))

    return step


@pytest.mark.parametrize(
    "make",
    [
        lambda: support.sgd(loss_scale_factor=256.0),
        lambda: keras.optimizers.LossScaleOptimizer(support.sgd(), initial_scale=256.0),
    ],
    ids=["loss_scale_factor", "LossScaleOptimizer"],
)
def test_trap_11_norms_are_those_of_the_unscaled_gradient(make):
    seen = []
    for optimizer in (support.sgd(), make()):
        net = support.model()
        watched = support.watch()(tf.function(scaled_step(net, optimizer)))
        support.run(watched, DATA)
        seen.append((watched.monitor.history()["norm"], support.weights(net)))
    np.testing.assert_allclose(seen[0][0], seen[1][0], rtol=1e-5)
    support.assert_close(seen[0][1], seen[1][1])


def wrapped_optimizers():
    yield "LossScaleOptimizer", lambda: keras.optimizers.LossScaleOptimizer(support.sgd(), initial_scale=4.0)
    if hasattr(keras.optimizers, "MultiOptimizer"):
        multi = keras.optimizers.MultiOptimizer
        slow, fast = support.sgd(), keras.optimizers.Adam(0.01)
        yield "MultiOptimizer", lambda: multi(lambda v: fast if "kernel" in v.path else slow)


@pytest.mark.parametrize("make", [pytest.param(make, id=name) for name, make in wrapped_optimizers()])
def test_trap_12_an_optimizer_inside_an_optimizer_is_not_counted_twice(make):
    net = support.model()
    watched = support.watch()(tf.function(scaled_step(net, make())))
    support.run(watched, DATA)
    assert watched.monitor.snapshot().steps == len(DATA)
    assert len(watched.monitor.snapshot().layer_norms) == 4


def embedding_net():
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.layers.Embedding(1000, 4), keras.layers.Flatten(), keras.layers.Dense(1)])


def test_trap_14_sparse_gradients_stay_sparse():
    class Spy(keras.optimizers.SGD):
        kinds: list[type] = []

        def update_step(self, gradient, variable, learning_rate):
            self.kinds.append(type(gradient))
            return super().update_step(gradient, variable, learning_rate)

    net = embedding_net()
    ids, y = tf.constant([[1, 2], [3, 4]]), tf.ones([2, 1])
    net(ids)
    watched = support.watch()(tf.function(support.train_step(net, Spy(0.1))))
    watched(ids, y)
    assert Spy.kinds[0] is tf.IndexedSlices
    assert watched.monitor.snapshot().steps == 1


def test_trap_15_repeated_rows_count_apart_as_in_clip_by_global_norm():
    slices = tf.IndexedSlices(tf.ones([2, 4]), tf.constant([7, 7]), tf.constant([10, 4]))
    monitor = support.monitor()
    (clipped,), decision = monitor.clip([slices])
    dense = float(tf.norm(tf.convert_to_tensor(slices)))
    assert float(decision.norm) == pytest.approx(np.sqrt(8.0))
    assert dense == pytest.approx(4.0)  # the rows summed: what the documented choice is not
    (reference,), norm = tf.clip_by_global_norm([slices], support.CLIP)
    assert float(decision.norm) == pytest.approx(float(norm))
    np.testing.assert_allclose(clipped.values, reference.values, rtol=1e-6)


def test_trap_16_variables_overwritten_by_their_gradient_are_neither_measured_nor_clipped():
    net, optimizer = support.model(), support.sgd()
    scale = keras.Variable(1.0, name="scale")
    scale.overwrite_with_gradient = True

    @support.watch(policies.fixed(1e-3))
    @tf.function
    def step(x, y):
        with tf.GradientTape() as tape:
            loss = support.loss_of(net, x, y)
        grads = tape.gradient(loss, net.trainable_variables)
        optimizer.apply_gradients(zip([*grads, tf.constant(1234.0)], [*net.trainable_variables, scale]))

    step(*DATA[0])
    snapshot = step.monitor.snapshot()
    assert float(scale) == 1234.0
    assert snapshot.clipped_steps == 1
    assert snapshot.norm < 1000.0
    assert "scale" not in " ".join(snapshot.layer_norms)


# -- state ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", support.PLAIN_MODES)
def test_trap_17_the_state_is_written_whole_once_a_step(mode):
    # v[i].assign tears under a reader and makes XLA compile again at each index
    monitor = support.monitor()

    def update(g):
        (clipped,), _ = monitor.clip([g])
        return clipped

    compiled = tf.function(update, jit_compile=mode == "jit")
    types = support.op_types(compiled.get_concrete_function(tf.ones([3])))
    # the guard's state, and the loss that the next step may be told
    assert types.count("AssignVariableOp") == 2
    assert not [name for name in types if "StridedSliceAssign" in name or "ScatterUpdate" in name]


def test_trap_18_and_19_a_reader_never_sees_half_a_step():
    """10,000 updates in one call, the norm of step n being n: every field of every reading tells the same n."""
    monitor = support.monitor(policies.fixed(1e9), jit_compile=True)
    updates = 10_000

    @tf.function
    def many(first):
        for i in tf.range(first, first + updates):
            monitor.clip([tf.reshape(tf.cast(i, tf.float32), [1])])

    many(1)  # traces
    monitor = monitor_at_zero(monitor)
    readings, stop = [], threading.Event()

    def read():
        while not stop.is_set():
            readings.append((monitor.snapshot(), monitor.history()))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        many(1)
    finally:
        stop.set()
        reader.join(30)
    assert monitor.snapshot().steps == updates
    inside = [r for r in readings if 0 < r[0].steps < updates]
    assert len(inside) >= 20, "the reader saw too little of the run to tell"
    for snapshot, history in inside:
        n = snapshot.steps
        assert snapshot.norm == n
        assert list(snapshot.layer_norms.values()) == [n]
        assert snapshot.max_norm == n
        assert snapshot.norm_counts[-1] == n
        # the history was read a moment later: consistent in itself
        assert np.array_equal(history["norm"], history["step"])
        assert history["step"][-1] >= n


def monitor_at_zero(monitor):
    built = monitor._engine.on_device
    built.state.assign(built.layout.pack(gradwatch.core.xp.NUMPY, monitor.guard.init(len(built.variables))))
    return monitor


@pytest.mark.parametrize("mode", ["eager", "function inside"])
def test_trap_29_a_step_that_fails_leaves_the_monitor_alone(mode):
    net, optimizer = support.model(), support.sgd()

    @tf.custom_gradient
    def fragile(x, index):
        def backward(upstream):
            # out of range on a bad batch: the gradient cannot be computed
            return upstream * tf.gather(tf.ones([1]), index), None

        return tf.identity(x), backward

    def step(x, y, index):
        with tf.GradientTape() as tape:
            loss = fragile(support.loss_of(net, x, y), index)
        grads = tape.gradient(loss, net.trainable_variables)
        optimizer.apply_gradients(zip(grads, net.trainable_variables))

    watched = support.MODES[mode](support.watch(), step)
    watched(*DATA[0], tf.constant(0))
    before, held = watched.monitor.snapshot(), support.weights(net)
    with pytest.raises(tf.errors.InvalidArgumentError):
        watched(*DATA[1], tf.constant(5))
    after = watched.monitor.snapshot()
    assert (after.steps, after.norm) == (before.steps, before.norm) == (1, before.norm)
    support.assert_same(support.weights(net), held)
    watched(*DATA[2], tf.constant(0))
    assert watched.monitor.snapshot().steps == 2


@pytest.mark.parametrize("start", [2**24 - 1, 2**20 - 1, 2**31 - 1])
def test_trap_30_counters_count_beyond_what_a_float32_holds(start):
    monitor = support.monitor()
    clip = tf.function(lambda g: monitor.clip([g])[0])
    clip(tf.ones([3]))
    set_counter(monitor, "steps", start)
    set_counter(monitor, "clipped", start)
    clip(tf.ones([3]))
    clip(tf.ones([3]))
    snapshot = monitor.snapshot()
    assert (snapshot.steps, snapshot.clipped_steps) == (start + 2, start + 2)
    assert monitor.history()["step"][-1] == start + 2


def set_counter(monitor, name, value):
    from gradwatch.core.xp import NUMPY

    built = monitor._engine.on_device
    tree = built.tree()
    low, high = tree["count"]["low"].copy(), tree["count"]["high"].copy()
    low[COUNTERS.index(name)], high[COUNTERS.index(name)] = value % int(LIMB), value // int(LIMB)
    tree["count"] = {"low": low, "high": high}
    tree["history"] = np.zeros_like(tree["history"])
    built.state.assign(built.layout.pack(NUMPY, tree))


@pytest.mark.parametrize("policy", ["percentile", "zscore", "per_variable"])
def test_trap_31_nan_and_inf_leave_the_same_state_on_cpu_and_under_xla(policy):
    states = []
    for jit in (False, True):
        monitor = support.monitor(policies.POLICIES[policy](), detectors=detectors.default())
        clip = tf.function(lambda g, m=monitor: m.clip([g, g * 2.0])[0], jit_compile=jit)
        for value in [1.0, 1.3, float("nan"), 0.8, float("inf"), float("-inf"), 1.1, 0.0, 1.0]:
            clip(tf.fill([3], value))
        states.append(monitor._engine.on_device.tree())
    for (path, a), (_, b) in zip(flatten(states[0]), flatten(states[1])):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6, err_msg=path)


def flatten(tree, path=""):
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{path}/{name}")
        else:
            yield f"{path}/{name}", value


@pytest.mark.parametrize("mode", support.MODES)
def test_trap_32_the_first_call_counts_once_though_it_may_trace_twice(mode):
    net, optimizer = support.model(), keras.optimizers.Adam(0.01)  # not built: the first call makes its variables
    monitor = support.monitor()
    step = support.MODES[mode](gradwatch.watch(monitor=monitor), support.train_step(net, optimizer))
    for count, batch in enumerate(DATA[:3], 1):
        step(*batch)
        assert monitor.snapshot().steps == count
        assert int(optimizer.iterations.numpy()) == count


def by_hand(net, monitor=None):
    def step(x, y):
        with tf.GradientTape() as tape:
            loss = support.loss_of(net, x, y)
        grads = tape.gradient(loss, net.trainable_variables)
        if monitor is not None:
            grads, _ = monitor.clip(grads, net.trainable_variables)
        for g, v in zip(grads, net.trainable_variables):
            v.assign_sub(0.01 * g)

    return step


@pytest.mark.parametrize("mode", support.MODES)
def test_trap_33_an_update_written_by_hand_raises_and_names_the_cure(mode):
    net = support.model()
    step = support.MODES[mode](support.watch(), by_hand(net))
    with pytest.raises(NothingToWatch, match=r"monitor\.clip"):
        step(*DATA[0])


@pytest.mark.parametrize("wrap", [lambda step: step, tf.function], ids=["eager", "function"])
def test_trap_33_the_cure_works_under_the_decorator_too(wrap):
    net, monitor = support.model(), support.monitor()
    inner = wrap(by_hand(net, monitor))
    step = gradwatch.watch(monitor=monitor)(lambda x, y: inner(x, y))
    support.run(step, DATA)
    assert monitor.snapshot().steps == len(DATA)


def test_gradients_clipped_by_hand_are_not_counted_again_at_apply():
    net, optimizer, monitor = support.model(), support.sgd(), support.monitor()

    @gradwatch.watch(monitor=monitor)
    @tf.function
    def step(x, y):
        with tf.GradientTape() as tape:
            loss = support.loss_of(net, x, y)
        grads, _ = monitor.clip(tape.gradient(loss, net.trainable_variables))
        optimizer.apply_gradients(zip(grads, net.trainable_variables))

    support.run(step, DATA)
    assert monitor.snapshot().steps == len(DATA)


def test_trap_34_a_plain_step_over_an_inner_function_does_not_raise_later():
    net = support.model()
    inner = tf.function(support.train_step(net, support.sgd()))
    watched = support.watch()(lambda x, y: inner(x, y))
    for batch in DATA[:4]:
        watched(*batch)
    assert watched.monitor.snapshot().steps == 4


# -- from the bugs of others ------------------------------------------------------------------------------


def test_one_nan_leaves_the_statistics_as_if_it_had_never_come():
    """ZClip's mean and variance are NaN from then on, and its clipping is silently off."""

    def stream(with_nan):
        monitor = support.monitor(policies.zscore(), detectors=detectors.default())
        clip = tf.function(lambda g: monitor.clip([g])[0])
        rng = np.random.default_rng(1)
        for i in range(110):
            if with_nan and i == 100:
                clip(tf.constant([np.nan], tf.float32))
            clip(tf.constant([np.exp(rng.normal(0, 0.1))], tf.float32))
        tree = monitor._engine.on_device.tree()
        clip(tf.constant([50.0], tf.float32))
        return tree, monitor.history()

    tree, history = stream(with_nan=True)
    clean, _ = stream(with_nan=False)
    for part in ("policy", "recent", "levels"):
        support.assert_same([x for _, x in flatten({part: tree[part]})], [x for _, x in flatten({part: clean[part]})])
    for name in ("0_explosion", "1_trend", "2_vanishing"):
        got, want = tree["detectors"][name], clean["detectors"][name]
        support.assert_same([x for _, x in flatten(got)], [x for _, x in flatten(want)])
    assert history["verdict"][-1] == 1
    assert history["applied_norm"][-1] < 5.0


def test_a_global_clip_keeps_the_direction():
    """AutoClip's TensorFlow port clips each tensor by the global percentile and so turns the gradient."""
    monitor = support.monitor(policies.percentile(50))
    clip = tf.function(lambda a, b: monitor.clip([a, b])[0])
    for _ in range(5):
        clip(tf.ones([3]), tf.ones([2]))
    raw = [np.array([30.0, 0.0, 1.0], np.float32), np.array([1.0, -2.0], np.float32)]
    clipped = clip(*map(tf.constant, raw))
    a, b = np.concatenate(raw), np.concatenate([c.numpy() for c in clipped])
    assert np.linalg.norm(b) < 0.2 * np.linalg.norm(a)
    assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) == pytest.approx(1.0, abs=1e-6)


def test_a_sustained_growth_raises_the_alarm_and_does_not_teach_the_threshold():
    """AutoClip's percentile follows an explosion upward: the current step is part of its own threshold."""
    monitor = support.monitor(policies.percentile(90), detectors=detectors.default())
    clip = tf.function(lambda g: monitor.clip([g])[0])
    rng = np.random.default_rng(2)
    for _ in range(200):
        clip(tf.constant([np.exp(rng.normal(0, 0.1))], tf.float32))
    before = monitor.snapshot()
    growth, alarmed = 1.0, None
    for i in range(60):
        growth *= 1.05
        clip(tf.constant([growth * np.exp(rng.normal(0, 0.1))], tf.float32))
        now = monitor.snapshot()
        if alarmed is None and (now.anomalies["trend"] or now.anomalies["explosion"]):
            alarmed = i + 1
            assert now.clip_norm < 1.5 * before.clip_norm
    assert alarmed is not None
    assert alarmed <= 20
    assert growth > 18.0
    # a lasting shift is followed in the end, but far behind the growth
    assert monitor.snapshot().clip_norm < 0.25 * growth
