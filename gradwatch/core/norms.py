"""The norms of one step, cleaned once so that nobody downstream meets a NaN it does not expect."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from gradwatch.core.xp import HUGE, LARGEST, TINY, Array, Bool, Namespace


class Norms(NamedTuple):
    """Gradient norms of one step, and what else is known of it.

    `reach` and `loss` have defaults, so that who makes norms of a recorded run need not know them. No norm and no
    policy may become NaN by them: ask `xp.is_finite` first.

    Attributes:
      raw: global norm as it came, shape (): NaN when a gradient held a NaN, Inf when one held an Inf and none a NaN,
        a number above 1e36 when all were finite and too large to go on with (an overflow).
      finite: whether every gradient was finite and the norm at most 1e36, shape ().
      enters: whether statistics may learn from this step, shape (): finite and not zero.
      total: global norm, shape (); 0 where not finite. A norm below 1e-37 counts as 0.
      log: natural logarithm of `total`, floored at log(1e-37).
      per_variable: shape [num_variables]; 0 where not finite.
      broken: 1.0 for each variable whose gradient held a NaN or Inf or overflowed, shape [num_variables].
      reach: (1 - momentum) * |w| / learning_rate, shape (): the global norm which, sustained, moves the weights by
        their own length in a step. In (0, 1e36] for an optimizer whose update is linear in the gradient; Inf for
        one that divides by its own second moment, where the length of a gradient hardly matters; NaN where it is
        not known (a learning rate of 0, weights that are all zero, no optimizer given).
      loss: the loss of the step before, shape (), in [-1e36, 1e36]; NaN where it is not known or was NaN.
      weights: |w|, the norm of the weights that reach counts, shape (), in (0, 1e36]; NaN where it is not known.
      kept: share of the step before's norm that was applied, shape (), in [0, 1], relative to what its policy means to
        let through; 0 for a step that was not finite, zeroed or skipped. 1 where it is not known.
    """

    raw: Array
    finite: Bool
    enters: Bool
    total: Array
    log: Array
    per_variable: Array
    broken: Array
    reach: Array = np.float32(math.nan)
    loss: Array = np.float32(math.nan)
    kept: Array = np.float32(1.0)
    weights: Array = np.float32(math.nan)


def of(
    xp: Namespace,
    per_variable: Array,
    reach: Array | None = None,
    loss: Array | None = None,
    weights: Array | None = None,
) -> Norms:
    """The global norm of per-variable L2 norms, shape [num_variables].

    Args:
      reach: shape (); None, NaN, zero and what is negative are "not known", above 1e36 is "does not apply".
      loss: of the step before, shape (); None and NaN are "not known", Inf counts as 1e36.
      weights: their norm, shape (); None, NaN, zero, what is negative and what is above 1e36 are "not known".
    """
    # a comparison with NaN is false
    finite_each = per_variable <= LARGEST
    good = per_variable <= HUGE
    present = xp.where(finite_each & (per_variable >= TINY), per_variable, 0.0)
    joint = total(xp, present)
    broken = xp.where(good, 0.0, 1.0)
    # many variables at the limit are beyond it together
    finite = (xp.sum(broken) < 0.5) & (joint <= HUGE)
    usable = xp.where(finite, joint, 0.0)
    # of zeros, and of what is NaN or Inf: a sum is NaN as soon as one of them is
    worst = xp.sum(xp.where(finite_each, 0.0, per_variable))
    return Norms(
        raw=xp.where(xp.max(xp.where(finite_each, 0.0, 1.0)) > 0.5, worst, joint),
        finite=finite,
        enters=finite & (usable > 0.0),
        total=usable,
        log=xp.log(xp.maximum(usable, TINY)),
        per_variable=xp.where(good, present, 0.0),
        broken=broken,
        reach=xp.number(math.nan) if reach is None else _reach(xp, reach),
        loss=xp.number(math.nan) if loss is None else _loss(xp, loss),
        weights=xp.number(math.nan) if weights is None else _length(xp, weights),
    )


def _reach(xp: Namespace, reach: Array) -> Array:
    # a comparison with NaN is false
    return xp.where(reach >= TINY, xp.where(reach > HUGE, math.inf, reach), math.nan)


def _length(xp: Namespace, weights: Array) -> Array:
    return xp.where((weights >= TINY) & (weights <= HUGE), weights, math.nan)


def _loss(xp: Namespace, loss: Array) -> Array:
    # where, not minimum and maximum: NaN stays NaN on every backend
    return xp.where(loss > HUGE, HUGE, xp.where(loss < -HUGE, -HUGE, loss))


def total(xp: Namespace, per_variable: Array) -> Array:
    """m * sqrt(sum((norm_i / m)^2)), m = max(norm_i): a plain sum of squares overflows from norms of 1.8e19.

    Where the norm itself is beyond float32 the answer is 3e38, which is finite.
    """
    largest = xp.maximum(xp.max(per_variable), TINY)
    ratios = per_variable / largest
    root = xp.sqrt(xp.sum(ratios * ratios))
    return root * xp.minimum(largest, 3e38 / xp.maximum(root, 1.0))


def encode(xp: Namespace, norm: Array) -> Array:
    """A norm as a finite number, for the state: Inf is `LARGEST` and NaN is -1, which no norm is."""
    # a comparison with NaN is false
    return xp.where(norm < LARGEST, norm, xp.where(norm >= LARGEST, LARGEST, -1.0))


def decode(number: np.ndarray) -> np.ndarray:
    """What `encode` wrote, as it was; numpy only."""
    number = np.asarray(number, np.float32)
    infinite = np.where(number >= np.float32(LARGEST), np.float32(math.inf), number)
    return np.asarray(np.where(number < 0, np.float32(math.nan), infinite))
