"""What the steps say of a run's health: calm, harmed, lost.

Pure functions of the rows of the history, so that every worker comes to the same answer.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from gradwatch.core.band import LossBand
from gradwatch.core.snapshot import VERDICTS
from gradwatch.reading.losses import SCALING_STREAK_STEPS, STREAK_STEPS

_SMOOTHED = 7  # losses whose median is compared with the band
_SMOOTHED_ON_TRIAL = 25
_WILD_STEPS = 10  # far above everything before, after an explosion: whoever can go back need not wait
_LASTING = 100  # losses at a rate that is on trial
_HELD, _HELD_STEPS, _STEPS = 0.1, 90, 100  # less than this share of the norm is left, in 90 of 100 steps
_LEARNS, _LEARNS_STEPS = 0.15, 200  # deviations by which the median of 200 losses falls while a run learns
_DROPPED = (VERDICTS.index("zero"), VERDICTS.index("skip"))


class Rows(NamedTuple):
    """New steps, oldest first, arrays of one length.

    Attributes:
      step: number of the step, as the monitor counts.
      norm: before clipping; NaN or Inf as they came.
      threshold: the norm beyond which the step is an explosion.
      verdict: index into `VERDICTS`.
      loss: of the step; NaN where it was NaN or is not known.
      kept: share of the norm that clipping left, in [0, 1], where the update is linear in the gradient; 1 elsewhere.
    """

    step: np.ndarray
    norm: np.ndarray
    threshold: np.ndarray
    verdict: np.ndarray
    loss: np.ndarray
    kept: np.ndarray


class Trouble(NamedTuple):
    """Something that a rung should answer.

    Attributes:
      cause: "dropping", "held", "saturated", "exploding", "lost", "nonfinite" or "poisoned".
      step: at which it began.
      lasted: steps since then.
      text: what was seen, a sentence.
      kept: of "held", the median share of the gradients' norm that clipping left.
      sudden: whether nothing was wrong before that step, so that what was there shortly before it is sound.
    """

    cause: str
    step: int
    lasted: int
    text: str
    kept: float | None = None
    sudden: bool = False


class Signs:
    """Reads the rows of one monitor, and says whether its run is in trouble.

    A loss is harmed when the median of the last 7 lies above the band

        m + max(6 s, 0.2 |m|),   m, s: median and scaled median absolute deviation of the last 200 calm losses

    and wild when it lies above both the band and L + 2 |L|, L the first loss of the run. Before there are 20 calm
    losses the band ends at L + 2 |L|. A loss that is harmed for four times `patience` steps without an anomaly of the
    gradients is the new normal: other data, another task.

    After the rate was lowered it is the rate that is on trial (`on_trial`): harm needs no anomaly and half the
    patience, nothing becomes a new normal, m and s are those of the lowest median since then, and the median of the
    last 25 losses is compared with m + max(2 s, 0.05 |m|): a run that falls back to the loss of a uniform guess has not
    left the wider band. A rise that lasts says more: it is harm too when the medians of the last 25 and of the last 100
    are above m + max(0.5 s, 0.05 |m|), and while that of 25 is, the run is not calm.

    A run is held when clipping left less than a tenth of the norm in 90 of the last 100 steps, its policy is one that
    clips every gradient where the rate is too high, and it learns no more: the median of the last 200 losses is not
    below that of the 200 before by more than 0.15 of their scaled median absolute deviation.

    Args:
      patience: steps after which a harmed loss is lost.
      most_drops, window: of the rung skip; None where there is none.
      holds_rate: of the policy.
    """

    def __init__(
        self, patience: int, most_drops: int | None = 10, window: int = 100, *, holds_rate: bool = False
    ) -> None:
        self._patience, self._most_drops, self._window = patience, most_drops, window
        self._holds_rate = holds_rate
        self.last_step: int = 0
        self._band = LossBand()
        self._anomaly = self._explosion = -(10**9)  # the step of the last one
        self.on_trial: bool = False
        self.forget()

    def forget(self, *, to_the_start: bool = False) -> None:
        """The weights were set back: what the steps since the snapshot said is about others. The band stays.

        Args:
          to_the_start: to before the first step, whose losses lie above every band that was learned since.
        """
        if to_the_start:
            self._band.restart(self._band.first)
        self._recent: deque[float] = deque(maxlen=_SMOOTHED_ON_TRIAL)
        self._drops: deque[tuple[int, bool]] = deque()  # step, and whether its gradient was finite
        self._nonfinite = self._wild = 0  # steps in a row
        self.wild_since: int = 0  # the step of the first wild loss, 0: there was none
        self._longer: deque[float] = deque(maxlen=_LASTING)  # while the rate is on trial
        self.lowered()
        self._harmed_since = self._exploding_since = self._saturated_since = 0
        self._was_well = False
        self._harm_step = self.last_step
        self._began = self.last_step

    def lowered(self) -> None:
        """The rate is another one from here on."""
        self._kept: deque[float] = deque(maxlen=_STEPS)
        self._losses: deque[float] = deque(maxlen=2 * _LEARNS_STEPS)  # at this rate

    # -- reading ----------------------------------------------------------------------------------------

    def read(self, rows: Rows, active: Mapping[str, bool]) -> None:
        """Take new steps.

        Args:
          rows: the steps since the last call.
          active: kind -> whether an episode of it is under way after the last of them.
        """
        if not len(rows.step):
            return
        rows = rows._replace(loss=_filled(rows))
        if self._holds_rate:
            self._kept.extend(rows.kept.tolist())
            self._losses.extend(rows.loss[np.isfinite(rows.loss)].tolist())
        if math.isnan(self.first_loss):
            known = rows.loss[np.isfinite(rows.loss)]
            self._band.first = float(known[0]) if len(known) else math.nan
        if self._is_plain(rows):
            losses = rows.loss.tolist()
            self._add_calm(*losses)
            self._recent.extend(losses)
            self._nonfinite = self._wild = 0
            self._was_well = True
        else:
            for row in zip(*(column.tolist() for column in rows[:-1])):
                self._read_one(*row)
        self.last_step = int(rows.step[-1])
        if any(active.get(kind, False) for kind in ("explosion", "trend", "saturated", "nonfinite")):
            self._anomaly = self.last_step
        self._exploding_since = self._since(self._exploding_since, active.get("explosion", False))
        # steps that were zeroed because they were not finite have a name of their own
        if active.get("explosion", False) or active.get("trend", False):
            self._explosion = self.last_step
        saturated = active.get("saturated", False) and self._nonfinite < 3
        self._saturated_since = self._since(self._saturated_since, saturated)
        if saturated and math.isnan(self.first_loss):
            self._harm_step = self.last_step

    def _since(self, before: int, now: bool) -> int:
        return (before or self.last_step) if now else 0

    @property
    def usual_end(self) -> float:
        """No loss up to it stands out; -Inf while every one is worth a closer look."""
        if self.on_trial or self._harmed_since or self._drops or not self._band.is_known:
            return -math.inf
        return self.band[0]

    def _is_plain(self, rows: Rows) -> bool:
        """Whether nothing stands out in any of them: the usual look, which must cost little."""
        usual = np.all(rows.loss <= self.usual_end) and np.all(rows.norm <= rows.threshold)
        return bool(usual and np.all(rows.verdict <= 1))

    def _read_one(self, step: int, norm: float, threshold: float, verdict: int, loss: float) -> None:
        finite = math.isfinite(norm)
        self._nonfinite = 0 if finite else self._nonfinite + 1
        exploding = finite and norm > threshold
        if exploding or not finite:
            self._anomaly = step
        if exploding:
            self._explosion = step
        if verdict in _DROPPED:
            self._drops.append((step, finite))
        while self._drops and self._drops[0][0] <= step - self._window:
            self._drops.popleft()
        if math.isnan(self.first_loss):
            if not finite or exploding:
                self._harm_step = step
            return
        # a loss that is not finite gives no finite gradient: with one, it is only not known
        if not finite or math.isinf(loss):
            self._harm_step = step
            return
        if math.isnan(loss):
            return
        self._recent.append(loss)
        newest = list(self._recent)[-(_SMOOTHED_ON_TRIAL if self.on_trial else _SMOOTHED) :]
        smoothed = sorted(newest)[len(newest) // 2]
        harmed_from, wild_from = self.band
        self._wild = self._wild + 1 if loss > wild_from else 0
        if self._wild:
            self.wild_since = self.wild_since or step
        if self.on_trial:
            self._longer.append(loss)
            if self._median_of_trial(_SMOOTHED_ON_TRIAL) > self._end_of_trial:
                self._harm_step = step
        self._was_well |= loss <= wild_from
        if smoothed > harmed_from:
            self._harmed_since = self._harmed_since or step
            self._harm_step = step
            since = self._harmed_since
            if step - since >= 4 * self._patience and not self._is_anomalous(since) and not self.on_trial:
                self._band.restart(loss)  # the new normal
                self._harmed_since = 0
        else:
            self._harmed_since = 0
            if not exploding and finite and (self.on_trial or loss <= harmed_from):
                self._add_calm(loss)

    @property
    def _end_of_trial(self) -> float:
        """What a median of many losses must not be above, at a rate that is on trial."""
        band = self._band
        return band.usual + max(0.5 * band.spread, 0.05 * abs(band.usual)) if band.is_known else math.inf

    def _median_of_trial(self, losses: int) -> float:
        """Of so many of the newest losses at a rate that is on trial; -Inf before there are as many."""
        newest = list(self._longer)[-losses:]
        return sorted(newest)[losses // 2] if len(newest) == losses else -math.inf

    @property
    def _creeps_away(self) -> bool:
        return self.on_trial and min(map(self._median_of_trial, (_SMOOTHED_ON_TRIAL, _LASTING))) > self._end_of_trial

    def _is_anomalous(self, since: int) -> bool:
        """Whether the gradients stood out shortly before this step, or after it."""
        return self._anomaly >= since - self._patience

    # -- the band ---------------------------------------------------------------------------------------

    @property
    def first_loss(self) -> float:
        """The first loss of the run; NaN before it."""
        return self._band.first

    @property
    def band(self) -> tuple[float, float]:
        """(harmed from, wild from): losses above."""
        return self._band.ends

    def _add_calm(self, *losses: float) -> None:
        far, share = (2.0, 0.05) if self.on_trial else (6.0, 0.2)
        self._band.add(*losses, anchored=self.on_trial, far=far, share=share)

    @property
    def usual_loss(self) -> float:
        """Median of the calm losses; NaN before there are any."""
        return self._band.usual

    # -- answers ----------------------------------------------------------------------------------------

    @property
    def calm_steps(self) -> int:
        """Steps since harm was last seen, or since the weights were set back."""
        return self.last_step - self._harm_step

    @property
    def steps_without_gradient(self) -> int:
        """Steps in a row, up to now, whose gradient was not finite."""
        return self._nonfinite

    @property
    def never_finite(self) -> bool:
        """Whether no step since the weights were set back had a finite gradient."""
        return 0 < self._nonfinite == self.last_step - self._began

    @property
    def never_well(self) -> bool:
        """Whether every loss since the weights were set back was wild: the first was that of the healthy weights."""
        return self._wild > 0 and not self._was_well

    def trouble(self, *, loss_scaled: bool = False) -> Trouble | None:
        """The most severe trouble there is after the steps that were read; None for a run that is well enough.

        Args:
          loss_scaled: under loss scaling, steps without a finite gradient are how the scale is found.
        """
        streak = self._nonfinite
        if streak >= (SCALING_STREAK_STEPS if loss_scaled else STREAK_STEPS):
            text = f"{streak} steps without a finite gradient"
            return self._since_text("nonfinite", streak, text)._replace(sudden=True)
        suspect = self.on_trial or self._is_anomalous(self.last_step)
        if self._wild >= _WILD_STEPS and suspect:
            text = f"the loss has been above {self.band[1]:.4g} for {self._wild} steps"
            return self._since_text("lost", self._wild, text)._replace(sudden=not self.on_trial)
        harmed = self.last_step - self._harmed_since + 1 if self._harmed_since else 0
        enough = self._patience // 2 if self.on_trial else self._patience
        if harmed >= enough and (self.on_trial or self._is_anomalous(self._harmed_since)):
            text = f"the loss has not come back below {self.band[0]:.4g} for {harmed} steps"
            return self._since_text("lost", harmed, text)
        if self._creeps_away:
            text = f"the loss crept above {self._end_of_trial:.4g} while the learning rate came back"
            return self._since_text("lost", _LASTING, text)
        return (
            self._trouble_of_gradients() or self._dropping(loss_scaled=loss_scaled, streak=streak) or self._held_back()
        )

    def _trouble_of_gradients(self) -> Trouble | None:
        """What lasts for the patience while the loss says nothing."""
        saturated = self.last_step - self._saturated_since + 1 if self._saturated_since else 0
        # a policy may be meant to clip hard: what counts is that an explosion came before, and that nothing is learned
        follows = self._explosion >= self._saturated_since - 2 * self._patience
        if saturated >= self._patience and follows and not self._band.has_learned:
            return self._since_text("saturated", saturated, "most of the gradients are clipped away or dropped")
        exploding = self.last_step - self._exploding_since + 1 if self._exploding_since else 0
        if exploding >= self._patience and math.isnan(self.first_loss):
            return self._since_text("exploding", exploding, f"the gradients have exploded for {exploding} steps")
        return None

    def _dropping(self, *, loss_scaled: bool, streak: int) -> Trouble | None:
        """More bad batches than the rung skip allows."""
        # a loss scale that looks for its value drops updates too
        drops = [step for step, finite in self._drops if finite or not loss_scaled]
        if self._most_drops is None or len(drops) <= self._most_drops or streak >= 3:
            return None
        text = f"{len(drops)} updates were dropped in the last {self._window} steps"
        return Trouble("dropping", drops[0], self.last_step - drops[0] + 1, text)

    def _held_back(self) -> Trouble | None:
        """A rate at which the run lives by clipping alone."""
        kept = self._kept
        if len(kept) < _STEPS or kept[-1] >= _HELD:
            return None
        ascending = sorted(kept)
        if ascending[_HELD_STEPS - 1] >= _HELD or self._learns:
            return None
        middle = ascending[_STEPS // 2]
        text = f"clipping leaves {middle:.2g} of the gradients' norm, and the loss does not fall any more"
        return self._since_text("held", _STEPS, text)._replace(kept=middle)

    @property
    def _learns(self) -> bool:
        """Whether the loss still falls, or is not known for long enough to say."""
        if len(self._losses) < 2 * _LEARNS_STEPS:
            return True
        before, now = np.array(self._losses).reshape(2, _LEARNS_STEPS)
        middle = np.median(now)
        spread = 1.4826 * np.median(np.abs(now - middle))
        return bool(middle < np.median(before) - _LEARNS * spread)

    def _since_text(self, cause: str, lasted: int, text: str) -> Trouble:
        return Trouble(cause, self.last_step - lasted + 1, lasted, text)

    def facts(self) -> dict[str, Any]:
        """For the health file beside a snapshot."""
        return {"usual_loss": None if math.isnan(self.usual_loss) else self.usual_loss}


def _filled(rows: Rows) -> np.ndarray:
    """The losses; of steps in one call that tells one loss at its end, that one."""
    loss = rows.loss
    missing = np.isnan(loss) & np.isfinite(rows.norm)
    if not missing.any() or missing.all():
        return loss
    loss, known = loss.copy(), np.flatnonzero(~np.isnan(loss))
    for i in np.flatnonzero(missing):
        later = known[np.searchsorted(known, i) :]
        if len(later):
            loss[i] = loss[later[0]]
    return np.asarray(loss)
