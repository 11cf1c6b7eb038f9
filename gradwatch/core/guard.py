"""One step of the monitor: norms -> detectors -> policy -> Decision, and the state that remembers it.

Pure functions over one state tree of fixed structure. Everything is judged with the state before the step. The state
holds finite numbers only, whatever comes in: a bound that does not exist and a norm that was Inf are `LARGEST`, and a
norm that was NaN is -1 (`gradwatch.core.norms.encode`; `gradwatch.core.decode` reads it back).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from gradwatch.core import checks, counters, episodes, findings, norms, policies, sketch
from gradwatch.core import detectors as _detectors
from gradwatch.core.counters import BOUNDS, COUNTERS, LIMB
from gradwatch.core.detectors import Detector
from gradwatch.core.findings import Findings
from gradwatch.core.policies import Policy
from gradwatch.core.snapshot import KINDS, VERDICTS
from gradwatch.core.xp import HUGE, LARGEST, TINY, Array, Bool, Namespace
from gradwatch.errors import ConfigError

__all__ = ["BOUNDS", "COLUMNS", "COUNTERS", "HISTORY", "LIMB", "Decision", "Guard"]

ON_NONFINITE = ("zero", "skip", "propagate")
ON_EXPLOSION = ("clip", "skip", "observe")

PASS, CLIP, ZERO, SKIP = range(len(VERDICTS))

HISTORY = 1024  # steps kept
#: Columns that nobody judges by: the history alone has them.
TOLD = ("learning_rate", "input_rms", "target_rms", "replica_ratio", "replica")
COLUMNS = (
    *("norm", "applied_norm", "clip_norm", "threshold", "score", "verdict", "reach", "update_ratio", "loss"),
    *TOLD,
)
#: In the state, what is not known of a column of `TOLD`, and what is not finite.
NOT_KNOWN, BEYOND = -1.0, 3e38
WINDOW = 1000  # steps that the reported quantiles remember

_NORMS = ("norm", "applied_norm")  # what of a Decision may be NaN


class Decision(NamedTuple):
    """What the guard made of one step. Shapes are () unless stated; numbers are float32.

    Attributes:
      scale: what the gradients are multiplied by, in [0, 1]; shape [num_variables] for scope "variable".
      norm: global norm before clipping, as it came (NaN and Inf included).
      applied_norm: global norm after clipping; 0 for a zeroed or skipped step.
      clip_norm: the bound that was in force; 3.4e38, float32's largest number, for none.
      threshold: the norm beyond which the step counts as an explosion; 3.4e38 for none.
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
      detectors: any number, as themselves or as texts such as "spike(6)"; several of one kind alarm together.
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
        object.__setattr__(self, "detectors", _detectors.parse_all(self.detectors))
        for detector in self.detectors:
            checks.one_of("a detector's kind", detector.kind, KINDS)
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

        Such a step is a skipped update, and ten in a row are an anomaly instead of one, where no patience was given.
        """
        detectors = tuple(d.under_loss_scaling() if isinstance(d, _detectors.nonfinite) else d for d in self.detectors)
        chosen = "skip" if self.on_nonfinite == "zero" else self.on_nonfinite
        return replace(self, detectors=detectors, on_nonfinite=chosen)

    def init(self, num_variables: int) -> dict[str, Any]:
        """The state before the first step, as numpy arrays."""
        zero, one_each = np.zeros((), np.float32), np.zeros(num_variables, np.float32)
        none = np.full((), LARGEST, np.float32)
        return {
            "count": counters.init(),
            "last": {
                **{name: zero for name in Decision._fields if name != "scale"},
                "clip_norm": none,
                "threshold": none,
                "vanishing_threshold": zero,
                "kept": np.ones((), np.float32),
                "reach": zero,
                "layer_norms": one_each,
            },
            "run": dict.fromkeys(("max_norm", "nonfinite_streak", "sum", "sum_rest", "warmup"), zero),
            "recent": sketch.init(),
            "levels": one_each,
            "policy": self.policy.init(num_variables),
            "detectors": findings.init(self.detectors, num_variables),
            "episodes": episodes.init(num_variables),
            "history": np.zeros(HISTORY * len(COLUMNS), np.float32),
        }

    def step(
        self,
        xp: Namespace,
        state: Mapping[str, Any],
        per_variable: Array,
        applied: Array | None = None,
        *,
        reach: Array | None = None,
        loss: Array | None = None,
        weights: Array | None = None,
        update_ratio: Array | None = None,
        told: Mapping[str, Array] | None = None,
    ) -> tuple[dict[str, Any], Decision]:
        """Judge one step.

        Args:
          per_variable: L2 norm of each variable's gradient, shape [num_variables].
          applied: the same after `tf.clip_by_value` (scope "value" only).
          reach, loss, weights: as in `Norms`, shape (); None for not known.
          update_ratio: the newest share of their norm by which the weights moved, shape (), for the history alone;
            negative or None for not known.
          told: what is known of `TOLD`, shape () each, for the history alone: `NOT_KNOWN`, `BEYOND` or a number. The
            columns `input_rms` and `target_rms` take mean squares.

        Returns:
          (state after the step, Decision)
        """
        now = norms.of(xp, per_variable, reach, loss, weights)._replace(kept=state["last"]["kept"])
        detectors, found = findings.update(xp, self.detectors, state["detectors"], now)
        policy, clip_norm, info = self.policy.update(xp, state["policy"], now)
        decision = self._decide(xp, now, found, xp.minimum(clip_norm, LARGEST), applied)
        count = counters.update(xp, state["count"], _flags(xp, state["episodes"], found, decision), now)
        steps = COUNTERS.index("steps")
        last = {
            name: norms.encode(xp, x) if name in _NORMS else x
            for name, x in decision._asdict().items()
            if name != "scale"
        }
        row = {
            **last,
            "reach": _finite_reach(xp, now),
            "update_ratio": xp.number(-1.0),
            "loss": xp.where(xp.is_finite(now.loss), now.loss, 3e38),
        }
        if update_ratio is not None:
            row["update_ratio"] = xp.where(update_ratio >= 0.0, xp.minimum(update_ratio, HUGE), -1.0)
        row.update({name: xp.number(NOT_KNOWN) for name in TOLD} if told is None else told)
        new_state = {
            "count": count,
            "last": {
                **last,
                "reach": row["reach"],
                "vanishing_threshold": found.thresholds["vanishing"],
                "kept": _kept(xp, now, decision, info),
                "layer_norms": norms.encode(xp, per_variable),
            },
            "run": _run(xp, state["run"], now, found),
            "recent": sketch.update(xp, state["recent"], now.log, now.enters, 1.0 - 1.0 / WINDOW),
            "levels": episodes.levels_after(xp, state["levels"], counters.about(state["count"], "finite"), now),
            "policy": policy,
            "detectors": detectors,
            "episodes": episodes.update(
                xp,
                state["episodes"],
                self.detectors,
                found,
                now,
                levels=state["levels"],
                step=(count["low"][steps], count["high"][steps]),
            ),
            "history": xp.push(state["history"], xp.stack([row[name] for name in COLUMNS])),
        }
        return new_state, decision

    def _decide(
        self, xp: Namespace, now: norms.Norms, found: Findings, clip_norm: Array, applied: Array | None
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
            bound = xp.where(xp.max(clip_norm) <= HUGE, bound, LARGEST)
            return _ratio(xp, x, clip_norm), xp.where(clipped, kept, now.total), bound, clipped
        one = now.total * 0.0 + 1.0
        after = now.total
        if self.policy.scope == policies.VALUE and applied is not None:
            after = xp.minimum(norms.of(xp, applied).total, now.total)
        return one, after, clip_norm, after < now.total


def _flags(xp: Namespace, state: episodes.State, found: Findings, decision: Decision) -> dict[str, Array]:
    """1.0 for each thing of `counters.FLAGS` that happened in this step."""
    finite = decision.finite
    skipped = xp.where(decision.verdict > SKIP - 0.5, 1.0, 0.0)
    return {
        "steps": finite * 0.0 + 1.0,
        "finite": finite,
        "clipped": xp.where(xp.abs(decision.verdict - CLIP) < 0.5, 1.0, 0.0),
        "nonfinite": 1.0 - finite,
        "skipped_nonfinite": skipped * (1.0 - finite),
        "skipped_explosion": skipped * finite,
        **{f"episodes_{kind}": begun for kind, begun in episodes.begun(xp, state, found).items()},
        **{f"steps_{kind}": alarm for kind, alarm in found.alarms.items()},
    }


def _kept(xp: Namespace, now: norms.Norms, decision: Decision, info: Mapping[str, Array]) -> Array:
    """`Norms.kept` for the next step: what is left of the norm, relative to the share that the policy means to leave.

    A policy says that share of a usual norm as "gain" in its info; who says nothing means all of it.
    """
    share = xp.where(now.finite, decision.applied_norm, 0.0) / xp.maximum(now.total, TINY)
    kept = xp.minimum(share / xp.minimum(xp.maximum(info.get("gain", 1.0), 1e-9), 1.0), 1.0)
    return xp.where(now.finite, xp.where(now.total > 0.0, kept, 1.0), 0.0)


def _run(xp: Namespace, run: Mapping[str, Array], now: norms.Norms, found: Findings) -> dict[str, Array]:
    """What is remembered of the whole run."""
    total, rest = _add_exactly(xp, run["sum"], run["sum_rest"], now.total)
    return {
        "max_norm": xp.maximum(run["max_norm"], now.total),
        "nonfinite_streak": xp.where(now.finite, 0.0, xp.minimum(run["nonfinite_streak"] + 1.0, 1e6)),
        "sum": total,
        "sum_rest": rest,
        "warmup": found.warmup,
    }


def _finite_reach(xp: Namespace, now: norms.Norms) -> Array:
    """As the state keeps it: 0 where it is not known, 3e38 where it does not apply."""
    return xp.where(now.reach > 0.0, xp.where(now.reach <= HUGE, now.reach, 3e38), 0.0)


def _ratio(xp: Namespace, norm: Array, clip_norm: Array) -> Array:
    """What a gradient of this norm is multiplied by, in [0, 1]; 1 where the bound is NaN."""
    over = norm > clip_norm
    return xp.where(over, clip_norm / xp.where(over, norm, HUGE), 1.0)


def _add_exactly(xp: Namespace, total: Array, rest: Array, x: Array) -> tuple[Array, Array]:
    """Neumaier's compensated sum (1974): float32 alone would lose small norms after some thousand steps.

    `rest` takes what rounding dropped from `total`, found by Knuth's branch-free TwoSum; the sum is both together.
    """
    t = xp.minimum(total + x, 3e38)
    back = t - total
    dropped = (total - (t - back)) + (x - back)
    return t, xp.where(t < 3e38, rest + dropped, 0.0)
