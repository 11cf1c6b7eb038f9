"""Hands what the reader sees to a tracker of runs: a thread of its own speaks to the tracker, nobody waits for it."""

from __future__ import annotations

import contextlib
import math
import tempfile
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from gradwatch.diagnosis.diagnose import diagnose
from gradwatch.diagnosis.verdict import Diagnosis
from gradwatch.errors import ConfigError, GradwatchError, MissingExtra
from gradwatch.reading.alerts import Alert
from gradwatch.reading.follower import Follower
from gradwatch.reading.health import health
from gradwatch.reading.reading import Reading
from gradwatch.reading.steps import StepCursor
from gradwatch.reading.text import clean
from gradwatch.reading.track import Source
from gradwatch.record.run import open_run

#: Columns of a history that are sent, and numbers of the snapshot's `extra`.
COLUMNS = ("norm", "applied_norm", "clip_norm", "threshold", "score", "reach", "update_ratio", "loss")
EXTRA = ("learning_rate",)

_MOST_WAITING = 4  # looks that wait for the tracker; beyond it the steps stay in the history
_CLOSE_SECONDS = 30.0


class Target(Protocol):
    """A tracker of runs. Called from one thread; what it raises is counted and logged once."""

    name: str

    def send(self, rows: Sequence[tuple[int, float, Mapping[str, float]]]) -> None:
        """Rows of (step, Unix seconds, name -> number); the numbers are finite."""
        ...

    def alert(self, alert: Alert) -> None:
        """An alert that fired."""
        ...

    def verdict(self, prefix: str, diagnosis: Diagnosis) -> None:
        """What became of the run of a monitor."""
        ...

    def report(self, path: Path) -> None:
        """A file that is gone after the call."""
        ...


class Sink(Follower):
    """Sends what monitors see to a tracker; see `gradwatch.sinks.wandb` and `mlflow`, which make it.

    Args:
      target: the tracker.
      monitor: send only this one; None is every monitor of the process.
      rows_a_look: steps that are sent for each look at most, >= 1.
      report: send the report when the sink is closed.

    Raises:
      ConfigError: an argument is out of range.
    """

    def __init__(self, target: Target, monitor: Source | None, rows_a_look: int, report: bool) -> None:
        if not isinstance(rows_a_look, int) or rows_a_look < 1:
            raise ConfigError(f"rows_a_look must be a whole number >= 1, got {rows_a_look!r}; 10 is usual")
        super().__init__(monitor, name=target.name, component="sinks", seconds=_CLOSE_SECONDS)
        self._target = target
        self._rows_a_look, self._wants_report = rows_a_look, report
        self._runs: dict[str, _Followed] = {}
        self._begin()

    def _endings(self) -> Sequence[Callable[[], None]]:
        # the verdicts and the reports
        return [partial(self._conclude, run) for run in list(self._runs.values())]

    # -- on the reader's thread --------------------------------------------------------------------------

    def _take(self, source: Source, reading: Reading, alerts: Sequence[Alert]) -> float | None:
        run = self._runs.get(source.run_id)
        if run is None:
            first = not self._runs
            run = self._runs[source.run_id] = _Followed(
                source, "gradwatch/" if first else f"gradwatch/{clean(source.name)}/"
            )
        run.path = getattr(source, "record_path", None)
        run.alerts.extend(alert for alert in alerts if alert.phase == "fired")
        if run.waiting >= _MOST_WAITING:  # a slow tracker: what is not taken now is still there at the next look
            return run.cursor.next_look_seconds()
        rows = run.cursor.take(source.history(), time.monotonic())
        sent = self._rows(run, rows, reading)
        told, run.alerts = run.alerts, []
        if sent or told:
            run.waiting += 1
            if not self._worker.put(partial(self._send, run, sent, told)):
                run.waiting -= 1
                health.failed("sinks", f"numbers cannot be handed to the thread of {self._target.name}")
        return run.cursor.next_look_seconds()

    def _rows(
        self, run: _Followed, rows: Mapping[str, np.ndarray], reading: Reading
    ) -> list[tuple[int, float, dict[str, float]]]:
        """Of each part of the new steps the one with the highest norm, so that no spike is lost."""
        now, count = reading.snapshot.time, len(rows["step"])
        began, run.time = run.time or now, now
        out = []
        height = np.where(np.isfinite(rows["norm"]), rows["norm"], math.inf)
        for part in np.array_split(np.arange(count), min(count, self._rows_a_look)) if count else []:
            i = int(part[np.argmax(height[part])])
            numbers = {name: float(rows[name][i]) for name in COLUMNS if name in rows}
            numbers.update(
                {name: float(reading.snapshot.extra[name]) for name in EXTRA if name in reading.snapshot.extra}
            )
            out.append(
                (
                    int(rows["step"][i]),
                    began + (now - began) * (i + 1) / count,
                    {f"{run.prefix}{name}": x for name, x in numbers.items() if math.isfinite(x)},
                )
            )
        return out

    # -- on the thread that speaks to the tracker --------------------------------------------------------

    def _do(self, job: Callable[[], None]) -> None:
        try:
            job()
        except Exception:
            name = self._target.name
            health.failed("sinks", f"{name} does not take what is sent", key=("sinks", name), exc_info=True)

    def _send(
        self, run: _Followed, rows: Sequence[tuple[int, float, Mapping[str, float]]], alerts: Sequence[Alert]
    ) -> None:
        run.waiting -= 1
        if rows:
            self._target.send(rows)
        for alert in alerts:
            self._target.alert(alert)

    def _conclude(self, run: _Followed) -> None:
        source: Any = run.source()
        if source is not None and run.path is not None:
            source.flush_record()
        of: Any = open_run(run.path) if run.path is not None and run.path.exists() else source
        if of is None:
            return
        with contextlib.suppress(GradwatchError):  # a monitor of another kind has none
            self._target.verdict(run.prefix, diagnose(of))
        if self._wants_report and hasattr(of, "write_report"):
            with tempfile.TemporaryDirectory() as folder, contextlib.suppress(MissingExtra):
                name = clean(source.name if source is not None else of.path.stem, 60)
                safe = "".join(c if c.isalnum() or c in "._-" else "_" for c in name).lstrip(".")
                self._target.report(of.write_report(Path(folder) / f"gradwatch-{safe or 'run'}.html"))


class _Followed:
    """One monitor. Held weakly."""

    def __init__(self, source: Source, prefix: str) -> None:
        self.source = weakref.ref(source)
        self.prefix = prefix
        self.path: Path | None = None
        self.cursor = StepCursor()
        self.alerts: list[Alert] = []
        self.waiting = 0
        self.time = 0.0
