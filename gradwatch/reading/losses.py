"""Step by step: what the loss did, and which steps were useful.

Works on the host, out of the history that a monitor keeps on the device anyway. The training step knows nothing of it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from gradwatch.core.band import LossBand
from gradwatch.core.snapshot import VERDICTS, Snapshot

#: Steps within which a loss must be back in its band for an anomaly to be harmless.
BACK_STEPS = 100

#: Losses whose median is clearly above the usual one where it is raised at all: a rise that lasts, and is no large one.
RAISED_STEPS = 100

#: A loss that stays away for so long, in steps and in seconds, has no way back.
LOST_STEPS, LOST_SECONDS = 200, 120.0

#: Steps in a row of a loss far above everything before it: no need to wait whether it comes back.
WILD_STEPS = 30

#: Steps in a row without a finite gradient, or a loss, that are no bad batch; a loss scale that looks for its value
#: takes more: from 2^15 down to 1 and below it halves at each of them.
STREAK_STEPS, SCALING_STREAK_STEPS = 10, 40

#: A loss that has been above its band for so long and has stopped rising is the new normal.
SETTLED_STEPS = 1000

#: Losses after which a run should have got somewhere.
PROGRESS_STEPS = 2000

#: Why a step was not useful. A step has one reason, the first that fits.
REASONS = ("nonfinite", "skipped", "harmful")

_NEWEST = 25  # losses that show whether a rise lasts on
_SMOOTHED = 7  # losses whose median is compared with the band
_COMPARED = 200  # losses at either end that progress is judged by
_CLEARLY = 2.0  # standard errors of a difference between two medians
_PASS, _DROPPED = VERDICTS.index("pass"), (VERDICTS.index("zero"), VERDICTS.index("skip"))


class _Rows(NamedTuple):
    """New steps, oldest first; arrays of one length."""

    step: np.ndarray
    norm: np.ndarray
    threshold: np.ndarray
    verdict: np.ndarray
    loss: np.ndarray


class LossWatch:
    """Reads the steps of one monitor; see `docs/notifications.md` for what becomes of it.

    Attributes:
      last_step: the newest step that was read.
      band: where a healthy loss lies, anchored at the lowest median of 200 calm losses so far.
      is_known: whether any loss is known.
      above_since: the step since which the losses have been above the band: the median of the last 7 above its end, or
        that of the last `RAISED_STEPS` above its nearer end for what lasts; 0: they are not.
      wild: losses in a row, up to now, that were far above everything before.
      streak: steps in a row, up to now, whose loss was not finite.
      let_through: the newest exploding step that reached the weights as it came.
      useful: steps that moved the weights and did no harm.
      wasted: reason -> steps that did not; see `REASONS`.
    """

    def __init__(self, snapshot: Snapshot | None = None) -> None:
        self.last_step: int = 0 if snapshot is None else snapshot.steps
        self.band: LossBand = LossBand()
        self.is_known: bool = False
        self.above_since = self.wild = self.streak = self.let_through = 0
        self.useful: int = 0
        self.wasted: dict[str, int] = dict.fromkeys(REASONS, 0)
        self._resumed = snapshot is not None and snapshot.steps > 0
        self._counted = _counted(snapshot)
        self._alarm = -_SMOOTHED
        self._recent: deque[float] = deque(maxlen=_SMOOTHED)
        self._longer: deque[float] = deque(maxlen=RAISED_STEPS)
        self._newest: deque[float] = deque(maxlen=2 * _COMPARED)
        self._first: list[float] = []
        self._losses = 0
        self._best = (math.inf, 0, 0)  # the lowest usual loss, its step, and how many losses there were by then
        self._pending = 0  # steps of which it is not known yet whether they are part of a harmful episode

    # -- reading ----------------------------------------------------------------------------------------

    def read(self, snapshot: Snapshot, history: Mapping[str, Any], *, harmful: bool) -> None:
        """Take the steps up to `snapshot`.

        Args:
          history: as `Monitor.history()` gives it; columns that it lacks are not known.
          harmful: whether an episode that does harm is under way, as far as it was known before.
        """
        rows = _new_rows(history, self.last_step, snapshot.steps)
        if self.is_known and len(rows.step) and math.isnan(rows.loss[-1]) and math.isfinite(rows.norm[-1]):
            rows = _Rows(*(column[:-1] for column in rows))  # its loss comes with the step after it
        before, (nonfinite, skipped) = self.last_step, _counted(snapshot)
        if len(rows.step):
            unseen = int(rows.step[0]) - before - 1
            if unseen > 0:  # more steps than the history holds: the counters know what became of them
                bad = int(np.sum(~np.isfinite(rows.norm)))
                dropped = int(np.sum(np.isin(rows.verdict, _DROPPED) & np.isfinite(rows.norm)))
                self._count_unseen(
                    unseen, nonfinite - self._counted[0] - bad, skipped - self._counted[1] - dropped, harmful
                )
            self._read_rows(rows, harmful)
            self.last_step = int(rows.step[-1])
        self._counted = nonfinite, skipped

    def _read_rows(self, rows: _Rows, harmful: bool) -> None:
        if self._is_plain(rows):
            losses = rows.loss[np.isfinite(rows.loss)].tolist()
            self._recent.extend(losses)
            self._longer.extend(losses)
            self.wild = self.streak = 0
            self._add_calm(losses, int(rows.step[-1]))
            if harmful:
                self._count("", len(rows.step), harmful=True)
            else:
                self.useful += len(rows.step) + self._pending
                self._pending = 0
            return
        for step, norm, threshold, verdict, loss in zip(*(column.tolist() for column in rows)):
            self._read_one(step, norm, threshold, verdict, loss, harmful)

    def _is_plain(self, rows: _Rows) -> bool:
        """Whether nothing stands out in any of them: the usual look, which must cost little."""
        if (
            self.above_since
            or int(rows.step[0]) - self._alarm < _SMOOTHED
            or (self.is_known and not self.band.is_known)
        ):
            return False
        known = rows.loss[~np.isnan(rows.loss)]
        if len(known) and not self.band.is_known:
            return False
        calm = np.all(rows.norm <= rows.threshold) and np.all(rows.verdict <= 1) and np.all(np.isfinite(rows.norm))
        if not calm or np.any(known > self.band.ends[0]):
            return False
        above = np.concatenate([np.array(self._longer), known]) > self.band.lasting_end
        counts = np.concatenate([[0], np.cumsum(above)])
        return bool(np.all(counts[RAISED_STEPS:] - counts[:-RAISED_STEPS] < RAISED_STEPS // 2))

    def _read_one(self, step: int, norm: float, threshold: float, verdict: int, loss: float, harmful: bool) -> None:
        finite = math.isfinite(norm)
        exploding = finite and norm > threshold
        if exploding or not finite:
            self._alarm = step
            if verdict == _PASS:
                self.let_through = step
        # a loss that is not finite gives no finite gradient: with one, it is only not known
        if self.is_known and (math.isinf(loss) or (math.isnan(loss) and not finite)):
            self.streak += 1
        elif math.isfinite(loss):
            self.streak = 0
            self._take_loss(step, loss, calm=finite and not exploding)
        reason = "nonfinite" if not finite else "skipped" if verdict in _DROPPED else ""
        self._count(reason, 1, harmful=harmful or self.is_harmful, waits=self._is_open_at(step))

    def _is_open_at(self, step: int) -> bool:
        return self.is_known and (self.above_since > 0 or step - self._alarm < _SMOOTHED)

    def _take_loss(self, step: int, loss: float, *, calm: bool) -> None:
        if not self.is_known:
            self.is_known, self.band.first = True, loss
        self._recent.append(loss)
        self._longer.append(loss)
        harmed_from, wild_from = self.band.ends
        self.wild = self.wild + 1 if loss > wild_from else 0
        if self.smoothed > harmed_from or self.is_raised:
            raised = 1 if self.smoothed > harmed_from else sum(x > self.band.lasting_end for x in self._longer)
            if not self.above_since:
                self.above_since = max(step - raised + 1, 1)
                self.band.forget_newest()
            self._newest.append(loss)
            if step - self.above_since >= SETTLED_STEPS and not self._is_rising():
                self.band.restart(loss)
                self.above_since = self.wild = 0
        else:
            self.above_since = 0
            if calm and loss <= harmed_from:
                self._add_calm([loss], step)
            else:
                self._newest.append(loss)

    def _add_calm(self, losses: list[float], step: int) -> None:
        if not losses:
            return
        self._losses += len(losses)
        self._newest.extend(losses)
        if len(self._first) < _COMPARED:
            self._first.extend(losses[: _COMPARED - len(self._first)])
        self.band.add(*losses, anchored=True)
        if self.band.usual < self._best[0]:
            self._best = self.band.usual, step, self._losses

    def _is_rising(self) -> bool:
        if len(self._newest) < 2 * _COMPARED:
            return True
        losses = np.array(self._newest)
        return _clearly_lower(losses[:_COMPARED], losses[_COMPARED:])

    # -- counting ---------------------------------------------------------------------------------------

    def _count(self, reason: str, steps: int, *, harmful: bool, waits: bool = False) -> None:
        if harmful:
            self.wasted["harmful"] += self._pending
            self._pending = 0
        if reason or harmful:
            self.wasted[reason or "harmful"] += steps
        elif waits:
            self._pending += steps
        else:
            self.useful += steps + self._pending
            self._pending = 0

    def _count_unseen(self, steps: int, nonfinite: int, skipped: int, harmful: bool) -> None:
        for reason, counted in (("nonfinite", nonfinite), ("skipped", skipped)):
            counted = min(max(counted, 0), steps)
            self.wasted[reason] += counted
            steps -= counted
        self._count("", steps, harmful=harmful or self.is_harmful, waits=self.above_since > 0)

    # -- answers ----------------------------------------------------------------------------------------

    @property
    def smoothed(self) -> float:
        """Median of the last 7 losses; NaN before there is any."""
        return sorted(self._recent)[len(self._recent) // 2] if self._recent else math.nan

    @property
    def is_raised(self) -> bool:
        """Whether the median of the last `RAISED_STEPS` losses, and of the newest, is above the band's nearer end."""
        losses, end = list(self._longer), self.band.lasting_end
        if len(losses) < RAISED_STEPS or not self.band.is_known:
            return False
        return all(sorted(part)[len(part) // 2] > end for part in (losses[-_NEWEST:], losses))

    @property
    def steps_above(self) -> int:
        """How long the loss has been above its band."""
        return self.last_step - self.above_since + 1 if self.above_since else 0

    @property
    def is_harmful(self) -> bool:
        """Whether the loss has been away for longer than a harmless anomaly takes."""
        return self.steps_above >= BACK_STEPS or self.wild >= WILD_STEPS

    def is_watching(self, step: int) -> bool:
        """Whether it is too early to say what an anomaly that began at this step did."""
        return self.last_step - max(step, self._alarm) < _SMOOTHED

    def no_progress(self) -> str:
        """Why the run gets nowhere, as a sentence; "" for one that does, or of which too little is known."""
        if not self.band.is_known or self.above_since:
            return ""
        usual, step, losses = self._best
        worse = self.band.usual > usual + max(6.0 * self.band.spread, 0.2 * abs(usual))
        if worse and self._losses - losses >= PROGRESS_STEPS:
            return f"The loss is about {self.band.usual:.4g}; it was {usual:.4g} at step {step} and never came back."
        young = self._resumed or self._losses < PROGRESS_STEPS or len(self._newest) < _COMPARED
        if young or _clearly_lower(np.array(self._newest)[-_COMPARED:], np.array(self._first)):
            return ""
        if usual < float(np.median(self._first)) - max(self.band.spread, 0.1 * abs(float(np.median(self._first)))):
            return ""  # it has learned, and lost it again: of that, the band speaks
        first, now = float(np.median(self._first)), float(np.median(np.array(self._newest)[-_COMPARED:]))
        return f"After {self._losses} losses the loss is about {now:.4g}, and it was {first:.4g} at first."


def _counted(snapshot: Snapshot | None) -> tuple[int, int]:
    """What the device has counted: (non-finite steps, finite ones that were skipped)."""
    if snapshot is None:
        return 0, 0
    return snapshot.nonfinite_steps, int(snapshot.skipped_by_reason.get("explosion", 0))


def _new_rows(history: Mapping[str, Any], after: int, until: int) -> _Rows:
    step = np.asarray(history["step"])
    chosen = (step > after) & (step <= until)

    def column(name: str, missing: float) -> np.ndarray:
        values = history.get(name)
        return np.full(int(chosen.sum()), missing) if values is None else np.asarray(values, np.float64)[chosen]

    return _Rows(
        step[chosen],
        column("norm", math.nan),
        column("threshold", math.inf),
        column("verdict", _PASS).astype(int),
        column("loss", math.nan),
    )


def _clearly_lower(low: np.ndarray, high: np.ndarray) -> bool:
    """Whether the median of one sample is below that of the other by more than their noise explains."""
    spreads = [1.4826 * float(np.median(np.abs(x - np.median(x)))) for x in (low, high)]
    error = 1.2533 * math.sqrt(sum(s * s / len(x) for s, x in zip(spreads, (low, high))))
    return bool(np.median(high) - np.median(low) > _CLEARLY * error)
