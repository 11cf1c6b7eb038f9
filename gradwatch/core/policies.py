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
from gradwatch.core.xp import TINY, Array, Bool, Namespace
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
      expected_clip_ratio: share of steps in [0, 1] that it clips at most on stationary norms, None if it
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


def _learned(xp: Namespace, take: Bool, new: State, old: State) -> State:
    """The new state where the step may teach, else the old one."""
    return {name: xp.where(take, new[name], old[name]) for name in old}


def _one_more(xp: Namespace, seen: Array) -> Array:
    """A counter of steps; it stops far below 2^24, where float32 counters stick."""
    return xp.minimum(seen + 1.0, 1e6)


def _quantile(
    name: str, q: float, *, factor: float, window: int, warmup: int, winsorise: float, bounds: _Bounds
) -> Policy:
    """clip_norm_t = factor * Q_q(norms before t), on the sketch."""
    decay = 1.0 - 1.0 / window

    def init(num_variables: int) -> State:
        return {"sketch": sketch.init(), "seen": np.zeros((), np.float32)}

    def update(xp: Namespace, state: State, norms: Norms) -> tuple[State, Array, Mapping[str, Array]]:
        held, seen = state["sketch"], state["seen"]
        log_threshold = sketch.log_quantile(xp, held, q) + math.log(factor)
        clip_norm = xp.where(seen >= warmup, xp.exp(log_threshold), bounds.maximum)
        # before there is a quantile there is nothing to clamp at
        ceiling = xp.where(seen > 0.0, log_threshold + math.log(winsorise), norms.log)
        new = {
            "sketch": sketch.update(xp, held, xp.minimum(norms.log, ceiling), norms.enters, decay),
            "seen": xp.where(norms.enters, _one_more(xp, seen), seen),
        }
        return new, bounds.clamp(xp, clip_norm), {}

    return Policy(name, init, update)


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
    steps is back near that within one window; a growth of 5 % a step moves clip_norm by less than 10 % in 40
    steps (measured, docs/policies.md).

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
    made = _quantile(name, q / 100, factor=1.0, window=window, warmup=warmup, winsorise=winsorise, bounds=bounds)
    return made._replace(expected_clip_ratio=1 - q / 100)


def median(
    factor: float = 2.0,
    window: int = 100,
    *,
    warmup_steps: int = 1,
    winsorise: float = 2.0,
    minimum: float | None = None,
    maximum: float | None = None,
) -> Policy:
    """Clip the global norm at a multiple of the recent median.

    clip_norm_t = factor * P_50(norms before t). A lasting tenfold rise is followed within two windows.

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
    bounds = _bounds(minimum, maximum)
    return _quantile(name, 0.5, factor=factor, window=window, warmup=warmup, winsorise=winsorise, bounds=bounds)


def zscore(
    z_max: float = 2.5,
    *,
    decay: float = 0.97,
    warmup_steps: int = 25,
    winsorise: float = 1.0,
    minimum: float | None = None,
    maximum: float | None = None,
) -> Policy:
    """Clip the global norm where it stands `z_max` standard deviations above its running mean.

    clip_norm_t = mean_{t-1} + z_max * std_{t-1}, statistics of the steps before t:
    mean_t = decay * mean_{t-1} + (1 - decay) * x_t, var_t = decay * var_{t-1} + (1 - decay) * (x_t - mean_t)^2
    with x_t the winsorised norm; during the warm-up the plain mean and variance of what was seen. It follows
    fast: a lasting tenfold rise within 70 steps, but an explosion of 5 % a step too (docs/policies.md).

    Args:
      z_max: standard deviations, > 0.
      decay: weight of the past, in [0.5, 1); 0.97 remembers about 33 steps.
      warmup_steps: norms observed before the first clip, >= 2.
      winsorise: a norm enters clamped at mean + winsorise * z_max * std, >= 1; winsorise * z_max >= 1.5, or a
        rise would shrink the deviation instead of widening it.
      minimum, maximum: bounds of clip_norm, None for none.

    Raises:
      ConfigError: an argument is out of range.

    Source: ZClip (Kumar et al. 2025, arXiv 2504.02507), section 3. We differ: NaN and Inf never enter; we clip
    to the threshold itself and that is what enters, where the paper's value sinks back to the mean, so that a
    lasting rise is followed instead of clipped forever; the standard deviation is at least 1 % of the mean.
    """
    z_max = checks.number("z_max", z_max, above=0, hint="to watch without clipping use policies.observe()")
    decay = checks.number("decay", decay, least=0.5, below=1)
    warmup = checks.count("warmup_steps", warmup_steps, least=2)
    winsorise = checks.number("winsorise", winsorise, least=1)
    if winsorise * z_max < 1.5:
        raise ConfigError(
            f"winsorise * z_max must be >= 1.5, got {winsorise:g} * {z_max:g}: a lasting rise would be clipped "
            "forever; raise winsorise"
        )
    bounds = _bounds(minimum, maximum)

    def init(num_variables: int) -> State:
        return {name: np.zeros((), np.float32) for name in ("mean", "spread", "seen")}

    def update(xp: Namespace, state: State, norms: Norms) -> tuple[State, Array, Mapping[str, Array]]:
        mean, seen = state["mean"], state["seen"]
        ready = seen >= warmup
        # spread is std / mean: a variance of norms of 1e30 would overflow
        deviation = xp.maximum(state["spread"], 0.01)
        clip_norm = xp.where(ready, mean * (1.0 + z_max * deviation), bounds.maximum)
        x = xp.where(ready, xp.minimum(norms.total, mean * (1.0 + winsorise * z_max * deviation)), norms.total)

        rate = xp.where(ready, 1.0 - decay, 1.0 / (seen + 1.0))
        new_mean = mean + rate * (x - mean)
        unit = xp.maximum(new_mean, TINY)
        std, off, old_off = state["spread"] * (mean / unit), (x - new_mean) / unit, (x - mean) / unit
        # while it warms up the plain variance, by Welford's recursion; then the paper's
        square = xp.where(ready, off * off, off * old_off)
        new = {
            "mean": new_mean,
            "spread": xp.sqrt((1.0 - rate) * std * std + rate * square),
            "seen": _one_more(xp, seen),
        }
        return _learned(xp, norms.enters, new, state), bounds.clamp(xp, clip_norm), {}

    name = _name("zscore", z_max, decay=decay, minimum=minimum, maximum=maximum)
    # Cantelli's inequality: whatever the shape of the distribution
    return Policy(name, init, update, expected_clip_ratio=1 / (1 + z_max**2))


def per_variable(
    ratio: float = 1.05,
    *,
    decay: float = 0.98,
    warmup_steps: int = 100,
    winsorise: float = 2.0,
    minimum: float | None = None,
    maximum: float | None = None,
) -> Policy:
    """Clip each variable's norm against its own history (it can turn the direction of the whole gradient).

    clip_norm_{t,i} = ratio * gamma_{t-1,i};  gamma_{t,i} = decay * gamma_{t-1,i} + (1 - decay) * x_{t,i}
    with x the winsorised norm of variable i; during the warm-up gamma_i is the smallest norm seen. A lasting
    tenfold rise is followed within 160 steps. It clips often: 30 to 40 % of the steps of a variable.

    Args:
      ratio: how far a norm may exceed its own running mean, > 0.
      decay: weight of the past, in [0, 1).
      warmup_steps: norms observed before the first clip, >= 1.
      winsorise: a norm enters clamped at this multiple of its clip_norm, >= 1; 1 is the paper's.
      minimum, maximum: bounds of every variable's clip_norm, None for none.

    Raises:
      ConfigError: an argument is out of range.

    Source: AdaGC (Wang et al. 2025, arXiv 2502.11034), algorithm 1. We differ: the warm-up has no absolute
    clip (give `maximum` for one), NaN, Inf and zero never enter, and with `winsorise` above 1 a lasting rise
    is followed at once instead of by 0.1 % a step.
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
        known = gamma > 0.0  # a variable that had no gradient so far has no history to be judged by
        clip_norm = xp.where(ready & known, ratio * gamma, bounds.maximum)
        averaged = decay * gamma + (1.0 - decay) * xp.minimum(x, (winsorise * ratio) * gamma)
        learned = xp.where(known, xp.where(ready, averaged, xp.minimum(x, gamma)), x)
        new_state = {
            "gamma": xp.where(norms.enters & (x > 0.0), learned, gamma),
            "seen": xp.where(norms.enters, _one_more(xp, seen), seen),
        }
        return new_state, bounds.clamp(xp, clip_norm), {}

    name = _name("per_variable", ratio, decay=decay, minimum=minimum, maximum=maximum)
    return Policy(name, init, update, scope=VARIABLE)


def auto(
    most: float = 2.0,
    *,
    slow_start_steps: int = 600,
    window: int = 300,
    alarm: float = 3.0,
    backoff: float = 0.7,
    probe: float = 0.12,
    rise: float = 0.0001,
    minimum: float | None = None,
    maximum: float | None = None,
) -> Policy:
    """Clip the global norm at a gain times a base; the gain is found as TCP finds the capacity of a line.

    clip_norm_t = gain_t * base_t; in the first step, before any norm, it is 0 or `minimum`.

    - base_t is P_50(norms before t), the recent median. From step 20 on it rises by the factor e^rise a step at most,
      so that an explosion cannot carry it along; it falls freely. When norms have stood out for more than `window`
      steps, never 20 apart, that is the new normal: it is P_50 again until they no longer do.
    - A norm stands out when it exceeds L * base_t, and two that stand out within 20 steps are an alarm: one alone is
      a bad batch more often than a step too long. The first slow_start_steps / 5 steps raise none: the weights hardly
      move then, and what scatters is the data. L begins at `alarm`; from step 11 to the end of those it is at least
      twice each norm / base, 25 at most. Then it grows by 15 % with each burst of alarms and shrinks by e^-rise a calm
      step, down to `alarm`: alarms that come whatever the gain is say nothing about it.
    - Slow start, until the first alarm: gain = most * ((n + 10) / (slow_start_steps + 10))^3, n the steps so far that
      raised none, so that the first gradients, the largest and the least meant, move little and leave little in
      Adam's second moment.
    - At an alarm the gain is multiplied by `backoff`; a burst of alarms (five steps apart or less) takes it to a tenth
      at most. Five steps after the last alarm it grows by 5 % a step to `backoff` times what it was before the burst,
      or was about to return to. From there on, with n the steps since the last alarm, it grows by the factor
      1 + probe / (n + 10) + rise a step, about as n^probe, up to `most`: a gain that failed once is left slowly.

    With the gain at `most` it clips only what stands out of the recent norms. It was designed on four small tasks and
    does not always find a gain that training bears: docs/policies.md says where it failed.

    Args:
      most: largest gain, in multiples of the median, > 0.
      slow_start_steps: steps until the gain is at `most`, if nothing happens, >= 1.
      window: steps remembered, >= 2, as in `percentile`.
      alarm: multiple of the base from which on a norm stands out, > 1; norms enter winsorised at L times the base.
      backoff: factor of the gain at an alarm, in (0, 1).
      probe: exponent of the growth after an alarm, > 0.
      rise: growth of the base a step at most, in natural logarithms, and least of the gain after an alarm, > 0;
        0.0001 doubles in 7,000 steps.
      minimum, maximum: as in `percentile`.

    Raises:
      ConfigError: an argument is out of range.

    Sources: slow start and multiplicative decrease are Jacobson's (1988, "Congestion avoidance and control",
    SIGCOMM); the slow growth above what failed is in the spirit of CUBIC (Ha, Rhee, Xu 2008). The rule is ours.
    """
    most = checks.number("most", most, above=0)
    slow_start = checks.count("slow_start_steps", slow_start_steps)
    window = checks.count("window", window, least=2)
    alarm = checks.number("alarm", alarm, above=1)
    backoff = checks.number("backoff", backoff, above=0, below=1)
    probe = checks.number("probe", probe, above=0)
    rise = checks.number("rise", rise, above=0)
    bounds = _bounds(minimum, maximum)
    rest, together, settled, listened, offset = 5.0, 20.0, 20.0, slow_start / 5, 10.0
    decay = 1.0 - 1.0 / window
    log_most, log_backoff = math.log(most), math.log(backoff)
    log_alarm, log_deaf = math.log(alarm), max(math.log(alarm), math.log(25.0))
    log_start = log_most + 3.0 * math.log(offset / (slow_start + offset))

    def init(num_variables: int) -> State:
        zero = np.zeros((), np.float32)
        return {
            "sketch": sketch.init(),
            "log_base": zero,
            "log_level": np.full((), log_alarm, np.float32),
            "log_gain": np.full((), log_start, np.float32),
            "log_known": zero,  # the gain to which it may return at once
            "climbed": zero,  # steps of the slow start
            "calm": zero,  # steps since the last alarm
            "alone": np.full((), together, np.float32),  # steps since a norm stood out
            "storm": zero,  # steps in which norms stood out again and again
            "alarmed": zero,
            "seen": zero,
        }

    def update(xp: Namespace, state: State, norms: Norms) -> tuple[State, Array, Mapping[str, Array]]:
        log_gain, log_known, seen = state["log_gain"], state["log_known"], state["seen"]
        started, alarmed = seen > 0.0, state["alarmed"] > 0.0
        log_median = sketch.log_quantile(xp, state["sketch"], 0.5)
        risen = xp.minimum(log_median, state["log_base"] + rise)
        log_base = xp.where((seen >= settled) & (state["storm"] <= window), risen, log_median)
        clip_norm = xp.where(started, xp.exp(log_base + log_gain), 0.0)

        log_level = state["log_level"]
        stands_out = started & (norms.log > log_base + log_level)
        over = stands_out & (state["alone"] < together) & (seen >= listened)
        alone = xp.where(stands_out, 0.0, _one_more(xp, state["alone"]))
        resting = alarmed & (state["calm"] < rest)
        highest = xp.where(alarmed, xp.maximum(log_gain, log_known), log_gain)
        log_known = xp.where(over & ~resting, highest + log_backoff, log_known)
        calm = xp.where(over, 0.0, _one_more(xp, state["calm"]))
        climbed = xp.where(over, state["climbed"], _one_more(xp, state["climbed"]))
        rate = xp.where(log_gain < log_known, 0.05, probe / (calm + offset) + rise)
        cube = log_start + 3.0 * xp.log((climbed + offset) / offset)
        grown = xp.minimum(xp.where(alarmed, log_gain + xp.log(1.0 + rate), cube), log_most)
        fallen = xp.maximum(log_gain + log_backoff, log_known - math.log(10.0 * backoff))
        moved = xp.where(over, fallen, xp.where(resting, log_gain, grown))
        heard = xp.where((seen >= offset) & (seen < listened), norms.log - log_base + math.log(2.0), log_alarm)
        raised = xp.where(over & ~resting, log_level + 0.15, xp.where(over, log_level, log_level - rise))
        level = xp.where(seen < listened, xp.maximum(log_level, heard), xp.maximum(raised, log_alarm))
        ceiling = xp.where(started, log_base + log_level, norms.log)
        new = {
            "log_base": log_base,
            "log_level": xp.minimum(level, log_deaf),
            "log_gain": moved,
            "log_known": log_known,
            "climbed": climbed,
            "calm": calm,
            "alone": alone,
            "storm": xp.where(alone < together, _one_more(xp, state["storm"]), 0.0),
            "alarmed": xp.where(over, 1.0, state["alarmed"]),
            "seen": _one_more(xp, seen),
        }
        entered = sketch.update(xp, state["sketch"], xp.minimum(norms.log, ceiling), norms.enters, decay)
        old = {name: state[name] for name in new}
        learned = {"sketch": entered, **_learned(xp, norms.enters, new, old)}
        return learned, bounds.clamp(xp, clip_norm), {"gain": xp.exp(log_gain)}

    name = _name("auto", most, window=window, minimum=minimum, maximum=maximum)
    return Policy(name, init, update)


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
    """Watch and change nothing: training is bit-identical to an unwatched one. clip_norm reads as Inf.

    Under `jit_compile` XLA may fuse the last sum of a gradient in another way once its norm is read as well: of the
    models tried, only BatchNormalization's gamma under Adam differed, in its last bit (docs/policies.md).
    """
    return _constant("observe()", math.inf, NONE)._replace(expected_clip_ratio=0.0)


#: Every policy of this package by name, each with its defaults: the contract tests and the CLI read it.
POLICIES: Mapping[str, Callable[[], Policy]] = {
    "percentile": percentile,
    "median": median,
    "zscore": zscore,
    "per_variable": per_variable,
    "auto": auto,
    "fixed": lambda: fixed(1.0),
    "per_variable_norm": lambda: per_variable_norm(1.0),
    "value": lambda: value(0.1),
    "observe": observe,
}
