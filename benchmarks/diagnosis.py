"""Does `gradwatch.diagnose` name the cause? Faults are put into small trainings whose models the rules may not know.

    python benchmarks/diagnosis.py observe FOLDER                      # train, keep what was observed
    python benchmarks/diagnosis.py score FOLDER --which design         # the rules over it, without training
    python benchmarks/diagnosis.py judge FOLDER                        # over the judged seeds; writes the results

The rules were written with the design seeds (100 and above) in view, and judged once on seeds 0 to 4.
"""

from __future__ import annotations

import argparse
import json
import pickle
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

RESULTS = Path(__file__).parent / "results" / "diagnosis.json"
STEPS = 160
SEEDS = {"design": (100, 101), "judged": (0, 1, 2, 3, 4)}

#: Faults that act from the first step on.
FROM_THE_START = ("bad_start", "vanishing", "dead_run", "exploding_recurrence")
#: Faults that have no one first step: the rate was wrong from the first step, and shows later.
WITHOUT_STEP = ("learning_rate_too_high", "warmup_too_short", "half_precision_overflow", "loss_scale", "healthy")


class Run(NamedTuple):
    """One training and what was put into it."""

    model: str
    fault: str
    seed: int
    variant: str
    first: int | None
    policy: str
    observation: Any
    losses: tuple[float, float]  # the first one, and the median of the last 40


class Plan:
    """What a run is given, step by step: batches, rates, and the scalars of `faulty_models`."""

    def __init__(self, model: Any, rng: np.random.Generator, steps: int) -> None:
        self.batches = model.batches(rng, steps)
        ramp = np.minimum((np.arange(steps) + 1) / max(model.warmup, 1), 1.0)
        self.rates = model.rate * (ramp if model.warmup else np.ones(steps)) * np.exp(rng.uniform(-0.4, 0.4))
        self.operation = np.zeros(steps, np.int32)
        self.gain = np.ones(steps, np.float32)
        self.share = np.ones(steps, np.float32)
        self.scales: dict[int, float] = {}  # loss scale that is set before a step
        self.rows: dict[int, tuple[Any, np.ndarray, float]] = {}  # rows of a table that are scaled before a step


def some_steps(rng: np.random.Generator, first: int, steps: int) -> tuple[str, list[int]]:
    """One step, a few, or many from the first on, which is always among them."""
    kind = rng.choice(["once", "few", "many"])
    chosen = {"once": [first], "few": list(range(first, first + int(rng.integers(2, 5))))}.get(kind)
    if chosen is None:
        chosen = [first, *(i for i in range(first + 1, steps) if rng.random() < 0.3)]
    return str(kind), chosen


def inject(fault: str, model: Any, plan: Plan, rng: np.random.Generator, strength: float) -> tuple[str, int | None]:
    """Puts the fault in; (variant, index of its first step)."""
    steps = len(plan.batches)
    first = int(rng.integers(60, steps - 60))
    kernels = [v for v in model.variables if len(v.shape) >= 2 and "recurrent" not in v.path]
    if fault == "healthy":
        return "", None
    if fault == "learning_rate_too_high":
        factor = strength * float(np.exp(rng.uniform(np.log(20), np.log(100))))
        plan.rates = plan.rates * factor
        return f"x{factor:.0f}", 0
    if fault == "rate_jump":
        factor = float(np.exp(rng.uniform(np.log(20), np.log(200))))
        plan.rates[first:] *= factor
        return f"x{factor:.0f}", first
    if fault == "warmup_too_short":
        short = int(rng.integers(3, 9))
        peak = model.rate * strength * float(rng.uniform(10, 16))
        plan.rates = peak * np.minimum((np.arange(steps) + 1) / short, 1.0)
        return f"{short} steps to {peak:.2g}", 0
    if fault in ("bad_batch", "nonfinite_input"):
        variant, where = some_steps(rng, first, steps)
        if fault == "bad_batch" and variant == "many":
            variant, where = "once", [first]
        factor = float(np.exp(rng.uniform(np.log(30), np.log(3000))))
        for i in where:
            x = plan.batches[i][0].copy()
            if fault == "bad_batch":
                rows = slice(0, int(rng.integers(1, len(x) + 1)))
                x[rows] *= factor
            else:
                x.reshape(-1)[rng.integers(0, x.size, 3)] = rng.choice([np.nan, np.inf])
            plan.batches[i] = (x, plan.batches[i][1])
        return f"{variant} x{factor:.0f}" if fault == "bad_batch" else variant, first
    if fault == "corrupt_labels":
        lasting = bool(rng.random() < 0.6)
        where = range(first, steps) if lasting else range(first, first + int(rng.integers(3, 12)))
        for i in where:
            x, y = plan.batches[i]
            if y.dtype.kind == "f":
                y = y * 30 if seedless(rng) else rng.permutation(y) * 10
            else:
                y = rng.permutation(5)[y].astype(np.int32) if i == first else (y + 1 + i % 3).astype(np.int32) % 5
            plan.batches[i] = (x, y)
        return "lasting" if lasting else f"{len(where)} batches", first
    if fault == "loss_operation":
        variant, where = some_steps(rng, first, steps)
        kind = int(rng.integers(1, 4))
        plan.operation[where] = kind
        return f"{variant} {('sqrt', 'log', 'division')[kind - 1]}", first
    if fault == "half_precision_overflow":
        variant, where = some_steps(rng, first, steps)
        plan.gain[where] = 3e5
        return variant, first
    if fault == "loss_scale":
        every = int(rng.integers(3, 9))
        for i in range(first, steps, every):
            plan.scales[i] = 2.0 ** float(rng.integers(28, 40))
        return f"every {every}", first
    if fault == "odd_replica":
        factor = float(rng.choice([30.0, 100.0, 300.0]))
        plan.share[first:] = factor
        return f"x{factor:.0f}", first
    if fault == "bad_start":
        factor = strength * float(rng.uniform(5, 15))
        for v in kernels:
            v.assign(v.numpy() * factor)
        return f"x{factor:.1f}", 0
    if fault == "vanishing":
        # saturated or dead units: their kernels are as usual
        size = strength * float(rng.uniform(6, 12))
        for v in model.variables:
            if v.path.endswith("bias") and "head" not in v.path and "d_two" not in v.path:
                v.assign(np.full(v.shape, size if model.saturates else -size, np.float32))
        return "saturated" if model.saturates else "dead", 0
    if fault == "dead_run":
        factor = 10.0 ** -float(rng.uniform(4, 7))
        plan.rates = plan.rates * factor
        return f"rate x{factor:.0e}", 0
    if fault == "exploding_recurrence":
        factor = strength * float(rng.uniform(2.0, 3.0))
        for v in model.variables:
            if "recurrent_kernel" in v.path:
                v.assign(v.numpy() * factor)
        return f"x{factor:.1f}", 0
    if fault == "embedding_rows":
        table = next(v for v in model.variables if "embedding" in v.path)
        rows = rng.choice(table.shape[0], max(2, table.shape[0] // 10), replace=False)
        factor = float(rng.choice([100.0, 300.0, 1000.0]))
        if rng.random() < 0.5:
            plan.rows[first] = (table, rows, factor)
            return f"rows x{factor:.0f}", first
        _scale_rows(table, rows, factor)
        return f"rows x{factor:.0f}", 0
    raise ValueError(fault)


def _scale_rows(table: Any, rows: np.ndarray, factor: float) -> None:
    value = table.numpy()
    value[rows] *= factor
    table.assign(value)


def seedless(rng: np.random.Generator) -> bool:
    return bool(rng.random() < 0.5)


def train(model: Any, fault: str, seed: int, *, strength: float = 1.0, steps: int = STEPS) -> Run:
    """One run from new weights."""
    import faulty_models

    from gradwatch.diagnosis.observation import observe

    rng = np.random.default_rng([seed, *fault.encode(), *model.name.encode()])
    policy = faulty_models.POLICIES[seed % 2]
    model.restart(rng, policy)
    plan = Plan(model, rng, steps)
    variant, first = inject(fault, model, plan, rng, strength)
    step, losses = model.steps[policy], []
    rate = None
    for i, (x, y) in enumerate(plan.batches):
        if plan.rates[i] != rate:
            rate = plan.rates[i]
            model.set_rate(rate)
        if i in plan.scales:
            model.optimizers[0].dynamic_scale.assign(plan.scales[i])
        if i in plan.rows:
            _scale_rows(*plan.rows[i])
        losses.append(step(x, y, plan.operation[i], plan.gain[i], plan.share[i]))
    seen = observe(model.monitor(policy))
    loss = np.array([float(x) for x in losses])
    final = np.median(np.where(np.isfinite(loss[-40:]), loss[-40:], np.inf))
    first_bad = None if first is None else first + 1
    return Run(model.name, fault, seed, variant, first_bad, policy, seen, (float(loss[0]), float(final)))


#: Faults that a model may shrug off.
_MAY_FAIL = (
    *("learning_rate_too_high", "warmup_too_short", "bad_start", "exploding_recurrence", "vanishing"),
    "embedding_rows",
)


def worked(run: Run, usual: tuple[float, float]) -> bool:
    """Whether a fault that may have no effect had one: it learned less than half of what is learned without it."""
    if run.fault not in _MAY_FAIL:
        return True
    wild = run.fault in ("bad_start", "exploding_recurrence", "embedding_rows") and not run.losses[0] < 5 * usual[0]
    return wild or not run.losses[1] < usual[1] + 0.5 * (usual[0] - usual[1])


def observe_all(
    folder: Path, names: Sequence[str] = (), sets: Sequence[str] = tuple(SEEDS), most: int | None = None
) -> None:
    """Every fault in every model that it can occur in, with every seed; a file for each model and set of seeds."""
    import faulty_models

    strategy = faulty_models.two_replicas()
    makers = {**faulty_models.MAKERS, "replicated": lambda: faulty_models.replicated(strategy)}
    folder.mkdir(parents=True, exist_ok=True)
    for name in names or makers:
        make = makers[name]
        began, model = time.process_time(), make()
        for which in sets:
            runs = observe_model(model, SEEDS[which][:most])
            with (folder / f"{which}-{name}.pickle").open("wb") as file:
                pickle.dump([tuple(run) for run in runs], file)
        print(f"{name}: {time.process_time() - began:.0f} s", flush=True)


def usual_losses(runs: Sequence[Run]) -> tuple[float, float]:
    """The first and the last loss of healthy runs, in the middle."""
    first, last = (float(np.median([r.losses[i] for r in runs if r.fault == "healthy"])) for i in (0, 1))
    return first, last


def observe_model(model: Any, seeds: Sequence[int]) -> list[Run]:
    """The runs of one model."""
    runs = [train(model, "healthy", seed + extra) for seed in seeds for extra in (0, 1001)]
    usual = usual_losses(runs)
    for fault in model.faults:
        weak = 0
        for seed in seeds if fault != "healthy" else ():
            strength, run = 1.0, train(model, fault, seed)
            while not worked(run, usual) and strength < 20:
                strength *= 3.0
                run = train(model, fault, seed, strength=strength)
            weak += not worked(run, usual)
            runs += [run] if worked(run, usual) else []
        if weak:
            print(f"{model.name}: {fault} had no effect in {weak} runs, which are left out")
    print(f"{model.name}: loss {usual[0]:.2f} -> {usual[1]:.2f}", flush=True)
    return runs


def load(folder: Path, which: str, names: Sequence[str] = ()) -> list[Run]:
    """What `observe_all` kept."""
    runs = []
    for path in sorted(folder.glob(f"{which}-*.pickle")):
        if not names or path.stem.removeprefix(f"{which}-") in names:
            with path.open("rb") as file:
                found = [Run(*row) for row in pickle.load(file)]
            usual = usual_losses(found)
            runs += [run for run in found if worked(run, usual)]
    return runs


# -- judging ----------------------------------------------------------------------------------------------


def score(runs: Sequence[Run], *, verbose: bool = True) -> dict[str, Any]:
    """What `diagnose` says of the runs, and how often it is right."""
    from gradwatch.diagnosis.diagnose import diagnose

    first_rank = second_rank = exact = dated = alarms = calm = faulty = 0
    confusion: Counter[tuple[str, str]] = Counter()
    right: Counter[str] = Counter()
    of_model: Counter[str] = Counter()
    for run in runs:
        found = diagnose(run.observation)
        ranks = [cause.kind for cause in found.causes]
        confusion[run.fault, ranks[0]] += 1
        if run.fault == "healthy":
            calm += 1
            alarms += ranks[0] != "healthy"
        else:
            faulty += 1
            first_rank += ranks[0] == run.fault
            right[run.model] += ranks[0] == run.fault
            of_model[run.model] += 1
            second_rank += run.fault in ranks[:2]
            if run.fault not in WITHOUT_STEP and ranks[0] == run.fault:
                dated += 1
                exact += found.first_step == run.first
                if verbose and found.first_step != run.first:
                    print(f"STEP {run.model} {run.fault} {run.seed} {run.variant}: {found.first_step}, not {run.first}")
        if verbose and ranks[0] != run.fault:
            told = " ".join(f"{c.kind}={c.confidence:.2f}" for c in found.causes[:4])
            print(f"{run.model} {run.policy[:4]} {run.fault} {run.seed} {run.variant} @{run.first}: {told}")
    return {
        "faulty_runs": faulty,
        "first_rank": first_rank / max(faulty, 1),
        "first_two": second_rank / max(faulty, 1),
        "healthy_runs": calm,
        "healthy_others": alarms / max(calm, 1),
        "first_step_runs": dated,
        "first_step_exact": exact / max(dated, 1),
        "models": [[name, right[name], count] for name, count in sorted(of_model.items())],
        "confusion": [[*key, count] for key, count in sorted(confusion.items())],
    }


#: What is to be reached: key of `score` -> (text, limit, whether it is to be at least that).
GOALS = {
    "first_rank": ("right cause first", 0.90, True),
    "first_two": ("right cause among the first two", 0.97, True),
    "healthy_others": ("healthy runs called something else", 0.01, False),
    "first_step_exact": ("first bad step exact", 0.95, True),
}


def report(found: Mapping[str, Any]) -> str:
    """The goals, and the share of right verdicts for each model, as tables."""
    runs = {"healthy_others": "healthy_runs", "first_step_exact": "first_step_runs"}
    lines = ["| goal | limit | measured | runs | |", "| --- | --- | --- | --- | --- |"]
    for key, (text, limit, least) in GOALS.items():
        met = found[key] >= limit if least else found[key] <= limit
        sign = "at least" if least else "at most"
        word = "met" if met else "**missed**"
        lines.append(
            f"| {text} | {sign} {limit:.0%} | {found[key]:.1%} | {found[runs.get(key, 'faulty_runs')]} | {word} |"
        )
    lines += ["", "| model | faulty runs | right cause first |", "| --- | --- | --- |"]
    lines += [f"| {name} | {count} | {right / count:.0%} |" for name, right, count in found["models"]]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["observe", "score", "judge"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--which", choices=list(SEEDS), default="design")
    parser.add_argument("--sets", nargs="*", choices=list(SEEDS), default=list(SEEDS))
    parser.add_argument("--most", type=int, help="seeds of each set; default: all")
    parser.add_argument("--models", nargs="*", default=[])
    given = parser.parse_args(arguments)
    if given.what == "observe":
        observe_all(given.folder, given.models, given.sets, given.most)
        return
    runs = load(given.folder, "judged" if given.what == "judge" else given.which, given.models)
    found = score(runs, verbose=given.what == "score")
    print({key: value for key, value in found.items() if key != "confusion"})
    if given.what == "judge":
        import setting

        RESULTS.write_text(json.dumps({"machine": setting.machine(), **found}, indent=1) + "\n")
        print(report(found))


if __name__ == "__main__":
    main()
