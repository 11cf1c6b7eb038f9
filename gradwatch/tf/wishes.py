"""What a person may ask of a monitor, checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gradwatch.core.guard import Guard
from gradwatch.errors import ConfigError


def refuse_skip(guard: Guard) -> None:
    for option in ("on_nonfinite", "on_explosion"):
        if getattr(guard, option) == "skip":
            other = "zero" if option == "on_nonfinite" else "clip"
            raise ConfigError(
                f"{option}='skip' cannot be kept by monitor.clip: it hands the gradients back, and the update is "
                "yours. Use gradwatch.watch or gradwatch.KerasCallback without monitor.clip, which drop the update "
                f"of a Keras optimizer whole, or {option}={other!r}"
            )


def sinks(on_alert: Any) -> list[Callable[[Any], None]]:
    found = [] if on_alert is None else list(on_alert) if isinstance(on_alert, (list, tuple)) else [on_alert]
    for sink in found:
        if not callable(sink):
            raise ConfigError(f"on_alert must be callable with an Alert, or a list of such, got {sink!r}")
    return found
