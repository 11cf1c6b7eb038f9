"""Does it save runs?

    python benchmarks/efficacy.py --quick              one task, under 5 minutes
    nice python benchmarks/efficacy.py                 everything: hours; stop and start it at will
    python benchmarks/efficacy.py --report             the tables of what is finished

Every method trains the same model from the same start on the same batches, side by side; only the clipping differs.
A finished group (task, learning rate, seed) is appended to a file of JSON lines and never trained again.

Judged by the mean loss of the last 5 % of the steps, never above the loss of the untrained model (as in Wortsman et
al. 2023, arXiv 2309.14322). A run has *diverged* when it ends at that bound or not finite.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# two processes, each with some of --tasks and --lines of its own, are quicker than one with threads
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")

import numpy as np
import setting
from peers import PEERS, Fixed, Peer, Seen, Verdict
from streams import RECORDED
from tasks import DESIGN_TASKS, OPTIMIZERS, TASKS, Task

from gradwatch.core import policies
from gradwatch.core.norms import of as of_norms
from gradwatch.core.policies import Policy
from gradwatch.core.xp import NUMPY

#: Constants among which the oracle chooses afterwards, for each task and learning rate; "none" is one of them.
CONSTANTS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
UNCLIPPED = "none"
ORACLE = "fixed, tuned by oracle"
DEFAULT = "gradwatch percentile(90)"
EVERY = {**TASKS, **DESIGN_TASKS}


class Gradwatch:
    """One of gradwatch's policies, with on_nonfinite="zero": what its guard does, without what it also records."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.state: Any = None
        self.loss = math.nan  # of the step before

    def step(self, norms: np.ndarray, loss: float, seen: Seen | None = None) -> Verdict:
        if self.state is None:
            self.state = self.policy.init(len(norms))
        now = of_norms(NUMPY, norms.astype(np.float32))
        self.state, clip_norm, _ = self.policy.update(NUMPY, self.state, now)
        if not now.finite:
            return Verdict(np.zeros(len(norms)), clip_norm=float(np.max(clip_norm)))
        norm = now.per_variable if self.policy.scope == policies.VARIABLE else now.total
        scale = np.where(norm > clip_norm, clip_norm / np.maximum(norm, 1e-37), 1.0)
        return Verdict(np.broadcast_to(scale, (len(norms),)), clip_norm=float(np.max(clip_norm)))


#: gradwatch's policies by the name they have in the tables; their parameters were chosen on DESIGN_TASKS.
OURS: Mapping[str, Callable[[], Policy]] = {
    "percentile(90)": policies.percentile,
    "percentile(10)": lambda: policies.percentile(10),
    "median(2)": policies.median,
    "zscore(2.5)": policies.zscore,
    "per_variable(1.05)": policies.per_variable,
    "auto": policies.auto,
    "auto(slow_start_steps=200)": lambda: policies.auto(slow_start_steps=200),
}


#: Tasks with NaN in their data, where no constant survives by itself: the oracle may choose a guarded one there.
WITH_NAN = ("digits",)


def methods(task: str | None = None) -> dict[str, Callable[[], Peer]]:
    """Every method that trains on the task, by name; of all tasks for None."""
    constants = {f"fixed {c:g}": (lambda c=c: Fixed(c)) for c in CONSTANTS}
    ours = {f"gradwatch {name}": (lambda make=make: Gradwatch(make())) for name, make in OURS.items()}
    guarded = {f"fixed {c:g}, NaN dropped": (lambda c=c: Gradwatch(policies.fixed(c))) for c in CONSTANTS}
    return {**PEERS, **constants, **ours, **(guarded if task is None or task in WITH_NAN else {})}


# -- training ---------------------------------------------------------------------------------------------


class Trainer:
    """Many runs of one task at one learning rate; run k belongs to the k-th rule."""

    def __init__(self, task: Task, rate: float, runs: int, seed: int) -> None:
        import tensorflow as tf

        self.tf, self.task, self.rate = tf, task, rate
        self.optimizer = OPTIMIZERS[task.optimizer]
        start = [p.astype(np.float32) for p in task.init(np.random.default_rng([seed, 0]))]
        self.params = [tf.Variable(np.repeat(p[None], runs, 0)) for p in start]
        slots = 1 if self.optimizer.linear else 2
        self.slots = [[tf.Variable(tf.zeros_like(p)) for p in self.params] for _ in range(slots)]
        self.counts = tf.Variable(tf.zeros([runs]))
        self.gradients = tf.function(self._gradients, autograph=False, jit_compile=True)
        self.apply = tf.function(self._apply, autograph=False, jit_compile=True)

    def _gradients(self, *batch: Any) -> Any:
        tf = self.tf
        with tf.GradientTape() as tape:
            loss = self.task.loss(self.params, *batch)
            total = tf.reduce_sum(loss)
        score = loss if self.task.score is None else self.task.score(self.params, *batch)
        grads = tape.gradient(total, self.params)
        return loss, score, self._norms(grads), self._norms(self.params), grads

    def _norms(self, tensors: list[Any]) -> Any:
        """L2 norm of each run's part of each tensor, shape [runs, variables]."""
        tf = self.tf
        axes = [list(range(1, x.shape.rank)) for x in tensors]
        return tf.stack([tf.sqrt(tf.reduce_sum(tf.square(x), a)) for x, a in zip(tensors, axes)], 1)

    def _apply(self, grads: list[Any], scale: Any, skip: Any, rate: Any) -> Any:
        """One optimizer step: scale [runs, variables], skip [runs], rate []; the norms of the changes."""
        tf, optimizer, changes = self.tf, self.optimizer, []
        t = self.counts + tf.where(skip, 0.0, 1.0)
        self.counts.assign(t)
        for i, (p, g) in enumerate(zip(self.params, grads)):
            shape = [-1, *[1] * (p.shape.rank - 1)]
            s = tf.reshape(scale[:, i], shape)
            # zero means dropped, whatever the gradient holds; NaN stays NaN
            g = tf.where(s == 0.0, tf.zeros_like(g), g * s)
            old = [slot[i] for slot in self.slots]
            if optimizer.linear:
                new = [optimizer.momentum * old[0] + g]
                change = g + optimizer.momentum * new[0] if optimizer.nesterov else new[0]
            else:
                new = [0.9 * old[0] + 0.1 * g, 0.999 * old[1] + 0.001 * tf.square(g)]
                first = new[0] / (1 - tf.reshape(0.9**t, shape))
                second = new[1] / (1 - tf.reshape(0.999**t, shape))
                change = first / (tf.sqrt(second) + 1e-8)
            keep = tf.reshape(skip, shape)
            for slot, after in zip(self.slots, new):
                slot[i].assign(tf.where(keep, slot[i], after))
            change = tf.where(keep, tf.zeros_like(p), rate * (change + optimizer.decay * p))
            p.assign(p - change)
            changes.append(change)
        return self._norms(changes)


def train(task: Task, rate: float, seed: int, rules: Mapping[str, Peer], steps: int) -> list[dict[str, Any]]:
    """One group: every rule on the same task, learning rate and seed."""
    names, judges = list(rules), list(rules.values())
    trainer = Trainer(task, rate, len(judges), seed)
    rng = np.random.default_rng([seed, 1])
    losses, scores = np.empty((steps, len(judges))), np.empty((steps, len(judges)))
    norms_of = np.empty((steps, len(judges)))
    clipped, skipped = np.zeros((steps, len(judges)), bool), np.zeros((steps, len(judges)), bool)
    change = np.zeros((len(judges), len(trainer.params)), np.float32)
    began = time.perf_counter()
    for t in range(steps):
        now = np.float32(rate * task.schedule(t / steps))
        loss, score, norms, weights, grads = trainer.gradients(*task.batch(rng, t))
        losses[t], scores[t], by_variable = loss.numpy(), score.numpy(), norms.numpy().astype(np.float64)
        known = Seen(weights.numpy(), change, float(now), trainer.optimizer.momentum, trainer.optimizer.linear)
        verdicts = [
            judge.step(by_variable[k], float(losses[t, k]), known._replace(weights=known.weights[k], change=change[k]))
            for k, judge in enumerate(judges)
        ]
        scale = np.stack([v.scale for v in verdicts]).astype(np.float32)
        skip = np.array([v.skip for v in verdicts])
        change = trainer.apply(grads, scale, skip, now).numpy()
        with np.errstate(over="ignore", invalid="ignore"):
            norms_of[t] = np.sqrt((by_variable**2).sum(1))
        clipped[t], skipped[t] = (scale < 0.9999).any(1) & ~skip, skip
    seconds = time.perf_counter() - began
    # the same for all: they start equal
    untrained = float(scores[0, 0])
    out = []
    for k, name in enumerate(names):
        out.append(
            {
                "method": name,
                "seed": seed,
                "rate": rate,
                "steps": steps,
                **summary(scores[:, k], untrained),
                "clipped": float(clipped[:, k].mean()),
                "clipped_last_half": float(clipped[steps // 2 :, k].mean()),
                "skipped": int(skipped[:, k].sum()),
                "group_seconds": round(seconds, 1),
            }
        )
        if name == UNCLIPPED:
            # streams for detection.py
            out[-1]["norms"] = [float(f"{x:.5g}") for x in norms_of[:, k]]
    return out


def summary(scores: np.ndarray, untrained: float) -> dict[str, Any]:
    """What one run is judged by."""
    steps = len(scores)
    last = scores[-max(1, steps // 20) :]
    final = float(np.mean(last)) if np.all(np.isfinite(last)) else math.inf
    bounded = np.where(np.isfinite(scores), np.minimum(scores, untrained), untrained)
    width = max(1, steps // 40)
    smooth = np.convolve(bounded, np.ones(width) / width, "valid")
    best = np.minimum.accumulate(smooth)
    return {
        "final": min(final, untrained),
        "untrained": untrained,
        "diverged": bool(final >= untrained),
        # steps spent a tenth of the progress made so far, or more, above the best level reached
        "steps_lost": int(np.sum(smooth > best + 0.1 * (untrained - best) + 1e-12)),
    }


# -- the results ------------------------------------------------------------------------------------------


def load(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    lines = []
    for line in path.read_text().splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            continue  # the line that was being written when the run was stopped
    return lines


def append(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    torn = path.exists() and not path.read_bytes().endswith(b"\n") and path.stat().st_size > 0
    with path.open("a") as file:
        # what a stop tore apart keeps its line to itself
        file.write("\n" * torn + "".join(json.dumps(x) + "\n" for x in lines))


class Cells:
    """Finished runs, by task, learning rate and method. A group counts once every method of its task has run."""

    def __init__(self, lines: Iterable[dict[str, Any]], steps: int) -> None:
        groups: dict[tuple[str, float, int], dict[str, dict[str, Any]]] = defaultdict(dict)
        found: dict[str, set[str]] = defaultdict(set)
        for line in lines:
            if line["steps"] == steps:
                groups[line["task"], line["rate"], line["seed"]][line["method"]] = line
                found[line["task"]].add(line["method"])
        order = {name: i for i, name in enumerate(methods())}
        self.of_task = {
            task: sorted(names, key=lambda name: order.get(name, len(order))) for task, names in found.items()
        }
        every = dict.fromkeys(name for names in self.of_task.values() for name in names)
        #: the methods that ran on every task
        self.names = [name for name in every if all(name in names for names in found.values())]
        self.incomplete = [key for key, group in groups.items() if len(group) < len(found[key[0]])]
        self.runs: dict[tuple[str, float, str], dict[int, dict[str, Any]]] = defaultdict(dict)
        for (task, rate, seed), group in groups.items():
            if len(group) == len(found[task]):
                for name, line in group.items():
                    self.runs[task, rate, name][seed] = line
        self.cells = sorted({key[:2] for key in self.runs}, key=lambda c: (list(EVERY).index(c[0]), c[1]))

    def values(self, task: str, rate: float, method: str, field: str = "final") -> list[float]:
        runs = self.runs.get((task, rate, method), {})
        return [runs[seed][field] for seed in sorted(runs)]

    def constants(self, task: str) -> list[str]:
        return [name for name in self.of_task[task] if name == UNCLIPPED or name.startswith("fixed ")]

    def oracle(self, task: str, rate: float) -> str:
        """The constant with the smallest mean final loss in this cell."""
        return min(self.constants(task), key=lambda name: _mean(self.values(task, rate, name)))

    def resolve(self, task: str, rate: float, method: str) -> str:
        return self.oracle(task, rate) if method == ORACLE else method

    def mean(self, task: str, rate: float, method: str, field: str = "final") -> float:
        return _mean(self.values(task, rate, self.resolve(task, rate, method), field))


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else math.inf


def goals(cells: Cells, method: str) -> dict[str, Any]:
    """The goal of issue `auto`: against the tuned constant and against no clipping, cell by cell."""
    rows = []
    for task, rate in cells.cells:
        oracle = cells.oracle(task, rate)
        mine, best, none = (cells.mean(task, rate, name) for name in (method, oracle, UNCLIPPED))
        survivors = [name for name in cells.constants(task) if not any(cells.values(task, rate, name, "diverged"))]
        rows.append(
            {
                "task": task,
                "rate": rate,
                "oracle": oracle,
                "ratio": mine / best,
                "over_none": mine / none if oracle == UNCLIPPED else None,
                "died_where_a_constant_survived": bool(survivors) and any(cells.values(task, rate, method, "diverged")),
            }
        )
    ratios = np.array([row["ratio"] for row in rows])
    over_none = [row["over_none"] for row in rows if row["over_none"] is not None]
    return {
        "cells": rows,
        "within_2_percent": float(np.mean(ratios <= 1.02)),
        "better": float(np.mean(ratios < 1.0)),
        "median_ratio": float(np.median(ratios)),
        "worst_ratio": float(np.max(ratios)),
        "died": sum(row["died_where_a_constant_survived"] for row in rows),
        "worst_over_none_where_none_is_best": max(over_none, default=None),
        "over_default": [cells.mean(*cell, method) / cells.mean(*cell, DEFAULT) for cell in cells.cells]
        if DEFAULT in cells.names
        else None,
    }


def sensitivity(cells: Cells, task: str, method: str) -> float:
    """Learning-rate sensitivity: final loss, mean over the rates minus the best rate's (Wortsman et al. 2023)."""
    finals = [cells.mean(task, rate, method) for name, rate in cells.cells if name == task]
    return float(np.mean(finals) - np.min(finals))


def report(cells: Cells) -> str:
    shown = [name for name in cells.names if not name.startswith("fixed ") or name == "fixed 1"]
    shown.insert(1, ORACLE)
    parts = []
    for task in dict.fromkeys(task for task, _ in cells.cells):
        rates = [rate for name, rate in cells.cells if name == task]
        rows = []
        for name in shown:
            row = [name]
            for rate in rates:
                actual = cells.resolve(task, rate, name)
                values = cells.values(task, rate, actual)
                mean, low, high = setting.mean_interval(values)
                dead = sum(cells.values(task, rate, actual, "diverged"))
                text = f"{mean:.3g} ± {(high - low) / 2:.1g}" + (f" ({dead} of {len(values)} died)" if dead else "")
                row.append(f"**{text}**" if dead else text)
            row.append(f"{sensitivity(cells, task, name):.3g}")
            share = [cells.mean(task, rate, name, "clipped_last_half") for rate in rates]
            row.append(f"{100 * np.min(share):.0f} to {100 * np.max(share):.0f}")
            row.append(f"{np.mean([cells.mean(task, rate, name, 'steps_lost') for rate in rates]):.0f}")
            rows.append(row)
        seeds = len(cells.values(task, rates[0], shown[0]))
        head = ["method", *[f"{rate:g}" for rate in rates], "LR sensitivity", "clipped, %", "steps lost"]
        parts.append(f"{task}: {EVERY[task]().text}; {seeds} seeds, final loss by learning rate")
        parts.append(setting.table(head, rows))
    rows = []
    for name in shown:
        if name == ORACLE:
            continue
        g = goals(cells, name)
        over = g["worst_over_none_where_none_is_best"]
        rows.append(
            [
                name,
                f"{100 * g['within_2_percent']:.0f} %",
                f"{100 * g['better']:.0f} %",
                f"{g['median_ratio']:.3f}",
                f"{g['worst_ratio']:.2f}",
                str(g["died"]),
                "-" if over is None else f"{over:.3f}",
                _won_and_lost(g["over_default"]),
            ]
        )
    head = ["against the tuned constant", "within 2 %", "better", "median ratio", "worst", "cells died", "worst / none"]
    head.append("against percentile(90): 2 % better / worse")
    parts.append(f"{len(cells.cells)} cells (task x learning rate)")
    parts.append(setting.table(head, rows))
    return "\n\n".join(parts)


def _won_and_lost(ratios: list[float] | None) -> str:
    """In how many cells it is 2 % better, and worse."""
    return "-" if ratios is None else f"{sum(r < 0.98 for r in ratios)} / {sum(r > 1.02 for r in ratios)}"


def save_norms(lines: Iterable[dict[str, Any]], path: Path = RECORDED) -> None:
    """Norms of healthy runs without clipping, for detection.py.

    Healthy: at the learning rate that trains the task best or below it, or within 2 % of its loss, with a norm whose
    median over a tenth of the run never rises or falls tenfold. Larger rates explode now and then: alarms are right.
    """
    runs = [line for line in lines if line["method"] == UNCLIPPED]
    finals: dict[tuple[str, float], list[float]] = defaultdict(list)
    for run in runs:
        finals[run["task"], run["rate"]].append(run["final"])
    best: dict[str, tuple[float, float]] = {}
    for (task, rate), values in finals.items():
        best[task] = min(best.get(task, (math.inf, 0.0)), (_mean(values), rate))
    kept = {}
    for run in runs:
        task, rate = run["task"], run["rate"]
        loss, best_rate = best[task]
        x = np.array(run.get("norms") or [], float)
        trains = rate <= best_rate or _mean(finals[task, rate]) <= 1.02 * loss
        if not trains or run["diverged"] or len(x) < 1000 or not np.all(np.isfinite(x)):
            continue
        logs = np.log(np.maximum(x, 1e-30))
        if np.ptp(np.array([np.median(piece) for piece in np.array_split(logs[100:], 10)])) < np.log(10):
            kept[f"{task}-{rate:g}-{run['seed']}"] = x.astype(np.float32)
    if kept:
        path.parent.mkdir(exist_ok=True)
        np.savez_compressed(path, **kept)
        print(f"written: {path} ({len(kept)} runs)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one task, two rates, 300 steps: under 5 minutes")
    parser.add_argument("--report", action="store_true", help="train nothing, print what is finished")
    parser.add_argument("--tasks", help="comma-separated; all is the default: " + ", ".join(TASKS))
    parser.add_argument("--methods", help="comma-separated; all is the default")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--design", action="store_true", help="the design tasks on seeds that no table uses")
    parser.add_argument("--lines", help="file of finished runs (results/efficacy.jsonl)")
    parser.add_argument("--output", help="file of the results (results/efficacy.json, quick: efficacy-quick.json)")
    options = parser.parse_args()
    tasks = DESIGN_TASKS if options.design else TASKS
    chosen = [name.strip() for name in options.tasks.split(",")] if options.tasks else list(tasks)
    if unknown := [name for name in chosen if name not in tasks]:
        parser.error(f"--tasks takes {', '.join(tasks)}; got {unknown}")
    rules = methods()
    picked = None
    if options.methods:
        picked = [name.strip() for name in options.methods.split(";" if ";" in options.methods else ",")]
        if unknown := [name for name in picked if name not in rules]:
            parser.error(f"--methods takes {'; '.join(rules)}; got {unknown}")
    steps, seeds = options.steps, list(range(options.seeds))
    if options.quick:
        chosen, steps, seeds = ["rnn-sgd"], 300, [0]
    if options.design:
        seeds = [100 + s for s in seeds]
    part = "efficacy-design" if options.design else "efficacy"
    output = options.output or setting.results_file(part, options.quick)
    lines_path = Path(options.lines or setting.results_file(part, options.quick).with_suffix(".jsonl"))
    facts = setting.machine()
    print(setting.one_line(facts))
    lines = load(lines_path)
    done = {(x["task"], x["rate"], x["seed"], x["steps"], x["method"]) for x in lines}
    if not options.report:
        lines_path.parent.mkdir(parents=True, exist_ok=True)
        # seed by seed, so that every table is complete as early as can be
        for seed in seeds:
            for name in chosen:
                task, rules = tasks[name](), methods(name)
                rules = {m: rules[m] for m in picked or rules if m in rules}
                for rate in task.rates[2:4] if options.quick else task.rates:
                    todo = {m: make for m, make in rules.items() if (name, rate, seed, steps, m) not in done}
                    if not todo:
                        continue
                    found = [
                        {"task": name, **x} for x in train(task, rate, seed, {m: f() for m, f in todo.items()}, steps)
                    ]
                    append(lines_path, found)
                    lines += found
                    print(f"{name} {rate:g} seed {seed}: {found[0]['group_seconds']:.0f} s", flush=True)
    cells = Cells(lines, steps)
    if not cells.cells:
        parser.exit(1, f"no group is finished in {lines_path}\n")
    if cells.incomplete:
        print(f"{len(cells.incomplete)} groups are left out: not every method has run in them")
    print("\n" + report(cells))
    if not (options.quick or options.design or options.lines):
        save_norms(lines)
    content = {
        "machine": facts,
        "steps": steps,
        "goals": {name: goals(cells, name) for name in cells.names},
        "cells": [
            {
                "task": task,
                "rate": rate,
                "method": name,
                "final": cells.values(task, rate, name),
                "diverged": cells.values(task, rate, name, "diverged"),
                "clipped_last_half": cells.values(task, rate, name, "clipped_last_half"),
                "steps_lost": cells.values(task, rate, name, "steps_lost"),
            }
            for task, rate in cells.cells
            for name in cells.of_task[task]
        ],
    }
    setting.write(output, content)


if __name__ == "__main__":
    main()
