"""The exit code of a process whose training was stopped and which does not catch the error."""

from __future__ import annotations

import sys
from types import TracebackType

from gradwatch.errors import TrainingStopped


def exit_with_its_code() -> None:
    """From now on, a `TrainingStopped` that nobody catches ends the process with its exit code instead of 1."""
    before = sys.excepthook
    if getattr(before, "_gradwatch", False):
        return

    def hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        before(kind, error, traceback)
        if isinstance(error, TrainingStopped):
            # raised out of the hook it is obeyed, after everything that runs at the end of a process
            raise SystemExit(error.exit_code)

    hook._gradwatch = True  # type: ignore[attr-defined]
    sys.excepthook = hook
