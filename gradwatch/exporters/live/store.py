"""What the live page shows, gathered while the training runs: curves, alerts and pace of every monitor.

It listens to the reader, so a request never reaches the device or the training, and its memory is bounded
whatever the number of steps, alerts or monitors.
"""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np

from gradwatch.core.snapshot import KINDS, Snapshot
from gradwatch.diagnosis.observation import nonfinite_end
from gradwatch.exporters.live.curves import Curves
from gradwatch.reading.alerts import Alert
from gradwatch.reading.losses import SCALING_STREAK_STEPS
from gradwatch.reading.reader import Reader, reader
from gradwatch.reading.reading import Reading
from gradwatch.reading.state import TONES, state_of
from gradwatch.reading.steps import StepCursor
from gradwatch.reading.text import clean, short_names
from gradwatch.reading.track import Source

CURVES = ("norm", "applied_norm", "clip_norm", "threshold", "loss", "learning_rate")

#: Those whose axis is linear: a loss may be negative, a learning rate 0.
LINEAR = ("loss", "learning_rate")

#: While an episode of these is under way, next to nothing reaches the weights.
_NO_LEARNING = ("nonfinite", "saturated")

_MOST_RUNS = 64  # shown, those that are gone included; more monitors at once are in the metrics only
_MOST_ALERTS = 100
_NONFINITE_STEPS = 2  # without a finite loss: that of the newest step may only be not known yet
_MOST_LAYERS = 10  # shown, the largest first
_LAYER_LABEL_LIMIT = 28  # characters beside a bar
_PACE_SECONDS = 20.0  # over which the step rate is taken


class Store:
    """The page's memory. Safe to use from any thread.

    Args:
      source: the reader to listen to.
    """

    def __init__(self, source: Reader = reader) -> None:
        self._reader = source
        self._lock = threading.Lock()
        self._runs: dict[str, _Run] = {}  # by run_id, oldest first
        source.listen(self._take)

    def close(self) -> None:
        """Stops listening."""
        self._reader.unlisten(self._take)

    def _take(self, source: Source, reading: Reading, alerts: Sequence[Alert]) -> float | None:
        with self._lock:
            run = self._runs.get(reading.run_id)
            if run is None:
                if not self._make_room():
                    return None
                run = self._runs[reading.run_id] = _Run(source, reading)
        history = source.history() if run.reading is None or reading.snapshot.steps != run.steps else None
        with self._lock:
            if history is not None:
                run.add(history)
            run.take(reading, alerts)
        return run.cursor.next_look_seconds()

    def _make_room(self) -> bool:
        """Forgets the oldest run whose monitor is gone, if need be; False if all are still there."""
        if len(self._runs) < _MOST_RUNS:
            return True
        gone = next((run_id for run_id, run in self._runs.items() if run.source() is None), None)
        if gone is not None:
            del self._runs[gone]
        return gone is not None

    def page(self, monitor: str = "", key: str = "", since: int = 0) -> dict[str, Any]:
        """Everything the page shows, as JSON types.

        Args:
          monitor: name of the monitor to show; empty: the newest. Of an unknown one, the newest too, and `unknown`
            is its name.
          key: the `key` of the answer before; if it still holds, only points from `since` on are given.
          since: the `next` of the answer before.
        """
        newest = {reading.run_id: reading for reading in self._reader.readings(departed=True)}
        with self._lock:
            read = {run_id: run for run_id, run in self._runs.items() if run.reading is not None}
            known = {run.name: run for run_id, run in read.items() if run_id in newest}
            answer: dict[str, Any] = {"version": 1, "time": time.time(), "monitors": sorted(known)}
            if known:
                run = known.get(monitor) or next(reversed(known.values()))
                answer.update(run.page(newest[run.run_id], key, since))
            if monitor and monitor not in known:
                answer["unknown"] = clean(monitor)
            if len(known) > 1:
                rows = [one.overview(newest[one.run_id]) for _, one in sorted(known.items())]
                answer["overview"] = sorted(rows, key=lambda row: -TONES.index(row["state"]["tone"]))
            return answer


class _Run:
    def __init__(self, source: Source, reading: Reading) -> None:
        self.source = weakref.ref(source)
        self.name, self.run_id = reading.name, reading.run_id
        self.reading: Reading | None = None
        self.steps = 0
        self.cursor = StepCursor()
        self.curves = Curves(CURVES, LINEAR)
        self.newest: dict[str, Any] = dict.fromkeys(LINEAR)
        self.nonfinite_since: int | None = None  # of the loss
        self.events: deque[dict[str, Any]] = deque(maxlen=_MOST_ALERTS)
        self._pace: deque[tuple[float, int]] = deque()

    def add(self, history: Mapping[str, np.ndarray]) -> None:
        """Takes what is new in the history of the monitor into the curves."""
        before = np.flatnonzero(history["step"] == self.cursor.last)
        if len(before) and "loss" in history:  # a step has its loss once it has returned it
            self.curves.add_late("loss", self.cursor.last, float(history["loss"][before[0]]))
        self.curves.add(self.cursor.take(history, time.monotonic()))
        for name in LINEAR:
            known = history[name][~np.isnan(history[name])] if name in history else np.empty(0)
            self.newest[name] = _number(float(known[-1])) if len(known) else None
        self._note_nonfinite(history)

    def _note_nonfinite(self, history: Mapping[str, np.ndarray]) -> None:
        """Since which step there has been no finite loss; the newest known one would then be an old one."""
        step = history["step"]
        streak = nonfinite_end(history["norm"], history["loss"]) if "loss" in history else 0
        if streak < _NONFINITE_STEPS or (self.newest["loss"] is None and self.nonfinite_since is None):
            self.nonfinite_since = None
            return
        if self.nonfinite_since is None or streak < len(step):
            self.nonfinite_since = int(step[-streak])
        self.newest["loss"] = _number(float(history["loss"][-1]))

    def take(self, reading: Reading, alerts: Sequence[Alert]) -> None:
        snapshot = reading.snapshot
        if self.reading is None and not alerts:  # the page came later than these
            events = [event for event in snapshot.last_events.values() if event is not None]
            for event in sorted(events, key=lambda event: event.step):
                self._tell(event.kind, event.step, event.norm, event.threshold, "It began before this page did.")
        for alert in alerts:
            time_, severity = alert.time, alert.severity
            phase = "over" if alert.phase == "resolved" else "began" if alert.episodes else "goes on"
            self._tell(alert.kind, alert.step, alert.norm, alert.threshold, alert.message, phase, severity, time_)
        if snapshot.steps < self.steps:
            self._pace.clear()
        self._pace.append((snapshot.time, snapshot.steps))
        while len(self._pace) > 2 and snapshot.time - self._pace[0][0] > _PACE_SECONDS:
            self._pace.popleft()
        self.reading, self.steps = reading, snapshot.steps

    def _tell(
        self,
        kind: str,
        step: int,
        norm: float,
        threshold: float,
        message: str,
        phase: str = "began",
        severity: str = "info",
        time_: float | None = None,
    ) -> None:
        self.events.append(
            {
                "kind": kind,
                "phase": phase,
                "severity": severity,
                "step": step,
                "norm": _number(norm),
                "threshold": _number(threshold),
                "message": message,
                "time": time_,
            }
        )

    def _steps_per_second(self) -> float:
        (t0, s0), (t1, s1) = self._pace[0], self._pace[-1]
        return (s1 - s0) / (t1 - t0) if t1 > t0 else 0.0

    def page(self, reading: Reading, key: str, since: int) -> dict[str, Any]:
        s = reading.snapshot
        own_key = f"{self.run_id}.{self.curves.generation}"
        from_step = since if key == own_key else 0
        curves = self.curves.since(from_step)
        return {
            "monitor": self.name,
            "run_id": self.run_id,
            "active": reading.active,
            "read": s.time,
            "state": _state(reading),
            "numbers": [[*row[:3], _number(row[3])] for row in self._numbers(reading)],
            "key": own_key,
            "from": from_step,
            "next": self.curves.open_bin(),
            "width": self.curves.width,
            "curves": {name: {"step": steps, "value": values} for name, (steps, values) in curves.items()},
            "loss": self.newest["loss"],
            "loss_nonfinite_since": self.nonfinite_since,
            "learning_rate": self.newest["learning_rate"],
            "histogram": _histogram(s.norm_bounds, s.norm_counts),
            "layers": _layers(reading),
            "layer_count": len(s.layer_norms),
            "events": list(self.events),
            "verdict": None if reading.diagnosis is None else reading.diagnosis.to_dict(),
        }

    def overview(self, reading: Reading) -> dict[str, Any]:
        """The row of this run among those of several."""
        s = reading.snapshot
        return {
            "monitor": self.name,
            "state": _state(reading),
            "steps": s.steps,
            "norm": _number(s.norm) if s.steps else None,
            "loss": self.newest["loss"],
            "episodes": sum(s.anomalies.values()),
            "verdict": "" if reading.diagnosis is None else clean(reading.diagnosis.verdict),
        }

    def _numbers(self, reading: Reading) -> list[tuple[str, str, str, Any]]:
        """(id, label, how to write it, value) of the table; the tiles take theirs from it by id."""
        s = reading.snapshot
        elapsed = s.time - reading.run_start_time
        info = {key: value for key, value in reading.run_info.items() if key != "policy"}
        rows: list[tuple[str, str, str, Any]] = [
            ("steps", "Steps", "count", s.steps),
            ("steps_per_second", "Steps per second", "number", self._steps_per_second()),
            ("norm", "Norm of the last step", *_once_there_is("norm", s.norm, s.steps)),
            ("applied_norm", "Norm after clipping", *_once_there_is("norm", s.applied_norm, s.steps)),
            ("clip_norm", "clip_norm", "limit", s.clip_norm),
            ("explosion_threshold", "Explosion threshold", "limit", s.explosion_threshold),
            ("vanishing_threshold", "Vanishing threshold", "limit", s.vanishing_threshold or math.inf),
            ("score", "Score (robust z of the log norm)", "number", s.score),
            ("verdict", "What happened to the last step", "text", s.verdict if s.steps else _NONE_YET),
        ]
        if reading.diagnosis is not None:
            told = reading.diagnosis
            rows[:0] = [
                (f"diagnosis_{key.lower()}", key, "text", clean(text, 600))
                for key, text in (("Verdict", told.verdict), ("Why", told.why), ("Next", told.next))
            ]
        rows += [
            (
                f"quantile_{q:g}",
                f"{_QUANTILES.get(q, f'{q:.0%}')} of the recent norms",
                *_once_there_is("norm", value, not math.isnan(value) and s.steps),
            )
            for q, value in s.quantiles.items()
        ]
        rows += [
            ("max_norm", "Largest norm of the run", *_once_there_is("norm", s.max_norm, s.norm_counts[-1])),
            ("clipped_steps", "Clipped steps", "count", s.clipped_steps),
            ("clip_ratio", "Share of clipped steps", "ratio", s.clipped_steps / s.steps if s.steps else 0.0),
        ]
        if s.expected_clip_ratio is not None:
            rows.append(("expected_clip_ratio", "Expected share of clipped steps", "ratio", s.expected_clip_ratio))
        rows += [
            ("nonfinite_steps", "Steps with NaN or Inf", "count", s.nonfinite_steps),
            ("skipped_updates", "Skipped updates", "count", s.skipped_updates),
            *((f"anomalies_{kind}", f"Episodes: {kind}", "count", s.anomalies.get(kind, 0)) for kind in KINDS),
        ]
        if s.update_ratio is not None:
            rows.append(("update_ratio", "Share by which a step moves the weights", "number", s.update_ratio))
        if s.reach is not None and math.isfinite(s.reach):
            rows.append(("reach", "Reach: the norm that moves the weights by their length", "number", s.reach))
        if s.limited_updates:
            rows.append(("limited_updates", "Updates scaled back by update_limit", "count", s.limited_updates))
        if s.loss_scale is not None:
            rows.append(("loss_scale", "Loss scale", "number", s.loss_scale))
        rows += [(f"extra_{clean(k)}", clean(k).replace("_", " "), "number", v) for k, v in list(s.extra.items())[:20]]
        rows += [
            (
                "overhead_ratio",
                "Time gradwatch's host side took from the training thread",
                "ratio",
                reading.host_seconds / elapsed if elapsed > 0 else 0.0,
            ),
            ("missed_steps", "Steps missing in the curves", "count", self.cursor.missed),
            ("policy", "Policy", "text", clean(s.policy)),
            *((f"info_{clean(k)}", clean(k).replace("_", " "), "text", v) for k, v in info.items()),
            ("run_id", "Run", "text", reading.run_id),
        ]
        return rows


def _state(reading: Reading) -> dict[str, Any]:
    """How the run is, and since which step it has not been learning, if so."""
    s = reading.snapshot
    word, tone = state_of(
        steps=s.steps,
        running=reading.active,
        warmup=s.warmup,
        active=s.active,
        idle_seconds=s.time - (reading.last_step_time or s.time),
    )
    return {"word": word, "tone": tone, "no_learning_since": _no_learning_since(s)}


def _no_learning_since(s: Snapshot) -> int | None:
    """The step at which an episode began that is under way and in which the weights get next to nothing."""
    if s.loss_scale is not None and not s.active.get("saturated") and s.nonfinite_streak < SCALING_STREAK_STEPS:
        return None  # loss scaling looks for its highest value
    began = [event.step for kind in _NO_LEARNING if s.active.get(kind) and (event := s.last_events.get(kind))]
    return min(began, default=None)


_QUANTILES = {0.5: "Median"}
_NONE_YET = "none yet"


def _once_there_is(form: str, value: float, any_step: float) -> tuple[str, Any]:
    """(how to write it, value) of what needs a step to be known."""
    return (form, value) if any_step else ("text", _NONE_YET)


def _histogram(bounds: Sequence[float], cumulative: Sequence[int]) -> dict[str, list[Any]]:
    """Bars (left, right, steps) of the buckets that hold something, and those between them."""
    counts = [b - a for a, b in pairwise((0, *cumulative))]
    held = [i for i, n in enumerate(counts) if n > 0]
    if not held or len(bounds) < 2:
        return {"left": [], "right": [], "count": []}
    ratio = bounds[1] / bounds[0]
    edges = [bounds[0] / ratio, *bounds, bounds[-1] * ratio]  # the outermost buckets are open
    shown = range(held[0], held[-1] + 1)
    return {
        "left": [edges[i] for i in shown],
        "right": [edges[i + 1] for i in shown],
        "count": [counts[i] for i in shown],
    }


@lru_cache(maxsize=_MOST_RUNS)
def _short(names: tuple[str, ...]) -> dict[str, str]:
    """As `short_names`; ten thousand of them take a sixth of a second, and a page asks once a second."""
    return short_names(names, _LAYER_LABEL_LIMIT)


def _layers(reading: Reading) -> list[list[Any]]:
    """[name, norm, share of the squared norm, short name] of the largest layers, largest first; NaN before all."""
    norms = reading.snapshot.layer_norms
    finite = {name: norm for name, norm in norms.items() if math.isfinite(norm)}
    largest = max(finite.values(), default=0.0)
    # divided before squaring: a norm of 1e200 has no square
    total = sum((norm / largest) ** 2 for norm in finite.values()) if largest > 0 else 0.0
    ordered = sorted(norms, key=lambda name: (name in finite, -finite.get(name, 0.0)))[:_MOST_LAYERS]
    short = _short(tuple(norms))
    return [
        [
            clean(name),
            _number(norms[name]),
            (finite[name] / largest) ** 2 / total if name in finite and total > 0 else None,
            short[name],
        ]
        for name in ordered
    ]


def _number(value: Any) -> Any:
    """JSON knows no NaN: it and the infinities become the texts that JavaScript's Number() reads."""
    if isinstance(value, (str, int)):
        return value
    if math.isfinite(value):
        return float(value)
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
