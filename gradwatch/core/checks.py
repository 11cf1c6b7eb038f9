"""Checks of user arguments: what, got, and what to do."""

from __future__ import annotations

import math
from typing import Any

from gradwatch.errors import ConfigError


def number(
    name: str,
    value: Any,
    *,
    above: float | None = None,
    least: float | None = None,
    most: float | None = None,
    below: float | None = None,
    hint: str = "",
) -> float:
    """`value` as a float, or ConfigError: finite, > above, >= least, <= most, < below."""
    rules = [
        f"{sign} {bound:g}"
        for sign, bound in ((">", above), (">=", least), ("<=", most), ("<", below))
        if bound is not None
    ]
    wanted = " and ".join(rules) or "a finite number"
    tail = f"; {hint}" if hint else ""
    if isinstance(value, bool) or (not isinstance(value, (int, float)) and not hasattr(value, "__float__")):
        raise ConfigError(f"{name} must be {wanted}, got {value!r}{tail}")
    try:
        x = float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigError(f"{name} must be {wanted}, got {value!r}{tail}") from error
    fits = (
        math.isfinite(x)
        and (above is None or x > above)
        and (least is None or x >= least)
        and (most is None or x <= most)
        and (below is None or x < below)
    )
    if not fits:
        raise ConfigError(f"{name} must be {wanted}, got {value!r}{tail}")
    return x


#: Longest window and warm-up, in steps: beyond it float32 weights lose more than 0.1 % of their rank.
LONGEST = 100_000


def count(name: str, value: Any, *, least: int = 1, most: int = LONGEST, hint: str = "") -> int:
    """`value` as a whole number from `least` to `most`, or ConfigError."""
    x = number(name, value, least=least, most=most, hint=hint)
    if x != int(x):
        raise ConfigError(f"{name} must be a whole number, got {value!r}" + (f"; {hint}" if hint else ""))
    return int(x)


def one_of(name: str, value: Any, choices: tuple[str, ...]) -> str:
    """`value` if it is one of `choices`, or ConfigError."""
    if not isinstance(value, str) or value not in choices:
        raise ConfigError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
    return value
