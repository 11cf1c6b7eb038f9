"""The upper tail of a healthy log norm, learned from its peaks: which height does one step in a million exceed?

z is the log norm in deviations above its running level. Of the excesses y = z - u over u = 0.75 we keep the decayed
count n, the sums S1, S2, S3 of y, y^2, y^3, and the count N of all steps; each holds a prior that does not decay. The
model is a linear hazard,

    P(z > u + y) = n/N * exp(-b y - c y^2),  b, c >= 0,

exact for the two ends of what log norms do: an exponential tail (c = 0: the logarithm of a power law) and, to 1 % in
the exponent, the normal tail of log-normal norms. Matching the events to the exposure, and the events weighted
by y to the exposure weighted by y, gives two linear equations and nothing to iterate:

    n  = b S1 + c S2
    S1 = b S2 / 2 + 2 c S3 / 3

Half the hazard squared over sqrt(n), about a standard error, is taken off c: a tail lighter than the truth costs false
alarms. The threshold solves b y + c y^2 = log(n / (N p)) for the budget p.

**Rare outliers.** A healthy run of some thousand steps holds a few norms that no tail of the others explains: a rare
batch, a GAN that changes its mind. They are an admixture: a share epsilon of the steps, whose log norm is exponential
with mean 0.4 above a start. The limit m, as a log norm above the level, is the higher one of the two:

    m = max(L, w L + 0.4 * max(log(epsilon / p), 0)),    L = z_max * std
    w = b / sqrt(b^2 + 4 c h),    h = log(n / (N p))

w is the hazard where the tail begins over the hazard at z_max. In an exponential tail w is 1 and outliers stand above
the limit of the tail. In a light one w is about 0.3 and they start near the level, so that they hardly matter where
ordinary norms reach as far.

epsilon = (0.15 + k) / (500 + N). k is the decayed count of clusters that passed the limit of the tail by less than 3
such means: what lies farther out is no outlier of a healthy run. Each counts as epsilon / (epsilon + p), the odds that
it was an outlier and not one of the alarms that the budget allows. After `steps_until_known` steps without an outlier
they add nothing. Under a budget below 0.15 / (500 + memory) they always add something. The numbers were chosen on the
design kinds of benchmarks/healthy.py.

Source: peaks over threshold (Coles 2001, An Introduction to Statistical Modeling of Extreme Values, chapter 4) with
another tail. The generalised Pareto's normal case has an end point, and its shape cannot be learned from a few hundred
peaks: a budget of 10 in a million was then missed by factors of 2 to 17. The admixture is ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from gradwatch.core.xp import Array, Bool, Namespace

State = Mapping[str, Any]

START = 0.75  # u: what lies above so many deviations is the tail

# What is believed before anything is known, and never forgotten: so many excesses of an exponential tail with this
# mean, which is heavier than what training shows, out of so many steps that a normal distribution would have given.
_PEAKS, _MEAN, _SHARE = 5.0, 1.0, 0.23
_PRIOR = {
    "steps": _PEAKS / _SHARE,
    "peaks": _PEAKS,
    "sum1": _PEAKS * _MEAN,
    "sum2": _PEAKS * 2 * _MEAN**2,
    "sum3": _PEAKS * 6 * _MEAN**3,
}


# Outliers that are believed in before any was seen, out of so many steps, and how far they lie out, as a log norm.
_OUTLIERS, _OUT_OF, _OUTLIER_MEAN = 0.15, 500.0, 0.4
_FARTHEST = 3.0  # in such means: what lies farther out is no outlier of a healthy run


def init() -> dict[str, np.ndarray]:
    """The prior: counts and sums, each of shape (); no outliers."""
    return {name: np.full((), value, np.float32) for name, value in {**_PRIOR, "outliers": 0.0}.items()}


def steps_until_known(rate: float, memory: int) -> int | None:
    """Healthy steps after which the run itself says more of outliers at this rate than what is believed of all runs.

    N reaches 0.15 / rate - 500 after so many, N_t = memory * (1 - (1 - 1 / memory)^t); None: it never does.
    """
    needed = _OUTLIERS / rate - _OUT_OF
    if needed >= memory:
        return None
    return math.ceil(math.log1p(-max(needed, 0.0) / memory) / math.log1p(-1.0 / memory))


def limit(xp: Namespace, tail: State, rate: float) -> Array:
    """The z that a step of the tail exceeds with probability `rate`, shape ()."""
    return _limit(xp, tail, rate)[0]


def margin(xp: Namespace, tail: State, std: Array, rate: float) -> Array:
    """How far above its level a log norm stands that a healthy step exceeds with probability `rate`, shape ().

    Args:
      std: deviation of the log norm, the unit of z.
    """
    z_max, start = _limit(xp, tail, rate)
    reach = z_max * std
    return xp.maximum(reach, start * reach + _OUTLIER_MEAN * xp.maximum(xp.log(_share(xp, tail)) - math.log(rate), 0.0))


def _limit(xp: Namespace, tail: State, rate: float) -> tuple[Array, Array]:
    """(z_max, the part w of it at which outliers start)."""
    n, s1, s2, s3 = tail["peaks"], tail["sum1"], tail["sum2"], tail["sum3"]
    determinant = xp.maximum(s1 * s3 * (2.0 / 3.0) - s2 * s2 * 0.5, 1e-12)
    hazard = n / s1
    c = (s1 * s1 - n * s2 * 0.5) / determinant
    c = xp.maximum(c - 0.5 * hazard * hazard / xp.sqrt(n), 0.0)
    b = xp.maximum((n - c * s2) / s1, 0.0)
    h = xp.maximum(xp.log(n / tail["steps"]) - math.log(rate), 0.0)
    last = xp.sqrt(b * b + 4.0 * c * h)
    # the root in the form that works for c = 0
    return START + 2.0 * h / xp.maximum(b + last, 1e-6), b / xp.maximum(last, 1e-6)


def _share(xp: Namespace, tail: State) -> Array:
    """Share of outliers among the steps, epsilon."""
    seen = tail["steps"] - _PRIOR["steps"]
    return (_OUTLIERS + tail["outliers"]) / (_OUT_OF + xp.maximum(seen, 0.0))


def update(
    xp: Namespace, tail: State, z: Array, std: Array, *, learns: Bool, limit: Array, rate: float, decay: float
) -> dict[str, Array]:
    """Enter one z, shape (), where `learns`; what was seen before weighs `decay` of what it did.

    The prior keeps its weight: a run whose z never enters the tail would be left with sums of nothing.

    Args:
      std: deviation of the log norm, the unit of z.
      limit: that for `rate`; z enters clamped at it, and what passes it begins a cluster.
    """
    passed = (z > limit) & ((z - limit) * std < _FARTHEST * _OUTLIER_MEAN)
    z = xp.minimum(z, limit)
    over = xp.where(z > START, 1.0, 0.0)
    y = xp.maximum(z - START, 0.0)
    more = {"steps": over * 0.0 + 1.0, "peaks": over, "sum1": y, "sum2": y * y, "sum3": y * y * y}
    new = {name: tail[name] * decay + (x + _PRIOR[name] * (1.0 - decay)) for name, x in more.items()}
    share = _share(xp, tail)
    # where outliers are rarer than the budget, what passed was most likely the budget's own
    new["outliers"] = tail["outliers"] * decay + xp.where(passed, share / (share + rate), 0.0)
    return {name: xp.where(learns, x, tail[name]) for name, x in new.items()}
