"""The golden table of training loops: a name, a builder, and where it runs. Every property is checked for each.

To add a loop, write a builder and put it into `LOOPS`; `test_table.py` and `python tests/tf/table.py` pick it up.

A builder takes `clip`, to be called on each gradient list before it is applied: `clip(grads)`, or
`clip(grads, "name")` where several optimizers are watched. In a watched or an unwatched run it hands the
gradients back as they are. In the reference run it is `Explicit`, which notes the norm in float64 and clips with
tf.clip_by_global_norm. A loop whose optimizer hides the effective gradient (loss scaling, accumulation) builds
the plain equivalent for its reference: `clip.is_reference`.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import support
import tensorflow as tf
from support import CLIP, batches, loss_of, model, norm_of, sgd

import gradwatch
from gradwatch import policies
from gradwatch.tf import distribution

STEPS, SPIKE_AT = 8, 7
DATA = batches(STEPS, spike_at=SPIKE_AT, factor=30.0)

EAGER, FUNCTION, FUNCTION_OUTSIDE, JIT, JIT_OUTSIDE = support.MODES
ONE_OF_EACH = (EAGER, FUNCTION, JIT)
NOT_JIT = (EAGER, FUNCTION)


class Clip:
    """Leaves the gradients to the monitor."""

    is_reference = False

    def __call__(self, grads: Sequence[Any], name: str = "") -> list[Any]:
        return list(grads)


class Explicit(Clip):
    """Notes the norm and clips: the oracle, run eagerly."""

    is_reference = True

    def __init__(self) -> None:
        self.norms: dict[str, list[float]] = defaultdict(list)

    def __call__(self, grads: Sequence[Any], name: str = "") -> list[Any]:
        grads = [None if g is None else tf.identity(g) for g in grads]
        self.norms[name].append(norm_of(grads))
        return tf.clip_by_global_norm(grads, CLIP)[0]


@dataclasses.dataclass
class Training:
    """One fresh training: a step, what it is called with, and what it changes."""

    step: Callable[..., Any]
    things: Sequence[Any]  # models, optimizers, variables
    data: Sequence[tuple[Any, ...]] = tuple(DATA)
    optimizers: Mapping[str, Any] | None = None  # watched one by one
    monitor_clips: bool = False  # the step calls monitor.clip itself
    around: Callable[[Callable[..., Any]], Callable[..., Any]] | None = None  # strategy.run of the watched step


@dataclasses.dataclass(frozen=True)
class Loop:
    name: str
    build: Callable[[Clip], Training]
    modes: Sequence[str] = ONE_OF_EACH
    refused: tuple[type[Exception], str] | None = None  # (error class, part of its message)
    tolerance: float = 1e-5  # relative, of norms and parameters
    spike: bool = True  # whether the data holds one that must raise the alarm


def _tape(clip: Clip, net: Any, optimizer: Any, apply: Callable[..., Any] | None = None) -> Callable[..., Any]:
    def step(x, y):
        with tf.GradientTape() as tape:
            loss = optimizer.scale_loss(loss_of(net, x, y))
        grads = clip(tape.gradient(loss, net.trainable_variables))
        if apply is None:
            optimizer.apply_gradients(zip(grads, net.trainable_variables))
        else:
            apply(optimizer, grads, net.trainable_variables)
        return loss

    return step


def _with(make: Callable[[], Any], apply: Callable[..., Any] | None = None, **of_model: Any):
    """The plain tape step with another optimizer, another call of it, or another model."""

    def build(clip: Clip) -> Training:
        net, optimizer = model(**of_model), make()
        optimizer.build(net.trainable_variables)
        return Training(_tape(clip, net, optimizer, apply), [net, optimizer])

    return build


def _scaled(make: Callable[[], Any], plain: Callable[[], Any] = sgd, **of_model: Any):
    """An optimizer with loss scaling; its reference has none."""

    def build(clip: Clip) -> Training:
        net, optimizer = model(**of_model), plain() if clip.is_reference else make()
        optimizer.build(net.trainable_variables)
        return Training(_tape(clip, net, optimizer), [net])

    return build


def scaler() -> keras.optimizers.Optimizer:
    """A scale that float16 bears from the first step on, the spike included."""
    return keras.optimizers.LossScaleOptimizer(sgd(), initial_scale=16.0)


def _not_built(clip: Clip) -> Training:
    net, optimizer = model(), keras.optimizers.Adam(0.01)
    return Training(_tape(clip, net, optimizer), [net, optimizer])


# -- several optimizers, several tapes --------------------------------------------------------------------


def gan(clip: Clip) -> Training:
    generator, critic = model(0), model(1)
    optimizers = {"g": sgd(momentum=0.5), "d": keras.optimizers.Adam(0.01)}

    def step(x, y):
        with tf.GradientTape() as d_tape, tf.GradientTape() as g_tape:
            fake = tf.pad(generator(x), [[0, 0], [0, 4]])
            d_loss = tf.reduce_mean(tf.square(critic(x) - 1.0)) + tf.reduce_mean(tf.square(critic(fake)))
            g_loss = tf.reduce_mean(tf.square(critic(fake) - 1.0)) + loss_of(generator, x, y)
        g_grads = clip(g_tape.gradient(g_loss, generator.trainable_variables), "g")
        d_grads = clip(d_tape.gradient(d_loss, critic.trainable_variables), "d")
        optimizers["g"].apply_gradients(zip(g_grads, generator.trainable_variables))
        optimizers["d"].apply_gradients(zip(d_grads, critic.trainable_variables))
        return g_loss

    return Training(step, [generator, critic, *optimizers.values()], optimizers=optimizers)


def twice_a_step(clip: Clip) -> Training:
    net, optimizer = model(), sgd()
    inner = _tape(clip, net, optimizer)

    def step(x, y):
        inner(x, y)
        return inner(x, y)

    return Training(step, [net])


def gradient_penalty(clip: Clip) -> Training:
    net, optimizer = model(), sgd(0.001)

    def step(x, y):
        with tf.GradientTape() as tape:
            with tf.GradientTape() as inner:
                inner.watch(x)
                out = net(x)
            slope = tf.sqrt(tf.reduce_sum(tf.square(inner.gradient(out, x)), axis=1) + 1e-6)
            loss = tf.reduce_mean(tf.square(out - y)) + tf.reduce_mean(tf.square(slope - 1.0))
        grads = clip(tape.gradient(loss, net.trainable_variables, unconnected_gradients="zero"))
        optimizer.apply_gradients(zip(grads, net.trainable_variables))
        return loss

    return Training(step, [net])


def persistent_tape(clip: Clip) -> Training:
    net, optimizer = model(), sgd()

    def step(x, y):
        with tf.GradientTape(persistent=True) as tape:
            loss = loss_of(net, x, y)
            penalty = tf.add_n([tf.reduce_sum(tf.square(v)) for v in net.trainable_variables])
        grads = tape.gradient(loss, net.trainable_variables)
        others = tape.gradient(penalty, net.trainable_variables)
        grads = clip([a + 0.01 * b for a, b in zip(grads, others)])
        optimizer.apply_gradients(zip(grads, net.trainable_variables))
        return loss

    return Training(step, [net])


def jacobian(clip: Clip) -> Training:
    net, optimizer = model(), sgd()

    def step(x, y):
        with tf.GradientTape() as tape:
            each = tf.reduce_mean(tf.square(net(x) - y), axis=1)
        per_example = tape.jacobian(each, net.trainable_variables)
        grads = clip([tf.reduce_mean(j, axis=0) for j in per_example])
        optimizer.apply_gradients(zip(grads, net.trainable_variables))
        return tf.reduce_mean(each)

    return Training(step, [net])


def forward_mode(clip: Clip) -> Training:
    """A Jacobian-vector product in the loss: a forward accumulator inside the tape."""
    net, optimizer = model(), sgd(0.001)

    def step(x, y):
        with tf.GradientTape() as tape:
            with tf.autodiff.ForwardAccumulator(x, tf.ones_like(x)) as accumulator:
                out = net(x)
            slope = accumulator.jvp(out)
            loss = tf.reduce_mean(tf.square(out - y)) + 0.01 * tf.reduce_mean(tf.square(slope))
        grads = clip(tape.gradient(loss, net.trainable_variables, unconnected_gradients="zero"))
        optimizer.apply_gradients(zip(grads, net.trainable_variables))
        return loss

    return Training(step, [net])


# -- what optimizers do besides ---------------------------------------------------------------------------


def accumulation(clip: Clip) -> Training:
    """Four micro-batches are one step. The reference sums them by hand."""
    net = model()
    data = [batch for batch in DATA for _ in range(2)]
    if not clip.is_reference:
        optimizer = sgd(momentum=0.9, gradient_accumulation_steps=4)
        optimizer.build(net.trainable_variables)
        return Training(_tape(clip, net, optimizer), [net], data)
    optimizer, held = sgd(momentum=0.9), []

    def step(x, y):
        with tf.GradientTape() as tape:
            loss = loss_of(net, x, y)
        held.append(tape.gradient(loss, net.trainable_variables))
        if len(held) == 4:
            mean = clip([tf.add_n(gs) / 4.0 for gs in zip(*held)])
            optimizer.apply_gradients(zip(mean, net.trainable_variables))
            held.clear()

    return Training(step, [net], data)


def multi_optimizer(clip: Clip) -> Training:
    net = model()
    slow, fast = sgd(), keras.optimizers.Adam(0.01)
    optimizer = keras.optimizers.MultiOptimizer(lambda v: fast if "kernel" in v.path else slow)
    return Training(_tape(clip, net, optimizer), [net, optimizer])


def overwrite_with_gradient(clip: Clip) -> Training:
    """As float8 training does: the "gradient" of `scale` is its new value."""
    net, optimizer = model(), sgd()
    scale = keras.Variable(1.0, name="scale")
    scale.overwrite_with_gradient = True

    def step(x, y):
        with tf.GradientTape() as tape:
            loss = loss_of(net, x, y)
        grads = clip(tape.gradient(loss, net.trainable_variables))
        new_scale = tf.reduce_max(tf.abs(x)) * 100.0
        optimizer.apply_gradients(zip([*grads, new_scale], [*net.trainable_variables, scale]))
        return loss

    return Training(step, [net, scale])


def embedding(clip: Clip) -> Training:
    net = support.embedding_model(50, 3, 4)
    optimizer = sgd()
    rng = np.random.default_rng(0)
    data = [
        (
            tf.constant(rng.integers(0, 50, (8, 3))),
            tf.constant(rng.normal(size=(8, 1)) * (100.0 if i == SPIKE_AT else 1.0), tf.float32),
        )
        for i in range(1, STEPS + 1)
    ]
    return Training(_tape(clip, net, optimizer), [net], data)


def none_gradients(clip: Clip) -> Training:
    net, unused, optimizer = model(), keras.Variable(np.ones(3, np.float32), name="unused"), sgd()

    def step(x, y):
        with tf.GradientTape() as tape:
            loss = loss_of(net, x, y)
        variables = [unused, *net.trainable_variables]
        optimizer.apply_gradients(zip(clip(tape.gradient(loss, variables)), variables))
        return loss

    return Training(step, [net, unused])


def by_hand(clip: Clip) -> Training:
    """No optimizer at all. `clip` is monitor.clip in the watched run."""
    net = model()

    def step(x, y):
        with tf.GradientTape() as tape:
            loss = loss_of(net, x, y)
        grads = clip(tape.gradient(loss, net.trainable_variables))
        for g, v in zip(grads, net.trainable_variables):
            v.assign_sub(0.01 * g)
        return loss

    return Training(step, [net], monitor_clips=True)


class Linear(tf.Module):
    """No Keras model: plain tf.Variables."""

    def __init__(self) -> None:
        super().__init__()
        rng = np.random.default_rng(0)
        self.w = tf.Variable(rng.normal(size=(5, 1)), dtype=tf.float32, name="w")
        self.b = tf.Variable(0.0, name="b")

    def __call__(self, x: tf.Tensor, training: bool = True) -> tf.Tensor:
        return x @ self.w + self.b


def tf_module(clip: Clip) -> Training:
    net, optimizer = Linear(), sgd()
    return Training(_tape(clip, net, optimizer), [net])


# -- control flow and shapes ------------------------------------------------------------------------------


def autograph(clip: Clip) -> Training:
    """An `if` and a `for` over tensors around and after the update."""
    net, optimizer = model(), sgd()
    total = tf.Variable(0.0)

    def step(x, y):
        with tf.GradientTape() as tape:
            loss = loss_of(net, x, y)
            if loss > 1e-9:
                loss = loss * 2.0
        grads = clip(tape.gradient(loss, net.trainable_variables))
        optimizer.apply_gradients(zip(grads, net.trainable_variables))
        for i in tf.range(3):
            total.assign_add(tf.cast(i, tf.float32))
        return loss

    return Training(step, [net, total])


def loop_in_graph(clip: Clip) -> Training:
    """The update inside a `for` over a tensor: one call is several steps."""
    net, optimizer = model(), sgd()
    optimizer.build(net.trainable_variables)
    inner = _tape(clip, net, optimizer)

    def step(xs, ys):
        for i in tf.range(4):
            inner(xs[i], ys[i])

    stacked = [(tf.stack([x for x, _ in part]), tf.stack([y for _, y in part])) for part in (DATA[:4], DATA[4:])]
    return Training(step, [net], stacked)


def dataset_in_graph(clip: Clip) -> Training:
    """An epoch in one call: `for x, y in dataset` inside the function."""
    net, optimizer = model(), sgd()
    optimizer.build(net.trainable_variables)
    inner = _tape(clip, net, optimizer)

    def epoch(dataset):
        for x, y in dataset:
            inner(x, y)

    xs, ys = (np.concatenate([np.asarray(b[i]) for b in DATA]) for i in (0, 1))
    return Training(epoch, [net], [(tf.data.Dataset.from_tensor_slices((xs, ys)).batch(8),)])


def new_shapes(clip: Clip) -> Training:
    """Every batch has another size: the function is traced again for each."""
    net, optimizer = model(), sgd()
    data = [(x[: 8 - i % 3], y[: 8 - i % 3]) for i, (x, y) in enumerate(DATA)]
    return Training(_tape(clip, net, optimizer), [net], data)


def a_method(clip: Clip) -> Training:
    """The step is a method of an object that holds model and optimizer."""

    class Trainer:
        def __init__(self) -> None:
            self.net, self.optimizer = model(), sgd()

        def step(self, x, y):
            return _tape(clip, self.net, self.optimizer)(x, y)

    trainer = Trainer()
    return Training(trainer.step, [trainer.net])


def recurrent(clip: Clip) -> Training:
    """A while loop in the graph, and its gradient."""
    keras.utils.set_random_seed(0)
    net = keras.Sequential([keras.layers.Input((5, 1)), keras.layers.GRU(3), keras.layers.Dense(1)])
    optimizer = keras.optimizers.Adam(0.01)
    data = [(x[..., None], y) for x, y in DATA]
    return Training(_tape(clip, net, optimizer), [net], data)


def batch_norm_and_dropout(clip: Clip) -> Training:
    keras.utils.set_random_seed(0)
    net = keras.Sequential(
        [
            keras.layers.Input((5,)),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.2, seed=1),
            keras.layers.Dense(1),
        ]
    )
    return Training(_tape(clip, net, sgd()), [net])


# -- tf.distribute ----------------------------------------------------------------------------------------

_strategies: list[tf.distribute.Strategy] = []


def two_replicas() -> tf.distribute.Strategy:
    if not _strategies:
        _strategies.append(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]))
    return _strategies[0]


def _mirrored(decorated: str, make: Callable[[], Any] = sgd):
    """Two replicas, each with half of the batch. The reference is one device with the whole batch."""

    def build(clip: Clip) -> Training:
        if clip.is_reference:
            net, optimizer = model(), sgd()
            return Training(_tape(clip, net, optimizer), [net])
        strategy = two_replicas()
        with strategy.scope():
            net, optimizer = model(), make()
            optimizer.build(net.trainable_variables)

        def replica(x, y):
            with tf.GradientTape() as tape:
                loss = optimizer.scale_loss(loss_of(net, x, y) / strategy.num_replicas_in_sync)
            grads = tape.gradient(loss, net.trainable_variables)
            optimizer.apply_gradients(zip(grads, net.trainable_variables))
            return loss

        def on(step):
            return lambda x, y: strategy.run(step, args=(x, y))

        halves = [
            tuple(
                strategy.experimental_distribute_values_from_function(
                    lambda context, t=t: t[4 * context.replica_id_in_sync_group :][:4]
                )
                for t in batch
            )
            for batch in DATA
        ]
        if decorated == "replica step":
            return Training(replica, [net], halves, around=on)
        return Training(on(replica), [net], halves)

    return build


LOOPS: list[Loop] = [
    Loop("plain tape", _with(sgd), tuple(support.MODES)),
    Loop("optimizer not built before", _not_built, tuple(support.MODES)),
    Loop("apply(grads, variables)", _with(sgd, lambda o, g, v: o.apply(g, v)), NOT_JIT),
    Loop("apply(grads)", _with(sgd, lambda o, g, v: o.apply(g)), NOT_JIT),
    Loop("apply by keyword", _with(sgd, lambda o, g, v: o.apply(grads=g, trainable_variables=v)), NOT_JIT),
    Loop("apply_gradients of a list", _with(sgd, lambda o, g, v: o.apply_gradients(list(zip(g, v)))), NOT_JIT),
    Loop("apply of tuples", _with(sgd, lambda o, g, v: o.apply(tuple(g), tuple(v))), NOT_JIT),
    Loop("several optimizers (GAN)", gan, tuple(support.MODES)),
    Loop("two updates a step", twice_a_step),
    Loop("nested tapes (gradient penalty)", gradient_penalty),
    Loop("persistent tape", persistent_tape),
    Loop("jacobian", jacobian),
    Loop("forward mode", forward_mode),
    Loop("Adam", _with(lambda: keras.optimizers.Adam(0.01))),
    Loop("weight decay", _with(lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1))),
    Loop("EMA", _with(lambda: sgd(use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=3))),
    Loop("optimizer clips too", _with(lambda: sgd(global_clipnorm=0.2)), NOT_JIT),
    Loop("learning rate schedule", _with(lambda: sgd(keras.optimizers.schedules.CosineDecay(0.01, 10))), NOT_JIT),
    Loop("gradient accumulation", accumulation, spike=False),
    Loop("overwrite_with_gradient", overwrite_with_gradient),
    Loop("Embedding (IndexedSlices)", embedding),
    Loop("None gradients", none_gradients),
    Loop("update by hand, monitor.clip", by_hand, tuple(support.MODES)),
    Loop("tf.Module", tf_module),
    Loop("AutoGraph control flow", autograph, (FUNCTION, FUNCTION_OUTSIDE, JIT, JIT_OUTSIDE)),
    Loop("for in the graph", loop_in_graph, (FUNCTION, JIT), spike=False),
    Loop("dataset in the graph", dataset_in_graph, (FUNCTION, FUNCTION_OUTSIDE), spike=False),
    Loop("new shapes", new_shapes),
    Loop("a method", a_method),
    Loop("recurrent", recurrent, tolerance=1e-4),
    Loop("batch norm and dropout", batch_norm_and_dropout, NOT_JIT, spike=False),
    Loop("float64", _with(sgd, dtype="float64"), NOT_JIT),
    Loop("bfloat16", _with(sgd, policy="mixed_bfloat16"), tolerance=5e-3),
    Loop("loss_scale_factor", _scaled(lambda: sgd(loss_scale_factor=256.0))),
    Loop("LossScaleOptimizer", _scaled(lambda: keras.optimizers.LossScaleOptimizer(sgd(), initial_scale=256.0))),
    Loop(
        "float16, LossScaleOptimizer",
        _scaled(scaler, policy="mixed_float16"),
        tolerance=5e-3,
    ),
    Loop("mirrored, decorated replica step", _mirrored("replica step"), (FUNCTION,)),
    Loop("mirrored, decorated strategy.run", _mirrored("strategy.run"), (FUNCTION, FUNCTION_OUTSIDE)),
    Loop(
        "mirrored, LossScaleOptimizer",
        _mirrored("replica step", scaler),
        (FUNCTION,),
    ),
]
if hasattr(keras.optimizers, "MultiOptimizer"):
    LOOPS.append(Loop("MultiOptimizer", multi_optimizer))


def _divides_the_loss() -> bool:
    return distribution.keras_version() >= (3, 8)


# -- model.fit --------------------------------------------------------------------------------------------

FIT = {
    "fit": {"jit_compile": False},
    "fit, run_eagerly": {"run_eagerly": True},
    "fit, jit_compile": {"jit_compile": True},
    "fit, steps_per_execution": {"steps_per_execution": 4, "jit_compile": False},
}


class Overridden(keras.Sequential):
    """DCGAN's way: its own train_step, with a tape."""

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=True))
        grads = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(grads, self.trainable_variables))
        return {"loss": loss}


class Fit(Training):
    """Trains with model.fit; the reference is the tape step."""

    def __init__(self, clip: Clip, optimizer: Any, kind: type = keras.Sequential, scope: Any = None, **of_model: Any):
        with scope() if scope is not None and not clip.is_reference else contextlib.nullcontext():
            self.net = model(kind=kind, **of_model)
            self.optimizer = sgd() if clip.is_reference else optimizer()
        super().__init__(_tape(clip, self.net, self.optimizer), [self.net])

    def run(self, mode: str, watch: Callable[..., Any]) -> Any:
        def mean_squared(y, out):
            self.step(y, out)  # counts
            return tf.reduce_mean(tf.square(tf.cast(out, tf.float32) - y), axis=-1)

        monitor = getattr(watch(lambda: None), "monitor", None)
        self.net.compile(optimizer=self.optimizer, loss=mean_squared, **FIT[mode])
        x, y = (np.concatenate([np.asarray(batch[i]) for batch in self.data]) for i in (0, 1))
        callbacks = [] if monitor is None else [gradwatch.KerasCallback(monitor)]
        self.net.fit(x, y, batch_size=8, shuffle=False, verbose=0, callbacks=callbacks)


def _fit(make: Callable[[], Any] = sgd, **options: Any):
    return lambda clip: Fit(clip, make, **options)


LOOPS += [
    Loop("built-in train_step", _fit(), tuple(FIT)),
    Loop("overridden train_step", _fit(kind=Overridden), tuple(FIT)),
    Loop("loss_scale_factor in fit", _fit(lambda: sgd(loss_scale_factor=64.0)), ("fit",)),
    Loop("mixed_float16 in fit", _fit(scaler, policy="mixed_float16"), ("fit", "fit, jit_compile"), tolerance=5e-3),
    Loop("mixed_bfloat16 in fit", _fit(policy="mixed_bfloat16"), ("fit",), tolerance=5e-3),
    # the fit of Keras 3.5 adds the losses of the replicas up: there the effective gradient is not that of one device
    *([Loop("mirrored fit", _fit(scope=lambda: two_replicas().scope()), ("fit",))] if _divides_the_loss() else []),
]


# -- running them -----------------------------------------------------------------------------------------


@dataclasses.dataclass
class Record:
    """What one run left behind."""

    weights: list[np.ndarray]
    monitors: dict[str, gradwatch.Monitor]
    calls: int  # of the step in Python: each call when eager, each trace in a graph
    types: list[str] | None  # of the ops of the step's graph


def reference(loop: Loop) -> tuple[list[np.ndarray], dict[str, list[float]]]:
    """(final weights, norms by monitor) of the explicit tf.clip_by_global_norm."""
    clip = Explicit()
    training = loop.build(clip)
    for args in training.data:
        training.step(*args)
    return support.weights(*training.things), dict(clip.norms)


def run(loop: Loop, mode: str, policy: policies.Policy | None, **options: Any) -> Record:
    """The loop in one mode, watched with `policy`, or unwatched for None; `options` are those of the monitors."""
    options = support.monitor_options(policy, **options)
    single = gradwatch.Monitor("loop", **options)
    training = loop.build(Clip())
    if training.monitor_clips and policy is not None:
        training = loop.build(lambda grads: single.clip(grads)[0])
    calls, monitors = [], {"": single}

    def watch(step):
        if policy is None or training.monitor_clips:
            return step
        if training.optimizers is None:
            return gradwatch.watch(monitor=single)(step)
        watched = gradwatch.watch(optimizer=training.optimizers, **options)(step)
        monitors.clear()
        monitors.update(watched.monitors)
        return watched

    def step(*args):
        calls.append(1)
        return None if isinstance(training, Fit) else inner(*args)

    inner = training.step
    if training.around is not None:
        outer = training.around(watch(step))
        ran = support.MODES[mode](lambda f: f, outer)
        support.run(ran, training.data)
    elif isinstance(training, Fit):
        training.step = step
        ran = training.run(mode, watch)
    else:
        ran = support.MODES[mode](watch, step)
        support.run(ran, training.data)
    concrete = getattr(ran, "get_concrete_function", None)
    types = support.op_types(concrete(*training.data[-1])) if concrete else None
    return Record(support.weights(*training.things), monitors if policy else {}, len(calls), types)
