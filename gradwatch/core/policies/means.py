"""Thresholds above a running mean of the norms: `zscore` and `per_variable`."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from gradwatch.core import checks
from gradwatch.core.norms import Norms
from gradwatch.core.policies.base import VARIABLE, WATCH_ONLY, Adaptive, State, Update, learned, one_more
from gradwatch.core.xp import TINY, Namespace
from gradwatch.errors import ConfigError


@dataclass(frozen=True, repr=False)
class zscore(Adaptive):
    """Clip the global norm where it stands `z_max` standard deviations above its running mean.

    clip_norm_t = mean_{t-1} + z_max * std_{t-1}, statistics of the steps before t:
    mean_t = decay * mean_{t-1} + (1 - decay) * x_t, var_t = decay * var_{t-1} + (1 - decay) * (x_t - mean_t)^2
    with x_t the winsorised norm; during the warm-up the plain mean and variance of what was seen. It follows
    fast: a lasting tenfold rise within 70 steps, but an explosion of 5 % a step too (docs/policies.md).

    Args:
      z_max: standard deviations, > 0.
      decay: weight of the past, in [0.5, 0.99999]; 0.97 remembers about 33 steps.
      warmup_steps: norms observed before the first clip, >= 2.
      winsorise: a norm enters clamped at mean + winsorise * z_max * std, >= 1; winsorise * z_max >= 1.5, or a
        rise would shrink the deviation instead of widening it.
      minimum, maximum: as in `percentile`.

    Raises:
      ConfigError: an argument is out of range.

    Example:
      >>> from gradwatch import policies
      >>> policies.zscore(3, decay=0.99)
      zscore(3, decay=0.99)

    Source: ZClip (Kumar et al. 2025, arXiv 2504.02507), section 3. We differ: NaN and Inf never enter; we clip
    to the threshold itself and that is what enters, where the paper's value sinks back to the mean, so that a
    lasting rise is followed instead of clipped forever; the standard deviation is at least 1 % of the mean.
    """

    z_max: float = 2.5
    decay: float = field(default=0.97, kw_only=True)
    warmup_steps: int = field(default=25, kw_only=True)
    winsorise: float = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        z_max = checks.multiple("z_max", self.z_max, hint=WATCH_ONLY)
        self._store(z_max=z_max, decay=checks.decay("decay", self.decay))
        self._check_options(least_warmup=2)
        if self.winsorise * z_max < 1.5:
            raise ConfigError(
                f"winsorise * z_max must be >= 1.5, got {self.winsorise:g} * {z_max:g}: a lasting rise would be "
                "clipped forever; raise winsorise"
            )
        # Cantelli's inequality holds whatever the distribution; below a maximum it may clip any share
        self._store(expected_clip_ratio=1 / (1 + z_max**2) if self.maximum is None else None)

    def init(self, num_variables: int) -> State:
        return {name: np.zeros((), np.float32) for name in ("mean", "spread", "seen")}

    def update(self, xp: Namespace, state: State, norms: Norms) -> Update:
        mean, seen = state["mean"], state["seen"]
        ready = seen >= self.warmup_steps
        # spread is std / mean: a variance of norms of 1e30 would overflow
        deviation = xp.maximum(state["spread"], 0.01)
        clip_norm = mean * (1.0 + self.z_max * deviation)
        ceiling = mean * (1.0 + self.winsorise * self.z_max * deviation)
        x = xp.where(ready, xp.minimum(norms.total, ceiling), norms.total)

        rate = xp.where(ready, 1.0 - self.decay, 1.0 / (seen + 1.0))
        new_mean = mean + rate * (x - mean)
        unit = xp.maximum(new_mean, TINY)
        std, off, old_off = state["spread"] * (mean / unit), (x - new_mean) / unit, (x - mean) / unit
        # while it warms up the plain variance, by Welford's recursion; then the paper's
        square = xp.where(ready, off * off, off * old_off)
        new = {
            "mean": new_mean,
            "spread": xp.sqrt((1.0 - rate) * std * std + rate * square),
            "seen": one_more(xp, seen),
        }
        return learned(xp, norms.enters, new, state), self._bound(xp, ready, clip_norm), {}


@dataclass(frozen=True, repr=False)
class per_variable(Adaptive):
    """Clip each variable's norm against its own history (it can turn the direction of the whole gradient).

    clip_norm_{t,i} = ratio * gamma_{t-1,i};  gamma_{t,i} = decay * gamma_{t-1,i} + (1 - decay) * x_{t,i}
    with x the winsorised norm of variable i; during the warm-up gamma_i is the smallest norm seen. A lasting
    tenfold rise is followed within 160 steps. It clips often: 30 to 40 % of the steps of a variable.

    Args:
      ratio: how far a norm may exceed its own running mean, > 0, <= 100.
      decay: weight of the past, in [0.5, 0.99999].
      warmup_steps: norms observed before the first clip, >= 1.
      winsorise: a norm enters clamped at this multiple of its clip_norm, >= 1; winsorise * ratio >= 1.05, or the
        means could never rise and would sink to nothing. 1 is the paper's, with its ratio of 1.05.
      minimum, maximum: bounds of every variable's clip_norm, None for none.

    Raises:
      ConfigError: an argument is out of range.

    Example:
      >>> from gradwatch import policies
      >>> policies.per_variable(winsorise=1)  # AdaGC as published
      per_variable(1.05, winsorise=1)

    Source: AdaGC (Wang et al. 2025, arXiv 2502.11034), algorithm 1. We differ: the warm-up has no absolute
    clip (give `maximum` for one), NaN, Inf and zero never enter, and with `winsorise` above 1 a lasting rise
    is followed at once instead of by 0.1 % a step.
    """

    scope = VARIABLE

    ratio: float = 1.05
    decay: float = field(default=0.98, kw_only=True)
    warmup_steps: int = field(default=100, kw_only=True)

    def __post_init__(self) -> None:
        ratio = checks.multiple("ratio", self.ratio, most=100, hint="it is a multiple, 1.05 and neither 105 nor 0.05")
        self._store(ratio=ratio, decay=checks.decay("decay", self.decay))
        self._check_options()
        self._check_rise(ratio, "ratio", " (AdaGC's own winsorise=1 goes with its ratio of 1.05)")

    def init(self, num_variables: int) -> State:
        return {"gamma": np.zeros(num_variables, np.float32), "seen": np.zeros((), np.float32)}

    def update(self, xp: Namespace, state: State, norms: Norms) -> Update:
        gamma, seen, x = state["gamma"], state["seen"], norms.per_variable
        ready = seen >= self.warmup_steps
        known = gamma > 0.0  # a variable that had no gradient so far has no history to be judged by
        # not decay * gamma + ...: in float32 the two weights need not sum to 1, and gamma would drift
        entered = xp.minimum(x, self.winsorise * self.ratio * gamma)
        averaged = gamma + (1.0 - self.decay) * (entered - gamma)
        moved = xp.where(known, xp.where(ready, averaged, xp.minimum(x, gamma)), x)
        new = {
            "gamma": xp.where(norms.enters & (x > 0.0), moved, gamma),
            "seen": xp.where(norms.enters, one_more(xp, seen), seen),
        }
        return new, self._bound(xp, ready & known, self.ratio * gamma), {}
