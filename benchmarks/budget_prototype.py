"""A spike detector whose threshold is a budget of false alarms: how often a person accepts to be woken.

A prototype within gradwatch's detector contract. Only arithmetic on eight scalars, so it runs in the graph, is
saved with the checkpoint, and the same stream gives the same alarms; nothing comes back from the host.

The log norm is detrended as in `gradwatch.detectors.spike`: z_t = (log norm_t - mean_{t-1}) / std_{t-1}. Of its
upper tail, the excesses y = z - u over u = 0.75, we keep the decayed count n, the sums S1, S2, S3 of y, y^2, y^3,
and the count N of all steps. The tail model is a linear hazard,

    P(z > u + y) = n/N * exp(-b y - c y^2),  b, c >= 0,

which is exact for the two ends of what log norms do: an exponential tail (c = 0: the logarithm of any power law)
and, to 1 % in the exponent, the normal tail of log-normal norms. The generalised Pareto distribution is not: its
normal case has an end point, and the shape cannot be learned from a few hundred peaks. Matching events to exposure,
and events weighted by y to exposure weighted by y, gives two linear equations,

    n  = b S1 + c S2
    S1 = b S2 / 2 + 2 c S3 / 3,

so there is nothing to iterate. A standard error is taken off c, because a tail that is lighter than the truth costs
false alarms. The threshold solves b y + c y^2 = log(n / (N p)) for the budget p.

What passes the threshold enters clamped at it, and only where the step before was calm, as one peak per cluster
(declustering; Coles 2001, An Introduction to Statistical Modeling of Extreme Values, section 5.3).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from gradwatch.core import checks
from gradwatch.core.detectors import Detector
from gradwatch.core.norms import Norms
from gradwatch.core.xp import HUGE, Array, Bool, Namespace

State = Mapping[str, Any]

TAIL = 0.75  # u: excesses over so many deviations are the tail
_PRIOR_PEAKS = 5.0  # before anything is known: so many excesses of an exponential tail ...
_PRIOR_MEAN = 1.0  # ... with this mean, which is heavier than what training shows
_PRIOR_SHARE = 0.23  # of the steps are excesses: a normal tail at u


def spike_budget(
    false_alarms_per_million: float = 10.0,
    *,
    window: int = 200,
    memory: int = 50_000,
    warmup_steps: int = 25,
    winsorise: float = 2.5,
    min_std: float = 0.1,
    calm_steps: int = 50,
    cooldown_steps: int = 10,
) -> Detector:
    """An explosion: the log norm is higher than a healthy run shows more often than the budget.

    Args:
      false_alarms_per_million: of the steps of a healthy run, > 0 and < 1e5.
      window: steps that the level of the log norm remembers, >= 2.
      memory: steps that the tail remembers, >= window.
      warmup_steps, winsorise, min_std, cooldown_steps: as in `gradwatch.detectors.spike`.
      calm_steps: so many steps after an alarm the tail learns nothing but new alarms, >= 1.

    Raises:
      ConfigError: an argument is out of range.
    """
    rate = checks.number("false_alarms_per_million", false_alarms_per_million, above=0, below=1e5) / 1e6
    window = checks.count("window", window, least=2)
    memory = checks.count("memory", memory, least=window)
    warmup = checks.count("warmup_steps", warmup_steps, least=2)
    winsorise = checks.number("winsorise", winsorise, above=1)
    min_std = checks.number("min_std", min_std, above=0)
    calm_after = checks.count("calm_steps", calm_steps)
    cooldown = checks.count("cooldown_steps", cooldown_steps)
    decay = 1.0 - 1.0 / memory
    prior = {
        "steps": _PRIOR_PEAKS / _PRIOR_SHARE,
        "peaks": _PRIOR_PEAKS,
        "sum1": _PRIOR_PEAKS * _PRIOR_MEAN,
        "sum2": _PRIOR_PEAKS * 2 * _PRIOR_MEAN**2,
        "sum3": _PRIOR_PEAKS * 6 * _PRIOR_MEAN**3,
    }

    def init(num_variables: int) -> State:
        zero = {"mean": 0.0, "var": 0.25, "seen": 0.0, "calm": float(calm_after)}
        return {name: np.full((), value, np.float32) for name, value in {**zero, **prior}.items()}

    def limit(xp: Namespace, state: State) -> Array:
        """The z that a healthy step exceeds with probability `rate`."""
        n, s1, s2, s3 = state["peaks"], state["sum1"], state["sum2"], state["sum3"]
        determinant = xp.maximum(s1 * s3 * (2.0 / 3.0) - s2 * s2 * 0.5, 1e-12)
        hazard = n / s1
        c = (s1 * s1 - n * s2 * 0.5) / determinant
        c = xp.maximum(c - 0.5 * hazard * hazard / xp.sqrt(n), 0.0)
        b = xp.maximum((n - c * s2) / s1, 0.0)
        h = xp.maximum(xp.log(n / state["steps"]) - math.log(rate), 0.0)
        # the root in the form that works for c = 0
        return TAIL + 2.0 * h / xp.maximum(b + xp.sqrt(b * b + 4.0 * c * h), 1e-6)

    def update(xp: Namespace, state: State, norms: Norms) -> tuple[State, Bool, Mapping[str, Array]]:
        mean, var, seen, calm = state["mean"], state["var"], state["seen"], state["calm"]
        std = xp.sqrt(xp.maximum(var, min_std * min_std))
        first, ready = seen <= 0.0, seen >= warmup
        off = xp.where(first, 0.0, norms.log - mean)
        z, z_max = off / std, limit(xp, state)
        judged = ready & norms.finite
        alarm = judged & (z > z_max)
        threshold = xp.exp(xp.minimum(mean + z_max * std, math.log(HUGE)))

        learns = norms.enters & ((calm >= calm_after) | (alarm & (calm >= 1.0)))
        y = xp.minimum(z, z_max) - TAIL
        over = xp.where(y > 0.0, 1.0, 0.0)
        y = xp.maximum(y, 0.0)
        increments = {"steps": over * 0.0 + 1.0, "peaks": over, "sum1": y, "sum2": y * y, "sum3": y * y * y}
        tail = {name: xp.where(learns, state[name] * decay + x, state[name]) for name, x in increments.items()}

        reach = winsorise * std
        d = xp.minimum(xp.maximum(off, -reach), reach)
        enters = norms.enters
        new = {
            "mean": xp.where(
                enters, xp.where(first, norms.log, mean + d / xp.minimum(seen + 1.0, float(window))), mean
            ),
            "var": xp.where(enters, var + (d * d - var) / xp.minimum(seen + 2.0, float(window)), var),
            "seen": xp.where(enters, xp.minimum(seen + 1.0, 1e6), seen),
            "calm": xp.where(alarm, 0.0, xp.where(enters, xp.minimum(calm + 1.0, 1e6), calm)),
            **tail,
        }
        info = {"score": xp.where(judged, z, 0.0), "threshold": xp.where(ready, threshold, math.inf)}
        return new, alarm, info

    return Detector("explosion", f"spike_budget({false_alarms_per_million:g})", init, update, cooldown)
