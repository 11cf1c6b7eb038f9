"""The end of a process by SIGTERM, which runs nothing that waits for the end: the record is closed before it dies.

Schedulers send SIGTERM to a training that has to go, and SIGKILL some seconds later. The work is done in a thread: the
training's own thread may hold any lock when the signal comes.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from gradwatch.reading.health import health
from gradwatch.reading.reader import reader

#: How such a run ended, in its facts.
SIGTERM = "SIGTERM"

_SECONDS = 15.0  # schedulers give thirty

_lock = threading.Lock()
_installed_pid = 0
_before: Any = None
_terminated = False
_flushes: dict[int, Callable[[], object]] = {}


def expect(key: int, flush: Callable[[], object]) -> None:
    """Has `flush` called when SIGTERM comes and somebody else's handler decides what becomes of the process.

    Args:
      key: of the recorder, for `forget`.
      flush: writes what is known by now.
    """
    _flushes[key] = flush
    install()


def install() -> None:
    """From now on SIGTERM closes what is recorded, and does then what it did before.

    Does nothing outside the main thread, where SIGTERM is ignored, and where something that is not Python handles it.
    """
    global _installed_pid, _before
    with _lock:
        if _installed_pid == os.getpid() or threading.current_thread() is not threading.main_thread():
            return
        with contextlib.suppress(ValueError, OSError):  # no main thread of the main interpreter
            before = signal.getsignal(signal.SIGTERM)
            if before is None or before == signal.SIG_IGN or before is _on_sigterm:
                return
            signal.signal(signal.SIGTERM, _on_sigterm)
            _before, _installed_pid = before, os.getpid()


def forget(key: int) -> None:
    """Takes back `expect`."""
    _flushes.pop(key, None)


def terminated() -> bool:
    """Whether SIGTERM came to this process."""
    return _terminated


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    global _terminated
    own = os.getpid() == _installed_pid  # a forked child has this handler too, and nothing to write
    if own:
        _terminated = True
    if callable(_before):
        if own:
            _in_time(lambda: [flush() for flush in list(_flushes.values())])
        _before(number, frame)
        return
    if own:
        _in_time(reader.close)  # as at the end of the process, which this is
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)


def _in_time(work: Callable[[], object]) -> None:
    def run() -> None:
        try:
            work()
        except Exception:
            health.failed("record", "the record could not be closed at SIGTERM", exc_info=True)

    with contextlib.suppress(RuntimeError):  # out of threads
        thread = threading.Thread(target=run, name="gradwatch-ending", daemon=True)
        thread.start()
        thread.join(_SECONDS)
