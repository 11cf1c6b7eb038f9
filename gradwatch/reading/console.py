"""How log lines look when the program did not configure logging: with time and level, on a line of their own.

Python would print the bare message to standard error, in the middle of a progress bar. As soon as the program has
handlers of its own, this one is silent.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from typing import TextIO

logger = logging.getLogger("gradwatch")

FORMAT = "%(asctime)s %(levelname)s gradwatch: %(message)s"


class Console(logging.Handler):
    """Writes to `sys.stderr` as long as nobody else would write anything."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.setFormatter(logging.Formatter(FORMAT, "%H:%M:%S"))

    def emit(self, record: logging.LogRecord) -> None:
        if configured() or sys.stderr is None:
            return
        try:
            start = "\n" if _bar_is_open() and _same_place(sys.stdout, sys.stderr) else ""
            sys.stderr.write(f"{start}{self.format(record)}\n")
            sys.stderr.flush()
        except Exception:
            self.handleError(record)


def install() -> None:
    """Gives the logger `gradwatch` its `Console`. May be called twice."""
    if not any(isinstance(handler, Console) for handler in logger.handlers):
        logger.addHandler(Console())


def configured() -> bool:
    """Whether the program has a handler of its own for what `gradwatch` logs."""
    step: logging.Logger | None = logger
    while step is not None:
        if any(not isinstance(handler, (Console, logging.NullHandler)) for handler in step.handlers):
            return True
        step = step.parent if step.propagate else None
    return False


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
