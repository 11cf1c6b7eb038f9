"""What does gradwatch cost before the second step: the first call, the graph, and each further model?

    python benchmarks/first_call.py            the whole table, about ten minutes on two cores
    python benchmarks/first_call.py --quick    a reduced one, about two minutes

Every number comes from a process of its own, since a process compiles and caches what the next one would find.
Seconds are processor seconds of all threads (`time.process_time`), which other programs disturb less than the
clock. Reported is the median over the repetitions.

  first call   the first call of a train step: tracing, compiling, running it once
  nodes        of its graph, the functions it calls included
  a step       the 20 calls after it, one by one, the median (wall time)
  a model      30 models one after the other, each with a step of its own; from the 6th on: seconds of the first
               call, and growth of the resident memory

Ways to train the same model: `plain` without clipping, `clip` with tf.clip_by_global_norm, `gradwatch` watched
with its defaults.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import setting

WAYS = ("plain", "clip", "gradwatch")
MODES = ("function", "jit")
#: Name -> (variables, whether it has cells in every mode).
MODELS = {"3 layers": 6, "41 layers": 82, "1,500 variables": 1500}
RUNS, WARM = 30, 5

# -- in the process that is measured ----------------------------------------------------------------------


def _dense(count: int) -> Any:
    import keras

    hidden = [keras.layers.Dense(32, activation="relu") for _ in range(count - 1)]
    return keras.Sequential([keras.layers.Input((32,)), *hidden, keras.layers.Dense(1)])


def _scalars(count: int) -> Any:
    """As many variables, and next to nothing to compute: what is left is the cost of a variable."""
    import tensorflow as tf

    class Many(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.all = [tf.Variable(tf.ones([8]), name=f"v{i}") for i in range(count)]

        trainable_variables = property(lambda self: self.all)  # type: ignore[assignment]

        def __call__(self, x: Any) -> Any:
            return tf.add_n([tf.reduce_sum(v * x) for v in self.all])

    return Many()


def make_step(model: str, way: str, mode: str) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """(the step, its arguments)."""
    import keras
    import tensorflow as tf

    import gradwatch

    count = MODELS[model]
    net = _dense(count // 2) if count < 1000 else _scalars(count)
    x = tf.ones([8, 32]) if count < 1000 else tf.ones([8])
    optimizer = keras.optimizers.SGD(1e-3)
    optimizer.build(net.trainable_variables)

    def step(x: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(net(x))
        grads = tape.gradient(loss, net.trainable_variables)
        if way == "clip":
            grads, _ = tf.clip_by_global_norm(grads, 1.0)
        optimizer.apply_gradients(zip(grads, net.trainable_variables))
        return loss

    function = tf.function(step, jit_compile=mode == "jit" or None)
    return (gradwatch.watch(name="bench")(function) if way == "gradwatch" else function), (x,)


def nodes(concrete: Any) -> int:
    graph = concrete.graph.as_graph_def()
    return len(graph.node) + sum(len(function.node_def) for function in graph.library.function)


def first_call(model: str, way: str, mode: str) -> dict[str, float]:
    _warm_up()
    step, args = make_step(model, way, mode)
    began, clock = time.process_time(), time.perf_counter()
    step(*args)
    seconds, wall = time.process_time() - began, time.perf_counter() - clock
    steps = []
    for _ in range(20):
        clock = time.perf_counter()
        step(*args)
        steps.append(time.perf_counter() - clock)
    graph = nodes(step.get_concrete_function(*args))  # type: ignore[attr-defined]
    return {"seconds": seconds, "wall_seconds": wall, "nodes": graph, "step_ms": statistics.median(steps) * 1e3}


def many_models(way: str, mode: str) -> dict[str, float]:
    """Models one after the other, as a search over hyperparameters makes them."""
    import keras

    _warm_up()
    seconds, memory = [], []
    for _ in range(RUNS):
        step, args = make_step("3 layers", way, mode)
        began = time.process_time()
        step(*args)
        seconds.append(time.process_time() - began)
        step(*args)
        del step, args
        keras.backend.clear_session()
        gc.collect()
        memory.append(_resident_bytes())
    grown = (memory[-1] - memory[WARM - 1]) / (RUNS - WARM)
    return {"seconds": statistics.median(seconds[WARM:]), "megabytes": grown / 2**20}


def _warm_up() -> None:
    """TensorFlow and XLA start up once in a process, whoever calls them."""
    import tensorflow as tf

    for jit_compile in (None, True):
        f = tf.function(lambda x: tf.reduce_sum(x * 2.0), jit_compile=jit_compile)
        f(tf.ones([4]))


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# -- in the process that collects -------------------------------------------------------------------------


def measure(*arguments: str) -> dict[str, float]:
    """One cell, in a fresh process."""
    done = subprocess.run(
        [sys.executable, __file__, "--cell", *arguments], capture_output=True, text=True, timeout=900, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed:\n{done.stderr[-3000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _medians(runs: list[dict[str, float]]) -> dict[str, float]:
    return {key: round(statistics.median(run[key] for run in runs), 4) for key in runs[0]}


def goal(model: str, plain: float) -> float:
    """Seconds that the first call may take."""
    return plain + 1.0 if model == "3 layers" else 1.25 * plain + 1.0


def report(found: dict[str, Any]) -> str:
    """The tables, in Markdown."""
    head = ["model", "mode", "plain", "clip", "gradwatch", "goal", "nodes: plain", "clip", "gradwatch"]
    rows = []
    for model, by_mode in found["first_call"].items():
        for mode, cells in by_mode.items():
            limit = goal(model, cells["plain"]["seconds"])
            ours = cells["gradwatch"]["seconds"]
            text = f"{ours:.1f} s" if ours <= limit else f"**{ours:.1f} s**"
            rows.append(
                [model, mode, *(f"{cells[way]['seconds']:.1f} s" for way in ("plain", "clip")), text, f"{limit:.1f} s"]
                + [f"{cells[way]['nodes']:.0f}" for way in WAYS]
            )
    parts = ["The first call of a step. Bold: goal missed.", setting.table(head, rows)]
    steps = [
        [model, mode, *(f"{cells[way]['step_ms']:.2f} ms" for way in WAYS)]
        for model, by_mode in found["first_call"].items()
        for mode, cells in by_mode.items()
    ]
    parts += ["A step after it:", setting.table(["model", "mode", *WAYS], steps)]
    if found["models"]:
        rows = [
            [
                mode,
                *(f"{cells[way]['seconds']:.2f} s, {cells[way]['megabytes']:.2f} MB" for way in ("plain", "gradwatch")),
            ]
            for mode, cells in found["models"].items()
        ]
        parts += [
            "Each further model of 3 layers in one process: its first call, memory kept. Goal: 0.3 s, 1 MB more.",
            setting.table(["mode", "plain", "gradwatch"], rows),
        ]
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one repetition, no models of 1,500 variables under jit")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--out", help="JSON file; default: benchmarks/results/first_call[-quick].json")
    parser.add_argument("--cell", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.cell:
        what, *rest = args.cell
        print(json.dumps({"first": first_call, "models": many_models}[what](*rest)))
        return
    repetitions = 1 if args.quick else args.repetitions
    found: dict[str, Any] = {"machine": setting.machine(), "repetitions": repetitions, "first_call": {}, "models": {}}
    for model in MODELS:
        for mode in MODES:
            if mode == "jit" and MODELS[model] > 1000:
                continue  # XLA compiles 1,500 updates for minutes, watched or not
            cells = {way: _medians([measure("first", model, way, mode) for _ in range(repetitions)]) for way in WAYS}
            found["first_call"].setdefault(model, {})[mode] = cells
            print(model, mode, cells, flush=True)
    for mode in MODES[: 1 if args.quick else None]:
        found["models"][mode] = {way: measure("models", way, mode) for way in ("plain", "gradwatch")}
        print("models", mode, found["models"][mode], flush=True)
    print(report(found))
    setting.write(args.out or setting.results_file("first_call", args.quick), found)


if __name__ == "__main__":
    main()
