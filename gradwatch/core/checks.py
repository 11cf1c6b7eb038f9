"""Checks of user arguments: what, got, and what to do."""

from __future__ import annotations

import math
from typing import Any

from gradwatch.core.xp import HUGE, TINY
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


#: Longest window and warm-up, in steps: beyond it float32 weights lose more than 0.3 % of their rank.
LONGEST = 100_000


def count(name: str, value: Any, *, least: int = 1, most: int = LONGEST, hint: str = "") -> int:
    """`value` as a whole number from `least` to `most`, or ConfigError."""
    x = number(name, value, least=least, most=most, hint=hint)
    if x != int(x):
        raise ConfigError(f"{name} must be a whole number, got {value!r}" + (f"; {hint}" if hint else ""))
    return int(x)


def norm(name: str, value: Any, *, zero: bool = False, hint: str = "") -> float:
    """`value` as a norm that float32 can hold, or ConfigError; 0 is one where `zero` says so."""
    x = number(name, value, hint=hint, **({"least": 0} if zero else {"above": 0}))
    if x > HUGE or 0 < x < TINY:
        raise ConfigError(f"{name} must be from {TINY:g} to {HUGE:g}, the norms that float32 can hold, got {value!r}")
    return x


def multiple(name: str, value: Any, *, least: float | None = None, most: float = 1e12, hint: str = "") -> float:
    """`value` as a factor of a norm, > 0, or ConfigError; beyond 10^12 products of two would leave float32."""
    return number(name, value, above=0 if least is None else None, least=least, most=most, hint=hint)


def window(name: str, value: Any) -> int:
    """`value` as a number of steps that are remembered, or ConfigError."""
    return count(name, value, least=2, hint="it is a number of steps, 1000 and not 0.999")


def decay(name: str, value: Any) -> float:
    """`value` as the weight that the past keeps in a step, or ConfigError.

    At the longest memory a step still moves a float32 average; below 0.5 the newest norm outweighs all others.
    """
    hint = "it is the weight of the past, 0.97 and neither 97 nor 0.03"
    return number(name, value, least=0.5, most=1 - 1 / LONGEST, hint=hint)


def one_of(name: str, value: Any, choices: tuple[str, ...]) -> str:
    """`value` if it is one of `choices`, or ConfigError."""
    if not isinstance(value, str) or value not in choices:
        raise ConfigError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
    return value
