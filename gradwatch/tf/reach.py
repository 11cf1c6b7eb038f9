"""How far a step carries the weights.

    reach = (1 - momentum) * |w| / learning_rate

is the global gradient norm which, sustained, moves the weights by their own length in a step. Here is what counts as
|w|, and who moves which weights how fast. docs/decisions/0008 has the measurements and the choices.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import tensorflow as tf

from gradwatch.core import norms as _norms
from gradwatch.core.xp import HUGE, TINY, Array, Namespace
from gradwatch.tf import rates


def weight_norm(xp: Namespace, per_variable: Array, least: float) -> Array:
    """|w| as reach and update_limit count it, shape (): max(sqrt(sum |w_i|^2), least), 0 where it is not known.

    A layer that starts at zero, or a model whose weights are all tiny, must be able to grow: it counts as long as its
    matrices would be after Glorot's initialisation, `initial_norm`.

    Args:
      per_variable: norms of the variables, shape [num_variables]; negative or NaN where it is not known.
      least: `initial_norm` of the variables.
    """
    # a comparison with NaN is false
    good = (per_variable >= 0.0) & (per_variable <= HUGE)
    total = _norms.total(xp, xp.where(good, per_variable, 0.0))
    known = (xp.sum(xp.where(good, 0.0, 1.0)) < 0.5) & (xp.maximum(total, least) > TINY) & (total <= HUGE)
    return xp.where(known, xp.maximum(total, least), 0.0)


def initial_norm(shapes: Iterable[Sequence[int]]) -> float:
    """The norm that matrices and kernels of these shapes have when they are new; vectors and scalars count as 0.

    sqrt(sum size * 2 / (fan_in + fan_out)), the variance of Glorot's initialisation times the number of elements.

    Args:
      shapes: of the variables, in Keras' order: (..., inputs, outputs).

    Source: Glorot and Bengio 2010, "Understanding the difficulty of training deep feedforward neural networks", eq. 12.
    """
    matrices = [tuple(shape) for shape in shapes if len(shape) >= 2 and min(shape) > 0]
    # size / (fan_in + fan_out): what a kernel covers is in both, and cancels
    return math.sqrt(sum(2.0 * shape[-2] * shape[-1] / (shape[-2] + shape[-1]) for shape in matrices))


def motion(optimizer: Any, variables: Sequence[Any]) -> tuple[str | None, Sequence[int], tf.Tensor | None]:
    """(kind, variables that a linear optimizer moves, learning_rate / (1 - momentum)) of this step.

    In a MultiOptimizer each part has a rate of its own: the largest one of its linear parts counts, over the weights
    that these move, so that no gradient of norm `reach` moves them by more than their length. Linear parts decide
    before adaptive ones, and those before the rest.
    """
    if optimizer is None:
        return None, (), None
    found = [(rates.row(part.optimizer).kind, part) for part in rates.parts(optimizer, variables)]
    linear = [part for kind, part in found if kind == rates.LINEAR]
    if not linear:
        kinds = [kind for kind, _ in found]
        return (rates.ADAPTIVE if rates.ADAPTIVE in kinds else None), (), None
    speeds = [rates.effective_rate(part.optimizer) for part in linear]
    if any(speed is None for speed in speeds):
        return None, (), None
    rate = speeds[0] if len(speeds) == 1 else tf.reduce_max(tf.stack(speeds))
    return rates.LINEAR, [i for part in linear for i in part.variables], rate
