"""Does it save runs?

    python benchmarks/efficacy.py --quick              one task, under 5 minutes
    nice python benchmarks/efficacy.py                 everything: hours; stop and start it at will
    python benchmarks/efficacy.py --report             the tables of what is finished

Every method trains the same model from the same start on the same batches, side by side; only the clipping differs.
A finished group (task, learning rate, seed) is kept (see runs.py) and never trained again.

Judged by the mean loss of the last 5 % of the steps, never above the loss of the untrained model (as in Wortsman et
al. 2023, arXiv 2309.14322). A run has *diverged* when it ends at that bound or not finite.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# two processes, each with some of --tasks and --output of its own, are quicker than one with threads
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")

import numpy as np
import runs
import setting
from finals import EVERY, Cells, report
from peers import PEERS, Fixed, Peer, Seen, Unclipped, Verdict
from runs import UNCLIPPED
from tasks import DESIGN_TASKS, OPTIMIZERS, TASKS, Task
from tensor_peers import TENSOR_PEERS, RuleSet, TensorRule

from gradwatch.core import policies
from gradwatch.core.norms import of as of_norms
from gradwatch.core.policies import Policy
from gradwatch.core.xp import NUMPY
from gradwatch.tf.reach import initial_norm, weight_norm

#: Constants among which the oracle chooses afterwards, for each task and learning rate; "none" is one of them.
CONSTANTS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)


class Gradwatch:
    """One of gradwatch's policies, with on_nonfinite="zero": what its guard does, without what it also records."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.state: Any = None
        self.loss = math.nan  # of the step before
        self.info: dict[str, float] = {}

    def step(self, norms: np.ndarray, loss: float, seen: Seen | None = None) -> Verdict:
        if self.state is None:
            self.state = self.policy.init(len(norms))
        reach, weights = _reach(seen)
        now = of_norms(NUMPY, norms.astype(np.float32), reach, np.float32(self.loss), weights)
        self.loss = loss
        self.state, clip_norm, info = self.policy.update(NUMPY, self.state, now)
        self.info = {name: float(value) for name, value in info.items()}
        if not now.finite:
            return Verdict(np.zeros(len(norms)), clip_norm=float(np.max(clip_norm)))
        norm = now.per_variable if self.policy.scope == policies.VARIABLE else now.total
        scale = np.where(norm > clip_norm, clip_norm / np.maximum(norm, 1e-37), 1.0)
        return Verdict(np.broadcast_to(scale, (len(norms),)), clip_norm=float(np.max(clip_norm)))


def _reach(seen: Seen | None) -> tuple[np.ndarray | None, np.ndarray | None]:
    """`Norms.reach` and `Norms.weights`, as gradwatch hands them to its policies."""
    if seen is None:
        return None, None
    weights = weight_norm(NUMPY, seen.weights.astype(np.float32), seen.initial)
    if not seen.linear:
        return np.float32(math.inf), weights
    return np.float32((1 - seen.momentum) * weights / seen.rate), weights


#: gradwatch's policies by the name they have in the tables; their parameters were chosen on DESIGN_TASKS.
OURS: Mapping[str, Callable[[], Policy]] = {
    "percentile(90)": policies.percentile,
    "percentile(10)": lambda: policies.percentile(10),
    "median(2)": policies.median,
    "zscore(2.5)": policies.zscore,
    "per_variable(1.05)": policies.per_variable,
    "auto": policies.auto,
}


#: Tasks with NaN in their data, where no constant survives by itself: the oracle may choose a guarded one there.
WITH_NAN = ("digits",)


def methods(task: str | None = None) -> dict[str, Callable[[], Peer | TensorRule]]:
    """Every method that trains on the task, by name; of all tasks for None."""
    kind = None if task is None else "sgd" if OPTIMIZERS[EVERY[task]().optimizer].linear else "adam"
    peers = {
        name: make
        for name, make in {**PEERS, **TENSOR_PEERS}.items()
        if kind is None or kind in getattr(make(), "optimizers", (kind,))
    }
    constants = {f"fixed {c:g}": (lambda c=c: Fixed(c)) for c in CONSTANTS}
    ours = {f"gradwatch {name}": (lambda make=make: Gradwatch(make())) for name, make in OURS.items()}
    guarded = {f"fixed {c:g}, NaN dropped": (lambda c=c: Gradwatch(policies.fixed(c))) for c in CONSTANTS}
    return {**peers, **constants, **ours, **(guarded if task is None or task in WITH_NAN else {})}


# -- training ---------------------------------------------------------------------------------------------


class Trainer:
    """Many runs of one task at one learning rate; run k belongs to the k-th rule.

    `inside`: run -> the rule on tensors that acts within its steps.
    """

    def __init__(
        self, task: Task, rate: float, runs: int, seed: int, inside: Mapping[int, TensorRule] | None = None
    ) -> None:
        import tensorflow as tf

        self.tf, self.task, self.rate = tf, task, rate
        self.optimizer = OPTIMIZERS[task.optimizer]
        self.params = [tf.Variable(np.repeat(p[None], runs, 0)) for p in self._start(seed)]
        slots = 1 if self.optimizer.linear else 2
        self.slots = [[tf.Variable(tf.zeros_like(p)) for p in self.params] for _ in range(slots)]
        self.counts = tf.Variable(tf.zeros([runs]))
        self.inside = RuleSet(inside or {}, self.params, self.optimizer.momentum, self.optimizer.linear)
        self.gradients = tf.function(self._gradients, autograph=False, jit_compile=True)
        self.apply = tf.function(self._apply, autograph=False, jit_compile=True)

    def _start(self, seed: int) -> list[np.ndarray]:
        return [p.astype(np.float32) for p in self.task.init(np.random.default_rng([seed, 0]))]

    def restart(self, seed: int) -> None:
        """Begin another training with the functions that are compiled already; not with rules on tensors."""
        for p, start in zip(self.params, self._start(seed)):
            p.assign(np.repeat(start[None], p.shape[0], 0))
        for x in [*(x for slot in self.slots for x in slot), self.counts]:
            x.assign(self.tf.zeros_like(x))

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
        tf, optimizer = self.tf, self.optimizer
        t = self.counts + tf.where(skip, 0.0, 1.0)
        self.counts.assign(t)
        shapes = [[-1, *[1] * (p.shape.rank - 1)] for p in self.params]
        keep = [tf.reshape(skip, shape) for shape in shapes]
        changes, seconds = [], []
        for i, (p, g, shape) in enumerate(zip(self.params, self.inside.gradients(self.params, grads, rate), shapes)):
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
                seconds.append(new[1] / (1 - tf.reshape(0.999**t, shape)))
                change = first / (tf.sqrt(seconds[-1]) + 1e-8)
            for slot, after in zip(self.slots, new):
                slot[i].assign(tf.where(keep[i], slot[i], after))
            changes.append(tf.where(keep[i], tf.zeros_like(p), rate * (change + optimizer.decay * p)))
        changes = self.inside.update(changes, self.params, grads, seconds or None, rate)
        for p, change in zip(self.params, changes):
            p.assign(p - change)
        return self._norms(changes)


def train(
    task: Task,
    rate: float,
    seed: int,
    rules: Mapping[str, Peer | TensorRule],
    steps: int,
    trainers: dict[tuple[str, str, int], Trainer] | None = None,
) -> list[dict[str, Any]]:
    """One group: every rule on the same task, learning rate and seed.

    `trainers`: those of earlier groups, to be used again; compiling one takes longer than a training of 2,000 steps.
    """
    names = list(rules)
    inside = {k: rule for k, rule in enumerate(rules.values()) if isinstance(rule, TensorRule)}
    judges = [Unclipped() if isinstance(rule, TensorRule) else rule for rule in rules.values()]
    key = (task.text, task.optimizer, len(judges))
    if trainers is not None and not inside and key in trainers:
        trainer = trainers[key]
        trainer.restart(seed)
    else:
        trainer = Trainer(task, rate, len(judges), seed, inside)
        if trainers is not None and not inside:
            trainers[key] = trainer
    rng = np.random.default_rng([seed, 1])
    losses, scores = np.empty((steps, len(judges))), np.empty((steps, len(judges)))
    norms_of = np.empty((steps, len(judges)))
    clipped, skipped = np.zeros((steps, len(judges)), bool), np.zeros((steps, len(judges)), bool)
    initial = initial_norm(p.shape[1:] for p in trainer.params)
    change = np.zeros((len(judges), len(trainer.params)), np.float32)
    began = time.perf_counter()
    for t in range(steps):
        now = np.float32(rate * task.schedule(t / steps))
        loss, score, norms, weights, grads = trainer.gradients(*task.batch(rng, t))
        losses[t], scores[t], by_variable = loss.numpy(), score.numpy(), norms.numpy().astype(np.float64)
        known = Seen(weights.numpy(), change, float(now), trainer.optimizer.momentum, trainer.optimizer.linear, initial)
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
        if inside:
            clipped[t] |= trainer.inside.acted.numpy()
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


# -- the command ------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one task, two rates, 300 steps: under 5 minutes")
    parser.add_argument("--report", action="store_true", help="train nothing, print what is finished")
    parser.add_argument("--tasks", help="comma-separated; all is the default: " + ", ".join(TASKS))
    parser.add_argument("--methods", help="comma-separated; all is the default")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--design", action="store_true", help="the design tasks on seeds that no table uses")
    parser.add_argument("--forget", help="methods, separated by semicolons, whose finished runs are dropped first")
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
    output = Path(options.output or setting.results_file(part, options.quick))
    facts = setting.machine()
    print(setting.one_line(facts))
    lines = runs.load(output)
    if options.forget:
        dropped = [name.strip() for name in options.forget.split(";")]
        if unknown := [name for name in dropped if name not in {line["method"] for line in lines}]:
            parser.error(f"--forget takes methods that have run; got {unknown}")
        runs.forget(output, dropped)
        lines = runs.load(output)
    done = {(x["task"], x["rate"], x["seed"], x["steps"], x["method"]) for x in lines}
    if not options.report:
        output.parent.mkdir(parents=True, exist_ok=True)
        trainers: dict[tuple[str, str, int], Trainer] = {}
        # seed by seed, so that every table is complete as early as can be
        for seed in seeds:
            for name in chosen:
                task, rules = tasks[name](), methods(name)
                rules = {m: rules[m] for m in picked or rules if m in rules}
                for rate in task.rates[2:4] if options.quick else task.rates:
                    todo = {m: make for m, make in rules.items() if (name, rate, seed, steps, m) not in done}
                    if not todo:
                        continue
                    made = {m: make() for m, make in todo.items()}
                    found = [{"task": name, **x} for x in train(task, rate, seed, made, steps, trainers)]
                    runs.append(output, found)
                    lines += found
                    print(f"{name} {rate:g} seed {seed}: {found[0]['group_seconds']:.0f} s", flush=True)
    cells = Cells(lines, steps, list(methods()))
    if not cells.cells:
        parser.exit(1, f"no group is finished in {output}\n")
    if cells.incomplete:
        print(f"{len(cells.incomplete)} groups are left out: not every method has run in them")
    print("\n" + report(cells))
    if not (options.quick or options.design or options.output or options.report):
        runs.save_norms(lines)
    if not options.report:
        runs.publish(output, lines, steps, facts)


if __name__ == "__main__":
    main()
