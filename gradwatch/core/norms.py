"""The norms of one step, cleaned once so that nobody downstream meets a NaN."""

from __future__ import annotations

from typing import NamedTuple

from gradwatch.core.xp import HUGE, TINY, Array, Bool, Namespace


class Norms(NamedTuple):
    """Gradient norms of one step.

    Attributes:
      raw: global norm as it came, shape (); NaN or Inf when a gradient held one.
      finite: whether every gradient was finite, shape ().
      total: global norm, shape (); 0 where not finite.
      log: natural logarithm of `total`, floored at log(1e-37).
      per_variable: shape [num_variables]; 0 where not finite.
      broken: 1.0 for each variable whose gradient held a NaN or Inf, shape [num_variables].
    """

    raw: Array
    finite: Bool
    total: Array
    log: Array
    per_variable: Array
    broken: Array


def of(xp: Namespace, per_variable: Array) -> Norms:
    """The global norm of per-variable L2 norms, shape [num_variables], without overflow or underflow.

    total = m * sqrt(sum((norm_i / m)^2)) with m = max(norm_i); the plain sum of squares overflows from 1.8e19.
    """
    good = xp.is_finite(per_variable)
    clean = xp.minimum(xp.where(good, per_variable, 0.0), HUGE)
    largest = xp.maximum(xp.max(clean), TINY)
    ratios = clean / largest
    total = xp.minimum(largest * xp.sqrt(xp.sum(ratios * ratios)), HUGE)
    broken = xp.where(good, 0.0, 1.0)
    finite = xp.sum(broken) < 0.5
    total = xp.where(finite, total, 0.0)
    return Norms(
        # the sum carries whichever of NaN and Inf the variables hold
        raw=xp.where(finite, total, xp.sum(per_variable)),
        finite=finite,
        total=total,
        log=xp.log(xp.maximum(total, TINY)),
        per_variable=clean,
        broken=broken,
    )
