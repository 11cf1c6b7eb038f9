"""A recorded run made by hand, through the writer that real runs go through: what is in it is known exactly."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gradwatch.record.writer import Look, RunFile, shares_text

START = 1.79e9
LAYERS = ("encoder/block_0/query/kernel", "encoder/block_0/query/bias", "encoder/block_1/query/kernel")

FACTS = {
    "name": "train_step",
    "run_name": "translation",
    "script": "train.py",
    "host": "trainer-1",
    "pid": 1,
    "policy": "percentile(90, window=1000)",
    "detectors": ["spike(5)", "nonfinite()"],
    "on_nonfinite": "zero",
    "on_explosion": "clip",
    "optimizer": "SGD",
    "optimizer_settings": {"name": "SGD", "learning_rate": 0.1, "momentum": 0.9, "weight_decay": None},
    "versions": {"python": "3.11", "tensorflow": "2.21.0"},
    "strategy": "none",
    "replicas": "1",
    "precision": "float32",
    "start": START,
    "end": None,
    "ended": None,
    "variables": {LAYERS[0]: (64, 32), LAYERS[1]: (32,), LAYERS[2]: (32, 32)},
}


def event(step, kind, norm, threshold=10.0, detail="", shares=None):
    """The words of an event, and of its alert."""
    told = shares_text(shares or {LAYERS[0]: 0.75, LAYERS[1]: 0.25})
    at = round(1000 * (START + step))
    return [
        ("events", (step, at, kind, norm, threshold, detail, None, 1, told)),
        ("alerts", (step, at, kind, "warning", "fired", f"the alert of step {step}", "", "clipped")),
    ]


def norms(steps, seed=0):
    """Norms of a calm run."""
    return np.exp(np.random.default_rng(seed).normal(0.0, 0.3, steps))


def record(
    path, norm, *, loss=None, verdict=None, words=(), rate=0.1, reach=100.0, ended="finished", a_look=50, **facts
):
    """Writes the run of these norms, one look for each 50 steps; where `norm` is NaN the step was zeroed.

    Args:
      norm, loss: shape [steps]; `rate`, `reach`, one number or [steps].
      words: as `event` gives them.
      facts: instead of those of `FACTS`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    norm = np.asarray(norm, np.float64)
    steps = len(norm)
    loss = np.linspace(3.0, 1.0, steps) if loss is None else np.asarray(loss, np.float64)
    rates = np.broadcast_to(rate, steps)
    columns = {
        "step": np.arange(1, steps + 1),
        "norm": norm,
        "applied_norm": np.where(np.isfinite(norm), np.minimum(norm, 2.0), 0.0),
        "clip_norm": np.full(steps, 2.0),
        "threshold": np.where(np.arange(steps) < 20, np.inf, 10.0),
        "score": np.zeros(steps),
        "verdict": np.where(np.isfinite(norm), np.where(norm > 2.0, 1, 0), 2) if verdict is None else verdict,
        "loss": loss,
        "reach": np.broadcast_to(reach, steps),
        "update_ratio": np.full(steps, 0.002),
    }
    file = RunFile(path, lambda: {**FACTS, "id": path.stem, **facts})
    words = list(words)
    for first in range(0, steps, a_look):
        part = slice(first, min(steps, first + a_look))
        last = part.stop
        layers = {name: (float(np.max(norm[part])) / (i + 1), 8.0, 0.002) for i, name in enumerate(LAYERS)}
        own = [word for word in words if first < word[1][0] <= last]
        file.write(
            Look(
                START + last,
                START + first,
                {name: column[part] for name, column in columns.items()},
                loss_before=float(loss[first - 1]) if first else float("nan"),
                learning_rate=float(rates[last - 1]),
                layers=layers,
                words=own,
                told=bool(own),
                ended=(START + steps, ended) if last == steps and ended else None,
            )
        )
    file.fold()
    return path
