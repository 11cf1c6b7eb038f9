"""How far an optimizer goes with a gradient of a given length: one table, a row a class.

An update is "linear" when twice the gradient moves the weights twice as far; then the learning rate and the momentum
say how far. It is "adaptive" when the optimizer divides by a second moment of its own; then the length of the
gradient hardly matters, though a large one stays in that moment. It is "neither" when something else bounds it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from gradwatch.tf import compat, updates

logger = logging.getLogger("gradwatch")

LINEAR, ADAPTIVE, NEITHER = "linear", "adaptive", "neither"


class Row(NamedTuple):
    """A class of Keras or tf-keras, by its name, with all its subclasses that have no row of their own."""

    kind: str
    reason: str


#: By the name of the class. Names that only one of Keras and tf-keras has are no fault.
TABLE: dict[str, Row] = {
    "SGD": Row(LINEAR, "w moves by lr * g / (1 - momentum) when g is sustained, with Nesterov's momentum as without"),
    "Adam": Row(ADAPTIVE, "divides by sqrt(v), v the running mean of g^2 (Kingma and Ba, arXiv 1412.6980)"),
    "AdamW": Row(ADAPTIVE, "Adam; its weight decay does not see the gradient"),
    "ScheduleFreeAdamW": Row(ADAPTIVE, "Adam's second moment under another average of the weights"),
    "Adamax": Row(ADAPTIVE, "divides by the running maximum of |g|"),
    "Nadam": Row(ADAPTIVE, "Adam with Nesterov's momentum"),
    "RMSprop": Row(ADAPTIVE, "divides by sqrt(v); its own momentum comes after the division"),
    "Adagrad": Row(ADAPTIVE, "divides by the root of the sum of all g^2: a large gradient stays in it for good"),
    "Adadelta": Row(ADAPTIVE, "divides by sqrt(v) and multiplies by the root mean square of its own steps"),
    "Lamb": Row(ADAPTIVE, "Adam, and each layer's step is rescaled to a share of its weights"),
    "Lion": Row(NEITHER, "the step is a sign: its length is lr whatever the gradient's; there is no second moment"),
    "Muon": Row(NEITHER, "the momentum is orthogonalised: the step has one length whatever the gradient's"),
    "Ftrl": Row(NEITHER, "solves for the weights anew in each step; its L1 threshold is in units of the gradient"),
    "Adafactor": Row(NEITHER, "clips its update by the update's own root mean square"),
}

#: Whatever is not in the table: published optimizers that are not Keras' own mostly divide by a second moment.
UNKNOWN = Row(ADAPTIVE, "a class that is not Keras' own: nothing is known of it, and most divide by a second moment")

_HOMES = ("keras", "tf_keras")


def row(optimizer: Any) -> Row:
    """The row of this optimizer: of the most specific of its classes that has one."""
    for cls in type(optimizer).__mro__:
        if cls.__module__.split(".")[0] in _HOMES and cls.__name__ in TABLE:
            return TABLE[cls.__name__]
    return UNKNOWN


class Part(NamedTuple):
    """Some of the variables, and the optimizer that moves them."""

    optimizer: Any
    variables: Sequence[int]


def parts(optimizer: Any, variables: Sequence[Any]) -> list[Part]:
    """Who moves which of the variables: the optimizer within one that wraps it, those of a MultiOptimizer."""
    *_, optimizer = updates.chain(optimizer)
    several = list(getattr(optimizer, "optimizers", None) or ())
    if not several:
        return [Part(optimizer, range(len(variables)))]
    places = compat.places_in_multi_optimizer(optimizer, variables)
    return [Part(o, [i for i, p in enumerate(places) if p == k]) for k, o in enumerate(several) if k in places]


def effective_rate(optimizer: Any) -> tf.Tensor | None:
    """learning_rate / (1 - momentum) of a linear optimizer in this step, float32, shape (); None: there is none.

    A sustained gradient g moves the weights by this times g. Keras' velocity is m * v - lr * g, so its sum is
    lr * g / (1 - m). A schedule, a variable and a function are asked in the graph, where they stand at this step.
    """
    momentum, rate = compat.momentum(optimizer), compat.learning_rate(optimizer)
    if rate is None or momentum is None:
        return None
    rate = tf.cast(tf.convert_to_tensor(rate), tf.float32)
    if isinstance(momentum, (int, float)):
        # a momentum of 1 never forgets: no gradient can be sustained
        return None if momentum >= 1.0 else rate / (1.0 - momentum) if momentum else rate
    return rate / (1.0 - tf.cast(tf.convert_to_tensor(momentum), tf.float32))


def learning_rate(optimizer: Any) -> tf.Tensor | None:
    """Of this step, float32, shape (), in the graph; None for an optimizer that has not the one."""
    *_, optimizer = updates.chain(optimizer)
    rate = compat.learning_rate(optimizer)
    return None if rate is None else tf.cast(tf.convert_to_tensor(rate), tf.float32)


def learning_rate_now(optimizer: Any) -> float | None:
    """As a number of the host, or None for an optimizer that has not the one (MultiOptimizer)."""
    try:
        # not float(): under a strategy it is a variable on every device
        return float(tf.convert_to_tensor(optimizer.learning_rate))
    except Exception as error:  # what is only reported must not end a training
        logger.debug("no learning rate to report: %s", error)
        return None
