"""What is known of a run, in one form, whether it comes from a monitor or out of a record."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from gradwatch.core.snapshot import VERDICTS, Event
from gradwatch.core.xp import HUGE
from gradwatch.errors import ConfigError

#: Columns of a step, NaN where a run does not know them.
COLUMNS = (
    *("norm", "applied_norm", "clip_norm", "threshold", "score", "reach", "update_ratio", "loss"),
    *("learning_rate", "loss_scale", "input_rms", "target_rms", "replica_ratio", "replica"),
)

_STREAK = 10  # steps in a row without a finite gradient that are no bad batch

_USUAL = 64  # steps that say where the loss was
_APART = 512  # steps without an event after which a new one may be new trouble

#: A rate that grows by this factor in one step, from the largest one before, has jumped.
JUMP = 2.5

#: Steps that a verdict looks at.
MOST = 4096


@dataclass(frozen=True)
class Observation:
    """One run as `causes` see it.

    Attributes:
      step: numbers of the steps, increasing, int64, shape [n].
      columns: name of `COLUMNS` -> float64, shape [n]; and "verdict", int8: the index into `VERDICTS`.
      events: where anomalies began, in the order of the steps.
      layers: variable path -> step, norm, weight_norm, update_ratio at each look, oldest first, NaN where not known.
      usual: variable path -> usual norm of its gradient.
      facts: what is known of the run: optimizer, optimizer_settings, variables (path -> shape), precision, replicas.
      began: the step at which trouble began that the first of these steps was already in; None where all is seen.
      nonfinite_since: the step since which each gradient held a NaN or Inf, where none of the window's is finite.
      first_loss: of the run's first steps, see `first_loss`; NaN where it is not known.
    """

    step: np.ndarray
    columns: Mapping[str, np.ndarray]
    events: tuple[Event, ...] = ()
    layers: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)
    usual: Mapping[str, float] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    began: int | None = None
    nonfinite_since: int | None = None
    first_loss: float = math.nan

    def __len__(self) -> int:
        return len(self.step)

    def __getitem__(self, name: str) -> np.ndarray:
        """A column; NaN in each step where the run has none of this name."""
        found = self.columns.get(name)
        return np.full(len(self.step), math.nan) if found is None else found


def observe(source: Any) -> Observation:
    """What a `Monitor` or a `Run` knows.

    Raises:
      ConfigError: `source` is neither.
      RecordError: the run's file cannot be read.
    """
    if isinstance(source, Observation):
        return source
    if hasattr(source, "chunks") and hasattr(source, "layers"):
        return of_run(source)
    if is_monitor(source):
        now = source.read()
        return of_reading(now.snapshot, now.history, source.run_facts)
    raise ConfigError(
        f"diagnose takes a gradwatch.Monitor or what gradwatch.open_run gives, got {type(source).__name__}; "
        "of a watched step that is step.monitor"
    )


def is_monitor(source: Any) -> bool:
    return hasattr(source, "read") and hasattr(source, "guard")


def of_reading(snapshot: Any, history: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> Observation:
    """What a monitor knows at one instant: the last 1,024 steps, and the layers as of the first and the last one."""
    events = [event for event in snapshot.last_events.values() if event is not None]
    columns = {name: np.asarray(history[name], np.float64) for name in COLUMNS if name in history}
    for name in ("loss_scale", "learning_rate"):
        now = snapshot.loss_scale if name == "loss_scale" else snapshot.extra.get(name)
        if now is not None and np.isnan(columns.get(name, math.nan)).all():
            columns[name] = np.full(len(history["step"]), float(now))
    columns["verdict"] = np.asarray(history["verdict"], np.int8)
    layers = {
        path: {
            "step": np.array([1, snapshot.steps]),
            "norm": np.array([math.nan, norm]),
            "weight_norm": np.array(
                [of.get(path, math.nan) for of in (snapshot.layer_first_weight_norms, snapshot.layer_weight_norms)]
            ),
            "update_ratio": np.array([math.nan, snapshot.layer_update_ratio.get(path, math.nan)]),
        }
        for path, norm in snapshot.layer_norms.items()
    }
    since = snapshot.steps - snapshot.nonfinite_streak + 1
    return Observation(
        step=np.asarray(history["step"], np.int64),
        columns=columns,
        events=tuple(sorted(events, key=lambda event: event.step)),
        layers=layers,
        usual=dict(snapshot.layer_usual_norms),
        facts=facts,
        nonfinite_since=since if snapshot.nonfinite_streak >= len(history["step"]) > 0 else None,
        began=_unseen(snapshot, np.asarray(history["step"]), np.asarray(history["norm"], np.float64)),
    )


def first_loss(step: np.ndarray, loss: np.ndarray) -> float:
    """The median loss of the first 16 steps of a run, NaN where these steps do not begin with the first one."""
    first = loss[:16][np.isfinite(loss[:16])]
    return float(np.median(first)) if len(first) and step[0] == 1 else math.nan


def _unseen(snapshot: Any, step: np.ndarray, norm: np.ndarray) -> int | None:
    """The step, older than the window, at which the trouble began that its first step is in; None: there is none."""
    if not len(step) or step[0] <= 1:
        return None
    with np.errstate(invalid="ignore"):
        finite = np.flatnonzero(np.abs(norm) < HUGE)
    first, found = int(step[0]), []
    streak = int(finite[0]) if len(finite) else len(norm)
    event = snapshot.last_events.get("nonfinite")
    if streak == len(norm):
        found.append(snapshot.steps - snapshot.nonfinite_streak + 1)
    if streak >= _STREAK and (snapshot.loss_scale is None or streak == len(norm)):
        known = event is not None and event.step <= first
        found += [event.step, event.follows or event.step] if known else [first]
    for kind in ("explosion", "trend"):
        event = snapshot.last_events.get(kind)
        if event is not None and snapshot.active.get(kind) and event.step < first:
            found.append(event.step)
    return min(found, default=None)


def of_run(run: Any) -> Observation:
    """What a record holds. Gaps and what was made before a return to a checkpoint are left out."""
    rows = run.steps
    kept = _newest_of_each(rows["step"]) & (rows["verdict"] != "gap")
    columns = {name: rows[name][kept] for name in COLUMNS if name in rows}
    columns["verdict"] = np.array([VERDICTS.index(word) for word in rows["verdict"][kept].tolist()], np.int8)
    told = run.events
    events = [
        Event(
            kind=str(told["kind"][i]),
            step=int(told["step"][i]),
            norm=float(told["norm"][i]),
            threshold=float(told["threshold"][i]),
            shares=told["shares"][i],
            follows=int(told["follows"][i]) or None,
        )
        for i in range(len(told["step"]))
    ]
    layers = {path: run.layers(path) for path in run.variables}
    known = {path: rows["norm"][np.isfinite(rows["norm"])] for path, rows in layers.items()}
    return Observation(
        step=rows["step"][kept],
        columns=columns,
        events=tuple(sorted(events, key=lambda event: event.step)),
        layers=layers,
        usual={path: float(np.median(norms)) for path, norms in known.items() if len(norms)},
        facts=run.info,
        first_loss=first_loss(rows["step"][kept], columns["loss"]),
    )


def focus(run: Observation) -> Observation:
    """At most `MOST` steps of a run: those around the trouble it is in, or, where it had none, every so-many-th of all.

    So a verdict takes as long for a run of a million steps as for one of a few thousand.
    """
    if len(run) <= MOST:
        return run
    first = _newest_trouble(run)
    if first is None:
        kept: Any = slice(None, None, -(-len(run) // MOST))
    else:
        begin = max(int(np.searchsorted(run.step, first)) - MOST // 2, 0)
        kept = slice(begin, begin + MOST)
    columns = {name: column[kept] for name, column in run.columns.items()}
    return replace(run, step=run.step[kept], columns=columns)


def _newest_trouble(run: Observation) -> int | None:
    """The step at which the newest trouble began; what follows before the loss was back is part of it. None: none."""
    steps = [event.step for event in run.events if event.kind != "vanishing"] or [event.step for event in run.events]
    loss, first = run["loss"], None
    for step, before in zip(steps, [None, *steps]):
        if first is None or (before is not None and _came_back(run.step, loss, first, before, step)):
            first = step
    return first


def _came_back(step: np.ndarray, loss: np.ndarray, first: int, last: int, then: int) -> bool:
    """Whether the loss, at step `then` and long after `last`, was no higher than before `first`."""
    begin, end, now = np.searchsorted(step, (first, last, then))
    usual, late = loss[max(begin - _USUAL, 0) : begin], loss[max(now - _USUAL, end) : now]
    usual, late = usual[np.isfinite(usual)], late[np.isfinite(late)]
    if now - end < _APART:
        return False
    return bool(len(usual) and len(late) and np.median(late) <= np.median(usual))


def nonfinite_end(norm: np.ndarray, loss: np.ndarray) -> int:
    """How many steps up to the end had neither a finite gradient nor a finite loss, shapes [n]."""
    good = np.flatnonzero(np.isfinite(norm) | np.isfinite(loss))
    return len(norm) - 1 - int(good[-1]) if len(good) else len(norm)


def _newest_of_each(steps: np.ndarray) -> np.ndarray:
    """Which rows are not made again further down, after a return to a checkpoint."""
    if not len(steps):
        return np.zeros(0, bool)
    least_after = np.minimum.accumulate(steps[::-1])[::-1]
    return np.append(steps[:-1] < least_after[1:], True)
