"""What a report shows of a run, in bounded size, whether it comes out of a record or from a monitor."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from gradwatch.core.snapshot import VERDICTS, Snapshot
from gradwatch.diagnosis.diagnose import diagnose
from gradwatch.diagnosis.observation import Observation, nonfinite_end
from gradwatch.diagnosis.verdict import Diagnosis
from gradwatch.reading.health import health
from gradwatch.reading.text import clean

#: Quantities that each step has, drawn as the range of each bucket of steps.
CURVES = ("loss", "norm", "applied_norm", "clip_norm", "threshold")

#: Quantities that seldom change, drawn where they do.
SELDOM = ("learning_rate", "update_ratio")

#: Buckets of a curve: as many as a wide screen has points side by side.
BUCKETS = 1500

#: Columns and rows of the heat map.
LOOKS, LAYERS = 240, 60

MOST_MARKS = 1000  # steps with NaN or Inf that are marked
MOST_EVENTS = 500  # in the table


@dataclass(frozen=True)
class Curve:
    """One quantity over the steps: the lowest and the highest value of each bucket, NaN where it is not known.

    Attributes:
      step: middle of each bucket, increasing, float64, shape [n].
      low, high: float64, shape [n]; where a bucket is one step they are equal.
    """

    step: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class Heat:
    """The norms of the layers over the steps.

    Attributes:
      names: of the layers shown, in the order of the model.
      first, last: steps at the left and the right end.
      norm: largest norm in each cell, float64, shape [layers, columns]; NaN where nobody looked, Inf for NaN and Inf.
      layers: how many there are in all.
    """

    names: tuple[str, ...]
    first: float
    last: float
    norm: np.ndarray
    layers: int


@dataclass(frozen=True)
class Material:
    """What is known of a run, as far as a report shows it.

    Attributes:
      name: of the run, for people.
      facts: as `Run.info`.
      steps: seen in all; first, last: their numbers; 0 before the first.
      counts: verdict -> steps, and "missed" -> steps that nobody saw.
      curves: name of `CURVES` -> its curve; a quantity that was never known is left out.
      seldom: name of `SELDOM` -> (steps, values) where it changed, and at the last step.
      broken: steps whose norm was NaN or Inf, the first 1,000.
      events, alerts, notes: rows, in the order in which they were written.
      nonfinite: "loss" and "norm", as far as it ends without a finite one -> (the step since which, "NaN" or "Inf").
      heat: the layers; None where they are not known.
      diagnosis: None where it could not be made.
      whole: whether it is the whole run, and not the last steps of a monitor.
    """

    name: str
    facts: Mapping[str, Any]
    steps: int
    first: int
    last: int
    counts: Mapping[str, int]
    curves: Mapping[str, Curve]
    seldom: Mapping[str, tuple[np.ndarray, np.ndarray]]
    broken: np.ndarray
    events: Sequence[Mapping[str, Any]] = ()
    alerts: Sequence[Mapping[str, Any]] = ()
    notes: Sequence[Mapping[str, Any]] = ()
    nonfinite: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    heat: Heat | None = None
    diagnosis: Diagnosis | None = None
    whole: bool = True


def verdict_of(source: Any) -> Diagnosis | None:
    """The diagnosis, or None: a report without a verdict is better than none."""
    try:
        return diagnose(source)
    except Exception:
        health.failed("record", "the verdict of a run cannot be given", key="diagnosis", exc_info=True)
        return None


def title(name: str, run_name: str) -> str:
    """What a run is called, made safe to show."""
    return clean(f"{run_name}/{name}" if run_name and run_name != name else name or "run", 80)


def of_monitor(
    snapshot: Snapshot, history: Mapping[str, np.ndarray], facts: Mapping[str, Any], seen: Observation
) -> Material:
    """What a monitor knows at one instant: its last 1,024 steps, and for the verdict what else was `seen`."""
    steps = np.asarray(history["step"], np.int64)
    columns = {name: np.asarray(history[name], np.float64) for name in (*CURVES, "update_ratio")}
    events = [event for event in snapshot.last_events.values() if event is not None]
    ratio = columns.pop("update_ratio")
    rate = snapshot.extra.get("learning_rate")
    rates = np.full(len(steps), math.nan if rate is None else float(rate))
    names = tuple(snapshot.layer_norms)
    verdicts = np.asarray(history["verdict"], np.int64)
    ends = {
        "norm": nonfinite_end(columns["norm"], columns["norm"]),
        "loss": nonfinite_end(columns["norm"], columns["loss"]) if np.isfinite(columns["loss"]).any() else 0,
    }
    return Material(
        name=title(snapshot.name, ""),
        facts=facts,
        steps=snapshot.steps,
        first=int(steps[0]) if len(steps) else 0,
        last=int(steps[-1]) if len(steps) else 0,
        counts={word: int(np.sum(verdicts == i)) for i, word in enumerate(VERDICTS)} | {"missed": 0},
        curves={name: curve for name, x in columns.items() if (curve := _exact(steps, x)) is not None},
        seldom={
            name: kept
            for name, x in (("learning_rate", rates), ("update_ratio", ratio))
            if (kept := changes(steps, x)) is not None
        },
        broken=steps[~np.isfinite(columns["norm"])][:MOST_MARKS],
        events=[
            {
                "step": event.step,
                "kind": event.kind,
                "norm": event.norm,
                "threshold": event.threshold,
                "detail": event.detail,
                "shares": dict(event.shares),
            }
            for event in sorted(events, key=lambda event: event.step)
        ],
        nonfinite={
            name: (
                snapshot.steps - max(snapshot.nonfinite_streak, count) + 1
                if count == len(steps)
                else int(steps[-count]),
                "Inf" if np.isinf(columns[name][-1]) else "NaN",
            )
            for name, count in ends.items()
            if count
        },
        heat=heat(names, np.full(len(names), snapshot.steps), np.arange(len(names)), _norms(snapshot)),
        diagnosis=verdict_of(seen),
        whole=snapshot.steps <= len(steps),
    )


def _norms(snapshot: Snapshot) -> np.ndarray:
    return np.array(list(snapshot.layer_norms.values()), np.float64)


def _exact(steps: np.ndarray, values: np.ndarray) -> Curve | None:
    shown = np.where(np.isfinite(values), values, math.nan)
    return None if np.isnan(shown).all() else Curve(steps.astype(np.float64), shown, shown)


def changes(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """(steps, values) where a number became another one, and the last; None where it was never known."""
    if not len(values) or np.isnan(values).all():
        return None
    before = np.append(math.inf, values[:-1])
    changed = ~((values == before) | (np.isnan(values) & np.isnan(before)))
    changed[-1] = True
    steps, values = steps[changed].astype(np.float64), values[changed]
    return thinned(steps, values)


def thinned(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most the lowest, the highest and the last of each of `BUCKETS` runs of neighbours, in their order."""
    if len(steps) <= 3 * BUCKETS:
        return steps, values
    bounds = np.linspace(0, len(steps), BUCKETS + 1).astype(int)
    known = np.where(np.isnan(values), math.inf, values)
    kept = set()
    for begin, end in pairwise(bounds):
        part = known[begin:end]
        kept |= {
            begin + int(np.argmin(part)),
            begin + int(np.argmax(np.where(np.isinf(part), -math.inf, part))),
            end - 1,
        }
    order = np.array(sorted(kept))
    return steps[order], values[order]


def heat(names: Sequence[str], steps: np.ndarray, layers: np.ndarray, norms: np.ndarray) -> Heat | None:
    """The heat map of rows (step, index of the layer, norm); None where there are none.

    Of many layers those are shown that were the largest at some time. Between two looks a cell keeps the newest norm.
    """
    known = np.isfinite(norms) | np.isinf(norms)
    if not len(norms) or not known.any():
        return None
    value = np.where(known, np.minimum(np.abs(norms), math.inf), math.inf)  # a norm that was NaN
    first, last = float(steps.min()), float(steps.max())
    columns = int(min(LOOKS, max(1, len(np.unique(steps)))))
    column = np.minimum(((steps - first) / max(last - first, 1.0) * columns).astype(int), columns - 1)
    table = np.full((len(names), columns), -1.0)
    np.maximum.at(table, (layers, column), value)
    table[table < 0] = math.nan
    largest = np.nanmax(np.where(np.isfinite(table), table, -1.0), axis=1)
    seen = ~np.isnan(table).all(axis=1)
    chosen = np.flatnonzero(seen)
    if len(chosen) > LAYERS:
        chosen = np.sort(chosen[np.argsort(-largest[chosen], kind="stable")[:LAYERS]])
    table = _held(table[chosen])
    return Heat(tuple(clean(names[int(i)]) for i in chosen), first, last, table, int(seen.sum()))


def _held(table: np.ndarray) -> np.ndarray:
    """Each NaN replaced by the number to its left."""
    places = np.where(np.isnan(table), 0, np.arange(table.shape[1]))
    return np.asarray(np.take_along_axis(table, np.maximum.accumulate(places, axis=1), axis=1))
