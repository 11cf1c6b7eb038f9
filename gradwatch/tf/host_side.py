"""What a monitor keeps on the host beside its state on the device."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from gradwatch.errors import ConfigError
from gradwatch.record import recorder
from gradwatch.tf.healing import Healer


class HostSide:
    """What only the host knows of a run. An object of its own: tf.Module wraps every list and dict it holds."""

    def __init__(self, on_alert: Any) -> None:
        self.alert_sinks = _sinks(on_alert)
        self.reported: dict[str, float] = {}
        self.record: str | os.PathLike[str] | None = None  # as it was given
        self.recorder: recorder.Recorder | None = None
        self.recover: Any = None  # as it was given
        self.healer: Healer | None = None


def _sinks(on_alert: Any) -> list[Callable[[Any], None]]:
    sinks = [] if on_alert is None else list(on_alert) if isinstance(on_alert, (list, tuple)) else [on_alert]
    for sink in sinks:
        if not callable(sink):
            raise ConfigError(f"on_alert must be callable with an Alert, or a list of such, got {sink!r}")
    return sinks
