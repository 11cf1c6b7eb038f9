"""Twenty-one kinds of training that need no download, small enough for 5,000 steps in seconds.

Each is compiled once and trained from new weights with every seed: 50 steps are one call of one XLA program. The kinds
of "design" are what detectors may be tuned on; those of "judged" are what they are measured on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import games
import keras
import numpy as np
import tensorflow as tf
from tasks import topics

L = keras.layers
Batch = tuple[np.ndarray, ...]

CHUNK = 50  # steps in one call
STEPS = 5000


@dataclass
class Training:
    """A training that can begin again.

    Attributes:
      losses: batch -> the loss of each side; a GAN has two sides, everything else one.
      sides: variables of each side.
      optimizers: of each side.
      rate: (step, steps) -> learning rate.
      batch: (rng, step) -> arrays of one batch.
      layers: whose weights are made anew with a seed, variables of no optimizer among them.
      before: (training, rng) -> what is done before the first step that counts.
      goal: which loss has to fall for the run to count as healthy; None: the losses need only stay finite.
      state: variables that begin again with the training.
      score: how well it does, where the loss does not say it; more is better.
      least_score: at the end of a healthy run.
    """

    losses: Callable[..., Sequence[Any]]
    sides: list[list[Any]]
    optimizers: list[Any]
    rate: Callable[[int, int], float]
    batch: Callable[[np.random.Generator, int], Batch]
    layers: list[Any] = field(default_factory=list)
    before: Callable[[Training, np.random.Generator], None] = lambda training, rng: None
    goal: int | None = 0
    state: list[Any] = field(default_factory=list)
    score: Callable[[], float] | None = None
    least_score: float = -math.inf
    factor: float = 1.0
    _first: dict[int, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for optimizer, side in zip(self.optimizers, self.sides):
            optimizer.build(side)
        self._weights = [v for layer in self.layers for v in layer.variables if "seed_generator" not in v.path]
        self._others = [*self.state, *(v for optimizer in self.optimizers for v in optimizer.variables)]
        self._first = {id(v): np.array(v) for v in (*self._weights, *self._others)}
        self.run = tf.function(self._run, jit_compile=True, reduce_retracing=True)

    def step(self, *batch: Any) -> tuple[Any, Any]:
        """One step; (losses, global norms of the unscaled gradients), each of shape [sides]."""
        with tf.GradientTape(persistent=True) as tape:
            losses = self.losses(*batch)
            scaled = [getattr(o, "scale_loss", lambda x: x)(loss) for o, loss in zip(self.optimizers, losses)]
        norms = []
        for loss, side, optimizer in zip(scaled, self.sides, self.optimizers):
            gradients = [tf.convert_to_tensor(g) for g in tape.gradient(loss, side)]
            scale = tf.cast(getattr(optimizer, "dynamic_scale", 1.0), tf.float32)
            norms.append(tf.linalg.global_norm([tf.cast(g, tf.float32) / scale for g in gradients]))
            optimizer.apply(gradients, side)
        return tf.stack([tf.cast(x, tf.float32) for x in losses]), tf.stack(norms)

    def _run(self, rates: Any, *batches: Any) -> tuple[Any, Any]:
        losses = tf.TensorArray(tf.float32, CHUNK, element_shape=[len(self.sides)])
        norms = tf.TensorArray(tf.float32, CHUNK, element_shape=[len(self.sides)])
        for i in tf.range(CHUNK):
            for optimizer in self.optimizers:
                optimizer.learning_rate.assign(rates[i])
            loss, norm = self.step(*(b[i] for b in batches))
            losses, norms = losses.write(i, loss), norms.write(i, norm)
        return losses.stack(), norms.stack()

    def restart(self, seed: int) -> np.random.Generator:
        """New weights of the same kind, fresh optimizers, another rate; the seed's random numbers."""
        rng = np.random.default_rng(seed)
        for v in self._weights:
            first = self._first[id(v)]
            v.assign(rng.permuted(first.reshape(-1)).reshape(first.shape) if first.ndim >= 2 else first)
        for v in self._others:
            v.assign(self._first[id(v)])
        self.factor = float(np.exp(rng.uniform(-0.7, 0.7)))
        self.before(self, rng)
        return rng

    def train(self, rng: np.random.Generator, steps: int = STEPS) -> tuple[np.ndarray, np.ndarray]:
        """(losses, norms), each of shape [steps, sides]."""
        losses, norms = [], []
        for start in range(0, steps, CHUNK):
            here = range(start, start + CHUNK)
            batches = [np.stack(parts) for parts in zip(*(self.batch(rng, i) for i in here))]
            rates = np.array([self.factor * self.rate(i, steps) for i in here], np.float32)
            loss, norm = self.run(rates, *batches)
            losses.append(loss.numpy())
            norms.append(norm.numpy())
        return np.concatenate(losses), np.concatenate(norms)

    def is_healthy(self, losses: np.ndarray, norms: np.ndarray) -> bool:
        """Whether it got somewhere: all losses finite, and the last ones below the first ones, or the score high."""
        tenth = len(losses) // 10
        if not np.all(np.isfinite(losses)) or (self.score and self.score() < self.least_score):
            return False
        if self.goal is None:
            return True
        loss = losses[:, self.goal]
        return bool(np.median(loss[-tenth:]) < np.median(loss[: min(tenth, 50)]))


# -- rates ------------------------------------------------------------------------------------------------


def constant(rate: float) -> Callable[[int, int], float]:
    return lambda step, steps: rate


def cosine(rate: float, warmup: int = 0) -> Callable[[int, int], float]:
    def at(step: int, steps: int) -> float:
        ramp = min((step + 1) / warmup, 1.0) if warmup else 1.0
        return rate * ramp * 0.5 * (1 + math.cos(math.pi * step / steps)) + 1e-3 * rate

    return at


def restarts(rate: float, first: int = 700) -> Callable[[int, int], float]:
    """Cosines of 700, 1,400 and 2,800 steps, each from the full rate (SGDR)."""

    def at(step: int, steps: int) -> float:
        length = first
        while step >= length:
            step, length = step - length, 2 * length
        return rate * 0.5 * (1 + math.cos(math.pi * step / length)) + 1e-3 * rate

    return at


def stairs(rate: float) -> Callable[[int, int], float]:
    """A third of the rate after half of the run, a tenth after three quarters."""
    return lambda step, steps: rate * (1.0 if step < steps / 2 else 0.3 if step < 3 * steps / 4 else 0.1)


def inverse_root(rate: float, warmup: int) -> Callable[[int, int], float]:
    return lambda step, steps: rate * min((step + 1) / warmup, math.sqrt(warmup / (step + 1)))


# -- data -------------------------------------------------------------------------------------------------


def clusters(size: int, classes: int = 10, batch: int = 32, *, turn: int = 0) -> Callable[..., Batch]:
    """A nonlinear rule of normal inputs, a tenth of the labels wrong; another rule for another `turn`."""
    way = np.random.default_rng(100 + turn).normal(size=(size, classes))

    def make(rng: np.random.Generator, step: int) -> Batch:
        x = rng.standard_normal((batch, size), np.float32)
        y = np.argmax(np.tanh(x) @ way + rng.standard_normal((batch, classes)), 1)
        return x, np.where(rng.random(batch) < 0.1, rng.integers(0, classes, batch), y).astype(np.int32)

    return make


def gratings(
    side: int, batch: int, *, classes: int = 8, examples: int = 2000, cut: bool = False
) -> Callable[..., Batch]:
    """Noisy stripes whose angle is the class: a finite set in epochs, flipped and shifted, with a patch cut out."""
    rng = np.random.default_rng(7)
    y = rng.integers(0, classes, examples)
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1)
    angle = np.pi * y / classes
    wave = 2 * np.pi / rng.uniform(3, 6, examples)
    along = grid @ np.stack([np.cos(angle), np.sin(angle)])
    x = np.sin(along * wave + rng.uniform(0, 6, examples)) + 0.8 * rng.normal(size=(side, side, examples))
    images = np.moveaxis(x, -1, 0)[..., None].astype(np.float32)
    labels = np.where(rng.random(examples) < 0.05, rng.integers(0, classes, examples), y).astype(np.int32)

    def make(rng: np.random.Generator, step: int) -> Batch:
        epoch, at = divmod(step, examples // batch)
        chosen = np.random.default_rng([3, epoch]).permutation(examples)[at * batch : (at + 1) * batch]
        part = np.roll(images[chosen], rng.integers(-1, 2, 2), (1, 2))
        part = part[:, ::-1, ::-1] if rng.random() < 0.5 else part.copy()
        if cut:
            a, b = rng.integers(0, side - 3, 2)
            part = part.copy()
            part[:, a : a + 3, b : b + 3] = 0
        return np.ascontiguousarray(part), labels[chosen]

    return make


def text(length: int, batch: int) -> Callable[..., Batch]:
    def make(rng: np.random.Generator, step: int) -> Batch:
        data = topics()[0]
        rows = data[rng.integers(0, len(data) - length - 1, batch)[:, None] + np.arange(length + 1)]
        return (rows.astype(np.int32),)

    return make


def ring(rng: np.random.Generator, step: int, batch: int = 64) -> Batch:
    """Eight Gaussians on a circle, and the noise that a generator starts from."""
    angle = 2 * np.pi * rng.integers(0, 8, batch) / 8
    points = np.stack([np.cos(angle), np.sin(angle)], 1) + 0.05 * rng.normal(size=(batch, 2))
    return points.astype(np.float32), rng.standard_normal((batch, 8), np.float32)


def zipf(rng: np.random.Generator, among: int, size: Any) -> np.ndarray:
    """Few are often, most are rare."""
    weight = 1.0 / np.arange(1, among + 1)
    return rng.choice(among, size, p=weight / weight.sum()).astype(np.int32)


def _crossentropy(labels: Any, logits: Any) -> Any:
    logits = tf.cast(logits, tf.float32)
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits))


def _built(*layers: Any, shape: tuple[int, ...], dtype: str = "float32") -> Any:
    model = keras.Sequential([keras.Input(shape, dtype=dtype), *layers])
    model(np.zeros((1, *shape), dtype), training=False)
    return model


def _classifier(model: Any, optimizer: Any, rate: Any, batch: Any) -> Training:
    return Training(
        lambda x, y: [_crossentropy(y, model(x, training=True))],
        [model.trainable_variables],
        [optimizer],
        rate,
        batch,
        layers=[model],
    )


# -- kinds for design -------------------------------------------------------------------------------------


def perceptron() -> Training:
    model = _built(L.Dense(64, "relu"), L.Dense(64, "relu"), L.Dense(10), shape=(32,))
    return _classifier(model, keras.optimizers.SGD(0.1, momentum=0.9), constant(0.02), clusters(32))


def convolutional() -> Training:
    model = _built(
        L.Conv2D(8, 3, use_bias=False),
        L.BatchNormalization(),
        L.ReLU(),
        L.Conv2D(16, 3, strides=2, use_bias=False),
        L.BatchNormalization(),
        L.ReLU(),
        L.GlobalAveragePooling2D(),
        L.Dense(8),
        shape=(12, 12, 1),
    )
    return _classifier(model, keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True), cosine(0.05), gratings(12, 20))


def recurrent() -> Training:
    model = _built(
        L.Embedding(64, 24), L.GRU(48, return_sequences=True, unroll=True), L.Dense(64), shape=(20,), dtype="int32"
    )
    return Training(
        lambda rows: [_crossentropy(rows[:, 1:], model(rows[:, :-1], training=True))],
        [model.trainable_variables],
        [keras.optimizers.Adam(1e-3)],
        constant(3e-3),
        text(20, 16),
        layers=[model],
    )


def gan() -> Training:
    generator = _built(L.Dense(48, "relu"), L.Dense(48, "relu"), L.Dense(2), shape=(8,))
    critic = _built(L.Dense(48, "leaky_relu"), L.Dense(48, "leaky_relu"), L.Dense(1), shape=(2,))

    def losses(real: Any, noise: Any) -> list[Any]:
        yes, no = critic(real, training=True), critic(generator(noise, training=True), training=True)
        told = tf.nn.softplus(-yes) + tf.nn.softplus(no)
        return [tf.reduce_mean(tf.nn.softplus(-no)), tf.reduce_mean(told)]

    adams = [keras.optimizers.Adam(1e-3, beta_1=0.5) for _ in range(2)]
    sides = [generator.trainable_variables, critic.trainable_variables]
    return Training(losses, sides, adams, constant(1e-3), ring, layers=[generator, critic], goal=None)


def skip_gram() -> Training:
    """Words and their neighbours: rows of a table, so that the gradients are sparse."""
    table, other = L.Embedding(3000, 24), L.Embedding(3000, 24)
    table.build(), other.build()
    group = np.random.default_rng(5).integers(0, 30, 3000)
    members = [np.flatnonzero(group == g) for g in range(30)]

    def batch(rng: np.random.Generator, step: int) -> Batch:
        word = zipf(rng, 3000, 64)
        near = np.array([members[group[w]][rng.integers(len(members[group[w]]))] for w in word], np.int32)
        return word, near, zipf(rng, 3000, (64, 5))

    def losses(word: Any, near: Any, wrong: Any) -> list[Any]:
        x = table(word)
        good = tf.reduce_sum(x * other(near), -1)
        bad = tf.einsum("bd,bnd->bn", x, other(wrong))
        told = tf.nn.softplus(-good) + tf.reduce_sum(tf.nn.softplus(bad), 1)
        return [tf.reduce_mean(told)]

    variables = [*table.trainable_variables, *other.trainable_variables]
    return Training(losses, [variables], [keras.optimizers.Adagrad(0.1)], constant(0.1), batch, layers=[table, other])


def autoencoder() -> Training:
    model = _built(L.Dense(48, "elu"), L.Dense(8), L.Dense(48, "elu"), L.Dense(144), shape=(144,))
    images = gratings(12, 20)

    def batch(rng: np.random.Generator, step: int) -> Batch:
        x = images(rng, step)[0].reshape(-1, 144)
        return x, x + 0.3 * rng.standard_normal(x.shape).astype(np.float32)

    return Training(
        lambda clean, noisy: [tf.reduce_mean(tf.square(model(noisy, training=True) - clean))],
        [model.trainable_variables],
        [keras.optimizers.RMSprop(1e-3)],
        stairs(1e-3),
        batch,
        layers=[model],
    )


def warm_restarts() -> Training:
    model = _built(L.Dense(64, "tanh"), L.Dropout(0.2, seed=1), L.Dense(64, "tanh"), L.Dense(10), shape=(32,))
    return _classifier(model, keras.optimizers.SGD(0.1, momentum=0.9), restarts(0.05), clusters(32, turn=1))


def heavy_tails() -> Training:
    """A regression whose targets are off by Student's t of three degrees."""
    model = _built(L.Dense(64, "relu"), L.Dense(64, "relu"), L.Dense(1), shape=(16,))
    way = np.random.default_rng(9).normal(size=(16, 1))

    def batch(rng: np.random.Generator, step: int) -> Batch:
        x = rng.standard_normal((32, 16), np.float32)
        return x, (np.tanh(x) @ way + 0.5 * rng.standard_t(3, (32, 1))).astype(np.float32)

    return Training(
        lambda x, y: [tf.reduce_mean(tf.square(model(x, training=True) - y))],
        [model.trainable_variables],
        [keras.optimizers.Adam(1e-3)],
        constant(1e-3),
        batch,
        layers=[model],
    )


def policy_gradient() -> Training:
    """Thirty-two games of "catch" to an update, learned by REINFORCE with their mean return as the baseline."""
    model = _built(L.Dense(48, "relu"), L.Dense(3), shape=(games.ROWS * games.COLUMNS,))
    won = tf.Variable(0.0, name="won")

    def losses(noise: Any, ball: Any, paddle: Any) -> list[Any]:
        logs, entropies = [], []
        for row in range(games.ROWS - 1):
            told = tf.nn.log_softmax(model(games.board(row, ball, paddle), training=True))
            action = tf.argmax(tf.stop_gradient(told) + noise[row], 1, output_type=tf.int32)
            logs.append(tf.gather(told, action, batch_dims=1))
            entropies.append(-tf.reduce_sum(tf.exp(told) * told, 1))
            paddle = games.moved(paddle, action)
        gained = tf.where(ball == paddle, 1.0, -1.0)
        won.assign_add(0.02 * (tf.reduce_mean(gained) - won))
        ahead = gained - tf.reduce_mean(gained)
        return [-tf.reduce_mean(tf.reduce_sum(tf.stack(logs), 0) * ahead) - 0.02 * tf.reduce_mean(tf.stack(entropies))]

    def batch(rng: np.random.Generator, step: int) -> Batch:
        noise = rng.gumbel(size=(games.ROWS - 1, 32, 3)).astype(np.float32)
        return noise, rng.integers(0, games.COLUMNS, 32, np.int32), np.full(32, games.COLUMNS // 2, np.int32)

    return Training(
        losses,
        [model.trainable_variables],
        [keras.optimizers.RMSprop(1e-3)],
        constant(1e-3),
        batch,
        layers=[model],
        goal=None,
        state=[won],
        score=lambda: float(won.numpy()),
        least_score=0.5,
    )


def q_learning() -> Training:
    """Sixteen pendulums and three torques: a double deep Q-network that learns from what it kept."""
    model = _built(L.Dense(64, "relu"), L.Dense(64, "relu"), L.Dense(3), shape=(3,))
    target = _built(L.Dense(64, "relu"), L.Dense(64, "relu"), L.Dense(3), shape=(3,))
    pendulums = tf.Variable(np.tile(np.float32([[math.pi, 0.0]]), (16, 1)), name="pendulums")
    kept = tf.Variable(np.zeros((4096, 8), np.float32), name="kept")
    mean = tf.Variable(0.0, name="mean_reward")

    def losses(step: Any, chance: Any, other: Any, fresh: Any, ends: Any, drawn: Any) -> list[Any]:
        for mine, theirs in zip(target.variables, model.variables):
            mine.assign(tf.where(step % 100 == 0, theirs, mine))
        state = pendulums.value()
        best = tf.argmax(model(games.seen(state), training=False), 1, output_type=tf.int32)
        explores = chance < tf.maximum(0.05, 1.0 - tf.cast(step, tf.float32) / 1500)
        action = tf.where(explores, other, best)
        after, reward = games.swung(state, 2.0 * tf.cast(action - 1, tf.float32))
        mean.assign_add(0.005 * (tf.reduce_mean(reward) - mean))
        rows = [games.seen(state), tf.cast(action, tf.float32)[:, None], reward[:, None], games.seen(after)]
        place = 16 * (step % 256)
        kept.assign(tf.tensor_scatter_nd_update(kept, (place + tf.range(16))[:, None], tf.concat(rows, 1)))
        pendulums.assign(tf.where(ends[:, None] < 0.005, fresh, after))
        chosen = tf.gather(kept, tf.cast(drawn * tf.cast(tf.minimum(16 * (step + 1), 4096), tf.float32), tf.int32))
        now, then = chosen[:, :3], chosen[:, 5:]
        way = tf.argmax(model(then, training=False), 1, output_type=tf.int32)
        goal = chosen[:, 4] + 0.97 * tf.gather(target(then, training=False), way, batch_dims=1)
        said = tf.gather(model(now, training=True), tf.cast(chosen[:, 3], tf.int32), batch_dims=1)
        off = tf.abs(said - tf.stop_gradient(goal))
        return [tf.reduce_mean(tf.where(off < 1.0, 0.5 * off * off, off - 0.5))]

    def batch(rng: np.random.Generator, step: int) -> Batch:
        fresh = rng.uniform([-math.pi, -1.0], [math.pi, 1.0], (16, 2)).astype(np.float32)
        numbers = rng.random((2, 16), np.float32)
        drawn = rng.random(64, np.float32)
        return np.int32(step), numbers[0], rng.integers(0, 3, 16, np.int32), fresh, numbers[1], drawn

    return Training(
        losses,
        [model.trainable_variables],
        [keras.optimizers.Adam(1e-3)],
        constant(1e-3),
        batch,
        layers=[model],
        goal=None,
        state=[pendulums, kept, mean, *target.variables],
        score=lambda: float(mean.numpy()),
        least_score=-0.35,
    )


def sarsa() -> Training:
    """Thirty-two walkers beside a cliff, eight steps of each to an update; whoever comes to the goal begins again."""
    cells = games.HEIGHT * games.WIDTH
    model = _built(L.Dense(64, "tanh"), L.Dense(4), shape=(cells,))
    places = tf.Variable(np.zeros(32, np.int32), name="places")
    mean = tf.Variable(0.0, name="mean_reward")

    def losses(step: Any, chance: Any, other: Any) -> list[Any]:
        explores = tf.maximum(0.01, 1.0 - tf.cast(step, tf.float32) / 1500)
        place, told, goals = places.value(), [], []
        reward = ends = tf.zeros(32)
        for i in range(9):
            values = model(tf.one_hot(place, cells), training=True)
            best = tf.argmax(values, 1, output_type=tf.int32)
            action = tf.where(chance[i] < explores, other[i], best)
            value = tf.gather(values, action, batch_dims=1)
            if i:
                goals.append(reward + 0.98 * (1.0 - ends) * tf.stop_gradient(value))
            if i == 8:
                break
            told.append(value)
            after, reward, ends = games.walked(place, action)
            reward = 0.1 * reward
            mean.assign_add(0.002 * (tf.reduce_mean(reward) - mean))
            place = tf.where(ends > 0.5, 0, after)
        places.assign(place)
        return [tf.reduce_mean(tf.square(tf.stack(told) - tf.stack(goals)))]

    def batch(rng: np.random.Generator, step: int) -> Batch:
        return np.int32(step), rng.random((9, 32), np.float32), rng.integers(0, 4, (9, 32), np.int32)

    return Training(
        losses,
        [model.trainable_variables],
        [keras.optimizers.Adam(1e-3)],
        constant(1e-3),
        batch,
        layers=[model],
        goal=None,
        state=[places, mean],
        score=lambda: float(mean.numpy()),
        least_score=-0.2,
    )


def balance() -> Training:
    """Sixteen pendulums to be kept upright, ten steps of each to an update: n-step Q-learning without a memory.

    Source: Mnih et al. 2016 (arXiv 1602.01783), algorithm S2, its workers side by side.
    """
    model, target = (_built(L.Dense(48, "relu"), L.Dense(48, "relu"), L.Dense(3), shape=(3,)) for _ in range(2))
    pendulums = tf.Variable(np.zeros((16, 2), np.float32), name="pendulums")
    stood = tf.Variable(0.0, name="stood")

    def losses(step: Any, chance: Any, other: Any, fresh: Any) -> list[Any]:
        for mine, theirs in zip(target.variables, model.variables):
            mine.assign(tf.where(step % 50 == 0, theirs, mine))
        explores = tf.maximum(0.02, 1.0 - tf.cast(step, tf.float32) / 1000)
        state, told, falls, goals = pendulums.value(), [], [], []
        for i in range(10):
            values = model(games.seen(state), training=True)
            action = tf.where(chance[i] < explores, other[i], tf.argmax(values, 1, output_type=tf.int32))
            told.append(tf.gather(values, action, batch_dims=1))
            state, _ = games.swung(state, 2.0 * tf.cast(action - 1, tf.float32))
            falls.append(tf.cast(tf.abs(state[:, 0]) > 0.5, tf.float32))
            state = tf.where(falls[-1][:, None] > 0.5, fresh[i], state)
            stood.assign_add(0.002 * (1.0 - tf.reduce_mean(falls[-1]) - stood))
        pendulums.assign(state)
        gain = tf.reduce_max(target(games.seen(state), training=False), 1)
        for fell in reversed(falls):
            gain = (1.0 - fell) * (0.1 + 0.97 * gain)
            goals.insert(0, gain)
        return [tf.reduce_mean(tf.square(tf.stack(told) - tf.stop_gradient(tf.stack(goals))))]

    def batch(rng: np.random.Generator, step: int) -> Batch:
        fresh = rng.uniform(-0.1, 0.1, (10, 16, 2)).astype(np.float32)
        return np.int32(step), rng.random((10, 16), np.float32), rng.integers(0, 3, (10, 16), np.int32), fresh

    return Training(
        losses,
        [model.trainable_variables],
        [keras.optimizers.RMSprop(1e-3)],
        constant(1e-3),
        batch,
        layers=[model],
        goal=None,
        state=[pendulums, stood, *target.variables],
        score=lambda: float(stood.numpy()),
        least_score=0.98,
    )


# -- kinds that are judged --------------------------------------------------------------------------------


def residual() -> Training:
    inputs = keras.Input((12, 12, 1))
    x = L.Conv2D(12, 3, padding="same", use_bias=False)(inputs)
    for _ in range(2):
        y = L.ReLU()(L.BatchNormalization()(x))
        x = L.Add()([x, L.Conv2D(12, 3, padding="same", use_bias=False)(y)])
    x = L.GlobalAveragePooling2D()(L.ReLU()(L.BatchNormalization()(x)))
    model = keras.Model(inputs, L.Dense(8)(x))
    optimizer = keras.optimizers.AdamW(1e-3, weight_decay=0.01)
    return _classifier(model, optimizer, cosine(3e-3, warmup=300), gratings(12, 20, cut=True))


def transformer() -> Training:
    inputs = keras.Input((20,), dtype="int32")
    x = L.Embedding(64, 32)(inputs)
    x = x + L.Embedding(20, 32)(np.arange(20)[None])
    for _ in range(2):
        h = L.LayerNormalization()(x)
        x = x + L.MultiHeadAttention(2, 16)(h, h, use_causal_mask=True)
        x = x + L.Dense(32)(L.Dense(64, "gelu")(L.LayerNormalization()(x)))
    model = keras.Model(inputs, L.Dense(64)(L.LayerNormalization()(x)))
    return Training(
        lambda rows: [_crossentropy(rows[:, 1:], model(rows[:, :-1], training=True))],
        [model.trainable_variables],
        [keras.optimizers.Adam(1e-3, beta_2=0.98)],
        inverse_root(3e-3, warmup=500),
        text(20, 16),
        layers=[model],
    )


def fine_tuning() -> Training:
    """Pre-trained on one rule, then a new head and a tenth of the rate on another."""
    body = _built(L.Dense(96, "relu"), L.Dense(96, "relu"), shape=(32,))
    head = _built(L.Dense(10), shape=(96,))
    training = _classifier(
        keras.Sequential([keras.Input((32,)), body, head]),
        keras.optimizers.Adam(1e-3),
        cosine(3e-4, warmup=100),
        clusters(32, turn=3),
    )
    other = clusters(32, turn=2)

    def before(training: Training, rng: np.random.Generator) -> None:
        usual, training.batch = training.batch, other
        training.train(rng, 1000)
        training.batch = usual
        for v in [*head.variables, *training.optimizers[0].variables]:
            v.assign(training._first[id(v)])

    training.before = before
    return training


def actor_critic() -> Training:
    """Sixteen carts with poles, sixteen steps of each to an update; those that fall begin again."""
    model = _built(L.Dense(48, "tanh"), L.Dense(48, "tanh"), L.Dense(3), shape=(4,))
    carts = tf.Variable(np.zeros((16, 4), np.float32), name="carts")

    def losses(drawn: Any, fresh: Any) -> list[Any]:
        state, logs, values, rewards, entropies, ends = carts.value(), [], [], [], [], []
        for i in range(16):
            out = model(state, training=True)
            p = tf.sigmoid(out[:, 0] - out[:, 1])
            right = tf.cast(drawn[i] < p, tf.float32)
            logs.append(tf.math.log(tf.where(right > 0.5, p, 1 - p) + 1e-6))
            entropies.append(-p * tf.math.log(p + 1e-6) - (1 - p) * tf.math.log(1 - p + 1e-6))
            values.append(out[:, 2])
            state, fell = _pole(state, right)
            rewards.append(1.0 - fell)
            ends.append(fell)
            state = tf.where(fell[:, None] > 0.5, fresh[i], state)
        carts.assign(state)
        gain, gains = tf.stop_gradient(model(state, training=True)[:, 2]), []
        for i in reversed(range(16)):
            gain = rewards[i] + 0.97 * gain * (1.0 - ends[i])
            gains.insert(0, gain)
        gained, value = tf.stack(gains), tf.stack(values)
        ahead = tf.stop_gradient(gained - value)
        loss = -tf.stack(logs) * ahead + 0.5 * tf.square(gained - value) - 0.01 * tf.stack(entropies)
        return [tf.reduce_mean(loss)]

    def batch(rng: np.random.Generator, step: int) -> Batch:
        return rng.random((16, 16), np.float32), rng.uniform(-0.05, 0.05, (16, 16, 4)).astype(np.float32)

    return Training(
        losses,
        [model.trainable_variables],
        [keras.optimizers.Adam(1e-3)],
        constant(1e-3),
        batch,
        layers=[model],
        goal=None,
        state=[carts],
    )


def _pole(state: Any, right: Any) -> tuple[Any, Any]:
    """Barto, Sutton and Anderson 1983: a step of 0.02 s; (state, 1 where the pole fell or the cart left)."""
    x, speed, angle, turn = tf.unstack(state, axis=1)
    force, sine, cos = 20.0 * right - 10.0, tf.sin(angle), tf.cos(angle)
    push = (force + 0.05 * turn * turn * sine) / 1.1
    spin = (9.8 * sine - cos * push) / (0.5 * (4.0 / 3.0 - 0.1 * cos * cos / 1.1))
    pull = push - 0.05 * spin * cos / 1.1
    new = tf.stack([x + 0.02 * speed, speed + 0.02 * pull, angle + 0.02 * turn, turn + 0.02 * spin], 1)
    fell = (tf.abs(new[:, 0]) > 2.4) | (tf.abs(new[:, 2]) > 0.21)
    return new, tf.cast(fell, tf.float32)


def wasserstein() -> Training:
    """A critic with a gradient penalty, and its generator."""
    generator = _built(L.Dense(64, "relu"), L.Dense(64, "relu"), L.Dense(2), shape=(8,))
    critic = _built(L.Dense(64, "tanh"), L.Dense(64, "tanh"), L.Dense(1), shape=(2,))

    def losses(real: Any, noise: Any) -> list[Any]:
        made = generator(noise, training=True)
        between = 0.5 * (real + tf.stop_gradient(made))
        with tf.GradientTape() as tape:
            tape.watch(between)
            told = critic(between, training=True)
        slope = tf.sqrt(tf.reduce_sum(tf.square(tape.gradient(told, between)), 1) + 1e-8)
        yes, no = tf.reduce_mean(critic(real, training=True)), tf.reduce_mean(critic(made, training=True))
        return [-no, no - yes + 10.0 * tf.reduce_mean(tf.square(slope - 1.0))]

    adams = [keras.optimizers.Adam(1e-3, beta_1=0.5, beta_2=0.9) for _ in range(2)]
    sides = [generator.trainable_variables, critic.trainable_variables]
    return Training(losses, sides, adams, constant(5e-4), ring, layers=[generator, critic], goal=None)


def recommender() -> Training:
    """Who likes what: two sparse tables and their biases, few users and items often."""
    users, items, bias = L.Embedding(1000, 16), L.Embedding(2000, 16), L.Embedding(2000, 1)
    for layer in (users, items, bias):
        layer.build()
    rng = np.random.default_rng(11)
    taste, kind = rng.normal(size=(1000, 6)), rng.normal(size=(2000, 6))

    def batch(rng: np.random.Generator, step: int) -> Batch:
        user, item = zipf(rng, 1000, 64), zipf(rng, 2000, 64)
        liked = np.sum(taste[user] * kind[item], 1) / 2 + rng.normal(size=64)
        return user, item, liked.astype(np.float32)

    def losses(user: Any, item: Any, liked: Any) -> list[Any]:
        told = tf.reduce_sum(users(user) * items(item), 1) + bias(item)[:, 0]
        return [tf.reduce_mean(tf.square(told - liked))]

    variables = [v for layer in (users, items, bias) for v in layer.trainable_variables]
    return Training(
        losses, [variables], [keras.optimizers.Adam(1e-2)], constant(5e-3), batch, layers=[users, items, bias]
    )


def half_precision() -> Training:
    """float16 with a loss scale that doubles until something overflows."""
    layers = [L.Dense(64, "relu", dtype="mixed_float16"), L.Dense(64, "relu", dtype="mixed_float16")]
    model = _built(*layers, L.Dense(10, dtype="float32"), shape=(32,))
    optimizer = keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(0.1, momentum=0.9), initial_scale=2.0**15, dynamic_growth_steps=500
    )
    return _classifier(model, optimizer, constant(0.02), clusters(32, turn=4))


def variational() -> Training:
    """An autoencoder whose prior counts more and more, over the first 2,000 steps."""
    encoder = _built(L.Dense(64, "relu"), L.Dense(16), shape=(144,))
    decoder = _built(L.Dense(64, "relu"), L.Dense(144), shape=(8,))
    images = gratings(12, 20)

    def batch(rng: np.random.Generator, step: int) -> Batch:
        x = images(rng, step)[0].reshape(-1, 144)
        return x, rng.standard_normal((len(x), 8), np.float32), np.float32(min(step / 2000, 1.0))

    def losses(x: Any, noise: Any, share: Any) -> list[Any]:
        mean, log = tf.split(encoder(x, training=True), 2, 1)
        made = decoder(mean + tf.exp(0.5 * log) * noise, training=True)
        prior = 0.5 * tf.reduce_sum(tf.exp(log) + mean * mean - 1.0 - log, 1)
        return [tf.reduce_mean(tf.reduce_sum(tf.square(made - x), 1) + share * prior)]

    variables = [*encoder.trainable_variables, *decoder.trainable_variables]
    return Training(
        losses, [variables], [keras.optimizers.Adam(1e-3)], constant(1e-3), batch, layers=[encoder, decoder]
    )


def contrastive() -> Training:
    """Two views of an image are to be closer than those of others (InfoNCE)."""
    model = _built(L.Flatten(), L.Dense(96, "relu"), L.Dense(32), shape=(12, 12, 1))
    images = gratings(12, 25, cut=True)

    def batch(rng: np.random.Generator, step: int) -> Batch:
        x = images(rng, step)[0]
        noise = 0.3 * rng.standard_normal((2, *x.shape))
        return (x + noise[0]).astype(np.float32), (x[:, ::-1] + noise[1]).astype(np.float32)

    def losses(a: Any, b: Any) -> list[Any]:
        a, b = (tf.nn.l2_normalize(model(x, training=True), 1) for x in (a, b))
        return [_crossentropy(tf.range(25), tf.matmul(a, b, transpose_b=True) / 0.1)]

    return Training(
        losses,
        [model.trainable_variables],
        [keras.optimizers.SGD(0.1, momentum=0.9)],
        cosine(0.1, warmup=200),
        batch,
        layers=[model],
    )


#: name -> how it is made.
DESIGN: dict[str, Callable[[], Training]] = {
    "perceptron": perceptron,
    "convolutional": convolutional,
    "recurrent": recurrent,
    "gan": gan,
    "skip-gram": skip_gram,
    "autoencoder": autoencoder,
    "warm restarts": warm_restarts,
    "heavy tails": heavy_tails,
    "policy gradient": policy_gradient,
    "q-learning": q_learning,
    "sarsa": sarsa,
    "balance": balance,
}
JUDGED: dict[str, Callable[[], Training]] = {
    "residual": residual,
    "transformer": transformer,
    "fine-tuning": fine_tuning,
    "actor-critic": actor_critic,
    "wasserstein": wasserstein,
    "recommender": recommender,
    "half precision": half_precision,
    "variational": variational,
    "contrastive": contrastive,
}
KINDS = {**DESIGN, **JUDGED}
