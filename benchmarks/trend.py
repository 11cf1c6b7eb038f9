"""Keep the headline numbers of each `make bench`: one line for each commit and machine in benchmarks/trend.jsonl.

    python benchmarks/trend.py            # append the newest results, write the table of docs/trend.md
    python benchmarks/trend.py --quick    # of a reduced run
    python benchmarks/trend.py --show     # print the table, append nothing

A number that gets worse from one release to the next is seen here, without reading two pages of tables. Numbers compare
within one machine; between machines only the ratios do.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import setting

ROOT = Path(__file__).parents[1]
LINES = ROOT / "benchmarks" / "trend.jsonl"
PAGE = ROOT / "docs" / "trend.md"
SYNTHETIC = ("normal", "log-normal 0.3", "log-normal 0.8", "Pareto 2.5", "AR(1) 0.9", "decay")

#: What a column of the table says: (heading, digits). The direction stands in docs/trend.md.
HEADLINES = {
    "mlp_ratio": ("step of an MLP of 2 M / explicit clip", 3),
    "small_added_us": ("added to a step of 101 weights, µs", 0),
    "worst_budget": ("false alarms / budget of 10, worst synthetic stream", 2),
    "lost_cells": ("cells lost by the default policy", 0),
}


def cost(found: Mapping[str, Any]) -> dict[str, float]:
    """From the results of overhead.py, steps in a `tf.function`: a ratio, and microseconds added."""
    cells = {(cell["model"], cell["mode"]): cell["contenders"]["gradwatch"] for cell in found["cells"]}
    numbers = {}
    if ("mlp-2m", "function") in cells:
        numbers["mlp_ratio"] = cells["mlp-2m", "function"]["ratio"][0]
    if ("quickstart", "function") in cells:
        numbers["small_added_us"] = cells["quickstart", "function"]["added_us"][0]
    return numbers


def false_alarms(found: Mapping[str, Any]) -> dict[str, float]:
    """From the results of detection.py: observed over promised, where it is largest."""
    seen = [found["budgets"][stream]["10"][0] for stream in SYNTHETIC if stream in found["budgets"]]
    return {"worst_budget": max(seen)} if seen else {}


def saves(found: Mapping[str, Any], path: Path) -> dict[str, float]:
    """From the results of efficacy.py: cells in which a seed of the default policy dies where a constant survives."""
    import finals
    import runs

    cells = finals.Cells(runs.load(path), found["steps"])
    if finals.DEFAULT not in cells.names:
        return {}
    return {"lost_cells": float(finals.goals(cells, finals.DEFAULT)["died"])}


def headlines(quick: bool) -> tuple[dict[str, float], dict[str, Any]]:
    """(the numbers that there are results for, the machine of the newest of them)."""
    readers: dict[str, Callable[[dict[str, Any], Path], dict[str, float]]] = {
        "overhead": lambda found, path: cost(found),
        "detection": lambda found, path: false_alarms(found),
        "efficacy": saves,
    }
    numbers: dict[str, float] = {}
    machine: dict[str, Any] = {}
    for name, read in readers.items():
        path = setting.results_file(name, quick)
        if path.exists():
            found = json.loads(path.read_text())
            numbers |= read(found, path)
            machine = found["machine"]
    return numbers, machine


def commit() -> str:
    """The short name of the commit, with a plus where files differ from it; "unknown" outside a checkout."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty=+", "--exclude=*"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "unknown"


def entry(quick: bool) -> dict[str, Any]:
    numbers, machine = headlines(quick)
    return {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "commit": commit(),
        "cpu": machine.get("cpu", "unknown"),
        "cores": machine.get("cores"),
        "tensorflow": machine.get("versions", {}).get("tensorflow", "unknown"),
        "reduced": quick,
        **{name: float(f"{value:.4g}") for name, value in numbers.items()},
    }


def load(path: Path = LINES) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def append(new: dict[str, Any], path: Path = LINES) -> list[dict[str, Any]]:
    """All lines with the new one at the end. It replaces a line of the same commit, machine and size."""
    same = ("commit", "cpu", "cores", "reduced")
    lines = [line for line in load(path) if any(line[key] != new[key] for key in same)] + [new]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return lines


def table(lines: list[dict[str, Any]]) -> str:
    """The newest first."""
    head = ["date", "commit", "machine", "TensorFlow", *(heading for heading, _ in HEADLINES.values())]
    rows = [
        [
            line["date"],
            f"`{line['commit']}`" + (", reduced" if line["reduced"] else ""),
            f"{line['cpu']}, {line['cores']} cores",
            line["tensorflow"],
            *(f"{line[name]:.{digits}f}" if name in line else "-" for name, (_, digits) in HEADLINES.items()),
        ]
        for line in reversed(lines)
    ]
    return setting.table(head, rows)


def fill(text: str, lines: list[dict[str, Any]]) -> str:
    start, end = "<!-- measured: trend -->\n", "<!-- end -->"
    before, rest = text.split(start)
    return f"{before}{start}\n{table(lines)}\n\n{end}{rest.split(end, 1)[1]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the results of a reduced run")
    parser.add_argument("--show", action="store_true", help="print the table and append nothing")
    options, _ = parser.parse_known_args()  # `make bench` hands on the options of the benchmarks
    if options.show:
        print(table(load()))
        return
    lines = append(entry(options.quick))
    PAGE.write_text(fill(PAGE.read_text(), lines))
    print(f"written: {LINES}, {PAGE}\n{table(lines)}")


if __name__ == "__main__":
    main()
