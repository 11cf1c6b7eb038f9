"""Where the log norm usually stands, and where it stood while the run was healthy.

**Level.** Winsorised running mean and variance of the log norm l, forgetting exponentially; n counts the norms:

    d_t    = clip(l_t - mean_{t-1}, -winsorise * std_{t-1}, winsorise * std_{t-1})
    mean_t = mean_{t-1} + d_t / m_n                                        m_n = min(n, window)
    var_t  = var_{t-1} + (d_t^2 - var_{t-1}) / m_{n+1}                     var_0 = 0.25, worth one step

**Start.** While n < `warmup_steps` little is known, and most runs that die do so here. What stands more than
M = clip(5 * std, log 12, log 30) above the mean is wild, and so is what stands as far below it. A wild norm teaches the
variance nothing, moves the mean by a tenth of its distance (of log 30 at most; a quarter of the whole distance where it
lies below: falling is no danger), and counts as a quarter of a norm, so that the start ends with a run that never
settles, too. The deviation is held at log 30 / 5. Once something wild was seen, m_n = min(n / 3, window): a start that
was wild is forgotten soon.

**Anchor.** A running level follows a drift; the anchors (`gradwatch.core.anchor`) stay behind. `low` falls with the
mean and rises slowly, `high` the other way round. Whoever stands a factor of 1,000 above `low` or below `high` has
left the run's own healthy past, however slowly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from gradwatch.core import checks
from gradwatch.core.detectors.base import Detector, State
from gradwatch.core.norms import Norms
from gradwatch.core.xp import HUGE, Array, Bool, Namespace

# Spread of the log norm (65 % up or down) before anything is known, worth one step: without it the second
# norm of a run would already be an outlier.
PRIOR_VAR = 0.25

START_Z, START_LEAST, START_MOST = 5.0, math.log(12.0), math.log(30.0)
_WILD_UP, _WILD_DOWN, _WILD_COUNTS = 0.1, 0.25, 0.25
_WILD_MEMORY = 3.0  # a wild start is forgotten by norms weighing as n^2


class Level(NamedTuple):
    """The level's options; its state is a dict of arrays of shape ()."""

    window: int
    winsorise: float
    min_std: float
    warmup_steps: int

    @staticmethod
    def init() -> dict[str, np.ndarray]:
        zero = np.zeros((), np.float32)
        return {"mean": zero, "var": np.full((), PRIOR_VAR, np.float32), "seen": zero, "wild": zero}

    def std(self, xp: Namespace, state: State) -> Array:
        return xp.sqrt(xp.maximum(state["var"], self.min_std**2))

    def ready(self, state: State) -> Bool:
        """Whether the start is over."""
        return state["seen"] >= self.warmup_steps

    def z(self, xp: Namespace, state: State, norms: Norms) -> Array:
        """Standard deviations above the mean, judged by the steps before; 0 for the first."""
        return xp.where(state["seen"] > 0.0, norms.log - state["mean"], 0.0) / self.std(xp, state)

    def start_margin(self, xp: Namespace, state: State) -> Array:
        """How far above the mean a log norm is wild, M."""
        return xp.minimum(xp.maximum(START_Z * self.std(xp, state), START_LEAST), START_MOST)

    def update(self, xp: Namespace, state: State, norms: Norms) -> dict[str, Array]:
        mean, var, seen = state["mean"], state["var"], state["seen"]
        first, start = seen <= 0.0, ~self.ready(state)
        off = xp.where(first, 0.0, norms.log - mean)
        wild = start & (xp.abs(off) > self.start_margin(xp, state))
        reach = self.winsorise * self.std(xp, state)
        d = xp.minimum(xp.maximum(off, -reach), reach)

        share = xp.where(state["wild"] > 0.5, 1.0 / _WILD_MEMORY, 1.0)
        tame_mean = mean + d / self._memory(xp, (seen + 1.0) * share)
        tame_var = var + (d * d - var) / self._memory(xp, (seen + 2.0) * share)  # the prior counts as a step
        tame_var = xp.where(start, xp.minimum(tame_var, (START_MOST / START_Z) ** 2), tame_var)
        jump = xp.where(off > 0.0, _WILD_UP * xp.minimum(off, START_MOST), _WILD_DOWN * off)

        new = {
            "mean": xp.where(first, norms.log, xp.where(wild, mean + jump, tame_mean)),
            "var": xp.where(wild, var, tame_var),
            "seen": xp.minimum(xp.where(wild, seen + _WILD_COUNTS, seen + 1.0), 1e6),
            "wild": xp.where(wild, 1.0, state["wild"]),
        }
        return {name: xp.where(norms.enters, x, state[name]) for name, x in new.items()}

    def _memory(self, xp: Namespace, steps: Array) -> Array:
        return xp.minimum(xp.maximum(steps, 1.0), float(self.window))


@dataclass(frozen=True, repr=False, kw_only=True)
class OnLevel(Detector):
    """A detector that compares the log norm with its level; its options.

    Args:
      window: steps remembered, >= 2.
      warmup_steps: norms observed before the level counts, >= 2; a wild one counts as a quarter.
      min_std: the standard deviation is at least this, > 0.
      cooldown_steps: calm steps that end an episode, >= 1.

    Raises:
      ConfigError: an argument is out of range.
    """

    window: int = 200
    warmup_steps: int = 25
    min_std: float = 0.1
    cooldown_steps: int = 10

    _clamp: ClassVar[float] = 2.5  # deviations at which a log norm is clamped before it enters the level

    def _check_level(self) -> None:
        self._store(
            window=checks.count("window", self.window, least=2),
            warmup_steps=checks.count("warmup_steps", self.warmup_steps, least=2),
            min_std=checks.number("min_std", self.min_std, above=0),
            cooldown_steps=checks.count("cooldown_steps", self.cooldown_steps),
        )

    @property
    def _level(self) -> Level:
        return Level(self.window, self._clamp, self.min_std, self.warmup_steps)


def as_norm(xp: Namespace, log_norm: Array) -> Array:
    """exp, held at the largest norm that is one."""
    return xp.exp(xp.minimum(log_norm, math.log(HUGE)))
