"""What an anomaly did to the training: harmless, harmful or fatal. Severities of alerts are made of it, here alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gradwatch.core.snapshot import KINDS, Snapshot
from gradwatch.reading.losses import (
    BACK_STEPS,
    LOST_SECONDS,
    LOST_STEPS,
    REASONS,
    SCALING_STREAK_STEPS,
    STREAK_STEPS,
    LossWatch,
)

#: Kinds of what is seen at the loss alone, the most severe first.
LOSS_KINDS = ("loss_nonfinite", "loss_rising", "no_progress")

#: From calm to lost.
GRADES = ("harmless", "harmful", "fatal")

#: Of an alert, from "worth knowing" to "act now"; one for each grade: dashboard only, a ticket, a page.
SEVERITIES = ("info", "warning", "critical")


@dataclass(frozen=True)
class Episode:
    """One that is open: under way, or its harm is not over, or not yet known.

    Attributes:
      grade: one of `GRADES`, as far as it is known now.
      step: at which it began.
      text: what the loss says of it, a sentence.
    """

    grade: str
    step: int
    text: str = ""

    @property
    def severity(self) -> str:
        """One of `SEVERITIES`."""
        return SEVERITIES[GRADES.index(self.grade)]


@dataclass(frozen=True)
class Harm:
    """What is known of one monitor's harm at one instant.

    Attributes:
      episodes: kind -> its open episode; kinds of `KINDS` and `LOSS_KINDS`.
      begun: kind of `LOSS_KINDS` -> episodes so far, in this process.
      newest: kind -> its newest episode, open or not.
      loss_is_known: whether the training tells its loss.
      loss: median of its last 7 values; NaN where it is not known.
      useful_steps: steps that moved the weights and did no harm, since this process began to watch.
      wasted_steps: reason -> steps that did not; one of `gradwatch.reading.losses.REASONS`.
    """

    episodes: Mapping[str, Episode] = field(default_factory=dict)
    begun: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(LOSS_KINDS, 0))
    newest: Mapping[str, Episode] = field(default_factory=dict)
    loss_is_known: bool = False
    loss: float = math.nan
    useful_steps: int = 0
    wasted_steps: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(REASONS, 0))

    def severity(self, kind: str) -> str:
        """Of the open episode of a kind; "" where none is open."""
        episode = self.episodes.get(kind)
        return "" if episode is None else episode.severity


class HarmWatch:
    """Grades the episodes of one monitor, look after look.

    With the loss known, harm is what the loss shows: above its band for `BACK_STEPS` steps, or far above it for
    `WILD_STEPS`; `LossWatch.above_since` says what above is. Without it, harm is what the gradients leave to fear;
    docs/notifications.md has the table.
    """

    def __init__(self) -> None:
        self._losses = LossWatch()
        self._seen = dict.fromkeys(KINDS, 0)
        self._above_time = 0.0
        self._lasts_long = False
        self._harm = Harm()

    def rebase(self, snapshot: Snapshot) -> None:
        """The run was set back, or restored: what was before is not judged, what was counted stays."""
        old = self._losses
        self._losses = LossWatch(snapshot)
        self._losses.useful, self._losses.wasted = old.useful, old.wasted
        self._seen, self._above_time, self._lasts_long = dict(snapshot.anomalies), 0.0, False
        self._harm = Harm(begun=self._harm.begun, useful_steps=old.useful, wasted_steps=dict(old.wasted))

    @property
    def harm(self) -> Harm:
        """As of the last look."""
        return self._harm

    def look(self, snapshot: Snapshot, history: Mapping[str, Any], since: Mapping[str, float]) -> Harm:
        """What is known after this look.

        Args:
          snapshot, history: of the monitor; the history may be newer.
          since: kind of `KINDS` -> when its newest episode was first seen, Unix seconds.
        """
        before, losses = self._harm, self._losses
        # without a loss, the gradients are all there is to go by
        feared = not losses.is_known and any(e.grade != "harmless" for e in before.episodes.values())
        wasted = "saturated" in before.episodes and before.episodes["saturated"].grade != "harmless"
        losses.read(snapshot, history, harmful=feared or wasted)
        self._above_time = (self._above_time or snapshot.time) if losses.above_since else 0.0
        self._lasts_long = bool(losses.above_since) and snapshot.time - self._above_time >= LOST_SECONDS
        found = {}
        for kind in KINDS:
            episode = self._gradients(kind, snapshot, since.get(kind, 0.0))
            if episode is not None:
                found[kind] = episode
        newest = {**before.newest, **found}
        open_ = {kind: e for kind, e in found.items() if self._is_open(kind, e, snapshot)}
        begun = dict(before.begun)
        for kind, episode in self._of_loss(snapshot, open_):
            if kind not in before.episodes:
                begun[kind] += 1
            newest[kind] = open_[kind] = episode
        self._seen = dict(snapshot.anomalies)
        self._harm = Harm(
            episodes=open_,
            begun=begun,
            newest=newest,
            loss_is_known=losses.is_known,
            loss=losses.smoothed,
            useful_steps=losses.useful,
            wasted_steps=dict(losses.wasted),
        )
        return self._harm

    # -- episodes of the gradients ------------------------------------------------------------------------

    def _gradients(self, kind: str, snapshot: Snapshot, seen_at: float) -> Episode | None:
        """The episode of this kind that is under way or not over, or that came and went since the last look."""
        active = snapshot.active.get(kind, False)
        began = snapshot.anomalies.get(kind, 0) > self._seen.get(kind, 0)
        if not (active or began or kind in self._harm.episodes):
            return None
        event = snapshot.last_events.get(kind)
        step = event.step if event else snapshot.steps
        lasted = snapshot.steps - step + 1 if active else 0
        lost = active and seen_at > 0 and snapshot.time - seen_at >= LOST_SECONDS
        if kind == "nonfinite":
            limit = STREAK_STEPS if snapshot.loss_scale is None else SCALING_STREAK_STEPS
            # a loss that is not finite either is an episode of its own, and one is enough
            if snapshot.nonfinite_streak >= limit and self._losses.streak < limit:
                return Episode("fatal", step)
        if self._losses.is_known:
            return self._by_loss(kind, step, lasted, lost=lost, active=active)
        return Episode(self._by_gradients(kind, step, lasted, lost=lost), step, _NOT_KNOWN.get(kind, ""))

    def _by_loss(self, kind: str, step: int, lasted: int, *, lost: bool, active: bool) -> Episode:
        losses = self._losses
        if self._is_blamed(step, active):
            grade = "fatal" if self._has_no_way_back() else "harmful" if losses.is_harmful else "harmless"
            return Episode(grade, step, self._above_text())
        if kind in ("saturated", "vanishing") and active and not losses.band.has_learned:
            text = f"The loss is {losses.smoothed:.4g}, and it was {losses.band.first:.4g} at first."
            if kind == "vanishing":
                return Episode("harmful", step, text)
            if lasted >= BACK_STEPS:
                return Episode("fatal" if lost and lasted >= LOST_STEPS else "harmful", step, text)
        if losses.is_watching(step):
            return Episode("harmless", step, "What it does to the loss is not known yet.")
        usual = f", usually {losses.band.usual:.4g}" if losses.band.is_known else ""
        return Episode("harmless", step, f"The loss is no worse: {losses.smoothed:.4g}{usual}.")

    def _by_gradients(self, kind: str, step: int, lasted: int, *, lost: bool) -> str:
        if kind in ("explosion", "saturated") and lost:
            return "fatal"
        if kind in ("saturated", "trend", "vanishing"):
            return "harmful"
        reached = self._losses.let_through >= step
        return "harmful" if reached or lasted >= BACK_STEPS else "harmless"

    def _is_blamed(self, step: int, active: bool) -> bool:
        """Whether the loss left its band with this episode."""
        above = self._losses.above_since
        return above > 0 and (active or step >= above - BACK_STEPS)

    def _is_open(self, kind: str, episode: Episode, snapshot: Snapshot) -> bool:
        if snapshot.active.get(kind, False):
            return True
        if not self._losses.is_known or kind == "vanishing":
            return False
        return self._is_blamed(episode.step, False) or self._losses.is_watching(episode.step)

    # -- episodes of the loss -----------------------------------------------------------------------------

    def _of_loss(self, snapshot: Snapshot, open_: Mapping[str, Episode]) -> list[tuple[str, Episode]]:
        losses, found = self._losses, []
        limit = STREAK_STEPS if snapshot.loss_scale is None else SCALING_STREAK_STEPS
        if losses.streak >= limit:
            step = losses.last_step - losses.streak + 1
            found.append(("loss_nonfinite", Episode("fatal", step, f"No finite loss for {losses.streak} steps.")))
        blamed = any(self._is_blamed(e.step, snapshot.active.get(kind, False)) for kind, e in open_.items())
        if losses.is_harmful and not blamed:
            grade = "fatal" if losses.wild and self._has_no_way_back() else "harmful"
            found.append(("loss_rising", Episode(grade, losses.above_since, self._above_text())))
        reason = losses.no_progress()
        if reason:
            before = self._harm.episodes.get("no_progress")
            step = losses.last_step if before is None else before.step
            found.append(("no_progress", Episode("harmful", step, reason)))
        return found

    def _has_no_way_back(self) -> bool:
        return self._losses.steps_above >= LOST_STEPS and self._lasts_long

    def _above_text(self) -> str:
        losses = self._losses
        usual = f"; usual is {losses.band.usual:.4g}" if losses.band.is_known else ""
        end = losses.band.lasting_end if losses.is_raised else losses.band.ends[0]
        return (
            f"The loss has been above {end:.4g} for {losses.steps_above} steps and is {losses.smoothed:.4g} now{usual}."
        )


_NOT_KNOWN = dict.fromkeys(
    ("explosion", "trend", "saturated", "nonfinite"),
    "The loss is not known, so what this did to the training is not known either.",
)
