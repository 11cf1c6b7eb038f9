"""Thresholds at a quantile of the recent norms: `percentile` and `median`."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from gradwatch.core import anchor, checks, sketch
from gradwatch.core.norms import Norms
from gradwatch.core.policies.base import Adaptive, State, Update, one_more
from gradwatch.core.xp import Namespace
from gradwatch.errors import ConfigError

_FREE = 100.0  # norms during which the anchor follows freely: a start says little of the run


class _Quantile(Adaptive):
    """clip_norm_t = multiple * Q_quantile(norms before t), on the sketch, and at most 1,000 times its anchor."""

    window: int

    @property
    def _quantile(self) -> float:
        raise NotImplementedError

    @property
    def _multiple(self) -> float:
        raise NotImplementedError

    def init(self, num_variables: int) -> State:
        return {"sketch": sketch.init(), **dict.fromkeys(("seen", "low"), np.zeros((), np.float32))}

    def update(self, xp: Namespace, state: State, norms: Norms) -> Update:
        recent, seen = state["sketch"], state["seen"]
        level = sketch.log_quantile(xp, recent, self._quantile) + math.log(self._multiple)
        low = xp.where(seen < _FREE, level, anchor.follow(xp, state["low"], level, seen, falls=True))
        log_threshold = xp.minimum(level, low + anchor.DECADES)
        # before there is a quantile there is nothing to clamp at
        ceiling = xp.where(seen > 0.0, log_threshold + math.log(self.winsorise), norms.log)
        entered = xp.minimum(norms.log, ceiling)
        new = {
            "sketch": sketch.update(xp, recent, entered, norms.enters, 1.0 - 1.0 / self.window),
            "seen": xp.where(norms.enters, one_more(xp, seen), seen),
            "low": xp.where(norms.enters & (seen > 0.0), low, state["low"]),
        }
        return new, self._bound(xp, seen >= self.warmup_steps, xp.exp(log_threshold)), {}


@dataclass(frozen=True, repr=False)
class percentile(_Quantile):
    """Clip the global norm at the q-th percentile of the recent norms before this step.

    clip_norm_t = P_q(norms before t), each step weighing (1 - 1/window) times the next one. On stationary
    norms it clips (100 - q) % of the steps. After a lasting tenfold rise of the norm the share of clipped
    steps is back near that within one window; a growth of 5 % a step moves clip_norm by less than 10 % in 40
    steps (measured, docs/policies.md), and however long it lasts not beyond 1,000 times the run's own past: an
    anchor falls with the quantile; after 100 norms its logarithm rises by max(0.0001, 1 / (n + 9)) a step at most.

    Args:
      q: percentile: 0, or from 1 to 100. What lies between is refused: 0.9 is nearly always meant as 90.
      window: steps remembered, >= 2: the weights sum to it.
      warmup_steps: norms observed before the first clip, >= 1.
      winsorise: a norm enters clamped at this multiple of clip_norm, >= 1.05; a smaller one follows a rise more slowly.
      minimum: lower bound of clip_norm, None for none.
      maximum: upper bound of clip_norm, None for none; also the clip_norm of the warm-up.

    Raises:
      ConfigError: an argument is out of range.

    Example:
      >>> from gradwatch import policies
      >>> policies.percentile(95, maximum=10.0)
      percentile(95, window=1000, maximum=10)

    Source: AutoClip (Seetharaman, Wichern, Pardo, Le Roux 2020, arXiv 2007.14469). We differ: the current
    norm is not part of its own threshold, old norms are forgotten, norms enter winsorised, and the quantile
    comes from a sketch of 1 % relative error instead of a sorted history.
    """

    q: float = 90.0
    window: int = 1000

    def __post_init__(self) -> None:
        q = checks.number("q", self.q, least=0, most=100, hint="it is a percentile, 90 and not 0.9")
        if 0 < q < 1:
            raise ConfigError(f"q must be 0 or from 1 to 100, got {self.q!r}; it is a percentile: write {100 * q:g}")
        self._store(q=q, window=checks.window("window", self.window))
        self._check_options()
        self._check_rise()
        # below a maximum it may clip any share
        self._store(expected_clip_ratio=1 - q / 100 if self.maximum is None else None)

    @property
    def _quantile(self) -> float:
        return self.q / 100

    @property
    def _multiple(self) -> float:
        return 1.0


@dataclass(frozen=True, repr=False)
class median(_Quantile):
    """Clip the global norm at a multiple of the recent median.

    clip_norm_t = factor * P_50(norms before t). A lasting tenfold rise is followed within two windows.

    Args:
      factor: multiple of the median, > 0, <= 100.
      winsorise: winsorise * factor >= 1.05, or the median could never rise.
      window, warmup_steps, winsorise, minimum, maximum: as in `percentile`.

    Raises:
      ConfigError: an argument is out of range.

    Example:
      >>> from gradwatch import policies
      >>> policies.median(3)
      median(3, window=100)

    Source: the rule of icefall's ScaledAdam (k2-fsa), which clips at twice the median of the recent norms.
    """

    factor: float = 2.0
    window: int = 100

    def __post_init__(self) -> None:
        factor = checks.multiple("factor", self.factor, most=100, hint="it is a multiple, 2 and not 200")
        self._store(factor=factor, window=checks.window("window", self.window))
        self._check_options()
        self._check_rise(factor, "factor")

    @property
    def _quantile(self) -> float:
        return 0.5

    @property
    def _multiple(self) -> float:
        return self.factor
