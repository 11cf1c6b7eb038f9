"""State vector -> plain numbers: the one place that knows how the host reads what the device wrote."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gradwatch.core import counters, norms, sketch
from gradwatch.core.counters import BOUNDS
from gradwatch.core.guard import COLUMNS, TOLD, Guard
from gradwatch.core.snapshot import KINDS, VERDICTS, Event, Snapshot
from gradwatch.core.xp import HUGE, NUMPY

QUANTILES = (0.05, 0.5, 0.95, 0.99)


def _event(kind: str, state: Mapping[str, Any], paths: Sequence[str], count: int) -> Event | None:
    if not count:
        return None
    row = state["episodes"][kind]
    order = np.argsort(-row["shares"], kind="stable")
    follows = counters.whole(row["follows_low"], row["follows_high"]) if "follows_low" in row else 0
    return Event(
        kind=kind,
        step=counters.whole(row["step_low"], row["step_high"]),
        norm=_norm(row["norm"]),
        threshold=_norm(row["threshold"]),
        shares={paths[i]: float(row["shares"][i]) for i in order},
        follows=follows or None,
    )


def _norm(number: Any) -> float:
    """NaN and Inf as they were: the state has finite numbers for them."""
    return float(norms.decode(number))


def snapshot(guard: Guard, state: Mapping[str, Any], *, name: str, paths: Sequence[str], **known: Any) -> Snapshot:
    """One state tree of numpy arrays as a `Snapshot`; `known` adds what only the host knows."""
    count, last, run = counters.exact(state["count"]), state["last"], state["run"]
    recent = state["recent"]
    seen = float(sketch.weight(recent)) > 0
    quantiles = {q: math.exp(float(sketch.log_quantile(NUMPY, recent, q))) if seen else math.nan for q in QUANTILES}
    events = {kind: _event(kind, state, paths, count[f"episodes_{kind}"]) for kind in KINDS}
    norm, applied = (_norm(last[name]) if count["steps"] else math.nan for name in ("norm", "applied_norm"))
    return Snapshot(
        name=name,
        policy=guard.policy.name,
        time=time.time(),
        steps=count["steps"],
        norm=norm,
        applied_norm=applied,
        clip_norm=_norm(last["clip_norm"]),
        clip_scale=_ratio(norm, applied) if count["steps"] else 1.0,
        verdict=VERDICTS[int(last["verdict"])],
        explosion_threshold=_norm(last["threshold"]),
        vanishing_threshold=float(last["vanishing_threshold"]),
        score=float(last["score"]),
        median=quantiles[0.5],
        quantiles=quantiles,
        clipped_steps=count["clipped"],
        nonfinite_steps=count["nonfinite"],
        nonfinite_streak=int(run["nonfinite_streak"]),
        skipped_updates=count["skipped_nonfinite"] + count["skipped_explosion"],
        skipped_by_reason={reason: count[f"skipped_{reason}"] for reason in ("nonfinite", "explosion")},
        explosions=count["episodes_explosion"],
        max_norm=float(run["max_norm"]) if count["finite"] else math.nan,
        warmup=bool(run["warmup"] > 0.5) or not count["steps"],
        layer_norms={path: _norm(x) for path, x in zip(paths, last["layer_norms"])},
        layer_usual_norms={path: math.exp(x) for path, x in zip(paths, state["levels"]) if count["finite"]},
        anomalies={kind: count[f"episodes_{kind}"] for kind in KINDS},
        anomalous_steps={kind: count[f"steps_{kind}"] for kind in KINDS},
        active={kind: bool(state["episodes"][kind]["active"] > 0.5) for kind in KINDS},
        last_events=events,
        norm_bounds=BOUNDS,
        norm_counts=tuple(count[f"bound_{i}"] for i in range(len(BOUNDS))) + (count["finite"],),
        norm_sum=float(run["sum"]) + float(run["sum_rest"]),
        expected_clip_ratio=guard.policy.expected_clip_ratio,
        budget_steps_missing=_budget_steps_missing(guard, count["finite"]),
        reach=_reach(last["reach"]),
        **known,
    )


def _budget_steps_missing(guard: Guard, finite: int) -> int | None:
    needed = [detector.budget_steps for detector in guard.detectors]
    known = [steps for steps in needed if steps is not None]
    return None if len(known) < len(needed) else max([0, *(steps - finite for steps in known)])


def _reach(kept: float) -> float | None:
    """None where it is not known, Inf where it does not apply."""
    return None if kept <= 0.0 else float(kept) if kept <= HUGE else math.inf


def _ratio(norm: float, applied: float) -> float:
    if norm == 0.0:
        return 1.0
    ratio = applied / norm
    # NaN norm: nothing (0) or everything (1) went through
    return min(ratio, 1.0) if math.isfinite(ratio) else float(applied != 0.0)


def history(state: Mapping[str, Any], newest_loss: float = 3e38) -> dict[str, np.ndarray]:
    """The last steps, oldest first: `step` (int64), one float32 array per column, `verdict` (int8).

    `reach`, `update_ratio`, `loss` and the columns of `TOLD` are NaN where they are not known.

    Args:
      newest_loss: of the last step, as the device keeps it: 3e38 is "not known", 1e36 is Inf. The state has the loss of
        a step only from the step after it on.
    """
    steps = counters.exact(state["count"])["steps"]
    rows = np.reshape(state["history"], (-1, len(COLUMNS)))
    kept = min(steps, len(rows))
    rows = rows[len(rows) - kept :]
    columns: dict[str, np.ndarray] = {"step": np.arange(steps - kept + 1, steps + 1, dtype=np.int64)}
    columns.update({name: rows[:, i].copy() for i, name in enumerate(COLUMNS)})
    for name in ("norm", "applied_norm", "clip_norm", "threshold"):
        columns[name] = norms.decode(columns[name])
    columns["verdict"] = columns["verdict"].astype(np.int8)
    reach, ratio = columns["reach"], columns["update_ratio"]
    # the state holds neither NaN nor Inf
    reach[reach > HUGE] = math.inf
    reach[reach <= 0.0] = math.nan
    ratio[ratio < 0.0] = math.nan
    for name in TOLD:
        known = np.where(columns[name] > HUGE, np.float32(math.inf), columns[name])
        known[known < 0.0] = math.nan
        columns[name] = np.sqrt(known) if name.endswith("_rms") else known
    if kept:
        columns["loss"] = losses(np.append(columns["loss"][1:], np.float32(newest_loss)))
    return columns


def losses(kept: np.ndarray) -> np.ndarray:
    """What the device keeps, as it was: NaN where it is not known."""
    infinite = np.where(np.abs(kept) >= np.float32(HUGE), np.copysign(np.float32(math.inf), kept), kept)
    return np.asarray(np.where(kept > 1e37, np.float32(math.nan), infinite), np.float32)
