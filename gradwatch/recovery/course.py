"""Which rung answers which trouble, and the state of the ladder: one table and pure functions of steps."""

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple

from gradwatch.recovery.rungs import Ladder, lower
from gradwatch.recovery.signs import Trouble

SKIP, LOWER, ROLLBACK, STOP = "skip", "lower", "rollback", "stop"
_BACK_AND_LOWER = (ROLLBACK, LOWER)

#: Cause -> what is done the first time, the second time, ...; the last entry stays. Trouble that comes again within
#: `SAME_STEPS` of the last answer is the same trouble. A rung that the ladder does not have is left out, and an answer
#: of which nothing is left is passed over.
ANSWERS: dict[str, tuple[tuple[str, ...], ...]] = {
    "dropping": ((LOWER,), ()),
    "held": ((LOWER,),),
    "saturated": ((LOWER,), (LOWER,), _BACK_AND_LOWER, _BACK_AND_LOWER, (STOP,)),
    "exploding": ((LOWER,), _BACK_AND_LOWER, _BACK_AND_LOWER, (STOP,)),
    "lost": (_BACK_AND_LOWER,) * 6 + ((STOP,),),
    "nonfinite": ((ROLLBACK,), *(_BACK_AND_LOWER,) * 3, (STOP,)),
    "poisoned": ((ROLLBACK,), (ROLLBACK,), (STOP,)),
}

#: In place of the table's row, where the diagnosis has a reason. A bad batch or a broken input is none to lower the
#: rate, nor to go back again and again; a rate that is too high is one to lower it at once. No rate makes a single
#: weight larger than all others together: that is damage.
REASONS: dict[tuple[str, str], tuple[tuple[str, ...], ...]] = {
    ("lost", "data"): ((ROLLBACK,), *(_BACK_AND_LOWER,) * 4, (STOP,)),
    ("lost", "damage"): ((ROLLBACK,), *(_BACK_AND_LOWER,) * 5, (STOP,)),
    ("nonfinite", "data"): ((ROLLBACK,), _BACK_AND_LOWER, (STOP,)),
    ("nonfinite", "rate"): (*(_BACK_AND_LOWER,) * 4, (STOP,)),
    ("saturated", "data"): ((), _BACK_AND_LOWER, (STOP,)),
}

#: Steps after an answer in which trouble is the same trouble.
SAME_STEPS = 500
#: Steps after which a rate that was lowered is no longer remembered.
REMEMBERED_STEPS = 3000

#: Steps without trouble after which a rate that is still lowered is worth a word.
LONG_STEPS = 1000

#: Steps without a finite gradient after which the run goes back though nothing is seen at its weights.
UNHURT_STEPS = 30

_LARGEST_LOG = 80.0  # float32 ends at e^88

_MEASURED = 0.5  # of a rate at which half of the gradients would be clipped

_LARGE_RATIO, _GOOD_RATIO = 0.1, 0.01  # shares of the weights' norm that an update moves


class Answer(NamedTuple):
    """What to do now.

    Attributes:
      rungs: names, in the order in which they are to be done.
      trouble: what it answers.
      scale: of the learning rate, from now on.
      older: go back to the older of two healthy snapshots: the newer one led into the same trouble.
    """

    rungs: tuple[str, ...]
    trouble: Trouble
    scale: float
    older: bool = False


class Rate:
    """The scale of the learning rate over the steps; see `lower`."""

    def __init__(self, rung: lower) -> None:
        self._rung = rung
        self.ceiling: float = math.inf
        self._scale: float = 1.0  # at `_since`
        self._since: int | None = None  # the step at which it was lowered last
        self._is_measured = False  # the clipping said how much too high it was

    def at(self, step: int) -> float:
        """The scale at this step, in [least, 1]."""
        return min(self.unbounded(step), 1.0)

    def unbounded(self, step: int) -> float:
        """The limit at this step over the rate that was too high: beyond 1 once the way back is over."""
        if self._since is None:
            return math.inf
        way = max(step - self._since - self._rung.hold_steps, 0) / self._rung.return_steps
        # by logarithms: the power would overflow after some thousand steps
        log = math.log(self._scale) - way * math.log(self._rung.factor)
        return self.ceiling if log >= min(math.log(self.ceiling), _LARGEST_LOG) else math.exp(log)

    @property
    def is_least(self) -> bool:
        """Whether it cannot be lowered any more."""
        return self._since is not None and self._scale <= self._rung.least

    def is_on_trial(self, step: int) -> bool:
        """Whether it was lowered not long ago, and by a guess, so that new trouble is likely to be the rate's."""
        return self._since is not None and not self._is_measured and step - self._since < REMEMBERED_STEPS

    def lower_to_what_was_kept(self, step: int, kept: float, *, anew: bool = False) -> float:
        """Lower it at this step, for good, to half of what clipping held it to; the new scale.

        Args:
          kept: median share of the gradients' norm that clipping left.
          anew: see `lower`.
        """
        now = 1.0 if anew else self.at(step)
        self.ceiling = self._scale = max(now * kept * _MEASURED, self._rung.least)
        self._since, self._is_measured = step, True
        return self._scale

    def lower(self, step: int, update_ratio: float | None, *, anew: bool = False) -> float:
        """Lower it at this step; the new scale.

        Args:
          update_ratio: the newest share of their norm by which an update moved the weights; None where not known.
          anew: the trouble came at a rate that no limit touched: what was found at another rate says nothing of it.
        """
        if anew:
            self.ceiling, self._since = math.inf, None
        now, factor = self.at(step), self._rung.factor
        if update_ratio is not None and math.isfinite(update_ratio) and update_ratio > _LARGE_RATIO:
            factor = min(factor, _GOOD_RATIO / update_ratio)
        if self.is_on_trial(step):
            # it came again on the way back, or soon after: it must not go so far again
            self.ceiling = max(min(self.ceiling, now * self._rung.factor), self._rung.least)
        self._scale = min(max(now * factor, self._rung.least), self.ceiling)
        self._since, self._is_measured = step, False
        return self._scale


class Course:
    """The state of a ladder in one run.

    Args:
      ladder: the rungs.

    Attributes:
      rate: the scale of the learning rate; None without the rung `lower`.
      answers: to the present trouble so far.
    """

    def __init__(self, ladder: Ladder) -> None:
        self._ladder = ladder
        self.rate: Rate | None = None if ladder.lower is None else Rate(ladder.lower)
        self.answers: int = 0
        self._answered_at: int | None = None
        self._rollbacks: deque[int] = deque()
        self._broken_since: int | None = None  # the first of the returns in a row after which nothing was well
        self._quiet_until = 0  # a lower rate needs some steps to show

    def scale(self, step: int) -> float:
        """Of the learning rate at this step."""
        return 1.0 if self.rate is None else self.rate.at(step)

    def share(self, step: int) -> float:
        """Of the rate that was too high, what is allowed at this step: 1 and more once the way back is over."""
        return math.inf if self.rate is None else self.rate.unbounded(step)

    @property
    def answered_at(self) -> int:
        """The step of the last answer, 0 before it."""
        return self._answered_at or 0

    def is_on_trial(self, step: int) -> bool:
        """See `Rate.is_on_trial`."""
        return self.rate is not None and self.rate.is_on_trial(step)

    def answer(
        self,
        step: int,
        trouble: Trouble,
        *,
        reason: str | None = None,
        update_ratio: float | None = None,
        broken: bool = False,
        hurt: bool = True,
        anew: bool = False,
    ) -> Answer | None:
        """What to do about a trouble that was seen at this step; None for nothing (more) for now.

        Args:
          step: now.
          reason: "rate" or "data", as far as the diagnosis is sure of it, or "damage" of a single weight.
          update_ratio: see `Rate.lower`.
          broken: healthy weights gave no finite gradient, or no loss that is not wild, from the first step on: what is
            broken is the data, or an operation.
          hurt: whether the weights show that something happened to them. Where they do not, no finite gradient is
            mostly a matter of the data, and no update is made meanwhile: going back would lose good steps.
          anew: see `Rate.lower`.
        """
        if self._answered_at is not None and step - self._answered_at > SAME_STEPS:
            self.answers = 0
        if broken:
            return self._when_broken(step, trouble)
        self._broken_since = None
        if step < self._quiet_until or (not hurt and trouble.lasted < UNHURT_STEPS):
            return None
        rows = REASONS.get((trouble.cause, reason or ""), ANSWERS[trouble.cause])
        while self.answers < len(rows):
            wanted = rows[self.answers]
            self.answers += 1
            rungs = self._possible(step, wanted)
            if rungs or not wanted:
                return self._take(step, trouble, rungs, update_ratio, anew=anew)
        # the end of the row: what is left is to stop, where that is wanted at all
        if STOP in rows[-1] and self._ladder.stop is not None:
            return self._take(step, trouble, (STOP,), update_ratio)
        return None

    def again(self, step: int, trouble: Trouble) -> Answer:
        """Go back once more, as part of the last answer: the state that it went to was hurt already."""
        self._answered_at = step
        return Answer((ROLLBACK,), trouble, self.scale(step))

    def _when_broken(self, step: int, trouble: Trouble) -> Answer | None:
        """A stretch of bad data ends by itself; what does not end is stopped.

        Without a finite gradient no update is made meanwhile. With one, what the bad data did is taken back at each
        look, which counts for none of the returns that the rung allows: they are one.
        """
        if self._broken_since is None:
            self._broken_since = step - trouble.lasted
        stop = self._ladder.stop
        if stop is not None and step - self._broken_since >= stop.steps:
            return self._take(step, trouble, (STOP,), None)
        if trouble.cause == "nonfinite" or self._ladder.rollback is None:
            return None
        return self.again(step, trouble)

    def _possible(self, step: int, wanted: tuple[str, ...]) -> tuple[str, ...]:
        ladder = self._ladder
        rungs = [rung for rung in wanted if getattr(ladder, rung) is not None]
        if ROLLBACK in rungs and ladder.rollback is not None:
            while self._rollbacks and self._rollbacks[0] <= step - ladder.rollback.window:
                self._rollbacks.popleft()
            if len(self._rollbacks) >= ladder.rollback.most:
                return (STOP,) if ladder.stop is not None else ()
        if LOWER in rungs and self.rate is not None and self.rate.is_least:
            rungs.remove(LOWER)
        return tuple(rungs)

    def _take(
        self,
        step: int,
        trouble: Trouble,
        rungs: tuple[str, ...],
        update_ratio: float | None,
        *,
        anew: bool = False,
    ) -> Answer | None:
        self._answered_at = step
        if not rungs:
            return None
        older = ROLLBACK in rungs and bool(self._rollbacks) and step - self._rollbacks[-1] <= 2 * self._ladder.patience
        if LOWER in rungs and self.rate is not None:
            if trouble.kept is not None:
                self.rate.lower_to_what_was_kept(step, trouble.kept, anew=anew)
            else:
                self.rate.lower(step, update_ratio, anew=anew)
        if ROLLBACK in rungs:
            self._rollbacks.append(step)
        else:
            self._quiet_until = step + self._ladder.patience
        return Answer(rungs, trouble, self.scale(step), older)
