"""Synthetic gradient norms: what a healthy run looks like to a detector, and faults put into it.

Each function returns float64 arrays of shape [steps], or [steps, many] for that many independent streams.
"""

from __future__ import annotations

import math

import numpy as np


def lognormal(rng: np.random.Generator, steps: int, sigma: float = 0.3, many: int | None = None) -> np.ndarray:
    """Independent norms with median 1 and `sigma` as standard deviation of their logarithm."""
    return np.exp(sigma * rng.standard_normal(_shape(steps, many)))


def correlated(
    rng: np.random.Generator, steps: int, sigma: float = 0.3, phi: float = 0.9, many: int | None = None
) -> np.ndarray:
    """A first-order autoregression of the log norm: neighbours correlate by `phi`."""
    noise = rng.standard_normal(_shape(steps, many))
    noise[1:] *= math.sqrt(1.0 - phi**2)
    for t in range(1, steps):
        noise[t] += phi * noise[t - 1]
    return np.exp(sigma * noise)


def decaying(rng: np.random.Generator, steps: int, sigma: float = 0.3, many: int | None = None) -> np.ndarray:
    """Norms of a training that settles: from 10, falling as (1 + t / 20)^-0.7."""
    level = 10.0 * (1.0 + np.arange(steps) / 20.0) ** -0.7
    return lognormal(rng, steps, sigma, many) * (level if many is None else level[:, None])


def pareto(rng: np.random.Generator, steps: int, tail: float = 2.5, many: int | None = None) -> np.ndarray:
    """Heavy-tailed norms: P(norm > x) = x^-tail for x >= 1."""
    return 1.0 + rng.pareto(tail, _shape(steps, many))


def spike(norms: np.ndarray, at: int, times: float, width: int = 1) -> np.ndarray:
    """The steps [at, at + width) multiplied: one bad batch, or a burst."""
    out: np.ndarray = norms.copy()
    out[at : at + width] *= times
    return out


def shift(norms: np.ndarray, at: int, times: float) -> np.ndarray:
    """All steps from `at` on multiplied: a new phase of training."""
    return spike(norms, at, times, len(norms) - at)


def growth(norms: np.ndarray, at: int, rate: float) -> np.ndarray:
    """From `at` on, each step stands `rate` higher (0.05 is 5 %) than it would: an explosion under way."""
    factor = (1.0 + rate) ** np.maximum(np.arange(len(norms)) - at + 1.0, 0.0)
    return np.asarray(norms * (factor if norms.ndim == 1 else factor[:, None]))


def _shape(steps: int, many: int | None) -> tuple[int, ...]:
    return (steps,) if many is None else (steps, many)
