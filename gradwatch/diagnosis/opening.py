"""The steps around which trouble began, kept on the host: the device's window of 1,024 steps forgets them.

A verdict that is asked for later is made of these steps and of the newest ones, so that it names the same cause for as
long as the trouble lasts.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from gradwatch.core.snapshot import Event, Snapshot
from gradwatch.core.xp import HUGE
from gradwatch.diagnosis.observation import COLUMNS, JUMP, Observation, first_loss, of_reading

#: Steps kept from the first bad one on; of those before it, all that the window still held.
AFTER = 512

#: Steps in a row without anything unusual, after which trouble is over if the loss has come back too.
CALM = 256

_BASELINE = 64  # steps before the trouble that say what was usual
_WARM_UP = 9  # first steps, whose rate may rise as it will


class Opening:
    """What is kept of one monitor. Safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._begin: int | None = None
        self._newest = self._settled = 0
        self._first_loss = math.nan
        self._rows: dict[str, np.ndarray] = {}
        self._events: dict[tuple[str, int], Event] = {}
        self._usual: dict[str, float] = {}

    def forget(self) -> None:
        """The run begins anew, or goes on elsewhere: nothing that was kept is of it."""
        with self._lock:
            self._forget()

    def look(self, snapshot: Snapshot, history: Mapping[str, np.ndarray]) -> None:
        """Take what is new; call it at each reading, and before a verdict is made.

        Args:
          history: as `Monitor.history()` gives it, not older than 1,024 steps.
        """
        step = np.asarray(history["step"], np.int64)
        if not len(step):
            return
        with self._lock:
            if int(step[-1]) < self._newest or not self._is_of_this_run(step, history):
                self._forget()
            self._newest = int(step[-1])
            if step[0] == 1 and "loss" in history:
                self._first_loss = first_loss(step, np.asarray(history["loss"], np.float64))
            if self._begin is None:
                self._begin = _begin(snapshot, step, history, self._settled)
                if self._begin is not None:
                    self._usual = dict(snapshot.layer_usual_norms)
            if self._begin is None:
                return
            self._keep(snapshot, step, history)
            if self._is_over(snapshot, step, history):
                self._close()
                self._settled = self._newest

    def joined(self, run: Observation) -> Observation:
        """The observation of a monitor's window, with the kept steps in front of it."""
        with self._lock:
            run = replace(run, first_loss=self._first_loss)
            if self._begin is None or not len(run):
                return run
            earlier = self._rows["step"] < run.step[0]
            events = {(event.kind, event.step): event for event in (*self._events.values(), *run.events)}
            nothing = np.full(len(run), math.nan)
            columns = {
                name: np.append(column[earlier], run.columns.get(name, nothing))
                for name, column in self._rows.items()
                if name != "step"
            }
            return replace(
                run,
                step=np.append(self._rows["step"][earlier], run.step),
                columns=columns,
                events=tuple(sorted(events.values(), key=lambda event: event.step)),
                usual={**run.usual, **self._usual},
                began=None,
            )

    # -- inside, with the lock held -------------------------------------------------------------------------

    def _forget(self) -> None:
        self._newest, self._settled, self._first_loss = 0, 0, math.nan
        self._close()

    def _close(self) -> None:
        self._begin, self._rows, self._events, self._usual = None, {}, {}, {}

    def _is_of_this_run(self, step: np.ndarray, history: Mapping[str, np.ndarray]) -> bool:
        """Whether a step that is known twice has the same norm."""
        if self._begin is None:
            return True
        _, here, there = np.intersect1d(self._rows["step"], step, return_indices=True)
        kept, now = self._rows["norm"][here], np.asarray(history["norm"], np.float64)[there]
        return bool(np.array_equal(kept, now, equal_nan=True))

    def _keep(self, snapshot: Snapshot, step: np.ndarray, history: Mapping[str, np.ndarray]) -> None:
        assert self._begin is not None
        for event in snapshot.last_events.values():
            if event is not None and self._begin <= event.step <= self._begin + AFTER:
                self._events[event.kind, event.step] = event
        if self._rows and self._rows["step"][-1] >= self._begin + AFTER:
            return
        new = step <= self._begin + AFTER
        rows = {
            name: np.asarray(history[name], np.float64)[new] if name in history else np.full(int(new.sum()), math.nan)
            for name in COLUMNS
        }
        rows["verdict"], rows["step"] = np.asarray(history["verdict"], np.int8)[new], step[new]
        if self._rows:
            # the newest step gets its loss later, so what is known twice is taken from now
            old = self._rows["step"] < step[0]
            rows = {name: np.append(column[old], rows[name]) for name, column in self._rows.items()}
        self._rows = rows

    def _is_over(self, snapshot: Snapshot, step: np.ndarray, history: Mapping[str, np.ndarray]) -> bool:
        assert self._begin is not None
        since = max(self._begin, int(step[-1]) - CALM)
        tail = step > since
        if int(step[-1]) - self._begin < CALM or any(snapshot.active.get(kind, False) for kind in _kinds(snapshot)):
            return False
        if any(event.step > since for event in _events(snapshot)) or _broken(history)[tail].any():
            return False
        before = self._rows["step"] < self._begin
        for name, times in (("loss", 1.1), ("norm", 3.0)):
            usual = self._rows[name][before][-_BASELINE:]
            usual = usual[np.isfinite(usual)]
            if name in history and len(usual):
                now = np.asarray(history[name], np.float64)[tail]
                now = now[np.isfinite(now)]
                middle = float(np.median(usual))
                spread = 1.4826 * float(np.median(np.abs(usual - middle)))
                return bool(len(now) and np.median(now) <= middle + max(6.0 * spread, (times - 1.0) * abs(middle)))
        return True


def opening_of(source: Any) -> Opening:
    """The one of a monitor, which is held weakly."""
    with _lock:
        found = _openings.get(source)
        if found is None:
            found = _openings[source] = Opening()
        return found


def seen(source: Any, snapshot: Snapshot, history: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> Observation:
    """All that is known of a monitor at one instant: its last 1,024 steps, and what was kept of its trouble."""
    opening = opening_of(source)
    opening.look(snapshot, history)
    return opening.joined(of_reading(snapshot, history, facts))


_openings: weakref.WeakKeyDictionary[Any, Opening] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def _begin(snapshot: Snapshot, step: np.ndarray, history: Mapping[str, np.ndarray], settled: int) -> int | None:
    """The first bad step that the window holds after those that are settled; None: there is none, or it is older."""
    found = [event.step for event in _events(snapshot) if event.step > settled]
    broken = step[_broken(history)]
    found += broken[broken > settled][:1].tolist()
    jumps = step[_jumps(history)]
    found += jumps[(jumps > settled) & (jumps > step[0] + _WARM_UP)][:1].tolist()
    begin = min(found, default=None)
    # a first row that is bad is not where it began
    return None if begin is None or (begin <= step[0] and step[0] > 1) else begin


def _events(snapshot: Snapshot) -> list[Event]:
    return [event for kind in _kinds(snapshot) if (event := snapshot.last_events.get(kind)) is not None]


def _kinds(snapshot: Snapshot) -> list[str]:
    """Gradients that are too small show in each step, and a run that has converged may have them for good."""
    return [kind for kind in snapshot.last_events if kind != "vanishing"]


def _broken(history: Mapping[str, np.ndarray]) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return np.asarray(~(np.abs(np.asarray(history["norm"], np.float64)) < HUGE))


def _jumps(history: Mapping[str, np.ndarray]) -> np.ndarray:
    """Whether the learning rate of each step is `JUMP` times all that the window knows before it."""
    rate = np.asarray(history.get("learning_rate", np.full(len(history["step"]), math.nan)), np.float64)
    highest = np.fmax.accumulate(np.where(rate > 0, rate, math.nan)) if len(rate) else rate
    with np.errstate(invalid="ignore"):
        return np.append(False, rate[1:] > JUMP * highest[:-1])[: len(rate)]
