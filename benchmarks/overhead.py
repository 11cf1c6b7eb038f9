"""What does gradwatch cost per training step?

    python benchmarks/overhead.py            the whole table, about half an hour on two cores
    python benchmarks/overhead.py --quick    a reduced one, under 5 minutes

Seven ways to train the same model run side by side in one process, a few steps of each in turn and in random
order, so that whatever else the machine does hits all of them. Reported is the median over the rounds of the
ratio to `tf.clip_by_global_norm` *of the same round*, with the 95 % interval of that median.

  none         no clipping
  clip         tf.clip_by_global_norm(grads, 1.0): the reference
  keras        the optimizer's global_clipnorm=1.0
  autoclip     AutoClip as published, windowed: a ring of the last 1,000 norms, their exact percentile each step
  logger       clip, and the loop appends float(norm.numpy()) to a list after every step
  smartclip    the smartclip package, its AutoClip with default settings; eagerly, because it calls .numpy()
  gradwatch    @gradwatch.watch: default policy, all detectors, norms of each variable, history, its reader thread

Batches are of the size that people train such models with on a CPU: see MODELS.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib.util
import json
import os
import random
import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import setting
import tensorflow as tf
from keras import layers

import gradwatch
from gradwatch.reading.reader import reader

MODES = ("eager", "function", "jit")
CONTENDERS = ("none", "clip", "keras", "autoclip", "logger", "smartclip", "gradwatch")
REFERENCE = "clip"
PARTS = ("cells", "late", "options", "soak")
#: Options that cost something, measured against gradwatch without them. This limit is never reached: the price is
#: that of being ready, and a step that is scaled back costs the same. A recorded step pays for what the threads of the
#: record do beside it, too.
OPTIONS: dict[str, dict[str, Any]] = {
    'on_nonfinite="skip"': {"on_nonfinite": "skip"},
    "update_limit=0.5": {"update_limit": 0.5},
    'record="runs"': {"record": "runs"},
    "recover=ladder()": {"recover": gradwatch.recovery.ladder()},
}
PERIODIC = 100  # steps in a block of an option that works only now and then: a median of short blocks would not see it
BLOCK_SECONDS = 0.03  # a block of steps lasts at least this long: a training repeats one step, its caches are warm

# -- the models -------------------------------------------------------------------------------------------


class Task(NamedTuple):
    """A model, its loss, one batch (the data is not what is measured) and its optimizer."""

    model: keras.Model
    loss: Callable[[Any, Any], Any]
    x: tf.Tensor
    y: tf.Tensor
    optimizer: Callable[..., keras.optimizers.Optimizer]


def _squared(y: Any, prediction: Any) -> Any:
    return tf.reduce_mean(tf.square(y - prediction))


def _crossentropy(y: Any, logits: Any) -> Any:
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=logits))


def _adam(**options: Any) -> keras.optimizers.Optimizer:
    return keras.optimizers.Adam(1e-4, **options)


def _sgd(**options: Any) -> keras.optimizers.Optimizer:
    return keras.optimizers.SGD(1e-3, **options)


def quickstart() -> Task:
    model = keras.Sequential([layers.Input((8,)), layers.Dense(10, activation="relu"), layers.Dense(1)])
    return Task(model, _squared, tf.random.normal([32, 8]), tf.random.normal([32, 1]), _sgd)


def _dense(widths: list[int], inputs: int, batch: int) -> Task:
    hidden = [layers.Dense(w, activation="relu") for w in widths]
    model = keras.Sequential([layers.Input((inputs,)), *hidden, layers.Dense(10)])
    y = tf.random.uniform([batch], 0, 10, tf.int32)
    return Task(model, _crossentropy, tf.random.normal([batch, inputs]), y, _adam)


def mlp_2m() -> Task:
    return _dense([1024, 1024, 128], 784, 128)


def wide_17m() -> Task:
    return _dense([4096], 4096, 64)


def transformer_5m() -> Task:
    vocabulary, width, length, batch = 128, 256, 64, 16
    tokens = layers.Input((length,), dtype="int32")
    h = layers.Embedding(vocabulary, width)(tokens)
    for _ in range(6):
        a = layers.LayerNormalization()(h)
        h = h + layers.MultiHeadAttention(4, width // 4)(a, a, use_causal_mask=True)
        a = layers.LayerNormalization()(h)
        h = h + layers.Dense(width)(layers.Dense(4 * width, activation="gelu")(a))
    model = keras.Model(tokens, layers.Dense(vocabulary)(layers.LayerNormalization()(h)))
    x = tf.random.uniform([batch, length], 0, vocabulary, tf.int32)
    return Task(model, _crossentropy, x, tf.roll(x, -1, 1), _adam)


def char_rnn() -> Task:
    vocabulary, length, batch = 96, 50, 32
    model = keras.Sequential(
        [
            layers.Input((length,), dtype="int32"),
            layers.Embedding(vocabulary, 64),
            layers.SimpleRNN(128, return_sequences=True),
            layers.Dense(vocabulary),
        ]
    )
    x = tf.random.uniform([batch, length], 0, vocabulary, tf.int32)
    return Task(model, _crossentropy, x, tf.roll(x, -1, 1), _adam)


#: name -> (how it is made, what it is)
MODELS: dict[str, tuple[Callable[[], Task], str]] = {
    "quickstart": (quickstart, "Dense(10, relu), Dense(1); batch 32, SGD"),
    "mlp-2m": (mlp_2m, "784-1024-1024-128-10; batch 128, Adam"),
    "wide-17m": (wide_17m, "4096-4096-10; batch 64, Adam"),
    "transformer-5m": (transformer_5m, "6 layers, width 256, 64 tokens; batch 16, Adam"),
    "char-rnn": (char_rnn, "embedding 64, SimpleRNN(128), 50 steps; batch 32, Adam"),
}

#: what --quick leaves of them, by mode: no cell that takes longer to compile than to measure
QUICK = {"quickstart": MODES, "mlp-2m": MODES, "wide-17m": ("function",), "char-rnn": ("function",)}


# -- the contenders ---------------------------------------------------------------------------------------


class WindowedAutoClip:
    """AutoClip in the graph as people port it: a ring of norms, their exact percentile, the norm of now included.

    Source: Seetharaman et al. 2020 (arXiv 2007.14469), algorithm 1, p = 10, over a window instead of all history.
    """

    def __init__(self, q: float = 10.0, window: int = 1000) -> None:
        self.q, self.window = q / 100, window
        self.ring = tf.Variable(tf.fill([window], float("inf")), trainable=False)
        self.count = tf.Variable(0, trainable=False)

    def __call__(self, grads: list[Any]) -> list[Any]:
        norm = tf.linalg.global_norm(grads)
        ring = tf.concat([self.ring[1:], norm[None]], 0)
        self.ring.assign(ring)
        held = tf.minimum(self.count.assign_add(1), self.window)
        # unused places are Inf and sort to the end
        ordered = tf.sort(ring)
        place = self.q * tf.cast(held - 1, tf.float32)
        low = tf.cast(tf.floor(place), tf.int32)
        high = tf.minimum(low + 1, held - 1)
        share = place - tf.floor(place)
        clip_norm = tf.gather(ordered, low) * (1.0 - share) + tf.gather(ordered, high) * share
        return tf.clip_by_global_norm(grads, clip_norm, use_norm=norm)[0]


def contenders(mode: str) -> tuple[str, ...]:
    """Those that run in this mode, on this machine."""
    smartclip = mode == "eager" and importlib.util.find_spec("smartclip")
    return tuple(name for name in CONTENDERS if name != "smartclip" or smartclip)


def make_step(make_task: Callable[[], Task], contender: str, mode: str) -> Callable[[], Any]:
    """A train step without arguments, built and traced."""
    keras.utils.set_random_seed(0)
    task = make_task()
    optimizer = task.optimizer(**({"global_clipnorm": 1.0} if contender == "keras" else {}))
    optimizer.build(task.model.trainable_variables)
    autoclip = WindowedAutoClip() if contender == "autoclip" else None
    log: deque[float] = deque(maxlen=100_000)
    if contender == "smartclip":
        import smartclip
        from smartclip.backends.tf import apply_grads

        clipper = smartclip.AutoClip()

    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = task.loss(y, task.model(x, training=True))
        grads = tape.gradient(loss, task.model.trainable_variables)
        norm = loss
        if contender in ("clip", "logger"):
            grads, norm = tf.clip_by_global_norm(grads, 1.0)
        elif autoclip is not None:
            grads = autoclip(grads)
        elif contender == "smartclip":
            grads = apply_grads(grads, task.model, clipper)
        optimizer.apply_gradients(zip(grads, task.model.trainable_variables))
        return (loss, norm) if contender == "logger" else loss

    run: Any = step
    if mode != "eager":
        run = tf.function(step, jit_compile=mode == "jit")
    if contender == "gradwatch":
        run = gradwatch.watch(run)
    elif contender in OPTIONS:
        run = gradwatch.watch(run, **OPTIONS[contender])

    def call() -> Any:
        result = run(task.x, task.y)
        if contender != "logger":
            return result
        loss, norm = result
        log.append(float(norm.numpy()))
        return loss

    call.step, call.arguments = run, (task.x, task.y)  # type: ignore[attr-defined]
    call.monitor = getattr(run, "monitor", None)  # type: ignore[attr-defined]
    call.variables = len(task.model.trainable_variables)  # type: ignore[attr-defined]
    call.parameters = task.model.count_params()  # type: ignore[attr-defined]
    return call


def empty_call() -> Callable[[], Any]:
    """The cheapest thing TensorFlow can do in a step: one tf.function that returns its argument."""

    @tf.function
    def nothing(x: Any) -> Any:
        return x

    x = tf.constant(1.0)
    return lambda: nothing(x)


# -- the measurement --------------------------------------------------------------------------------------


def interleave(
    calls: dict[str, Callable[[], Any]], *, rounds: int, seconds: float, rng: random.Random, least: int = 1
) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Seconds per call, one value per round and contender; a round runs a block of each in random order.

    Args:
      least: calls in a block.
    """
    block: dict[str, int] = {}
    for name, call in calls.items():
        for _ in range(3):  # traces, compiles, fills caches
            result = call()
        _wait(result)
        once = float("inf")  # the quickest of some: a busy machine must not make the blocks short
        for _ in range(5):
            began = time.perf_counter()
            _wait(call())
            once = min(once, time.perf_counter() - began)
        block[name] = max(least, min(100, round(BLOCK_SECONDS / once)))
    # the same number for all that are compared
    common = min(n for name, n in block.items() if name != "empty")
    block = {name: n if name == "empty" else common for name, n in block.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    gc.collect()
    gc.disable()
    end = time.perf_counter() + seconds
    try:
        for done in range(rounds):
            rng.shuffle(names)
            for name in names:
                call = calls[name]
                began = time.perf_counter()
                for _ in range(block[name]):
                    result = call()
                _wait(result)
                times[name].append((time.perf_counter() - began) / block[name])
            if done % 50 == 49:
                gc.collect()
            if time.perf_counter() > end and done >= 8:
                break
    finally:
        gc.enable()
    return times, block


def _wait(result: Any) -> None:
    # a GPU computes behind the caller's back
    result.numpy()


def cell(model: str, mode: str, *, rounds: int, seconds: float, seed: int) -> dict[str, Any]:
    """One model in one mode: every contender against the reference."""
    began = time.perf_counter()
    make_task, text = MODELS[model]
    calls: dict[str, Callable[[], Any]] = {name: make_step(make_task, name, mode) for name in contenders(mode)}
    gradwatch_call: Any = calls["gradwatch"]
    calls["empty"] = empty_call()
    times, block = interleave(calls, rounds=rounds, seconds=seconds, rng=random.Random(seed))
    base = np.array(times[REFERENCE])
    empty = float(np.median(times["empty"]))
    out: dict[str, Any] = {
        "model": model,
        "description": text,
        "mode": mode,
        "parameters": gradwatch_call.parameters,
        "variables": gradwatch_call.variables,
        "rounds": len(base),
        "steps_per_round": block[REFERENCE],
        "empty_call_us": empty * 1e6,
        "contenders": {},
    }
    for name in contenders(mode):
        t = np.array(times[name])
        ratio = setting.median_interval(t / base)
        added = setting.median_interval(t - base)
        out["contenders"][name] = {
            "step_us": float(np.median(t)) * 1e6,
            "step_us_quartiles": [float(np.percentile(t, q)) * 1e6 for q in (25, 75)],
            "ratio": ratio,
            "added_us": [x * 1e6 for x in added],
            "added_in_empty_calls": [x / empty for x in added],
        }
    out["gradwatch_over_autoclip"] = setting.median_interval(np.array(times["gradwatch"]) / np.array(times["autoclip"]))
    out["snapshot_us"] = _snapshot_us(gradwatch_call.monitor)
    out["seconds"] = round(time.perf_counter() - began, 1)
    return out


def _snapshot_us(monitor: gradwatch.Monitor) -> float:
    """What the reader thread spends once a second."""
    spent = []
    for _ in range(20):
        began = time.perf_counter()
        monitor.snapshot()
        spent.append(time.perf_counter() - began)
    return float(np.median(spent)) * 1e6


# -- constant cost ----------------------------------------------------------------------------------------


def set_steps(monitor: gradwatch.Monitor, steps: int) -> None:
    """Make the monitor believe it has run for `steps` steps: counters and warm-up counts."""
    from gradwatch.core.guard import COUNTERS, LIMB
    from gradwatch.core.xp import NUMPY

    built = monitor._engine.on_device
    assert built is not None
    tree = built.tree()
    for name in ("steps", "finite", f"bound_{sum(c.startswith('bound_') for c in COUNTERS) - 1}"):
        i = COUNTERS.index(name)
        tree["count"]["low"][i], tree["count"]["high"][i] = steps % LIMB, steps // LIMB

    def raise_seen(node: dict[str, Any]) -> None:
        for key, value in node.items():
            if isinstance(value, dict):
                raise_seen(value)
            elif key == "seen":
                node[key] = np.float32(min(steps, 1e6)).reshape(())

    raise_seen(tree)
    built.state.assign(built.layout.pack(NUMPY, tree))
    assert monitor.snapshot().steps == steps


def late_step(mode: str, *, rounds: int, seconds: float, seed: int) -> dict[str, Any]:
    """A step after 10^6 steps against one after 100, in time and in bytes of state."""
    calls: dict[str, Callable[[], Any]] = {}
    size = {}
    for name, steps in (("early", 100), ("late", 1_000_000)):
        call: Any = make_step(quickstart, "gradwatch", mode)
        call()
        set_steps(call.monitor, steps)
        size[name] = int(call.monitor._engine.on_device.state.shape[0]) * 4
        calls[name] = call
    times, _ = interleave(calls, rounds=rounds, seconds=seconds, rng=random.Random(seed))
    early, late = np.array(times["early"]), np.array(times["late"])
    return {
        "mode": mode,
        "rounds": len(early),
        "early_us": float(np.median(early)) * 1e6,
        "late_us": float(np.median(late)) * 1e6,
        "ratio": setting.median_interval(late / early),
        "state_bytes": size,
    }


def option_price(option: str, model: str, mode: str, *, rounds: int, seconds: float, seed: int) -> dict[str, Any]:
    """A step with one of `OPTIONS`, ready to change the update, against one without."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        calls = {name: make_step(MODELS[model][0], name, mode) for name in ("gradwatch", option)}
        least = PERIODIC if option.startswith(("record", "recover")) else 1
        times, _ = interleave(calls, rounds=rounds, seconds=seconds, rng=random.Random(seed), least=least)
        reader.close()  # the last steps of a record are written
    without, with_it = np.array(times["gradwatch"]), np.array(times[option])
    return {
        "option": option,
        "model": model,
        "mode": mode,
        "rounds": len(without),
        "without_us": float(np.median(without)) * 1e6,
        "with_us": float(np.median(with_it)) * 1e6,
        "ratio": setting.median_interval(with_it / without),
    }


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def soak(steps: int, *, seconds: float) -> dict[str, Any]:
    """Many jitted steps: memory and time per step from beginning to end. Stops after `seconds` at the latest."""
    call: Any = make_step(quickstart, "gradwatch", "jit")
    chunk = max(1, steps // 100)
    for _ in range(min(2000, steps // 10)):
        call()
    gc.collect()
    memory, per_step = [resident_bytes()], []
    end = time.perf_counter() + seconds
    done = 0
    while done < steps and time.perf_counter() < end:
        began = time.perf_counter()
        for _ in range(chunk):
            call()
        per_step.append((time.perf_counter() - began) / chunk)
        done += chunk
        memory.append(resident_bytes())
    tenth = max(1, len(per_step) // 10)
    gc.collect()
    return {
        "steps": done,
        "asked": steps,
        "monitor_steps": call.monitor.snapshot().steps,
        "resident_mb": [round(m / 2**20, 2) for m in memory[:: max(1, len(memory) // 20)]],
        # the allocator's first pages settle within the first fifth
        "growth_bytes": resident_bytes() - memory[len(memory) // 5],
        "first_tenth_us": float(np.median(per_step[:tenth])) * 1e6,
        "last_tenth_us": float(np.median(per_step[-tenth:])) * 1e6,
    }


# -- the report -------------------------------------------------------------------------------------------


def _with_interval(triple: tuple[float, float, float] | list[float], digits: int = 3) -> str:
    middle, low, high = triple
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def goal(entry: dict[str, Any]) -> tuple[float, float]:
    """(measured, most allowed) of gradwatch in one cell."""
    mine = entry["contenders"]["gradwatch"]
    if entry["model"] == "quickstart":
        return mine["added_in_empty_calls"][0], 2.0 if entry["mode"] == "eager" else 0.5
    return mine["ratio"][0], 1.05 if entry["mode"] == "eager" else 1.01


def ratios(cells: list[dict[str, Any]]) -> str:
    head = ["model", "mode", "clip, ms", *[f"{n} / clip" for n in CONTENDERS if n != REFERENCE], "goal"]

    def ratio(entry: dict[str, Any], name: str) -> str:
        measured = entry["contenders"].get(name)
        if measured is None:
            return "-"
        return _with_interval(measured["ratio"]) if name == "gradwatch" else f"{measured['ratio'][0]:.3f}"

    rows = []
    for entry in cells:
        found, most = goal(entry)
        small = entry["model"] == "quickstart"
        text = f"{found:.2f} of {most:g} empty calls" if small else f"{found:.3f} of {most:g}"
        # above is what the interval says, not what one median happens to
        below = entry["gradwatch_over_autoclip"][1] <= 1
        kept = found <= most and below
        rows.append(
            [
                entry["model"],
                entry["mode"],
                f"{entry['contenders'][REFERENCE]['step_us'] / 1e3:.3f}",
                *[ratio(entry, name) for name in CONTENDERS if name != REFERENCE],
                f"{text}: {'met' if kept else '**missed**'}" + ("" if below else " (above autoclip)"),
            ]
        )
    return setting.table(head, rows)


def small_print(cells: list[dict[str, Any]]) -> str:
    head = [
        "quickstart",
        "clip, µs",
        "gradwatch, µs",
        "added, µs",
        "empty call, µs",
        "added / empty call",
        "snapshot, µs",
    ]
    rows = []
    for entry in cells:
        if entry["model"] != "quickstart":
            continue
        mine = entry["contenders"]["gradwatch"]
        rows.append(
            [
                entry["mode"],
                f"{entry['contenders'][REFERENCE]['step_us']:.0f}",
                f"{mine['step_us']:.0f}",
                _with_interval(mine["added_us"], 0),
                f"{entry['empty_call_us']:.0f}",
                _with_interval(mine["added_in_empty_calls"], 2),
                f"{entry['snapshot_us']:.0f}",
            ]
        )
    return setting.table(head, rows) if rows else ""


def late_table(entries: list[dict[str, Any]]) -> str:
    head = ["a step at", "10^2, µs", "10^6, µs", "ratio", "bytes of state, both"]
    rows = [
        [
            late["mode"],
            f"{late['early_us']:.0f}",
            f"{late['late_us']:.0f}",
            _with_interval(late["ratio"]),
            f"{late['state_bytes']['early']} / {late['state_bytes']['late']}",
        ]
        for late in entries
    ]
    return setting.table(head, rows)


def options_table(entries: list[dict[str, Any]]) -> str:
    head = ["option", "model", "mode", "without, µs", "with, µs", "ratio"]
    rows = [
        [
            f"`{e['option']}`",
            e["model"],
            e["mode"],
            f"{e['without_us']:.0f}",
            f"{e['with_us']:.0f}",
            _with_interval(e["ratio"]),
        ]
        for e in entries
    ]
    return setting.table(head, rows)


def soak_line(long: dict[str, Any]) -> str:
    return (
        f"soak, jit: {long['steps']} of {long['asked']} steps, resident memory {long['resident_mb'][0]} to "
        f"{long['resident_mb'][-1]} MB (growth after the first fifth {long['growth_bytes'] / 2**20:.2f} MB), "
        f"{long['first_tenth_us']:.0f} µs a step in the first tenth, {long['last_tenth_us']:.0f} in the last"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a reduced table in under 5 minutes")
    parser.add_argument("--models", default=",".join(MODELS), help="comma-separated, of: " + ", ".join(MODELS))
    parser.add_argument("--modes", default=",".join(MODES), help="comma-separated, of: " + ", ".join(MODES))
    parser.add_argument("--parts", default=",".join(PARTS), help="comma-separated, of: " + ", ".join(PARTS))
    parser.add_argument("--options", default=",".join(OPTIONS), help="comma-separated, of: " + ", ".join(OPTIONS))
    parser.add_argument("--rounds", type=int, help="most rounds per cell (2000; quick: 200)")
    parser.add_argument("--seconds", type=float, help="most seconds of measuring per cell (60; quick: 6)")
    parser.add_argument("--soak", type=int, help="steps of the soak, 0 for none (100000; quick: 10000)")
    parser.add_argument("--seed", type=int, default=0, help="of the order within the rounds")
    parser.add_argument("--output", help="file of the results (results/overhead.json, quick: overhead-quick.json)")
    parser.add_argument("--add", action="store_true", help="keep what the output file holds of other models and modes")
    options = parser.parse_args()
    output = options.output or setting.results_file("overhead", options.quick)
    models = _choice(parser, "--models", options.models, MODELS)
    modes = _choice(parser, "--modes", options.modes, MODES)
    parts = _choice(parser, "--parts", options.parts, PARTS)
    priced = _choice(parser, "--options", options.options, OPTIONS)
    rounds = options.rounds or (200 if options.quick else 2000)
    seconds = options.seconds or (6.0 if options.quick else 60.0)
    soak_steps = options.soak if options.soak is not None else (10_000 if options.quick else 100_000)

    facts = setting.machine()
    print(setting.one_line(facts))
    result: dict[str, Any] = {
        "machine": facts,
        "seed": options.seed,
        "cells": [],
        "late_step": [],
        "options": [],
        "soak": None,
    }
    for model in models if "cells" in parts else ():
        for mode in modes:
            if options.quick and mode not in QUICK.get(model, ()):
                continue
            entry = cell(model, mode, rounds=rounds, seconds=seconds, seed=options.seed)
            result["cells"].append(entry)
            mine = entry["contenders"]["gradwatch"]
            print(
                f"{model} {mode}: {_with_interval(mine['ratio'])} of clip, {mine['added_us'][0]:+.0f} µs a step, "
                f"{entry['rounds']} rounds x {entry['steps_per_round']} steps, {entry['seconds']} s",
                flush=True,
            )
            keras.backend.clear_session()
    if result["cells"]:
        print("\n" + ratios(result["cells"]))
    if text := small_print(result["cells"]):
        print("\n" + text)
    if "quickstart" in models and "late" in parts:
        for mode in modes:
            late = late_step(mode, rounds=rounds, seconds=seconds / 2, seed=options.seed)
            result["late_step"].append(late)
        print("\n" + late_table(result["late_step"]))
    for option in priced if "options" in parts and not options.quick else ():
        for model in [m for m in ("quickstart", "mlp-2m") if m in models]:
            for mode in modes:
                price = option_price(option, model, mode, rounds=rounds, seconds=seconds / 2, seed=options.seed)
                result["options"].append(price)
    if result["options"]:
        print("\n" + options_table(result["options"]))
    if soak_steps and "soak" in parts:
        long = result["soak"] = soak(soak_steps, seconds=60.0 if options.quick else 7200.0)
        print("\n" + soak_line(long))
    if options.add:
        result = _added(json.loads(Path(output).read_text()), result)
    setting.write(output, result)


def _added(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """`now`, and of `before` what was not measured again."""

    def merged(part: str) -> list[dict[str, Any]]:
        entries = {(e.get("option"), e.get("model"), e["mode"]): e for e in [*before.get(part, []), *now[part]]}

        def place(e: dict[str, Any]) -> tuple[int, ...]:
            option = list(OPTIONS).index(e["option"]) if "option" in e else 0
            return option, list(MODELS).index(e.get("model", "quickstart")), MODES.index(e["mode"])

        return sorted(entries.values(), key=place)

    parts = {part: merged(part) for part in ("cells", "late_step", "options")}
    return {**now, **parts, "soak": now["soak"] or before.get("soak")}


def _choice(parser: argparse.ArgumentParser, flag: str, text: str, known: Any) -> list[str]:
    chosen = [name.strip() for name in text.split(",") if name.strip()]
    if not chosen or (unknown := [name for name in chosen if name not in known]):
        parser.error(f"{flag} takes {', '.join(known)}; got {text!r}" + (f" (unknown: {unknown})" if chosen else ""))
    return chosen


if __name__ == "__main__":
    main()
