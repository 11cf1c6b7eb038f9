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

from gradwatch.core import checks, tail
from gradwatch.core.norms import Norms
from gradwatch.core.xp import HUGE, Array, Bool, Namespace
from gradwatch.errors import ConfigError

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


# Spread of the log norm (65 % up or down) before anything is known, worth one step: without it the second
# norm of a run would already be an outlier.
_PRIOR_VAR = 0.25


class _Level(NamedTuple):
    """Where the log norm usually stands: winsorised running mean and variance, forgetting exponentially.

    mean_t = mean_{t-1} + d_t / min(n, window);  var_t = var_{t-1} + (d_t^2 - var_{t-1}) / min(n + 1, window)
    with d_t = clip(log norm_t - mean_{t-1}, -winsorise * std_{t-1}, winsorise * std_{t-1}), the n-th norm.
    """

    window: int
    winsorise: float
    min_std: float

    @staticmethod
    def init() -> dict[str, np.ndarray]:
        zero = np.zeros((), np.float32)
        return {"mean": zero, "var": np.full((), _PRIOR_VAR, np.float32), "seen": zero}

    def std(self, xp: Namespace, state: State) -> Array:
        return xp.sqrt(xp.maximum(state["var"], self.min_std**2))

    def z(self, xp: Namespace, state: State, norms: Norms) -> Array:
        """Standard deviations above the mean, judged by the steps before; 0 for the first."""
        return xp.where(state["seen"] > 0.0, norms.log - state["mean"], 0.0) / self.std(xp, state)

    def update(self, xp: Namespace, state: State, norms: Norms) -> dict[str, Array]:
        mean, var, seen = state["mean"], state["var"], state["seen"]
        first = seen <= 0.0
        reach = self.winsorise * self.std(xp, state)
        d = xp.where(first, 0.0, xp.minimum(xp.maximum(norms.log - mean, -reach), reach))
        new_mean = xp.where(first, norms.log, mean + d / xp.minimum(seen + 1.0, float(self.window)))
        new_var = var + (d * d - var) / xp.minimum(seen + 2.0, float(self.window))  # the prior counts as a step
        return {
            "mean": xp.where(norms.enters, new_mean, mean),
            "var": xp.where(norms.enters, new_var, var),
            "seen": xp.where(norms.enters, xp.minimum(seen + 1.0, 1e6), seen),
        }


_WINSORISE = 2.5  # deviations at which the level of `trend` and `vanishing` clamps


def _norm(xp: Namespace, log_norm: Array) -> Array:
    return xp.exp(xp.minimum(log_norm, math.log(HUGE)))


_Z_MAX = 5.0  # of `spike` without a budget
_CALM = 50  # so many steps after an alarm the tail learns nothing but new alarms


def spike(
    z_max: float | None = None,
    *,
    false_alarms_per_million: float | None = None,
    window: int = 200,
    warmup_steps: int = 25,
    winsorise: float = 2.5,
    min_std: float = 0.1,
    memory: int = 50_000,
    cooldown_steps: int = 10,
) -> Detector:
    """An explosion: the log norm stands `z_max` robust standard deviations above its running mean.

    z_t = (log norm_t - mean_{t-1}) / std_{t-1}, alarm where z_t > z_max; threshold exp(mean + z_max * std).
    Mean and variance forget exponentially and take each log norm winsorised at `winsorise` deviations.

    With a budget of false alarms z_max is learned: the z that a healthy step of this run exceeds with that
    probability, from the tail of z (`gradwatch.core.tail`). What passes it enters the tail clamped at it, once for
    each cluster. Until some hundred steps have been seen z_max is about 10, from a prior that is heavier than training.

    Args:
      z_max: standard deviations of the log norm, > 0; None is 5 without a budget.
      false_alarms_per_million: of the steps of a healthy run, > 0 and < 1e5; in place of z_max.
      window: steps remembered, >= 2.
      warmup_steps: finite norms observed before the first alarm, >= 2.
      winsorise: deviations at which a log norm is clamped before it enters, > 1.
      min_std: the standard deviation is at least this, > 0; 0.1 with z_max = 5 means that no norm below
        1.6 times the usual one is ever called an explosion.
      memory: steps that the tail remembers, >= window; with a budget only.
      cooldown_steps: calm steps that end an episode, >= 1.

    Raises:
      ConfigError: an argument is out of range, or z_max and a budget are both given.

    Sources: a z-score on winsorised statistics (Huber 1981, chapter 6, proposal 2 in one step), on the log of
    the norm; ZClip (arXiv 2504.02507) is the same idea on the norm itself. One peak for each cluster: Coles 2001,
    section 5.3.
    """
    if z_max is not None and false_alarms_per_million is not None:
        raise ConfigError(
            f"spike takes z_max or false_alarms_per_million, got {z_max!r} and {false_alarms_per_million!r}; "
            "the budget sets z_max by itself"
        )
    window = checks.count("window", window, least=2)
    warmup = checks.count("warmup_steps", warmup_steps, least=2)
    winsorise = checks.number("winsorise", winsorise, above=1)
    min_std = checks.number("min_std", min_std, above=0)
    memory = checks.count("memory", memory, least=window)
    cooldown = checks.count("cooldown_steps", cooldown_steps)
    level = _Level(window, winsorise, min_std)

    if false_alarms_per_million is not None:
        budget = checks.number("false_alarms_per_million", false_alarms_per_million, above=0, below=1e5)
        learned = _LearnedLimit(budget / 1e6, 1.0 - 1.0 / memory)
        name = f"spike(false_alarms_per_million={budget:g}, window={window})"
    else:
        fixed = checks.number("z_max", _Z_MAX if z_max is None else z_max, above=0)
        learned = None
        name = f"spike({fixed:g}, window={window})"

    def init(num_variables: int) -> State:
        return level.init() if learned is None else {**level.init(), "limit": learned.init()}

    def update(xp: Namespace, state: State, norms: Norms) -> tuple[State, Bool, Mapping[str, Array]]:
        judged = (state["seen"] >= warmup) & norms.finite
        limit = fixed if learned is None else learned.z_max(xp, state["limit"])
        z = level.z(xp, state, norms)
        alarm = judged & (z > limit)
        threshold = _norm(xp, state["mean"] + limit * level.std(xp, state))
        info = {
            "score": xp.where(judged, z, 0.0),
            "threshold": xp.where(state["seen"] >= warmup, threshold, math.inf),
        }
        new: dict[str, Any] = level.update(xp, state, norms)
        if learned is not None:
            new["limit"] = learned.update(xp, state["limit"], xp.minimum(z, limit), alarm, norms)
        return new, alarm, info

    return Detector("explosion", name, init, update, cooldown)


class _LearnedLimit(NamedTuple):
    """z_max from a budget: the tail of z, and how long it has been calm."""

    rate: float
    decay: float

    @staticmethod
    def init() -> dict[str, Any]:
        return {"tail": tail.init(), "calm": np.full((), _CALM, np.float32)}

    def z_max(self, xp: Namespace, state: State) -> Array:
        return tail.limit(xp, state["tail"], self.rate)

    def update(self, xp: Namespace, state: State, z: Array, alarm: Bool, norms: Norms) -> dict[str, Any]:
        calm = state["calm"]
        learns = norms.enters & ((calm >= _CALM) | (alarm & (calm >= 1.0)))
        return {
            "tail": tail.update(xp, state["tail"], z, learns=learns, decay=self.decay),
            "calm": xp.where(alarm, 0.0, xp.where(norms.enters, xp.minimum(calm + 1.0, 1e6), calm)),
        }


def trend(
    drift: float = 1.0,
    decision: float = 8.0,
    *,
    window: int = 200,
    warmup_steps: int = 25,
    winsorise: float = 4.0,
    min_std: float = 0.1,
    cooldown_steps: int = 10,
) -> Detector:
    """A slow exponential explosion: the log norm keeps standing above its running mean.

    One-sided CUSUM: S_t = max(0, S_{t-1} + (min(z_t, winsorise) - drift) / v_{t-1}), alarm where S_t > decision,
    z_t as in `spike`. v = (1 + r) / (1 - r) is the variance of a sum of norms whose neighbours correlate by r,
    relative to independent ones; r, in [0, 0.95], is the running correlation of the last 1,000 steps without an
    alarm. S is held at twice the decision, so that it comes back after the norm does.

    Args:
      drift: deviations above the mean that are still normal, > 0 (the reference value k).
      decision: accumulated deviations that mean a trend, > 0 (the decision interval h).
      window, warmup_steps, min_std, cooldown_steps: as in `spike`.
      winsorise: most deviations that one step adds, > drift: a single spike is no trend.

    Raises:
      ConfigError: an argument is out of range.

    Source: Page 1954, "Continuous inspection schemes", Biometrika 41; Montgomery, Introduction to Statistical
    Quality Control, chapter 9. The correction for correlated norms is ours: without it an AR(1) of 0.9 raises
    four false alarms in 10,000 steps.
    """
    drift = checks.number("drift", drift, above=0)
    decision = checks.number("decision", decision, above=0)
    window = checks.count("window", window, least=2)
    warmup = checks.count("warmup_steps", warmup_steps, least=2)
    winsorise = checks.number("winsorise", winsorise, above=drift)
    min_std = checks.number("min_std", min_std, above=0)
    cooldown = checks.count("cooldown_steps", cooldown_steps)
    level = _Level(window, _WINSORISE, min_std)

    def init(num_variables: int) -> State:
        return {"level": level.init(), **dict.fromkeys(("sum", "last", "correlation"), np.zeros((), np.float32))}

    def update(xp: Namespace, state: State, norms: Norms) -> tuple[State, Bool, Mapping[str, Array]]:
        held, last, correlation = state["level"], state["last"], state["correlation"]
        ready = held["seen"] >= warmup
        z = level.z(xp, held, norms)
        r = xp.minimum(xp.maximum(correlation, 0.0), 0.95)
        grown = state["sum"] + (xp.minimum(z, winsorise) - drift) * (1.0 - r) / (1.0 + r)
        grown = xp.where(ready, xp.minimum(xp.maximum(grown, 0.0), 2.0 * decision), 0.0)
        total = xp.where(norms.finite, grown, state["sum"])
        rising = total > decision
        near = xp.minimum(xp.maximum(z, -_WINSORISE), _WINSORISE)
        # slower than the level, and not while it alarms: a trend must not pass for correlation
        correlated = correlation + (near * last - correlation) / xp.minimum(held["seen"] + 2.0, 1000.0)
        new = {
            "level": level.update(xp, held, norms),
            "sum": total,
            "last": xp.where(norms.enters, near, last),
            "correlation": xp.where(norms.enters & ~rising, correlated, correlation),
        }
        threshold = _norm(xp, held["mean"] + drift * level.std(xp, held))
        info = {"score": total, "threshold": xp.where(ready, threshold, math.inf)}
        return new, ready & norms.finite & rising, info

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

    level = _Level(window, _WINSORISE, min_std)

    def init(num_variables: int) -> State:
        return {"level": level.init(), "streak": np.zeros((), np.float32)}

    def update(xp: Namespace, state: State, norms: Norms) -> tuple[State, Bool, Mapping[str, Array]]:
        held = state["level"]
        ready = held["seen"] >= warmup
        log_threshold = held["mean"] - xp.maximum(z_max * level.std(xp, held), depth)
        low = ready & norms.finite & (norms.log < log_threshold)
        streak = xp.where(low, xp.minimum(state["streak"] + 1.0, 1e6), 0.0)
        streak = xp.where(norms.finite, streak, state["streak"])
        info = {
            "score": xp.where(ready & norms.finite, -level.z(xp, held, norms), 0.0),
            "threshold": xp.where(ready, _norm(xp, log_threshold), 0.0),
        }
        return {"level": level.update(xp, held, norms), "streak": streak}, low & (streak >= patience), info

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
        return {"streak": streak}, alarm, {"score": streak, "threshold": streak * 0.0 + HUGE}

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
