"""What every policy is, and the options that those that learn have in common."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gradwatch.core import checks
from gradwatch.core.norms import Norms
from gradwatch.core.values import Value
from gradwatch.core.xp import Array, Bool, Namespace
from gradwatch.errors import ConfigError

State = Mapping[str, Any]
Info = Mapping[str, Array]
Update = tuple[State, Array, Info]

GLOBAL, VARIABLE, VALUE, NONE = "global", "variable", "value", "none"
SCOPES = (GLOBAL, VARIABLE, VALUE, NONE)

#: Errors of a bound that is 0 or less say this.
WATCH_ONLY = "to watch without clipping use policies.observe()"

#: A norm must be able to enter at this multiple of the level it is compared with, or the level could never rise. It is
#: AdaGC's own ratio, the lowest that was published, and more than two buckets of the sketch, which are 2 % wide.
LEAST_RISE = 1.05


class Policy(Value):
    """A clip policy: two pure functions over explicit state. Make one with the functions of `gradwatch.policies`.

    Your own is either `Policy(name, init, update)`, which can be pickled when its functions can, or a frozen
    dataclass that derives from Policy, as ours are (`gradwatch.core.values` says how).

    Args:
      name: how it was made, for people: "percentile(90, window=1000)".
      init: num_variables -> state, a dict of float32 arrays of fixed structure and shapes.
      update: (xp, state, norms) -> (state, clip_norm, info).
      scope: what clip_norm bounds. "global": the global norm, shape (). "variable": each variable's norm,
        shape [num_variables]. "value": each element, by `limit`. "none": nothing is ever changed.
      limit: the bound of each element's magnitude (scope "value" only).
      expected_clip_ratio: share of steps in [0, 1] that it clips at most on stationary norms, None if it
        makes no such claim.

    Attributes:
      holds_rate: whether it clips every gradient where the learning rate is too high, as `auto` does.

    Raises:
      ConfigError: an argument is not what it should be.

    Example:
      >>> from gradwatch import policies
      >>> def update(xp, state, norms):
      ...     return state, norms.total * 0.0 + 1.0, {}
      >>> policies.Policy("always_one()", lambda num_variables: {}, update).scope
      'global'
    """

    scope: str = GLOBAL
    limit: float = math.inf
    expected_clip_ratio: float | None = None
    holds_rate: bool = False

    def __init__(
        self,
        name: str,
        init: Callable[[int], State],
        update: Callable[[Namespace, State, Norms], Update],
        scope: str = GLOBAL,
        limit: float = math.inf,
        expected_clip_ratio: float | None = None,
    ) -> None:
        if not isinstance(name, str) or not name:
            raise ConfigError(f"a policy's name must be a text such as 'mine(2)', got {name!r}")
        for argument, function in (("init", init), ("update", update)):
            if not callable(function):
                raise ConfigError(f"a policy's {argument} must be a function, got {function!r}")
        if limit != math.inf:
            limit = checks.norm("limit", limit)
        if expected_clip_ratio is not None:
            hint = "it is a share of the steps, 0.1 and not 10"
            expected_clip_ratio = checks.number("expected_clip_ratio", expected_clip_ratio, least=0, most=1, hint=hint)
        self._store(name=name, init=init, update=update, limit=limit, expected_clip_ratio=expected_clip_ratio)
        self._store(scope=checks.one_of("a policy's scope", scope, SCOPES))

    def init(self, num_variables: int) -> State:
        """The state before the first step."""
        raise NotImplementedError

    def update(self, xp: Namespace, state: State, norms: Norms) -> Update:
        """(state after the step, clip_norm of the step, info)."""
        raise NotImplementedError


@dataclass(frozen=True, repr=False, kw_only=True)
class Adaptive(Policy):
    """A policy that learns from the norms before; its options.

    Args:
      warmup_steps: norms observed before the first clip, >= 1.
      winsorise: a norm enters clamped at this multiple of clip_norm; a smaller one follows a rise more slowly. The
        level must be able to rise by 5 %, so that it is >= 1.05 for `percentile`.
      minimum: lower bound of clip_norm, None for none.
      maximum: upper bound of clip_norm, None for none; also the clip_norm of the warm-up.

    Raises:
      ConfigError: an argument is out of range.
    """

    warmup_steps: int = 1
    winsorise: float = 2.0
    minimum: float | None = None
    maximum: float | None = None

    def _check_options(self, *, least_warmup: int = 1) -> None:
        minimum, maximum = bounds(self.minimum, self.maximum)
        self._store(
            warmup_steps=checks.count("warmup_steps", self.warmup_steps, least=least_warmup),
            winsorise=checks.multiple("winsorise", self.winsorise, least=1, hint="it is a multiple, 2 and not 0.05"),
            minimum=minimum,
            maximum=maximum,
        )

    def _check_rise(self, multiple: float = 1.0, name: str = "", exception: str = "") -> None:
        """`winsorise * multiple` is how far above the present level a norm can enter."""
        # a hair below: 1.05 of a float32 is 1.04999995
        if self.winsorise * multiple < LEAST_RISE * (1 - 1e-6):
            what, got = "winsorise", f"{self.winsorise:g}"
            if name:
                what, got = f"winsorise * {name}", f"{self.winsorise:g} * {multiple:g}"
            raise ConfigError(
                f"{what} must be >= {LEAST_RISE}, got {got}: clip_norm could never rise; raise winsorise{exception}"
            )

    def _bound(self, xp: Namespace, ready: Bool, clip_norm: Array) -> Array:
        """`clip_norm` within its bounds; the maximum where it is not ready."""
        highest = math.inf if self.maximum is None else self.maximum
        return clamp(xp, xp.where(ready, clip_norm, highest), self.minimum, self.maximum)


def bounds(minimum: float | None, maximum: float | None) -> tuple[float | None, float | None]:
    """Both as they were given, or ConfigError."""
    hint = "None means no bound"
    low = None if minimum is None else checks.norm("minimum", minimum, zero=True, hint=hint)
    high = None if maximum is None else checks.norm("maximum", maximum, hint=hint)
    if low is not None and high is not None and low > high:
        raise ConfigError(f"minimum must not exceed maximum, got minimum={minimum!r} and maximum={maximum!r}")
    return low, high


def clamp(xp: Namespace, clip_norm: Array, minimum: float | None, maximum: float | None) -> Array:
    """`clip_norm` within the bounds that there are."""
    if minimum is not None:
        clip_norm = xp.maximum(clip_norm, minimum)
    return clip_norm if maximum is None else xp.minimum(clip_norm, maximum)


def learned(xp: Namespace, take: Bool, new: State, old: State) -> State:
    """The new state where the step may teach, else the old one."""
    return {name: xp.where(take, new[name], old[name]) for name in old}


def one_more(xp: Namespace, seen: Array) -> Array:
    """A counter of steps; it stops far below 2^24, where float32 counters stick."""
    return xp.minimum(seen + 1.0, 1e6)
