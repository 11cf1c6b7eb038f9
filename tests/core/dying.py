"""Runs that die in their first steps: a real network, trained in numpy at rates that are too high."""

from __future__ import annotations

import functools
import itertools

import numpy as np

SIZES = (32, 64, 64, 10)
BATCH = 64


@functools.cache
def norms(optimizer: str, rate: float, seed: int, steps: int = 140) -> np.ndarray:
    """Global gradient norm of each step, Inf and NaN included; ReLU layers, cross entropy, "sgd" or "adam"."""
    rng = np.random.default_rng(seed)
    weights = [rng.standard_normal(shape) * np.sqrt(2 / shape[0]) for shape in itertools.pairwise(SIZES)]
    weights = [w for pair in zip(weights, map(np.zeros, SIZES[1:])) for w in pair]
    teacher = rng.standard_normal((SIZES[0], SIZES[-1]))
    first, second = [[np.zeros_like(w) for w in weights] for _ in range(2)]
    out = []
    with np.errstate(all="ignore"):
        for t in range(1, steps + 1):
            x = rng.standard_normal((BATCH, SIZES[0]))
            grads = _gradients(weights, x, (x @ teacher).argmax(1))
            out.append(np.float32(np.sqrt(sum(np.sum(g * g) for g in grads))))
            for w, g, m, v in zip(weights, grads, first, second):
                if optimizer == "sgd":
                    w -= rate * g
                    continue
                m += 0.1 * (g - m)
                v += 0.001 * (g * g - v)
                w -= rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-7)
    return np.array(out)


def _gradients(weights: list[np.ndarray], x: np.ndarray, labels: np.ndarray) -> list[np.ndarray]:
    layers = [x]
    last = len(weights) // 2 - 1
    for i in range(last + 1):
        z = layers[-1] @ weights[2 * i] + weights[2 * i + 1]
        layers.append(z if i == last else np.maximum(z, 0))
    p = np.exp(layers[-1] - layers[-1].max(1, keepdims=True))
    delta = p / p.sum(1, keepdims=True)
    delta[np.arange(BATCH), labels] -= 1
    delta /= BATCH
    grads: list[np.ndarray] = []
    for i in range(last, -1, -1):
        grads = [layers[i].T @ delta, delta.sum(0), *grads]
        if i:
            delta = (delta @ weights[2 * i].T) * (layers[i] > 0)
    return grads
