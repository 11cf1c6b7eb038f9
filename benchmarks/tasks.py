"""Small training tasks that need no download, for many runs at once.

Every parameter has the runs as its first axis, so one graph trains all methods side by side: same data, same start,
another clipping rule each. Run k's gradient depends on run k's parameters only.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

Params = list[Any]
Batch = tuple[np.ndarray, ...]


class Optimizer(NamedTuple):
    """How a task's weights move.

    Attributes:
      linear: SGD; else Adam.
      momentum: of SGD.
      nesterov: whether SGD looks ahead.
      decay: decoupled weight decay, a share of the learning rate.
    """

    linear: bool = True
    momentum: float = 0.0
    nesterov: bool = False
    decay: float = 0.0


OPTIMIZERS: Mapping[str, Optimizer] = {
    "sgd": Optimizer(momentum=0.9),
    "sgd-plain": Optimizer(),
    "sgd-nesterov": Optimizer(momentum=0.9, nesterov=True),
    "sgd-decay": Optimizer(momentum=0.9, decay=5e-4),
    "adam": Optimizer(linear=False),
    "adamw": Optimizer(linear=False, decay=0.01),
}


def _constant(part: float) -> float:
    return 1.0


class Task(NamedTuple):
    """One training task.

    Attributes:
      text: what it is.
      optimizer: one of OPTIMIZERS.
      rates: learning rates, ascending.
      init: rng -> parameters of one run.
      batch: (rng, step) -> arrays of one batch.
      loss: (parameters with the runs as first axis, *batch) -> loss of each run, shape [runs].
      score: the same, for what the task is judged by where that is not its loss.
      schedule: share of the run that is behind, in [0, 1) -> factor of the learning rate.
    """

    text: str
    optimizer: str
    rates: tuple[float, ...]
    init: Callable[[np.random.Generator], list[np.ndarray]]
    batch: Callable[[np.random.Generator, int], Batch]
    loss: Callable[..., Any]
    score: Callable[..., Any] | None = None
    schedule: Callable[[float], float] = _constant


#: Characters that are told apart.
VOCABULARY = 64


# -- data -------------------------------------------------------------------------------------------------


@cache
def topics() -> tuple[np.ndarray, int]:
    """The help texts that ship with CPython, about 0.7 MB, as small integers, and how many there are."""
    from pydoc_data.topics import topics as texts

    return _encoded("\n".join(texts[name] for name in sorted(texts)))


@cache
def sources() -> tuple[np.ndarray, int]:
    """The standard library's own modules, the first 2 MB by name."""
    folder = Path(os.__file__).parent
    text, size = [], 0
    for path in sorted(folder.glob("*.py")):
        text.append(path.read_text(encoding="utf-8", errors="ignore"))
        size += len(text[-1])
        if size > 2_000_000:
            break
    return _encoded("\n".join(text))


def _encoded(text: str, vocabulary: int = VOCABULARY) -> tuple[np.ndarray, int]:
    """The most frequent characters by rank; the rest is 0."""
    raw = np.frombuffer(text.encode("latin-1", "replace"), np.uint8)
    order = np.argsort(-np.bincount(raw, minlength=256), kind="stable")[: vocabulary - 1]
    code = np.zeros(256, np.int32)
    code[order] = np.arange(1, vocabulary)
    return code[raw], vocabulary


def _windows(data: Callable[[], tuple[np.ndarray, int]], size: int, length: int) -> Callable[..., Batch]:
    def batch(rng: np.random.Generator, step: int) -> Batch:
        text = data()[0]
        at = rng.integers(0, len(text) - length - 1, size)
        rows = text[at[:, None] + np.arange(length + 1)]
        return rows[:, :-1], rows[:, 1:]

    return batch


# -- pieces of models -------------------------------------------------------------------------------------


def _glorot(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    limit = np.sqrt(6 / (rows + columns))
    return rng.uniform(-limit, limit, (rows, columns))


def _orthogonal(rng: np.random.Generator, n: int, gain: float) -> np.ndarray:
    q, r = np.linalg.qr(rng.normal(size=(n, n)))
    return gain * q * np.sign(np.diag(r))


def _linear(x: Any, w: Any, b: Any) -> Any:
    """x [runs, n, inputs], w [runs, inputs, outputs], b [runs, outputs]."""
    return tf.matmul(x, w) + b[:, None, :]


def _mlp(p: Params, x: Any) -> Any:
    """Dense layers with ReLU between them; x [batch, inputs], the same for all runs: [runs, batch, outputs]."""
    h = tf.broadcast_to(x[None], [tf.shape(p[0])[0], *x.shape])
    for i in range(0, len(p), 2):
        h = _linear(h, p[i], p[i + 1])
        if i < len(p) - 2:
            h = tf.nn.relu(h)
    return h


def _look_up(x: Any, w: Any) -> Any:
    """Rows of w [runs, vocabulary, width] for the integers x [batch, length]: [length, runs, batch, width]."""
    return tf.transpose(tf.gather(w, tf.transpose(x), axis=1), [1, 0, 2, 3])


def _rnn(inputs: Any, w: Any, activation: str) -> Any:
    """h_t = activation(inputs_t + h_{t-1} w), h_0 = 0: all h, shape [runs, length * batch, units].

    inputs [length, runs, batch, units], w [runs, units, units]. The gradient is written by hand: back-propagation
    through time with one matrix product for w at the end instead of one a step, which takes a fifth of the time.
    """

    @tf.custom_gradient
    def run(inputs: Any, w: Any) -> Any:
        states = [tf.zeros_like(inputs[0])]
        for x in tf.unstack(inputs):
            h = x + tf.matmul(states[-1], w)
            states.append(tf.nn.relu(h) if activation == "relu" else tf.tanh(h))

        def gradient(dy: Any) -> tuple[Any, Any]:
            deltas: list[Any] = []
            for h, d in zip(reversed(states[1:]), reversed(tf.split(dy, len(states) - 1, 1))):
                if deltas:
                    d += tf.matmul(deltas[-1], w, transpose_b=True)
                slope = tf.cast(h > 0, h.dtype) if activation == "relu" else 1 - tf.square(h)
                deltas.append(d * slope)
            deltas.reverse()
            return tf.stack(deltas), tf.matmul(tf.concat(states[:-1], 1), tf.concat(deltas, 1), transpose_a=True)

        return tf.concat(states[1:], 1), gradient

    return run(inputs, w)


def _gru(inputs: Any, w: Any) -> Any:
    """Cho et al. 2014, reset after the product: all h, shape [runs, length * batch, units].

    inputs [length, runs, batch, 3 units] and w [runs, units, 3 units] hold update, reset and candidate in this order.
    The gradient is written by hand, as in `_rnn`.
    """

    @tf.custom_gradient
    def run(inputs: Any, w: Any) -> Any:
        units = w.shape[1]
        states, steps = [tf.zeros_like(inputs[0])[..., :units]], []
        for x in tf.unstack(inputs):
            h = states[-1]
            product = tf.matmul(h, w)
            gates = tf.sigmoid(x[..., : 2 * units] + product[..., : 2 * units])
            z, r, inner = gates[..., :units], gates[..., units:], product[..., 2 * units :]
            c = tf.tanh(x[..., 2 * units :] + r * inner)
            steps.append((z, r, inner, c))
            states.append(z * h + (1 - z) * c)

        def gradient(dy: Any) -> tuple[Any, Any]:
            d, of_x, of_product = tf.zeros_like(states[0]), [], []
            for h, (z, r, inner, c), dh in zip(
                reversed(states[:-1]), reversed(steps), reversed(tf.split(dy, len(steps), 1))
            ):
                d += dh
                dz, dc = d * (h - c) * z * (1 - z), d * (1 - z) * (1 - tf.square(c))
                dr = dc * inner * r * (1 - r)
                of_x.append(tf.concat([dz, dr, dc], -1))
                of_product.append(tf.concat([dz, dr, dc * r], -1))
                d = d * z + tf.matmul(of_product[-1], w, transpose_b=True)
            of_x.reverse(), of_product.reverse()
            before = tf.concat(states[:-1], 1)
            return tf.stack(of_x), tf.matmul(before, tf.concat(of_product, 1), transpose_a=True)

        return tf.concat(states[1:], 1), gradient

    return run(inputs, w)


def _crossentropy(logits: Any, y: Any) -> Any:
    """logits [..., classes] with the runs as first axis, y without: mean over all but the runs."""
    labels = tf.broadcast_to(y[None], tf.shape(logits)[:-1])
    each = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
    return tf.reduce_mean(each, axis=list(range(1, each.shape.rank)))


# -- the tasks --------------------------------------------------------------------------------------------


def _char_rnn(optimizer: str, rates: tuple[float, ...]) -> Task:
    units, length, size, vocabulary = 48, 50, 16, VOCABULARY

    def init(rng: np.random.Generator) -> list[np.ndarray]:
        recurrent = _orthogonal(rng, units, 1.5)
        first, last = _glorot(rng, vocabulary, units), _glorot(rng, units, vocabulary)
        return [first, recurrent, np.zeros(units), last, np.zeros(vocabulary)]

    def loss(p: Params, x: Any, y: Any) -> Any:
        wx, wh, b, wo, bo = p
        logits = _linear(_rnn(_look_up(x, wx) + b[:, None, :], wh, "tanh"), wo, bo)
        return _crossentropy(logits, tf.reshape(tf.transpose(y), [-1]))

    text = f"character RNN, tanh, {units} units, recurrent start orthogonal x 1.5, {length} steps, batch {size}"
    return Task(text, optimizer, rates, init, _windows(topics, size, length), loss)


def _char_gru() -> Task:
    units, length, size, vocabulary = 48, 32, 16, VOCABULARY

    def init(rng: np.random.Generator) -> list[np.ndarray]:
        recurrent = np.concatenate([_orthogonal(rng, units, 1.0) for _ in range(3)], 1)
        first, last = _glorot(rng, vocabulary, 3 * units), _glorot(rng, units, vocabulary)
        return [first, recurrent, np.zeros(3 * units), last, np.zeros(vocabulary)]

    def loss(p: Params, x: Any, y: Any) -> Any:
        wx, wh, b, wo, bo = p
        logits = _linear(_gru(_look_up(x, wx) + b[:, None, :], wh), wo, bo)
        return _crossentropy(logits, tf.reshape(tf.transpose(y), [-1]))

    text = f"character GRU, {units} units, {length} steps, batch {size}"
    return Task(text, "adam", (0.001, 0.005, 0.02, 0.1), init, _windows(topics, size, length), loss)


def _adding(
    activation: str,
    optimizer: str,
    rates: tuple[float, ...],
    *,
    units: int = 32,
    length: int = 100,
    multiplies: bool = False,
) -> Task:
    """Hochreiter and Schmidhuber 1997: the sum, or the product, of two marked numbers among many."""
    size = 16

    def init(rng: np.random.Generator) -> list[np.ndarray]:
        # ReLU from the identity (Le, Jaitly, Hinton 2015)
        recurrent = np.eye(units) if activation == "relu" else _orthogonal(rng, units, 1.2)
        return [_glorot(rng, 2, units), recurrent, np.zeros(units), _glorot(rng, units, 1), np.zeros(1)]

    def batch(rng: np.random.Generator, step: int) -> Batch:
        numbers, marks = rng.random((size, length)), np.zeros((size, length))
        rows = np.arange(size)
        marks[rows, rng.integers(0, length // 2, size)] = 1
        marks[rows, rng.integers(length // 2, length, size)] = 1
        y = np.where(marks > 0, numbers, 1.0).prod(1) if multiplies else (numbers * marks).sum(1)
        return np.stack([numbers, marks], -1).astype(np.float32), y.astype(np.float32)

    def loss(p: Params, x: Any, y: Any) -> Any:
        wx, wh, b, wo, bo = p
        inputs = tf.einsum("bti,kih->tkbh", x, wx) + b[:, None, :]
        last = _rnn(inputs, wh, activation)[:, -size:]
        return tf.reduce_mean(tf.square(_linear(last, wo, bo)[..., 0] - y), 1)

    kind = "multiplication" if multiplies else "adding"
    text = f"{kind} problem, {length} steps, {activation} RNN, {units} units, batch {size}"
    return Task(text, optimizer, rates, init, batch, loss)


@cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    """8 x 8 pictures of digits: drawn from strokes by us, shifted, thickened and noisy."""
    strokes = {
        0: "0110 1001 1001 1001 1001 0110",
        1: "0010 0110 0010 0010 0010 0111",
        2: "0110 1001 0001 0010 0100 1111",
        3: "1110 0001 0110 0001 0001 1110",
        4: "1001 1001 1111 0001 0001 0001",
        5: "1111 1000 1110 0001 0001 1110",
        6: "0110 1000 1110 1001 1001 0110",
        7: "1111 0001 0010 0010 0100 0100",
        8: "0110 1001 0110 1001 1001 0110",
        9: "0110 1001 1001 0111 0001 0110",
    }
    rng = np.random.default_rng(12345)
    x, y = np.zeros((4000, 8, 8)), rng.integers(0, 10, 4000)
    for i, digit in enumerate(y):
        shape = np.array([[float(c) for c in row] for row in strokes[int(digit)].split()])
        top, left = rng.integers(0, 3), rng.integers(0, 5)
        x[i, top : top + 6, left : left + 4] = shape * rng.uniform(0.5, 1.0)
    x += rng.normal(0, 0.25, x.shape)
    return x.reshape(-1, 64).astype(np.float32), y.astype(np.int32)


def _corrupted_digits() -> Task:
    size = 64

    def init(rng: np.random.Generator) -> list[np.ndarray]:
        widths, p = (64, 128, 128, 10), []
        for a, b in pairwise(widths):
            p += [rng.normal(0, np.sqrt(2 / a), (a, b)), np.zeros(b)]
        return p

    def batch(rng: np.random.Generator, step: int) -> Batch:
        x, y = _digits()
        rows = rng.integers(0, len(x), size)
        clean_x, clean_y = x[rows], y[rows]
        x, y = clean_x.copy(), clean_y
        if step > 100:
            kind = rng.random()
            if kind < 0.01:
                x *= 1e4
            elif kind < 0.012:
                x[0] = np.nan
            elif step % 500 < 5:
                y = rng.permutation(y)
        return x, y, clean_x, clean_y

    def loss(p: Params, x: Any, y: Any, clean_x: Any, clean_y: Any) -> Any:
        return _crossentropy(_mlp(p, x), y)

    def score(p: Params, x: Any, y: Any, clean_x: Any, clean_y: Any) -> Any:
        # on what the batch was before it was corrupted: a spoilt batch says nothing about the weights
        return loss(p, clean_x, clean_y, clean_x, clean_y)

    text = (
        "digits, MLP 64-128-128-10, batch 64; 1 % of batches x 1e4, 0.2 % with NaN, labels shuffled 5 steps in 500; "
        "judged on the batches before they are corrupted"
    )
    return Task(text, "sgd", (0.001, 0.005, 0.02, 0.1), init, batch, loss, score)


def _transformer() -> Task:
    width, heads, depth, length, size, vocabulary = 32, 2, 2, 32, 4, VOCABULARY

    def init(rng: np.random.Generator) -> list[np.ndarray]:
        p = [rng.normal(0, 0.1, (vocabulary, width)), rng.normal(0, 0.1, (length, width))]
        for _ in range(depth):
            p += [np.ones(width), np.zeros(width), _glorot(rng, width, 3 * width), _glorot(rng, width, width)]
            p += [np.ones(width), np.zeros(width), _glorot(rng, width, 4 * width), np.zeros(4 * width)]
            p += [_glorot(rng, 4 * width, width), np.zeros(width)]
        return [*p, np.ones(width), np.zeros(width), _glorot(rng, width, vocabulary)]

    def normal(x: Any, scale: Any, shift: Any) -> Any:
        mean, var = tf.nn.moments(x, [-1], keepdims=True)
        return (x - mean) * tf.math.rsqrt(var + 1e-5) * scale[:, None, :] + shift[:, None, :]

    def loss(p: Params, x: Any, y: Any) -> Any:
        runs = p[0].shape[0]
        h = tf.gather(p[0], tf.reshape(x, [-1]), axis=1) + tf.tile(p[1], [1, size, 1])
        mask = tf.where(tf.linalg.band_part(tf.ones([length, length]), -1, 0) > 0, 0.0, -1e9)
        for i in range(depth):
            g1, b1, wqkv, wo, g2, b2, w1, c1, w2, c2 = p[2 + 10 * i : 12 + 10 * i]
            qkv = tf.reshape(tf.matmul(normal(h, g1, b1), wqkv), [runs, size, length, 3, heads, width // heads])
            q, k, v = (tf.transpose(qkv[:, :, :, j], [0, 1, 3, 2, 4]) for j in range(3))
            scores = tf.matmul(q, k, transpose_b=True) / (width // heads) ** 0.5 + mask
            mixed = tf.transpose(tf.matmul(tf.nn.softmax(scores), v), [0, 1, 3, 2, 4])
            h += tf.matmul(tf.reshape(mixed, [runs, size * length, width]), wo)
            h += _linear(tf.nn.relu(_linear(normal(h, g2, b2), w1, c1)), w2, c2)
        logits = tf.matmul(normal(h, p[-3], p[-2]), p[-1])
        return _crossentropy(logits, tf.reshape(y, [-1]))

    text = f"transformer on the standard library, {depth} layers, width {width}, {length} characters, batch {size}"
    return Task(text, "adam", (0.0005, 0.002, 0.01, 0.05), init, _windows(sources, size, length), loss)


def _heavy_tails() -> Task:
    size, inputs = 16, 20

    def init(rng: np.random.Generator) -> list[np.ndarray]:
        return [np.zeros((inputs, 1)), np.zeros(1)]

    def batch(rng: np.random.Generator, step: int) -> Batch:
        x = rng.normal(size=(size, inputs))
        truth = np.cos(np.arange(inputs))
        noise = rng.pareto(1.5, size) * rng.choice([-1, 1], size)
        return x.astype(np.float32), (x @ truth + noise).astype(np.float32), truth.astype(np.float32)

    def loss(p: Params, x: Any, y: Any, truth: Any) -> Any:
        return tf.reduce_mean(tf.square(_mlp(p, x)[..., 0] - y), 1)

    def score(p: Params, x: Any, y: Any, truth: Any) -> Any:
        # the loss has no mean under this noise: squared distance of the weights to the truth
        return tf.reduce_sum(tf.square(p[0][..., 0] - truth), 1) + tf.square(p[1][..., 0])

    text = (
        "linear regression, 20 inputs, batch 16, Pareto noise of index 1.5; judged by the squared error of the weights"
    )
    return Task(text, "sgd", (0.0003, 0.001, 0.005, 0.03), init, batch, loss, score)


def _outliers() -> Task:
    """For design only: spikes that have nothing to do with the length of the steps."""
    size, inputs, hidden = 32, 32, 64
    teacher = np.random.default_rng(7)
    inner, outer = teacher.normal(size=(inputs, 16)), teacher.normal(size=16)

    def init(rng: np.random.Generator) -> list[np.ndarray]:
        p = []
        for a, b in pairwise((inputs, hidden, hidden, 1)):
            p += [rng.normal(0, np.sqrt(2 / a), (a, b)), np.zeros(b)]
        return p

    def batch(rng: np.random.Generator, step: int) -> Batch:
        clean = rng.normal(size=(size, inputs))
        y = (np.tanh(clean @ inner / 5) @ outer).astype(np.float32)
        x = clean * 1e3 if rng.random() < 0.02 else clean
        return x.astype(np.float32), y, clean.astype(np.float32)

    def loss(p: Params, x: Any, y: Any, clean: Any) -> Any:
        return tf.reduce_mean(tf.square(_mlp(p, x)[..., 0] - y), 1)

    def score(p: Params, x: Any, y: Any, clean: Any) -> Any:
        return loss(p, clean, y, clean)

    text = "regression on a teacher, MLP 32-64-64-1, batch 32; 2 % of batches x 1e3, judged on the clean ones"
    return Task(text, "sgd", (0.0003, 0.003, 0.03), init, batch, loss, score)


def _student_t() -> Task:
    """For design only: scatter that has nothing to do with the length of the steps."""
    size, truth = 8, np.sin(np.arange(40) * 1.3)

    def init(rng: np.random.Generator) -> list[np.ndarray]:
        return [rng.normal(0, 0.3, (len(truth), 1)), np.zeros(1)]

    def batch(rng: np.random.Generator, step: int) -> Batch:
        x = rng.normal(size=(size, len(truth)))
        return x.astype(np.float32), (x @ truth + 0.5 * rng.standard_t(1.3, size)).astype(np.float32)

    def loss(p: Params, x: Any, y: Any) -> Any:
        return tf.reduce_mean(tf.square(_mlp(p, x)[..., 0] - y), 1)

    def score(p: Params, x: Any, y: Any) -> Any:
        return tf.reduce_sum(tf.square(p[0][..., 0] - truth.astype(np.float32)), 1) + tf.square(p[1][..., 0])

    text = "linear regression, 40 inputs, batch 8, Student noise of 1.3 degrees; judged by the error of the weights"
    return Task(text, "sgd", (0.0003, 0.003, 0.03), init, batch, loss, score)


def _waves(activation: str, optimizer: str, rates: tuple[float, ...]) -> Task:
    """For design only: long sequences, classified at their end; the tanh's recurrent start is on the edge of chaos."""
    units, length, size, classes = 40, 80, 16, 6

    def init(rng: np.random.Generator) -> list[np.ndarray]:
        recurrent = np.eye(units) if activation == "relu" else _orthogonal(rng, units, 1.4)
        return [_glorot(rng, 1, units), recurrent, np.zeros(units), _glorot(rng, units, classes), np.zeros(classes)]

    def batch(rng: np.random.Generator, step: int) -> Batch:
        y = rng.integers(0, classes, size)
        period = 4.0 * 1.35**y
        t = np.arange(length)
        phase = rng.uniform(0, 2 * np.pi, (size, 1))
        x = np.sin(2 * np.pi * t / period[:, None] + phase) + rng.normal(0, 0.3, (size, length))
        return x.astype(np.float32), y.astype(np.int32)

    def loss(p: Params, x: Any, y: Any) -> Any:
        wx, wh, b, wo, bo = p
        inputs = tf.einsum("bt,kh->tkbh", x, wx[:, 0]) + b[:, None, :]
        return _crossentropy(_linear(_rnn(inputs, wh, "tanh")[:, -size:], wo, bo), y)

    text = (
        f"waves of {classes} periods, {length} steps, classified by a tanh RNN at its end, {units} units, batch {size}"
    )
    return Task(text, optimizer, rates, init, batch, loss)


def _recall(optimizer: str, rates: tuple[float, ...]) -> Task:
    """For design only: the first symbol, asked for after a gap of distractors."""
    units, length, size, symbols = 40, 40, 16, 6

    def init(rng: np.random.Generator) -> list[np.ndarray]:
        recurrent = _orthogonal(rng, units, 1.1)
        inner, outer = _glorot(rng, symbols + 4, units), _glorot(rng, units, symbols)
        return [inner, recurrent, np.zeros(units), outer, np.zeros(symbols)]

    def batch(rng: np.random.Generator, step: int) -> Batch:
        y = rng.integers(0, symbols, size)
        x = rng.integers(symbols, symbols + 4, (size, length))
        x[:, 0] = y
        return x.astype(np.int32), y.astype(np.int32)

    def loss(p: Params, x: Any, y: Any) -> Any:
        wx, wh, b, wo, bo = p
        inputs = _look_up(x, wx) + b[:, None, :]
        return _crossentropy(_linear(_rnn(inputs, wh, "tanh")[:, -size:], wo, bo), y)

    text = f"the first of {length} symbols, asked for at the end, tanh RNN, {units} units, batch {size}"
    return Task(text, optimizer, rates, init, batch, loss)


def _patches(x: Any) -> Any:
    """x [runs, batch, h, w, c] -> [runs, batch, h, w, 9 c]: the neighbours of each place, zeros beyond the edge."""
    h, w = x.shape[2], x.shape[3]
    padded = tf.pad(x, [[0, 0], [0, 0], [1, 1], [1, 1], [0, 0]])
    return tf.concat([padded[:, :, i : i + h, j : j + w] for i in range(3) for j in range(3)], -1)


def _convolution() -> Task:
    """For design only: a healthy convolutional net with batch normalisation, weight decay and a cosine schedule."""
    size, widths = 32, (1, 8, 16)

    def init(rng: np.random.Generator) -> list[np.ndarray]:
        p = []
        for a, b in pairwise(widths):
            p += [rng.normal(0, np.sqrt(2 / (9 * a)), (9 * a, b)), np.ones(b), np.zeros(b)]
        return [*p, _glorot(rng, widths[-1], 10), np.zeros(10)]

    def batch(rng: np.random.Generator, step: int) -> Batch:
        x, y = _digits()
        rows = rng.integers(0, len(x), size)
        return x[rows].reshape(size, 8, 8, 1), y[rows]

    def loss(p: Params, x: Any, y: Any) -> Any:
        h = tf.broadcast_to(x[None], [tf.shape(p[0])[0], *x.shape])
        for i in range(0, len(p) - 2, 3):
            w, scale, shift = p[i : i + 3]
            h = tf.einsum("kbijc,kco->kbijo", _patches(h), w)
            mean, var = tf.nn.moments(h, [1, 2, 3], keepdims=True)
            h = (h - mean) * tf.math.rsqrt(var + 1e-3) * scale[:, None, None, None] + shift[:, None, None, None]
            h = tf.nn.relu(h)
            if i == 0:
                h = tf.reduce_max(tf.reshape(h, [h.shape[0], size, 4, 2, 4, 2, h.shape[-1]]), [3, 5])
        return _crossentropy(_linear(tf.reduce_mean(h, [2, 3]), p[-2], p[-1]), y)

    text = "digits, two convolutions with batch normalisation, SGD with momentum, weight decay and a cosine schedule"
    return Task(
        text, "sgd-decay", (0.01, 0.1, 1.0), init, batch, loss, None, lambda part: 0.5 + 0.5 * np.cos(np.pi * part)
    )


def _adversaries() -> Task:
    """For design only: a generator and a discriminator on a ring of eight points."""
    size, noise, hidden = 32, 4, 32
    angles = 2 * np.pi * np.arange(8) / 8

    def init(rng: np.random.Generator) -> list[np.ndarray]:
        p = []
        for widths in ((noise, hidden, hidden, 2), (2, hidden, hidden, 1)):
            for a, b in pairwise(widths):
                p += [rng.normal(0, np.sqrt(2 / a), (a, b)), np.zeros(b)]
        return p

    def batch(rng: np.random.Generator, step: int) -> Batch:
        at = angles[rng.integers(0, 8, size)]
        real = 2 * np.stack([np.cos(at), np.sin(at)], 1) + rng.normal(0, 0.1, (size, 2))
        return real.astype(np.float32), rng.normal(size=(size, noise)).astype(np.float32)

    def judge(p: Params, x: Any) -> Any:
        for i in range(6, 12, 2):
            x = _linear(x, p[i], p[i + 1])
            x = x if i == 10 else tf.nn.leaky_relu(x)
        return x[..., 0]

    def loss(p: Params, real: Any, z: Any) -> Any:
        fake = _mlp(p[:6], z)
        real = tf.broadcast_to(real[None], [tf.shape(p[0])[0], *real.shape])
        hinge = tf.nn.relu(1 - judge(p, real)) + tf.nn.relu(1 + judge(p, tf.stop_gradient(fake)))
        frozen = [*p[:6], *map(tf.stop_gradient, p[6:])]
        return tf.reduce_mean(hinge - judge(frozen, fake), 1)

    def score(p: Params, real: Any, z: Any) -> Any:
        # energy distance of the two batches (Szekely and Rizzo 2013)
        fake = _mlp(p[:6], z)
        real = tf.broadcast_to(real[None], [tf.shape(p[0])[0], *real.shape])

        def between(a: Any, b: Any) -> Any:
            square = tf.reduce_sum(tf.square(a[:, :, None] - b[:, None]), -1)
            return tf.reduce_mean(tf.sqrt(square + 1e-12), [1, 2])

        return 2 * between(real, fake) - between(real, real) - between(fake, fake)

    text = "generator and discriminator on a ring of eight points, hinge loss; judged by the energy distance"
    return Task(text, "sgd-plain", (0.003, 0.03, 0.3), init, batch, loss, score)


def _on(make: Callable[[], Task], optimizer: str, rates: tuple[float, ...]) -> Callable[[], Task]:
    """The same task with another optimizer."""
    return lambda: make()._replace(optimizer=optimizer, rates=rates)


TASKS: Mapping[str, Callable[[], Task]] = {
    "rnn-sgd": lambda: _char_rnn("sgd", (0.03, 0.1, 0.3, 1.0, 3.0)),
    "rnn-adam": lambda: _char_rnn("adam", (0.0003, 0.001, 0.003, 0.01, 0.03)),
    "gru-adam": _char_gru,
    "adding-tanh": lambda: _adding("tanh", "adam", (0.0005, 0.002, 0.01, 0.05)),
    "adding-relu": lambda: _adding("relu", "sgd", (0.0005, 0.002, 0.01, 0.05)),
    "digits": _corrupted_digits,
    "transformer": _transformer,
    "heavy-tails": _heavy_tails,
}

#: Where the rules were designed, with seeds from 100 on; the others, and other seeds, are where they are judged.
DESIGN_TASKS: Mapping[str, Callable[[], Task]] = {
    "rnn-sgd": TASKS["rnn-sgd"],
    "rnn-adam": TASKS["rnn-adam"],
    "outliers": _outliers,
    "student-t": _student_t,
    "waves-sgd": lambda: _waves("tanh", "sgd", (0.003, 0.01, 0.03, 0.1, 0.3)),
    "waves-adam": lambda: _waves("tanh", "adam", (0.0003, 0.001, 0.003, 0.01)),
    "waves-relu": lambda: _waves("relu", "sgd", (0.001, 0.01, 0.1)),
    "product-relu": lambda: _adding("relu", "sgd", (0.0005, 0.002, 0.01, 0.05), units=40, length=60, multiplies=True),
    "product-tanh": lambda: _adding("tanh", "adam", (0.0005, 0.002, 0.01, 0.05), units=40, length=60, multiplies=True),
    "recall-sgd": lambda: _recall("sgd", (0.003, 0.01, 0.03, 0.1, 0.3)),
    "recall-adam": lambda: _recall("adam", (0.0003, 0.001, 0.003, 0.01)),
    "convolution": _convolution,
    "adversaries": _adversaries,
    "rnn-plain": _on(lambda: _char_rnn("sgd", ()), "sgd-plain", (0.3, 1.0, 3.0, 10.0)),
    "rnn-nesterov": _on(lambda: _char_rnn("sgd", ()), "sgd-nesterov", (0.1, 0.3, 1.0)),
}
