"""Does a run that explodes beyond clipping come through by itself?

    python benchmarks/recovery.py --quick               a few runs of one seed, two minutes
    nice python benchmarks/recovery.py --seeds 5        everything: an hour or two; stop and start it at will
    python benchmarks/recovery.py --report              the tables of what is finished
    python benchmarks/recovery.py --cost                what the ladder costs a healthy run, armed and idle

Forty kinds of run that explode (rates beyond what clipping holds, schedules that jump, corrupt stretches of data,
damaged weights, operations that give NaN, overflows of half precision) and twenty healthy ones, on one small
classification whose data never end: 64 inputs, 10 classes, a tenth of the labels wrong, so that its loss has a floor.

A run is judged by the loss on the same 2,000 clean examples at its end, relative to that of the run without the fault:
same seed, same batches, the rate that suits the optimizer. Saved: at most 5 % above it. A fault that no lower rate and
no cleaner data can mend is to be stopped, within 200 steps of its beginning. What does not begin with the first step
begins in the middle, with each seed 7 steps later, so that looks and snapshots meet it at different distances.

Peers: nothing; clipping alone (gradwatch without recover=); TerminateOnNaN with BackupAndRestore as the Keras guide
shows it (a backup every 100 steps; a NaN loss ends the run, which begins again from the backup, up to five times, and
goes on with the next data); and a random ladder: the same rungs, drawn by chance each time the signs say that something
is wrong (arXiv 2301.11568 found chance to be comparable).
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import setting

RESULTS = setting.results_file("recovery", quick=False)

INPUTS, CLASSES, BATCH, WIDTH = 64, 10, 32, 32
BASE_RATE = {"sgd": 0.05, "adam": 0.003, "half": 0.05}
METHODS = ("nothing", "clipping", "BackupAndRestore", "random ladder", "ladder")
ALLOWED = 1.05
STOP_WITHIN = 200


# -- the task ---------------------------------------------------------------------------------------------


class Data:
    """Batches without end, equal for equal seeds."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._directions = np.random.default_rng(12345).normal(size=(INPUTS, CLASSES)).astype(np.float32)

    def batch(self, step: int, size: int = BATCH, *, clean: bool = False) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng([self._seed, step])
        x = rng.standard_normal((size, INPUTS), np.float32)
        y = np.argmax(np.tanh(x) @ self._directions + 2.0 * rng.standard_normal((size, CLASSES)), axis=1)
        wrong = np.zeros(size, bool) if clean else rng.random(size) < 0.1
        return x, np.where(wrong, rng.integers(0, CLASSES, size), y).astype(np.int32)


@functools.lru_cache(maxsize=2)
def batches(seed: int, steps: int) -> list[tuple[np.ndarray, np.ndarray, Any, Any]]:
    """All batches of a seed, made once for all of its runs: as arrays and as tensors; the first is of step 0."""
    import tensorflow as tf

    data = Data(seed)
    return [(x, y, tf.constant(x), tf.constant(y)) for x, y in map(data.batch, range(steps + 1))]


@dataclass(frozen=True)
class Fault:
    """One kind of run.

    Attributes:
      name: unique.
      optimizer: "sgd", "adam" or "half": SGD in mixed_float16 with a loss scale.
      rate: step -> factor of the base rate.
      data: (step, x, y) -> (x, y).
      broken: step -> whether an operation of the loss gives NaN.
      damage: (step, weights) -> weights, or None to leave them; called between two steps.
      begins: the step at which the fault begins.
      right: the kind of the diagnosis that is right, of a fault that no lower rate and no cleaner data can mend; "" for
        one that can be saved.
    """

    name: str
    optimizer: str
    rate: Callable[[int], float] = lambda step: 1.0
    data: Callable[[int, Any, Any], tuple[Any, Any]] = lambda step, x, y: (x, y)
    broken: Callable[[int], bool] = lambda step: False
    damage: Callable[[int, list[np.ndarray]], list[np.ndarray] | None] = lambda step, weights: None
    begins: int = 0
    right: str = ""


def within(first: int, count: float) -> Callable[[int], bool]:
    return lambda step: first <= step < first + count


def faults(at: int) -> list[Fault]:
    """The runs that explode; `at` is the step at which the later ones begin."""
    found: list[Fault] = []
    for optimizer, factors in {"sgd": (30, 100, 1000, 1e5), "adam": (100, 1e3, 1e4, 1e6), "half": (100, 1e4)}.items():
        found += [Fault(f"{optimizer} at {f:g} times its rate", optimizer, rate=lambda _, f=f: f) for f in factors]
        forever, passing = within(at, math.inf), within(at, 60)
        for f in factors[1:3]:
            found += [
                Fault(f"{optimizer}, {f:g} times from a step on", optimizer, _jump(forever, f), begins=at),
                Fault(f"{optimizer}, {f:g} times for 60 steps", optimizer, _jump(passing, f), begins=at),
            ]
    for optimizer in ("sgd", "adam"):
        for count in (5, 60):
            bad = within(at, count)
            found += [
                Fault(f"{optimizer}, NaN in {count} batches", optimizer, data=_x(bad, math.nan), begins=at),
                Fault(f"{optimizer}, {count} batches times 1e4", optimizer, data=_x(bad, 1e4), begins=at),
                Fault(f"{optimizer}, NaN operation for {count} steps", optimizer, broken=bad, begins=at),
            ]
        found += [
            Fault(f"{optimizer}, a weight becomes 1e6", optimizer, damage=_flip(at, 1e6), begins=at),
            Fault(f"{optimizer}, a weight becomes NaN", optimizer, damage=_flip(at, math.nan), begins=at),
            Fault(f"{optimizer}, NaN operation for good", optimizer, broken=forever, begins=at, right="loss_operation"),
            Fault(
                f"{optimizer}, NaN in all batches",
                optimizer,
                data=_x(forever, math.nan),
                begins=at,
                right="nonfinite_input",
            ),
        ]
    found += [
        Fault("half, 60 batches times 1e4", "half", data=_x(within(at, 60), 1e4), begins=at),
        Fault("half, a weight becomes 1e6", "half", damage=_flip(at, 1e6), begins=at),
    ]
    return found


def _jump(when: Callable[[int], bool], factor: float) -> Callable[[int], float]:
    return lambda step: factor if when(step) else 1.0


def _x(when: Callable[[int], bool], factor: float) -> Callable[[int, Any, Any], tuple[Any, Any]]:
    return lambda step, x, y: (x * np.float32(factor), y) if when(step) else (x, y)


def _flip(at: int, value: float) -> Callable[[int, list[np.ndarray]], list[np.ndarray] | None]:
    def damage(step: int, weights: list[np.ndarray]) -> list[np.ndarray] | None:
        if step != at:
            return None
        weights[0][3, 5] = value
        return weights

    return damage


def healthy(steps: int) -> list[Fault]:
    """Runs with nothing wrong: rates, schedules, hard but sound data."""
    found = []
    for optimizer in ("sgd", "adam"):
        found += [
            Fault(f"{optimizer}, {f:g} times its rate", optimizer, rate=lambda _, f=f: f) for f in (0.1, 0.3, 1, 2)
        ]
        found += [
            Fault(f"{optimizer}, warm-up", optimizer, rate=lambda s: min(1.0, s / 200)),
            Fault(f"{optimizer}, cosine", optimizer, rate=lambda s: 0.5 + 0.5 * math.cos(math.pi * s / steps)),
            Fault(f"{optimizer}, steps down", optimizer, rate=lambda s: 0.1 ** (s // (steps // 3))),
            Fault(f"{optimizer}, other data", optimizer, data=lambda s, x, y: (x, (y + (s > steps // 2)) % CLASSES)),
            Fault(f"{optimizer}, some batches twice as large", optimizer, data=_x(lambda s: s % 37 == 0, 2.0)),
        ]
    return found + [Fault("half", "half"), Fault("half, 0.3 times its rate", "half", rate=lambda _: 0.3)]


# -- training ---------------------------------------------------------------------------------------------


@dataclass
class Run:
    """What came of one run."""

    loss: float
    lost_steps: int = 0
    stopped_at: int | None = None
    verdict: str = ""
    diagnosis: str = ""
    did: dict[str, int] = field(default_factory=dict)
    weights: list[np.ndarray] = field(default_factory=list)


class Trainer:
    """One optimizer and one method, compiled once: weights, slots and monitor begin anew with each run."""

    def __init__(self, optimizer: str, method: str) -> None:
        import keras
        import tensorflow as tf

        import gradwatch
        from gradwatch import recovery

        self.tf, self.method, self.kind = tf, method, optimizer
        keras.mixed_precision.set_dtype_policy("mixed_float16" if optimizer == "half" else "float32")
        layers = [keras.layers.Dense(WIDTH, activation="relu") for _ in range(2)]
        last = keras.layers.Dense(CLASSES, dtype="float32")
        self.net = net = keras.Sequential([keras.layers.Input((INPUTS,)), *layers, last])
        keras.mixed_precision.set_dtype_policy("float32")
        made: Any = keras.optimizers.Adam(0.003) if optimizer == "adam" else keras.optimizers.SGD(0.05, momentum=0.9)
        self.inner = made
        self.optimizer = outer = keras.optimizers.LossScaleOptimizer(made) if optimizer == "half" else made
        outer.build(net.trainable_variables)
        loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

        @tf.function
        def step(x: Any, y: Any, broken: Any) -> Any:
            with tf.GradientTape() as tape:
                loss = loss_of(y, net(x, training=True)) * (1.0 + tf.sqrt(-broken))
                scaled = outer.scale_loss(loss) if optimizer == "half" else loss
            outer.apply_gradients(zip(tape.gradient(scaled, net.trainable_variables), net.trainable_variables))
            return loss

        @tf.function
        def judge(x: Any, y: Any) -> Any:
            return loss_of(y, net(x, training=False))

        self.judge, self.step, self.monitor = judge, step, None
        self.test = Data(99).batch(0, 2000, clean=True)
        self.calm, self.broken = tf.constant(0.0), tf.constant(1.0)
        if method not in ("nothing", "BackupAndRestore"):
            recover = recovery.ladder() if "ladder" in method else None
            self.step = gradwatch.watch(step, name=method, recover=recover)
            self.monitor = self.step.monitor
        self.variables = [*net.variables, *outer.variables, *(made.variables if made is not outer else [])]
        self.first = [np.array(tf.convert_to_tensor(v)) for v in self.variables]

    def run(self, fault: Fault, seed: int, steps: int, *, keep: bool = False) -> Run:
        import keras

        import gradwatch
        from gradwatch.errors import TrainingStopped

        keras.utils.set_random_seed(seed)
        for v, value in zip(self.variables, self.first):
            v.assign(value)
        rng = np.random.default_rng([seed, 7])
        for v in self.net.trainable_variables:
            if len(v.shape) == 2:
                v.assign(rng.normal(size=v.shape) * math.sqrt(2.0 / v.shape[0]))
        if self.monitor is not None:
            self.monitor.reset()
            if self.method == "random ladder":
                self._by_chance(random.Random(seed))
        given, run, base = batches(seed, steps), Run(math.nan), BASE_RATE[self.kind]
        backup, restarts, lossless, rate = self._values(), 0, 0, math.nan
        restarting = self.method == "BackupAndRestore"
        for i in range(1, steps + 1):
            wanted = base * fault.rate(i)
            if wanted != rate:
                rate = wanted
                self.inner.learning_rate.assign(rate)
            damaged = (
                fault.damage(i, [np.array(v) for v in self.net.trainable_variables]) if i == fault.begins else None
            )
            if damaged is not None:
                for v, value in zip(self.net.trainable_variables, damaged):
                    v.assign(value)
            plain_x, plain_y, *tensors = given[i]
            x, y = fault.data(i, plain_x, plain_y)
            if x is plain_x and y is plain_y:
                x, y = tensors
            try:
                loss = float(self.step(x, y, self.broken if fault.broken(i) else self.calm))
            except TrainingStopped as stopped:
                run.stopped_at, run.verdict = i, stopped.verdict
                run.diagnosis = gradwatch.diagnose(self.monitor).kind
                break
            if restarting and i % 100 == 0 and math.isfinite(loss):
                backup = self._values()
            if restarting and not math.isfinite(loss):
                if restarts == 5:
                    run.stopped_at = i
                    break
                restarts += 1
                run.lost_steps += i - (i - 1) // 100 * 100
                for v, value in zip(self.variables, backup):
                    v.assign(value)
            lossless = 0 if math.isfinite(loss) else lossless + 1
            if lossless >= 300:
                break  # it will not come back by itself
        run.loss = float(self.judge(*self.test))
        if self.monitor is not None and self.monitor._healer is not None:
            seen = self.monitor.snapshot()
            run.did, run.lost_steps = dict(seen.recoveries), sum(seen.lost_steps.values())
        if keep:
            run.weights = self._values()
        return run

    def _values(self) -> list[np.ndarray]:
        return [np.array(self.tf.convert_to_tensor(v)) for v in self.variables]

    def _by_chance(self, rng: random.Random) -> None:
        """The ladder answers with one of its rungs, whatever the trouble."""
        from gradwatch.recovery.course import Answer

        course = self.monitor._healer._course

        def answer(step: int, trouble: Any, **_: Any) -> Answer | None:
            rung = rng.choice(["skip", "lower", "rollback", "stop"])
            if rung == "skip":
                return None
            return course._take(step, trouble, (rung,), None)

        course.answer = answer


# -- everything -------------------------------------------------------------------------------------------


def lines(path: Path) -> list[dict[str, Any]]:
    target = path.with_suffix(".jsonl")
    return [json.loads(line) for line in target.read_text().splitlines()] if target.exists() else []


def work(seeds: list[int], steps: int, methods: list[str], only: str, path: Path) -> None:
    done = {(x["run"], x["seed"], x["method"], x["steps"]) for x in lines(path)}
    # each seed begins its faults at another distance from the looks and the snapshots
    exploding = {seed: [f for f in faults(steps // 2 + 7 * seed) if only in f.name] for seed in seeds}
    sound = [f for f in healthy(steps) if only in f.name]
    for kind in BASE_RATE:
        calm = [f for f in sound if f.optimizer == kind]
        reference = Fault(f"{kind} without a fault", kind)
        jobs = {"clipping": [reference, *calm], "ladder": calm}
        for method in dict.fromkeys(["clipping", *methods]):
            mine = {s: [f for f in exploding[s] if f.optimizer == kind and method in methods] for s in seeds}
            wanted = [(f, s) for s in seeds for f in [*jobs.get(method, []), *mine[s]]]
            wanted = [(f, s) for f, s in wanted if (f.name, s, method, steps) not in done]
            if not wanted:
                continue
            trainer = Trainer(kind, method)
            for f, seed in wanted:
                began = time.process_time()
                run = trainer.run(f, seed, steps, keep=f in calm)
                line = {
                    "run": f.name, "seed": seed, "method": method, "steps": steps, "kind": kind,
                    "group": "reference" if f is reference else "healthy" if f in calm else "exploding",
                    "right": f.right, "begins": f.begins, "loss": run.loss, "lost_steps": run.lost_steps,
                    "stopped_at": run.stopped_at, "verdict": run.verdict, "diagnosis": run.diagnosis,
                    "did": run.did, "digest": _digest(run.weights),
                    "cpu_seconds": round(time.process_time() - began, 2),
                }  # fmt: skip
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.with_suffix(".jsonl").open("a") as file:
                    file.write(json.dumps(line) + "\n")
                print(f"{method:17} {f.name:40} seed {seed}  loss {run.loss:8.4g}  {run.did or ''}", flush=True)


def _digest(weights: list[np.ndarray]) -> str:
    import hashlib

    return hashlib.sha256(b"".join(w.tobytes() for w in weights)).hexdigest()[:16] if weights else ""


def summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    """The numbers that the goals are about."""
    floor = {(x["kind"], x["seed"], x["steps"]): x["loss"] for x in found if x["group"] == "reference"}
    rows: dict[str, Any] = {}
    families: dict[str, dict[str, str]] = {}
    for method in METHODS:
        runs = [x for x in found if x["group"] == "exploding" and x["method"] == method]
        savable = [x for x in runs if not x["right"]]
        others = [x for x in runs if x["right"]]
        if not runs:
            continue
        saved = [x for x in savable if _is_saved(x, floor)]
        stopped = [x for x in others if x["stopped_at"] and x["stopped_at"] - x["begins"] <= STOP_WITHIN]
        rows[method] = {
            "seeds": len({x["seed"] for x in runs}),
            "savable": len(savable),
            "saved": len(saved),
            "saved, stopped by mistake": sum(x["stopped_at"] is not None for x in savable),
            "steps lost, median": float(np.median([x["lost_steps"] for x in savable])),
            "steps lost, median share": float(np.median([x["lost_steps"] / x["steps"] for x in savable])),
            "not savable": len(others),
            "stopped in time": len(stopped),
            "and for the right cause": sum(x["diagnosis"] == x["right"] for x in stopped),
            "not saved": _misses(savable, floor),
        }
        for family in dict.fromkeys(map(_family, savable)):
            mine = [x for x in savable if _family(x) == family]
            done = sum(_is_saved(x, floor) for x in mine)
            families.setdefault(family, {})[method] = f"{done} of {len(mine)}"
    pairs: dict[tuple[Any, ...], dict[str, Any]] = {}
    for x in found:
        if x["group"] == "healthy":
            pairs.setdefault((x["run"], x["seed"], x["steps"]), {})[x["method"]] = x
    both = [p for p in pairs.values() if {"clipping", "ladder"} <= set(p)]
    same = [p for p in both if p["clipping"]["digest"] == p["ladder"]["digest"] and not _acted(p["ladder"])]
    return {
        "methods": rows,
        "families": families,
        "healthy": len(both),
        "healthy and bit-identical": len(same),
        "steps": sorted({x["steps"] for x in found}),
    }


def _family(x: dict[str, Any]) -> str:
    """What kind of fault it is, for a table."""
    name = x["run"]
    if " at " in name:
        return f"a rate too high from the first step on, {x['kind']}"
    for text, family in {
        "from a step on": "a rate too high from the middle on",
        "times for 60 steps": "a rate too high for 60 steps",
        "NaN in": "5 or 60 batches of NaN",
        "batches times": "5 or 60 batches times 1e4",
        "NaN operation": "5 or 60 steps of a NaN operation",
        "a weight": "a weight becomes 1e6 or NaN",
    }.items():
        if text in name:
            return family
    raise ValueError(name)


def _misses(savable: list[dict[str, Any]], floor: dict[tuple[Any, ...], float]) -> dict[str, str]:
    """Run -> in how many seeds it was not saved, and the worst loss of these over that without the fault."""
    missed: dict[str, list[float]] = {}
    for x in savable:
        if not _is_saved(x, floor):
            ratio = x["loss"] / floor.get((x["kind"], x["seed"], x["steps"]), math.nan)
            missed.setdefault(x["run"], []).append(math.inf if x["stopped_at"] else ratio)
    return {run: f"seeds: {len(ratios)}, up to {max(ratios):.3f}" for run, ratios in sorted(missed.items())}


def _is_saved(x: dict[str, Any], floor: dict[tuple[Any, ...], float]) -> bool:
    reference = floor.get((x["kind"], x["seed"], x["steps"]))
    return reference is not None and not x["stopped_at"] and x["loss"] <= ALLOWED * reference


def _acted(x: dict[str, Any]) -> bool:
    return any(x["did"].get(rung) for rung in ("lower", "rollback", "stop"))


def report(told: dict[str, Any]) -> str:
    rows = told["methods"]
    same, all_healthy = told["healthy and bit-identical"], told["healthy"]
    parts = [f"{', '.join(map(str, told['steps']))} steps a run"]
    if "ladder" in rows:
        row = rows["ladder"]
        share, lost = row["saved"] / max(row["savable"], 1), row["steps lost, median share"]
        in_time = row["and for the right cause"]
        goals = [
            ("runs that can be saved end within 5 % of the loss without the fault", "98 %",
             f"{share:.1%} ({row['saved']} of {row['savable']})", share >= 0.98),
            ("steps lost, median of these runs", "below 1 %",
             f"{lost:.1%} ({row['steps lost, median']:.0f} steps)", lost < 0.01),
            ("the others stop within 200 steps, for the right cause", "all",
             f"{in_time} of {row['not savable']}", in_time == row["not savable"]),
            ("healthy runs bit-identical with the ladder armed", "all",
             f"{same} of {all_healthy}", same == all_healthy),
        ]  # fmt: skip
        for kind, cell in told.get("cost", {}).items():
            low, middle, high = cell["added"]
            text = f"{middle:+.1%} of {cell['us']:.0f} us ({low:+.1%} to {high:+.1%})"
            goals.append((f"armed and idle, {kind}: CPU time added to a step", "at most 1 %", text, middle <= 0.01))
        cells = [(goal, wanted, seen, "met" if met else "**missed**") for goal, wanted, seen, met in goals]
        parts.append(setting.table(("the ladder", "goal", "measured", ""), cells))
    parts.append(
        setting.table(
            ("method", "seeds", "saved", "stopped though savable", "steps lost, median", "the others stopped in time"),
            [
                (
                    method,
                    row["seeds"],
                    f"{row['saved']} of {row['savable']} ({row['saved'] / max(row['savable'], 1):.0%})",
                    row["saved, stopped by mistake"],
                    f"{row['steps lost, median']:.0f}",
                    f"{row['stopped in time']} of {row['not savable']}",
                )
                for method, row in rows.items()
            ],
        )
    )
    families = [(family, *(by.get(m, "") for m in rows)) for family, by in told["families"].items()]
    parts.append(setting.table(("saved, by the fault", *rows), families))
    missed = rows.get("ladder", {}).get("not saved", {})
    if missed:
        listed = "; ".join(f"{run} ({text})" for run, text in missed.items())
        parts.append(f"Not saved by the ladder, with the loss over that without the fault: {listed}.")
    return "\n\n".join(parts)


def cost(blocks: int = 30, steps: int = 200) -> dict[str, Any]:
    """CPU time of a step with the ladder armed over that of one without, in turns; snapshots and looks included."""
    data = [Data(0).batch(i) for i in range(50)]
    found = {}
    for kind in ("sgd", "adam"):
        pair = [Trainer(kind, "clipping"), Trainer(kind, "ladder")]
        given = [(pair[0].tf.constant(x), pair[0].tf.constant(y)) for x, y in data]
        calm = pair[0].tf.constant(0.0)
        seconds = []
        for block in range(blocks + 2):
            row = []
            for trainer in pair if block % 2 else pair[::-1]:
                began = time.process_time()
                for i in range(steps):
                    trainer.step(*given[i % len(given)], calm)
                row.append((time.process_time() - began) / steps)
            seconds.append(row if block % 2 else row[::-1])
        plain, armed = np.array(seconds[2:]).T  # the first two compile
        middle, low, high = setting.median_interval((armed / plain - 1.0).tolist())
        found[kind] = {
            "us": round(1e6 * float(np.median(plain)), 1),
            "added": [round(x, 4) for x in (low, middle, high)],
        }
    return found


def publish(path: Path, **changed: Any) -> str:
    """Write the results into one small file, and the tables of them as text."""
    before = json.loads(path.read_text()) if path.exists() else {}
    found = lines(path)
    told = {"machine": setting.machine(), **summary(found), "cost": before.get("cost", {}), **changed}
    kept = ("run", "seed", "method", "steps", "loss", "lost_steps", "stopped_at", "diagnosis", "did")
    runs = [json.dumps({key: x[key] for key in kept if x[key] not in (None, "")}) for x in found]
    text = json.dumps(told, indent=1)[:-2] + ',\n "runs": [\n  ' + ",\n  ".join(runs) + "\n ]\n}\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return report(told)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument(
        "--first-seed", type=int, default=0, help="0 to 4 are judged; for trying things out take others"
    )
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--only", default="", help="runs whose name holds this text")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--quick", action="store_true", help="SGD, one seed, 1,000 steps, the ladder alone")
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--cost", action="store_true")
    options = parser.parse_args()
    if options.cost:
        print(publish(options.output, cost=cost()))
        return
    if options.quick:
        options.seeds, options.steps, options.methods, options.only = 1, 1000, "ladder", "sgd"
        if options.output == RESULTS:
            options.output = setting.results_file("recovery", quick=True)
    if options.report:
        print(report({**json.loads(options.output.read_text()), **summary(lines(options.output))}))
        return
    seeds = list(range(options.first_seed, options.first_seed + options.seeds))
    work(seeds, options.steps, options.methods.split(","), options.only, options.output)
    print(publish(options.output))


if __name__ == "__main__":
    main()
