"""What the TensorFlow tests share: a tiny model, its data, an explicit reference, and the modes of a step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import gradwatch
from gradwatch import detectors, policies

#: How a step may be compiled, and on which side of the decorator: mode -> (watch, step) -> watched step.
MODES: dict[str, Callable[[Callable[..., Any], Callable[..., Any]], Any]] = {
    "eager": lambda watch, step: watch(step),
    "function inside": lambda watch, step: watch(tf.function(step)),
    "function outside": lambda watch, step: tf.function(watch(step)),
    "jit inside": lambda watch, step: watch(tf.function(step, jit_compile=True)),
    "jit outside": lambda watch, step: tf.function(watch(step), jit_compile=True),
}

#: The three that differ in what they execute.
PLAIN_MODES = {"eager": "eager", "function": "function inside", "jit": "jit inside"}

CLIP = 0.5  # the clip_norm of most tests: about a third of the norms of `batches`


def two_logical_cpus() -> None:
    """Before TensorFlow starts up: MirroredStrategy then has two replicas on any machine."""
    physical = tf.config.list_physical_devices("CPU")[0]
    if len(tf.config.get_logical_device_configuration(physical) or ()) < 2:
        tf.config.set_logical_device_configuration(physical, [tf.config.LogicalDeviceConfiguration()] * 2)


def batches(
    steps: int = 8, *, spike_at: int | None = None, factor: float = 1e3, seed: int = 0
) -> list[tuple[tf.Tensor, tf.Tensor]]:
    """`steps` batches (x [8, 5], y [8, 1]); number `spike_at`, counted from 1, is `factor` times larger."""
    rng = np.random.default_rng(seed)
    out = []
    for step in range(1, steps + 1):
        x, y = rng.normal(size=(8, 5)), rng.normal(size=(8, 1))
        size = factor if step == spike_at else 1.0
        out.append((tf.constant(x * size, tf.float32), tf.constant(y * size, tf.float32)))
    return out


def model(
    seed: int = 0, *, kind: type[keras.Sequential] = keras.Sequential, policy: str = "float32", **dense: Any
) -> keras.Model:
    """The quickstart's: Dense(10, relu), Dense(1). The same weights for the same seed.

    `policy` is Keras' global dtype policy while it is made, as users set it; `dense` are options of the layers.
    """
    keras.utils.set_random_seed(seed)
    keras.mixed_precision.set_dtype_policy(policy)
    try:
        return kind(
            [
                keras.layers.Input((5,)),
                keras.layers.Dense(10, activation="relu", **dense),
                keras.layers.Dense(1, **dense),
            ]
        )
    finally:
        keras.mixed_precision.set_dtype_policy("float32")


def embedding_model(vocabulary: int, length: int, width: int) -> keras.Model:
    """Rows of an Embedding into Dense(1): its gradient is IndexedSlices."""
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.layers.Input((length,), dtype="int32"),
            keras.layers.Embedding(vocabulary, width),
            keras.layers.Flatten(),
            keras.layers.Dense(1),
        ]
    )


def loss_of(net: Any, x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    return tf.reduce_mean(tf.square(tf.cast(net(x, training=True), tf.float32) - y))


def train_step(net: Any, optimizer: Any, clip_norm: float | None = None) -> Callable[..., Any]:
    """The usual tape step; with `clip_norm` the explicit reference through tf.clip_by_global_norm."""

    def step(x, y):
        with tf.GradientTape() as tape:
            loss = loss_of(net, x, y)
        grads = tape.gradient(loss, net.trainable_variables)
        if clip_norm is not None:
            grads, _ = tf.clip_by_global_norm(grads, clip_norm)
        optimizer.apply_gradients(zip(grads, net.trainable_variables))
        return loss

    return step


def one_variable_step(loss: Callable[..., Any]) -> Callable[..., Any]:
    """A tape step over `loss(w, *args, **keywords)`, which hardly moves the one variable w."""
    w, optimizer = tf.Variable(1.0, name="w"), sgd(1e-12)
    optimizer.build([w])

    def step(*args, **keywords):
        with tf.GradientTape() as tape:
            value = loss(w, *args, **keywords)
        optimizer.apply_gradients([(tape.gradient(value, w), w)])
        return value

    return step


def sgd(learning_rate: float = 0.01, **options: Any) -> keras.optimizers.Optimizer:
    return keras.optimizers.SGD(learning_rate, **options)


def multi(inner: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """A MultiOptimizer that gives every variable to `inner`."""
    return keras.optimizers.MultiOptimizer(lambda variable: inner)


def watch(policy: Any = None, **options: Any) -> Callable[..., Any]:
    """gradwatch.watch with `fixed(CLIP)` and two quick detectors."""
    return gradwatch.watch(**monitor_options(policy, **options))


def monitor(policy: Any = None, **options: Any) -> gradwatch.Monitor:
    """A Monitor with `fixed(CLIP)` and two quick detectors."""
    return gradwatch.Monitor(**monitor_options(policy, **options))


def monitor_options(policy: Any = None, **options: Any) -> dict[str, Any]:
    return {
        "policy": policies.fixed(CLIP) if policy is None else policy,
        "detectors": (detectors.spike(warmup_steps=4), detectors.nonfinite()),
        **options,
    }


def run(step: Callable[..., Any], data: Iterable[tuple[Any, ...]]) -> Any:
    """All batches, one after the other; the last result."""
    result = None
    for batch in data:
        result = step(*batch)
    return result


def weights(*things: Any) -> list[np.ndarray]:
    """Values of models, optimizers or single variables, as arrays."""
    out = []
    for thing in things:
        held = getattr(thing, "variables", None)
        out += [np.array(tf.convert_to_tensor(v)) for v in (held if held is not None else [thing])]
    return out


def assert_same(a: list[np.ndarray], b: list[np.ndarray]) -> None:
    """Bit for bit, NaN included."""
    assert len(a) == len(b)
    for x, y in zip(a, b):
        assert x.dtype == y.dtype
        assert x.tobytes() == y.tobytes(), f"differs by {np.max(np.abs(x - y))}"


def assert_close(a: list[np.ndarray], b: list[np.ndarray], rtol: float = 1e-5, atol: float = 1e-6) -> None:
    assert len(a) == len(b)
    for x, y in zip(a, b):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=atol)


def norm_of(grads: Iterable[Any]) -> float:
    """Global norm in float64 numpy: the oracle."""
    total = 0.0
    for g in grads:
        if g is not None:
            values = g.values if isinstance(g, tf.IndexedSlices) else g
            total += float(np.sum(np.square(np.abs(np.asarray(values).astype(np.float64)))))
    return float(np.sqrt(total))


#: Ops that call Python or run on the host only: none may be in a watched step.
HOST_OPS = {
    "PyFunc",
    "PyFuncStateless",
    "EagerPyFunc",
    "Print",
    "PrintV2",
    "Assert",
    "CheckNumerics",
    "CheckNumericsV2",
    "WriteFile",
    "StringFormat",
    "WriteSummary",
    "WriteScalarSummary",
    "HostConst",
    "XlaHostCompute",
    "XlaSendToHost",
    "XlaRecvFromHost",
    "OutfeedEnqueue",
    "InfeedDequeue",
}


def op_types(concrete: Any) -> list[str]:
    """Types of all ops of a concrete function, those of the functions it calls included."""
    graph = concrete.graph.as_graph_def(add_shapes=False)
    nodes = list(graph.node)
    for function in graph.library.function:
        nodes += function.node_def
    return [node.op for node in nodes]


def devices(concrete: Any) -> set[str]:
    graph = concrete.graph.as_graph_def(add_shapes=False)
    return {node.device for node in graph.node}
