"""Does a policy leave a healthy training alone?

    python benchmarks/longrun.py                                  percentile(90), 20,000 steps, 3 seeds: 10 minutes
    python benchmarks/longrun.py --policy "percentile(90, window=500)"
    python benchmarks/longrun.py --quick                          400 steps of one seed: a minute

A convolutional net with BatchNormalization learns pictures of digits by SGD with momentum 0.9, weight decay and a
cosine schedule, which needs no clipping. Three runs from one start on the same batches: `unclipped`; `watched`, through
`gradwatch.watch(policy=...)`; and `nudged`, unclipped as well, but started from weights that differ by 1 part in 10^5.
Training is chaotic, so a single clipped step changes all that follow: how far `nudged` ends from `unclipped` is what
chance alone does, and a ratio of final losses means nothing below it. One seed was found to differ by 1 to 2 %.

Then the events that move gradient norms in healthy runs, each with an unclipped run beside it: the schedule restarts,
the rate is multiplied by 10, layers are unfrozen, and a run is stopped and resumed from a checkpoint.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import setting
import tensorflow as tf
from tasks import _digits

import gradwatch
from gradwatch import policies
from gradwatch.core.norms import of as norms_of
from gradwatch.core.policies import Policy
from gradwatch.core.xp import NUMPY
from gradwatch.errors import ConfigError

STEPS = 20_000
BATCH = 32
RATE = 0.05
WEIGHT_DECAY = 5e-4
#: Standard deviation of fresh noise on the pictures of each batch: no run learns them by heart.
NOISE = 0.4
#: XLA makes a step three times quicker once it is compiled, which takes seconds: short tests do without.
JIT = True
#: A long run is healthy only if a policy acts in less than this share of its steps and ends within `NEAR`.
ACTS, NEAR = 0.01, 0.01


def counted(policy: Policy) -> tuple[Policy, dict[str, tf.Variable]]:
    """The same policy, and by name the steps so far in which each of its bounds was the one that clipped.

    A policy that takes the smallest of several bounds tells them in its info, in norm units, under names that end in
    "_bound"; the counts of any other are empty. They are no state of the policy: a checkpoint does not carry them.
    """
    _, _, info = policy.update(NUMPY, policy.init(1), norms_of(NUMPY, np.ones(1, np.float32)))
    with tf.init_scope():
        counts = {name[: -len("_bound")]: tf.Variable(0.0) for name in info if name.endswith("_bound")}
    if not counts:
        return policy, {}

    def update(xp: Any, state: Any, norms: Any) -> Any:
        state, clip_norm, info = policy.update(xp, state, norms)
        for name, count in counts.items():
            # what is larger than the smallest bound did not act
            acts = (norms.total > clip_norm) & (info[f"{name}_bound"] <= clip_norm)
            count.assign_add(tf.cast(acts, tf.float32))
        return state, clip_norm, info

    return Policy(policy.name, policy.init, update, policy.scope), counts


# -- one run ----------------------------------------------------------------------------------------------


def net() -> keras.Model:
    """Two convolutions with BatchNormalization, about 4,000 weights."""
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input([8, 8, 1]),
            layers.Conv2D(8, 3, padding="same", use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.MaxPooling2D(),
            layers.Conv2D(16, 3, padding="same", use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dense(10),
        ]
    )


class Window(NamedTuple):
    """What a policy did in some steps.

    Attributes:
      steps: how many.
      acted: share of them that it clipped.
      clip_norm: its bound after the last of them.
      median: of the gradient norm then, for comparison.
    """

    steps: int
    acted: float
    clip_norm: float
    median: float


class Run:
    """One training run: the same start and the same batches for every run of one seed.

    Args:
      policy: None trains without gradwatch.
      rate: a number, or a schedule of Keras.
      nudge: relative change of the first weights.
    """

    def __init__(self, policy: Policy | None, rate: Any, seed: int = 0, nudge: float = 0.0) -> None:
        keras.utils.set_random_seed(seed)
        self.model = net()
        self.optimizer = keras.optimizers.SGD(rate, momentum=0.9, weight_decay=WEIGHT_DECAY)
        self.optimizer.build(self.model.trainable_variables)
        for weights in self.model.trainable_variables:
            weights.assign(weights * (1.0 + nudge))
        # 0 while the layers below the last one are frozen
        self.unfrozen = tf.Variable(1.0)
        self.at = 0
        self.losses: list[Any] = []
        step = tf.function(self._make_step(seed), autograph=False, jit_compile=JIT)
        policy, self.counts = (None, {}) if policy is None else counted(policy)
        self.step = step if policy is None else gradwatch.watch(step, policy=policy)
        self.monitor = None if policy is None else self.step.monitor

    def _make_step(self, seed: int) -> Callable[[Any], Any]:
        pictures, labels = (tf.constant(part) for part in _digits())
        pictures = tf.reshape(pictures, [-1, 8, 8, 1])
        below = [v for layer in self.model.layers[:-1] for v in layer.trainable_variables]
        frozen = {id(v) for v in below}

        def train_step(t: Any) -> Any:
            which = tf.random.stateless_uniform([BATCH], [seed, t], 0, len(labels), tf.int32)
            noise = tf.random.stateless_normal([BATCH, 8, 8, 1], [seed + 1, t], stddev=NOISE)
            variables = self.model.trainable_variables
            with tf.GradientTape() as tape:
                logits = self.model(tf.gather(pictures, which) + noise, training=True)
                losses = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.gather(labels, which), logits)
                loss = tf.reduce_mean(losses)
            grads = tape.gradient(loss, variables)
            grads = [g * self.unfrozen if id(v) in frozen else g for g, v in zip(grads, variables)]
            self.optimizer.apply_gradients(zip(grads, variables))
            return loss

        return train_step

    def train(self, steps: int) -> Window:
        """Go on for `steps` steps; what the policy did in them."""
        before = self.monitor.snapshot().clipped_steps if self.monitor else 0
        for t in range(self.at, self.at + steps):
            self.losses.append(self.step(tf.constant(t)))
        self.at += steps
        if self.monitor is None:
            return Window(steps, 0.0, math.inf, math.nan)
        now = self.monitor.snapshot()
        return Window(steps, (now.clipped_steps - before) / steps, now.clip_norm, now.median)

    def loss(self) -> float:
        """Cross-entropy of the finished net on all pictures, with noise that is new and the same for every run."""
        pictures, labels = _digits()
        noise = np.random.default_rng(99).normal(0, NOISE, (4, *pictures.shape))
        logits = self.model((pictures + noise).reshape(-1, 8, 8, 1).astype(np.float32), training=False)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(np.tile(labels, 4), logits)
        return float(tf.reduce_mean(losses))


# -- the long run -----------------------------------------------------------------------------------------


def cosine(steps: int) -> Any:
    return keras.optimizers.schedules.CosineDecay(RATE, steps)


def long_run(policy: Callable[[], Policy], steps: int, seed: int = 0) -> dict[str, Any]:
    """Share of steps in which the policy acted, by fifths of the run and as a whole, and how the three runs ended."""
    runs = {
        "unclipped": Run(None, cosine(steps), seed),
        "watched": Run(policy(), cosine(steps), seed),
        "nudged": Run(None, cosine(steps), seed, nudge=1e-5),
    }
    seconds, windows = {}, []
    for name, run in runs.items():
        began = time.perf_counter()
        parts = [run.train(steps // 5) for _ in range(5)]
        seconds[name] = round(time.perf_counter() - began, 1)
        windows = parts if name == "watched" else windows
    losses = {name: run.loss() for name, run in runs.items()}
    return {
        "steps": steps,
        "acted": float(np.mean([w.acted for w in windows])),
        "by_fifths": [w._asdict() for w in windows],
        "bounds": {name: int(count) for name, count in runs["watched"].counts.items()},
        "loss": losses,
        "ratio": losses["watched"] / losses["unclipped"],
        "ratio_by_chance": losses["nudged"] / losses["unclipped"],
        "seconds": seconds,
    }


# -- the events -------------------------------------------------------------------------------------------


def _restart(run: Run, half: int) -> None:
    """Nothing to do: the schedule does it."""


def _tenfold(run: Run, half: int) -> None:
    run.optimizer.learning_rate.assign(10 * run.optimizer.learning_rate)


def _unfreeze(run: Run, half: int) -> None:
    run.unfrozen.assign(1.0)


def _freeze(run: Run) -> None:
    run.unfrozen.assign(0.0)


class Event(NamedTuple):
    """Something that happens halfway through a run.

    Attributes:
      rate: steps of half a run -> the learning rate or its schedule.
      start: done to a run before its first step.
      halfway: done to it after the first half.
    """

    rate: Callable[[int], Any]
    start: Callable[[Run], None]
    halfway: Callable[[Run, int], None]


EVENTS: Mapping[str, Event] = {
    "schedule restarts": Event(
        lambda half: keras.optimizers.schedules.CosineDecayRestarts(RATE, half, t_mul=1.0), lambda run: None, _restart
    ),
    "rate x 10": Event(lambda half: RATE / 10, lambda run: None, _tenfold),
    "unfreezing": Event(lambda half: RATE / 2, _freeze, _unfreeze),
}


def event(case: Event, policy: Callable[[], Policy], half: int, seed: int = 0) -> dict[str, Any]:
    """Two runs of two halves: the windows before the event, right after it, and of the rest."""
    after = max(1, half // 10)
    watched, losses = {}, {}
    for name, of_run in (("unclipped", None), ("watched", policy())):
        run = Run(of_run, case.rate(half), seed)
        case.start(run)
        windows = {"before": run.train(half)}
        case.halfway(run, half)
        windows |= {"right after": run.train(after), "rest": run.train(half - after)}
        watched = {key: w._asdict() for key, w in windows.items()}
        losses[name] = run.loss()
    return {**watched, "loss": losses, "ratio": losses["watched"] / losses["unclipped"]}


def resumed(policy: Callable[[], Policy], half: int, seed: int = 0) -> dict[str, Any]:
    """A run stopped halfway and resumed in new objects from what was saved, against one that went through."""
    through, first, second = (Run(policy(), cosine(2 * half), seed) for _ in range(3))
    through.train(2 * half)
    first.train(half)
    with tempfile.TemporaryDirectory() as folder:
        tf.train.Checkpoint(model=first.model, optimizer=first.optimizer).write(f"{folder}/model")
        first.monitor.save(f"{folder}/monitor.npz")
        # restoring fills what exists; the monitor takes its state with the first step
        tf.train.Checkpoint(model=second.model, optimizer=second.optimizer).read(f"{folder}/model").assert_consumed()
        second.monitor.load(f"{folder}/monitor.npz")
    second.at = half
    second.train(half)
    a, b = through.monitor.snapshot(), second.monitor.snapshot()
    pairs = zip(through.model.weights, second.model.weights)
    return {
        "steps": [a.steps, b.steps],
        "clip_norm": [a.clip_norm, b.clip_norm],
        "clipped_steps": [a.clipped_steps, b.clipped_steps],
        "weights_equal_bit_for_bit": all(np.array_equal(np.asarray(x), np.asarray(y)) for x, y in pairs),
    }


# -- the report -------------------------------------------------------------------------------------------


def report(found: Mapping[str, Any]) -> str:
    runs = found["long runs"]
    steps = runs[0]["steps"]
    acted, ratio = (float(np.mean([run[key] for run in runs])) for key in ("acted", "ratio"))
    chance = float(np.sqrt(np.mean([(run["ratio_by_chance"] - 1) ** 2 for run in runs]) / len(runs)))
    lines = [
        f"{found['policy']}, {steps:,} steps, {len(runs)} seeds",
        setting.table(
            ["goal", "measured, mean over the seeds", ""],
            [
                [f"acts in less than {100 * ACTS:g} % of the steps", f"{100 * acted:.2f} %", _met(acted < ACTS)],
                [
                    f"final loss at most {100 * NEAR:g} % above unclipped",
                    f"{100 * (ratio - 1):+.2f} %; chance alone ± {100 * chance:.2f} %",
                    _met(ratio <= 1 + NEAR),
                ],
            ],
        ),
        "acted by fifths of the run: "
        + ", ".join(f"{100 * np.mean([run['by_fifths'][i]['acted'] for run in runs]):.2f} %" for i in range(5)),
    ]
    shares = {name: np.mean([run["bounds"][name] for run in runs]) / steps for name in runs[0]["bounds"]}
    if shares:
        lines.append("clipped by: " + ", ".join(f"{name} {100 * x:.2f} % of the steps" for name, x in shares.items()))
    rows = []
    for name, case in found["events"].items():
        windows = [case[key] for key in ("before", "right after", "rest")]
        rows.append(
            [
                name,
                *[f"{100 * w['acted']:.1f} %" for w in windows],
                *[f"{w['clip_norm'] / w['median']:.2f}" for w in windows],
                f"{case['ratio']:.3f}",
            ]
        )
    head = ["event", "acted before", "right after", "rest", "bound / median before", "right after", "rest"]
    lines.append(setting.table([*head, "final loss / unclipped"], rows))
    case = found["resumed"]
    same = case["weights_equal_bit_for_bit"] and len(set(case["clip_norm"])) == 1
    lines.append(f"resumed from a checkpoint: weights and bound equal to the run that went through: {_met(same)}")
    return "\n\n".join(lines)


def _met(yes: bool) -> str:
    return "met" if yes else "**missed**"


def measure(policy: Callable[[], Policy], steps: int, part: int, seeds: int) -> dict[str, Any]:
    """Everything: the long runs of `steps` steps, and each event with halves of `part` steps."""
    return {
        "policy": policy().name,
        "long runs": [long_run(policy, steps, seed) for seed in range(seeds)],
        "events": {name: event(case, policy, part) for name, case in EVENTS.items()},
        "resumed": resumed(policy, part // 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--policy", default="percentile(90)", help="a call of gradwatch.policies: percentile(90), auto")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="400 steps of one seed: a minute")
    parser.add_argument("--output", help="file of the results (results/longrun.json, quick: longrun-quick.json)")
    options = parser.parse_args()
    try:
        policies.parse(options.policy)
    except ConfigError as error:
        parser.error(str(error))
    steps, seeds = (400, 1) if options.quick else (options.steps, options.seeds)
    facts = setting.machine()
    print(setting.one_line(facts))
    found = {"machine": facts, **measure(lambda: policies.parse(options.policy), steps, max(20, steps // 10), seeds)}
    print("\n" + report(found))
    setting.write(options.output or setting.results_file("longrun", options.quick), found)


if __name__ == "__main__":
    main()
