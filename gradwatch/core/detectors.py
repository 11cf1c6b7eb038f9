"""Detectors: is this step abnormal, judged from the steps before?

A detector is a pair of pure functions over explicit state, like a policy:

    init(num_variables) -> state
    update(xp, state, norms) -> (state, alarm, info)

`alarm` is a boolean of shape (); `info` holds "score" (the detector's statistic) and "threshold" (norm units).
All work on the logarithm of the global norm, so one setting fits every scale, and multiplying the gradients
by a constant multiplies the thresholds by it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from gradwatch.core import checks
from gradwatch.core.norms import Norms
from gradwatch.core.xp import HUGE, Array, Bool, Namespace

State = Mapping[str, Any]


class Detector(NamedTuple):
    """A detector; make one with the functions of this module, or your own.

    Attributes:
      kind: what it finds, one of `gradwatch.core.snapshot.KINDS`.
      name: how it was made, for people.
      init: num_variables -> state, a dict of float32 arrays of fixed structure and shapes.
      update: (xp, state, norms) -> (state, alarm, info).
      cooldown_steps: an episode ends after this many finite steps without an alarm.
    """

    kind: str
    name: str
    init: Callable[[int], State]
    update: Callable[[Namespace, State, Norms], tuple[State, Bool, Mapping[str, Array]]]
    cooldown_steps: int = 10


# A prior for the spread of the log norm (65 % up or down), worth one step: without it the second norm of a
# run would already be an outlier.
_PRIOR_VAR = 0.25


def _level_init() -> dict[str, np.ndarray]:
    return {
        "mean": np.zeros((), np.float32),
        "var": np.float32(_PRIOR_VAR).reshape(()),
        "seen": np.zeros((), np.float32),
    }


def _level_update(
    xp: Namespace, state: State, norms: Norms, window: int, winsorise: float, min_std: float
) -> tuple[dict[str, Array], Array, Array]:
    """One step of the winsorised running mean and variance of the log norm.

    mean_t = mean_{t-1} + a_t * d_t;  var_t = var_{t-1} + a_t * (d_t^2 - var_{t-1})
    with d_t = clip(log norm_t - mean_{t-1}, -winsorise * std_{t-1}, winsorise * std_{t-1}), a_t = 1 / min(t, window).

    Returns (new state, z-score of this step, std), both judged with the state before the step.
    """
    mean, var, seen = state["mean"], state["var"], state["seen"]
    std = xp.sqrt(xp.maximum(var, min_std * min_std))
    first = seen <= 0.0
    off = xp.where(first, 0.0, norms.log - mean)
    d = xp.minimum(xp.maximum(off, -winsorise * std), winsorise * std)
    rate = 1.0 / xp.minimum(seen + 1.0, float(window))
    take = norms.finite & (norms.total > 0.0)
    new = {
        "mean": xp.where(take, xp.where(first, norms.log, mean + rate * d), mean),
        # the prior counts as one step
        "var": xp.where(take, var + (1.0 / xp.minimum(seen + 2.0, float(window))) * (d * d - var), var),
        "seen": xp.minimum(seen + xp.where(take, 1.0, 0.0), 1e6),
    }
    return new, off / std, std


def _norm(xp: Namespace, log_norm: Array) -> Array:
    return xp.exp(xp.minimum(log_norm, math.log(HUGE)))


def spike(
    z_max: float = 6.0,
    *,
    window: int = 200,
    warmup_steps: int = 25,
    winsorise: float = 2.5,
    min_std: float = 0.1,
    cooldown_steps: int = 10,
) -> Detector:
    """An explosion: the log norm stands `z_max` robust standard deviations above its running mean.

    z_t = (log norm_t - mean_{t-1}) / std_{t-1}, alarm where z_t > z_max; threshold exp(mean + z_max * std).
    Mean and variance forget exponentially and take each log norm winsorised at `winsorise` deviations.

    Args:
      z_max: standard deviations of the log norm, > 0.
      window: steps remembered, >= 2.
      warmup_steps: finite norms observed before the first alarm, >= 2.
      winsorise: deviations at which a log norm is clamped before it enters, > 1.
      min_std: the standard deviation is at least this, > 0; 0.1 with z_max = 6 means that no norm below
        1.8 times the usual one is ever called an explosion.
      cooldown_steps: calm steps that end an episode, >= 1.

    Raises:
      ConfigError: an argument is out of range.

    Source: a z-score on winsorised statistics (Huber 1981, chapter 6, proposal 2 in one step), on the log of
    the norm; ZClip (arXiv 2504.02507) is the same idea on the norm itself.
    """
    z_max = checks.number("z_max", z_max, above=0)
    window = checks.count("window", window, least=2)
    warmup = checks.count("warmup_steps", warmup_steps, least=2)
    winsorise = checks.number("winsorise", winsorise, above=1)
    min_std = checks.number("min_std", min_std, above=0)
    cooldown = checks.count("cooldown_steps", cooldown_steps)

    def init(num_variables: int) -> State:
        return _level_init()

    def update(xp: Namespace, state: State, norms: Norms) -> tuple[State, Bool, Mapping[str, Array]]:
        ready = state["seen"] >= warmup
        new, z, std = _level_update(xp, state, norms, window, winsorise, min_std)
        threshold = xp.where(ready, _norm(xp, state["mean"] + z_max * std), math.inf)
        score = xp.where(ready & norms.finite, z, 0.0)
        return new, ready & norms.finite & (z > z_max), {"score": score, "threshold": threshold}

    return Detector("explosion", f"spike({z_max:g}, window={window})", init, update, cooldown)


def trend(
    drift: float = 1.5,
    decision: float = 10.0,
    *,
    window: int = 200,
    warmup_steps: int = 25,
    winsorise: float = 4.0,
    min_std: float = 0.1,
    cooldown_steps: int = 10,
) -> Detector:
    """A slow exponential explosion: the log norm keeps standing above its running mean.

    One-sided CUSUM: S_t = max(0, S_{t-1} + min(z_t, winsorise) - drift), alarm where S_t > decision, z_t as in
    `spike`. S is held at twice the decision, so that it comes back after the norm does.

    Args:
      drift: deviations above the mean that are still normal, > 0 (the reference value k).
      decision: accumulated deviations that mean a trend, > 0 (the decision interval h).
      window, warmup_steps, min_std, cooldown_steps: as in `spike`.
      winsorise: most deviations that one step adds, > drift: a single spike is no trend.

    Raises:
      ConfigError: an argument is out of range.

    Source: Page 1954, "Continuous inspection schemes", Biometrika 41; Montgomery, Introduction to Statistical
    Quality Control, chapter 9.
    """
    drift = checks.number("drift", drift, above=0)
    decision = checks.number("decision", decision, above=0)
    window = checks.count("window", window, least=2)
    warmup = checks.count("warmup_steps", warmup_steps, least=2)
    winsorise = checks.number("winsorise", winsorise, above=drift)
    min_std = checks.number("min_std", min_std, above=0)
    cooldown = checks.count("cooldown_steps", cooldown_steps)

    def init(num_variables: int) -> State:
        return {"level": _level_init(), "sum": np.zeros((), np.float32)}

    def update(xp: Namespace, state: State, norms: Norms) -> tuple[State, Bool, Mapping[str, Array]]:
        held = state["level"]
        ready = held["seen"] >= warmup
        level, z, std = _level_update(xp, held, norms, window, 2.5, min_std)
        grown = xp.maximum(state["sum"] + xp.minimum(z, winsorise) - drift, 0.0)
        grown = xp.where(ready, xp.minimum(grown, 2.0 * decision), 0.0)
        total = xp.where(norms.finite, grown, state["sum"])
        alarm = ready & norms.finite & (total > decision)
        threshold = xp.where(ready, _norm(xp, held["mean"] + drift * std), math.inf)
        return {"level": level, "sum": total}, alarm, {"score": total, "threshold": threshold}

    return Detector("trend", f"trend({drift:g}, {decision:g}, window={window})", init, update, cooldown)


def vanishing(
    z_max: float = 6.0,
    drop: float = 100.0,
    *,
    patience: int = 5,
    window: int = 1000,
    warmup_steps: int = 25,
    min_std: float = 0.1,
    cooldown_steps: int = 10,
) -> Detector:
    """The gradient dies: its norm falls far below its own long-run level and stays there.

    Alarm after `patience` steps in a row with log norm_t < mean_{t-1} - max(z_max * std_{t-1}, log(drop)).

    Args:
      z_max: standard deviations of the log norm, > 0.
      drop: the norm must also fall by this factor, > 1.
      patience: steps in a row, >= 1.
      window: steps of the long-run level, >= 2.
      warmup_steps: finite norms observed before the first alarm, >= 2.
      min_std: as in `spike`.
      cooldown_steps: calm steps that end an episode, >= 1.

    Raises:
      ConfigError: an argument is out of range.
    """
    z_max = checks.number("z_max", z_max, above=0)
    drop = checks.number("drop", drop, above=1)
    patience = checks.count("patience", patience)
    window = checks.count("window", window, least=2)
    warmup = checks.count("warmup_steps", warmup_steps, least=2)
    min_std = checks.number("min_std", min_std, above=0)
    cooldown = checks.count("cooldown_steps", cooldown_steps)
    depth = math.log(drop)

    def init(num_variables: int) -> State:
        return {"level": _level_init(), "streak": np.zeros((), np.float32)}

    def update(xp: Namespace, state: State, norms: Norms) -> tuple[State, Bool, Mapping[str, Array]]:
        held = state["level"]
        ready = held["seen"] >= warmup
        level, z, std = _level_update(xp, held, norms, window, 2.5, min_std)
        log_threshold = held["mean"] - xp.maximum(z_max * std, depth)
        low = ready & norms.finite & (norms.log < log_threshold)
        streak = xp.where(low, xp.minimum(state["streak"] + 1.0, 1e6), 0.0)
        streak = xp.where(norms.finite, streak, state["streak"])
        alarm = low & (streak >= patience)
        threshold = xp.where(ready, _norm(xp, log_threshold), 0.0)
        return {"level": level, "streak": streak}, alarm, {"score": -z, "threshold": threshold}

    return Detector("vanishing", f"vanishing({z_max:g}, drop={drop:g})", init, update, cooldown)


def nonfinite(*, patience: int = 1, cooldown_steps: int = 10) -> Detector:
    """A NaN or Inf in any gradient, `patience` steps in a row.

    Args:
      patience: steps in a row before the alarm, >= 1.
      cooldown_steps: finite steps that end an episode, >= 1.

    Raises:
      ConfigError: an argument is out of range.
    """
    patience = checks.count("patience", patience)
    cooldown = checks.count("cooldown_steps", cooldown_steps)

    def init(num_variables: int) -> State:
        return {"streak": np.zeros((), np.float32)}

    def update(xp: Namespace, state: State, norms: Norms) -> tuple[State, Bool, Mapping[str, Array]]:
        streak = xp.where(norms.finite, 0.0, xp.minimum(state["streak"] + 1.0, 1e6))
        alarm = ~norms.finite & (streak >= patience)
        return {"streak": streak}, alarm, {"score": streak, "threshold": xp.where(norms.finite, HUGE, HUGE)}

    return Detector("nonfinite", f"nonfinite(patience={patience})", init, update, cooldown)


def default() -> tuple[Detector, ...]:
    """What `gradwatch.watch` uses: one detector of each kind, with its defaults."""
    return spike(), trend(), vanishing(), nonfinite()


#: Every detector of this package by name: the contract tests read it.
DETECTORS: Mapping[str, Callable[[], Detector]] = {
    "spike": spike,
    "trend": trend,
    "vanishing": vanishing,
    "nonfinite": nonfinite,
}
