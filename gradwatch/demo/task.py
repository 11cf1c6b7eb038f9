"""The training of the demo: a character-level recurrent network, and the usual train step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from gradwatch.demo.text import Text

BATCH, LENGTH, UNITS, EMBEDDING = 32, 50, 128, 64

#: Below 1 the network forgets at first and learns calmly; training pushes it to the edge by itself.
RECURRENT_GAIN = 0.7

#: Optimizer -> (how it is made from a schedule, peak learning rate at which this task diverges unprotected).
OPTIMIZERS: dict[str, tuple[Callable[[Any], Any], float]] = {
    "sgd": (lambda rate: keras.optimizers.SGD(rate, momentum=0.9), 0.5),
    "adam": (keras.optimizers.Adam, 0.03),
}


#: Optimizer -> peak learning rate at which the task is lost although its gradients are clipped: with `percentile(90)`;
#: `auto` holds SGD.
BEYOND_CLIPPING: dict[str, float] = {"sgd": 30.0, "adam": 1.0}


class Warmup(keras.optimizers.schedules.LearningRateSchedule):
    """The learning rate rises in a straight line to its peak over `steps`, and stays there."""

    def __init__(self, peak: float, steps: int) -> None:
        self.peak = peak
        self.steps = steps

    def __call__(self, step: Any) -> Any:
        return self.peak * tf.minimum(1.0, (tf.cast(step, tf.float32) + 1.0) / float(self.steps))

    def get_config(self) -> dict[str, Any]:
        return {"peak": self.peak, "steps": self.steps}


@dataclass(frozen=True)
class Task:
    """What a run needs; two tasks from one seed start with equal weights."""

    model: Any
    optimizer: Any
    train_step: Callable[[Any, Any], Any]


def build(text: Text, *, optimizer: str, learning_rate: float, warmup_steps: int, seed: int) -> Task:
    """The network, its optimizer and a train step that knows nothing of gradwatch.

    A ReLU recurrence (Le, Jaitly, Hinton 2015, arXiv 1504.00941) keeps its gradients over many characters,
    and has no tanh to bound them: known to learn well and to explode easily.
    """
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            keras.layers.Input((LENGTH,), batch_size=BATCH, dtype="int32"),
            keras.layers.Embedding(len(text.vocabulary), EMBEDDING, name="embedding"),
            keras.layers.SimpleRNN(
                UNITS,
                activation="relu",
                recurrent_initializer=keras.initializers.Orthogonal(RECURRENT_GAIN, seed=seed),
                return_sequences=True,
                unroll=True,  # a quarter faster here than a loop in the graph
                name="recurrent",
            ),
            keras.layers.Dense(len(text.vocabulary), name="characters"),
        ],
        name="model",
    )
    loss_fn = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    made = OPTIMIZERS[optimizer][0](Warmup(learning_rate, warmup_steps))

    @tf.function
    def train_step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = loss_fn(y, model(x, training=True))
        grads = tape.gradient(loss, model.trainable_variables)
        made.apply_gradients(zip(grads, model.trainable_variables))
        return loss

    return Task(model, made, train_step)
