"""The monitor that `watch` and `KerasCallback` are given, or the options to make one."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from gradwatch.errors import ConfigError
from gradwatch.tf.monitor import Monitor

_DEFAULTS = {
    name: parameter.default
    for name, parameter in inspect.signature(Monitor.__init__).parameters.items()
    if parameter.default is not inspect.Parameter.empty
}


def check(monitor: Any, options: Mapping[str, Any], taker: str) -> None:
    """ConfigError where they do not fit together, or an option is none of Monitor's.

    Args:
      taker: what takes the options, for the message.
    """
    unknown = [name for name in options if name not in _DEFAULTS]
    if unknown:
        raise ConfigError(f"{taker} has no option {unknown[0]!r}; those of the monitor are {', '.join(_DEFAULTS)}")
    if monitor is None:
        return
    if not isinstance(monitor, Monitor):
        raise ConfigError(
            f"monitor must be a gradwatch.Monitor, got {monitor!r}; options of a new one go by keyword: "
            f"{taker}(policy=...)"
        )
    given = [name for name, value in options.items() if value is not _DEFAULTS[name]]
    if given:
        raise ConfigError(
            f"monitor= brings its own options, got {', '.join(given)} as well; give options to gradwatch.Monitor(...)"
        )


def monitor_from(monitor: Monitor | None, options: Mapping[str, Any]) -> Monitor:
    """The monitor, or one that is made from the options."""
    return Monitor(**options) if monitor is None else monitor
