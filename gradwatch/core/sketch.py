"""A quantile sketch with forgetting: one fixed tensor, O(1) per step however long the run.

Buckets stand at logarithmic distances, as in DDSketch (Masson, Rim, Lee 2019, arXiv 1908.10693): bucket i
holds the values in (gamma^(i-1), gamma^i] and answers 2 gamma^i / (gamma + 1), at most `ACCURACY` away from
each of them, gamma = (1 + ACCURACY) / (1 - ACCURACY). We differ in four points. Every step multiplies the
old weights by a forgetting factor. The *cumulative* weights are kept, which makes a quantile one comparison
and one sum (no sort, no scan). The buckets are centred on the first value, so 2,048 of them reach almost nine
decades to either side whatever the scale of the gradient. And where most of the weight has ended up in an
outermost bucket, as after a first value that was nothing like the rest, the sketch starts over around the
value that comes next.
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
    cumulative, origin, total = state["cumulative"], state["origin"], weight(state)
    position = xp.ceil(log_value / WIDTH)
    index = position - origin + BUCKETS // 2
    # half of the weight lies where values of any size look the same, or nothing lies anywhere yet
    lost = ((index < 0.0) & (cumulative[0] >= 0.5 * total)) | (
        (index > BUCKETS - 1.0) & (cumulative[-2] <= 0.5 * total)
    )
    lost = take & (lost | (total <= 0.0))
    origin = xp.where(lost, position, origin)
    index = xp.where(lost, BUCKETS // 2, xp.minimum(xp.maximum(index, 0.0), BUCKETS - 1.0))
    # beyond the end and times 1: nothing changes, to the bit
    index = xp.where(take, index, float(BUCKETS))
    keep = xp.where(take, xp.where(lost, 0.0, decay), 1.0)
    return {"cumulative": xp.enter(cumulative, index, keep), "origin": origin}


def log_quantile(xp: Namespace, state: State, q: float) -> Array:
    """Natural logarithm of the q-quantile, q in [0, 1], shape (); meaningless while the sketch is empty.

    The inverse of the weighted distribution function: the smallest bucket with at least q of the weight at
    or below it. What holds less than a millionth of the weight at either end is forgotten.
    """
    # a hair below q = 1: rounding must not push the last bucket out of reach
    below = xp.count_below(state["cumulative"], max(q * (1.0 - 1e-6), 1e-6))
    index = xp.minimum(below, BUCKETS - 1.0)
    return (index + state["origin"] - BUCKETS // 2) * WIDTH + _MIDDLE
