"""Statistics of a run that causes are told by: scale-free and robust, medians and ranks instead of means.

The loss of step t is that of the weights which the steps before t made, on the batch of step t. So a loss that jumps
although the steps before it were as usual comes from the batch, and one that jumps after a step of unusual length comes
from the weights. Most causes are told apart by that order.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property

import numpy as np
from scipy import stats

from gradwatch.core.xp import HUGE
from gradwatch.diagnosis.case import Case, above
from gradwatch.diagnosis.layers import Layers
from gradwatch.diagnosis.observation import JUMP, Observation

WINDOW = 32  # steps that say what is usual
_LEAST = 6  # of them, before anything can be unusual

#: A number stands out where it is so many robust standard deviations above what is usual, and so many times as large.
FAR, TIMES = 6.0, 2.0

#: Steps after which a run that learns again has left its trouble behind.
HEALED = 512

#: A loss below it is next to zero.
NOTHING = 1e-6

#: Shares of their norm by which a step of a healthy run moves the weights: of a linear optimizer what its gradient
#: moves them if it is sustained (momentum included), of others what one update moves them.
USUAL_SHARE = {True: 0.05, False: 0.005}


class Rise:
    """How far each number of a column stands above the `WINDOW` numbers before it.

    Args:
      column: shape [n]; NaN and Inf say nothing of what is usual.
      log: compare logarithms; numbers that are not positive then count as not known.

    Attributes:
      usual: running median of the numbers before, shape [n]; NaN where fewer than 6 are known.
      times: the number divided by the usual one.
      far: distance above the usual one in robust standard deviations (1.4826 times the median deviation), each at
        least a tenth of the usual number.
    """

    def __init__(self, column: np.ndarray, *, log: bool = True) -> None:
        x = np.asarray(column, np.float64)
        with np.errstate(all="ignore"):
            y = np.where(np.isfinite(x) & (x > 0), np.log(np.where(x > 0, x, 1.0)), math.nan) if log else x
            y = np.where(np.isfinite(y), y, math.nan)
            past = np.lib.stride_tricks.sliding_window_view(np.append(np.full(WINDOW, math.nan), y), WINDOW)[:-1]
            enough = (~np.isnan(past)).sum(axis=1) >= _LEAST
            middle, spread = np.full(len(y), math.nan), np.full(len(y), math.nan)
            if enough.any():
                middle[enough] = np.nanmedian(past[enough], axis=1)
                spread[enough] = 1.4826 * np.nanmedian(np.abs(past[enough] - middle[enough, None]), axis=1)
            least = 0.1 if log else 0.1 * np.abs(middle)
            self.far: np.ndarray = (y - middle) / np.maximum(spread, np.maximum(least, 1e-12))
            self.usual: np.ndarray = np.exp(middle) if log else middle
            self.times: np.ndarray = x / self.usual

    def outliers(self, far: float = FAR, times: float = TIMES) -> np.ndarray:
        """Whether each number stands out upwards, shape [n]."""
        with np.errstate(invalid="ignore"):
            return (self.far > far) & (self.times > times)


class Signs:
    """What the numbers of one run show; each sign is computed when a cause asks for it, once.

    Steps are given as indices of the run's rows; `number` gives the number of the step.
    """

    def __init__(self, run: Observation) -> None:
        self.run = run
        self.layers = Layers(run)
        self._answers: dict[Callable[[Signs], Case | None], Case | None] = {}

    def ask(self, evidence: Callable[[Signs], Case | None]) -> Case | None:
        """What an evidence function says, asked once."""
        if evidence not in self._answers:
            self._answers[evidence] = evidence(self)
        return self._answers[evidence]

    def __len__(self) -> int:
        return len(self.run)

    def number(self, index: int) -> int:
        """Of a step, counted from 1."""
        return int(self.run.step[index])

    # -- columns --------------------------------------------------------------------------------------------

    @cached_property
    def norm(self) -> Rise:
        return Rise(self.run["norm"])

    @cached_property
    def loss(self) -> Rise:
        return Rise(self.run["loss"], log=False)

    @cached_property
    def input(self) -> Rise:
        return Rise(self.run["input_rms"])

    @cached_property
    def target(self) -> Rise:
        return Rise(self.run["target_rms"])

    @cached_property
    def broken(self) -> np.ndarray:
        """Indices of the steps whose gradient held a NaN or Inf, or overflowed."""
        with np.errstate(invalid="ignore"):
            return np.flatnonzero(~(np.abs(self.run["norm"]) < HUGE))

    @cached_property
    def finite_loss(self) -> np.ndarray:
        """Whether the loss of each step is known and finite, shape [n]."""
        known: np.ndarray = np.isfinite(self.run["loss"])
        return known

    @cached_property
    def share(self) -> np.ndarray:
        """The share of their norm by which each step moves the weights, shape [n], NaN where not known.

        Of a linear optimizer it is the applied norm over reach: what this gradient moves them if it is sustained. Of
        others it is what was measured last.
        """
        with np.errstate(all="ignore"):
            by_reach = self.run["applied_norm"] / self.run["reach"]
        # the column has the newest that was measured before the step
        measured = np.append(self.run["update_ratio"][1:], math.nan)[: len(self)]
        held_back = (self.run["applied_norm"] == 0.0) & (self.run["norm"] > 0.0)
        if held_back.any():  # that it moved nothing says nothing of the other steps
            measured[measured == 0.0] = math.nan
        known = np.isfinite(self.run["reach"]) & np.isfinite(by_reach)
        return np.where(known, by_reach, measured)

    @property
    def linear(self) -> bool:
        """Whether the optimizer's step is linear in the gradient, so that `share` is that of a sustained one."""
        return bool(np.isfinite(self.run["reach"]).any())

    # -- first unusual step ---------------------------------------------------------------------------------

    @cached_property
    def restless(self) -> np.ndarray:
        """Whether norm or loss of a step stands out or is not finite, shape [n]."""
        out: np.ndarray = self.norm.outliers() | self.loss.outliers(times=1.5)
        out[self.broken] = True
        return out

    @cached_property
    def onset(self) -> int | None:
        """The first step in which norm or loss stand out or are not finite."""
        found = np.flatnonzero(self.restless)
        return int(found[0]) if len(found) else None

    @cached_property
    def lost(self) -> int | None:
        """The first step whose loss is twice that of the first one, or the `onset` where that comes first."""
        loss = self.run["loss"]
        with np.errstate(invalid="ignore"):
            higher = np.flatnonzero(loss > 2.0 * loss[0]) if len(loss) and loss[0] > 0 else np.zeros(0, int)
        return min((int(i) for i in (*higher[:1], self.onset) if i is not None), default=None)

    def moved_before(self, index: int, steps: int = 5) -> bool:
        """Whether a step right before this one was unusually long, so that the weights may explain what comes."""
        before = slice(max(0, index - steps), index)
        with np.errstate(invalid="ignore"):
            return bool(((self.norm.far[before] > 4.0) & (self.norm.times[before] > 1.5)).any())

    # -- from outside ---------------------------------------------------------------------------------------

    @cached_property
    def odd_inputs(self) -> np.ndarray:
        """Indices of the steps whose input is out of scale or not finite."""
        return np.flatnonzero(self.input.outliers(8.0, 3.0) | np.isinf(self.run["input_rms"]))

    @cached_property
    def odd_targets(self) -> np.ndarray:
        return np.flatnonzero(self.target.outliers(8.0, 3.0) | np.isinf(self.run["target_rms"]))

    @cached_property
    def sudden_loss(self) -> int | None:
        """The first of three steps in a row whose loss stands out, although no step before was unusually long.

        It must undo a third of what had been learned, for where a loss is small it jumps about.
        """
        loss, far = self.run["loss"], self.loss.far
        if len(loss) < 10 or not np.isfinite(loss[:3]).any():
            return None
        log = Rise(loss).far if np.nanmin(loss) > 0 else far
        begin = float(np.nanmedian(loss[:3]))
        with np.errstate(invalid="ignore"):
            much = loss - self.loss.usual > (begin - self.loss.usual) / 3
            first = (far > 5.0) & (log > 2.5) & much
            then = (far > 3.0) & (log > 1.5) & much
        for i in np.flatnonzero(first[:-2] & then[1:-1] & then[2:]).tolist():
            if not (i and then[i - 1]) and not self.moved_before(i) and i not in self.broken:
                return int(i)
        return None

    @cached_property
    def jump(self) -> int | None:
        """The step at which the learning rate rose in one step to `JUMP` times all that it was before.

        The first ten steps are those of a warm-up, and so is each step of a rate that rises evenly.
        """
        rate = self.run["learning_rate"]
        known = np.isfinite(rate) & (rate > 0)
        if known.sum() < 12:
            return None
        highest = np.fmax.accumulate(np.where(known, rate, 0.0))
        with np.errstate(all="ignore"):
            times = rate[1:] / highest[:-1]
        found = np.flatnonzero(known[1:] & (times > JUMP))
        found = found[found >= 9]
        return int(found[np.argmax(times[found])]) + 1 if len(found) else None

    def healed_since(self, index: int) -> bool:
        """Whether the loss came back long ago from what a step did: no higher than before, and finite since."""
        since = len(self) - HEALED
        if index >= since or (self.broken >= since).any():
            return False
        return self.median("loss", since, len(self)) <= self.median("loss", index - WINDOW, index)

    @cached_property
    def ramp(self) -> int:
        """Steps over which the rate rises from the first one on, to more than twice its beginning; 0: it does not."""
        rate = self.run["learning_rate"]
        rate = rate[np.isfinite(rate)]
        if len(rate) < 3 or self.run.step[0] > 1:
            return 0
        falls = np.flatnonzero(np.diff(rate) <= 0)
        end = int(falls[0]) if len(falls) else len(rate) - 1
        return end + 1 if end >= 1 and rate[end] > 2.0 * rate[0] else 0

    # -- from inside ----------------------------------------------------------------------------------------

    @cached_property
    def early_share(self) -> float:
        """The share by which a step moves the weights, before anything stood out; NaN where not known.

        The largest of three medians: of the first five steps, of the last ten before the `onset`, and of all before it,
        but not more than the first fifty.
        """
        end = max(len(self) if self.onset is None else self.onset, 5)
        first = self.share[: min(end, 50)]
        parts = [first[:5], first] + ([self.share[max(end - 10, 0) : end]] if self.onset is not None else [])
        known = [part[np.isfinite(part)] for part in parts]
        return max((float(np.median(part)) for part in known if len(part)), default=math.nan)

    @property
    def haste(self) -> float:
        """`early_share` over a usual one."""
        return self.early_share / USUAL_SHARE[self.linear]

    def blown_up(self, index: int) -> bool:
        """Whether norms or losses had grown far beyond what they were, before this step."""
        for name in ("norm", "loss"):
            now = self.run[name][max(0, index - 10) : index]
            now, usual = now[np.isfinite(now)], self.median(name, 0, max(index - 10, 5))
            if len(now) and usual > 0 and now.max() > 10 * usual:
                return True
        with np.errstate(invalid="ignore"):
            return bool((self.share[max(0, index - 10) : index] > 1.0).any())

    @cached_property
    def harm(self) -> float:
        """How sure it is that the run does not learn, in [0, 1]."""
        if not self.finite_loss.any():
            return 0.8 if self.has_event("explosion", "nonfinite", "trend") else 0.2
        begin, end = self.run["loss"][0], self.median("loss", len(self) - len(self) // 4, len(self))
        broken = 0.9 if len(self.broken) > len(self) / 2 else 0.0
        worse = above(end / begin, 0.9, 12.0) if begin > 0 and end > 0 else 0.0
        return max(self.stuck, broken, worse)

    @cached_property
    def wild_start(self) -> tuple[float, str]:
        """(how far the first steps are out of scale, in [0, 1], a sentence)."""
        times = {}
        for name in ("loss", "norm"):
            first, later = self.median(name, 0, 3), self.median(name, len(self) // 4, len(self))
            times[name] = first / later if later > 0 else math.nan
        if len(self.broken) and self.broken[0] < 5:
            return 0.9, f"The gradient of step {self.number(int(self.broken[0]))} is NaN or Inf."
        signs = {"loss": above(times["loss"], 5.0), "norm": above(times["norm"], 10.0), "": 0.8 * self.harm}
        best = max(signs, key=lambda name: signs[name])
        said = f"The {best} of the first steps is {times[best]:.3g} times the later one." if best else ""
        return signs[best], said

    # -- the run as a whole ---------------------------------------------------------------------------------

    @cached_property
    def learned(self) -> float:
        """How sure it is that the loss of the last quarter is below that of the first, in [0, 1]; 0.5: not known.

        1 minus the p value of the one-sided Mann-Whitney test. A loss of NaN counts as the largest. Where the first
        steps are no longer among these, but their loss is known, that of a sign test against it, if that is more.
        """
        fell, first = self.fell(0, len(self)), self.run.first_loss
        last = self.run["loss"][-(len(self) // 4) :] if len(self) >= 20 and self.run.step[0] > 1 else np.empty(0)
        last = np.where(np.isnan(last), math.inf, last)
        if math.isnan(first) or not len(last):
            return fell
        return max(fell, float(stats.binom.cdf(np.sum(last < first) - 1, len(last), 0.5)))

    @property
    def nothing_left(self) -> bool:
        """Whether the loss is next to zero, so that a run that stands still has nothing left to learn."""
        return 0.0 <= self.median("loss", len(self) - len(self) // 4, len(self)) < NOTHING

    @property
    def stuck(self) -> float:
        """How sure it is that the loss does not fall though it could, in [0, 1]: 0.5 where `learned` is 0.99."""
        return 0.0 if self.nothing_left else above(1.0 - self.learned, 0.01, 1.5)

    def fell(self, begin: int, end: int) -> float:
        """As `learned`, between two steps."""
        loss = self.run["loss"][begin:end]
        if not np.isfinite(loss).any():
            return 0.5
        loss = np.where(np.isfinite(loss) | np.isneginf(loss), loss, 1e300)
        if end >= len(self) and len(loss) and math.isnan(self.run["loss"][-1]):
            loss = loss[:-1]  # of the newest step, not known yet
        quarter = len(loss) // 4
        if quarter < 5:
            return 0.5
        return 1.0 - float(stats.mannwhitneyu(loss[-quarter:], loss[:quarter], alternative="less").pvalue)

    def median(self, name: str, begin: int, end: int) -> float:
        """Of the finite numbers of a column between two steps; NaN where there are none."""
        part = self.run[name][max(begin, 0) : max(end, 0)]
        part = part[np.isfinite(part)]
        return float(np.median(part)) if len(part) else math.nan

    def has_event(self, *kinds: str) -> bool:
        return any(event.kind in kinds for event in self.run.events)
