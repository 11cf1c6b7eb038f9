"""What every benchmark shares: the machine it ran on, intervals, tables, JSON."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """Processor, cores that this process may use, load, versions and the command line."""
    cpu = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = {"python": platform.python_version()}
    for package in ("tensorflow", "keras", "numpy", "scipy"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    # where it lay on this machine tells nobody anything
    arguments = ["FOLDER" if Path(word).is_absolute() else word for word in sys.argv[1:]]
    return {
        "cpu": cpu,
        "cores": cores,
        "load_1min_at_start": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.release()}",
        "versions": versions,
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *arguments]),
    }


def one_line(facts: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    return f"{facts['cpu']}, {facts['cores']} cores, load {facts['load_1min_at_start']}; {versions}"


def median_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """(median, low, high): the distribution-free interval of the median from binomial order statistics.

    The number of values below the true median is binomial(n, 1/2), so the interval between the k-th smallest
    and the k-th largest covers it with a known probability whatever the distribution (David and Nagaraja,
    Order Statistics, section 7.1). With too few values it is the whole range.
    """
    x = np.sort(np.asarray(values, float))
    n = len(x)
    k = int(np.floor(0.5 * n - _z(level) * 0.5 * np.sqrt(n)))
    return (
        (float(np.median(x)), float(x[0]), float(x[-1]))
        if k < 1
        else (float(np.median(x)), float(x[k - 1]), float(x[n - k]))
    )


def _z(level: float) -> float:
    from statistics import NormalDist

    return NormalDist().inv_cdf(0.5 + level / 2)


def mean_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """(mean, low, high) by Student's t: for few seeds."""
    from scipy import stats

    x = np.asarray(values, float)
    if len(x) < 2 or not np.all(np.isfinite(x)):
        return float(np.mean(x)), float(np.min(x)), float(np.max(x))
    half = stats.t.ppf(0.5 + level / 2, len(x) - 1) * np.std(x, ddof=1) / np.sqrt(len(x))
    return float(np.mean(x)), float(np.mean(x) - half), float(np.mean(x) + half)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns."""
    cells = [list(map(str, head)), *[list(map(str, row)) for row in rows]]
    width = [max(len(row[i]) for row in cells) for i in range(len(head))]

    def line(row: Sequence[str]) -> str:
        return "| " + " | ".join(text.ljust(width[i]) for i, text in enumerate(row)) + " |"

    return "\n".join([line(cells[0]), "| " + " | ".join("-" * w for w in width) + " |", *map(line, cells[1:])])


def results_file(name: str, quick: bool) -> Path:
    """Where a benchmark writes, unless told otherwise: a reduced run leaves the published results alone."""
    return RESULTS / f"{name}{'-quick' if quick else ''}.json"


def write(path: str | Path, content: dict[str, Any]) -> None:
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(content, indent=1) + "\n")
    print(f"written: {target}")
