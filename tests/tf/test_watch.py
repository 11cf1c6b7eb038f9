"""The decorator on the quickstart's step: what it must not change, what it must do, and what it must refuse."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

import keras
import pytest
import support
import tensorflow as tf

import gradwatch
from gradwatch import detectors, policies
from gradwatch.errors import ConfigError, LayoutError, NothingToWatch

DATA = support.batches(50, spike_at=30)


@pytest.mark.parametrize("mode", ["eager", "function inside"])
def test_with_observe_fifty_steps_end_in_bit_identical_weights(mode):
    results = []
    for watched in (False, True):
        net, optimizer = support.model(), keras.optimizers.Adam(0.01)
        decorate = support.watch(policies.observe()) if watched else lambda step: step
        step = support.MODES[mode](decorate, support.train_step(net, optimizer))
        support.run(step, DATA)
        results.append(support.weights(net, optimizer))
    support.assert_same(*results)
    assert step.monitor.snapshot().steps == 50
    assert step.monitor.snapshot().explosions == 1


def test_with_observe_a_jitted_training_is_bit_identical_with_xla_as_users_have_it():
    program = Path(__file__).with_name("jitted_observe.py")
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    done = subprocess.run([sys.executable, program], env=environment, capture_output=True, text=True, timeout=100)
    assert done.stdout == "bit-identical\n", done.stderr[-2000:]


@pytest.mark.parametrize("mode", support.PLAIN_MODES.values())
def test_fixed_equals_an_explicit_clip_by_global_norm(mode):
    net, reference = support.model(), support.model()
    step = support.MODES[mode](support.watch(), support.train_step(net, support.sgd(momentum=0.9)))
    support.run(step, DATA)
    explicit = tf.function(support.train_step(reference, support.sgd(momentum=0.9), support.CLIP))
    support.run(explicit, DATA)
    assert step.monitor.snapshot().clipped_steps > 25
    support.assert_close(support.weights(net), support.weights(reference))


class Counted:
    """A step that counts how often it is traced."""

    def __init__(self, inner):
        self.inner, self.traces = inner, 0

    def step(self, x, y):
        self.traces += 1
        return self.inner(x, y)


@pytest.mark.parametrize("jit", [False, True], ids=["function", "jit"])
def test_a_watched_function_is_traced_as_often_as_an_unwatched_one(jit):
    traces = []
    for decorate in (lambda step: step, support.watch()):
        counted = Counted(support.train_step(support.model(), support.sgd()))
        support.run(decorate(tf.function(counted.step, jit_compile=jit)), DATA[:10])
        traces.append(counted.traces)
    assert traces[1] == traces[0]


@pytest.mark.parametrize("jit", [False, True], ids=["function", "jit"])
def test_a_watched_step_has_no_op_that_needs_the_host(jit):
    net = support.model()
    step = support.watch(policies.percentile(90), on_nonfinite="skip", on_explosion="skip")(
        tf.function(support.train_step(net, support.sgd()), jit_compile=jit)
    )
    types = support.op_types(step.get_concrete_function(*DATA[0]))
    assert len(types) > 100
    assert not support.HOST_OPS & set(types)


def test_a_watched_function_is_still_a_function():
    net = support.model()
    step = support.watch()(tf.function(support.train_step(net, support.sgd())))
    concrete = step.get_concrete_function(*DATA[0])
    concrete(*DATA[0])
    concrete(*DATA[1])
    assert step.monitor.snapshot().steps == 2


def test_a_watched_step_keeps_its_name_its_docstring_and_its_result():
    net, optimizer = support.model(), support.sgd()

    @gradwatch.watch
    def my_step(x, y):
        """Trains."""
        return support.train_step(net, optimizer)(x, y), "metric"

    loss, metric = my_step(*DATA[0])
    assert (my_step.__name__, my_step.__doc__, metric) == ("my_step", "Trains.", "metric")
    assert float(loss) > 0


def test_an_error_in_the_users_step_comes_out_as_it_is_and_ends_the_watching():
    net, optimizer = support.model(), support.sgd()

    @support.watch()
    def step(x, y):
        raise KeyError("theirs")

    with pytest.raises(KeyError, match="theirs"):
        step(*DATA[0])
    support.train_step(net, optimizer)(*DATA[0])
    assert step.monitor.snapshot().steps == 0


def test_an_unwatched_step_beside_a_watched_one_is_left_alone():
    watched_net, other_net = support.model(), support.model()
    watched = support.watch(policies.fixed(1e-6))(support.train_step(watched_net, support.sgd()))
    reference = support.model()
    for batch in DATA[:3]:
        watched(*batch)
        support.train_step(other_net, support.sgd())(*batch)
        support.train_step(reference, support.sgd())(*batch)
    support.assert_same(support.weights(other_net), support.weights(reference))
    assert watched.monitor.snapshot().steps == 3


def test_an_optimizer_class_with_its_own_apply_is_watched_once():
    class Mine(keras.optimizers.SGD):
        def apply(self, grads, trainable_variables=None):
            return super().apply(grads, trainable_variables)

    net = support.model()
    step = support.watch()(support.train_step(net, Mine(0.01)))
    support.run(step, DATA[:3])
    assert step.monitor.snapshot().steps == 3


# -- bad input --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: gradwatch.watch(policies.percentile(90)), "policy="),
        (lambda: gradwatch.watch("generator"), "keyword"),
        (lambda: gradwatch.watch(policies.percentile), "policy="),
        (lambda: gradwatch.watch(support.monitor()), "keyword"),
        (lambda: gradwatch.watch(policy="percentle")(lambda: 0), "unknown policy 'percentle'; there are: percentile"),
        (lambda: gradwatch.watch(policy=90)(lambda: 0), "gradwatch.policies"),
        (lambda: gradwatch.watch(policy=policies.percentile)(lambda: 0), "percentile"),
        (lambda: gradwatch.watch(monitor="generator")(lambda: 0), "Monitor"),
        (lambda: gradwatch.watch(monitor=support.monitor(), policy=policies.observe())(lambda: 0), "policy"),
        (lambda: gradwatch.watch(monitor=support.monitor(), name="x", on_nonfinite="zero")(lambda: 0), "on_nonfinite"),
        (lambda: gradwatch.watch(optimizer="adam")(lambda: 0), "optimizer"),
        (lambda: gradwatch.watch(optimizer={})(lambda: 0), "empty"),
        (lambda: gradwatch.watch(optimizer={"g": "adam"})(lambda: 0), "optimizer"),
        (lambda: gradwatch.watch(optimizer={1: support.sgd()})(lambda: 0), "texts"),
        (lambda: gradwatch.watch(optimizer={"g": support.sgd()}, monitor=support.monitor())(lambda: 0), "monitor="),
        (lambda: gradwatch.watch(on_nonfinite="ignore")(lambda: 0), "propagate"),
        (lambda: gradwatch.watch(on_explosion="stop")(lambda: 0), "observe"),
        (lambda: gradwatch.watch(detectors="spyke")(lambda: 0), "detector"),
        (lambda: gradwatch.watch(on_alert=3)(lambda: 0), "callable"),
        (lambda: gradwatch.Monitor(policies.percentile(90)), "name"),
        (lambda: gradwatch.Monitor("a", "percentile(0.9)"), "write 90"),
        (lambda: gradwatch.Monitor(""), "name"),
        (lambda: gradwatch.KerasCallback(policies.percentile(90)), "Monitor"),
        (lambda: policies.percentile(101), "100"),
        (lambda: policies.percentile(-1), "-1"),
        (lambda: policies.percentile(90, window=-5), "window"),
        (lambda: policies.fixed(0.0), "clip_norm"),
        (lambda: policies.fixed(float("nan")), "clip_norm"),
    ],
)
def test_wrong_arguments_are_refused_at_once_with_what_to_do(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize("take", [lambda **o: gradwatch.watch(**o)(lambda: 0), gradwatch.KerasCallback])
def test_an_unknown_option_names_the_known_ones(take):
    with pytest.raises(ConfigError, match=r"'on_nan'.*on_nonfinite"):
        take(on_nan="zero")


def test_options_beside_a_monitor_are_refused_and_their_defaults_are_not():
    with pytest.raises(ConfigError, match="policy, on_nonfinite"):
        gradwatch.KerasCallback(support.monitor(), policy=policies.observe(), on_nonfinite="zero")
    gradwatch.KerasCallback(support.monitor(), policy=None, name=None, on_explosion="clip")


# -- what is no train step --------------------------------------------------------------------------------


class Trainer:
    def step(self):
        pass


async def train_async():
    pass


async def train_async_generator():
    yield


def train_generator():
    yield


class Generating:
    def __call__(self):
        yield


WATCHED = support.watch()(lambda: None)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Trainer, "class Trainer; decorate its method"),
        (lambda: train_async, "async def.*plain function"),
        (lambda: train_async_generator, "async def"),
        (lambda: train_generator, "generator function.*before each yield"),
        (lambda: functools.partial(train_generator), "generator function"),
        (lambda: Generating(), "generator function"),
        (lambda: support.model(), "the model 'sequential.*KerasCallback"),
        (lambda: keras.layers.Dense(1), "the model"),
        (lambda: support.sgd(), "watch decorates a train step"),
        (lambda: WATCHED, "watched already"),
        (lambda: tf.function(WATCHED), "watched already"),
        (lambda: functools.partial(WATCHED), "watched already"),
        (lambda: functools.wraps(WATCHED)(lambda: WATCHED()), "watched already"),
        (lambda: support.watch()(tf.function(lambda: None)), "watched already"),
        (lambda: Method().step, "watched already"),
        (lambda: vars(Method)["step"], "watched already"),
    ],
)
def test_what_is_no_train_step_is_refused_when_it_is_decorated(make, message):
    with pytest.raises(ConfigError, match=message):
        gradwatch.watch(make())


class Method:
    @support.watch()
    def step(self):
        pass


class Callable:
    def __init__(self):
        self.train = support.train_step(support.model(), support.sgd())

    def __call__(self, x, y):
        return self.train(x, y)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Callable(),
        lambda: Callable().__call__,
        lambda: functools.partial(Callable()),
    ],
    ids=["callable object", "bound method", "partial"],
)
def test_whatever_can_be_called_and_trains_is_watched(make):
    step = support.watch()(make())
    step(*DATA[0])
    assert step.monitor.snapshot().steps == 1


def test_a_notebook_cell_that_wraps_train_on_batch_and_runs_twice_is_told_what_helps():
    net = support.model()
    net.compile(support.sgd(), "mse", jit_compile=False)

    def cell():
        step = support.watch()(lambda x, y: net.train_on_batch(x, y))
        step(*DATA[0])
        return step.monitor.snapshot().steps

    assert cell() == 1
    with pytest.raises(NothingToWatch, match=r"model\.make_train_function\(force=True\)"):
        cell()
    net.make_train_function(force=True)
    assert cell() == 1


@pytest.mark.parametrize("mode", support.PLAIN_MODES.values())
def test_a_step_that_applies_nothing_is_refused(mode):
    net = support.model()
    step = support.MODES[mode](support.watch(), lambda x, y: support.loss_of(net, x, y))
    with pytest.raises(NothingToWatch, match="no gradient"):
        step(*DATA[0])


@pytest.mark.parametrize("mode", support.PLAIN_MODES.values())
def test_gradients_that_are_all_none_are_refused_before_anything_is_touched(mode):
    net, optimizer = support.model(), support.sgd()

    def step(x, y):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(x)
        grads = tape.gradient(loss, net.trainable_variables)
        optimizer.apply_gradients(zip(grads, net.trainable_variables))

    watched = support.MODES[mode](support.watch(), step)
    with pytest.raises(NothingToWatch, match="None"):
        watched(*DATA[0])
    assert watched.monitor.snapshot().steps == 0


def test_one_monitor_for_two_sets_of_variables_is_refused():
    small, other = support.model(), keras.Sequential([keras.layers.Input((5,)), keras.layers.Dense(1)])
    monitor = support.monitor()
    gradwatch.watch(monitor=monitor)(support.train_step(small, support.sgd()))(*DATA[0])
    step = gradwatch.watch(monitor=monitor)(support.train_step(other, support.sgd()))
    with pytest.raises(LayoutError, match="a monitor of its own"):
        step(*DATA[0])


def test_one_monitor_for_two_networks_of_equal_shapes_is_refused_too():
    a, b = support.model(), support.model()
    monitor = support.monitor()
    gradwatch.watch(monitor=monitor)(support.train_step(a, support.sgd()))(*DATA[0])
    step = gradwatch.watch(monitor=monitor)(support.train_step(b, support.sgd()))
    with pytest.raises(LayoutError, match="a monitor of its own"):
        step(*DATA[0])


def test_two_optimizers_in_one_step_need_a_monitor_each():
    a, b = support.model(), support.model(seed=1)
    first, second = support.train_step(a, support.sgd()), support.train_step(b, support.sgd())

    @support.watch()
    def step(x, y):
        return first(x, y) + second(x, y)

    with pytest.raises(LayoutError, match="optimizer="):
        step(*DATA[0])


# -- the optimizer option ---------------------------------------------------------------------------------


def test_optimizer_watches_that_one_alone():
    a, b = support.model(), support.model(seed=1)
    first, second = support.sgd(), support.sgd()

    @gradwatch.watch(optimizer=second, **support.monitor_options())
    @tf.function
    def step(x, y):
        return support.train_step(a, first)(x, y) + support.train_step(b, second)(x, y)

    support.run(step, DATA[:5])
    assert step.monitor.snapshot().steps == 5
    assert set(step.monitor.snapshot().layer_norms) == {v.path for v in b.trainable_variables}


def test_a_mapping_of_optimizers_gives_each_its_own_monitor():
    generator, discriminator = support.model(), support.model(seed=1)
    g_opt, d_opt = support.sgd(), keras.optimizers.Adam(0.01)

    @gradwatch.watch(optimizer={"g": g_opt, "d": d_opt}, **support.monitor_options())
    @tf.function
    def step(x, y):
        support.train_step(discriminator, d_opt)(x, y)
        support.train_step(generator, g_opt)(x, y)

    support.run(step, DATA[:5])
    assert set(step.monitors) == {"g", "d"}
    for name, net in (("g", generator), ("d", discriminator)):
        monitor = step.monitors[name]
        assert monitor.name == name
        assert monitor.snapshot().steps == 5
        assert set(monitor.snapshot().layer_norms) == {v.path for v in net.trainable_variables}


def test_being_blind_to_one_of_two_optimizers_is_an_error():
    generator, g_opt, d_opt = support.model(), support.sgd(), support.sgd()

    @gradwatch.watch(optimizer={"g": g_opt, "d": d_opt}, **support.monitor_options())
    def step(x, y):
        support.train_step(generator, g_opt)(x, y)

    with pytest.raises(NothingToWatch, match="'d'"):
        step(*DATA[0])


def test_a_discriminator_trained_five_times_a_step_counts_five_steps():
    generator, critic = support.model(), support.model(seed=1)
    g_opt, c_opt = support.sgd(), support.sgd()

    @gradwatch.watch(optimizer={"g": g_opt, "c": c_opt}, **support.monitor_options())
    @tf.function
    def step(x, y):
        for _ in range(5):
            support.train_step(critic, c_opt)(x, y)
        support.train_step(generator, g_opt)(x, y)

    support.run(step, DATA[:3])
    assert (step.monitors["g"].snapshot().steps, step.monitors["c"].snapshot().steps) == (3, 15)


def test_a_monitor_keeps_neither_its_model_nor_itself_alive():
    import gc
    import weakref

    net, optimizer = support.model(), support.sgd()
    step = support.watch()(support.train_step(net, optimizer))
    step(*DATA[0])
    alive = [weakref.ref(net), weakref.ref(step.monitor)]
    del net, optimizer, step
    gc.collect()
    assert [ref() for ref in alive] == [None, None]


def test_host_seconds_tell_what_the_host_side_took():
    net = support.model()
    step = support.watch()(support.train_step(net, support.sgd()))
    support.run(step, DATA[:3])
    assert 0 < step.monitor.host_seconds < 60


def test_host_seconds_tell_what_a_trace_took_and_that_a_step_takes_nothing():
    step = support.watch()(tf.function(support.train_step(support.model(), support.sgd())))
    step(*DATA[0])
    traced = step.monitor.host_seconds
    assert 0.01 < traced < 60
    support.run(step, DATA[:3])
    assert step.monitor.host_seconds == traced


def quadratic(rate, policy):
    """A step on |w|^2 / 2, whose gradient is w itself."""
    w, optimizer = tf.Variable([3.0, 4.0]), support.sgd(rate)

    @support.watch(policy, detectors=detectors.default())
    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(w * w) / 2.0
        optimizer.apply_gradients([(tape.gradient(loss, w), w)])
        return loss

    return step


@pytest.mark.parametrize(("rate", "alarms"), [(1e4, 1), (0.1, 0)])
def test_a_training_that_only_its_clipping_keeps_alive_raises_saturated_and_a_healthy_one_does_not(rate, alarms):
    step = quadratic(rate, policies.fixed(10.0))
    for _ in range(40):
        loss = step()
    shot = step.monitor.snapshot()
    assert shot.anomalies["saturated"] == alarms
    # 1e4 times a gradient of norm 10 throws the weights 1e5 far, where the gradient is 1e5 long
    assert (float(loss) > 1e6) == bool(alarms)


@pytest.mark.parametrize("kind", [classmethod, property])
def test_a_decorator_in_the_wrong_order_is_told_the_right_one(kind):
    with pytest.raises(ConfigError, match=f"put @{kind.__name__} above @gradwatch.watch"):
        gradwatch.watch(kind(lambda self: None))
