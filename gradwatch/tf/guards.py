"""The guard of a monitor, out of what a person said."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from gradwatch.core import detectors as _detectors
from gradwatch.core import policies
from gradwatch.core.detectors import Detector
from gradwatch.core.guard import Guard
from gradwatch.core.policies import Policy
from gradwatch.errors import ConfigError

# made once: monitors with equal guards share their program
_default_policy = functools.cache(policies.auto)
_default_detectors = functools.cache(_detectors.default)


def guard_of(
    policy: Policy | str | None,
    detectors: Detector | str | Sequence[Detector | str] | None,
    on_nonfinite: str | None,
    on_explosion: str,
) -> Guard:
    """The guard of these arguments of `Monitor`."""
    return Guard(
        _default_policy() if policy is None else policies.parse(policy),
        _default_detectors() if detectors is None else _detectors.parse_all(detectors),
        on_nonfinite,
        on_explosion,
    )


def refuse_skip(guard: Guard) -> None:
    """ConfigError where the guard promises to drop an update that is not ours."""
    for option in ("on_nonfinite", "on_explosion"):
        if getattr(guard, option) == "skip":
            other = "zero" if option == "on_nonfinite" else "clip"
            raise ConfigError(
                f"{option}='skip' cannot be kept by monitor.clip: it hands the gradients back, and the update is "
                "yours. Use gradwatch.watch or gradwatch.KerasCallback without monitor.clip, which drop the update "
                f"of a Keras optimizer whole, or {option}={other!r}"
            )
