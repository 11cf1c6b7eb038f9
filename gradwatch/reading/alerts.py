"""Alerts: what changed between two readings that a person should hear about.

An alert is made on the host by comparing two readings, so the training step knows nothing of it. One
episode gives one alert when it begins, one more if it turns critical, and one when it is over.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gradwatch.core.snapshot import KINDS, VERDICTS
from gradwatch.reading.reading import Reading
from gradwatch.reading.text import clean

#: From "worth knowing" to "act now".
SEVERITIES = ("info", "warning", "critical")

#: A run of non-finite steps this long is critical; shorter ones are what loss scaling does to find its scale.
CRITICAL_STREAK_STEPS = 10

#: An explosion that lasts this long is critical.
CRITICAL_EXPLOSION_SECONDS = 120.0

_NAMED_VARIABLES = 3  # in a message
_NAME_LIMIT = 80  # characters of one of them

_TITLES = {
    "explosion": "gradient explosion",
    "trend": "gradient norm growing towards an explosion",
    "vanishing": "gradients vanishing",
    "nonfinite": "NaN or Inf in the gradients",
}

_NEXT = {
    "explosion": "Look next at the batch of that step and at the learning rate; monitor.history() shows "
    "whether the norm rose step by step (learning rate) or at once (data).",
    "trend": "Lower the learning rate now, or look for a loss term that grows without bound; "
    "monitor.history() shows the slope.",
    "vanishing": "Look next at these variables' activations (saturated, dead), at their initial values and at a "
    "learning rate schedule that has run out.",
    "nonfinite": "Look next for a log, a square root or a division by zero in the loss, and for NaN in the "
    "input; tf.debugging.enable_check_numerics() names the operation.",
}
_PROBING = "A loss scale that probes for its highest value does this; it matters only if it does not stop."


@dataclass(frozen=True)
class Alert:
    """Something a person should hear about. Made on a host thread, never in the training step.

    Attributes:
      kind: one of `gradwatch.core.snapshot.KINDS`.
      monitor: name of the monitor.
      step: optimizer step (from 1) at which the episode began; for "resolved", the last step seen.
      norm: global gradient norm before clipping at that step; may be NaN or Inf.
      threshold: norm beyond which the detector alarms, at that step; may be Inf.
      message: what happened, which variables caused it, what gradwatch did, what to look at next. One line.
      severity: one of `SEVERITIES`.
      time: Unix seconds at which the host saw it.
      phase: "fired" or "resolved".
      shares: variable path -> share in [0, 1] of the anomaly, largest first (see `Event`).
      action: what gradwatch did with the gradients of that step; "" where that is no longer known.
      episodes: how many episodes began since the last reading; the alert describes the newest.
      active: whether the episode was still under way. An alert that fires active is followed by a
        "resolved" one; one that fires inactive says so in its message, and is not.
      run_id: of the monitor's run.
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
    action: str = ""
    episodes: int = 1
    active: bool = True
    run_id: str = ""

    @property
    def title(self) -> str:
        """A headline of a few words."""
        over = " is over" if self.phase == "resolved" else ""
        return f"{_TITLES.get(self.kind, self.kind)}{over} ({self.monitor})"

    def as_json(self) -> dict[str, Any]:
        """The alert as JSON types. NaN and Inf become the strings "NaN", "Infinity" and "-Infinity"."""
        return {
            "version": 1,
            "kind": self.kind,
            "phase": self.phase,
            "severity": self.severity,
            "monitor": self.monitor,
            "run_id": self.run_id,
            "step": self.step,
            "norm": _json_number(self.norm),
            "threshold": _json_number(self.threshold),
            "title": self.title,
            "message": self.message,
            "action": self.action,
            "episodes": self.episodes,
            "active": self.active,
            "time": self.time,
            "shares": {clean(name): _json_number(share) for name, share in self.shares.items()},
        }


def alerts_between(
    before: Reading | None, after: Reading, history: Callable[[], Mapping[str, Any]] | None = None
) -> list[Alert]:
    """The alerts that tell how `after` differs from `before`, in the order of `KINDS`.

    Args:
      before: the reading last looked at; None means a run that has not begun.
      after: a newer reading of the same monitor.
      history: returns the monitor's history; asked only when an episode began, for what was done at its
        first step.
    """
    alerts = []
    for kind in KINDS:
        began = after.snapshot.anomalies.get(kind, 0) - (before.snapshot.anomalies.get(kind, 0) if before else 0)
        was_active = before is not None and bool(before.snapshot.active.get(kind))
        is_active = bool(after.snapshot.active.get(kind))
        if began > 0:
            alerts.append(_fired(after, kind, began, is_active, history))
        elif was_active and not is_active:
            alerts.append(_resolved(after, kind))
        elif before is not None and is_active and _rank(after, kind) > _rank(before, kind):
            alerts.append(_fired(after, kind, 0, True, history))
    return alerts


def severity_of(reading: Reading, kind: str) -> str:
    """How urgent an episode of `kind` is, as it stands in `reading`."""
    snapshot = reading.snapshot
    if kind == "nonfinite":
        if snapshot.nonfinite_streak >= CRITICAL_STREAK_STEPS:
            return "critical"
        return "warning" if snapshot.loss_scale is None else "info"
    if kind == "explosion" and snapshot.active.get(kind):
        began = reading.last_anomaly_time.get(kind, 0.0)
        if began and snapshot.time - began >= CRITICAL_EXPLOSION_SECONDS:
            return "critical"
    return "warning"


def _rank(reading: Reading, kind: str) -> int:
    return SEVERITIES.index(severity_of(reading, kind))


def _fired(
    reading: Reading, kind: str, began: int, active: bool, history: Callable[[], Mapping[str, Any]] | None
) -> Alert:
    snapshot = reading.snapshot
    event = snapshot.last_events.get(kind)
    step = event.step if event else snapshot.steps
    norm = event.norm if event else snapshot.norm
    threshold = event.threshold if event else _threshold(reading, kind)
    shares = dict(event.shares) if event else {}
    severity = severity_of(reading, kind)
    action = _action(history, step)

    said = [f"{_TITLES[kind]} at step {step} of {reading.name}: {_comparison(kind, norm, threshold)}."]
    if began > 1:
        said.append(f"{began} episodes since the last look; this is the newest.")
    if began == 0:
        said.append(f"It goes on at step {snapshot.steps}{_length(reading, kind)}.")
    elif not active:
        said.append(f"It was over by step {snapshot.steps}.")
    if any(share > 0 for share in shares.values()):
        said.append(f"Carried by {_names(shares)}.")
    if action:
        said.append(f"gradwatch {action}.")
    probing = kind == "nonfinite" and severity == "info"
    said.append(_PROBING if probing else _NEXT[kind])
    return Alert(
        kind=kind,
        monitor=reading.name,
        step=step,
        norm=norm,
        threshold=threshold,
        message=" ".join(said),
        severity=severity,
        time=snapshot.time,
        shares=shares,
        action=action,
        episodes=began,
        active=active,
        run_id=reading.run_id,
    )


def _resolved(reading: Reading, kind: str) -> Alert:
    snapshot = reading.snapshot
    event = snapshot.last_events.get(kind)
    threshold = _threshold(reading, kind)
    since = f", begun at step {event.step}," if event else ""
    return Alert(
        kind=kind,
        monitor=reading.name,
        step=snapshot.steps,
        norm=snapshot.norm,
        threshold=threshold,
        message=f"{_TITLES[kind]}{since} is over by step {snapshot.steps} of {reading.name}: "
        f"now {_comparison(kind, snapshot.norm, threshold)}.",
        severity="info",
        time=snapshot.time,
        phase="resolved",
        shares=dict(event.shares) if event else {},
        active=False,
        episodes=0,
        run_id=reading.run_id,
    )


def _threshold(reading: Reading, kind: str) -> float:
    if kind == "vanishing":
        return reading.snapshot.vanishing_threshold
    return math.inf if kind == "nonfinite" else reading.snapshot.explosion_threshold


def _comparison(kind: str, norm: float, threshold: float) -> str:
    if kind == "nonfinite" or not (math.isfinite(threshold) and threshold > 0):
        return f"norm {norm:.4g}"
    return f"norm {norm:.4g}, threshold {threshold:.4g}"


def _length(reading: Reading, kind: str) -> str:
    if kind == "nonfinite":
        return f", {reading.snapshot.nonfinite_streak} steps without a finite gradient"
    began = reading.last_anomaly_time.get(kind, 0.0)
    return f", after {reading.snapshot.time - began:.0f} s" if began else ""


def _names(shares: Mapping[str, float]) -> str:
    ordered = sorted(((n, s) for n, s in shares.items() if s > 0), key=lambda item: -item[1])
    named = ", ".join(f"{clean(name, _NAME_LIMIT)} ({share:.0%})" for name, share in ordered[:_NAMED_VARIABLES])
    rest = len(ordered) - _NAMED_VARIABLES
    return f"{named} and {rest} more" if rest > 0 else named


def _action(history: Callable[[], Mapping[str, Any]] | None, step: int) -> str:
    """What was done with the gradients of `step`, out of the history; "" if it is not there any more."""
    if history is None:
        return ""
    rows = history()
    index = next((i for i, s in enumerate(rows["step"]) if int(s) == step), None)
    if index is None:
        return ""
    verdict = VERDICTS[int(rows["verdict"][index])]
    if verdict == "clip":
        return f"clipped the norm to {float(rows['applied_norm'][index]):.4g}"
    return {
        "pass": "let the gradients through unchanged",
        "zero": "set the gradients of that step to zero",
        "skip": "skipped the update, so the weights are unchanged",
    }[verdict]


def _json_number(value: float) -> float | str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return float(value)
