"""Clip policies: how far a gradient may reach, judged from the steps before.

A policy is a pair of pure functions over explicit state, as in optax; `update` also returns an `info` that is
not carried, as in blackjax:

    init(num_variables) -> state
    update(xp, state, norms) -> (state, clip_norm, info)

`update` must compute `clip_norm` from the state alone (the steps before this one) and only then let the norms
enter, winsorised: clamped at a multiple of the threshold, so that an explosion cannot teach the policy that
explosions are normal. Steps with a NaN or Inf never enter, nor does a norm of zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from gradwatch.core import checks, sketch
from gradwatch.core.norms import Norms
from gradwatch.core.xp import Array, Bool, Namespace
from gradwatch.errors import ConfigError

State = Mapping[str, Any]

GLOBAL, VARIABLE, VALUE, NONE = "global", "variable", "value", "none"


class Policy(NamedTuple):
    """A clip policy; make one with the functions of this module, or your own.

    Attributes:
      name: how it was made, for people: "percentile(90, window=1000)".
      init: num_variables -> state, a dict of float32 arrays of fixed structure and shapes.
      update: (xp, state, norms) -> (state, clip_norm, info).
      scope: what clip_norm bounds. "global": the global norm, shape (). "variable": each variable's norm,
        shape [num_variables]. "value": each element, by `limit`. "none": nothing is ever changed.
      limit: the bound of each element's magnitude (scope "value" only).
      expected_clip_ratio: share of steps in [0, 1] that it means to clip on stationary norms, None if it
        makes no such claim.
    """

    name: str
    init: Callable[[int], State]
    update: Callable[[Namespace, State, Norms], tuple[State, Array, Mapping[str, Array]]]
    scope: str = GLOBAL
    limit: float = math.inf
    expected_clip_ratio: float | None = None


class _Bounds(NamedTuple):
    minimum: float
    maximum: float

    def clamp(self, xp: Namespace, clip_norm: Array) -> Array:
        return xp.minimum(xp.maximum(clip_norm, self.minimum), self.maximum)


def _bounds(minimum: float | None, maximum: float | None) -> _Bounds:
    low = 0.0 if minimum is None else checks.number("minimum", minimum, least=0, hint="None means no bound")
    high = math.inf if maximum is None else checks.number("maximum", maximum, above=0, hint="None means no bound")
    if low > high:
        raise ConfigError(f"minimum must not exceed maximum, got minimum={minimum!r} and maximum={maximum!r}")
    return _Bounds(low, high)


def _name(factory: str, *positional: Any, **keywords: Any) -> str:
    """How the policy was made, without the arguments that were left at None."""
    parts = [f"{value:g}" for value in positional]
    parts += [f"{key}={value:g}" for key, value in keywords.items() if value is not None]
    return f"{factory}({', '.join(parts)})"


def _enters(norms: Norms) -> Bool:
    return norms.finite & (norms.total > 0.0)


def _quantile_policy(
    name: str,
    q: float,
    factor: float,
    window: int,
    warmup_steps: int,
    winsorise: float,
    bounds: _Bounds,
    ratio: float | None,
) -> Policy:
    """clip_norm_t = factor * Q_q(norms before t), on the sketch."""
    decay = 1.0 - 1.0 / window
    reach = math.log(winsorise)

    def init(num_variables: int) -> State:
        return {"sketch": sketch.init(), "seen": np.zeros((), np.float32)}

    def update(xp: Namespace, state: State, norms: Norms) -> tuple[State, Array, Mapping[str, Array]]:
        held, seen = state["sketch"], state["seen"]
        log_quantile = sketch.log_quantile(xp, held, q)
        ready = seen >= warmup_steps
        threshold = xp.where(ready, xp.exp(log_quantile) * factor, bounds.maximum)
        take = _enters(norms)
        # before there is a quantile there is nothing to clamp at
        ceiling = xp.where(seen > 0.0, log_quantile + (math.log(factor) + reach), norms.log)
        held = sketch.update(xp, held, xp.minimum(norms.log, ceiling), take, decay)
        seen = xp.minimum(seen + xp.where(take, 1.0, 0.0), 1e6)
        return {"sketch": held, "seen": seen}, bounds.clamp(xp, threshold), {}

    return Policy(name, init, update, expected_clip_ratio=ratio)


def percentile(
    q: float = 90.0,
    window: int = 1000,
    *,
    warmup_steps: int = 1,
    winsorise: float = 2.0,
    minimum: float | None = None,
    maximum: float | None = None,
) -> Policy:
    """Clip the global norm at the q-th percentile of the recent norms before this step.

    clip_norm_t = P_q(norms before t), each step weighing (1 - 1/window) times the next one. On stationary
    norms it clips (100 - q) % of the steps. After a lasting tenfold rise of the norm the share of clipped
    steps is back near that within half a window (measured in tests/core/test_policies.py).

    Args:
      q: percentile, in [0, 100].
      window: steps remembered, >= 2: the weights sum to it.
      warmup_steps: norms observed before the first clip, >= 1.
      winsorise: a norm enters clamped at this multiple of clip_norm, > 1; smaller follows a rise more slowly.
      minimum: lower bound of clip_norm, None for none.
      maximum: upper bound of clip_norm, None for none; also the clip_norm of the warm-up.

    Raises:
      ConfigError: an argument is out of range.

    Source: AutoClip (Seetharaman, Wichern, Pardo, Le Roux 2020, arXiv 2007.14469). We differ: the current
    norm is not part of its own threshold, old norms are forgotten, norms enter winsorised, and the quantile
    comes from a sketch of 1 % relative error instead of a sorted history.
    """
    q = checks.number("q", q, least=0, most=100, hint="it is a percentile, 90 and not 0.9")
    window = checks.count("window", window, least=2)
    warmup = checks.count("warmup_steps", warmup_steps)
    winsorise = checks.number("winsorise", winsorise, above=1)
    name = _name("percentile", q, window=window, minimum=minimum, maximum=maximum)
    bounds = _bounds(minimum, maximum)
    return _quantile_policy(name, q / 100, 1.0, window, warmup, winsorise, bounds, 1 - q / 100)


def median(
    factor: float = 2.0,
    window: int = 200,
    *,
    warmup_steps: int = 1,
    winsorise: float = 2.0,
    minimum: float | None = None,
    maximum: float | None = None,
) -> Policy:
    """Clip the global norm at a multiple of the recent median.

    clip_norm_t = factor * P_50(norms before t).

    Args:
      factor: multiple of the median, > 0.
      window, warmup_steps, winsorise, minimum, maximum: as in `percentile`.

    Raises:
      ConfigError: an argument is out of range.

    Source: the rule of icefall's ScaledAdam (k2-fsa), which clips at twice the median of the recent norms.
    """
    factor = checks.number("factor", factor, above=0)
    window = checks.count("window", window, least=2)
    warmup = checks.count("warmup_steps", warmup_steps)
    winsorise = checks.number("winsorise", winsorise, above=1)
    if factor * winsorise <= 1:
        raise ConfigError(
            f"factor * winsorise must be > 1, got {factor:g} * {winsorise:g}: the median could never rise; "
            "raise winsorise"
        )
    name = _name("median", factor, window=window, minimum=minimum, maximum=maximum)
    return _quantile_policy(name, 0.5, factor, window, warmup, winsorise, _bounds(minimum, maximum), None)


def zscore(
    z_max: float = 2.5,
    *,
    decay: float = 0.97,
    warmup_steps: int = 25,
    winsorise: float = 2.0,
    minimum: float | None = None,
    maximum: float | None = None,
) -> Policy:
    """Clip the global norm where it stands `z_max` standard deviations above its running mean.

    clip_norm_t = mean_{t-1} + z_max * std_{t-1}, statistics of the steps before t:
    mean_t = decay * mean_{t-1} + (1 - decay) * x_t, var_t = decay * var_{t-1} + (1 - decay) * (x_t - mean_t)^2
    with x_t the winsorised norm; during the warm-up the plain mean and variance of what was seen.

    Args:
      z_max: standard deviations, > 0.
      decay: weight of the past, in [0, 1); 0.97 remembers about 33 steps.
      warmup_steps: norms observed before the first clip, >= 2.
      winsorise: a norm enters clamped at mean + winsorise * z_max * std, > 1.
      minimum, maximum: bounds of clip_norm, None for none.

    Raises:
      ConfigError: an argument is out of range.

    Source: ZClip (Kumar et al. 2025, arXiv 2504.02507), section 3. We differ: NaN and Inf never enter; a norm
    enters winsorised instead of clipped, and the standard deviation is at least 1 % of the mean, so that a
    lasting rise is followed instead of clipped forever; above the threshold we clip to the threshold itself.
    """
    z_max = checks.number("z_max", z_max, above=0, hint="to watch without clipping use policies.observe()")
    decay = checks.number("decay", decay, least=0, below=1)
    warmup = checks.count("warmup_steps", warmup_steps, least=2)
    winsorise = checks.number("winsorise", winsorise, above=1)
    bounds = _bounds(minimum, maximum)

    def init(num_variables: int) -> State:
        return {name: np.zeros((), np.float32) for name in ("mean", "var", "seen")}

    def update(xp: Namespace, state: State, norms: Norms) -> tuple[State, Array, Mapping[str, Array]]:
        mean, var, seen = state["mean"], state["var"], state["seen"]
        # deviations relative to the mean: the square of a norm of 1e30 would overflow
        unit = xp.maximum(mean, 1e-37)
        deviation = xp.maximum(xp.sqrt(var), 0.01) * unit
        ready = seen >= warmup
        clip_norm = xp.where(ready, mean + z_max * deviation, bounds.maximum)
        x = xp.where(ready, xp.minimum(norms.total, mean + winsorise * z_max * deviation), norms.total)
        rate = xp.maximum(1.0 / (seen + 1.0), 1.0 - decay)
        new_mean = mean + rate * (x - mean)
        new_unit = xp.maximum(new_mean, 1e-37)
        shrink = xp.where(seen > 0.0, unit / new_unit, 0.0)
        off = (x - new_mean) / new_unit
        # plain variance while it warms up (Welford's (x - old mean) * (x - new mean)), then the paper's
        square = xp.where(ready, off * off, off * (x - mean) / new_unit)
        square = xp.where(seen > 0.0, square, 0.0)
        new_var = (1.0 - rate) * var * shrink * shrink + rate * square
        take = _enters(norms)
        new_state = {
            "mean": xp.where(take, new_mean, mean),
            "var": xp.where(take, new_var, var),  # of norm / mean
            "seen": xp.minimum(seen + xp.where(take, 1.0, 0.0), 1e6),
        }
        return new_state, bounds.clamp(xp, clip_norm), {}

    tail = 0.5 * math.erfc(z_max / math.sqrt(2))
    name = _name("zscore", z_max, decay=decay, minimum=minimum, maximum=maximum)
    return Policy(name, init, update, expected_clip_ratio=tail)


def per_variable(
    ratio: float = 1.05,
    *,
    decay: float = 0.98,
    warmup_steps: int = 100,
    winsorise: float = 2.0,
    minimum: float | None = None,
    maximum: float | None = None,
) -> Policy:
    """Clip each variable's norm against its own history.

    clip_norm_{t,i} = ratio * gamma_{t-1,i};  gamma_{t,i} = decay * gamma_{t-1,i} + (1 - decay) * x_{t,i}
    with x the winsorised norm of variable i; during the warm-up gamma_i is the smallest norm seen.

    Args:
      ratio: how far a norm may exceed its own running mean, > 0.
      decay: weight of the past, in [0, 1).
      warmup_steps: norms observed before the first clip, >= 1.
      winsorise: a norm enters clamped at this multiple of its clip_norm, >= 1; 1 is the paper's.
      minimum, maximum: bounds of every variable's clip_norm, None for none.

    Raises:
      ConfigError: an argument is out of range.

    Source: AdaGC (Wang et al. 2025, arXiv 2502.11034), algorithm 1. We differ: the warm-up has no absolute
    clip (give `maximum` for one), NaN and Inf never enter, and with `winsorise` above 1 a lasting rise is
    followed at once instead of by 0.1 % a step.
    """
    ratio = checks.number("ratio", ratio, above=0)
    decay = checks.number("decay", decay, least=0, below=1)
    warmup = checks.count("warmup_steps", warmup_steps)
    winsorise = checks.number("winsorise", winsorise, least=1)
    bounds = _bounds(minimum, maximum)

    def init(num_variables: int) -> State:
        return {"gamma": np.zeros(num_variables, np.float32), "seen": np.zeros((), np.float32)}

    def update(xp: Namespace, state: State, norms: Norms) -> tuple[State, Array, Mapping[str, Array]]:
        gamma, seen, x = state["gamma"], state["seen"], norms.per_variable
        ready = seen >= warmup
        # a variable that had no gradient so far (gamma 0) has no history to be judged by
        clip_norm = xp.where(ready & (gamma > 0.0), ratio * gamma, bounds.maximum)
        entered = xp.minimum(x, xp.where(gamma > 0.0, winsorise * ratio * gamma, x))
        running = decay * gamma + (1.0 - decay) * entered
        smallest = xp.minimum(x, gamma)
        new = xp.where(gamma > 0.0, xp.where(ready, running, xp.where(x > 0.0, smallest, gamma)), x)
        take = _enters(norms)
        new_state = {
            "gamma": xp.where(take, new, gamma),
            "seen": xp.minimum(seen + xp.where(take, 1.0, 0.0), 1e6),
        }
        return new_state, bounds.clamp(xp, clip_norm), {}

    name = _name("per_variable", ratio, decay=decay, minimum=minimum, maximum=maximum)
    return Policy(name, init, update, scope=VARIABLE)


def _constant(name: str, clip_norm: float, scope: str, limit: float = math.inf) -> Policy:
    def init(num_variables: int) -> State:
        return {}

    def update(xp: Namespace, state: State, norms: Norms) -> tuple[State, Array, Mapping[str, Array]]:
        bound = norms.per_variable if scope == VARIABLE else norms.total
        return {}, bound * 0.0 + clip_norm, {}

    return Policy(name, init, update, scope=scope, limit=limit)


def fixed(clip_norm: float) -> Policy:
    """Clip the global norm at a constant, as `tf.clip_by_global_norm` does.

    Args:
      clip_norm: the bound of the global norm, > 0.

    Raises:
      ConfigError: clip_norm is out of range.

    Source: Pascanu, Mikolov, Bengio 2013 (arXiv 1211.5063), algorithm 1.
    """
    bound = checks.number("clip_norm", clip_norm, above=0, hint="to watch without clipping use policies.observe()")
    return _constant(_name("fixed", bound), bound, GLOBAL)


def per_variable_norm(clip_norm: float) -> Policy:
    """Clip each variable's norm at the same constant, as `tf.clip_by_norm` does (it can turn the direction).

    Args:
      clip_norm: the bound of every variable's norm, > 0.

    Raises:
      ConfigError: clip_norm is out of range.
    """
    bound = checks.number("clip_norm", clip_norm, above=0, hint="to watch without clipping use policies.observe()")
    return _constant(_name("per_variable_norm", bound), bound, VARIABLE)


def value(limit: float) -> Policy:
    """Clip each element to [-limit, limit], as `tf.clip_by_value` does (it can turn the direction).

    There is no clip_norm: it reads as Inf.

    Args:
      limit: the bound of every element's magnitude, > 0.

    Raises:
      ConfigError: limit is out of range.
    """
    bound = checks.number("limit", limit, above=0, hint="to watch without clipping use policies.observe()")
    return _constant(_name("value", bound), math.inf, VALUE, bound)


def observe() -> Policy:
    """Watch and change nothing: training is bit-identical to an unwatched one. clip_norm reads as Inf."""
    return _constant("observe()", math.inf, NONE)._replace(expected_clip_ratio=0.0)


#: Every policy of this package by name, each with its defaults: the contract tests and the CLI read it.
POLICIES: Mapping[str, Callable[[], Policy]] = {
    "percentile": percentile,
    "median": median,
    "zscore": zscore,
    "per_variable": per_variable,
    "fixed": lambda: fixed(1.0),
    "per_variable_norm": lambda: per_variable_norm(1.0),
    "value": lambda: value(0.1),
    "observe": observe,
}
