"""Streams of gradient norms whose truth is known, and the faults that are put into them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import NamedTuple

import healthy
import numpy as np

Source = Callable[[np.random.Generator, int], Iterator[np.ndarray]]


def _independent(draw: Callable[[np.random.Generator, int], np.ndarray]) -> Source:
    def source(rng: np.random.Generator, streams: int) -> Iterator[np.ndarray]:
        while True:
            yield draw(rng, streams)

    return source


def _autoregressive(rng: np.random.Generator, streams: int) -> Iterator[np.ndarray]:
    a = rng.standard_normal(streams)
    while True:
        a = 0.9 * a + np.sqrt(1 - 0.81) * rng.standard_normal(streams)
        yield np.exp(0.5 * a)


def _decay(rng: np.random.Generator, streams: int) -> Iterator[np.ndarray]:
    t = 0
    while True:
        t += 1
        yield (1 + t / 200) ** -0.5 * np.exp(0.2 * rng.standard_normal(streams))


@cache
def recorded_runs() -> list[np.ndarray]:
    """The norms of healthy training runs of kinds that nothing was tuned on, one array for each side of a run."""
    return [norms for norms, _ in healthy.load("judged").values()]


def _recorded(rng: np.random.Generator, streams: int) -> Iterator[np.ndarray]:
    """Each stream is one recorded healthy run from its first step on."""
    runs = recorded_runs()
    chosen = [runs[i % len(runs)] for i in range(streams)]
    t = 0
    while True:
        # where more steps are asked for than it has: back and forth, so that the seam is no shift
        yield np.array([run[_fold(t, len(run))] for run in chosen])
        t += 1


def _fold(t: int, n: int) -> int:
    t %= 2 * n - 2
    return t if t < n else 2 * n - 2 - t


#: name -> source(rng, number of streams), an endless iterator of norms, shape [number of streams]
STREAMS: dict[str, Source] = {
    "normal": _independent(lambda rng, n: np.maximum(1 + 0.1 * rng.standard_normal(n), 1e-3)),
    "log-normal 0.3": _independent(lambda rng, n: np.exp(0.3 * rng.standard_normal(n))),
    "log-normal 0.8": _independent(lambda rng, n: np.exp(0.8 * rng.standard_normal(n))),
    "Pareto 2.5": _independent(lambda rng, n: np.exp(rng.exponential(1 / 2.5, n))),
    "AR(1) 0.9": _autoregressive,
    "decay": _decay,
}
if healthy.RESULTS.exists():
    STREAMS["recorded"] = _recorded


class Fault(NamedTuple):
    """What is done to the norms from the onset on.

    Attributes:
      factors: the norms of the next steps are multiplied by these; NaN and Inf are put in as they are.
      lasting: the last factor stays.
      within: an alarm counts as found up to so many steps after the onset (0: on the very step).
      legitimate: not a fault; what counts is how soon the detector is calm again.
    """

    factors: np.ndarray
    lasting: bool = False
    within: int = 0
    legitimate: bool = False


def _growth(rate: float) -> np.ndarray:
    return (1 + rate) ** np.arange(1, 201)


FAULTS: Mapping[str, Fault] = {
    "spike x 3": Fault(np.array([3.0])),
    "spike x 10": Fault(np.array([10.0])),
    "spike x 100": Fault(np.array([100.0])),
    "burst of 20 x 10": Fault(np.full(20, 10.0), within=19),
    "growth 1 %": Fault(_growth(0.01), within=199),
    "growth 5 %": Fault(_growth(0.05), within=199),
    "growth 20 %": Fault(_growth(0.20), within=199),
    "shift x 3": Fault(np.array([3.0]), lasting=True, legitimate=True),
    "shift x 10": Fault(np.array([10.0]), lasting=True, legitimate=True),
    "NaN": Fault(np.array([np.nan])),
    "Inf": Fault(np.array([np.inf])),
    "vanishing x 1e-4": Fault(np.array([1e-4]), lasting=True, within=199),
}


def inject(norms: np.ndarray, fault: Fault) -> np.ndarray:
    """The norms with the fault from the first step on; time is the first axis."""
    factors = np.ones(len(norms))
    n = min(len(fault.factors), len(norms))
    factors[:n] = fault.factors[:n]
    if fault.lasting:
        factors[n:] = fault.factors[-1]
    return norms * factors.reshape(-1, *[1] * (norms.ndim - 1))
