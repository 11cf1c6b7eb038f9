"""One step of the monitor: norms -> detectors -> policy -> Decision, and the counters that remember it.

Pure functions over one state tree of fixed structure. Everything is judged with the state before the step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from gradwatch.core import checks, norms, policies, sketch
from gradwatch.core.detectors import Detector, nonfinite
from gradwatch.core.policies import Policy
from gradwatch.core.snapshot import KINDS, VERDICTS
from gradwatch.core.xp import HUGE, TINY, Array, Bool, Namespace
from gradwatch.errors import ConfigError

ON_NONFINITE = ("zero", "skip", "propagate")
ON_EXPLOSION = ("clip", "skip", "observe")

PASS, CLIP, ZERO, SKIP = range(len(VERDICTS))

HISTORY = 1024  # steps kept
COLUMNS = ("norm", "applied_norm", "clip_norm", "threshold", "score", "verdict")
WINDOW = 1000  # steps that the reported quantiles remember

#: Upper bounds of the norm histogram: three per decade from 1e-8 to 1e8, rounded to two digits.
BOUNDS = tuple(float(f"{10 ** (k / 3):.1e}") for k in range(-24, 25))

# A float32 counts to 2^24 and then sticks: counters are two limbs, and the low one carries here.
LIMB = float(1 << 20)

_FLAGS = (
    *("steps", "finite", "clipped", "nonfinite", "skipped_nonfinite", "skipped_explosion"),
    *(f"episodes_{kind}" for kind in KINDS),
    *(f"steps_{kind}" for kind in KINDS),
)
COUNTERS = (*_FLAGS, *(f"bound_{i}" for i in range(len(BOUNDS))))


class _Findings(NamedTuple):
    """What the detectors said, by kind."""

    alarms: dict[str, Array]  # 1.0 or 0.0
    thresholds: dict[str, Array]
    scores: dict[str, Array]


class Decision(NamedTuple):
    """What the guard made of one step. Shapes are () unless stated; numbers are float32.

    Attributes:
      scale: what the gradients are multiplied by, in [0, 1]; shape [num_variables] for scope "variable".
      norm: global norm before clipping, as it came (NaN and Inf included).
      applied_norm: global norm after clipping; 0 for a zeroed or skipped step.
      clip_norm: the bound that was in force, Inf for none.
      threshold: the norm beyond which the step counts as an explosion.
      score: the robust z-score of the log norm.
      verdict: 0 pass, 1 clip, 2 zero, 3 skip: the index into `VERDICTS`.
      explosion: 1.0 where the explosion detector alarmed.
      finite: 1.0 where all gradients were finite.
    """

    scale: Array
    norm: Array
    applied_norm: Array
    clip_norm: Array
    threshold: Array
    score: Array
    verdict: Array
    explosion: Array
    finite: Array


@dataclass(frozen=True)
class Guard:
    """A policy, detectors and what to do when they speak; validated when made.

    Args:
      policy: how far a gradient may reach; or its text, such as "median(2)".
      detectors: any number, several of one kind alarm together.
      on_nonfinite: "zero" the update (momentum and weight decay still act), "skip" it, or "propagate" it as
        it is. None: "propagate" for a policy of scope "none", else "zero".
      on_explosion: "clip" leaves an exploding step to the policy, "skip" drops its update, "observe" lets it
        pass as it came.

    Raises:
      ConfigError: an argument is not what it should be.
    """

    policy: Policy
    detectors: tuple[Detector, ...]
    on_nonfinite: str | None = None
    on_explosion: str = "clip"

    def __post_init__(self) -> None:
        object.__setattr__(self, "policy", policies.parse(self.policy))
        # a Detector is itself a tuple
        several = isinstance(self.detectors, (tuple, list)) and not isinstance(self.detectors, Detector)
        found = tuple(self.detectors) if several else (self.detectors,)
        for detector in found:
            if not isinstance(detector, Detector):
                raise ConfigError(
                    f"detectors must come from gradwatch.detectors, for example default(); got {detector!r}"
                )
            checks.one_of("a detector's kind", detector.kind, KINDS)
        object.__setattr__(self, "detectors", found)
        default = "propagate" if self.policy.scope == policies.NONE else "zero"
        chosen = default if self.on_nonfinite is None else self.on_nonfinite
        object.__setattr__(self, "on_nonfinite", checks.one_of("on_nonfinite", chosen, ON_NONFINITE))
        checks.one_of("on_explosion", self.on_explosion, ON_EXPLOSION)
        if self.policy.scope == policies.VALUE and self.on_explosion == "observe":
            raise ConfigError(
                "on_explosion='observe' cannot be kept by policies.value(), which bounds every element whatever the "
                "norm; use on_explosion='clip', or another policy"
            )

    @property
    def skips(self) -> bool:
        """Whether a step's update may be dropped whole."""
        return "skip" in (self.on_nonfinite, self.on_explosion)

    @property
    def scales(self) -> bool:
        """Whether gradients can be changed at all."""
        return self.policy.scope != policies.NONE or self.on_nonfinite != "propagate" or self.skips

    def under_loss_scaling(self) -> Guard:
        """The same guard for an optimizer that drops non-finite steps to find its loss scale.

        Such a step is a skipped update, and ten in a row are an anomaly instead of one.
        """
        usual, patient = nonfinite(), nonfinite(patience=10)
        detectors = tuple(patient if d.name == usual.name else d for d in self.detectors)
        chosen = "skip" if self.on_nonfinite == "zero" else self.on_nonfinite
        return replace(self, detectors=detectors, on_nonfinite=chosen)

    def init(self, num_variables: int) -> dict[str, Any]:
        """The state before the first step, as numpy arrays."""
        zero, one_each = np.zeros((), np.float32), np.zeros(num_variables, np.float32)
        infinite = np.full((), math.inf, np.float32)
        return {
            "count": {limb: np.zeros(len(COUNTERS), np.float32) for limb in ("low", "high")},
            "last": {
                **{name: zero for name in Decision._fields if name != "scale"},
                "clip_norm": infinite,
                "threshold": infinite,
                "vanishing_threshold": zero,
                "layer_norms": one_each,
            },
            "run": dict.fromkeys(("max_norm", "nonfinite_streak", "sum", "sum_rest", "warmup"), zero),
            "recent": sketch.init(),
            "levels": one_each,
            "policy": self.policy.init(num_variables),
            "detectors": {f"{i}_{d.kind}": d.init(num_variables) for i, d in enumerate(self.detectors)},
            "episodes": {
                kind: {
                    **dict.fromkeys(("active", "calm", "step_low", "step_high", "norm", "threshold"), zero),
                    "shares": one_each,
                }
                for kind in KINDS
            },
            "history": np.zeros(HISTORY * len(COLUMNS), np.float32),
        }

    def step(
        self, xp: Namespace, state: Mapping[str, Any], per_variable: Array, applied: Array | None = None
    ) -> tuple[dict[str, Any], Decision]:
        """Judge one step.

        Args:
          per_variable: L2 norm of each variable's gradient, shape [num_variables].
          applied: the same after `tf.clip_by_value` (scope "value" only).

        Returns:
          (state after the step, Decision)
        """
        now = norms.of(xp, per_variable)
        detectors, found = self._detect(xp, state["detectors"], now)
        policy, clip_norm, _ = self.policy.update(xp, state["policy"], now)
        decision = self._decide(xp, now, found, clip_norm, applied)
        count = _count(xp, state["count"], self._flags(xp, state["episodes"], found, decision), now)
        new_state = {
            "count": count,
            "last": {
                **{name: x for name, x in decision._asdict().items() if name != "scale"},
                "vanishing_threshold": found.thresholds["vanishing"],
                "layer_norms": per_variable,
            },
            "run": self._run(xp, state["run"], now, found),
            "recent": sketch.update(xp, state["recent"], now.log, now.enters, 1.0 - 1.0 / WINDOW),
            "levels": _levels(xp, state["levels"], _counted(state["count"], "finite"), now),
            "policy": policy,
            "detectors": detectors,
            "episodes": self._episodes(xp, state, count, now, found),
            "history": xp.push(state["history"], xp.stack([getattr(decision, name) for name in COLUMNS])),
        }
        return new_state, decision

    def _detect(self, xp: Namespace, state: Mapping[str, Any], now: norms.Norms) -> tuple[dict[str, Any], _Findings]:
        """Ask every detector; several of one kind alarm together, and the nearest threshold is shown."""
        zero = now.total * 0.0
        new: dict[str, Any] = {}
        found = _Findings(
            alarms=dict.fromkeys(KINDS, zero),
            thresholds={kind: zero + (0.0 if kind == "vanishing" else math.inf) for kind in KINDS},
            scores={},
        )
        for i, detector in enumerate(self.detectors):
            key, kind = f"{i}_{detector.kind}", detector.kind
            new[key], alarm, info = detector.update(xp, state[key], now)
            found.alarms[kind] = xp.maximum(found.alarms[kind], xp.number(alarm))
            nearest = xp.maximum if kind == "vanishing" else xp.minimum
            found.thresholds[kind] = nearest(found.thresholds[kind], info["threshold"])
            found.scores[kind] = xp.maximum(found.scores.get(kind, info["score"]), info["score"])
        found.scores.setdefault("explosion", zero)
        return new, found

    def _decide(
        self, xp: Namespace, now: norms.Norms, found: _Findings, clip_norm: Array, applied: Array | None
    ) -> Decision:
        """What becomes of the gradients: clipped by the policy, unless an explosion or a NaN overrules it."""
        scale, applied_norm, bound, clipped = self._clip(xp, now, clip_norm, applied)
        verdict = xp.where(clipped, float(CLIP), float(PASS))
        exploding, broken = found.alarms["explosion"] > 0.0, ~now.finite
        overruled: list[tuple[Bool, float, Array | float, int]] = []  # when, scale, applied norm, verdict
        if self.on_explosion == "skip":
            overruled.append((exploding, 0.0, 0.0, SKIP))
        elif self.on_explosion == "observe":
            overruled.append((exploding, 1.0, now.total, PASS))
        if self.on_nonfinite == "propagate":
            overruled.append((broken, 1.0, now.raw, PASS))
        else:
            overruled.append((broken, 0.0, 0.0, ZERO if self.on_nonfinite == "zero" else SKIP))
        for when, other_scale, other_norm, other_verdict in overruled:
            scale = xp.where(when, other_scale, scale)
            applied_norm = xp.where(when, other_norm, applied_norm)
            verdict = xp.where(when, float(other_verdict), verdict)
        return Decision(
            scale=scale,
            norm=now.raw,
            applied_norm=applied_norm,
            clip_norm=bound,
            threshold=found.thresholds["explosion"],
            score=found.scores["explosion"],
            verdict=verdict,
            explosion=found.alarms["explosion"],
            finite=xp.number(now.finite),
        )

    def _clip(
        self, xp: Namespace, now: norms.Norms, clip_norm: Array, applied: Array | None
    ) -> tuple[Array, Array, Array, Bool]:
        """(scale, applied norm, bound of the global norm, whether anything was clipped) of finite gradients."""
        if self.policy.scope == policies.GLOBAL:
            clipped = now.total > clip_norm
            return _ratio(xp, now.total, clip_norm), xp.where(clipped, clip_norm, now.total), clip_norm, clipped
        if self.policy.scope == policies.VARIABLE:
            x = now.per_variable
            over = x > clip_norm
            clipped = xp.sum(xp.where(over, 1.0, 0.0)) > 0.5
            # the norm over equal numbers may round up
            kept = xp.minimum(norms.total(xp, xp.where(over, clip_norm, x)), now.total)
            bound = norms.total(xp, xp.minimum(clip_norm, HUGE))
            bound = xp.where(xp.max(clip_norm) <= HUGE, bound, math.inf)
            return _ratio(xp, x, clip_norm), xp.where(clipped, kept, now.total), bound, clipped
        one = now.total * 0.0 + 1.0
        after = now.total
        if self.policy.scope == policies.VALUE and applied is not None:
            after = xp.minimum(norms.of(xp, applied).total, now.total)
        return one, after, clip_norm, after < now.total

    def _flags(
        self, xp: Namespace, episodes: Mapping[str, Any], found: _Findings, decision: Decision
    ) -> dict[str, Array]:
        """1.0 for each thing of `_FLAGS` that happened in this step."""
        finite = decision.finite
        skipped = xp.where(decision.verdict > SKIP - 0.5, 1.0, 0.0)
        begun = {
            f"episodes_{kind}": xp.where(episodes[kind]["active"] < 0.5, alarm, 0.0)
            for kind, alarm in found.alarms.items()
        }
        return {
            "steps": finite * 0.0 + 1.0,
            "finite": finite,
            "clipped": xp.where(xp.abs(decision.verdict - CLIP) < 0.5, 1.0, 0.0),
            "nonfinite": 1.0 - finite,
            "skipped_nonfinite": skipped * (1.0 - finite),
            "skipped_explosion": skipped * finite,
            **begun,
            **{f"steps_{kind}": alarm for kind, alarm in found.alarms.items()},
        }

    def _run(self, xp: Namespace, run: Mapping[str, Array], now: norms.Norms, found: _Findings) -> dict[str, Array]:
        """What is remembered of the whole run."""
        total, rest = _add_exactly(xp, run["sum"], run["sum_rest"], now.total)
        watched = any(detector.kind == "explosion" for detector in self.detectors)
        # without a threshold nothing is called an explosion yet
        warmup = xp.where(found.thresholds["explosion"] < math.inf, 0.0, 1.0 if watched else 0.0)
        return {
            "max_norm": xp.maximum(run["max_norm"], now.total),
            "nonfinite_streak": xp.where(now.finite, 0.0, xp.minimum(run["nonfinite_streak"] + 1.0, 1e6)),
            "sum": total,
            "sum_rest": rest,
            "warmup": warmup,
        }

    def _episodes(
        self,
        xp: Namespace,
        state: Mapping[str, Any],
        count: Mapping[str, Array],
        now: norms.Norms,
        found: _Findings,
    ) -> dict[str, Any]:
        """Alarms that belong together are one episode; where it began is kept with the variables' shares."""
        share = now.per_variable / xp.where(now.enters, now.total, HUGE)
        of_square = share * share
        of_drop = xp.maximum(state["levels"] - xp.log(xp.maximum(now.per_variable, TINY)), 0.0)
        shares = {
            "explosion": of_square,
            "trend": of_square,
            "vanishing": of_drop / xp.maximum(xp.sum(of_drop), TINY),
            "nonfinite": now.broken / xp.maximum(xp.sum(now.broken), 1.0),
        }
        steps = COUNTERS.index("steps")
        episodes = {}
        for kind in KINDS:
            old, alarm = state["episodes"][kind], found.alarms[kind] > 0.0
            patience = max([1, *(d.cooldown_steps for d in self.detectors if d.kind == kind)])
            # a step that cannot be judged is neither an alarm nor calm
            calm = xp.where(alarm, 0.0, xp.minimum(old["calm"] + xp.number(now.finite), 1e6))
            active = xp.where(alarm, 1.0, xp.where(calm >= patience, 0.0, old["active"]))
            fresh = {
                "step_low": count["low"][steps],
                "step_high": count["high"][steps],
                "norm": now.raw,
                "threshold": found.thresholds[kind],
                "shares": shares[kind],
            }
            begun = alarm & (old["active"] < 0.5)
            kept = {name: xp.where(begun, value, old[name]) for name, value in fresh.items()}
            episodes[kind] = {"active": active, "calm": calm, **kept}
        return episodes


def _ratio(xp: Namespace, norm: Array, clip_norm: Array) -> Array:
    """What a gradient of this norm is multiplied by, in [0, 1]; 1 where the bound is NaN."""
    over = norm > clip_norm
    return xp.where(over, clip_norm / xp.where(over, norm, HUGE), 1.0)


def _count(xp: Namespace, count: Mapping[str, Array], flags: Mapping[str, Array], now: norms.Norms) -> dict[str, Array]:
    """The counters after the step: the flags and the histogram, which is cumulative as Prometheus wants it."""
    inside = xp.where(now.finite & (now.total <= np.asarray(BOUNDS, np.float32)), 1.0, 0.0)
    low = count["low"] + xp.concat([xp.stack([flags[name] for name in _FLAGS]), inside])
    carry = xp.where(low >= LIMB, 1.0, 0.0)
    return {"low": low - carry * LIMB, "high": count["high"] + carry}


def _counted(count: Mapping[str, Array], name: str) -> Array:
    """A counter as one float32: good enough for a rate, not for a report."""
    i = COUNTERS.index(name)
    return count["low"][i] + count["high"][i] * LIMB


def _levels(xp: Namespace, levels: Array, seen: Array, now: norms.Norms) -> Array:
    """Running mean of each variable's log norm, shape [num_variables]: what a vanishing layer fell from."""
    logs = xp.log(xp.maximum(now.per_variable, TINY))
    off = xp.minimum(xp.maximum(logs - levels, -2.0), 2.0)
    moved = xp.where(seen > 0.0, levels + off / xp.minimum(seen + 1.0, 100.0), logs)
    return xp.where(now.finite, moved, levels)


def _add_exactly(xp: Namespace, total: Array, rest: Array, x: Array) -> tuple[Array, Array]:
    """Neumaier's compensated sum (1974): float32 alone would lose small norms after some thousand steps.

    `rest` takes what rounding dropped from `total`, found by Knuth's branch-free TwoSum; the sum is both together.
    """
    t = xp.minimum(total + x, 3e38)
    back = t - total
    dropped = (total - (t - back)) + (x - back)
    return t, xp.where(t < 3e38, rest + dropped, 0.0)
