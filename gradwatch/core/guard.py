"""One step of the monitor: norms -> detectors -> policy -> Decision, and the counters that remember it.

Pure functions over one state tree of fixed structure. Everything is judged with the state before the step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from gradwatch.core import checks, norms, policies, sketch
from gradwatch.core.detectors import Detector
from gradwatch.core.policies import Policy
from gradwatch.core.snapshot import KINDS, VERDICTS
from gradwatch.core.xp import Array, Namespace
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

_TALLIES = ("steps", "clipped", "nonfinite", "skipped_nonfinite", "skipped_explosion")
COUNTERS = (
    *_TALLIES,
    *(f"episodes_{kind}" for kind in KINDS),
    *(f"steps_{kind}" for kind in KINDS),
    *(f"bound_{i}" for i in range(len(BOUNDS))),
    "finite",
)


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
      policy: how far a gradient may reach.
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
        if not isinstance(self.policy, Policy):
            raise ConfigError(
                f"policy must come from gradwatch.policies, for example percentile(90); got {self.policy!r}"
            )
        found = tuple(self.detectors) if isinstance(self.detectors, (tuple, list)) else (self.detectors,)
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

    @property
    def skips(self) -> bool:
        """Whether a step's update may be dropped whole."""
        return "skip" in (self.on_nonfinite, self.on_explosion)

    @property
    def scales(self) -> bool:
        """Whether gradients can be changed at all."""
        return self.policy.scope != policies.NONE or self.on_nonfinite != "propagate" or self.skips

    def init(self, num_variables: int) -> dict[str, Any]:
        """The state before the first step, as numpy arrays."""
        zero, one_each = np.zeros((), np.float32), np.zeros(num_variables, np.float32)
        row = np.zeros(len(COLUMNS), np.float32)
        row[:] = math.nan
        return {
            "count": {limb: np.zeros(len(COUNTERS), np.float32) for limb in ("low", "high")},
            "last": {
                **{name: zero for name in Decision._fields if name != "scale"},
                "clip_norm": np.float32(math.inf).reshape(()),
                "threshold": np.float32(math.inf).reshape(()),
                "vanishing_threshold": zero,
                "layer_norms": one_each,
            },
            "run": {
                "max_norm": zero,
                "nonfinite_streak": zero,
                "sum": zero,
                "sum_rest": zero,
                "warmup": zero,
            },
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
            "history": np.tile(row, HISTORY),
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
        finite = xp.number(now.finite)

        alarms, thresholds, scores, detectors = self._detect(xp, state["detectors"], now)
        exploding = alarms["explosion"]
        policy_state, clip_norm, _ = self.policy.update(xp, state["policy"], now)

        scale, applied_norm, bound = self._scale(xp, now, clip_norm, applied)
        clipped = finite * xp.where(applied_norm < now.total, 1.0, 0.0)
        verdict = xp.where(clipped > 0.0, float(CLIP), float(PASS))
        skip = exploding * 0.0
        if self.on_explosion == "skip":
            skip = exploding
        elif self.on_explosion == "observe":
            scale = xp.where(exploding > 0.0, 1.0, scale)
            applied_norm = xp.where(exploding > 0.0, now.total, applied_norm)
            verdict = xp.where(exploding > 0.0, float(PASS), verdict)
        dropped = skip
        verdict = xp.where(skip > 0.0, float(SKIP), verdict)
        if self.on_nonfinite == "propagate":
            scale = xp.where(now.finite, scale, 1.0)
            applied_norm = xp.where(now.finite, applied_norm, now.raw)
        else:
            dropped = xp.maximum(skip, 1.0 - finite)
            verdict = xp.where(now.finite, verdict, float(ZERO if self.on_nonfinite == "zero" else SKIP))
        scale = xp.where(dropped > 0.0, 0.0, scale)
        applied_norm = xp.where(dropped > 0.0, 0.0, applied_norm)

        decision = Decision(
            scale=scale,
            norm=now.raw,
            applied_norm=applied_norm,
            clip_norm=bound,
            threshold=thresholds["explosion"],
            score=scores["explosion"],
            verdict=verdict,
            explosion=exploding,
            finite=finite,
        )

        before = _Counted(xp, state["count"])
        episodes, starts = self._episodes(xp, state, now, alarms, thresholds, before)
        flags = {
            "steps": finite * 0.0 + 1.0,
            "clipped": xp.where(verdict == float(CLIP), 1.0, 0.0),
            "nonfinite": 1.0 - finite,
            "skipped_nonfinite": (1.0 - finite) * (1.0 if self.on_nonfinite == "skip" else 0.0),
            "skipped_explosion": skip,
            **{f"episodes_{kind}": starts[kind] for kind in KINDS},
            **{f"steps_{kind}": alarms[kind] for kind in KINDS},
            "finite": finite,
        }
        inside = xp.stack([xp.where(now.total <= bound_, 1.0, 0.0) for bound_ in BOUNDS]) * finite
        tallies = [name for name in COUNTERS if not name.startswith("bound_") and name != "finite"]
        increments = xp.concat([xp.stack([flags[name] for name in tallies]), inside, xp.reshape(finite, (1,))])
        row = xp.stack([getattr(decision, name) for name in COLUMNS])
        run = state["run"]
        total, rest = _add_exactly(xp, run["sum"], run["sum_rest"], now.total)
        seen = before.low("steps") + before.high("steps")
        new_state = {
            "count": before.add(increments),
            "last": {
                **{name: x for name, x in decision._asdict().items() if name != "scale"},
                "vanishing_threshold": thresholds["vanishing"],
                "layer_norms": per_variable,
            },
            "run": {
                "max_norm": xp.maximum(run["max_norm"], now.total),
                "nonfinite_streak": xp.where(now.finite, 0.0, xp.minimum(run["nonfinite_streak"] + 1.0, 1e6)),
                "sum": total,
                "sum_rest": rest,
                # without a threshold nothing is called abnormal yet
                "warmup": xp.where(thresholds["explosion"] < math.inf, 0.0, 1.0),
            },
            "recent": sketch.update(xp, state["recent"], now.log, now.finite & (now.total > 0.0), 1.0 - 1.0 / WINDOW),
            "levels": _levels(xp, state["levels"], seen, now),
            "policy": policy_state,
            "detectors": detectors,
            "episodes": episodes,
            "history": xp.concat([state["history"][len(COLUMNS) :], row]),
        }
        return new_state, decision

    def _detect(
        self, xp: Namespace, state: Mapping[str, Any], now: norms.Norms
    ) -> tuple[dict[str, Array], dict[str, Array], dict[str, Array], dict[str, Any]]:
        zero = now.total * 0.0
        alarms = dict.fromkeys(KINDS, zero)
        scores = dict(alarms)
        thresholds = {kind: zero + (0.0 if kind == "vanishing" else math.inf) for kind in KINDS}
        new: dict[str, Any] = {}
        spoken: set[str] = set()
        for i, detector in enumerate(self.detectors):
            key, kind = f"{i}_{detector.kind}", detector.kind
            new[key], alarm, info = detector.update(xp, state[key], now)
            alarms[kind] = xp.maximum(alarms[kind], xp.number(alarm))
            scores[kind] = info["score"] if kind not in spoken else xp.maximum(scores[kind], info["score"])
            spoken.add(kind)
            nearest = xp.maximum if kind == "vanishing" else xp.minimum
            thresholds[kind] = nearest(thresholds[kind], info["threshold"])
        return alarms, thresholds, scores, new

    def _scale(
        self, xp: Namespace, now: norms.Norms, clip_norm: Array, applied: Array | None
    ) -> tuple[Array, Array, Array]:
        """(scale, applied norm, the bound of the global norm), for finite gradients."""
        if self.policy.scope == policies.VARIABLE:
            x = now.per_variable
            scale = xp.where(x > clip_norm, clip_norm / xp.maximum(x, 1e-37), 1.0)
            bound = norms.of(xp, xp.minimum(clip_norm, 1e37)).total
            applied_norm = xp.minimum(norms.of(xp, x * scale).total, now.total)
            return scale, applied_norm, xp.where(xp.max(clip_norm) < 1e37, bound, math.inf)
        if self.policy.scope == policies.GLOBAL:
            scale = xp.where(now.total > clip_norm, clip_norm / xp.maximum(now.total, 1e-37), 1.0)
            return scale, xp.minimum(now.total, clip_norm), clip_norm
        one = now.total * 0.0 + 1.0
        if self.policy.scope == policies.VALUE and applied is not None:
            return one, xp.minimum(norms.of(xp, applied).total, now.total), clip_norm
        return one, now.total, clip_norm

    def _episodes(
        self,
        xp: Namespace,
        state: Mapping[str, Any],
        now: norms.Norms,
        alarms: Mapping[str, Array],
        thresholds: Mapping[str, Array],
        before: _Counted,
    ) -> tuple[dict[str, Any], dict[str, Array]]:
        """Alarms that belong together are one episode; where it began is kept with the variables' shares."""
        step = before.plus_one("steps")
        squares = now.per_variable / xp.maximum(now.total, 1e-37)
        of_square = squares * squares
        of_drop = xp.maximum(state["levels"] - xp.log(xp.maximum(now.per_variable, 1e-37)), 0.0)
        shares = {
            "explosion": of_square,
            "trend": of_square,
            "vanishing": of_drop / xp.maximum(xp.sum(of_drop), 1e-37),
            "nonfinite": now.broken / xp.maximum(xp.sum(now.broken), 1.0),
        }
        cooldowns = dict.fromkeys(KINDS, 1)
        for detector in self.detectors:
            cooldowns[detector.kind] = max(cooldowns[detector.kind], detector.cooldown_steps)
        episodes, starts = {}, {}
        for kind in KINDS:
            old, alarm = state["episodes"][kind], alarms[kind] > 0.0
            # a step that cannot be judged is neither an alarm nor calm
            judged = now.finite | alarm
            calm = xp.where(alarm, 0.0, old["calm"] + xp.number(judged))
            active = xp.where(alarm, 1.0, xp.where(calm >= cooldowns[kind], 0.0, old["active"]))
            starts[kind] = xp.where(alarm & (old["active"] < 0.5), 1.0, 0.0)
            begun = starts[kind] > 0.0
            fresh = {
                "step_low": step[0],
                "step_high": step[1],
                "norm": now.raw,
                "threshold": thresholds[kind],
                "shares": shares[kind],
            }
            episodes[kind] = {
                "active": active,
                "calm": xp.minimum(calm, 1e6),
                **{name: xp.where(begun, value, old[name]) for name, value in fresh.items()},
            }
        return episodes, starts


class _Counted:
    """The two-limb counters, by name."""

    def __init__(self, xp: Namespace, count: Mapping[str, Array]) -> None:
        self._xp, self._count = xp, count

    def low(self, name: str) -> Array:
        return self._count["low"][COUNTERS.index(name)]

    def high(self, name: str) -> Array:
        return self._count["high"][COUNTERS.index(name)]

    def plus_one(self, name: str) -> tuple[Array, Array]:
        low = self.low(name) + 1.0
        carry = self._xp.where(low >= LIMB, 1.0, 0.0)
        return low - carry * LIMB, self.high(name) + carry

    def add(self, increments: Array) -> dict[str, Array]:
        low = self._count["low"] + increments
        carry = self._xp.where(low >= LIMB, 1.0, 0.0)
        return {"low": low - carry * LIMB, "high": self._count["high"] + carry}


def _levels(xp: Namespace, levels: Array, seen: Array, now: norms.Norms) -> Array:
    """Running mean of each variable's log norm, shape [num_variables]: what a vanishing layer fell from."""
    logs = xp.log(xp.maximum(now.per_variable, 1e-37))
    off = xp.minimum(xp.maximum(logs - levels, -2.0), 2.0)
    moved = xp.where(seen > 0.0, levels + off / xp.minimum(seen + 1.0, 100.0), logs)
    return xp.where(now.finite, moved, levels)


def _add_exactly(xp: Namespace, total: Array, rest: Array, x: Array) -> tuple[Array, Array]:
    """Kahan's compensated sum (1965): float32 would lose small norms after some thousand steps."""
    y = x - rest
    t = xp.minimum(total + y, 3e38)
    return t, xp.where(t < 3e38, (t - total) - y, 0.0)
