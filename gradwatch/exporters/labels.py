"""Labels that a person adds to the metrics of a process."""

from __future__ import annotations

import re
from collections.abc import Mapping

from gradwatch.errors import ConfigError
from gradwatch.exporters.metrics import LABELS
from gradwatch.reading.text import clean


def check_labels(argument: str, labels: Mapping[str, str], taken: Mapping[str, str]) -> None:
    """Refuses names that are no labels, and those that something else sets.

    Args:
      argument: how the caller's argument is called, for the message.
      taken: name -> where it is set instead.

    Raises:
      ConfigError: a name cannot be used.
    """
    for name in labels:
        if not isinstance(name, str) or not re.fullmatch(r"[a-zA-Z_][a-zA-Z0-9_]*", name) or name.startswith("__"):
            raise ConfigError(f"{argument} has {clean(name)!r}, which is not a label name; use letters, digits and _")
        if name in taken:
            raise ConfigError(f"{argument} must not hold {name!r}; {taken[name]}")
        if name in LABELS:
            raise ConfigError(
                f"{argument} must not hold {name!r}: the metrics have that label themselves, so that several series "
                "would become one"
            )
