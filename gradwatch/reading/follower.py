"""What takes the reader's looks and works them off on a thread of its own: TensorBoard, and the trackers of runs."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from typing import TypeVar

from gradwatch.reading.alerts import Alert
from gradwatch.reading.health import health
from gradwatch.reading.reader import Reader, reader
from gradwatch.reading.reading import Reading
from gradwatch.reading.track import Source
from gradwatch.reading.worker import Worker

Self = TypeVar("Self", bound="Follower")


class Follower:
    """Follows one monitor, or all of the process, from `_begin` until it is closed or the process ends.

    A subclass takes each look in `_take`, hands work to `_worker`, and says in `_endings` what is left to do last.

    Args:
      monitor: follow only this one; None is every monitor of the process.
      name: what it writes to, for people; its thread is called after it.
      component: who it is in the count of internal errors.
      seconds: that `flush` and `close` wait for the thread.
    """

    def __init__(self, monitor: Source | None, *, name: str, component: str, seconds: float) -> None:
        self._only = None if monitor is None else weakref.ref(monitor)
        self._name, self._component, self._seconds = name, component, seconds
        self._reader: Reader = reader
        self._lock = threading.Lock()
        self._closed = False
        self._worker: Worker[Callable[[], None]] = Worker(self._do, f"gradwatch-{name.lower()}", capacity=1000)

    def _begin(self) -> None:
        self._reader.listen(self._look)
        self._reader.at_exit(self.close)

    def flush(self, timeout_seconds: float | None = None) -> bool:
        """Has everything up to now written; False if that took longer than `timeout_seconds`."""
        seconds = self._seconds if timeout_seconds is None else timeout_seconds
        # what waits goes first: a look that finds too much waiting leaves its steps in the history
        self._worker.flush(seconds)
        return self._reader.poll_now(seconds) and self._worker.flush(seconds)

    def close(self) -> None:
        """Writes what is left and ends. May be called twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._worker.flush(self._seconds)
        self._reader.poll_now()
        self._reader.unlisten(self._look)
        self._reader.cancel_at_exit(self.close)
        for job in self._endings():
            self._worker.put(job)
        if not self._worker.flush(self._seconds):
            health.failed(self._component, f"the last steps for {self._name} could not be written in time")

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _look(self, source: Source, reading: Reading, alerts: Sequence[Alert]) -> float | None:
        if self._only is not None and self._only() is not source:
            return None
        return self._take(source, reading, alerts)

    def _take(self, source: Source, reading: Reading, alerts: Sequence[Alert]) -> float | None:
        """One look, on the reader's thread; in how many seconds the next one is wished for."""
        raise NotImplementedError

    def _endings(self) -> Sequence[Callable[[], None]]:
        """What is to be done last, on the thread that works."""
        raise NotImplementedError

    def _do(self, job: Callable[[], None]) -> None:
        """One piece of work; what it raises is told once."""
        raise NotImplementedError
