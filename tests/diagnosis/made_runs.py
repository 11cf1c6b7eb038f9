"""Histories of runs, made of numbers: a run that learns, and what a fault would make of it."""

from __future__ import annotations

import numpy as np

from gradwatch.core.snapshot import Event
from gradwatch.diagnosis.observation import Observation

STEPS = 160
VARIABLES = {"one/kernel": (12, 16), "one/bias": (16,), "head/kernel": (16, 5)}


def glorot(shape):
    return float(np.sqrt(2.0 * np.prod(shape) / (shape[-2] + shape[-1]))) if len(shape) > 1 else 0.0


def healthy(steps=STEPS, seed=0):
    """Columns of a run that learns: the loss falls from 2 to about 0.2, the norm from 4 to 1, with noise."""
    rng = np.random.default_rng(seed)
    progress = np.arange(steps) / steps
    noise = lambda size: np.exp(size * rng.normal(size=steps))  # noqa: E731
    norm = (1 + 3 * np.exp(-8 * progress)) * noise(0.15)
    return {
        "norm": norm,
        "applied_norm": norm.copy(),
        "loss": (0.2 + 1.8 * np.exp(-8 * progress)) * noise(0.1),
        "reach": np.full(steps, 60.0),
        "update_ratio": np.full(steps, 0.005),
        "learning_rate": np.full(steps, 0.1),
        "input_rms": noise(0.03),
        "target_rms": noise(0.03),
    }


def observation(columns, *, events=(), variables=VARIABLES, start=1.0, end=1.0, usual=None, **facts):
    """Columns as an observation; `start` and `end`: norms of the weights over those of new ones, by path or for all."""
    steps = len(columns["norm"])

    def of(given, path):
        return given.get(path, 1.0) if isinstance(given, dict) else given

    layers = {}
    for path, shape in variables.items():
        size = glorot(shape)
        weights = np.array([of(start, path) * size, of(end, path) * of(start, path) * size])
        nothing = np.full(2, np.nan)
        layers[path] = {"step": np.array([1, steps]), "norm": nothing, "weight_norm": weights, "update_ratio": nothing}
    return Observation(
        step=np.arange(1, steps + 1),
        columns={**columns, "verdict": np.zeros(steps, np.int8)},
        events=tuple(events),
        layers=layers,
        usual=dict.fromkeys(variables, 1.0) if usual is None else usual,
        facts={"variables": variables, "precision": "float32", "inputs": {"input": "float32"}, **facts},
    )


def event(kind, step, norm=10.0, threshold=5.0, **shares):
    return Event(kind, step, norm, threshold, shares or {"one/kernel": 0.6, "head/kernel": 0.4})
