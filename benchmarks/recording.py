"""How large a recorded run is, how much memory it takes to write, and how long to read: a million synthetic steps.

python benchmarks/record.py [STEPS]
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from gradwatch.record.run import Run
from gradwatch.record.writer import Look, RunFile

STEPS_A_LOOK = 256  # a quarter of the history, as when steps are fast
VARIABLES = 100


def look(rng: np.random.Generator, first: int, now: float) -> Look:
    """Steps in which every number is another one, and those of the weights are others every 50 steps."""

    def numbers() -> np.ndarray:
        return rng.lognormal(size=STEPS_A_LOOK).astype(np.float32)

    often = {name: numbers() for name in ("norm", "applied_norm", "clip_norm", "threshold", "score", "loss")}
    seldom = {name: np.repeat(numbers(), 50)[:STEPS_A_LOOK] for name in ("reach", "update_ratio")}
    rows = {"step": np.arange(first, first + STEPS_A_LOOK), "verdict": rng.integers(0, 2, STEPS_A_LOOK)}
    layers = {f"block_{i}/kernel": tuple(rng.lognormal(size=3)) for i in range(VARIABLES)}
    return Look(now + 1, now, {**rows, **often, **seldom}, 1.5, float(rng.random()), 32768.0, layers)


def memory() -> float:
    """Most memory so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(steps: int) -> None:
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        file = RunFile(Path(folder) / "run.sqlite", dict)
        began, now, early = time.perf_counter(), time.time(), memory()
        for i, first in enumerate(range(1, steps + 1, STEPS_A_LOOK)):
            file.write(look(rng, first, now + i))
            if i == 100:
                early = memory()
        file.fold()
        seconds = time.perf_counter() - began
        size = sum(path.stat().st_size for path in Path(folder).iterdir()) / 1e6
        print(f"{steps:,} steps: {size:.1f} MB, written in {seconds:.0f} s")
        print(f"memory: {early:.0f} MB after {100 * STEPS_A_LOOK:,} steps, {memory():.0f} MB after all")
        began = time.perf_counter()
        for part in Run(file.path).chunks():
            assert len(part["step"])
        print(f"read in parts in {time.perf_counter() - began:.1f} s, memory then {memory():.0f} MB")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
