"""How policies and detectors behave on synthetic gradient norms: the tables of docs/policies, detectors and sketch.

    python benchmarks/behaviour.py            # some minutes
    python benchmarks/behaviour.py --quick    # one minute, rougher

Everything runs in numpy, on the code that runs in the training graph.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import numpy as np

from gradwatch.core import detectors, policies, sketch
from gradwatch.core.xp import NUMPY
from gradwatch.testing import replay, streams

POLICIES = {
    "percentile": policies.percentile,
    "percentile(90, window=250)": lambda: policies.percentile(90, window=250),
    "median": policies.median,
    "zscore": policies.zscore,
    "per_variable": policies.per_variable,
    "auto, of an optimizer that is not known": policies.auto,
    "per_variable(winsorise=1), AdaGC's": lambda: policies.per_variable(winsorise=1),
}
BURN_IN = 3000  # steps before anything is measured: a window of 1,000 is full


def share_clipped(clip_norm: np.ndarray, level: float, sigma: float) -> np.ndarray:
    """P(norm > clip_norm) of log-normal norms around `level`: exact, so that few steps suffice."""
    z = np.log(np.ravel(clip_norm).astype(np.float64) / level) / sigma
    return np.array([0.5 * math.erfc(x / math.sqrt(2)) for x in z])


def recovery_steps(policy: policies.Policy, before: replay.Clips, times: float, sigma: float, seed: int) -> int:
    """Steps after a lasting rise until the share clipped (mean of 20 steps) stays below twice the usual + 0.03."""
    usual = share_clipped(before.clip_norm[-500:], 1.0, sigma).mean()
    norms = streams.lognormal(np.random.default_rng([seed, 1]), 1200, sigma) * times
    share = share_clipped(replay.policy(policy, norms, before.state).clip_norm, times, sigma)
    above = np.flatnonzero(np.convolve(share, np.ones(20) / 20, "valid") > 2 * usual + 0.03)
    return int(above[-1]) + 1 if len(above) else 0


def measure_policies(seeds: int) -> list[dict[str, object]]:
    rows = []
    for name, make in POLICIES.items():
        for sigma in (0.1, 0.3, 0.8):
            shares, shifts, growth = [], {3.0: [], 10.0: []}, []
            for seed in range(seeds):
                rng = np.random.default_rng([seed, 0])
                before = replay.policy(make(), streams.lognormal(rng, BURN_IN, sigma))
                shares.append(share_clipped(before.clip_norm[-1000:], 1.0, sigma).mean())
                for times, found in shifts.items():
                    found.append(recovery_steps(make(), before, times, sigma, seed))
                rising = streams.growth(streams.lognormal(rng, 100, sigma), 0, 0.05)
                after = replay.policy(make(), rising, before.state).clip_norm.ravel()
                growth.append(after[[19, 39, 99]] / before.clip_norm[-200:].mean())
            rows.append(
                {
                    "policy": name,
                    "sigma": sigma,
                    "share clipped": round(float(np.mean(shares)), 3),
                    **{f"x{times:g}: steps": _middle_and_worst(found) for times, found in shifts.items()},
                    **{
                        f"growth, step {at}": f"x {x:.2f}"
                        for at, x in zip((20, 40, 100), np.median(np.array(growth), axis=0))
                    },
                }
            )
            print(rows[-1], flush=True)
    return rows


def _middle_and_worst(found: list[int]) -> str:
    return f"{int(np.median(found))} ({max(found)})"


def measure_false_alarms(many: int, steps: int) -> list[dict[str, object]]:
    rng = np.random.default_rng(0)
    cases = {
        "log-normal 0.3": streams.lognormal(rng, steps, 0.3, many),
        "log-normal 0.8": streams.lognormal(rng, steps, 0.8, many),
        "normal, 20 %": np.abs(1 + 0.2 * rng.standard_normal((steps, many))) + 1e-3,
        "AR(1) 0.9, 0.3": streams.correlated(rng, steps, 0.3, 0.9, many),
        "AR(1) 0.9, 0.8": streams.correlated(rng, steps, 0.8, 0.9, many),
        "AR(1) 0.99, 0.3": streams.correlated(rng, steps, 0.3, 0.99, many),
        "training-like decay": streams.decaying(rng, steps, 0.3, many),
        "Pareto 2.5": streams.pareto(rng, steps, 2.5, many),
    }
    rows = []
    for case, norms in cases.items():
        row: dict[str, object] = {"stream": case}
        for name in ("spike", "trend", "vanishing"):
            made = detectors.DETECTORS[name]()
            alarm = replay.detector(made, norms).alarm
            row[name] = round(1e4 * replay.episodes(alarm, made.cooldown_steps) / alarm.size, 3)
        rows.append(row)
        print(row, flush=True)
    return rows


def measure_detection(many: int) -> list[dict[str, object]]:
    rng = np.random.default_rng(1)
    rows = []
    for sigma in (0.1, 0.3, 0.8):
        calm = streams.lognormal(rng, 1300, sigma, many)
        row: dict[str, object] = {"log-normal": sigma}
        for times in (3, 10, 50, 100):
            found = replay.detector(detectors.spike(), streams.spike(calm, 1000, times)[:1001]).alarm[1000]
            row[f"spike x{times}: found"] = round(float(found.mean()), 3)
        for rate in (0.01, 0.05, 0.2):
            rising = streams.growth(calm, 1000, rate)
            alarm = replay.detector(detectors.spike(), rising).alarm | replay.detector(detectors.trend(), rising).alarm
            delay = np.where(alarm[1000:].any(axis=0), alarm[1000:].argmax(axis=0) + 1, 999)
            row[f"growth {rate:.0%}: steps"] = f"{int(np.median(delay))} ({int(np.quantile(delay, 0.95))})"
        rows.append(row)
        print(row, flush=True)
    return rows


def measure_sketch(steps: int) -> list[dict[str, object]]:
    """Largest error of a quantile against the exact weighted one, and how far float32 weights move a rank."""
    rng = np.random.default_rng(2)
    cases = {
        "log-normal 0.3": streams.lognormal(rng, steps, 0.3),
        "log-normal 3": streams.lognormal(rng, steps, 3.0),
        "Pareto 1.1": streams.pareto(rng, steps, 1.1),
        "two humps six decades apart": np.where(rng.random(steps) < 0.4, 1e-3, 1e3) * streams.lognormal(rng, steps),
    }
    rows = []
    for window in (10, 1000, 10_000, 100_000):
        decay = 1 - 1 / window
        row: dict[str, object] = {"window": window}
        moved = 0.0
        for case, values in cases.items():
            state = sketch.init()
            for x in np.log(values).astype(np.float32):
                state = sketch.update(NUMPY, state, x, np.bool_(True), decay)
            order = np.argsort(values)
            weights = (decay ** np.arange(steps - 1, -1, -1.0))[order]
            share = np.cumsum(weights) / weights.sum()
            error = 0.0
            for q in (0.01, 0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99):
                exact = values[order][np.searchsorted(share, q)]
                error = max(error, abs(math.exp(sketch.log_quantile(NUMPY, state, q)) / exact - 1))
            row[case] = f"{error:.2%}"
            ends = np.exp((np.arange(sketch.BUCKETS) + state["origin"] - sketch.BUCKETS // 2) * sketch.WIDTH)
            at = np.searchsorted(values[order], ends, side="right")
            held = state["cumulative"] / state["cumulative"][-1]
            moved = max(moved, float(np.abs(held - np.append(0.0, share)[at]).max()))
        row["rank moved"] = f"{moved:.1e}"
        rows.append(row)
        print(row, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer seeds and streams")
    parser.add_argument("--output", type=Path, help="also write the numbers here, as JSON")
    options = parser.parse_args()
    print("Policies on log-normal norms: share of steps clipped, steps until a lasting rise is followed (median, worst")
    print("seed), and where clip_norm stands while the norm grows by 5 % a step (it is at x 2.7, x 7.0 and x 131).")
    results = {"policies": measure_policies(1 if options.quick else 5)}
    print("\nFalse alarms: episodes in 10,000 steps.")
    results["false alarms"] = measure_false_alarms(*((100, 2000) if options.quick else (1000, 3000)))
    print("\nDetection: share of spikes found on their own step; steps until sustained growth alarms (median, 95 %).")
    results["detection"] = measure_detection(200 if options.quick else 1000)
    print("\nSketch: largest relative error of eight quantiles; how far float32 weights move a rank.")
    results["sketch"] = measure_sketch(3000 if options.quick else 20_000)
    if options.output:
        options.output.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
