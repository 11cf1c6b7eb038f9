"""How far a step carries the weights: reach, the loss of the step before, the update ratio and its limit.

The oracles are numpy, from the formulas in docs/decisions/0008.
"""

from __future__ import annotations

import functools
import math

import keras
import numpy as np
import pytest
import support
import tensorflow as tf

import gradwatch
from gradwatch import policies
from gradwatch.core.xp import NUMPY
from gradwatch.errors import ConfigError
from gradwatch.tf import rates, reach
from gradwatch.tf import weights as weights_module
from gradwatch.tf.places import HELD, concat, pick, places_of, squares_of
from gradwatch.tf.weights import EVERY

MODES = {name: support.MODES[mode] for name, mode in support.PLAIN_MODES.items()}
DATA = support.batches(4)


def watched(optimizer, mode="eager", net=None, step=None, **options):
    """(net, watched step): the quickstart's net under `optimizer`, watched without clipping."""
    net = support.model() if net is None else net
    step = support.train_step(net, optimizer) if step is None else step
    options = support.monitor_options(**{"policy": policies.observe(), **options})
    return net, MODES[mode](functools.partial(gradwatch.watch, **options), step)


def norm(weights):
    return math.sqrt(sum(float(np.sum(np.square(np.float64(w)))) for w in weights))


def length(weights):
    """|w| as reach counts it: at least what Glorot's initialisation gives the matrices."""
    shapes = [np.shape(w) for w in weights]
    new = math.sqrt(sum(2 * shape[0] * shape[1] / sum(shape) for shape in shapes if len(shape) == 2))
    return max(norm(weights), new)


def reaches(step):
    return step.monitor.history()["reach"]


def arrays(net):
    return [v.numpy() for v in net.trainable_variables]


# -- the table ----------------------------------------------------------------------------------------------


def test_every_optimizer_of_keras_has_a_row_of_its_own():
    wrappers = {keras.optimizers.LossScaleOptimizer, keras.optimizers.MultiOptimizer, keras.optimizers.Optimizer}
    named = {
        cls
        for cls in vars(keras.optimizers).values()
        if isinstance(cls, type) and hasattr(cls, "apply_gradients") and cls not in wrappers
    }
    assert len(named) >= 13
    assert {cls.__name__ for cls in named} <= set(rates.TABLE)
    assert all(row.kind in (rates.LINEAR, rates.ADAPTIVE, rates.NEITHER) for row in rates.TABLE.values())
    assert all(row.reason for row in rates.TABLE.values())


class MySGD(keras.optimizers.SGD):
    pass


class MyLion(keras.optimizers.Lion):
    pass


class Own(keras.optimizers.Optimizer):
    def update_step(self, gradient, variable, learning_rate):
        self.assign_sub(variable, gradient * keras.ops.cast(learning_rate, variable.dtype))


SameName = type("SGD", (Own,), {})


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (MySGD, "linear"),
        (MyLion, "neither"),
        (keras.optimizers.AdamW, "adaptive"),
        (lambda: Own(0.1), "adaptive"),
        (lambda: SameName(0.1), "adaptive"),
    ],
    ids=["subclass of SGD", "subclass of Lion", "AdamW", "own class", "own class called SGD"],
)
def test_a_subclass_is_what_its_nearest_known_class_is_and_an_unknown_one_is_adaptive(make, kind):
    assert rates.row(make()).kind == kind


def test_what_the_table_calls_linear_moves_the_weights_by_the_rate_times_a_sustained_gradient():
    for momentum, nesterov in [(0.0, False), (0.9, False), (0.9, True)]:
        optimizer = keras.optimizers.SGD(0.01, momentum=momentum, nesterov=nesterov)
        v = keras.Variable([1.0, 2.0])
        optimizer.build([v])
        g = np.array([3.0, -1.0], np.float32)
        for _ in range(200):
            before = v.numpy()
            optimizer.apply([tf.constant(g)], [v])
        rate = float(rates.effective_rate(optimizer))
        np.testing.assert_allclose(v.numpy() - before, -rate * g, rtol=1e-4)


# -- reach --------------------------------------------------------------------------------------------------

LINEAR = {
    "SGD": (lambda: support.sgd(0.1), 0.1),
    "momentum": (lambda: support.sgd(0.1, momentum=0.9), 1.0),
    "Nesterov": (lambda: support.sgd(0.1, momentum=0.9, nesterov=True), 1.0),
    "weight decay": (lambda: support.sgd(0.02, weight_decay=0.1), 0.02),
    "loss scale factor": (lambda: support.sgd(0.1, loss_scale_factor=256.0), 0.1),
    "LossScaleOptimizer": (lambda: keras.optimizers.LossScaleOptimizer(support.sgd(0.1, momentum=0.5)), 0.2),
    "MultiOptimizer": (lambda: support.multi(support.sgd(0.1, momentum=0.5)), 0.2),
    "subclass": (lambda: MySGD(0.1), 0.1),
}


@pytest.mark.parametrize(
    ("name", "mode"), [*((name, "function") for name in LINEAR), ("momentum", "eager"), ("weight decay", "jit")]
)
def test_reach_is_the_norm_of_the_weights_over_the_effective_rate(name, mode):
    make, rate = LINEAR[name]
    net, step = watched(make(), mode)
    expected = length(arrays(net)) / rate
    step(*DATA[0])
    assert reaches(step)[0] == pytest.approx(expected, rel=1e-5)
    assert step.monitor.snapshot().reach == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("make", [keras.optimizers.Adam, keras.optimizers.RMSprop, lambda: Own(0.1)])
def test_reach_is_infinite_for_an_optimizer_that_divides_by_its_second_moment(make):
    _, step = watched(make(), "function")
    step(*DATA[0])
    assert reaches(step)[0] == math.inf
    assert step.monitor.snapshot().reach == math.inf


@pytest.mark.parametrize("make", [keras.optimizers.Lion, keras.optimizers.Ftrl, keras.optimizers.Adafactor])
def test_reach_is_not_known_for_an_optimizer_that_is_neither(make):
    _, step = watched(make(), "function")
    step(*DATA[0])
    assert math.isnan(reaches(step)[0])
    assert step.monitor.snapshot().reach is None


@pytest.mark.parametrize("mode", MODES)
def test_reach_follows_a_schedule_step_by_step(mode):
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 1, 0.5)
    net, step = watched(support.sgd(schedule), mode)
    whole = length(arrays(net))
    for batch in DATA:
        step(*batch)
    np.testing.assert_allclose(reaches(step), [whole / (0.1 * 0.5**t) for t in range(4)], rtol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_reach_follows_a_rate_that_is_set_between_steps(mode):
    optimizer = support.sgd(0.1)
    net, step = watched(optimizer, mode)
    whole = length(arrays(net))
    for batch, rate in zip(DATA, [0.1, 0.2, 1e-3, 1e-3]):
        optimizer.learning_rate = rate
        step(*batch)
    np.testing.assert_allclose(reaches(step), whole / np.array([0.1, 0.2, 1e-3, 1e-3]), rtol=1e-5)


def test_reach_follows_a_callback_that_sets_the_rate_during_fit():
    net = support.model()
    whole = length(arrays(net))
    net.compile(support.sgd(0.1), "mse")
    watch = gradwatch.KerasCallback(support.monitor(policies.observe()))
    rates = keras.callbacks.LearningRateScheduler(lambda epoch: [0.1, 0.01, 0.5][epoch])
    x, y = (np.concatenate([batch[i] for batch in DATA[:2]]) for i in (0, 1))
    net.fit(x, y, batch_size=8, epochs=3, verbose=0, callbacks=[watch, rates], shuffle=False)
    expected = whole / np.repeat([0.1, 0.01, 0.5], 2)
    np.testing.assert_allclose(watch.monitor.history()["reach"], expected, rtol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_a_rate_that_is_no_rate_leaves_reach_unknown_and_clips_nothing_to_zero(mode):
    optimizer = support.sgd(0.1)
    net, step = watched(optimizer, mode, policy=policies.fixed(1e6))
    initial = net.get_weights()
    for rate in (0.0, -0.1, math.nan, math.inf, 1e-45):
        net.set_weights(initial)
        step.monitor.reset()
        optimizer.learning_rate = rate
        step(*DATA[0])
        history = step.monitor.history()
        assert math.isnan(history["reach"][0]), rate
        assert history["clip_norm"][0] == 1e6, rate
        assert history["applied_norm"][0] == history["norm"][0] > 0.0, rate


@pytest.mark.parametrize("mode", MODES)
def test_weights_that_are_all_zero_leave_reach_unknown_until_they_have_moved(mode):
    net = support.model()
    net.set_weights([np.zeros_like(w) for w in net.get_weights()])
    v = net.trainable_variables[-1]

    def step(x, y):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(v - 3.0))
        optimizer.apply_gradients(zip(tape.gradient(loss, [v]), [v]))
        return loss

    optimizer = support.sgd(0.1)
    _, step = watched(optimizer, mode, net=net, step=step)
    for _ in range(EVERY + 1):
        before = v.numpy()
        step(*DATA[0])
    assert np.isnan(reaches(step)[:EVERY]).all()
    assert reaches(step)[-1] == pytest.approx(length([before]) / 0.1, rel=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e38])
def test_a_weight_that_is_not_finite_leaves_reach_unknown_and_poisons_nothing(bad):
    net = support.model()
    first = net.trainable_variables[0]
    good = first.numpy()
    broken = good.copy()
    broken[0, 0] = bad
    optimizer = support.sgd(1e-6)
    v = net.trainable_variables[-1]

    def step(x, y):
        # gradients that are finite whatever the weights
        grads = [tf.ones_like(w) for w in net.trainable_variables]
        optimizer.apply_gradients(zip(grads, net.trainable_variables))
        return tf.reduce_sum(v)

    _, step = watched(optimizer, "function", net=net, step=step)
    first.assign(broken)
    step(*DATA[0])
    assert step.monitor.snapshot().reach is None
    assert step.monitor.snapshot().update_ratio is None
    assert np.isfinite(step.monitor._engine.on_device.pack()).all()
    first.assign(good)
    for _ in range(EVERY):
        step(*DATA[0])
    assert step.monitor.snapshot().reach == pytest.approx(length(arrays(net)) / 1e-6, rel=1e-3)


def test_only_variables_with_a_gradient_count():
    net = support.model()
    some = net.trainable_variables[:1]
    rest = net.trainable_variables[1:]

    def step(x, y):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(tf.matmul(x, some[0])))
        grads = tape.gradient(loss, [*some, *rest])
        optimizer.apply_gradients(zip(grads, [*some, *rest]))
        return loss

    optimizer = support.sgd(0.1)
    _, step = watched(optimizer, "function", net=net, step=step)
    expected = length([v.numpy() for v in some]) / 0.1
    step(*DATA[0])
    assert reaches(step)[0] == pytest.approx(expected, rel=1e-5)


def test_an_optimizer_that_is_changed_between_steps_is_asked_anew():
    net = support.model()
    used = [support.sgd(0.1)]

    def step(x, y):
        with tf.GradientTape() as tape:
            loss = support.loss_of(net, x, y)
        used[0].apply_gradients(zip(tape.gradient(loss, net.trainable_variables), net.trainable_variables))
        return loss

    _, step = watched(None, "eager", net=net, step=step)
    whole = length(arrays(net))
    for optimizer in (used[0], keras.optimizers.Adam(1e-4), support.sgd(0.5), keras.optimizers.Lion(1e-4)):
        used[0] = optimizer
        step(*DATA[0])
    expected = [whole / 0.1, math.inf, whole / 0.5, math.nan]
    np.testing.assert_allclose(reaches(step), expected, rtol=1e-5)


def test_two_optimizers_on_one_monitor_have_the_reach_of_the_one_that_steps():
    net = support.model()
    both = [support.sgd(0.1), support.sgd(0.001, momentum=0.5)]

    def step(x, y):
        for optimizer in both:
            with tf.GradientTape() as tape:
                loss = support.loss_of(net, x, y)
            optimizer.apply_gradients(zip(tape.gradient(loss, net.trainable_variables), net.trainable_variables))
        return loss

    _, step = watched(None, "function", net=net, step=step)
    whole = length(arrays(net))
    step(*DATA[0])
    np.testing.assert_allclose(reaches(step), [whole / 0.1, whole / 0.002], rtol=1e-5)


MULTI = {
    "two rates": (lambda k: support.sgd(0.1) if k else support.sgd(0.02), lambda w: length(w) / 0.1),
    "one adaptive": (lambda k: keras.optimizers.Adam() if k else support.sgd(0.02), lambda w: length(w[:2]) / 0.02),
    "all adaptive": (lambda k: keras.optimizers.Adam(), lambda w: math.inf),
    "Lion beside": (lambda k: keras.optimizers.Lion() if k else support.sgd(0.02), lambda w: length(w[:2]) / 0.02),
    "Lion alone": (lambda k: keras.optimizers.Lion(), lambda w: math.nan),
}


@pytest.mark.parametrize("name", MULTI)
def test_in_a_multi_optimizer_the_largest_rate_of_the_linear_parts_counts_over_their_weights(name):
    make, expected = MULTI[name]
    net = support.model()
    first, second = make(0), make(1)
    of = {v.path: i >= 2 for i, v in enumerate(net.trainable_variables)}
    optimizer = keras.optimizers.MultiOptimizer(lambda v: second if of[v.path] else first)
    _, step = watched(optimizer, "function", net=net)
    wanted = expected(arrays(net))
    step(*DATA[0])
    np.testing.assert_allclose(reaches(step)[0], wanted, rtol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_monitor_clip_knows_the_reach_when_it_is_given_the_optimizer(mode):
    net, optimizer = support.model(), support.sgd(0.1)
    monitors = [support.monitor(policies.observe()) for _ in range(2)]

    def step(x, y):
        with tf.GradientTape() as tape:
            loss = support.loss_of(net, x, y)
        variables = net.trainable_variables
        grads = tape.gradient(loss, variables)
        monitors[0].clip(grads, variables)
        monitors[1].clip(grads, variables, optimizer)
        return loss

    step = {"eager": lambda f: f, "function": tf.function, "jit": functools.partial(tf.function, jit_compile=True)}[
        mode
    ](step)
    step(*DATA[0])
    assert math.isnan(monitors[0].history()["reach"][0])
    assert monitors[1].history()["reach"][0] == pytest.approx(length(arrays(net)) / 0.1, rel=1e-5)


def test_the_optimizers_of_tf_keras_have_a_reach_too():
    tf_keras = pytest.importorskip("tf_keras")
    schedule = tf_keras.optimizers.schedules.PiecewiseConstantDecay([0], [0.1, 0.01])
    makes = [
        (tf_keras.optimizers.SGD(0.1, momentum=0.5), [0.2, 0.2]),
        (tf_keras.optimizers.SGD(schedule), [0.1, 0.01]),
        (tf_keras.optimizers.legacy.SGD(0.1, momentum=0.5, decay=1.0), [0.2, 0.1]),
        (tf_keras.optimizers.Adam(), [0.0, 0.0]),
    ]
    for optimizer, speeds in makes:
        w = tf.Variable([[3.0], [4.0]])

        def step(optimizer=optimizer, w=w):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(1e-6 * w)
            optimizer.apply_gradients([(tape.gradient(loss, w), w)])
            return loss

        step = support.watch(policies.observe())(tf.function(step))
        step(), step()
        with np.errstate(divide="ignore"):
            np.testing.assert_allclose(reaches(step), 5.0 / np.array(speeds), rtol=1e-5)


def replicated(mirrored, make, net=None, **options):
    """(net, watched step over both replicas)"""
    with mirrored.scope():
        net, optimizer = support.model(), make()
        optimizer.build(net.trainable_variables)

    def replica(x, y):
        with tf.GradientTape() as tape:
            loss = support.loss_of(net, x, y) / 2.0
        optimizer.apply_gradients(zip(tape.gradient(loss, net.trainable_variables), net.trainable_variables))
        return loss

    return net, gradwatch.watch(replica, **support.monitor_options(**{"policy": policies.observe(), **options}))


def halves(mirrored, batch):
    return tuple(
        mirrored.experimental_distribute_values_from_function(lambda c, t=t: t[4 * c.replica_id_in_sync_group :][:4])
        for t in batch
    )


def test_under_a_strategy_the_norm_of_the_weights_is_counted_once_and_the_loss_is_the_mean(mirrored):
    net, replica = replicated(mirrored, lambda: support.sgd(0.1, momentum=0.5))
    step = tf.function(lambda x, y: mirrored.run(replica, args=(x, y)))
    before = arrays(net)
    losses = step(*halves(mirrored, DATA[0]))
    snapshot = replica.monitor.snapshot()
    assert snapshot.reach == pytest.approx(length(before) / 0.2, rel=1e-5)
    moved = [a - b for a, b in zip(arrays(net), before)]
    assert snapshot.update_ratio == pytest.approx(norm(moved) / length(before), rel=1e-4)
    mean = np.mean([float(x) for x in losses.values])
    assert replica.monitor.history()["loss"] == pytest.approx([mean], rel=1e-6)
    step(*halves(mirrored, DATA[1]))
    assert replica.monitor.history()["loss"][0] == pytest.approx(mean, rel=1e-6)
    # the policies of both replicas were told the same
    first, second = (x.numpy() for x in replica.monitor._engine.on_device.state.values)
    np.testing.assert_array_equal(first, second)


# -- the weights' norms -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("norms", "least", "expected"),
    [
        ([3.0, 4.0], 0.0, 5.0),
        ([3.0, 0.0], 2.0, 3.0),
        ([1e-3, 0.0], 2.0, 2.0),
        ([1e-3, 0.0], 0.0, 1e-3),
        ([1e3, 0.0], 2.0, 1e3),
        ([0.0, 0.0], 2.0, 2.0),
        ([0.0, 0.0], 0.0, 0.0),
        ([math.nan, 1.0], 2.0, 0.0),
        ([-1.0, 1.0], 2.0, 0.0),
        ([math.inf, 1.0], 2.0, 0.0),
        ([1e30, 1e30], 2.0, math.sqrt(2) * 1e30),
    ],
)
def test_the_norm_of_the_weights_is_global_at_least_that_of_new_ones_and_0_where_it_is_not_known(
    norms, least, expected
):
    got = reach.weight_norm(NUMPY, np.array(norms, np.float32), least)
    assert got == pytest.approx(expected, rel=1e-6)


def test_new_weights_have_the_norm_that_glorots_initialisation_gives_them():
    shapes = [(30, 50), (50,), (3, 3, 8, 16), (5, 40, 20), ()]
    rng = np.random.default_rng(0)
    squares = []
    for shape in (s for s in shapes if len(s) >= 2):
        field = math.prod(shape[:-2])
        limit = math.sqrt(6 / (field * (shape[-2] + shape[-1])))
        squares.append(np.mean([(rng.uniform(-limit, limit, shape) ** 2).sum() for _ in range(50)]))
    assert reach.initial_norm(shapes) == pytest.approx(math.sqrt(sum(squares)), rel=0.01)
    assert reach.initial_norm([(3,), ()]) == 0.0


@pytest.mark.parametrize("mode", MODES)
def test_the_norms_are_taken_every_50_steps_and_kept_between(mode):
    net, step = watched(support.sgd(0.05), mode)
    net.set_weights([1.3 * w for w in net.get_weights()])  # longer than new ones
    norms = []
    for i in range(2 * EVERY + 1):
        norms.append(length(arrays(net)))
        step(*DATA[i % 4])
    expected = [norms[i - i % EVERY] / 0.05 for i in range(len(norms))]
    np.testing.assert_allclose(reaches(step), expected, rtol=1e-5)
    assert len(set(expected)) == 3


@pytest.mark.parametrize("mode", ["function", "jit"])
def test_an_accelerator_looks_at_every_step_without_a_branch(mode, monkeypatch):
    monkeypatch.setattr(weights_module, "_predicates_travel", lambda: True)
    net, step = watched(support.sgd(0.05), mode)
    for batch in DATA:
        before = arrays(net)
        step(*batch)
        moved = [a - b for a, b in zip(arrays(net), before)]
        snapshot = step.monitor.snapshot()
        assert snapshot.reach == pytest.approx(length(before) / 0.05, rel=1e-5)
        assert snapshot.update_ratio == pytest.approx(norm(moved) / length(before), rel=1e-3)


@pytest.mark.parametrize("shape", [(1000, 1000), (10000, 64), (3, 3, 256, 256), (2**20,)])
def test_large_variables_are_looked_at_in_evenly_spaced_places_of_every_column(shape):
    rng = np.random.default_rng(0)
    w = rng.standard_normal(shape).astype(np.float32) * np.linspace(0.0, 2.0, shape[-1], dtype=np.float32)
    [place] = places_of([tf.Variable(w)])
    picked = np.asarray(pick(tf.constant(w), place))
    assert picked.shape == (place.size,)
    assert place.size <= HELD
    estimate = float(squares_of(concat([tf.constant(w)], [place]), [place])[0]) ** 0.5
    assert estimate == pytest.approx(norm([w]), rel=0.02)


def test_all_that_is_held_together_stays_small_and_small_variables_are_held_whole():
    class Like:
        def __init__(self, size):
            self.shape = tf.TensorShape([size])

    places = places_of([Like(n) for n in [10, 1, 5_000_000, 64, 1_000_000, 100]])
    assert [p.size for p in places if p.of <= 100] == [10, 1, 64, 100]
    assert sum(p.size for p in places) <= HELD
    assert min(p.size for p in places if p.of > 100) > 30_000
    many = places_of([Like(10_000)] * 1500)
    assert sum(p.size for p in many) <= 1500 * 64


# -- the update ratio ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("make", [lambda: support.sgd(0.1, momentum=0.9), lambda: keras.optimizers.Adam(0.01)])
def test_the_update_ratio_is_the_share_by_which_the_weights_moved(make, mode):
    net, step = watched(make(), mode)
    before = arrays(net)
    step(*DATA[0])
    after, snapshot = arrays(net), step.monitor.snapshot()
    moved = [a - b for a, b in zip(after, before)]
    assert snapshot.update_ratio == pytest.approx(norm(moved) / length(before), rel=1e-4)
    layers = {v.path: norm([d]) / norm([b]) for v, d, b in zip(net.trainable_variables, moved, before) if norm([b]) > 0}
    assert dict(snapshot.layer_update_ratio) == pytest.approx(layers, rel=1e-4)
    # the biases begin at zero and have no share
    assert len(layers) == 2
    step(*DATA[1])
    assert step.monitor.history()["update_ratio"][1] == pytest.approx(snapshot.update_ratio)
    assert math.isnan(step.monitor.history()["update_ratio"][0])


def test_a_skipped_update_moved_the_weights_by_nothing():
    _, step = watched(support.sgd(0.1, momentum=0.9), "function", policy=policies.fixed(1.0), on_nonfinite="skip")
    x, y = DATA[0]
    step(x * math.nan, y)
    snapshot = step.monitor.snapshot()
    assert snapshot.skipped_updates == 1
    assert snapshot.update_ratio == 0.0


def test_before_the_first_step_nothing_is_known():
    snapshot = support.monitor().snapshot()
    assert snapshot.reach is None
    assert snapshot.update_ratio is None
    assert dict(snapshot.layer_update_ratio) == {}
    assert snapshot.limited_updates == 0


# -- the loss -----------------------------------------------------------------------------------------------


@functools.cache  # equal policies share one traced guard
def listening():
    """A policy whose clip_norm is 1000 + the loss of the step before, 1 where it is not known: seen in the history."""

    def update(xp, state, norms):
        known = xp.is_finite(norms.loss)
        return state, xp.where(known, 1000.0 + xp.where(known, norms.loss, 0.0), 1.0) + norms.total * 0.0, {}

    return policies.Policy("listening()", lambda n: {}, update)


def heard(step):
    """The losses that the policy was given."""
    bounds = step.monitor.history()["clip_norm"].astype(np.float64)
    return np.where(bounds == 1.0, math.nan, bounds - 1000.0)


@functools.cache
def weighing():
    """A policy whose clip_norm is the norm of the weights, 1e6 where it is not known: seen in the history."""

    def update(xp, state, norms):
        known = xp.is_finite(norms.weights)
        return state, xp.where(known, norms.weights, 1e6) + norms.total * 0.0, {}

    return policies.Policy("weighing()", lambda n: {}, update)


@pytest.mark.parametrize("mode", MODES)
def test_a_policy_is_told_the_norm_of_the_weights_of_a_linear_optimizer(mode):
    net, step = watched(support.sgd(0.1), mode, policy=weighing())
    expected = length(arrays(net))
    step(*DATA[0])
    assert step.monitor.history()["clip_norm"][0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("make", [keras.optimizers.Adam, keras.optimizers.Lion])
def test_where_reach_does_not_apply_the_norm_of_the_weights_is_not_known(make):
    _, step = watched(make(), "function", policy=weighing())
    step(*DATA[0])
    assert step.monitor.history()["clip_norm"][0] == 1e6


OUTPUTS = {
    "a scalar": (lambda loss, x: loss, None),
    "a tuple": (lambda loss, x: (x, tf.constant(3), loss, loss * 2.0), None),
    "a dict": (lambda loss, x: {"accuracy": loss * 0.0, "loss": loss}, None),
    "named": (lambda loss, x: (loss * 2.0, loss), lambda outputs: outputs[1]),
}


@pytest.mark.parametrize(
    ("name", "mode"), [*(("a scalar", mode) for mode in support.MODES), *((n, "function inside") for n in OUTPUTS)]
)
def test_the_policy_gets_the_loss_of_the_step_before(name, mode):
    outputs, choose = OUTPUTS[name]
    net, optimizer = support.model(), support.sgd(0.01)
    losses = []

    def step(x, y):
        loss = plain(x, y)
        return outputs(loss, x)

    plain = support.train_step(net, optimizer)
    monitor = support.monitor(listening())
    step = support.MODES[mode](lambda f: gradwatch.watch(f, monitor=monitor, loss=choose), step)
    reference = support.model()
    first, rest = (support.train_step(reference, support.sgd(0.01), bound) for bound in (1.0, None))
    for i, batch in enumerate(DATA):
        step(*batch)
        # listening() bounds the first norm by 1
        losses.append(float((rest if i else first)(*batch)))
    bounds = monitor.history()["clip_norm"]
    assert bounds[0] == 1.0
    np.testing.assert_allclose(bounds[1:] - 1000.0, losses[:3], atol=1e-3)


@pytest.mark.parametrize(
    "result",
    [lambda loss, x: None, lambda loss, x: x, lambda loss, x: tf.constant(3), lambda loss, x: loss * math.nan],
    ids=["nothing", "a matrix", "a whole number", "NaN"],
)
def test_a_step_that_returns_no_loss_leaves_it_unknown(result):
    net, optimizer = support.model(), support.sgd(0.01)
    plain = support.train_step(net, optimizer)
    step = support.watch(listening())(tf.function(lambda x, y: result(plain(x, y), x)))
    support.run(step, DATA)
    assert np.isnan(heard(step)).all()


def test_an_infinite_loss_is_a_large_one():
    net, optimizer = support.model(), support.sgd(0.01)
    plain = support.train_step(net, optimizer)
    step = support.watch(listening())(tf.function(lambda x, y: plain(x, y) * math.inf))
    support.run(step, DATA[:2])
    assert heard(step)[1] == pytest.approx(1e36)


def test_a_loss_that_does_not_pick_is_refused():
    with pytest.raises(ConfigError, match="loss must be a callable"):
        gradwatch.watch(lambda: None, loss="loss")


@pytest.mark.parametrize("when", ["before the update", "after it"])
@pytest.mark.parametrize("mode", ["eager", "function", "jit"])
def test_report_gives_a_loss_inside_the_graph_to_the_next_step(mode, when):
    monitor = support.monitor(listening())
    v = tf.Variable([2.0, 3.0])

    def step(loss):
        if when == "before the update":
            monitor.report(loss=loss)
        grads, _ = monitor.clip([v * 1.0], [v])
        v.assign_sub(0.1 * grads[0])
        if when == "after it":
            monitor.report(loss=loss)

    wraps = {"eager": lambda f: f, "function": tf.function, "jit": functools.partial(tf.function, jit_compile=True)}
    step = wraps[mode](step)
    for loss in (5.0, 4.0, 3.0):
        step(tf.constant(loss))
    bounds = monitor.history()["clip_norm"].tolist()
    # in eager mode nothing tells a loss said early from one said late
    expected = [1005.0, 1004.0, 1003.0] if (mode, when) == ("eager", "before the update") else [1.0, 1005.0, 1004.0]
    assert bounds[1:] == expected[1:]


@pytest.mark.parametrize("compile_options", [{}, {"run_eagerly": True}, {"jit_compile": True}], ids=str)
def test_in_fit_the_policy_gets_the_loss_of_the_batch_and_nothing_is_traced_twice(compile_options):
    net = support.model()
    traces = []

    class Counting(keras.losses.Loss):
        def call(self, y_true, y_pred):
            traces.append(1)
            return keras.ops.mean(keras.ops.square(y_true - y_pred), axis=-1)

    def losses_of(callbacks):
        support_net = support.model()
        support_net.compile(support.sgd(0.01), Counting(), **compile_options)
        del traces[:]
        x, y = (np.concatenate([batch[i] for batch in DATA]) for i in (0, 1))
        support_net.fit(x, y, batch_size=8, epochs=1, verbose=0, callbacks=callbacks, shuffle=False)
        return len(traces)

    plain = losses_of([])
    watch = gradwatch.KerasCallback(support.monitor(listening()))
    assert losses_of([watch]) == plain

    reference = support.model()
    unwatched = support.train_step(reference, support.sgd(0.01))
    expected = []
    for i, (x, y) in enumerate(DATA):
        # listening() bounds the first norm by 1
        step = unwatched if i else support.train_step(reference, support.sgd(0.01), 1.0)
        expected.append(float(step(x, y)))
    bounds = watch.monitor.history()["clip_norm"]
    assert bounds[0] == 1.0
    np.testing.assert_allclose(bounds[1:] - 1000.0, expected[:3], atol=1e-3)
    assert "compute_loss" not in vars(net)


def test_validation_within_fit_is_not_taken_for_training():
    net = support.model()
    net.compile(support.sgd(0.01), "mse")
    x, y = (np.concatenate([batch[i] for batch in DATA[:2]]) for i in (0, 1))
    watch = gradwatch.KerasCallback(support.monitor(listening()))
    net.fit(x, y, batch_size=8, epochs=2, verbose=0, callbacks=[watch], shuffle=False, validation_data=(x, y * 1e3))
    assert watch.monitor.history()["clip_norm"].max() < 1100.0


# -- update_limit -------------------------------------------------------------------------------------------


def limited_reference(net, optimizer, limit, data, counts=None):
    """numpy around the unwatched optimizer: w + min(1, limit |w| / |dw|) dw, slots as the optimizer left them."""
    step = support.train_step(net, optimizer)
    limited = 0
    for batch in data:
        before = arrays(net)
        step(*batch)
        moved = [a - b for a, b in zip(arrays(net), before)]
        most = limit * length(before)
        if norm(moved) > most:
            limited += 1
            for v, b, d in zip(net.trainable_variables, before, moved):
                v.assign(b + np.float32(most / norm(moved)) * d)
    return limited


@pytest.mark.parametrize("mode", support.MODES)
def test_an_update_that_moves_the_weights_too_far_is_scaled_back_to_the_limit(mode):
    data = support.batches(8)
    optimizer, other = keras.optimizers.Adam(0.3), keras.optimizers.Adam(0.3)
    reference = support.model()
    count = limited_reference(reference, other, 0.05, data)
    assert count > 3
    net = support.model()
    monitor = support.monitor(policies.observe(), update_limit=0.05)
    step = support.MODES[mode](lambda f: gradwatch.watch(f, monitor=monitor), support.train_step(net, optimizer))
    support.run(step, data)
    support.assert_close(arrays(net), arrays(reference), rtol=1e-4, atol=1e-5)
    support.assert_close(
        [v.numpy() for v in optimizer.variables], [v.numpy() for v in other.variables], rtol=1e-3, atol=1e-5
    )
    assert monitor.snapshot().limited_updates == count
    assert monitor.snapshot().update_ratio is not None


def test_an_update_within_the_limit_is_left_to_the_bit():
    data = support.batches(5)
    plain = support.model()
    support.run(tf.function(support.train_step(plain, keras.optimizers.Adam(0.001))), data)
    net, step = watched(keras.optimizers.Adam(0.001), "function", update_limit=0.5)
    support.run(step, data)
    for a, b in zip(arrays(net), arrays(plain)):
        np.testing.assert_array_equal(a, b)
    assert step.monitor.snapshot().limited_updates == 0


def test_a_transformer_sized_rate_of_adam_cannot_run_away_under_a_limit():
    net, step = watched(keras.optimizers.Adam(1e3), "function", update_limit=0.1)
    before = length(arrays(net))
    support.run(step, support.batches(3))
    assert length(arrays(net)) <= before * 1.1**3 * 1.001
    assert step.monitor.snapshot().limited_updates == 3


def test_the_limit_holds_under_a_strategy_as_on_one_device(mirrored):
    data = support.batches(4)
    reference = support.model()
    count = limited_reference(reference, support.sgd(0.5, momentum=0.9), 0.05, data)
    assert count
    net, replica = replicated(mirrored, lambda: support.sgd(0.5, momentum=0.9), update_limit=0.05)
    step = tf.function(lambda x, y: mirrored.run(replica, args=(x, y)))
    for batch in data:
        step(*halves(mirrored, batch))
    support.assert_close(arrays(net), arrays(reference), rtol=1e-4, atol=1e-5)
    assert replica.monitor.snapshot().limited_updates == count


@pytest.mark.parametrize("mode", ["eager", "function"])
def test_under_accumulation_the_limit_holds_for_the_update_of_the_mean(mode):
    data = support.batches(4)
    net, step = watched(support.sgd(10.0, gradient_accumulation_steps=2), mode, update_limit=0.05)
    before = arrays(net)
    step(*data[0])
    support.assert_close(arrays(net), before)
    step(*data[1])
    moved = norm([a - b for a, b in zip(arrays(net), before)])
    assert moved == pytest.approx(0.05 * length(before), rel=1e-4)
    assert step.monitor.snapshot().limited_updates == 1


def test_a_skipped_update_is_not_limited_as_well():
    net, step = watched(
        support.sgd(10.0, momentum=0.9), "function", policy=policies.fixed(1e9), on_nonfinite="skip", update_limit=0.05
    )
    before = arrays(net)
    step(DATA[0][0] * math.nan, DATA[0][1])
    for a, b in zip(arrays(net), before):
        np.testing.assert_array_equal(a, b)
    assert step.monitor.snapshot().limited_updates == 0
    step(*DATA[0])
    assert step.monitor.snapshot().limited_updates == 1


def test_a_loss_scaler_is_limited_in_the_units_of_the_weights():
    optimizer = keras.optimizers.LossScaleOptimizer(support.sgd(10.0), initial_scale=1024.0)
    net = support.model()

    def step(x, y):
        with tf.GradientTape() as tape:
            loss = support.loss_of(net, x, y)
            scaled = optimizer.scale_loss(loss)
        optimizer.apply_gradients(zip(tape.gradient(scaled, net.trainable_variables), net.trainable_variables))
        return loss

    _, step = watched(optimizer, "function", net=net, step=step, update_limit=0.05)
    before = arrays(net)
    step(*DATA[0])
    moved = norm([a - b for a, b in zip(arrays(net), before)])
    assert moved == pytest.approx(0.05 * length(before), rel=1e-4)


@pytest.mark.parametrize("bad", [0.0, -0.1, math.nan, math.inf, "0.1", True])
def test_a_limit_that_is_no_share_is_refused(bad):
    with pytest.raises(ConfigError, match=r"update_limit must be > 0, got .*; a share of the weights' norm"):
        gradwatch.Monitor(update_limit=bad)


def test_monitor_clip_refuses_a_limit_it_cannot_keep():
    with pytest.raises(ConfigError, match=r"update_limit=0\.1 needs to see the update"):
        gradwatch.Monitor(update_limit=0.1).clip([tf.ones([2])])


# -- checkpoints --------------------------------------------------------------------------------------------


def test_a_restored_monitor_knows_reach_ratio_and_loss_as_it_did(tmp_path):
    def fresh():
        net, step = watched(support.sgd(0.05, momentum=0.5), "function", policy=listening(), update_limit=0.004)
        return net, step

    data = support.batches(8)
    net, step = fresh()
    support.run(step, data[:5])
    step.monitor.save(tmp_path / "monitor.npz")
    kept = arrays(net)
    support.run(step, data[5:])
    expected = step.monitor.history()

    other, again = fresh()
    again.monitor.load(tmp_path / "monitor.npz")
    for v, w in zip(other.trainable_variables, kept):
        v.assign(w)
    # the optimizer's momentum is the model's matter: only what the monitor says of the first step is compared
    again(*data[5])
    got = again.monitor.history()
    for column in ("reach", "clip_norm", "update_ratio"):
        np.testing.assert_array_equal(got[column][:6], expected[column][:6])
    assert again.monitor.snapshot().limited_updates >= 5 > 0
