"""Alerts: what changed between two readings that a person should hear about.

An alert is made on the host by comparing two readings, so the training step knows nothing of it. One
episode gives one alert when it begins, one more each time its harm turns out to be worse, and one when it is over.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gradwatch.core.snapshot import KINDS, Recovery, Snapshot
from gradwatch.reading import wording
from gradwatch.reading.harm import LOSS_KINDS, SEVERITIES, Episode
from gradwatch.reading.reading import Reading
from gradwatch.reading.text import clean
from gradwatch.reading.verdicts import Judge, sentences

#: The kind of an alert that tells what a ladder did (`gradwatch.recovery`); its `action` is the rung.
RECOVERY = "recovery"

#: Kinds of episodes, in the order in which they are told.
EPISODES = (*KINDS, *LOSS_KINDS)


@dataclass(frozen=True)
class Alert:
    """Something a person should hear about. Made on a host thread, never in the training step.

    Attributes:
      kind: one of `EPISODES`, or "recovery" for what a ladder did.
      monitor: name of the monitor.
      step: optimizer step (from 1) at which the episode began; for "resolved", the last step seen.
      norm: global gradient norm before clipping at that step; may be NaN or Inf.
      threshold: norm beyond which the detector alarms, at that step; may be Inf.
      message: why, where a cause stands out; what happened, which variables caused it, what gradwatch did, what to do
        next. One line.
      severity: one of `SEVERITIES`, by the harm that was done so far: see `gradwatch.reading.harm`.
      time: Unix seconds at which the host saw it.
      phase: "fired" or "resolved".
      shares: variable path -> share in [0, 1] of the anomaly, largest first (see `Event`).
      advice: what to do or to look at next; "" for an episode of a kind that was told before in this run.
      action: what gradwatch did with the gradients of that step; "" where that is no longer known.
      cause: kind of the likeliest cause, see `gradwatch.diagnose`; "" where none stands out.
      episodes: how many episodes began since the last reading; the alert describes the newest.
      active: whether the episode was still under way. An alert that fires active is followed by a
        "resolved" one; one that fires inactive says so in its message, and is not.
      run_id: of the monitor's run.
      run_name: what a person calls the run; "" if it has no name.
    """

    kind: str
    monitor: str
    step: int
    norm: float
    threshold: float
    message: str
    severity: str
    time: float
    phase: str = "fired"
    shares: Mapping[str, float] = field(default_factory=dict)
    advice: str = ""
    action: str = ""
    cause: str = ""
    episodes: int = 1
    active: bool = True
    run_id: str = ""
    run_name: str = ""

    @property
    def title(self) -> str:
        """A headline of a few words."""
        over = " is over" if self.phase == "resolved" else ""
        where = f"{self.monitor} of {self.run_name}" if self.run_name else self.monitor
        return f"{wording.title(self.kind, self.norm)}{over} ({where})"

    def as_json(self) -> dict[str, Any]:
        """The alert as JSON types. NaN and Inf become the strings "NaN", "Infinity" and "-Infinity"."""
        return {
            "version": 1,
            "kind": self.kind,
            "phase": self.phase,
            "severity": self.severity,
            "monitor": self.monitor,
            "run_id": self.run_id,
            "run_name": self.run_name,
            "step": self.step,
            "norm": _json_number(self.norm),
            "threshold": _json_number(self.threshold),
            "title": self.title,
            "message": self.message,
            "advice": self.advice,
            "action": self.action,
            "cause": self.cause,
            "episodes": self.episodes,
            "active": self.active,
            "time": self.time,
            "shares": {clean(name): _json_number(share) for name, share in self.shares.items()},
        }


def alerts_between(
    before: Reading | None,
    after: Reading,
    history: Callable[[], Mapping[str, Any]] | None = None,
    verdict: Judge | None = None,
) -> list[Alert]:
    """The alerts that tell how `after` differs from `before`, in the order of their steps.

    The verdict and its advice are in the message of the first that fired, so that a person reads them once.

    Args:
      before: the reading last looked at; None means a run that has not begun.
      after: a newer reading of the same monitor.
      history: returns the monitor's history; asked only when an episode began, for what was done at its
        first step.
      verdict: returns the verdict on the run; asked only when an episode began or got worse.
    """
    alerts, fired = [], []
    for kind in EPISODES:
        began = _begun(after, kind) - (_begun(before, kind) if before else 0)
        was_open = before is not None and kind in before.harm.episodes
        is_open = kind in after.harm.episodes
        if began > 0:
            fired.append((kind, began, is_open))
        elif was_open and not is_open:
            alerts.append(_resolved(after, kind))
        elif before is not None and is_open and _rank(after, kind) > _rank(before, kind):
            fired.append((kind, 0, True))
    for i, (kind, began, is_open) in enumerate(sorted(fired, key=lambda one: _step(after, one[0]))):
        alerts.append(_fired(before, after, kind, began, is_open, history, verdict, first=i == 0))
    alerts.sort(key=lambda alert: alert.step)
    known = set() if before is None else {(r.step, r.time) for r in before.snapshot.last_recoveries}
    return alerts + [_recovered(after, r) for r in after.snapshot.last_recoveries if (r.step, r.time) not in known]


def _begun(reading: Reading, kind: str) -> int:
    return (reading.harm.begun if kind in LOSS_KINDS else reading.snapshot.anomalies).get(kind, 0)


def _episode(reading: Reading, kind: str) -> Episode:
    """The newest of its kind; a harmless one where nothing is known of it."""
    return reading.harm.newest.get(kind, Episode("harmless", reading.snapshot.steps))


def _step(reading: Reading, kind: str) -> int:
    """At which the newest episode began."""
    event = reading.snapshot.last_events.get(kind)
    return event.step if event else _episode(reading, kind).step


def _rank(reading: Reading, kind: str) -> int:
    return SEVERITIES.index(reading.harm.severity(kind) or SEVERITIES[0])


def _fired(
    before: Reading | None,
    reading: Reading,
    kind: str,
    began: int,
    active: bool,
    history: Callable[[], Mapping[str, Any]] | None,
    verdict: Judge | None,
    *,
    first: bool,
) -> Alert:
    snapshot, episode = reading.snapshot, _episode(reading, kind)
    event = snapshot.last_events.get(kind)
    step = _step(reading, kind)
    norm = event.norm if event else snapshot.norm
    threshold = event.threshold if event else _threshold(reading, kind)
    shares = dict(event.shares) if event else {}
    severity = episode.severity
    rows = history() if history is not None else None
    action = "" if kind in LOSS_KINDS else wording.action(rows, step, kind)
    how, from_way = wording.way(kind, rows, step)
    known = before is not None and _begun(before, kind) > 0 and severity != "critical"
    follows = wording.followed(event)
    diagnosis = None if verdict is None else verdict()
    cause = "" if diagnosis is None or diagnosis.healthy else diagnosis.kind
    advice = (
        diagnosis.next
        if diagnosis is not None and cause
        else ""
        if known and not follows
        else wording.advice(
            kind,
            norm,
            event,
            probing=kind == "nonfinite" and severity == "info" and snapshot.loss_scale is not None,
            lasting=severity == "critical",
            from_way=from_way,
        )
    )

    if advice and severity != "info" and _is_beyond_clipping(kind, snapshot):
        advice = f"{advice} {wording.BEYOND_CLIPPING}"

    said = [
        sentences(diagnosis) if first else "",
        f"{wording.headline(kind, norm, rows, step)} at step {step} of {reading.name}"
        + ("." if kind in LOSS_KINDS else f": {wording.comparison(kind, norm, threshold)}."),
    ]
    if began > 1:
        said.append(f"{began} episodes since the last look; this is the newest.")
    elif began and known:
        said.append(f"Episode {_begun(reading, kind)} of its kind in this run.")
    if began == 0:
        said.append(f"It goes on at step {snapshot.steps}{_length(reading, kind)}.")
    elif not active:
        said.append(f"It was over by step {snapshot.steps}.")
    if not cause:
        said.append(how)
    if not follows or kind == "nonfinite":  # else the explosion's alert has named them
        said.append(wording.carriers(shares))
    if action:
        said.append(f"gradwatch {action}.")
    if kind == "explosion" and snapshot.budget_steps_missing != 0:
        missing = snapshot.budget_steps_missing
        said.append(wording.NEVER_KNOWN if missing is None else wording.TOO_SHORT.format(missing))
    said += [episode.text, advice if first or not cause else ""]
    return Alert(
        kind=kind,
        monitor=reading.name,
        step=step,
        norm=norm,
        threshold=threshold,
        message=" ".join(filter(None, said)),
        severity=severity,
        time=snapshot.time,
        shares=shares,
        advice=advice,
        action=action,
        cause=cause,
        episodes=began,
        active=active,
        run_id=reading.run_id,
        run_name=reading.run_info.get("run_name", ""),
    )


def _is_beyond_clipping(kind: str, snapshot: Snapshot) -> bool:
    """Whether the harm comes from steps that clipping does not shorten, and that nothing else bounds yet."""
    adaptive = snapshot.reach == math.inf  # "does not apply", see docs/loops.md
    bounded = snapshot.limited_updates > 0 or bool(snapshot.recoveries)
    return kind in ("explosion", "saturated", "loss_rising", "loss_nonfinite") and adaptive and not bounded


def _recovered(reading: Reading, recovery: Recovery) -> Alert:
    """What a ladder did, to be told once."""
    return Alert(
        kind=RECOVERY,
        monitor=reading.name,
        step=recovery.step,
        norm=reading.snapshot.norm,
        threshold=_threshold(reading, "explosion"),
        message=recovery.text,
        severity="critical" if recovery.rung == "stop" else "warning",
        time=recovery.time,
        action=recovery.rung,
        active=False,
        run_id=reading.run_id,
        run_name=reading.run_info.get("run_name", ""),
    )


def _resolved(reading: Reading, kind: str) -> Alert:
    snapshot = reading.snapshot
    event = snapshot.last_events.get(kind)
    threshold = _threshold(reading, kind)
    began = event.step if event else _episode(reading, kind).step
    now = [] if kind in LOSS_KINDS else [wording.comparison(kind, snapshot.norm, threshold)]
    if not math.isnan(reading.harm.loss):
        now.append(f"loss {reading.harm.loss:.4g}")
    return Alert(
        kind=kind,
        monitor=reading.name,
        step=snapshot.steps,
        norm=snapshot.norm,
        threshold=threshold,
        message=f"{wording.title(kind, event.norm if event else math.nan)}, begun at step {began}, is over by step "
        f"{snapshot.steps} of {reading.name}: now {', '.join(now)}.",
        severity="info",
        time=snapshot.time,
        phase="resolved",
        shares=dict(event.shares) if event else {},
        active=False,
        episodes=0,
        run_id=reading.run_id,
        run_name=reading.run_info.get("run_name", ""),
    )


def _threshold(reading: Reading, kind: str) -> float:
    if kind == "vanishing":
        return reading.snapshot.vanishing_threshold
    return math.inf if kind in ("nonfinite", "saturated", *LOSS_KINDS) else reading.snapshot.explosion_threshold


def _length(reading: Reading, kind: str) -> str:
    if kind == "nonfinite":
        return f", {reading.snapshot.nonfinite_streak} steps without a finite gradient"
    began = reading.last_anomaly_time.get(kind, 0.0)
    return f", after {reading.snapshot.time - began:.0f} s" if began else ""


def _json_number(value: float) -> float | str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return float(value)
