"""The norms of one step, cleaned once so that nobody downstream meets a NaN."""

from __future__ import annotations

from typing import NamedTuple

from gradwatch.core.xp import HUGE, TINY, Array, Bool, Namespace


class Norms(NamedTuple):
    """Gradient norms of one step.

    Attributes:
      raw: global norm as it came, shape (); NaN or Inf when a gradient held one.
      finite: whether every gradient was finite, shape (). A norm above 1e36 counts as Inf.
      enters: whether statistics may learn from this step, shape (): finite and not zero.
      total: global norm, shape (); 0 where not finite. A norm below 1e-37 counts as 0.
      log: natural logarithm of `total`, floored at log(1e-37).
      per_variable: shape [num_variables]; 0 where not finite.
      broken: 1.0 for each variable whose gradient held a NaN or Inf, shape [num_variables].
    """

    raw: Array
    finite: Bool
    enters: Bool
    total: Array
    log: Array
    per_variable: Array
    broken: Array


def of(xp: Namespace, per_variable: Array) -> Norms:
    """The global norm of per-variable L2 norms, shape [num_variables]."""
    # a comparison with NaN is false
    good = per_variable <= HUGE
    clean = xp.where(good & (per_variable >= TINY), per_variable, 0.0)
    joint = total(xp, clean)
    broken = xp.where(good, 0.0, 1.0)
    # many variables at the limit are beyond it together
    finite = (xp.sum(broken) < 0.5) & (joint <= HUGE)
    usable = xp.where(finite, joint, 0.0)
    return Norms(
        # a largest element or a sum would be one of NaN and Inf, whichever the variables hold
        raw=xp.where(xp.sum(broken) < 0.5, joint, xp.sum(xp.where(good, 0.0, per_variable))),
        finite=finite,
        enters=finite & (usable > 0.0),
        total=usable,
        log=xp.log(xp.maximum(usable, TINY)),
        per_variable=clean,
        broken=broken,
    )


def total(xp: Namespace, per_variable: Array) -> Array:
    """m * sqrt(sum((norm_i / m)^2)), m = max(norm_i): a plain sum of squares overflows from norms of 1.8e19."""
    largest = xp.maximum(xp.max(per_variable), TINY)
    ratios = per_variable / largest
    return largest * xp.sqrt(xp.sum(ratios * ratios))
