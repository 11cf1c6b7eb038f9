"""What a record costs: bytes, memory and seconds of a million steps, and what recording and keeping add to a step.

    python benchmarks/recording.py              a million synthetic steps, then the cost of a step; about 15 minutes
    python benchmarks/recording.py --quick      a tenth of the steps, and one model: about 3 minutes

All cost is in processor seconds: on a machine with other work the clock says little. Recording works beside the step,
so its share is what the reader's and the writing thread spend on the record over what the whole process spends on the
training. What it does in the step, and keeping a batch, is measured in blocks of steps without and with it, in turn.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import setting

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


def size(steps: int) -> dict[str, Any]:
    """A run of so many steps: megabytes, memory, seconds."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        file = RunFile(Path(folder) / "run.sqlite", dict)
        now, early, looks = time.time(), memory(), 0
        used, cpu = time.perf_counter(), time.process_time()
        for i, first in enumerate(range(1, steps + 1, STEPS_A_LOOK)):
            file.write(look(rng, first, now + i))
            looks += 1
            if i == 100:
                early = memory()
        file.fold()
        used, cpu = time.perf_counter() - used, time.process_time() - cpu
        megabytes = sum(path.stat().st_size for path in Path(folder).iterdir()) / 1e6
        late, began = memory(), time.perf_counter()
        for part in Run(file.path).chunks():
            assert len(part["step"])
        return {
            "steps": steps,
            "megabytes": megabytes,
            "megabytes_a_million": megabytes * 1e6 / steps,
            "memory_mb": {f"after {100 * STEPS_A_LOOK} steps": early, "after all": late},
            "look_ms": 1e3 * used / looks,
            "look_processor_ms": 1e3 * cpu / looks,
            "read_seconds": time.perf_counter() - began,
        }


def recorded(model: str, mode: str, *, seconds: float) -> dict[str, Any]:
    """The share of a recorded training's processor time that its record takes, on the threads that make it."""
    from gradwatch.reading.reader import Reader, reader
    from gradwatch.record import recorder

    # the reader's thread is there because of the record, and so all that it does counts
    places = {"_poll": Reader, "_write": recorder.Recorder}
    spent, looks = dict.fromkeys(places, 0.0), dict.fromkeys(places, 0)

    def timed(name: str) -> Callable[..., Any]:
        method = getattr(places[name], name)

        def call(self: Any, *args: Any) -> Any:
            began = time.thread_time()
            try:
                return method(self, *args)
            finally:
                spent[name] += time.thread_time() - began
                looks[name] += 1

        return call

    with (
        tempfile.TemporaryDirectory() as folder,
        replaced(Reader, timed, ("_poll",)),
        replaced(recorder.Recorder, timed, ("_write",)),
    ):
        call = _step(model, mode, record=folder)
        for _ in range(50):
            call().numpy()
        reader.poll_now()
        spent.update(_poll=0.0, _write=0.0)
        looks.update(_poll=0, _write=0)
        steps, cpu, end = 0, time.process_time(), time.perf_counter() + seconds
        while time.perf_counter() < end:
            result = call()
            steps += 1
        result.numpy()
        cpu = time.process_time() - cpu
        out = {
            "model": model,
            "mode": mode,
            "steps": steps,
            "step_us": 1e6 * cpu / steps,
            "look_ms": {name: 1e3 * spent[name] / max(looks[name], 1) for name in spent},
            "looks": looks["_write"],
            "share": sum(spent.values()) / (cpu - sum(spent.values())),
        }
        reader.close()
        return out


def in_step(model: str, mode: str, *, rounds: int) -> dict[str, Any]:
    """Microseconds of processor time that a recorded step takes beyond an unrecorded one, its threads at rest."""
    from gradwatch.reading.reader import reader

    with tempfile.TemporaryDirectory() as folder:
        calls = {"unrecorded": _step(model, mode), "recorded": _step(model, mode, record=folder)}
        reader.set_interval(1000.0)
        times = _in_turn(calls, rounds)
        reader.set_interval(1.0)
        reader.close()
    base, with_it = (np.array(times[name]) for name in calls)
    added = setting.median_interval(1e6 * (with_it - base))
    return {"model": model, "mode": mode, "step_us": 1e6 * float(np.median(base)), "added_us": added}


def _in_turn(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Processor seconds a step: blocks of steps of each, in random order, as often as said."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    names, rng = list(calls), random.Random(0)
    began = time.process_time()
    for _ in range(10):
        calls[names[0]]().numpy()
    block = max(3, min(100, round(0.03 / ((time.process_time() - began) / 10))))
    for _ in range(rounds):
        rng.shuffle(names)
        for name in names:
            began = time.process_time()
            for _ in range(block):
                result = calls[name]()
            result.numpy()
            times[name].append((time.process_time() - began) / block)
    return times


@contextlib.contextmanager
def replaced(owner: Any, replace: Callable[[str], Any], names: tuple[str, ...]) -> Iterator[None]:
    """Inside, these methods of a class are others."""
    before = {name: getattr(owner, name) for name in names}
    for name in names:
        setattr(owner, name, replace(name))
    try:
        yield
    finally:
        for name, method in before.items():
            setattr(owner, name, method)


def kept(model: str, mode: str, *, rounds: int) -> dict[str, Any]:
    """Microseconds of processor time that keeping adds to a recorded step, by the way the batch is copied."""
    from gradwatch.reading.reader import reader
    from gradwatch.tf.kept import Keeper

    original = Keeper._needs_fixed_sizes
    ways: dict[str, tuple[bool, dict[str, Any]]] = {
        "select": (True, {"keep_batch": True}),
        "select, weights too": (True, {"keep_batch": True, "weights": True}),
    }
    if mode != "jit":  # XLA refuses an array whose size changes
        ways["branch"] = (False, {"keep_batch": True})
        ways["branch, weights too"] = (False, {"keep_batch": True, "weights": True})
    with tempfile.TemporaryDirectory() as folder:
        calls = {"recorded": _step(model, mode, record=folder)}
        for name, (fixed, options) in ways.items():
            with replaced(Keeper, lambda _, fixed=fixed: lambda self: fixed, ("_needs_fixed_sizes",)):
                calls[name] = _step(model, mode, record=folder, **options)
        assert Keeper._needs_fixed_sizes is original
        reader.set_interval(1000.0)  # what the threads beside the step do is measured above
        times = _in_turn(calls, rounds)
        reader.set_interval(1.0)
        reader.close()
    base = np.array(times.pop("recorded"))
    added = {name: setting.median_interval(1e6 * (np.array(t) - base)) for name, t in times.items()}
    return {"model": model, "mode": mode, "step_us": 1e6 * float(np.median(base)), "added_us": added}


def _step(model: str, mode: str, **options: Any) -> Callable[[], Any]:
    """A watched train step without arguments, traced."""
    import keras
    import overhead
    import tensorflow as tf

    import gradwatch

    keras.utils.set_random_seed(0)
    task = overhead.MODELS[model][0]()
    optimizer = task.optimizer()
    optimizer.build(task.model.trainable_variables)

    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = task.loss(y, task.model(x, training=True))
        optimizer.apply_gradients(
            zip(tape.gradient(loss, task.model.trainable_variables), task.model.trainable_variables)
        )
        return loss

    run = step if mode == "eager" else tf.function(step, jit_compile=mode == "jit")
    watched = gradwatch.watch(run, **options)
    watched(task.x, task.y)
    return lambda: watched(task.x, task.y)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the steps, one model")
    parser.add_argument("--part", choices=("size", "recorded", "step", "kept"), action="append", help="only this")
    parser.add_argument("--json", type=Path, help="write the numbers there")
    options = parser.parse_args()
    parts, out = options.part or ["size", "recorded", "step", "kept"], {}
    models = ("quickstart",) if options.quick else ("quickstart", "mlp-2m", "transformer-5m")
    if "size" in parts:
        out["size"] = size(100_000 if options.quick else 1_000_000)
        print(json.dumps(out["size"], indent=1), flush=True)
    for part, measure, keywords in (
        ("recorded", recorded, {"seconds": 15.0 if options.quick else 60.0}),
        ("step", in_step, {"rounds": 40 if options.quick else 200}),
        ("kept", kept, {"rounds": 40 if options.quick else 200}),
    ):
        out[part] = []
        for model in models if part in parts else ():
            for mode in ("function", "jit"):
                out[part].append(measure(model, mode, **keywords))  # type: ignore[operator]
                print(json.dumps(out[part][-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
