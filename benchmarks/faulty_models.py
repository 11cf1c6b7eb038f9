"""Tiny models for `diagnosis.py`: each is compiled once and trained again and again, with a fault or without.

A model's step takes its batch and three scalars that put a fault into it: `operation` adds a term to the loss whose
gradient is not finite, `gain` multiplies a hidden activation, `share` the loss of the second replica.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import gradwatch

Batch = tuple[np.ndarray, np.ndarray]
BATCH = 16
CLASSES = 5
POLICIES = ("percentile(90)", "observe()")


def bad_term(operation: Any, activation: Any) -> Any:
    """0 for operation 0, else a term whose gradient is NaN or Inf: sqrt(0), log(0), 0 / 0."""
    x = tf.reduce_mean(tf.cast(activation, tf.float32))
    none = x - tf.stop_gradient(x)
    return tf.switch_case(
        operation,
        [
            lambda: tf.constant(0.0),
            lambda: tf.sqrt(none * none),
            lambda: tf.math.log(tf.nn.relu(none)) * 0.01,
            lambda: none / tf.abs(none),
        ],
    )


@dataclass
class Model:
    """One model that is trained many times.

    Attributes:
      rate: a learning rate that suits it.
      warmup: steps over which the rate rises in a healthy run.
      batches: (rng, steps) -> that many batches of its task.
      variables: path -> variable.
      faults: those that can occur in it.
      saturates: whether its activations are bounded.
      watched: of the monitors, the one that is asked, for each policy.
    """

    name: str
    rate: float
    optimizers: list[Any]
    batches: Callable[[np.random.Generator, int], list[Batch]]
    variables: list[Any]
    faults: tuple[str, ...]
    steps: dict[str, Callable[..., Any]]
    warmup: int = 0
    saturates: bool = False
    initial: list[np.ndarray] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.initial = [v.numpy() for v in self.variables]

    def monitor(self, policy: str) -> Any:
        return next(iter(self.steps[policy].monitors.values()))

    def restart(self, rng: np.random.Generator, policy: str) -> None:
        """New weights of the same kind, a fresh optimizer, a monitor that has seen nothing."""
        for v, first in zip(self.variables, self.initial):
            v.assign(_again(rng, v.path, first))
        for optimizer in self.optimizers:
            for v in optimizer.variables:
                if "learning_rate" not in v.path:
                    v.assign(tf.fill(v.shape, 2.0**12) if "dynamic_scale" in v.path else tf.zeros(v.shape, v.dtype))
        for monitor in self.steps[policy].monitors.values():
            monitor.reset()

    def set_rate(self, rate: float) -> None:
        for optimizer in self.optimizers:
            optimizer.learning_rate = rate


def _again(rng: np.random.Generator, path: str, first: np.ndarray) -> np.ndarray:
    if "recurrent_kernel" in path:
        n = first.shape[0]
        parts = [np.linalg.qr(rng.normal(size=(n, n)))[0] for _ in range(first.shape[1] // n)]
        return np.concatenate(parts, 1).astype(np.float32) / np.sqrt(len(parts))
    return rng.permuted(first.reshape(-1)).reshape(first.shape)


# -- tasks ------------------------------------------------------------------------------------------------


def clusters(shape: tuple[int, ...], noise: float = 1.0) -> Callable[[np.random.Generator, int], list[Batch]]:
    """Points around the centre of their class."""
    centres = np.random.default_rng(1).normal(size=(CLASSES, *shape))

    def batches(rng: np.random.Generator, steps: int) -> list[Batch]:
        y = rng.integers(0, CLASSES, (steps, BATCH))
        x = centres[y] + noise * rng.normal(size=(steps, BATCH, *shape))
        return [(a.astype(np.float32), b.astype(np.int32)) for a, b in zip(x, y)]

    return batches


def tokens(vocabulary: int, length: int) -> Callable[[np.random.Generator, int], list[Batch]]:
    """Sequences whose class is that of the tokens they hold most of; rare tokens are rare."""
    classes = np.random.default_rng(2).integers(0, CLASSES, vocabulary)
    often = 1.0 / np.arange(1, vocabulary + 1) ** 0.7

    def batches(rng: np.random.Generator, steps: int) -> list[Batch]:
        y = rng.integers(0, CLASSES, (steps, BATCH))
        x = rng.choice(vocabulary, (steps, BATCH, length), p=often / often.sum())
        hint = np.stack([rng.choice(np.flatnonzero(classes == c), (steps, BATCH, length)) for c in range(CLASSES)])
        chosen = np.take_along_axis(hint, y[None, :, :, None], 0)[0]
        x = np.where(rng.random(x.shape) < 0.5, chosen, x)
        return [(a.astype(np.int32), b.astype(np.int32)) for a, b in zip(x, y)]

    return batches


def lines(shape: tuple[int, ...]) -> Callable[[np.random.Generator, int], list[Batch]]:
    """A number that is linear in the input, with noise."""
    weights = np.random.default_rng(3).normal(size=shape) / np.sqrt(np.prod(shape))

    def batches(rng: np.random.Generator, steps: int) -> list[Batch]:
        x = rng.normal(size=(steps, BATCH, *shape)).astype(np.float32)
        y = np.tensordot(x, weights, len(shape)) + 0.1 * rng.normal(size=(steps, BATCH))
        return [(a, b[:, None].astype(np.float32)) for a, b in zip(x, y)]

    return batches


# -- models -----------------------------------------------------------------------------------------------

L = keras.layers
INPUT = ("bad_batch", "nonfinite_input")
ALWAYS = ("learning_rate_too_high", "rate_jump", "loss_operation", "bad_start", "dead_run", "healthy")


def _supervised(
    name: str,
    inputs: Any,
    hidden: Callable[[Any], Any],
    optimizer: Any,
    rate: float,
    batches: Any,
    faults: tuple[str, ...],
    *,
    outputs: int = CLASSES,
    warmup: int = 0,
    saturates: bool = False,
    strategy: Any = None,
) -> Model:
    first = hidden(inputs)
    body = keras.Model(inputs, first)
    head = L.Dense(outputs, dtype="float32", name="head")
    head.build(first.shape)
    variables = body.trainable_variables + head.trainable_variables
    optimizer.build(variables)

    def one_step(x: Any, y: Any, operation: Any, gain: Any, share: Any) -> Any:
        with tf.GradientTape() as tape:
            z = body(x, training=True)
            z = z * tf.cast(gain, z.dtype)
            out = head(z)
            if outputs == 1:
                loss = tf.reduce_mean((out - y) ** 2)
            else:
                loss = tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(y, out, from_logits=True))
            loss = loss + bad_term(operation, z)
            total = loss
            if strategy is not None:
                number = tf.distribute.get_replica_context().replica_id_in_sync_group
                total = loss * tf.where(tf.equal(number, 1), share, 1.0) / strategy.num_replicas_in_sync
            scaled = optimizer.scale_loss(total) if hasattr(optimizer, "scale_loss") else total
        optimizer.apply(tape.gradient(scaled, variables), variables)
        return loss

    def step(x: Any, y: Any, operation: Any, gain: Any, share: Any) -> Any:
        if strategy is None:
            return one_step(x, y, operation, gain, share)
        losses = strategy.run(one_step, args=(x, y, operation, gain, share))
        return strategy.reduce(tf.distribute.ReduceOp.MEAN, losses, axis=None)

    def watched(policy: str) -> Any:
        def again(x: Any, y: Any, operation: Any, gain: Any, share: Any) -> Any:
            return step(x, y, operation, gain, share)

        return gradwatch.watch(tf.function(again), policy=policy, name=f"{name}-{policy}")

    steps = {policy: watched(policy) for policy in POLICIES}
    return Model(name, rate, [optimizer], batches, variables, faults, steps, warmup, saturates)


def dense() -> Model:
    inputs = L.Input((12,))

    def hidden(x: Any) -> Any:
        return L.Dense(24, "relu", name="two")(L.Dense(24, "relu", name="one")(x))

    faults = (*ALWAYS, *INPUT, "corrupt_labels", "vanishing")
    return _supervised("dense", inputs, hidden, keras.optimizers.SGD(0.03, 0.9), 0.03, clusters((12,)), faults)


def regression() -> Model:
    inputs = L.Input((12,))

    def hidden(x: Any) -> Any:
        for i in range(4):
            x = L.Dense(16, "tanh", name=f"layer_{i}")(x)
        return x

    faults = (*ALWAYS, *INPUT, "corrupt_labels", "vanishing")
    optimizer = keras.optimizers.Adam(3e-3)
    return _supervised("regression", inputs, hidden, optimizer, 3e-3, lines((12,)), faults, outputs=1, saturates=True)


def convolutional() -> Model:
    inputs = L.Input((8, 8, 1))

    def hidden(x: Any) -> Any:
        x = L.Conv2D(6, 3, activation="relu", name="conv_one")(x)
        x = L.Conv2D(8, 3, strides=2, activation="relu", name="conv_two")(x)
        return L.Flatten()(x)

    faults = (*ALWAYS, *INPUT, "corrupt_labels", "vanishing")
    optimizer = keras.optimizers.Adam(3e-3)
    return _supervised("convolutional", inputs, hidden, optimizer, 3e-3, clusters((8, 8, 1), 1.5), faults)


def recurrent() -> Model:
    inputs = L.Input((12, 4))

    def hidden(x: Any) -> Any:
        return L.SimpleRNN(16, activation="relu", unroll=True, name="rnn")(x)

    faults = (*ALWAYS, *INPUT, "corrupt_labels", "exploding_recurrence", "vanishing")
    optimizer = keras.optimizers.SGD(0.01, 0.9)
    return _supervised("recurrent", inputs, hidden, optimizer, 0.01, clusters((12, 4)), faults)


def gated() -> Model:
    inputs = L.Input((10, 4))

    def hidden(x: Any) -> Any:
        return L.SimpleRNN(12, activation="tanh", unroll=True, name="cell")(x)

    faults = (*ALWAYS, *INPUT, "corrupt_labels", "exploding_recurrence", "vanishing")
    optimizer = keras.optimizers.Adam(3e-3)
    return _supervised("gated", inputs, hidden, optimizer, 3e-3, clusters((10, 4)), faults, saturates=True)


def transformer() -> Model:
    inputs = L.Input((8,), dtype="int32")

    def hidden(x: Any) -> Any:
        x = L.Embedding(40, 16, name="token_embedding")(x)
        y = L.LayerNormalization(name="norm_one")(x)
        x = x + L.MultiHeadAttention(2, 8, name="attention")(y, y)
        y = L.LayerNormalization(name="norm_two")(x)
        x = x + L.Dense(16, name="down")(L.Dense(32, "gelu", name="up")(y))
        return L.GlobalAveragePooling1D()(x)

    faults = (*ALWAYS, "corrupt_labels", "warmup_too_short", "embedding_rows")
    optimizer = keras.optimizers.Adam(3e-3)
    return _supervised("transformer", inputs, hidden, optimizer, 3e-3, tokens(40, 8), faults, warmup=40)


def embedding() -> Model:
    inputs = L.Input((6,), dtype="int32")

    def hidden(x: Any) -> Any:
        x = L.Embedding(200, 8, name="items")(x)
        return L.Dense(16, "relu", name="mix")(L.Flatten()(x))

    faults = (*ALWAYS, "corrupt_labels", "embedding_rows")
    optimizer = keras.optimizers.Adam(5e-3)
    return _supervised("embedding", inputs, hidden, optimizer, 5e-3, tokens(200, 6), faults)


def mixed() -> Model:
    inputs = L.Input((12,))
    before = keras.mixed_precision.dtype_policy()
    keras.mixed_precision.set_dtype_policy("mixed_float16")
    try:

        def hidden(x: Any) -> Any:
            return L.Dense(24, "relu", name="two")(L.Dense(24, "relu", name="one")(x))

        optimizer = keras.mixed_precision.LossScaleOptimizer(keras.optimizers.Adam(3e-3), initial_scale=2.0**12)
        faults = ("learning_rate_too_high", "rate_jump", "bad_start", "dead_run", "healthy", "nonfinite_input")
        faults = (*faults, "corrupt_labels", "half_precision_overflow", "loss_scale")
        return _supervised("mixed", inputs, hidden, optimizer, 3e-3, clusters((12,)), faults)
    finally:
        keras.mixed_precision.set_dtype_policy(before)


def replicated(strategy: Any) -> Model:
    with strategy.scope():
        inputs = L.Input((12,))

        def hidden(x: Any) -> Any:
            return L.Dense(16, "tanh", name="one")(x)

        faults = ("learning_rate_too_high", "rate_jump", "healthy", "bad_batch", "corrupt_labels", "odd_replica")
        optimizer = keras.optimizers.SGD(0.05, 0.9)
        return _supervised("replicated", inputs, hidden, optimizer, 0.05, clusters((12,)), faults, strategy=strategy)


def gan() -> Model:
    """The discriminator is asked: the data go through it, and both have the rate."""
    generator = keras.Sequential([L.Input((6,)), L.Dense(16, "relu", name="g_one"), L.Dense(8, name="g_two")])
    judge = keras.Sequential([L.Input((8,)), L.Dense(16, "leaky_relu", name="d_one"), L.Dense(1, name="d_two")])
    mine, others = judge.trainable_variables, generator.trainable_variables
    every: list[Any] = []
    entropy = keras.losses.BinaryCrossentropy(from_logits=True)

    def watched(policy: str) -> Any:
        # an optimizer has one watcher, so each policy has a pair of its own
        optimizers = [keras.optimizers.Adam(1e-3, 0.5), keras.optimizers.Adam(1e-3, 0.5)]
        optimizers[0].build(mine)
        optimizers[1].build(others)
        every.extend(optimizers)

        def step(x: Any, y: Any, operation: Any, gain: Any, share: Any) -> Any:
            del share
            noise = tf.random.normal((BATCH, 6))
            with tf.GradientTape(persistent=True) as tape:
                made = generator(noise)
                real, fake = judge(x), judge(made) * gain
                loss = entropy(tf.ones_like(real), real) + entropy(tf.zeros_like(fake), fake)
                loss = loss + bad_term(operation, real)
                other = entropy(tf.ones_like(fake), fake)
            optimizers[0].apply(tape.gradient(loss, mine), mine)
            optimizers[1].apply(tape.gradient(other, others), others)
            return loss

        names = {f"gan-{policy}-d": optimizers[0], f"gan-{policy}-g": optimizers[1]}
        return gradwatch.watch(tf.function(step), policy=policy, optimizer=names)

    def batches(rng: np.random.Generator, steps: int) -> list[Batch]:
        x = 0.5 * rng.normal(size=(steps, BATCH, 8)) + np.array([1.0, -1.0] * 4)
        return [(a.astype(np.float32), np.zeros(BATCH, np.int32)) for a in x]

    faults = (*ALWAYS, *INPUT)
    steps = {policy: watched(policy) for policy in POLICIES}
    return Model("gan", 1e-3, every, batches, [*mine, *others], faults, steps)


def two_replicas() -> Any:
    """Two logical CPUs; ask for it before anything else of TensorFlow."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


MAKERS = {
    "dense": dense,
    "recurrent": recurrent,
    "transformer": transformer,
    "mixed": mixed,
    "embedding": embedding,
    "convolutional": convolutional,
    "gan": gan,
    "regression": regression,
    "gated": gated,
}
