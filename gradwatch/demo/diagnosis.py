"""What two runs tell, in sentences. Every number is read off the runs."""

from __future__ import annotations

import math

import numpy as np

from gradwatch.core.snapshot import Event
from gradwatch.demo.training import Run

#: A loss is told as the median of so many steps: a spike that was survived does not count.
LAST_STEPS = 50


def diverged_at(loss: np.ndarray, uniform: float) -> int | None:
    """The step (from 1) from which the run was lost, or None.

    Lost: the loss ends in NaN or Inf, or the median of its last steps is above `uniform`, the loss of knowing
    nothing; then it is the first step of that last stretch.
    """
    finite = np.flatnonzero(np.isfinite(loss))
    if len(loss) and (not finite.size or finite[-1] < len(loss) - 1):
        return int(finite[-1]) + 2 if finite.size else 1
    if len(loss) < 2 * LAST_STEPS:
        return None
    comparable = np.where(np.isfinite(loss), loss, np.inf)
    high = np.median(np.lib.stride_tricks.sliding_window_view(comparable, LAST_STEPS), axis=1) > uniform
    if not high[-1]:
        return None
    calm = np.flatnonzero(~high)
    if not calm.size:
        return 1
    rose = int(calm[-1]) + LAST_STEPS  # index of the step that brought the median over it for good
    return int(np.flatnonzero(comparable[:rose] <= uniform)[-1]) + 2


def final_loss(loss: np.ndarray) -> float:
    """Median of the last steps; NaN for an empty run."""
    return float(np.median(loss[-LAST_STEPS:])) if len(loss) else math.nan


def right_clip_norm(run: Run) -> tuple[float, float, float] | None:
    """(median, 5th, 95th percentile) of the clip_norm a surviving run used in its second half, or None.

    The first half holds the warm-up, in which the norms of a network that knows nothing are still large.
    """
    used = run.series["clip_norm"][len(run.loss) // 2 :]
    used = used[np.isfinite(used) & (used < 1e30)]
    if used.size < LAST_STEPS:
        return None
    middle, low, high = np.quantile(used, [0.5, 0.05, 0.95])
    return float(middle), float(low), float(high)


def healed(clipped: Run | None, saved: Run | None, uniform: float) -> list[tuple[str, list[str]]]:
    """What a run with a ladder tells beside one that was clipped alone: (title, sentences)."""
    told = []
    if clipped is not None and len(clipped.loss):
        at = diverged_at(clipped.loss, uniform)
        end = f"Its loss ends at {number(final_loss(clipped.loss))}; a uniform guess has {uniform:.2f}."
        lost = "It came through." if at is None else f"Lost from step {at} on: clipping alone does not hold this rate."
        told.append(("clipped alone", [lost, end]))
    if saved is not None and len(saved.loss):
        seen = saved.snapshot
        lines = [answer.text for answer in seen.last_recoveries]
        lines.append(
            f"{len(saved.loss)} steps were made, and {sum(seen.lost_steps.values())} of them are lost. "
            f"The learning rate is at {seen.rate_scale:.3g} times what it was set to."
        )
        lines.append(f"Its loss ends at {number(final_loss(saved.loss))}.")
        told.append(("healed", lines))
    return told


def number(x: float) -> str:
    """Short for people: 0.4321 -> 0.432, 3.1e9 -> 3.1e+09, nan -> NaN."""
    if math.isnan(x):
        return "NaN"
    if math.isinf(x) or abs(x) >= 9e29:
        return "none" if x > 0 else "-Inf"
    return f"{x:.3g}"


def carried_by(event: Event, most: int = 2) -> str:
    """The variables that carry an anomaly with their shares: "recurrent/kernel (91 %), ..."."""
    named = [f"{path} ({share:.0%})" for path, share in list(event.shares.items())[:most] if share >= 0.005]
    return ", ".join(named) or "no variable in particular"


def _alarm_before(run: Run, step: int) -> Event | None:
    """The newest alarm on the way to `step`."""
    found = [e for e in run.events if e.kind in ("explosion", "trend") and e.step <= step]
    return found[-1] if found else None


def _unprotected(run: Run, uniform: float) -> list[str]:
    step = diverged_at(run.loss, uniform)
    if step is None:
        calm = (
            f"survived {len(run.loss)} steps, final loss {number(final_loss(run.loss))}: nothing was lost with this "
            "seed, so there was nothing to protect; try more --steps or a higher --learning-rate."
        )
        return [calm]
    lines = []
    before = run.loss[: step - 1]
    usual = final_loss(before) if len(before) >= LAST_STEPS else math.nan
    best = f", out of a loss of {number(usual)}" if math.isfinite(usual) else ""
    became = (
        "became NaN or Inf"
        if not math.isfinite(run.loss[-1])
        else f"passed {number(uniform)} (the loss of a uniform guess)"
    )
    lines.append(f"diverged: the loss {became} at step {step}{best}.")
    alarm = _alarm_before(run, step)
    if alarm is None:
        lines.append("No alarm came before it: the statistics were still warming up.")
    else:
        gap = step - alarm.step
        when = "at the same step" if gap == 0 else f"{gap} step{'s' * (gap != 1)} before"
        lines.append(
            f"gradwatch saw the {'explosion' if alarm.kind == 'explosion' else 'growing norm'} at step {alarm.step}, "
            f"{when}: norm {number(alarm.norm)}, alarm from {number(alarm.threshold)} on."
        )
        lines.append(f"Carried by {carried_by(alarm)}.")
    norms = run.series["norm"]
    finite = norms[np.isfinite(norms)]
    if finite.size:
        at = int(np.nanargmax(np.where(np.isfinite(norms), norms, np.nan)))
        lines.append(f"The largest norm was {number(float(norms[at]))}, at step {int(run.series['step'][at])}.")
    return lines


def _protected(run: Run, unprotected: Run | None, uniform: float) -> list[str]:
    steps, snapshot = len(run.loss), run.snapshot
    step = diverged_at(run.loss, uniform)
    lines = []
    if step is None:
        word = "survived" if run.ended == "finished" else "was alive when it was interrupted after"
        lines.append(
            f"{word} {steps} steps, final loss {number(final_loss(run.loss))} "
            f"(loss of a uniform guess: {number(uniform)})."
        )
    else:
        lines.append(
            f"diverged as well, at step {step}: clipping bounds a step, it cannot make this learning rate right; "
            "lower --learning-rate."
        )
    clipped = snapshot.clipped_steps
    share = clipped / steps if steps else 0.0
    line = f"{snapshot.policy} clipped {clipped} of {steps} steps ({share:.1%})"
    norm, applied = run.series["norm"], run.series["applied_norm"]
    cut = np.flatnonzero(np.isfinite(norm) & (applied < norm))
    if cut.size:
        worst = cut[np.argmax(norm[cut])]
        line += (
            f"; hardest at step {int(run.series['step'][worst])}, from norm {number(float(norm[worst]))} "
            f"to {number(float(applied[worst]))}"
        )
    lines.append(line + ".")
    if snapshot.nonfinite_steps:
        lines.append(f"{snapshot.nonfinite_steps} steps had a NaN or Inf gradient; {_fate(snapshot.skipped_updates)}.")
    explosions = [e for e in run.events if e.kind == "explosion"]
    if explosions:
        largest = max(explosions, key=lambda e: e.norm / e.threshold if math.isfinite(e.norm) else 0.0)
        lines.append(
            f"Explosions: {snapshot.explosions}; the largest began at step {largest.step} (norm "
            f"{number(largest.norm)}, alarm from {number(largest.threshold)} on), carried by {carried_by(largest)}."
        )
    else:
        lines.append("No explosion began.")
    lost = None if unprotected is None else diverged_at(unprotected.loss, uniform)
    if lost is not None and step is None and steps >= lost:
        there = final_loss(run.loss[:lost])
        lines.append(f"At step {lost}, where the unprotected run was lost, its loss was {number(there)}.")
    right = right_clip_norm(run) if step is None else None
    if right is not None:
        middle, low, high = right
        lines.append(
            f"A fixed clip_norm of about {number(middle)} would have done much the same: the median of what the policy "
            f"used in the second half of this run ({number(low)} to {number(high)}). Nobody knows it before the run."
        )
    return lines


def _fate(skipped: int) -> str:
    return f"{skipped} of those updates were skipped" if skipped else "those became a zero gradient"


def diagnose(unprotected: Run | None, protected: Run | None, uniform: float) -> list[tuple[str, list[str]]]:
    """What happened, as (title, sentences) for each run that has begun.

    Args:
      uniform: the loss of a uniform guess, in nats.
    """
    told = []
    for run in (unprotected, protected):
        if run is None or not len(run.loss):
            continue
        if run.ended == "interrupted" and len(run.loss) < 2:
            continue
        sentences = _unprotected(run, uniform) if run.name == "unprotected" else _protected(run, unprotected, uniform)
        verdict = [] if run.verdict is None else str(run.verdict).splitlines()
        told.append((run.name, [*verdict, *sentences]))
    return told
