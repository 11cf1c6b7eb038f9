"""One monitor as the reader follows it: what it looked like at the last look, and what is new since."""

from __future__ import annotations

import time
import weakref
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from gradwatch.core.snapshot import KINDS, Snapshot
from gradwatch.diagnosis.verdict import Diagnosis
from gradwatch.reading import verdicts
from gradwatch.reading.alerts import Alert
from gradwatch.reading.harm import HarmWatch
from gradwatch.reading.health import health
from gradwatch.reading.reading import DURATION_BOUNDS, Reading
from gradwatch.reading.run_name import run_name
from gradwatch.reading.text import clean


class Source(Protocol):
    """A monitor, as far as the host side knows it."""

    name: str
    run_id: str
    run_info: Mapping[str, str]
    host_seconds: float
    recorded: tuple[int, int]
    alert_sinks: Sequence[Callable[[Alert], Any]]

    def snapshot(self) -> Snapshot: ...

    def history(self) -> Mapping[str, Any]: ...


#: What the step itself tells of a training; what somebody reported by `Monitor.report` goes before it.
_TOLD = ("loss", "learning_rate")


def _told(snapshot: Snapshot, history: Mapping[str, Any]) -> Snapshot:
    """The snapshot with the newest loss and learning rate of the history, where nobody reported one."""
    told = {}
    for key in _TOLD:
        values = np.asarray(history.get(key, ()), float)
        known = values[~np.isnan(values)]
        if len(known) and key not in snapshot.extra:
            told[key] = float(known[-1])
    return replace(snapshot, extra={**told, **snapshot.extra}) if told else snapshot


class Track:
    """What the reader remembers of one source between two polls. Holds the source weakly."""

    def __init__(self, source: Source, name: str) -> None:
        self.source: weakref.ReferenceType[Source] = weakref.ref(source)
        self.name = name
        self.start: float = time.time()
        self._run_name = run_name()
        self.shown = True
        self.active: bool = False
        self.rebase = False
        self.reading: Reading | None = None
        self.durations: list[int] = [0] * (len(DURATION_BOUNDS) + 1)
        self.duration_sum: float = 0.0
        self.concluded = 0  # steps when the end of the run was told
        self.judged: tuple[float, int] = (time.monotonic(), 0)  # when the newest verdict was made, after which step
        self._harm = HarmWatch()
        # kind and level -> (time of the last line, episodes kept quiet)
        self.logged: dict[tuple[str, int], tuple[float, int]] = {}

    def _run_info(self, source: Source) -> dict[str, str]:
        info = {str(key): clean(value) for key, value in source.run_info.items()}
        if info.get("run_name", source.name) == source.name:  # a monitor's name says nothing about the run
            info["run_name"] = self._run_name
        return info

    def _timed(self, seconds: float) -> None:
        for index in range(bisect_left(DURATION_BOUNDS, seconds), len(self.durations)):
            self.durations[index] += 1
        self.duration_sum += seconds

    def take(self, source: Source) -> tuple[Snapshot, Mapping[str, Any]]:
        """Snapshot, with what the steps told, and history; of one instant where the source can do that."""
        began = time.perf_counter()
        both = getattr(source, "read", None)
        snapshot, history = (source.snapshot(), source.history()) if both is None else both()
        self._timed(time.perf_counter() - began)
        return _told(snapshot, history), history

    def read(self, source: Source, snapshot: Snapshot, history: Mapping[str, Any], restored: bool) -> Reading:
        """The newest reading out of what was taken and the reading before; a restored past is not dated."""
        before = self.reading
        last_step_time = before.last_step_time if before else 0.0
        last_anomaly_time = dict(before.last_anomaly_time) if before else dict.fromkeys(KINDS, 0.0)
        if not restored:
            if snapshot.steps != (before.snapshot.steps if before else 0):
                last_step_time, self.active = snapshot.time, True
            for kind in KINDS:
                if snapshot.anomalies.get(kind, 0) > (before.snapshot.anomalies.get(kind, 0) if before else 0):
                    last_anomaly_time[kind] = snapshot.time
        try:
            if not restored:
                verdicts.remember(source, snapshot, history)
            if restored:
                self._harm.rebase(snapshot)
            else:
                self._harm.look(snapshot, history, last_anomaly_time)
        except Exception:
            health.failed("alerts", f"the harm of monitor {self.name!r} cannot be judged", exc_info=True)
        return Reading(
            name=self.name,
            snapshot=snapshot,
            run_id=clean(source.run_id),
            run_info=self._run_info(source),
            host_seconds=float(source.host_seconds),
            run_start_time=self.start,
            last_step_time=last_step_time,
            active=self.active,
            last_anomaly_time=last_anomaly_time,
            duration_counts=tuple(self.durations),
            duration_sum=self.duration_sum,
            recorded=source.recorded,
            diagnosis=before.diagnosis if before and not restored else None,
            harm=self._harm.harm,
        )

    def judge(self, source: Source) -> Diagnosis | None:
        """A new verdict on the run, which its reading has from now on."""
        if self.reading is None:
            return None
        steps = self.reading.snapshot.steps
        found = verdicts.judge(source, self.reading.snapshot)
        self.judged = time.monotonic(), steps
        self.reading = replace(self.reading, diagnosis=found)
        return found

    def restart(self) -> None:
        """The source begins anew: all that it says from now on is news."""
        self.reading, self.rebase, self._harm = None, False, HarmWatch()

    def conclude(self) -> None:
        """Says at the end of a run how it was; once, unless it goes on."""
        source = self.source()
        if source is None or self.reading is None or self.reading.snapshot.steps == self.concluded:
            return
        self.concluded = self.reading.snapshot.steps
        verdicts.log_end(self.name, self.concluded, self.judge(source))

    def wants_verdict(self, steps: int) -> bool:
        """Whether it is time for a new verdict, though nothing was heard of the run."""
        return steps != self.judged[1] and time.monotonic() - self.judged[0] > verdicts.EVERY_SECONDS
