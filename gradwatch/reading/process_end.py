"""How this process ends, as Python knows it at the end: well, by an uncaught exception, or by a status of failure."""

from __future__ import annotations

import functools
import opcode
import sys
import threading
from types import FrameType
from typing import Any, NoReturn

#: The end of the script, and what a shell says of SIGHUP, SIGINT and SIGTERM: somebody wanted it.
_ON_PURPOSE = (0, 129, 130, 143)

_given: tuple[int, FrameType] | None = None  # the status of the newest `sys.exit`, and the script's own frame


def uncaught() -> BaseException | None:
    """The exception that nobody caught and that ends the process."""
    error = getattr(sys, "last_value", None)
    if error is None or hasattr(sys, "ps1"):  # a person at a prompt has seen it and gone on
        return None
    trace = getattr(sys, "last_traceback", None)
    # printed by a library's C code, from within the script, it did not end anything
    return None if trace is not None and trace.tb_frame.f_back is not None else error


def failed() -> bool:
    """At the end of the process: whether an exception that nobody caught ends it, or a status that is a failure.

    Ctrl-C and what a shell says of SIGTERM are no failures. A status counts from `note_exits` on, if it was given to
    `sys.exit`; `raise SystemExit(3)` is not seen. One that was caught does not count: the script then came to its end.
    """
    if hasattr(sys, "ps1"):
        return False
    error = uncaught()
    if error is not None or _given is None:
        return is_failure(error)
    status, script = _given
    last = opcode.opname[script.f_code.co_code[script.f_lasti]]
    return status not in _ON_PURPOSE and not last.startswith("RETURN")


def is_failure(error: BaseException | None) -> bool:
    """Whether a process that this ends has failed; None is no error."""
    if isinstance(error, SystemExit):
        return _number(error.code) not in _ON_PURPOSE
    return error is not None and not isinstance(error, (KeyboardInterrupt, GeneratorExit))


def note_exits() -> None:
    """From now on `failed` knows the status that the main thread gives to `sys.exit`."""
    before = sys.exit
    if getattr(before, "_gradwatch", False):
        return

    @functools.wraps(before)
    def noted(status: Any = None, /) -> NoReturn:
        global _given
        if threading.current_thread() is threading.main_thread():
            script = sys._getframe(1)
            while script.f_back is not None:
                script = script.f_back
            _given = _number(status), script
        before(status)

    noted._gradwatch = True  # type: ignore[attr-defined]
    sys.exit = noted


def _number(status: Any) -> int:
    """As the interpreter takes it: None is 0, and a text, which it prints, is 1."""
    return int(status) if isinstance(status, int) else int(status is not None)
