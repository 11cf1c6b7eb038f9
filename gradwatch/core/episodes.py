"""Alarms that belong together are one episode; where it began is kept, with the variables' shares in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from gradwatch.core import norms
from gradwatch.core.detectors import Detector
from gradwatch.core.findings import Findings
from gradwatch.core.norms import Norms
from gradwatch.core.snapshot import FOLLOWERS, KINDS
from gradwatch.core.xp import HUGE, TINY, Array, Namespace

#: An episode that begins at most so many finite steps after an alarm of an explosion follows from it.
FOLLOWS_WITHIN = 50

State = Mapping[str, Mapping[str, Array]]


def init(num_variables: int) -> dict[str, dict[str, np.ndarray]]:
    """No episode yet: for each kind its fields, `shares` of shape [num_variables], the others of shape ()."""
    zero = np.zeros((), np.float32)
    names = ("active", "calm", "step_low", "step_high", "norm", "threshold")
    state = {kind: {**dict.fromkeys(names, zero), "shares": np.zeros(num_variables, np.float32)} for kind in KINDS}
    for kind in FOLLOWERS:
        state[kind].update(dict.fromkeys(("follows_low", "follows_high"), zero))
    return state


def begun(xp: Namespace, episodes: State, found: Findings) -> dict[str, Array]:
    """1.0 for each kind whose episode begins in this step."""
    return {kind: xp.where(episodes[kind]["active"] < 0.5, alarm, 0.0) for kind, alarm in found.alarms.items()}


def update(
    xp: Namespace,
    episodes: State,
    detectors: Sequence[Detector],
    found: Findings,
    now: Norms,
    *,
    levels: Array,
    step: tuple[Array, Array],
) -> dict[str, dict[str, Array]]:
    """The episodes after the step.

    Args:
      levels: each variable's usual log norm, shape [num_variables].
      step: number of this step, as the two limbs of a counter.
    """
    began = begun(xp, episodes, found)
    shares = _shares(xp, levels, now)
    explosion = episodes["explosion"]
    recent = (explosion["step_low"] + explosion["step_high"] > 0.0) & (
        (explosion["active"] > 0.5) | (explosion["calm"] <= FOLLOWS_WITHIN)
    )
    new = {}
    for kind in KINDS:
        old, alarm = episodes[kind], found.alarms[kind] > 0.0
        patience = max([1, *(d.cooldown_steps for d in detectors if d.kind == kind)])
        # a step that cannot be judged is neither an alarm nor calm
        calm = xp.where(alarm, 0.0, xp.minimum(old["calm"] + xp.number(now.finite), 1e6))
        active = xp.where(alarm, 1.0, xp.where(calm >= patience, 0.0, old["active"]))
        fresh = {
            "step_low": step[0],
            "step_high": step[1],
            "norm": norms.encode(xp, now.raw),
            "threshold": found.thresholds[kind],
            "shares": shares[kind],
        }
        if kind in FOLLOWERS:
            fresh["follows_low"] = xp.where(recent, explosion["step_low"], 0.0)
            fresh["follows_high"] = xp.where(recent, explosion["step_high"], 0.0)
        kept = {name: xp.where(began[kind] > 0.5, value, old[name]) for name, value in fresh.items()}
        new[kind] = {"active": active, "calm": calm, **kept}
    return new


def _shares(xp: Namespace, levels: Array, now: Norms) -> dict[str, Array]:
    """What part each variable has in an anomaly of each kind, shape [num_variables]."""
    # of a norm that overflowed, too, where no variable did by itself
    share = now.per_variable / xp.where(now.enters, now.total, xp.maximum(norms.encode(xp, now.raw), HUGE))
    of_square = share * share
    of_drop = xp.maximum(levels - xp.log(xp.maximum(now.per_variable, TINY)), 0.0)
    count = xp.sum(now.broken)
    broken = xp.where(count > 0.5, now.broken / xp.maximum(count, 1.0), of_square)
    return {
        "explosion": of_square,
        "trend": of_square,
        "saturated": broken,
        "vanishing": of_drop / xp.maximum(xp.sum(of_drop), TINY),
        "nonfinite": broken,
    }


def levels_after(xp: Namespace, levels: Array, seen: Array, now: Norms) -> Array:
    """Running mean of each variable's log norm, shape [num_variables]: what a vanishing layer fell from."""
    logs = xp.log(xp.maximum(now.per_variable, TINY))
    off = xp.minimum(xp.maximum(logs - levels, -2.0), 2.0)
    moved = xp.where(seen > 0.0, levels + off / xp.minimum(seen + 1.0, 100.0), logs)
    return xp.where(now.finite, moved, levels)
