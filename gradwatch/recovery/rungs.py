"""The rungs of the ladder, each with its numbers: skip, lower, roll back, stop."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gradwatch.core import checks
from gradwatch.core.snapshot import RUNGS
from gradwatch.errors import ConfigError


@dataclass(frozen=True)
class skip:
    """Leave bad batches to the guard, which zeroes or skips their updates, up to a bound.

    The guard acts within the step: `on_nonfinite` and `on_explosion` of the monitor say how. This rung counts what it
    dropped. More than `most` drops in `window` steps are no bad batch any more, and the next rung answers.

    State: the numbers of the dropped steps of the last `window` steps.

    Args:
      most: dropped updates, >= 1.
      window: steps, >= 2.

    Raises:
      ConfigError: an argument is out of range.

    Source: MindSpore Transformers skips above a norm that is set by hand, and bounds how often.
    """

    most: int = 10
    window: int = 100

    def __post_init__(self) -> None:
        _store(self, most=checks.count("most", self.most), window=checks.window("window", self.window))


@dataclass(frozen=True)
class lower:
    """Limit the learning rate to a part of the rate that was too high, and raise the limit slowly.

    limit(t) = R * min(s * factor^(-max(t - hold_steps, 0) / return_steps), ceiling), t steps after it was lowered to s,
    R the rate that was too high. The optimizer sees min(rate, limit), so a rate that falls below the limit by itself is
    not touched. There is no ceiling at first. Where trouble comes again within 3,000 steps at a rate that the limit
    held down, the ceiling becomes `factor` times the scale at which it came, and stays. Where it comes at a rate below
    the limit, that rate is the new R, and everything starts anew. A rate that is not known is multiplied by
    min(limit / R, 1) instead.

    s is the scale so far times `factor`. Where an update moves the weights by more than a tenth of their norm, the
    factor is 0.01 / (that share) if that is smaller. The share is measured every 50 steps; under Adam and its kin it is
    also known from how far weights have grown that were thrown away.

    A rate that is held by a policy such as `auto` is known better: it is limited to half of the share of the gradients'
    norm that clipping left, and the limit stays.

    The optimizer sees the lowered rate within its update only: `optimizer.learning_rate` and a schedule stay as they
    are.

    State: R, scale, ceiling, and the step at which the rate was lowered last.

    Args:
      factor: in (0, 1).
      hold_steps: steps at the lowered rate, >= 1.
      return_steps: steps of the way back for each `factor`, >= 1.
      least: the scale below which the rate is not lowered, in (0, 1).

    Raises:
      ConfigError: an argument is out of range.
    """

    factor: float = 0.1
    hold_steps: int = 100
    return_steps: int = 400
    least: float = 1e-6

    def __post_init__(self) -> None:
        _store(
            self,
            factor=checks.number("factor", self.factor, above=0, below=1, hint="0.1 is a tenth of the rate"),
            hold_steps=checks.count("hold_steps", self.hold_steps),
            return_steps=checks.count("return_steps", self.return_steps),
            least=checks.number("least", self.least, above=0, below=1),
        )


@dataclass(frozen=True)
class rollback:
    """Go back to the newest snapshot that was healthy; the data since then is passed over.

    A snapshot holds the weights, the optimizer's slots and iterations, non-trainable variables and the monitor's
    statistics. It is taken every `every` healthy steps, and counts as healthy once the run has stayed calm for
    `calm_steps` steps after it. Two are kept. The weights from before the first step count as healthy.

    State: the two snapshots, and the steps of the rollbacks of the last `window` steps.

    Args:
      every: steps from one snapshot to the next, >= 1.
      calm_steps: steps, >= 1.
      most: rollbacks in `window` steps; what comes then is answered by the next rung.
      window: steps, >= 2.
      directory: a folder: snapshots are written there with `tf.train.Checkpoint` instead of being held in the host's
        memory, and `gradwatch.recovery.latest_healthy` finds them after a restart.
      keep: what is to go back beside what is found by itself: a Keras model, an optimizer, a `tf.Module`, variables, a
        list of such, or a dict of names to such. With `directory`, the names are those in the checkpoint.

    Raises:
      ConfigError: an argument is out of range.

    Source: PaLM (arXiv 2204.02311, section 5.1): rewind by about 100 steps and pass over 200 to 500 batches, by hand.
    """

    every: int = 50
    calm_steps: int = 25
    most: int = 6
    window: int = 1000
    directory: str | os.PathLike[str] | None = None
    keep: Any = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        _store(
            self,
            every=checks.count("every", self.every),
            calm_steps=checks.count("calm_steps", self.calm_steps),
            most=checks.count("most", self.most),
            window=checks.window("window", self.window),
        )
        directory = self.directory
        if directory is not None and (not isinstance(directory, (str, os.PathLike)) or not os.fspath(directory)):
            raise ConfigError(f"directory must be a folder for the snapshots, such as 'snapshots', got {directory!r}")

    @property
    def named(self) -> Mapping[str, Any]:
        """`keep` with a name for each."""
        if self.keep is None:
            return {}
        if isinstance(self.keep, Mapping):
            return {str(name): thing for name, thing in self.keep.items()}
        things = self.keep if isinstance(self.keep, (list, tuple)) else [self.keep]
        return {"kept" if len(things) == 1 else f"kept_{i}": thing for i, thing in enumerate(things)}


@dataclass(frozen=True)
class stop:
    """End a run that cannot be saved, with the verdict.

    A watched step raises `gradwatch.errors.TrainingStopped`; `model.fit` ends through `model.stop_training`, and
    `monitor.stopped` holds the same error. Before that the record and the alerts are written, and with
    `rollback(directory=...)` the last state too.

    State: none.

    Args:
      steps: how many steps in a row without a finite gradient are no bad data any more, once going back did not help.
      exit_code: of the process, where nobody catches the error. 78 is "configuration error" in sysexits.h: starting
        the same job again will not help.

    Raises:
      ConfigError: an argument is out of range.
    """

    steps: int = 100
    exit_code: int = 78

    def __post_init__(self) -> None:
        _store(
            self,
            steps=checks.count("steps", self.steps),
            exit_code=checks.count("exit_code", self.exit_code, most=255),
        )


Rung = skip | lower | rollback | stop


@dataclass(frozen=True)
class Ladder:
    """What `ladder` makes: the rungs that there are, and how often they are asked.

    Attributes:
      skip, lower, rollback, stop: the rung, or None for one that is left out.
      look_every: steps between two looks at the run.
      patience: steps after which a loss that has not come back is lost.
    """

    skip: skip | None
    lower: lower | None
    rollback: rollback | None
    stop: stop | None
    look_every: int = 10
    patience: int = 50


def ladder(*rungs: Rung, look_every: int = 10, patience: int = 50) -> Ladder:
    """What to do with a run that explodes beyond clipping: skip, lower the rate, roll back, stop.

    Args:
      *rungs: `skip()`, `lower()`, `rollback()`, `stop()`, each at most once, in any order; none means all four.
      look_every: steps between two looks, from 1 to 500. The answer comes at most so many steps late, and as many again
        on an accelerator, for which no step waits.
      patience: steps that a loss may stay away from where it was before it counts as lost, >= 10.

    Returns:
      The ladder, for `recover=` of `gradwatch.watch`, `gradwatch.Monitor` and `gradwatch.KerasCallback`.

    Raises:
      ConfigError: an argument is no rung, or out of range.

    Example:
      >>> from gradwatch import recovery
      >>> recovery.ladder(recovery.rollback(every=200), recovery.stop()).lower is None
      True
    """
    given = rungs or (skip(), lower(), rollback(), stop())
    by_name: dict[str, Any] = dict.fromkeys(RUNGS)
    for rung in given:
        name = type(rung).__name__
        if not isinstance(rung, (skip, lower, rollback, stop)):
            raise ConfigError(f"ladder takes rungs, such as gradwatch.recovery.rollback(), got {rung!r}")
        if by_name[name] is not None:
            raise ConfigError(f"ladder takes each rung once, got {name} twice; leave one of them out")
        by_name[name] = rung
    return Ladder(
        **by_name,
        look_every=checks.count("look_every", look_every, most=500),
        patience=checks.count("patience", patience, least=10),
    )


def ladder_of(recover: Any) -> Ladder | None:
    """`recover=` as a ladder: a ladder, one rung, a list of rungs, or None for none.

    Raises:
      ConfigError: it is none of these.
    """
    if recover is None or isinstance(recover, Ladder):
        return recover
    if isinstance(recover, (list, tuple)) and recover:
        return ladder(*recover)
    if isinstance(recover, (skip, lower, rollback, stop)):
        return ladder(recover)
    raise ConfigError(
        f"recover must be a ladder or one of its rungs, got {recover!r}; gradwatch.recovery.ladder() has all of them, "
        "and None recovers nothing"
    )


def _store(rung: Any, **values: Any) -> None:
    for name, value in values.items():
        object.__setattr__(rung, name, value)
