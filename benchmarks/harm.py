"""Is "harmful" what was harmful? Faults are put into trainings whose unharmed twins are known.

    python benchmarks/harm.py observe FOLDER --which design     # train, keep what was said and what the loss did
    python benchmarks/harm.py score FOLDER --which design       # precision and recall, without training
    python benchmarks/harm.py judge FOLDER                      # over the judged kinds; writes the results

Each run is one of the kinds of `kinds.py`, watched with the defaults (or without clipping), looked at every 25 steps.
It has a twin: same start, same batches, same rates, no fault. What was said is the worst grade of all episodes from the
fault on. What was true is read from the end backwards, from the losses of both alone (`was_harmed`).

The design kinds were in view when grades were worked on; the judged ones were run once.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pickle
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

RESULTS = Path(__file__).parent / "results" / "harm.json"
STEPS, ONSET, LOOK_EVERY = 1200, 600, 25
#: Each seed is watched with one policy: what is not clipped does more harm.
SEEDS = {0: "auto", 1: "observe"}

#: Steps after the end of a fault within which the loss of a harmless one is back; then so many are compared.
BACK, COMPARED = 50, 200


class Plan:
    """What a run is given at each step.

    Attributes:
      batches: arrays of each step.
      rates: learning rate of each step.
      damage: step -> what a kernel is multiplied by before it.
      last: the last step that the fault touches.
    """

    def __init__(self, batches: list[tuple[np.ndarray, ...]], rates: np.ndarray) -> None:
        self.batches, self.rates = batches, rates
        self.damage: dict[int, float] = {}
        self.last = ONSET


def _each(count: int, change: Callable[[tuple[np.ndarray, ...], np.random.Generator], tuple[Any, ...]]) -> Any:
    """Changes so many batches from `ONSET` on."""

    def put(plan: Plan, rng: np.random.Generator) -> None:
        plan.last = min(ONSET + count, STEPS) - 1
        for i in range(ONSET, plan.last + 1):
            before = plan.batches[i]
            plan.batches[i] = tuple(np.asarray(x, b.dtype) for x, b in zip(change(before, rng), before))

    return put


def _first(batch: tuple[np.ndarray, ...]) -> int:
    """Which array is the first; a single number, such as the step, is none."""
    return next(i for i, x in enumerate(batch) if x.ndim)


def _larger(factor: float) -> Any:
    """The first array; words are put into other places."""

    def change(batch: tuple[np.ndarray, ...], rng: np.random.Generator) -> tuple[Any, ...]:
        changed = list(batch)
        x = changed[_first(batch)]
        changed[_first(batch)] = x * factor if x.dtype.kind == "f" else rng.permuted(x, axis=None)
        return tuple(changed)

    return change


def _mixed(batch: tuple[np.ndarray, ...], rng: np.random.Generator) -> tuple[Any, ...]:
    """The last array belongs to other examples; where it is the only one, its places are mixed."""
    arrays = [i for i, x in enumerate(batch) if x.ndim]
    last, changed = batch[arrays[-1]], list(batch)
    changed[arrays[-1]] = rng.permutation(last) if len(arrays) > 1 else rng.permuted(last, axis=None)
    return tuple(changed)


def _empty(batch: tuple[np.ndarray, ...], rng: np.random.Generator) -> tuple[Any, ...]:
    i = _first(batch)
    return *batch[:i], np.zeros_like(batch[i]), *batch[i + 1 :]


def _not_a_number(batch: tuple[np.ndarray, ...], rng: np.random.Generator) -> tuple[Any, ...]:
    return tuple(np.where(rng.random(x.shape) < 0.01, np.nan, x) if x.dtype.kind == "f" else x for x in batch)


def _faster(count: int, factor: float) -> Callable[[Plan, np.random.Generator], None]:
    def put(plan: Plan, rng: np.random.Generator) -> None:
        end = min(ONSET + count, STEPS)
        plan.rates[ONSET:end] *= factor
        plan.last = end - 1

    return put


def _damaged(factor: float) -> Callable[[Plan, np.random.Generator], None]:
    return lambda plan, rng: plan.damage.update({ONSET: factor})


#: What is done to a run at step `ONSET`, from what is nothing to what ends it.
FAULTS: dict[str, Callable[[Plan, np.random.Generator], None]] = {
    "nothing": lambda plan, rng: None,
    "a batch x 100": _each(1, _larger(100.0)),
    "20 batches x 30": _each(20, _larger(30.0)),
    "a batch of NaN": _each(1, _not_a_number),
    "20 batches mixed": _each(20, _mixed),
    "all batches mixed": _each(STEPS, _mixed),
    "all batches empty": _each(STEPS, _empty),
    "the rate x 10 for 5 steps": _faster(5, 10.0),
    "the rate x 100 for 60 steps": _faster(60, 100.0),
    "the rate x 100 from then on": _faster(STEPS, 100.0),
    "a layer x 1.5": _damaged(1.5),
    "a layer x 30": _damaged(30.0),
}


class Run(NamedTuple):
    """What was said of one run, and what its losses and those of its twin were."""

    kind: str
    seed: int
    fault: str
    last: int
    said: str
    episodes: list[tuple[str, str, int]]
    losses: np.ndarray
    twin: np.ndarray


class Watched:
    """One kind of training, its step watched; begins again with each run."""

    def __init__(self, kind: str, policy: str) -> None:
        import kinds
        import tensorflow as tf

        import gradwatch

        self.kind, self.training = kind, kinds.KINDS[kind]()
        training = self.training
        sides = training.sides
        named = {f"{kind} {i}": optimizer for i, optimizer in enumerate(training.optimizers)}

        def step(*batch: Any) -> Any:
            losses, _ = training.step(*batch)
            return losses

        body = tf.function(step, jit_compile=True, reduce_retracing=True)
        if len(sides) > 1:
            # which of the two losses belongs to which side is not known from the output
            self.step = gradwatch.watch(body, optimizer=named, policy=policy, loss=lambda losses: losses[0])
        else:
            self.step = gradwatch.watch(body, name=kind, policy=policy, loss=lambda losses: losses[0])
        self.monitors = list(self.step.monitors.values())

    def plan(self, seed: int) -> tuple[Plan, np.random.Generator]:
        rng = self.training.restart(seed)
        for monitor in self.monitors:
            monitor.reset()
        batches = [self.training.batch(rng, i) for i in range(STEPS)]
        rates = np.array([self.training.factor * self.training.rate(i, 5000) for i in range(STEPS)])
        return Plan(batches, rates), rng

    def train(self, plan: Plan) -> tuple[np.ndarray, list[tuple[str, str, int]]]:
        """(losses of the first side, episodes that were open from the fault on: kind, grade, step)."""
        from gradwatch.core.snapshot import KINDS
        from gradwatch.reading.harm import HarmWatch

        monitor, watch = self.monitors[0], HarmWatch()
        losses, found = [], {}
        seen_at, before, rate, now = dict.fromkeys(KINDS, 0.0), dict.fromkeys(KINDS, 0), None, 1000.0
        kernels = [v for v in self.training.sides[0] if len(v.shape) >= 2]
        for i in range(STEPS):
            if plan.rates[i] != rate:
                rate = plan.rates[i]
                for optimizer in self.training.optimizers:
                    optimizer.learning_rate.assign(rate)
            if i in plan.damage:
                v = kernels[len(kernels) // 2]
                v.assign(v * plan.damage[i])
            losses.append(self.step(*plan.batches[i])[0])
            if (i + 1) % LOOK_EVERY == 0:
                now += 10.0
                reading = monitor.read()
                snapshot = dataclasses.replace(reading.snapshot, time=now)
                for kind in KINDS:
                    if snapshot.anomalies[kind] > before[kind]:
                        seen_at[kind] = now
                before = dict(snapshot.anomalies)
                harm = watch.look(snapshot, reading.history, seen_at)
                for kind, episode in harm.newest.items():
                    # by what it was graded last, and worst
                    key = kind, episode.step
                    grades = ("harmless", "harmful", "fatal")
                    found[key] = max(found.get(key, "harmless"), episode.grade, key=grades.index)
        return np.array([float(x) for x in losses]), [(kind, grade, step) for (kind, step), grade in found.items()]


def observe(folder: Path, names: Sequence[str]) -> None:
    """Every fault in every kind, with every seed; a file for each kind."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind in names:
        path = folder / f"{kind}.pickle"
        if path.exists():
            continue
        began, runs = time.process_time(), []
        for seed, policy in SEEDS.items():
            watched, twin = Watched(kind, policy), None
            for fault, put in FAULTS.items():
                plan, rng = watched.plan(seed)
                put(plan, rng)
                losses, episodes = watched.train(plan)
                twin = losses if twin is None else twin
                grades = ["harmless", *(grade for _, grade, step in episodes if step > ONSET - 5)]
                said = max(grades, key=("harmless", "harmful", "fatal").index)
                runs.append(Run(kind, seed, fault, plan.last, said, episodes, losses, twin))
        path.write_bytes(pickle.dumps([tuple(run) for run in runs]))
        print(f"{kind}: {time.process_time() - began:.0f} s", flush=True)


# -- the truth --------------------------------------------------------------------------------------------


def was_harmed(losses: np.ndarray, twin: np.ndarray, last: int) -> bool:
    """Whether the loss was still worse than the twin's once a harmless fault is over.

    Compared are the medians of the `COMPARED` steps that begin `BACK` steps after the fault's last one (of a fault that
    does not end: the run's last `COMPARED`). Worse: above it by a tenth of the twin's loss or by its deviation,
    whichever is more; or not finite.
    """
    start = min(last + 1 + BACK, STEPS - COMPARED)
    mine, usual = losses[start : start + COMPARED], twin[start : start + COMPARED]
    middle = float(np.median(usual))
    spread = 1.4826 * float(np.median(np.abs(usual - middle)))
    worse = float(np.median(np.where(np.isfinite(mine), mine, np.inf))) - middle
    return worse > max(0.1 * abs(middle), spread)


def score(runs: Sequence[Run], *, verbose: bool = True) -> dict[str, Any]:
    """Precision and recall of "harmful" (or worse), and each fault's share."""
    told: Counter[tuple[bool, bool]] = Counter()
    rows: dict[str, Counter[tuple[bool, bool]]] = {fault: Counter() for fault in FAULTS}
    for run in runs:
        truth, said = was_harmed(run.losses, run.twin, run.last), run.said != "harmless"
        told[truth, said] += 1
        rows[run.fault][truth, said] += 1
        if verbose and truth != said:
            start = min(run.last + 1 + BACK, STEPS - COMPARED)
            mine, usual = (np.median(x[start : start + COMPARED]) for x in (run.losses, run.twin))
            word = "missed" if truth else "false"
            shown = [e for e in run.episodes if e[2] > ONSET - 5]
            print(f"{word}: {run.kind} {run.seed} {run.fault}: loss {mine:.4g}, twin {usual:.4g}; {shown}")
    right, false, missed = told[True, True], told[False, True], told[True, False]
    return {
        "runs": len(runs),
        "harmed": right + missed,
        "precision": right / max(right + false, 1),
        "recall": right / max(right + missed, 1),
        "faults": [[f, *(int(c[t, s]) for t, s in _CELLS)] for f, c in rows.items() if c],
    }


def report(found: dict[str, Any]) -> str:
    """The two goals, and what was said of each fault, as tables."""
    import setting

    right, false = (sum(row[i] for row in found["faults"]) for i in (1, 3))
    rows = [
        ["precision", f"{found['precision']:.1%} ({right} of {right + false})", "95 %"],
        ["recall", f"{found['recall']:.1%} ({right} of {found['harmed']})", "95 %"],
    ]
    for row in rows:
        row.append("met" if float(row[1].split("%")[0]) >= 95 else "**missed**")
    head = ["fault", "harmed, said so", "harmed, not said", "harmless, called harmful", "harmless, said so"]
    faults = [[str(x) for x in row] for row in found["faults"]]
    goals = setting.table(['"harmful"', f"of {found['runs']} runs", "goal", ""], rows)
    return f"{goals}\n\n{setting.table(head, faults)}"


_CELLS = ((True, True), (True, False), (False, True), (False, False))


def load(folder: Path, names: Sequence[str]) -> list[Run]:
    return [
        Run(*row)
        for name in names
        if (folder / f"{name}.pickle").exists()
        for row in pickle.loads((folder / f"{name}.pickle").read_bytes())
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["observe", "score", "judge"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--which", choices=["design", "judged"], default="design")
    parser.add_argument("--kinds", nargs="*")
    given = parser.parse_args()
    import healthy

    which = "judged" if given.what == "judge" else given.which
    names = given.kinds or (healthy.JUDGED if which == "judged" else healthy.DESIGN)
    if given.what == "observe":
        observe(given.folder, names)
        return
    found = score(load(given.folder, names), verbose=given.what == "score")
    print(json.dumps(found, indent=1))
    if given.what == "judge":
        import setting

        setting.write(RESULTS, {"machine": setting.machine(), **found})


if __name__ == "__main__":
    main()
