"""`auto`: how far a step may carry the weights, found by the run itself.

The rule is the smallest of a few bounds. Each is a function of its own below, with its formula, in natural logarithms;
the docstring of `auto` puts them together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from gradwatch.core import checks, sketch
from gradwatch.core.norms import Norms
from gradwatch.core.policies.base import Policy, State, Update, bounds, clamp, one_more
from gradwatch.core.xp import HUGE, TINY, Array, Bool, Namespace

SETTLING = 300.0  # steps after which the share of the reach has shrunk by the square root of two
_WARMUP = 100.0  # steps in which the share of the reach grows to what it is, where no loss is known

# Of the loss
_MEMORY = 50.0  # steps of the running level
_WINSORISE = 2.5  # deviations at which a loss is clamped before it enters
_FIRST = 10.0  # steps whose level is the loss at the start, and whose norms Adam's bound is made of
_START = 0.7  # weight of the loss at the start beside the best one
_DRIFT = 0.0005  # how fast the best loss is forgotten, per step

# Of a setback of the loss
_SETBACK, _LEAST_SETBACK = 0.4, 0.05  # deviations of the log loss, and at least so much, above the best level
_SURE = 60.0  # losses before the first setback
_STEPS_BACK = 20.0  # between two of them
_SHRINK, _LEAST_CARE, _REGROW = 0.7, 0.05, 0.002

# Of alarm and backoff
_TOGETHER = 20.0  # two outliers within so many steps are an alarm
_REST = 5.0  # steps after an alarm in which another one belongs to it, and nothing grows
_LEAST_GAIN = 0.03
_YOUNG = 10.0  # added to the age of the run in the growth of the gain

_FAR = 10.0  # the first norm counts as at most so many times the median of the first ten, at least as 1 / 10 of it


# -- the bounds ---------------------------------------------------------------------------------------------


def quantile_bound(xp: Namespace, log_median: Array, factor: float) -> Array:
    """log(factor * P_50(norms before t)): no step reaches far beyond the usual one."""
    return log_median + math.log(factor)


def displacement_bound(
    xp: Namespace, log_reach: Array, log_gain: Array, seen: Array, blind: Bool, share: float, least: float
) -> Array:
    """log(gain * rho * reach), rho = max(least, share / sqrt(1 + t / 300)): a share of the weights' own length.

    Without a loss it is min(t / 100, 1) of that. A run is most easily spoilt in its first steps, and then nothing else
    holds them.

    Args:
      log_reach: of `Norms.reach`, shape ().
      log_gain: of the alarms, at most 0, shape ().
      seen: t, the norms so far, shape ().
      blind: whether no loss bounds the step, shape ().
    """
    rho = xp.maximum(share / xp.sqrt(1.0 + seen / SETTLING), least)
    warmed = xp.minimum(xp.maximum(seen, 1.0) / _WARMUP, 1.0)
    return log_gain + xp.log(xp.where(blind, warmed, 1.0) * rho) + log_reach


def descent_bound(
    xp: Namespace,
    log_reach: Array,
    log_weights: Array,
    log_first: Array,
    log_best: Array,
    log_median: Array,
    trust: float,
) -> Array:
    """log(trust * L_0^0.7 L^0.3 / (G |w|) * reach): no step may promise to take away more than the loss there is.

    Moved by a share s of their length along the gradient, the weights lower the loss by s * |w| * G, says the linear
    model. Where that is more than the whole loss, the model no longer holds, and such steps lead a net to places from
    which it does not come back.

    Args:
      log_weights: of `Norms.weights`, shape ().
      log_first, log_best: of L_0, the loss at the start, and L, the best level of the loss since.
      log_median: of G = P_50(norms before t), shape ().

    Source: Polyak's step size (Polyak 1987, Introduction to Optimization; Loizou et al. 2021, arXiv 2002.10542), with
    an optimum of zero. The mean of L_0 and L, and the median in the place of the norm, are ours.
    """
    loss = _START * log_first + (1.0 - _START) * log_best
    return math.log(trust) + loss - log_median - log_weights + log_reach


def first_gradients_bound(xp: Namespace, state: State, log_median: Array, seen: Array, share: float) -> Array:
    """log(share * x_1), for good: a share of the first norm.

    An optimizer that divides by the root of its second moment hardly feels how long the gradients are, but it remembers
    the first and largest ones for a thousand steps. Held at one length from the first step on, all weigh the same. A
    bound that grew again would lengthen its steps for as long as it grows: the second moment lags behind. So the first
    norm decides. One that the next nine show to be an outlier is corrected: log(share * v_10) stands, with

        v_1 = x_1;  v_t = min(max(v_{t-1}, P_50(x_1..x_t) / 10), 10 * P_50(x_1..x_t)) for t <= 10

    Args:
      state: of the policy; "log_first_norms" holds log(share * v_{t-1}).
      log_median: of P_50(norms before this step), shape ().
      seen: t, the norms so far, shape ().
    """
    usual, far = log_median + math.log(share), math.log(_FAR)
    held = xp.minimum(xp.maximum(state["log_first_norms"], usual - far), usual + far)
    bound = xp.where(seen <= _FIRST, held, state["log_first_norms"])
    return xp.where(seen <= 1.0, usual, bound)


# -- what they are made of ----------------------------------------------------------------------------------


def loss_level(xp: Namespace, state: State, loss: Array) -> dict[str, Array]:
    """The running level of the log loss, winsorised; the level at the start and the best one.

    With l the log loss, n counting the losses, m = min(n, 50) and d = clip(l - level, -2.5 std, 2.5 std):

        level += d / m;  var += (d^2 - var) / m;  first = level while n <= 10;  best = min(best + 0.0005, level)

    The first loss sets level, first and best, with var = 0; std counts as at least 0.1. A loss that is not known
    changes nothing, nor does one of 0 or of 1e36 and more. A negative loss has no logarithm: from then on no loss is
    known.
    """
    known = (loss > TINY) & (loss < HUGE) & (state["signed"] < 0.5)
    count = one_more(xp, state["losses"])
    begins = state["losses"] < 0.5
    log_loss = xp.log(xp.where(known, loss, 1.0))
    level, var = state["level"], state["var"]
    reach = _WINSORISE * xp.sqrt(xp.maximum(var, 0.01))
    d = xp.where(begins, 0.0, xp.minimum(xp.maximum(log_loss - level, -reach), reach))
    memory = xp.minimum(count, _MEMORY)
    new_level = xp.where(begins, log_loss, level + d / memory)
    new = {
        "losses": count,
        "level": new_level,
        "var": var + (d * d - var) / memory,
        "first_loss": xp.where(count <= _FIRST, new_level, state["first_loss"]),
        "best": xp.where(begins, new_level, xp.minimum(state["best"] + _DRIFT, new_level)),
    }
    heard = {name: xp.where(known, value, state[name]) for name, value in new.items()}
    return {**heard, "signed": xp.where(loss < 0.0, 1.0, state["signed"])}


def setback(xp: Namespace, state: State, losses: State, loss: Array) -> dict[str, Array]:
    """A loss that has risen: care, a factor of all that a step may do, is multiplied by 0.7, more than 20 steps apart.

    It has risen where level > best + max(0.4 std, 0.05), all of the log loss, after 60 losses, and only in
    a step whose loss is known. Else the care is given up by 0.2 % a step. It stays within [0.05, 1].
    """
    std = xp.sqrt(xp.maximum(losses["var"], 0.0001))
    risen = losses["level"] > losses["best"] + xp.maximum(_SETBACK * std, _LEAST_SETBACK)
    # what is not known has not risen, whatever it did before
    risen = risen & (losses["losses"] > _SURE) & (loss > TINY) & (losses["signed"] < 0.5)
    shrinks = risen & (state["waited"] >= _STEPS_BACK)
    lower = xp.maximum(state["log_care"] + math.log(_SHRINK), math.log(_LEAST_CARE))
    higher = xp.minimum(state["log_care"] + math.log(1.0 + _REGROW), 0.0)
    return {
        "log_care": xp.where(shrinks, lower, xp.where(risen, state["log_care"], higher)),
        "waited": xp.where(shrinks, 0.0, one_more(xp, state["waited"])),
    }


def alarm_and_backoff(
    xp: Namespace, state: State, norms: Norms, log_median: Array, started: Bool, alarm: float, backoff: float
) -> dict[str, Array]:
    """Two norms beyond alarm * P_50 within 20 steps are an alarm, which multiplies the gain by `backoff`, once a burst.

    Five steps after the last one the gain grows by the factor 1 + 1 / (t + 10) a step, up to 1: as the age t of the
    run. What an alarm at step 40 took is back at step 80, what one at step 4,000 took at step 8,000. So a start that
    was wild is forgiven, and a run whose gain is too high by nature tries it again as the logarithm of its age only.
    """
    outlier = started & (state["seen"] > _FIRST) & (norms.log > log_median + math.log(alarm))
    alarmed = outlier & (state["alone"] < _TOGETHER)
    resting = state["calm"] <= _REST
    calm = xp.where(alarmed, 0.0, one_more(xp, state["calm"]))
    gain = state["log_gain"]
    lower = xp.maximum(gain + math.log(backoff), math.log(_LEAST_GAIN))
    higher = xp.minimum(gain + xp.log(1.0 + 1.0 / (state["seen"] + _YOUNG)), 0.0)
    grows = ~alarmed & (calm > _REST)
    return {
        "alone": xp.where(outlier, 0.0, one_more(xp, state["alone"])),
        "calm": calm,
        "log_gain": xp.where(alarmed & ~resting, lower, xp.where(grows, higher, gain)),
    }


# -- the policy ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class auto(Policy):
    """Clip the global norm so that no step carries the weights too far: no number to tune.

    Which bounds hold depends on what is known of the optimizer (`Norms.reach`); clip_norm_t is the smallest of them.

    SGD, with or without momentum, whose update is linear in the gradient:

    - quantile bound: factor * P_50(norms before t);
    - displacement bound: gain_t * rho_t * reach_t, with reach = (1 - momentum) * |w| / learning_rate, the norm which,
      sustained, moves the weights by their own length in a step. rho_t = max(least_share, share / sqrt(1 + t / 300)),
      without a loss min(t / 100, 1) of that. gain_t is 1 until an alarm: two norms beyond `alarm` times the median
      within 20 steps multiply it by `backoff`, once a burst, down to 0.03, and it grows back as t;
    - descent bound: trust * L_0^0.7 L_t^0.3 / (G_t |w|) * reach_t, with L_0 the loss at the start, L_t its best level
      since, and G_t = P_50(norms before t). It holds from the first loss that is positive on; a negative loss ends
      it;
    - a setback of the loss multiplies the last two by a care below 1, which is given up slowly.

    Adam and its kin, which divide by the root of their second moment:

    - quantile bound, and first gradients: `first` times the first norm.
      A setback of the loss shortens both, and so the steps, until the second moment has followed.

    With either kind the first step is held back whole. Nothing is known then: not how long a gradient is, nor how much
    loss there is to take away. A single step of 0.003 of the reach threw recurrent nets from a loss of 1 to one of
    3,000; and under Adam that gradient would stay in the second moment for a thousand steps.

    An optimizer that is neither, or not known (`Monitor.clip` without `optimizer=`): the quantile bound alone, from the
    second step on.

    Args:
      factor: multiple of the median, >= 1.05.
      window: steps that the median remembers, >= 2.
      share: of the reach that a step may use in the beginning, > 0.
      least_share: of the reach, below which rho does not fall, in (0, share]. A healthy step uses less.
      trust: share of the loss that a step may promise to take away, > 0.
      first: share of the first norm (Adam and its kin), in (0, 1].
      alarm: multiple of the median from which on a norm is an outlier, >= 1.05; norms enter clamped at 3 times it.
      backoff: factor of the gain at an alarm, in (0, 1).
      minimum, maximum: bounds of clip_norm, None for none.

    Raises:
      ConfigError: an argument is out of range.

    Example:
      >>> from gradwatch import policies
      >>> policies.auto(maximum=10.0)
      auto(2, maximum=10)

    Sources: the bounds are ours but for the idea of the descent bound, Polyak's step size (1987; Loizou et al. 2021,
    arXiv 2002.10542), and of the quantile bound, icefall's ScaledAdam. How they were found, and where they still fail:
    docs/policies.md.
    """

    factor: float = 2.0
    window: int = field(default=300, kw_only=True)
    share: float = field(default=0.1, kw_only=True)
    least_share: float = field(default=0.03, kw_only=True)
    trust: float = field(default=0.7, kw_only=True)
    first: float = field(default=0.1, kw_only=True)
    alarm: float = field(default=5.0, kw_only=True)
    backoff: float = field(default=0.5, kw_only=True)
    minimum: float | None = field(default=None, kw_only=True)
    maximum: float | None = field(default=None, kw_only=True)

    holds_rate: ClassVar[bool] = True  # type: ignore[misc]

    def __post_init__(self) -> None:
        share = checks.number("share", self.share, above=0, most=1, hint="it is a share of the reach, 0.1 and not 10")
        minimum, maximum = bounds(self.minimum, self.maximum)
        self._store(
            factor=checks.multiple("factor", self.factor, least=1.05),
            window=checks.count("window", self.window, least=2),
            share=share,
            least_share=checks.number("least_share", self.least_share, above=0, most=share, hint="at most share"),
            trust=checks.number("trust", self.trust, above=0),
            first=checks.number("first", self.first, above=0, most=1, hint="it is a share of the first norms"),
            alarm=checks.multiple("alarm", self.alarm, least=1.05),
            backoff=checks.number("backoff", self.backoff, above=0, below=1),
            minimum=minimum,
            maximum=maximum,
        )

    def init(self, num_variables: int) -> State:
        zero = np.zeros((), np.float32)
        names = (
            *("seen", "log_gain", "log_first_norms"),
            *("losses", "level", "var", "first_loss", "best", "signed"),
            "log_care",
        )
        return {
            "sketch": sketch.init(),
            **dict.fromkeys(names, zero),
            "waited": np.full((), _STEPS_BACK, np.float32),
            "alone": np.full((), _TOGETHER, np.float32),
            "calm": np.full((), 1e6, np.float32),
        }

    def update(self, xp: Namespace, state: State, norms: Norms) -> Update:
        seen = state["seen"]
        started = seen > 0.0
        log_median = xp.where(started, sketch.log_quantile(xp, state["sketch"], 0.5), 0.0)
        losses = loss_level(xp, state, norms.loss)
        log_first = first_gradients_bound(xp, state, log_median, seen, self.first)

        # comparisons with NaN are false
        linear, adaptive = norms.reach <= HUGE, norms.reach > HUGE
        log_reach = xp.log(xp.where(linear, norms.reach, 1.0))
        log_weights = xp.log(xp.where(norms.weights > TINY, norms.weights, 1.0))
        quantile = quantile_bound(xp, log_median, self.factor)
        trusted = linear & started & (losses["losses"] > 0.5) & (losses["signed"] < 0.5) & (norms.weights > TINY)
        displacement = displacement_bound(
            xp, log_reach, state["log_gain"], seen, ~trusted, self.share, self.least_share
        )
        descent = descent_bound(
            xp, log_reach, log_weights, losses["first_loss"], losses["best"], log_median, self.trust
        )
        care = setback(xp, state, losses, norms.loss)
        length = xp.where(trusted, xp.minimum(displacement, descent), displacement) + care["log_care"]
        length = xp.minimum(length, quantile)
        held = xp.minimum(quantile, log_first) + care["log_care"]
        log_bound = xp.where(linear, length, xp.where(adaptive, held, quantile))
        # a bound that is no longer a float32 would zero the gradient
        clip_norm = xp.exp(xp.minimum(xp.maximum(log_bound, math.log(2 * TINY)), math.log(HUGE)))
        clip_norm = xp.where(started, clip_norm, xp.where(linear | adaptive, 0.0, math.inf))

        backed = alarm_and_backoff(xp, state, norms, log_median, started, self.alarm, self.backoff)
        ceiling = xp.where(started, log_median + math.log(3.0), norms.log)
        entered: dict[str, Any] = {
            **losses,
            **care,
            **backed,
            "seen": one_more(xp, seen),
            "log_first_norms": log_first,
        }
        log_norm = xp.minimum(norms.log, ceiling)
        entered["sketch"] = sketch.update(xp, state["sketch"], log_norm, norms.enters, 1.0 - 1.0 / self.window)
        new = {name: _taught(xp, norms, entered, state, name) for name in state}
        # what is left of a usual norm, by intent
        info = {"gain": xp.exp(xp.minimum(log_bound - log_median, 0.0))}
        shown = {"quantile": (started, quantile), "displacement": (linear, displacement), "descent": (trusted, descent)}
        for name, (holds, bound) in shown.items():
            info[f"{name}_bound"] = xp.exp(xp.where(holds, xp.minimum(bound, math.log(HUGE)), math.log(HUGE)))
        return new, clamp(xp, clip_norm, self.minimum, self.maximum), info


def _taught(xp: Namespace, norms: Norms, new: State, old: State, name: str) -> Any:
    """The sketch takes care itself of a step that must not teach."""
    return new[name] if name == "sketch" else xp.where(norms.enters, new[name], old[name])
