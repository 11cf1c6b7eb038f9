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
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from gradwatch.errors import ConfigError
from gradwatch.reading import process_end, verdicts
from gradwatch.reading.alerts import Alert, alerts_between
from gradwatch.reading.health import health
from gradwatch.reading.log import log_alert
from gradwatch.reading.reading import Reading
from gradwatch.reading.text import clean
from gradwatch.reading.track import Source, Track
from gradwatch.reading.worker import Worker

logger: logging.Logger = logging.getLogger("gradwatch")

_LEAST_INTERVAL_SECONDS = 0.05  # between two polls, however much a listener hurries
_EXIT_SECONDS = 5.0  # for the last poll, and again for the last alerts
_MOST_DEPARTED = 64  # last readings kept of monitors that are gone

#: Called on the reader's thread with a source, its newest reading and the alerts that this reading gave; must
#: return soon. Returns the seconds after which it would like to be called again, or None for the usual interval.
Listener = Callable[[Source, "Reading", "Sequence[Alert]"], "float | None"]


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
        self._tracks: list[Track] = []  # oldest registration first
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
                track = Track(source, name)
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
        if track is not None and not active:
            track.conclude()

    def rebase(self, source: Source) -> None:
        """Call right after a checkpoint was restored into `source`: its old episodes are not news."""
        with self._wake:
            track = self._find(source)
            if track is not None:
                track.rebase = True
        verdicts.forget(source)

    def restart(self, source: Source) -> None:
        """Call when `source` begins anew: all that it sees from now on is news."""
        with self._wake:
            track = self._find(source)
            if track is not None:
                track.restart()
        verdicts.forget(source)

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
        for track in list(self._tracks):
            track.conclude()
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

    def _find(self, source: Source) -> Track | None:
        return next((track for track in self._tracks if track.source() is source), None)

    def _prune(self) -> None:
        for track in [track for track in self._tracks if track.source() is None]:
            self._drop(track)

    def _drop(self, track: Track) -> None:
        self._version += 1
        self._tracks.remove(track)
        if track.reading is not None and track.shown:
            # a run that a failure of the process ends did not say that it was over, so it is missed
            active = track.reading.active and self._stopping and process_end.failed()
            self._departed[track.name] = replace(track.reading, active=active)
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
            snapshot, history = track.take(source)
            with self._wake:
                before = track.reading
                restored = track.rebase or (before is not None and snapshot.steps < before.snapshot.steps)
                after = track.reading = track.read(source, snapshot, history, restored)
                track.rebase = False
        except Exception:
            health.failed("snapshot", f"monitor {track.name!r} cannot be read", exc_info=True)
            return
        alerts: list[Alert] = []
        verdict = verdicts.once(lambda: track.judge(source))
        try:
            if track.wants_verdict(snapshot.steps):
                verdict()
            if not restored:  # else from a checkpoint: what it remembers is not news
                alerts = alerts_between(before, after, lambda: history, verdict)
            after = track.reading
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

    def _tell(self, track: Track, alert: Alert, sinks: Sequence[Callable[[Alert], Any]]) -> None:
        log_alert(track, alert)
        for sink in tuple(sinks):
            if not self._alerts.put((sink, alert)):
                health.failed("alerts", "too many alerts wait for a slow on_alert: one is dropped")


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
reader: Reader = Reader()
register = reader.register
unregister = reader.unregister
mark_active = reader.mark_active
rebase = reader.rebase
restart = reader.restart
start = reader.start
readings = reader.readings
poll_now = reader.poll_now
set_interval = reader.set_interval
listen = reader.listen
unlisten = reader.unlisten

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=reader._reset)
