"""How log lines look when the program did not configure logging: with time and level, on a line of their own.

Python would print the bare message to standard error, in the middle of a progress bar. It does that with a handler of
last resort; ours takes its place and hands on what is not from gradwatch. So a program that has any handler of its own,
or a `NullHandler` to be silent, sees nothing of it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from typing import TextIO

FORMAT = "%(asctime)s %(levelname)s gradwatch: %(message)s"


class Console(logging.Handler):
    """Writes what the logger `gradwatch` says to `sys.stderr`.

    Args:
      others: the handler of last resort for everybody else.
    """

    def __init__(self, others: logging.Handler) -> None:
        super().__init__(others.level)
        self._others = others
        self.setFormatter(logging.Formatter(FORMAT, "%H:%M:%S"))

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.split(".")[0] != "gradwatch":
            self._others.handle(record)
        elif sys.stderr is not None:
            try:
                start = "\n" if _bar_is_open() and _same_place(sys.stdout, sys.stderr) else ""
                sys.stderr.write(f"{start}{self.format(record)}\n")
                sys.stderr.flush()
            except Exception:
                self.handleError(record)


def install() -> None:
    """Puts a `Console` before the handler of last resort, if there is one. May be called twice."""
    if logging.lastResort is not None and not isinstance(logging.lastResort, Console):
        logging.lastResort = Console(logging.lastResort)


def _bar_is_open() -> bool:
    """Whether Keras or tqdm has probably left a progress bar at the end of an unfinished line."""
    tqdm = sys.modules.get("tqdm")
    if tqdm is not None and len(getattr(tqdm.tqdm, "_instances", ())):
        return True
    # Keras tells nobody whether its bar is open; it draws one while these run
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None:
        code = frame.f_code
        if code.co_name in ("fit", "evaluate", "predict") and "keras" in code.co_filename:
            return True
        frame = frame.f_back
    return False


def _same_place(one: TextIO | None, other: TextIO) -> bool:
    """Whether both end up in one terminal or file."""
    if one is None:
        return False
    with contextlib.suppress(OSError, ValueError, AttributeError):  # not files, or closed
        return os.path.samestat(os.fstat(one.fileno()), os.fstat(other.fileno()))
    return one is other
