"""One thread that reads every monitor once a second, so that nobody else has to.

A scrape, a page or a push looks at the newest `Reading` and never at the device. The thread starts when
somebody listens: an exporter, an alert sink, a configured log, a look at `readings`. It is a daemon; the monitors
are held weakly, so watching does not keep them (or a model) alive.

What the thread knows is a `Reading`: the monitor's snapshot and what only the host can tell: when the run
began, when the last step was seen, how long a snapshot takes.

Lifetime of a monitor here:

- `register` puts it into the exposition. Of two with one name the newest is shown; the older one still
  alerts, but is shown again only if it is registered again.
- It is *active* from the first step seen until `mark_active(source, False)` or the end of the process.
- `unregister` (or being garbage-collected) takes it out. Its last reading is kept for `push`.
- When the interpreter ends, each monitor is read once more and the last alerts are delivered, in a
  bounded time.
- A forked child starts empty: it does not read its parent's monitors, and repeats none of its alerts.
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import threading
import time
import weakref
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from gradwatch.core.snapshot import KINDS, Snapshot
from gradwatch.errors import ConfigError
from gradwatch.telemetry.alerts import Alert, alerts_between
from gradwatch.telemetry.health import health
from gradwatch.telemetry.text import clean
from gradwatch.telemetry.worker import Worker

logger = logging.getLogger("gradwatch")

#: Upper bounds in seconds of the histogram of snapshot durations; +Inf is implied.
DURATION_BOUNDS = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)

_LEAST_INTERVAL_SECONDS = 0.05  # between two polls, however much a listener hurries
_EXIT_SECONDS = 5.0  # for the last poll, and again for the last alerts
_MOST_DEPARTED = 64  # last readings kept of monitors that are gone
_LOG_GAP_SECONDS = 60.0  # between two log lines above DEBUG of one kind and monitor

_LOG_LEVELS = {"info": logging.INFO, "warning": logging.WARNING, "critical": logging.ERROR}


class Source(Protocol):
    """A monitor, as far as the host side knows it."""

    name: str
    run_id: str
    run_info: Mapping[str, str]
    host_seconds: float
    alert_sinks: Sequence[Callable[[Alert], Any]]

    def snapshot(self) -> Snapshot: ...

    def history(self) -> Mapping[str, Any]: ...


#: Called on the reader's thread with a source, its newest reading and the alerts that this reading gave; must
#: return soon. Returns the seconds after which it would like to be called again, or None for the usual interval.
Listener = Callable[[Source, "Reading", "Sequence[Alert]"], "float | None"]


@dataclass(frozen=True)
class Reading:
    """What is known about one monitor at one instant. Times are Unix seconds; 0.0 means never.

    Attributes:
      name: the monitor's name, made safe to show (see `text.clean`).
      snapshot: the monitor's own numbers.
      run_id: of the run.
      run_info: strategy, replicas, precision, policy, run_name: whatever the monitor tells.
      host_seconds: time gradwatch's host side took from the training thread so far.
      run_start_time: when the monitor was registered.
      last_step_time: when `steps` was last seen to change.
      active: whether the run is under way.
      last_anomaly_time: kind -> when its newest episode was first seen.
      duration_counts: snapshots no slower than each of `DURATION_BOUNDS`, cumulative; the last one counts all.
      duration_sum: seconds spent in all snapshots.
    """

    name: str
    snapshot: Snapshot
    run_id: str = ""
    run_info: Mapping[str, str] = field(default_factory=dict)
    host_seconds: float = 0.0
    run_start_time: float = 0.0
    last_step_time: float = 0.0
    active: bool = False
    last_anomaly_time: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(KINDS, 0.0))
    duration_counts: tuple[int, ...] = (0,) * (len(DURATION_BOUNDS) + 1)
    duration_sum: float = 0.0


class _Track:
    """What the reader remembers of one source between two polls. Holds the source weakly."""

    def __init__(self, source: Source, name: str) -> None:
        self.source = weakref.ref(source)
        self.name = name
        self.start = time.time()
        self.shown = True
        self.active = False
        self.rebase = False
        self.reading: Reading | None = None
        self.durations = [0] * (len(DURATION_BOUNDS) + 1)
        self.duration_sum = 0.0
        self.logged: dict[str, tuple[float, int]] = {}  # kind -> (time of the last line, episodes kept quiet)

    def timed(self, seconds: float) -> None:
        for index in range(bisect_left(DURATION_BOUNDS, seconds), len(self.durations)):
            self.durations[index] += 1
        self.duration_sum += seconds

    def read(self, source: Source, snapshot: Snapshot, restored: bool) -> Reading:
        """The newest reading out of `snapshot` and the reading before; a restored past is not dated."""
        before = self.reading
        last_step_time = before.last_step_time if before else 0.0
        last_anomaly_time = dict(before.last_anomaly_time) if before else dict.fromkeys(KINDS, 0.0)
        if not restored:
            if snapshot.steps != (before.snapshot.steps if before else 0):
                last_step_time, self.active = snapshot.time, True
            for kind in KINDS:
                if snapshot.anomalies.get(kind, 0) > (before.snapshot.anomalies.get(kind, 0) if before else 0):
                    last_anomaly_time[kind] = snapshot.time
        return Reading(
            name=self.name,
            snapshot=snapshot,
            run_id=clean(source.run_id),
            run_info={str(key): clean(value) for key, value in source.run_info.items()},
            host_seconds=float(source.host_seconds),
            run_start_time=self.start,
            last_step_time=last_step_time,
            active=self.active,
            last_anomaly_time=last_anomaly_time,
            duration_counts=tuple(self.durations),
            duration_sum=self.duration_sum,
        )


class Reader:
    """Polls registered sources; see the module's docstring. One per process is enough: `reader`.

    Args:
      interval_seconds: between two polls, > 0.
    """

    def __init__(self, interval_seconds: float = 1.0) -> None:
        self._interval = _checked_interval(interval_seconds)
        self._reset()

    def _reset(self) -> None:
        self._wake = threading.Condition()
        self._tracks: list[_Track] = []  # oldest registration first
        self._departed: OrderedDict[str, Reading] = OrderedDict()
        self._asked = self._answered = 0  # polls asked for, and done
        self._version = 0
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._at_exit: list[Callable[[], None]] = []
        self._listeners: tuple[Listener, ...] = ()
        self._hurry = math.inf  # seconds to the next poll, as far as a listener asked for it
        self._alerts: Worker[tuple[Callable[[Alert], Any], Alert]] = Worker(_deliver, "gradwatch-alerts", 1000)

    # -- sources ---------------------------------------------------------------------------------------

    def register(self, source: Source, *, restored: bool = False, lazily: bool = False) -> None:
        """Starts to read `source`, and returns at once. Registering it again shows it again.

        Args:
          source: the monitor; held weakly.
          restored: it comes out of a checkpoint, so the episodes it remembers are not news.
          lazily: read it only once somebody listens. What it has to say to a log that nobody configured is then
            said at the end of the process.
        """
        name = clean(source.name)
        with self._wake:
            self._prune()
            track = self._find(source)
            if track is None:
                track = _Track(source, name)
            else:
                self._tracks.remove(track)
            for other in self._tracks:
                if other.name == name and other.shown:
                    other.shown = False
                    logger.info("a newer monitor is called %r: the older one leaves the metrics", name)
            self._version += 1
            track.shown = True
            track.rebase |= restored
            self._tracks.append(track)
            self._departed.pop(name, None)
            if not lazily or self._listeners or logger.hasHandlers():
                self._start_thread()
            self._expect_exit()
            self._asked += 1  # so that the new source need not wait for the next interval
            self._wake.notify_all()

    def unregister(self, source: Source) -> None:
        """Reads `source` one last time, delivers what it has to say and takes it out of the exposition."""
        self.poll_now()
        with self._wake:
            track = self._find(source)
            if track is not None:
                self._drop(track)

    def mark_active(self, source: Source, active: bool) -> None:
        """Says that the run of `source` is under way, or over: `gradwatch_run_active`.

        A run that makes steps is active by itself; only its end cannot be seen from outside.
        """
        if not active:
            self.poll_now()  # or the last steps, seen later, would make it active again
        with self._wake:
            track = self._find(source)
            if track is not None:
                self._version += 1
                track.active = active
                if track.reading is not None:
                    track.reading = replace(track.reading, active=active)

    def rebase(self, source: Source) -> None:
        """Call right after a checkpoint was restored into `source`: its old episodes are not news."""
        with self._wake:
            track = self._find(source)
            if track is not None:
                track.rebase = True

    def start(self) -> None:
        """Reads from now on, also what was registered `lazily`."""
        with self._wake:
            if self._tracks and not self._stopping:
                self._start_thread()

    def listen(self, listener: Listener) -> None:
        """Has `listener` called for each source at each poll, its last one included; see `Listener`."""
        with self._wake:
            if listener not in self._listeners:
                self._listeners = (*self._listeners, listener)
            self.start()
            self._asked += 1  # what is there already is read at once
            self._wake.notify_all()

    def unlisten(self, listener: Listener) -> None:
        """Takes back `listen(listener)`."""
        with self._wake:
            self._listeners = tuple(other for other in self._listeners if other != listener)

    # -- readings --------------------------------------------------------------------------------------

    def readings(self, *, departed: bool = False) -> list[Reading]:
        """The newest reading of each shown source, oldest registration first. Returns at once.

        Args:
          departed: also the last readings of monitors that are gone (the last 64 names).
        """
        with self._wake:
            self._prune()
            self.start()  # somebody looks
            live = [track.reading for track in self._tracks if track.shown and track.reading is not None]
            names = {reading.name for reading in live}
            gone = [r for r in self._departed.values() if r.name not in names] if departed else []
        return gone + live

    def version(self) -> int:
        """A number that changes whenever `readings` may have something new to say."""
        with self._wake:
            self._prune()
            return self._version

    def poll_now(self, timeout_seconds: float = 5.0) -> bool:
        """Has every source read now, and its alerts delivered; False if that took longer than the timeout.

        Called from an alert sink it returns False at once: waiting for oneself would never end.
        """
        if threading.current_thread() is self._thread:
            return False
        end = time.monotonic() + timeout_seconds
        with self._wake:
            self.start()
            if self._thread is None or not self._thread.is_alive():
                return not self._tracks
            self._asked += 1
            number = self._asked
            self._wake.notify_all()
            while self._answered < number:
                if not self._wake.wait(max(0.0, end - time.monotonic())) and time.monotonic() >= end:
                    return False
        return self._alerts.flush(max(0.0, end - time.monotonic()))

    def set_interval(self, interval_seconds: float) -> None:
        """Changes the time between two polls, in seconds, > 0."""
        with self._wake:
            self._interval = _checked_interval(interval_seconds)
            self._asked += 1
            self._wake.notify_all()

    # -- the end ---------------------------------------------------------------------------------------

    def at_exit(self, callback: Callable[[], None]) -> None:
        """Has `callback` called once at the end of the process, after the last alerts were delivered."""
        with self._wake:
            if callback not in self._at_exit:
                self._at_exit.append(callback)
                self._expect_exit()

    def cancel_at_exit(self, callback: Callable[[], None]) -> None:
        """Takes back `at_exit(callback)`."""
        with self._wake:
            self._at_exit = [other for other in self._at_exit if other != callback]

    def close(self) -> None:
        """Reads every source once more, delivers the last alerts, ends runs and thread, in bounded time."""
        with self._wake:
            thread, self._stopping = self._thread, True
            unread = [track.source for track in self._tracks] if thread is None else []
            self._wake.notify_all()
        for source in unread:  # nobody listened: the log hears of it now
            self._poll(source)
        if thread is not None and thread is not threading.current_thread():
            thread.join(_EXIT_SECONDS)
        self._alerts.flush(_EXIT_SECONDS)
        with self._wake:
            for track in list(self._tracks):
                self._drop(track)
            callbacks, self._at_exit = self._at_exit, []
            self._thread, self._stopping = None, False
        for callback in callbacks:
            try:
                callback()
            except Exception:
                health.failed("reader", "a last task at the end of the process failed", exc_info=True)
        atexit.unregister(self.close)

    # -- inside; the first four are called with the lock held -----------------------------------------

    def _find(self, source: Source) -> _Track | None:
        return next((track for track in self._tracks if track.source() is source), None)

    def _prune(self) -> None:
        for track in [track for track in self._tracks if track.source() is None]:
            self._drop(track)

    def _drop(self, track: _Track) -> None:
        self._version += 1
        self._tracks.remove(track)
        if track.reading is not None and track.shown:
            self._departed[track.name] = replace(track.reading, active=False)
            self._departed.move_to_end(track.name)
            while len(self._departed) > _MOST_DEPARTED:
                self._departed.popitem(last=False)

    def _start_thread(self) -> None:
        if self._thread is not None and self._thread.is_alive():
            return
        thread = threading.Thread(target=self._run, name="gradwatch-reader", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # out of threads, or the interpreter is ending: training goes on unread
            health.failed("reader", "the reader thread cannot be started: there are no metrics", exc_info=True)
            return
        self._thread = thread
        self._expect_exit()

    def _expect_exit(self) -> None:
        atexit.unregister(self.close)
        atexit.register(self.close)

    def _run(self) -> None:
        while True:
            with self._wake:
                if self._thread is not threading.current_thread():
                    return  # given up by `close`, or a fork's leftover
                number, stopping = self._asked, self._stopping
                self._hurry = math.inf
                self._prune()
                sources = [track.source for track in self._tracks]
            for source in sources:
                self._poll(source)
            with self._wake:
                self._answered = max(self._answered, number)
                self._version += 1
                self._wake.notify_all()
                if stopping:
                    return
                if self._asked == number and not self._stopping:
                    self._wake.wait(min(self._interval, max(self._hurry, _LEAST_INTERVAL_SECONDS)))

    def _poll(self, reference: weakref.ref[Source]) -> None:
        source = reference()  # the only strong reference, gone before the thread waits
        if source is None:
            return
        with self._wake:
            track = self._find(source)
        if track is None:
            return
        try:
            began = time.perf_counter()
            snapshot = source.snapshot()
            track.timed(time.perf_counter() - began)
            with self._wake:
                before = track.reading
                restored = track.rebase or (before is not None and snapshot.steps < before.snapshot.steps)
                after = track.reading = track.read(source, snapshot, restored)
                track.rebase = False
        except Exception:
            health.failed("snapshot", f"monitor {track.name!r} cannot be read", exc_info=True)
            return
        alerts: list[Alert] = []
        try:
            if not restored:  # else from a checkpoint: what it remembers is not news
                alerts = alerts_between(before, after, source.history)
            for alert in alerts:
                self._tell(track, alert, source.alert_sinks)
        except Exception:
            health.failed("alerts", f"an alert of monitor {track.name!r} cannot be made", exc_info=True)
        for listener in self._listeners:
            try:
                wish = listener(source, after, alerts)
                self._hurry = min(self._hurry, math.inf if wish is None else wish)
            except Exception:
                name = getattr(listener, "__qualname__", type(listener).__qualname__)
                health.failed("reader", f"{name} cannot take a reading", exc_info=True)

    def _tell(self, track: _Track, alert: Alert, sinks: Sequence[Callable[[Alert], Any]]) -> None:
        _log(track, alert)
        for sink in tuple(sinks):
            if not self._alerts.put((sink, alert)):
                health.failed("alerts", "too many alerts wait for a slow on_alert: one is dropped")


def _log(track: _Track, alert: Alert) -> None:
    """Says it once a minute for each kind; between two lines, and for what is harmless, at a lower level."""
    level = _LOG_LEVELS[alert.severity]
    message = alert.message
    if alert.phase == "fired" and level == logging.WARNING:
        now = time.monotonic()
        last, quiet = track.logged.get(alert.kind, (-_LOG_GAP_SECONDS, 0))
        if now - last < _LOG_GAP_SECONDS:
            track.logged[alert.kind] = (last, quiet + alert.episodes)
            level = logging.DEBUG
        else:
            track.logged[alert.kind] = (now, 0)
            if quiet:
                message += f" {quiet} more episodes of this kind since the last line."
    logger.log(level, "%s", message)


def _deliver(item: tuple[Callable[[Alert], Any], Alert]) -> None:
    sink, alert = item
    try:
        sink(alert)
    except Exception:
        name = getattr(sink, "__qualname__", type(sink).__qualname__)
        health.failed("alerts", f"the alert sink {name!r} raised", key=id(sink), exc_info=True)


def _checked_interval(seconds: float) -> float:
    if not 0 < seconds < float("inf"):
        raise ConfigError(f"the interval between two readings must be > 0 seconds, got {seconds}; 1.0 is usual")
    return float(seconds)


#: The reader of this process. Its methods are also functions of this module.
reader = Reader()
register = reader.register
unregister = reader.unregister
mark_active = reader.mark_active
rebase = reader.rebase
start = reader.start
readings = reader.readings
poll_now = reader.poll_now
set_interval = reader.set_interval
listen = reader.listen
unlisten = reader.unlisten

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=reader._reset)
