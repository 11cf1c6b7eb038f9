"""The files of finished runs of benchmarks/efficacy.py.

Two files hold them. Runs are appended to `NAME.jsonl` while they finish, one line each, so a stop loses nothing; it is
no part of the repository. `NAME.json` is what is published: a row for each task, learning rate and method, with the
numbers of all its seeds. `load` reads both, so a table or a further run can start from either.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

RECORDED = Path(__file__).parent / "results" / "recorded_norms.npz"

#: The method that does not clip.
UNCLIPPED = "none"

#: The columns of a published row; the last four hold a number for each seed. A run that died has no final loss: it
#: counts as the loss of the untrained model, which `untrained` holds by task and seed.
COLUMNS = ("task", "rate", "method", "seeds", "final", "steps_lost", "clipped_last_half")

Line = dict[str, Any]


# -- files ------------------------------------------------------------------------------------------------


def load(path: Path) -> list[Line]:
    """Finished runs: those of the published file `path` (.json), then those of the file of lines beside it."""
    published = json.loads(path.read_text()) if path.exists() else {}
    by_key = {_key(line): line for line in [*_expanded(published), *_lines(path.with_suffix(".jsonl"))]}
    return list(by_key.values())


def append(path: Path, lines: Iterable[Line]) -> None:
    """Add finished runs to the file of lines beside the published file `path`."""
    target = path.with_suffix(".jsonl")
    torn = target.exists() and target.stat().st_size > 0 and not target.read_bytes().endswith(b"\n")
    with target.open("a") as file:
        # what a stop tore apart keeps its line to itself
        file.write("\n" * torn + "".join(json.dumps(x) + "\n" for x in lines))


def forget(path: Path, methods: Iterable[str]) -> None:
    """Drop the finished runs of these methods from both files, so that they are trained again."""
    dropped = set(methods)
    if path.exists():
        published = json.loads(path.read_text())
        _write(path, {**published, "rows": [row for row in published["rows"] if row[2] not in dropped]})
    target = path.with_suffix(".jsonl")
    if target.exists():
        kept = [line for line in _lines(target) if line["method"] not in dropped]
        target.unlink()
        append(path, kept)


def publish(path: Path, lines: Iterable[Line], steps: int, facts: Mapping[str, Any]) -> None:
    """Write the runs of `steps` steps as one row for each task, rate and method."""
    cells: dict[tuple[str, float, str], list[Line]] = defaultdict(list)
    untrained: dict[str, dict[int, float]] = defaultdict(dict)
    for line in lines:
        if line["steps"] == steps:
            cells[line["task"], line["rate"], line["method"]].append(line)
            untrained[line["task"]][line["seed"]] = _short(line["untrained"])
    rows = []
    for (task, rate, method), runs in cells.items():
        runs = sorted(runs, key=lambda line: line["seed"])
        rows.append(
            [
                task,
                rate,
                method,
                [line["seed"] for line in runs],
                [None if line["diverged"] else _short(line["final"]) for line in runs],
                [line["steps_lost"] for line in runs],
                [_short(line["clipped_last_half"]) for line in runs],
            ]
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path, {"machine": facts, "steps": steps, "untrained": untrained, "columns": COLUMNS, "rows": rows})
    print(f"written: {path}")


def _write(path: Path, content: Mapping[str, Any]) -> None:
    """JSON with one line for each row, so that a change of one row is a change of one line."""
    head = {key: value for key, value in content.items() if key != "rows"}
    rows = ",\n".join(json.dumps(row) for row in content["rows"])
    path.write_text(json.dumps(head)[:-1] + f',\n"rows": [\n{rows}\n]}}\n')


def _short(x: float) -> float:
    return float(f"{x:.7g}")


def _key(line: Line) -> tuple[Any, ...]:
    return line["task"], line["rate"], line["seed"], line["steps"], line["method"]


def _expanded(published: Mapping[str, Any]) -> Iterable[Line]:
    """The lines of published rows."""
    for row in published.get("rows", []):
        task, rate, method, seeds, *columns = row
        for seed, final, lost, clipped in zip(seeds, *columns):
            untrained = published["untrained"][task][str(seed)]
            yield {
                "task": task,
                "rate": rate,
                "method": method,
                "seed": seed,
                "steps": published["steps"],
                "final": untrained if final is None else final,
                "untrained": untrained,
                "diverged": final is None,
                "steps_lost": lost,
                "clipped_last_half": clipped,
            }


def _lines(path: Path) -> Iterable[Line]:
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue  # the line that was being written when the run was stopped


# -- recorded norms ---------------------------------------------------------------------------------------


def save_norms(lines: Iterable[Line], path: Path = RECORDED) -> None:
    """Norms of healthy runs without clipping, for detection.py.

    Healthy: at the learning rate that trains the task best or below it, or within 2 % of its loss, with a norm whose
    median over a tenth of the run never rises or falls tenfold. Larger rates explode now and then: alarms are right.

    A published run carries no norms. Those that were healthy are in `path` already and stay while they are; the others
    were left out for good.
    """
    runs = [line for line in lines if line["method"] == UNCLIPPED]
    finals: dict[tuple[str, float], list[float]] = defaultdict(list)
    for run in runs:
        finals[run["task"], run["rate"]].append(run["final"])
    best: dict[str, tuple[float, float]] = {}
    for (task, rate), values in finals.items():
        best[task] = min(best.get(task, (math.inf, 0.0)), (float(np.mean(values)), rate))
    recorded = {}
    if path.exists():
        with np.load(path) as file:
            recorded = {name: file[name] for name in file.files}
    kept = {}
    for run in runs:
        task, rate = run["task"], run["rate"]
        loss, best_rate = best[task]
        name = f"{task}-{rate:g}-{run['seed']}"
        x = np.asarray(run.get("norms") or recorded.get(name, []), float)
        trains = rate <= best_rate or np.mean(finals[task, rate]) <= 1.02 * loss
        if not trains or run["diverged"] or len(x) < 1000 or not np.all(np.isfinite(x)):
            continue
        logs = np.log(np.maximum(x, 1e-30))
        if np.ptp(np.array([np.median(piece) for piece in np.array_split(logs[100:], 10)])) < np.log(10):
            kept[name] = x.astype(np.float32)
    if kept:
        path.parent.mkdir(exist_ok=True)
        np.savez_compressed(path, **kept)
        print(f"written: {path} ({len(kept)} runs)")
