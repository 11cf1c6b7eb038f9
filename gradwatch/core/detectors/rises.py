"""The norm rises: `spike` in a step, `trend` over many."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np

from gradwatch.core import anchor, checks, tail
from gradwatch.core.detectors.base import State, Update
from gradwatch.core.detectors.level import PRIOR_VAR, Level, OnLevel, as_norm
from gradwatch.core.norms import Norms
from gradwatch.core.xp import LARGEST, Array, Bool, Namespace
from gradwatch.errors import ConfigError

_Z_MAX = 5.0  # of `spike` without a budget
_LEAST_Z = 3.0  # with one, in units of min_std
_WIDTH_MEMORY, _WIDTH_SHARE = 3000.0, 0.8  # norms over which a deviation is usual; so much of it at least counts
_CALM = 50  # so many steps after one that passed the tail's limit the tail learns nothing but new ones
# The level's deviation s comes to rest where E[min(x^2, (winsorise s)^2)] = s^2: at 0.79 of a normal's own for 1.5, at
# 0.50 for 1.2 and 0.17 for 1.05, where a fifth of all healthy steps would stand above 5 s.
_LEAST_WINSORISE = 1.5


@dataclass(frozen=True, repr=False)
class spike(OnLevel):
    """An explosion: the log norm stands `z_max` robust standard deviations above its running mean.

    z_t = (log norm_t - mean_{t-1}) / std_{t-1}, alarm where log norm_t exceeds
    min(mean + z_max * std, low + log 1000); `Snapshot.explosion_threshold` is the exponential of that. Mean and
    variance forget exponentially and take each log norm winsorised at `winsorise` deviations. `low` is the run's
    anchor in its own healthy past, which a drift cannot take along as it takes the mean.

    From the second norm until `warmup_steps` have been seen the alarm is for norms 12 to 30 times the mean so far
    (12 in a calm start), so that decades of growth are seen at once and a wild start does not teach the level.
    `gradwatch.core.detectors.level` has the formulas, docs/detectors.md how often healthy starts raise it.

    With a budget of false alarms z_max is learned: the z that one healthy step in 1,000,000 / budget exceeds, from the
    tail of z or from rare outliers beside it, whichever is higher (`gradwatch.core.tail`). The limit is z_max * s_t
    above the mean, s_t = max(std_t, 0.8 sqrt(v_t)), v_t the mean of std^2 over the last 3,000 norms: a calm
    stretch of a run whose norms vary now much, now little, lowers the limit only slowly. What passes the tail's own
    limit enters it clamped there, once for each cluster, and may count as an outlier. Until some hundred steps have
    been seen z_max is about 10, from a prior that is heavier than training and that keeps its weight. z_max * std is
    never less than 3 * min_std: on a calm run the budget is not used up. A run shorter than `budget_steps` is too short
    for its budget.

    Args:
      z_max: standard deviations of the log norm, > 0; None is 5 without a budget.
      false_alarms_per_million: of the steps of a healthy run, > 0 and < 1e5; in place of z_max.
      window: steps remembered, >= 2.
      warmup_steps: norms observed before z_max counts, >= 2; a wild one counts as a quarter.
      winsorise: deviations at which a log norm is clamped before it enters, >= 1.5; closer, the deviation would sink.
      min_std: the standard deviation is at least this, > 0; 0.1 with z_max = 5 means that no norm below
        1.6 times the usual one is ever called an explosion (1.35 times with a budget).
      memory: steps that the tail remembers, >= window; with a budget only.
      cooldown_steps: calm steps that end an episode, >= 1.

    Raises:
      ConfigError: an argument is out of range, or z_max and a budget are both given.

    Example:
      >>> from gradwatch import detectors
      >>> detectors.spike(6, window=500)
      spike(6, window=500)

    Sources: a z-score on winsorised statistics (Huber 1981, chapter 6, proposal 2 in one step), on the log of
    the norm; ZClip (arXiv 2504.02507) is the same idea on the norm itself. One peak for each cluster: Coles 2001,
    section 5.3. Start and anchor are ours.
    """

    z_max: float | None = None
    false_alarms_per_million: float | None = field(default=None, kw_only=True)
    winsorise: float = field(default=2.5, kw_only=True)
    memory: int = field(default=50_000, kw_only=True)

    kind: ClassVar[str] = "explosion"  # type: ignore[misc]

    def __post_init__(self) -> None:
        z_max, budget = self.z_max, self.false_alarms_per_million
        if z_max is not None and budget is not None:
            raise ConfigError(
                f"spike takes z_max or false_alarms_per_million, got {z_max!r} and {budget!r}; "
                "the budget sets z_max by itself"
            )
        if budget is None:
            self._store(z_max=checks.number("z_max", _Z_MAX if z_max is None else z_max, above=0))
        else:
            budget = checks.number("false_alarms_per_million", budget, above=0, below=1e5)
            self._store(false_alarms_per_million=budget)
        self._store(
            winsorise=checks.number(
                "winsorise",
                self.winsorise,
                least=_LEAST_WINSORISE,
                hint="a standard deviation of log norms that are clamped closer would sink, and call healthy steps "
                "explosions",
            ),
        )
        self._check_level()
        self._store(memory=checks.count("memory", self.memory, least=self.window))

    def _texts(self) -> list[str]:
        texts = super()._texts()
        return texts if self.z_max is not None else texts[1:]

    @property
    def _clamp(self) -> float:  # type: ignore[override]
        return self.winsorise

    @property
    def budget_steps(self) -> int | None:
        """Healthy steps that a run needs for its budget to be kept; 0 without one, None where no run is long enough.

        17,125 for 10 in a million, 1,011 for 100: before, the limit leans on what is believed of all runs. Below 3 in a
        million it always does: what the last 50,000 steps show of outliers never outweighs the belief.
        """
        budget = self.false_alarms_per_million
        if budget is None:
            return 0
        steps = tail.steps_until_known(budget / 1e6, self.memory)
        return None if steps is None else max(steps, self.warmup_steps)

    @property
    def _learned(self) -> _LearnedLimit | None:
        budget = self.false_alarms_per_million
        return None if budget is None else _LearnedLimit(budget / 1e6, 1.0 - 1.0 / self.memory)

    def init(self, num_variables: int) -> State:
        state = {"level": Level.init(), "low": np.zeros((), np.float32)}
        learned = self._learned
        return state if learned is None else {**state, "limit": learned.init()}

    def update(self, xp: Namespace, state: State, norms: Norms) -> Update:
        level, learned = self._level, self._learned
        held = state["level"]
        std, ready, begun = level.std(xp, held), level.ready(held), held["seen"] > 0.0
        over: Any = self.z_max * std if self.z_max is not None else 0.0
        if learned is not None:
            over = xp.maximum(learned.margin(xp, state["limit"], std), _LEAST_Z * self.min_std)
        margin = xp.where(ready, over, level.start_margin(xp, held))
        log_threshold = xp.minimum(held["mean"] + margin, state["low"] + anchor.DECADES)
        z = level.z(xp, held, norms)
        judged = begun & norms.finite
        alarm = judged & (norms.log > log_threshold)
        after = level.update(xp, held, norms)
        low = anchor.follow(xp, state["low"], after["mean"], held["seen"], falls=True)
        new: dict[str, Any] = {"level": after, "low": xp.where(norms.enters, low, state["low"])}
        if learned is not None:
            new["limit"] = learned.update(
                xp, state["limit"], z, std, norms, seen=held["seen"], ready=ready, alarm=alarm
            )
        info = {
            "score": xp.where(judged, z, 0.0),
            "threshold": xp.where(begun, as_norm(xp, log_threshold), LARGEST),
            "warmup": xp.where(ready, 0.0, 1.0),
        }
        return new, alarm, info


class _LearnedLimit(NamedTuple):
    """The limit from a budget: the tail of z with its outliers, the usual width, and how long it has been calm."""

    rate: float
    decay: float

    @staticmethod
    def init() -> dict[str, Any]:
        return {
            "tail": tail.init(),
            "width": np.full((), PRIOR_VAR, np.float32),
            "calm": np.full((), _CALM, np.float32),
        }

    def margin(self, xp: Namespace, state: State, std: Array) -> Array:
        """How far above the mean the limit lies, a log norm."""
        least = _WIDTH_SHARE * xp.sqrt(state["width"])
        return tail.margin(xp, state["tail"], xp.maximum(std, least), self.rate)

    def update(
        self,
        xp: Namespace,
        state: State,
        z: Array,
        std: Array,
        norms: Norms,
        *,
        seen: Array,
        ready: Bool,
        alarm: Bool,
    ) -> dict[str, Any]:
        """After a step; in the start nothing passes but what alarms, and that is no outlier.

        Args:
          seen: norms before this one.
        """
        calm, width, limit = state["calm"], state["width"], tail.limit(xp, state["tail"], self.rate)
        passed = (ready & (z > limit)) | (~ready & alarm)
        learns = norms.enters & ((calm >= _CALM) | (passed & (calm >= 1.0)))
        held = xp.where(ready, z, xp.minimum(z, limit))
        wider = width + (std * std - width) / xp.minimum(seen + 1.0, _WIDTH_MEMORY)
        return {
            "tail": tail.update(
                xp, state["tail"], held, std, learns=learns, limit=limit, rate=self.rate, decay=self.decay
            ),
            "width": xp.where(norms.enters, wider, width),
            "calm": xp.where(passed, 0.0, xp.where(norms.enters, xp.minimum(calm + 1.0, 1e6), calm)),
        }


@dataclass(frozen=True, repr=False)
class trend(OnLevel):
    """A slow exponential explosion: the log norm keeps standing above its running mean.

    One-sided CUSUM: S_t = max(0, S_{t-1} + min(z_t - k_t, winsorise - drift) / v_{t-1}), alarm where S_t > decision,
    z_t as in `spike`, k_t = max(drift, log(rise) / std_{t-1}).
    v = (1 + r) / (1 - r) is the variance of a sum of norms whose neighbours correlate by r,
    relative to independent ones; r, in [0, 0.95], is the running correlation of the last 1,000 steps without an
    alarm. S is held at twice the decision, so that it comes back after the norm does.

    Args:
      drift: deviations above the mean that are still normal, > 0 (the reference value k).
      decision: accumulated deviations that mean a trend, > 0 (the decision interval h).
      rise: times the usual norm that is still normal, >= 1: while it learns, a healthy run's norm may double within
        some hundred steps.
      window, min_std, cooldown_steps: as in `spike`.
      warmup_steps: norms observed before the first alarm, >= 2; a wild one counts as a quarter.
      winsorise: most deviations that one step adds, > drift: a single spike is no trend.

    Raises:
      ConfigError: an argument is out of range.

    Source: Page 1954, "Continuous inspection schemes", Biometrika 41; Montgomery, Introduction to Statistical
    Quality Control, chapter 9. The correction for correlated norms is ours: without it an AR(1) of 0.9 raises
    four false alarms in 10,000 steps.
    """

    drift: float = 1.0
    decision: float = 8.0
    rise: float = field(default=1.4, kw_only=True)
    winsorise: float = field(default=4.0, kw_only=True)

    kind: ClassVar[str] = "trend"  # type: ignore[misc]

    def __post_init__(self) -> None:
        self._store(
            drift=checks.number("drift", self.drift, above=0),
            decision=checks.number("decision", self.decision, above=0),
            rise=checks.number("rise", self.rise, least=1),
            winsorise=checks.number("winsorise", self.winsorise, above=self.drift),
        )
        self._check_level()

    def init(self, num_variables: int) -> State:
        return {"level": Level.init(), **dict.fromkeys(("sum", "last", "correlation"), np.zeros((), np.float32))}

    def update(self, xp: Namespace, state: State, norms: Norms) -> Update:
        level, decision = self._level, self.decision
        held, last, correlation = state["level"], state["last"], state["correlation"]
        ready = level.ready(held)
        z, normal = level.z(xp, held, norms), xp.maximum(self.drift, math.log(self.rise) / level.std(xp, held))
        r = xp.minimum(xp.maximum(correlation, 0.0), 0.95)
        grown = state["sum"] + xp.minimum(z - normal, self.winsorise - self.drift) * (1.0 - r) / (1.0 + r)
        grown = xp.where(ready, xp.minimum(xp.maximum(grown, 0.0), 2.0 * decision), 0.0)
        total = xp.where(norms.finite, grown, state["sum"])
        rising = total > decision
        near = xp.minimum(xp.maximum(z, -self._clamp), self._clamp)
        # slower than the level, and not while it alarms: a trend must not pass for correlation
        correlated = correlation + (near * last - correlation) / xp.minimum(held["seen"] + 2.0, 1000.0)
        new = {
            "level": level.update(xp, held, norms),
            "sum": total,
            "last": xp.where(norms.enters, near, last),
            "correlation": xp.where(norms.enters & ~rising, correlated, correlation),
        }
        threshold = as_norm(xp, held["mean"] + normal * level.std(xp, held))
        info = {"score": total, "threshold": xp.where(ready, threshold, LARGEST)}
        return new, ready & norms.finite & rising, info
