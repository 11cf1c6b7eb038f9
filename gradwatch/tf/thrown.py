"""Weights that were thrown far away: by a rate that is too high, or by damage to one of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from gradwatch.recovery.generations import Generation
from gradwatch.recovery.set_rate import SetRate
from gradwatch.recovery.signs import Signs, Trouble
from gradwatch.tf import distribution, rates, updates
from gradwatch.tf.training_state import TrainingState

_FAR = 3.0  # times their norm, while the loss was wild
_ONE = 0.5  # of the squares of all weights, in a single one: no rate does that
_MARGIN = 10.0  # times what the rate can move every weight by, each step: neither does it that, where steps are bounded
_BEFORE = 10  # steps before the first wild loss


class Thrown(NamedTuple):
    """What became of the weights.

    Attributes:
      trouble: for the ladder.
      speed: by which share of their norm they grew in a step, as the rate says; None where no rate does.
      damaged: no rate did it: one weight is larger than all others together, or they went further than steps go.
    """

    trouble: Trouble
    speed: float | None
    damaged: bool


def thrown(
    signs: Signs, state: TrainingState, target: Generation | None, optimizers: Sequence[Any], rate: SetRate
) -> Thrown | None:
    """Whether the loss was wild, whatever it is now, and the weights are far beyond those of the snapshot.

    A run whose first steps throw its weights away may look well soon after: dead units leave the loss of a guess.
    It costs nothing while no loss is wild.

    Args:
      signs: its `wild_since` is set back to 0 where the weights are where they were.
      target: the newest healthy snapshot.
      optimizers: of the training. Where twice the gradient moves the weights twice as far they grow by a power of the
        rate, and their growth does not say how much too high it is. The steps of all others are as long as the rate.
      rate: those that were set lately.
    """
    since = signs.wild_since
    if not since:
        return None
    then = 0.0 if target is None else float(target.facts.get("weight_norm") or 0.0)
    grown = state.weight_norm() / then if then > 0.0 else 0.0
    is_far = grown >= _FAR
    # a worker whose disk did not take a snapshot compares with another one
    if not distribution.same_on_all(float(is_far), state.strategy) or not is_far:
        signs.wild_since = 0
        return None
    lasted = signs.last_step - since + 1
    text = f"the loss was far above everything before, and the weights have grown to {grown:.3g} times their norm"
    linear = not optimizers or any(rates.row([*updates.chain(one)][-1]).kind == rates.LINEAR for one in optimizers)
    possible = _MARGIN * rate.highest * math.sqrt(state.number_of_weights()) * (lasted + _BEFORE)
    damaged = state.largest_share() > _ONE or (not linear and (grown - 1.0) * then > possible)
    # the update that led to the first wild loss came before it
    speed = None if damaged or linear else (grown - 1.0) / (lasted + 1)
    return Thrown(Trouble("lost", since, lasted, text, sudden=not signs.on_trial), speed, damaged)
