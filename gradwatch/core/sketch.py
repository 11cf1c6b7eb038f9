"""A quantile sketch with forgetting: one fixed tensor, O(1) per step however long the run.

Buckets stand at logarithmic distances, as in DDSketch (Masson, Rim, Lee 2019, arXiv 1908.10693): bucket i
holds the values in (gamma^(i-1), gamma^i] and answers 2 gamma^i / (gamma + 1), at most `ACCURACY` away from
each of them, gamma = (1 + ACCURACY) / (1 - ACCURACY). We differ in three points. Every step multiplies the
old weights by a forgetting factor. The *cumulative* weights are kept, which makes a quantile one comparison
and one sum (no sort, no scan). The buckets are centred on the first value, so 2,048 of them reach almost nine
decades to either side whatever the scale of the gradient.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from gradwatch.core.xp import Array, Bool, Namespace

BUCKETS = 2048
ACCURACY = 0.01  # relative error of a quantile
WIDTH = math.log((1 + ACCURACY) / (1 - ACCURACY))  # of a bucket, in log units
_MIDDLE = math.log(2.0 / (math.exp(WIDTH) + 1.0))  # from a bucket's upper end to its answer

State = Mapping[str, Array]


def init() -> dict[str, np.ndarray]:
    """An empty sketch: `cumulative` [BUCKETS] weights at or below each bucket, `origin` () in buckets."""
    return {"cumulative": np.zeros(BUCKETS, np.float32), "origin": np.zeros((), np.float32)}


def weight(state: State) -> Array:
    """Total weight, shape (): 0 when empty, 1 / (1 - decay) after long use."""
    return state["cumulative"][-1]


def update(xp: Namespace, state: State, log_value: Array, take: Bool, decay: float) -> dict[str, Array]:
    """Enter one value, given by its natural logarithm, shape (); `take` False leaves all as it is."""
    position = xp.ceil(log_value / WIDTH)
    origin = xp.where(take & (weight(state) <= 0.0), position, state["origin"])
    index = xp.minimum(xp.maximum(position - origin + BUCKETS // 2, 0.0), BUCKETS - 1.0)
    entered = state["cumulative"] * decay + xp.where(xp.arange(BUCKETS) >= index, 1.0, 0.0)
    return {"cumulative": xp.where(take, entered, state["cumulative"]), "origin": origin}


def log_quantile(xp: Namespace, state: State, q: float) -> Array:
    """Natural logarithm of the q-quantile, q in [0, 1], shape (); meaningless while the sketch is empty.

    The inverse of the weighted distribution function: the smallest bucket with at least q of the weight at
    or below it.
    """
    cumulative = state["cumulative"]
    # a hair below q: rounding must not push the last bucket out of reach
    target = weight(state) * (q * (1.0 - 1e-6))
    index = xp.sum(xp.where(cumulative < target, 1.0, 0.0))
    empty_below = xp.sum(xp.where(cumulative <= 0.0, 1.0, 0.0))  # q = 0 means the smallest value seen
    index = xp.minimum(xp.maximum(index, empty_below), BUCKETS - 1.0)
    return (index + state["origin"] - BUCKETS // 2) * WIDTH + _MIDDLE
