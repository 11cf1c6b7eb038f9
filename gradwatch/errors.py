"""Every error gradwatch raises on purpose.

    GradwatchError
    ├── ConfigError       an argument is out of range or two arguments contradict   (also a ValueError)
    ├── NothingToWatch    the watched step applied no gradient gradwatch could see  (also a RuntimeError)
    ├── LayoutError       state and variables do not fit: another model, another checkpoint
    ├── UnsupportedError  this TensorFlow, Keras or place cannot be watched correctly
    ├── TrainingStopped   a run that cannot be saved was ended by its ladder        (also a RuntimeError)
    ├── RecordError       a file is no record of a run that can be read here         (also a ValueError)
    ├── ServeError        the metrics endpoint cannot be opened                     (also an OSError)
    └── MissingExtra      an optional dependency is not installed                   (also an ImportError)

A message says what was wrong, what was got, and what to do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__all__ = [
    "ConfigError",
    "GradwatchError",
    "LayoutError",
    "MissingExtra",
    "NothingToWatch",
    "RecordError",
    "ServeError",
    "TrainingStopped",
    "UnsupportedError",
]

#: Name under which `pip install` finds this package. The index refuses the name `gradwatch`: it holds somebody else's
#: `grad-watch`, and names that differ in `-`, `_` and `.` alone count as one.
DISTRIBUTION = "gradwatch-tf"


def install_hint(extras: str) -> str:
    """The command that brings these extras, such as "live" or "cli,grafana"."""
    return f"pip install '{DISTRIBUTION}[{extras}]'"


class GradwatchError(Exception):
    """Base of all errors of this package."""

    # by this AutoGraph knows how to re-raise an error of a traced function; it would be a StagingError else
    if not TYPE_CHECKING:
        __init__ = Exception.__init__


class ConfigError(GradwatchError, ValueError):
    """An argument is out of range, or two arguments contradict each other."""


class NothingToWatch(GradwatchError, RuntimeError):
    """The watched step ran without a gradient passing gradwatch: it would be blind."""


class LayoutError(GradwatchError, ValueError):
    """The monitor's state belongs to other variables or other options."""


class UnsupportedError(GradwatchError, RuntimeError):
    """gradwatch would report wrong numbers here, and says so instead."""


class TrainingStopped(GradwatchError, RuntimeError):
    """The rung `stop` has ended a run that cannot be saved.

    Attributes:
      verdict: what is wrong with the run, as far as it is known.
      step: of the monitor.
      exit_code: of the process, where nobody catches the error.
    """

    verdict: str = ""
    step: int = 0
    exit_code: int = 1


class RecordError(GradwatchError, ValueError):
    """A file is no record of a run, or one that cannot be read here."""


class ServeError(GradwatchError, OSError):
    """The metrics endpoint cannot be opened."""


class MissingExtra(GradwatchError, ImportError):
    """An optional dependency is missing; the message names the extra that brings it."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which the extra {extra!r} brings; "
            f"install it with: {install_hint(extra)}"
        )
