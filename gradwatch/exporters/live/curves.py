"""A curve over any number of steps in bounded memory: the lowest and the highest point of each bin.

A one-step spike survives whatever the length of the run. A bin is one step wide at first; when there are too
many bins, all become twice as wide.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

#: As many as a screen can show side by side.
MOST_BINS = 1024


class Curve:
    """Points (step, value) of one quantity, thinned. Only values that its axis can show are kept.

    Args:
      log: the axis is a log axis, which shows neither zero nor negative values.

    Attributes:
      steps, values: arrays of one length, by ascending step; at most two points for each bin.
    """

    def __init__(self, log: bool = True) -> None:
        self._log = log
        self.steps: np.ndarray = np.empty(0, np.int64)
        self.values: np.ndarray = np.empty(0, np.float64)
        self._newest: tuple[int, float] | None = None

    def add(self, steps: np.ndarray, values: np.ndarray, width: int) -> None:
        """Appends points of later steps than before, in bins of `width` steps."""
        values = np.asarray(values, np.float64)
        shown = np.isfinite(values) & ((values > 0) | (not self._log))
        steps, values = steps[shown], values[shown]
        if not len(steps):
            return
        self._newest = int(steps[-1]), float(values[-1])
        # the last bin was still open, so its two points are weighed again against the new ones
        last = self.steps[-1] if len(self.steps) else steps[0]
        closed = int(np.searchsorted(self.steps, last // width * width))
        open_steps, open_values = thin(
            np.concatenate([self.steps[closed:], steps]), np.concatenate([self.values[closed:], values]), width
        )
        self.steps = np.concatenate([self.steps[:closed], open_steps])
        self.values = np.concatenate([self.values[:closed], open_values])

    def widen(self, width: int) -> None:
        """Thins all points to bins of `width` steps."""
        self.steps, self.values = thin(self.steps, self.values, width)

    def cut(self, step: int) -> None:
        """Drops the points from `step` on."""
        kept = int(np.searchsorted(self.steps, step))
        self.steps, self.values = self.steps[:kept], self.values[:kept]
        if self._newest is not None and self._newest[0] >= step:
            self._newest = None

    def since(self, step: int) -> tuple[list[int], list[float]]:
        """The points from `step` on, and always the newest one, though its bin may have thinned it out."""
        first = int(np.searchsorted(self.steps, step))
        steps, values = self.steps[first:].tolist(), self.values[first:].tolist()
        if self._newest is not None and self._newest[0] >= step and (not steps or steps[-1] < self._newest[0]):
            steps.append(self._newest[0])
            values.append(self._newest[1])
        return steps, values


class Curves:
    """Several curves over the same steps, in the same bins.

    Args:
      names: of the curves, as in the rows that are added.
      linear: those of them that are drawn on a linear axis.

    Attributes:
      width: steps in one bin, a power of two.
      generation: changes when points that were given out are no longer right as they are.
    """

    def __init__(self, names: Sequence[str], linear: Sequence[str] = ()) -> None:
        self.width: int = 1
        self.generation: int = 0
        self._curves = {name: Curve(log=name not in linear) for name in names}
        self._first: int | None = None
        self._last = 0

    def add(self, rows: Mapping[str, np.ndarray]) -> None:
        """Appends rows: `step`, ascending, and a column for each curve that has one. Earlier steps replace what was
        there."""
        steps = rows["step"]
        if not len(steps):
            return
        if self._first is not None and steps[0] <= self._last:  # set back by a checkpoint
            for curve in self._curves.values():
                curve.cut(int(steps[0]))
            self.generation += 1
        self._first = int(steps[0]) if self._first is None else min(self._first, int(steps[0]))
        self._last = int(steps[-1])
        for name, curve in self._curves.items():
            if name in rows:
                curve.add(steps, rows[name], self.width)
        while self._last // self.width - self._first // self.width >= MOST_BINS:
            self.width *= 2
            self.generation += 1
            for curve in self._curves.values():
                curve.widen(self.width)

    def add_late(self, name: str, step: int, value: float) -> None:
        """A point of the newest step that was not known when the step was added."""
        if step == self._last:
            self._curves[name].add(np.array([step]), np.array([value]), self.width)

    def since(self, step: int) -> dict[str, tuple[list[int], list[float]]]:
        """Name -> (steps, values) from `step` on."""
        return {name: curve.since(step) for name, curve in self._curves.items()}

    def open_bin(self) -> int:
        """First step of the bin that is still open: points before it stay as they are in this generation."""
        return self._last // self.width * self.width


def thin(steps: np.ndarray, values: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and the highest point of each bin of `width` steps; by ascending step, each point once."""
    if not len(steps):
        return steps, values
    bins = steps // width
    order = np.lexsort((values, bins))  # bin by bin, lowest value first
    ends = np.flatnonzero(np.diff(bins[order])) + 1
    lowest = order[np.concatenate([[0], ends])]
    highest = order[np.concatenate([ends, [len(order)]]) - 1]
    kept = np.unique(np.concatenate([lowest, highest]))
    return steps[kept], values[kept]
