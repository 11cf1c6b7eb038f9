"""Plain numbers for people and exporters: what a monitor knows at one instant."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

#: Kinds of anomaly, the most severe first: gradients that are lost, that destroy weights, that are mostly taken away,
#: that no longer move anything, and that are on their way to explode.
KINDS = ("nonfinite", "explosion", "saturated", "vanishing", "trend")

#: Kinds that may come out of an explosion: their events say which one (`Event.follows`).
FOLLOWERS = ("nonfinite", "saturated")

#: What happened to a step's gradients; the index is the number kept on the device.
VERDICTS = ("pass", "clip", "zero", "skip")


def culprits(shares: Mapping[str, float]) -> dict[str, float]:
    """The shares that say something, largest first: at least a tenth, and a quarter more than an even share.

    Empty where all variables are in it alike: 4 % each of 25 point to none of them.
    """
    least = max(0.1, 1.25 / len(shares)) if len(shares) > 1 else 0.0
    ordered = sorted(shares.items(), key=lambda item: -item[1])
    return {path: share for path, share in ordered if share >= least and share > 0.0}


@dataclass(frozen=True)
class Event:
    """The step at which an anomaly began.

    Attributes:
      kind: one of `KINDS`.
      step: optimizer step, counted from 1.
      norm: global gradient norm before clipping at that step: NaN or Inf when a gradient held one, a number above 1e36
        when all were finite and the norm overflowed.
      threshold: the norm beyond which the detector alarms, at that step; Inf where there is none.
      shares: variable path -> share in [0, 1] of the anomaly, summing to 1: of the squared norm for
        "explosion" and "trend", of the log drop below its own level for "vanishing", equal shares of the
        variables with a NaN, an Inf or an overflow for "nonfinite", one of the first and the last for "saturated".
        Largest first.
      follows: the step at which the explosion began that this episode came out of: one that was under way, or whose
        last alarm was at most 50 finite steps before. None where there was none, and for other kinds than `FOLLOWERS`.
    """

    kind: str
    step: int
    norm: float
    threshold: float
    shares: Mapping[str, float]
    follows: int | None = None

    @property
    def detail(self) -> str:
        """What a "nonfinite" step held: "NaN", "Inf" or, of finite gradients, "overflow"; "" for other kinds."""
        if self.kind != "nonfinite":
            return ""
        return "NaN" if math.isnan(self.norm) else "Inf" if math.isinf(self.norm) else "overflow"

    @property
    def culprits(self) -> Mapping[str, float]:
        """The shares that say something, see `culprits`."""
        return culprits(self.shares)


#: The rungs of `gradwatch.recovery`, in the order in which they are climbed.
RUNGS = ("skip", "lower", "rollback", "stop")


@dataclass(frozen=True)
class Recovery:
    """One answer of the ladder to trouble.

    Attributes:
      rung: the highest of the rungs that it took, one of `RUNGS`.
      step: of the monitor, when it was done.
      time: Unix seconds.
      cause: what it answers: "dropping", "saturated", "exploding", "lost", "nonfinite" or "poisoned".
      text: what was seen and what was done, a line.
      lost_steps: steps whose updates it took back.
      rate_scale: of the learning rate from then on.
    """

    rung: str
    step: int
    time: float
    cause: str
    text: str
    lost_steps: int = 0
    rate_scale: float = 1.0


@dataclass(frozen=True)
class Snapshot:
    """One consistent reading of a monitor. Norms are L2 norms of the unscaled gradient before clipping.

    A threshold that does not exist yet (warm-up) or at all is `inf` (`vanishing_threshold`: 0.0). What no step has
    said yet is NaN: `norm`, `applied_norm`, `max_norm`, `median` and `quantiles` before the first (finite) one.
    """

    name: str
    policy: str
    time: float  # Unix seconds when it was read
    steps: int
    norm: float
    applied_norm: float  # after clipping; 0.0 for a zeroed or skipped step
    clip_norm: float
    clip_scale: float  # applied_norm / norm of the last step, in [0, 1]
    verdict: str
    explosion_threshold: float
    vanishing_threshold: float
    score: float  # robust z-score of the log norm
    median: float
    quantiles: Mapping[float, float]  # of the recent norms: 0.05, 0.5, 0.95, 0.99
    clipped_steps: int
    nonfinite_steps: int
    nonfinite_streak: int
    skipped_updates: int
    skipped_by_reason: Mapping[str, int]  # "nonfinite", "explosion"
    explosions: int  # episodes; the same as anomalies["explosion"]
    max_norm: float  # of the finite steps
    warmup: bool  # whether a detector of explosions still gathers statistics: it then sees decades of growth only
    layer_norms: Mapping[str, float]  # variable path -> norm at the last step
    anomalies: Mapping[str, int]  # kind -> episodes
    anomalous_steps: Mapping[str, int]  # kind -> steps
    active: Mapping[str, bool]  # kind -> an episode is under way
    last_events: Mapping[str, Event | None]  # kind -> where its newest episode began
    norm_bounds: tuple[float, ...]  # upper bounds of the histogram's buckets; a last one, +Inf, is implied
    norm_counts: tuple[int, ...]  # cumulative finite steps per bound, the last one of all finite steps
    norm_sum: float  # of the finite norms
    loss_scale: float | None = None
    reach: float | None = None  # norm units, see `gradwatch.core.norms.Norms`; None: not known, Inf: does not apply
    update_ratio: float | None = None  # newest |dw| / |w|, measured every 50 steps; None: not measured yet
    layer_update_ratio: Mapping[str, float] = field(default_factory=dict)  # variable path -> the same; where known
    layer_weight_norms: Mapping[str, float] = field(default_factory=dict)  # variable path -> |w|, every 50 steps
    layer_first_weight_norms: Mapping[str, float] = field(
        default_factory=dict
    )  # variable path -> |w| at the first step
    layer_usual_norms: Mapping[str, float] = field(default_factory=dict)  # variable path -> running geometric mean
    limited_updates: int = 0  # steps whose update was scaled back by update_limit
    expected_clip_ratio: float | None = None  # share of steps the policy means to clip; None: no such claim
    budget_steps_missing: int | None = 0  # finite steps until a budget can be kept; 0: now, or none; None: never
    extra: Mapping[str, float] = field(default_factory=dict)  # values set from the host: loss, learning_rate
    recoveries: Mapping[str, int] = field(default_factory=dict)  # rung -> answers, or dropped updates for "skip"
    lost_steps: Mapping[str, int] = field(
        default_factory=dict
    )  # rung -> steps whose updates were dropped or taken back
    rate_scale: float = 1.0  # what the ladder multiplies the learning rate by
    last_recoveries: tuple[Recovery, ...] = ()  # the newest answers, oldest first

    @property
    def last_explosion(self) -> Event | None:
        """Where the newest explosion began, or None."""
        return self.last_events.get("explosion")
