"""What became of a run after trouble, as far as its loss and its gradients tell."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gradwatch.diagnosis.case import number_text
from gradwatch.diagnosis.observation import nonfinite_end
from gradwatch.diagnosis.signs import Signs

#: "": no trouble, or nothing is known of it. "survived": the loss stayed where it was. "healed": it left, and is back.
#: "harmed": it is above what it was before. "lost": it is no better than at the start, or no longer finite.
WORDS = ("", "survived", "healed", "harmed", "lost")

#: Steps in a row without a finite gradient that are no single bad batch; of a loss scale that looks for its value,
#: more: from 2^15 down to 1 it halves at each of them.
STREAK, SCALING_STREAK = 10, 40

_BASELINE, _LEAST = 32, 6  # steps before the trouble that say what was usual
_SMOOTHED = 7  # losses whose median is compared
_AWAY = 10  # of these medians in a row are harm
_MOST = 10_000  # losses after the trouble that are looked at for harm
_AFTER = 50  # steps after which a loss that is not back counts as lost


class Outcome(NamedTuple):
    """Attributes:
    word: one of `WORDS`.
    since: the step since which nothing finite came, of a run lost that way; else the step at which the trouble began,
      None without trouble.
    nonfinite: whether the run ends without a finite loss, or gradient where no loss is known.
    advice: what it asks for beside the advice of the cause; "" for nothing.
    """

    word: str = ""
    since: int | None = None
    nonfinite: bool = False
    advice: str = ""


def outcome(signs: Signs, first_step: int | None) -> Outcome:
    """What became of the run.

    Args:
      first_step: at which the verdict says that the trouble began; None for a healthy run.
    """
    if not len(signs):
        return Outcome()
    streak, scaled = nonfinite_end(signs.run["norm"], signs.run["loss"]), np.isfinite(signs.run["loss_scale"]).any()
    if streak >= (SCALING_STREAK if scaled else STREAK):
        since = signs.number(len(signs) - streak)
        if signs.run.nonfinite_since is not None:
            since = signs.run.nonfinite_since
        what = "loss" if signs.finite_loss.any() else "gradient"
        before = since if first_step is None else min(first_step, since)
        text = f"Restore a checkpoint from before step {before}: no finite {what} came back since step {since}."
        return Outcome("lost", since, True, text if before > 1 else "")
    first = _first_trouble(signs, first_step)
    return Outcome() if first is None else _by_loss(signs, first)


def _first_trouble(signs: Signs, first_step: int | None) -> int | None:
    """Index of the step at which trouble began; None: there was none."""
    steps = [event.step for event in signs.run.events if event.kind != "vanishing"]
    found = [int(np.searchsorted(signs.run.step, step)) for step in (*steps, *([first_step] if first_step else []))]
    found += signs.broken[:1].tolist()
    return min((i for i in found if i < len(signs)), default=None)


def _by_loss(signs: Signs, first: int) -> Outcome:
    loss, known = signs.run["loss"], signs.finite_loss
    before, after = loss[:first][known[:first]], loss[first:][known[first:]]
    if len(before) < _LEAST or len(after) < _SMOOTHED:
        return Outcome()
    since = signs.number(first)
    usual = before[-_BASELINE:]
    middle = float(np.median(usual))
    spread = 1.4826 * float(np.median(np.abs(usual - middle)))
    limit = middle + max(6.0 * spread, 0.2 * abs(middle))
    medians = np.median(np.lib.stride_tricks.sliding_window_view(after[:_MOST], _SMOOTHED), axis=1)
    end = float(np.median(after[-min(_BASELINE, max(len(after) // 4, _SMOOTHED)) :]))
    if end > limit:
        if len(after) < _AFTER:
            return Outcome()
        if end < float(np.median(before[:_LEAST])):
            return Outcome("harmed", since)
        back = f"the loss is {number_text(end)}, and it was {number_text(middle)}"
        return Outcome("lost", since, False, f"Restore a checkpoint from before step {since}: {back}.")
    gone = int(np.max(np.diff(np.flatnonzero(np.append(np.append(True, known[first:]), True)))) - 1)
    away = int(np.sum(medians > limit))
    return Outcome("healed" if away >= _AWAY or gone >= STREAK else "survived", since)
