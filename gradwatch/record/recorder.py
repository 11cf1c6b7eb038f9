"""Records one monitor: new steps from the reader's thread, through a thread of its own, into the run's file.

The training step knows nothing of it. A disk that is full, read-only or gone is logged once for each run, counted, and
tried again at every look; the steps of such a look are a gap in the record.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import sqlite3
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from gradwatch.core.snapshot import Event
from gradwatch.errors import ConfigError, MissingExtra
from gradwatch.reading.alerts import Alert
from gradwatch.reading.health import health
from gradwatch.reading.reader import reader
from gradwatch.reading.reading import Reading
from gradwatch.reading.run_name import run_name
from gradwatch.reading.steps import StepCursor
from gradwatch.reading.track import Source
from gradwatch.reading.worker import Worker
from gradwatch.record import ending, facts
from gradwatch.record.batches import BatchFiles, Collect
from gradwatch.record.run import Run
from gradwatch.record.schema import SUFFIX
from gradwatch.record.writer import Look, RunFile, keep, shares_text
from gradwatch.report import page

logger: logging.Logger = logging.getLogger("gradwatch")

#: The folder of records, for who does not say `record=`.
VARIABLE = "GRADWATCH_RECORD"

#: "0" or "off": no report is written at the end of a recorded run.
REPORT_VARIABLE = "GRADWATCH_REPORT"


_MOST_WAITING = 4  # looks that wait for the disk; beyond it the steps stay in the history
_MOST_WORDS = 1000
_CLOSE_SECONDS = 10.0
_REPORT_SECONDS = 30.0  # for the report, at the end of the process
_CALM_SECONDS = 2.0  # after model.fit, in which a next one may begin
_NAN = float("nan")


History = Callable[[], Mapping[str, np.ndarray]]


class Around(Protocol):
    """Gives step -> variable -> numbers around an event that has not been told; see `Look.around`."""

    def __call__(self, *, over: bool) -> Mapping[int, Mapping[str, tuple[float, float, float]]] | None: ...


def _do(job: Callable[[], None]) -> None:
    job()


_writing: Worker[Callable[[], None]] = Worker(_do, "gradwatch-record", capacity=1000)
# a report takes a second or two, and the steps of other monitors should not wait for it
_reporting: Worker[Callable[[], None]] = Worker(_do, "gradwatch-report", capacity=1000)


def wants_report() -> bool:
    """Whether the environment leaves a recorded run its report."""
    return os.environ.get(REPORT_VARIABLE, "").strip().lower() not in ("0", "off", "no", "false")


def folder_of(record: Any) -> Path | None:
    """Where to record: what was given, else what the environment says, else None.

    Raises:
      ConfigError: `record` is no folder.
    """
    if record is None:
        record = os.environ.get(VARIABLE) or None
    if record is None:
        return None
    if not isinstance(record, (str, os.PathLike)) or not os.fspath(record):
        raise ConfigError(f"record must be the folder that runs are recorded in, such as 'runs', got {record!r}")
    return Path(os.fsdecode(record)).absolute()  # the training may change its folder


class Recorder:
    """Records one monitor from its first step on.

    Args:
      folder: where the run's file is made.
      report: write a report beside it when the run ends.

    Attributes:
      path: of the file; None before the first step.
      steps: recorded so far.
      errors: looks that the disk did not take.
      resumed_at: the step of the checkpoint that the monitor goes on from; what is older is of another run. 0: none.
    """

    def __init__(self, folder: Path, *, report: bool = False) -> None:
        self.folder = folder
        self.path: Path | None = None
        self.steps = self.errors = self.resumed_at = 0
        self._source: weakref.ref[Source] | None = None
        self._file: RunFile | None = None
        self._cursor = StepCursor()
        self._words: deque[tuple[str, tuple[Any, ...]]] = deque(maxlen=_MOST_WORDS)
        self._events: dict[str, tuple[int, int]] = {}  # kind -> (episodes, step of the newest)
        self._time = 0.0  # of the look before
        self._put = self._done = 0  # looks
        self._batches: BatchFiles | None = None
        self._around: Around | None = None
        self._active, self._ended = False, False
        self._wants_report, self._missed_report = report, False
        self._over, self._over_since, self._reported = False, 0.0, 0  # the step up to which there is a report
        self._pid = os.getpid()
        ending.install()  # the first step may be built in a thread of a replica, where no handler can be set

    def begin(
        self,
        source: Source,
        more_facts: Callable[[], Mapping[str, Any]],
        history: History,
        collect: Collect | None = None,
        around: Around | None = None,
    ) -> None:
        """The first step is being made; returns at once. Called again by a monitor that was reset, it goes on.

        Args:
          source: the monitor, which is held weakly.
          more_facts: about model, optimizer and policy; called once, from another thread.
          history: as `source.history`, and the loss_scale of each step where it is known; does not hold `source`, for
            the last steps of a monitor that is gone.
          collect: gives the batch of an event, where batches are kept; does not hold `source` either.
          around: gives the variables' numbers around an event; does not hold `source` either.
        """
        self._history, self._around = history, around
        if self._file is not None:
            return
        now = time.time()
        name, run_id = source.name, source.run_id
        safe = re.sub(r"[^A-Za-z0-9._-]", "_", name)[:40].lstrip(".") or "run"
        stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(now))
        self.path = self.folder / f"{stamp}-{safe}-{run_id}{SUFFIX}"

        def known() -> dict[str, Any]:
            told = {"name": name, "id": run_id, "run_name": run_name(), "start": now, "end": None, "ended": None}
            return {**facts.of_process(), **told, **more_facts()}

        self._file = RunFile(self.path, known)
        if collect is not None:
            self._batches = BatchFiles(self.path, collect, self._failed, monitor=name, run_id=run_id)
        self._source, self._time, self._pid = weakref.ref(source), now, os.getpid()
        weakref.finalize(source, self._orphan).atexit = False
        reader.listen(self._take)
        reader.at_exit(self.close)
        if self._wants_report:
            reader.at_exit(_last_reports)
        ending.expect(id(self), self._save)

    def resume(self, step: int) -> None:
        """The monitor goes on from this step of a checkpoint, or with 0 from the beginning: what comes is new."""
        self.resumed_at = self._cursor.last = step

    def note(self, text: str, step: int) -> None:
        """Keeps what a person wrote, with the step at which it was written."""
        self._words.append(("notes", (step, _ms(time.time()), text)))

    def flush(self, timeout_seconds: float) -> bool:
        """Has everything up to now written; False if that took longer."""
        _writing.flush(timeout_seconds)  # a look that finds too much waiting leaves its steps in the history
        return reader.poll_now(timeout_seconds) and _writing.flush(timeout_seconds)

    def close(self) -> None:
        """Writes what is left, and how the run ended. May be called twice."""
        if self._ended or self._file is None or os.getpid() != self._pid:
            return
        self._ended = True
        reader.unlisten(self._take)
        reader.cancel_at_exit(self.close)
        ending.forget(id(self))
        source = self._source() if self._source is not None else None
        if source is not None:
            how = ending.SIGTERM if ending.terminated() else facts.how_it_ended()
            _writing.put(partial(self._finish, self._history, how))
        if not _writing.flush(_CLOSE_SECONDS):
            health.failed("record", f"the last steps of {self.path} could not be written in time")
        _last_reports()

    def _orphan(self) -> None:
        """The monitor is garbage: what its device state still holds is written. Runs inside the collector."""
        if not self._ended and os.getpid() == self._pid:
            self._ended = True
            ending.forget(id(self))
            _writing.put(partial(self._finish, self._history, "finished"))

    # -- on the reader's thread --------------------------------------------------------------------------

    def _take(self, source: Source, reading: Reading, alerts: Sequence[Alert]) -> float | None:
        if self._source is None or self._source() is not source or self._ended:
            return None
        snapshot = reading.snapshot
        for alert in alerts:
            values = (alert.kind, alert.severity, alert.phase, alert.message, alert.advice, alert.action)
            self._words.append(("alerts", (alert.step, _ms(alert.time), *values)))
        told = self._note_events(reading) or bool(alerts)
        if self._put - self._done >= _MOST_WAITING:  # a slow disk: the steps are still there at the next look
            return self._cursor.next_look_seconds()
        layers = {
            path: (norm, snapshot.layer_weight_norms.get(path, _NAN), snapshot.layer_update_ratio.get(path, _NAN))
            for path, norm in snapshot.layer_norms.items()
        }
        # the history is read later than the snapshot: a step that it alone knows is of the next look
        history = self._history()
        history = {name: column[history["step"] <= snapshot.steps] for name, column in history.items()}
        around = None if self._around is None else self._around(over=False)
        look = self._look(
            history,
            layers,
            told or around is not None,
            around,
            snapshot.extra.get("learning_rate"),
            snapshot.loss_scale,
        )
        if reading.active != self._active:  # model.fit ends a run, and a next one goes on with it
            self._active = reading.active
            look = replace(look, ended=(None, None) if reading.active else (look.time, "finished"))
            self._over, self._over_since = not reading.active, time.monotonic()
        if len(look.rows["step"]) or look.words or look.ended or look.around:
            self._put += 1
            if not _writing.put(partial(self._write, look)):
                self._done += 1
                self._failed("its writing thread takes no more")
        elif self._over and time.monotonic() - self._over_since > _CALM_SECONDS:
            self._ask_for_report()
        self._take_batch(snapshot.steps, snapshot.last_events)
        return self._cursor.next_look_seconds()

    def _look(
        self,
        history: Mapping[str, np.ndarray],
        layers: Mapping[str, tuple[float, float, float]],
        told: bool = False,
        around: Mapping[int, Mapping[str, tuple[float, float, float]]] | None = None,
        learning_rate: float | None = None,
        loss_scale: float | None = None,
    ) -> Look:
        before, now = self._cursor.last, time.time()
        at = np.flatnonzero(history["step"] == before)
        loss_before = float(history["loss"][at[0]]) if len(at) and "loss" in history else _NAN
        rows = self._cursor.take(history, time.monotonic())
        own = rows["step"] > self.resumed_at
        words = [self._words.popleft() for _ in range(len(self._words))]
        began, self._time = self._time, now
        return Look(
            time=now,
            began=min(began, now),
            rows={name: column[own] for name, column in rows.items()},
            loss_before=loss_before,
            learning_rate=learning_rate,
            loss_scale=loss_scale,
            layers=layers,
            around=around or {},
            words=words,
            told=told,
        )

    def _note_events(self, reading: Reading) -> bool:
        """Puts events that are new since the last look among the words; whether there were any."""
        found = False
        for kind, event in reading.snapshot.last_events.items():
            count = reading.snapshot.anomalies.get(kind, 0)
            before = self._events.get(kind, (0, 0))
            if event is None or (count, event.step) == before:
                continue
            self._events[kind] = (count, event.step)
            if event.step > self.resumed_at:
                # of a checkpoint, the count is of the run before
                began = max(1, count - before[0]) if before[0] or not self.resumed_at else 1
                values = (event.norm, event.threshold, event.detail, event.follows, began, shares_text(event.shares))
                self._words.append(("events", (event.step, _ms(reading.snapshot.time), kind, *values)))
                found = True
        return found

    def _take_batch(self, up_to: float, events: Mapping[str, Event | None]) -> None:
        """Has the batch of an event written, if the device has kept one."""
        job = None if self._batches is None else self._batches.job(up_to, events, self._history)
        if job is not None and not _writing.put(job):
            job()

    # -- on the writing thread ---------------------------------------------------------------------------

    def _write(self, look: Look) -> None:
        assert self._file is not None
        try:
            self.steps += self._file.write(look)
        except (OSError, sqlite3.Error) as error:
            self._failed(str(error))
        finally:
            self._done += 1

    def _finish(self, history: History, how: str) -> None:
        assert self._file is not None
        reader.unlisten(self._take)
        reader.cancel_at_exit(self.close)
        rows = history()
        around = None if self._around is None else self._around(over=True)
        look = self._look(rows, {}, around=around)
        over = self._over and how in ("finished", ending.SIGTERM)  # it was said when model.fit ended
        self._write(look if over else replace(look, ended=(look.time, how)))
        self._take_batch(math.inf, {})
        with contextlib.suppress(OSError, sqlite3.Error):
            self._file.fold()
        if not over:
            self._reported = 0  # it says another end
        self._ask_for_report()

    # -- the report --------------------------------------------------------------------------------------

    def _ask_for_report(self) -> None:
        """Has the report written, unless there is one of this very step."""
        if self._wants_report and self._cursor.last != self._reported:
            self._reported = self._cursor.last
            if not _reporting.put(self._report):  # at the end of the interpreter no thread can be started
                self._report()

    def _report(self) -> None:
        assert self.path is not None
        try:
            _write_report(self.path)
        except MissingExtra as error:
            # a warning: who recorded a run looks for its report
            if not self._missed_report:
                logger.warning("no report is written beside %s: %s", self.path, error)
            self._missed_report = True
        except Exception:
            health.failed("record", f"the report of {self.path} cannot be written", exc_info=True)

    def _save(self) -> None:
        """SIGTERM came, and somebody else decides what it means: everything up to now is written."""
        self.flush(_CLOSE_SECONDS)
        if self._wants_report and os.getpid() == self._pid:
            self._report()

    def _failed(self, why: str) -> None:
        self.errors += 1
        health.failed(
            "record",
            f"the run cannot be recorded in {self.path}: {why}. The training goes on, and each look tries again",
            key=("record", self.path),
        )


def _write_report(path: Path) -> None:
    """Beside the record; and the verdict into it, so that a list of runs need not ask again."""
    shown = Run(path).material()
    if shown.diagnosis is not None:
        keep(path, diagnosis={**shown.diagnosis.to_dict(), "steps": shown.facts["steps"]})
    page.write(path.with_suffix(".html"), page.report(shown))


def _last_reports() -> None:
    """Waits for reports that are being written."""
    if not _reporting.flush(_REPORT_SECONDS):
        health.failed("record", "a report could not be written in time")


def _ms(seconds: float) -> int:
    return round(1000 * seconds)
