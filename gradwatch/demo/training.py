"""One watched run of the demo, and what is kept of it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gradwatch.core.snapshot import Event, Snapshot
from gradwatch.diagnosis.diagnose import diagnose
from gradwatch.diagnosis.verdict import Diagnosis
from gradwatch.errors import TrainingStopped

#: Steps between two looks at the monitor.
LOOK_EVERY = 10

#: So many losses in a row that are NaN or Inf, and the weights will not come back.
LOST_STEPS = 20

_SERIES = ("step", "norm", "applied_norm", "clip_norm", "threshold", "score", "verdict")


@dataclass
class Run:
    """What one run left behind. Arrays are in the order of the steps, the first is step 1.

    Attributes:
      name: "unprotected" or "protected".
      loss: per step, nats per character; NaN and Inf as they came.
      series: step, norm, applied_norm, clip_norm, threshold, score, verdict per step, as `Monitor.history`.
      events: where each anomaly began, in the order of the steps.
      snapshot: the monitor at the end.
      seconds: how long the steps took, without the first one that compiles.
      verdict: what `gradwatch.diagnose` says of it at the end.
      report: of the run, one HTML file; None where it could not be written.
      batches: files of the kept batches, see `gradwatch.open_event`; empty unless they were asked for.
      ended: "finished", "lost" (only NaN or Inf was left), "stopped" (by its ladder) or "interrupted".
    """

    name: str
    snapshot: Snapshot
    loss: np.ndarray = field(default_factory=lambda: np.empty(0))
    series: dict[str, np.ndarray] = field(default_factory=lambda: {key: np.empty(0) for key in _SERIES})
    events: list[Event] = field(default_factory=list)
    seconds: float = 0.0
    ended: str = "finished"
    verdict: Diagnosis | None = None
    report: Path | None = None
    batches: tuple[Path, ...] = ()


class _Recorder:
    """Collects what a monitor remembers before it forgets it."""

    def __init__(self, monitor: Any) -> None:
        self._monitor = monitor
        self._chunks: list[dict[str, np.ndarray]] = []
        self._last = 0
        self._events: dict[tuple[str, int], Event] = {}
        self.snapshot: Snapshot = monitor.snapshot()

    def look(self) -> Snapshot:
        history = self._monitor.history()
        fresh = history["step"] > self._last
        if fresh.any():
            self._chunks.append({key: history[key][fresh] for key in _SERIES})
            self._last = int(history["step"][-1])
        self.snapshot = self._monitor.snapshot()
        for event in self.snapshot.last_events.values():
            if event is not None:
                self._events[event.kind, event.step] = event
        return self.snapshot

    def series(self) -> dict[str, np.ndarray]:
        if not self._chunks:
            return {key: np.empty(0) for key in _SERIES}
        return {key: np.concatenate([chunk[key] for chunk in self._chunks]) for key in _SERIES}

    def events(self) -> list[Event]:
        return sorted(self._events.values(), key=lambda event: event.step)


def train(
    name: str,
    train_step: Callable[[Any, Any], Any],
    data: Iterable[tuple[np.ndarray, np.ndarray]],
    *,
    steps: int,
    learning_rate: Callable[[], float],
    on_look: Callable[[int, float, Snapshot], None],
    lost_steps: int = LOST_STEPS,
) -> Run:
    """Train with a watched step until `steps`, until only NaN is left, or until Ctrl-C.

    Args:
      train_step: decorated by `gradwatch.watch`.
      data: (x, y) for each step.
      learning_rate: tells the current rate, for the exporters.
      on_look: called every few steps with (steps done, last loss, snapshot).
      lost_steps: so many losses in a row that are NaN or Inf end the run.
    """
    monitor = train_step.monitor  # type: ignore[attr-defined]
    recorder = _Recorder(monitor)
    losses: list[float] = []
    began, lost, ended = time.perf_counter(), 0, "finished"
    looked = 0

    def look() -> None:
        nonlocal looked
        looked = len(losses)
        monitor.report(loss=losses[-1], learning_rate=learning_rate())
        on_look(len(losses), losses[-1], recorder.look())

    try:
        for x, y in data:
            # the loss is the only number that is fetched at every step, as most training loops do
            losses.append(float(train_step(x, y)))
            if len(losses) == 1:
                began = time.perf_counter()
            if len(losses) % LOOK_EVERY == 0:
                look()
            lost = 0 if math.isfinite(losses[-1]) else lost + 1
            if lost == lost_steps:
                ended = "lost"
                break
            if len(losses) == steps:
                break
    except KeyboardInterrupt:
        ended = "interrupted"
    except TrainingStopped:
        ended = "stopped"
    seconds = time.perf_counter() - began
    if looked < len(losses):
        look()
    series = recorder.series()
    # an interrupt can fall between the update and the loss
    known = min(len(losses), len(series["step"]))
    return Run(
        name,
        recorder.snapshot,
        np.array(losses[:known]),
        {key: values[:known] for key, values in series.items()},
        recorder.events(),
        seconds,
        ended,
        diagnose(monitor),
    )
