"""All tests but the end-to-end ones, in parts one after the other: `python tests/in_parts.py [-n WORKERS] [options]`.

TensorFlow keeps the graph of each step that applies an optimizer unwatched, and each program of XLA, for as long as a
process lives. Workers that run all tests grow by gigabytes. A part has workers of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from seconds import SECONDS

TESTS = Path(__file__).parent
PARTS = 4
NOTHING_SELECTED = 5  # pytest's status where no test fits, as with -k


def parts(count: int = PARTS) -> list[list[Path]]:
    """The test files, in parts that take about as long as each other."""
    files = sorted(path for path in TESTS.rglob("test_*.py") if "e2e" not in path.relative_to(TESTS).parts)
    found: list[list[Path]] = [[] for _ in range(count)]
    taken = [0.0] * count
    for path in sorted(files, key=lambda path: -SECONDS.get(path.stem, 0)):
        least = taken.index(min(taken))
        found[least].append(path)
        taken[least] += SECONDS.get(path.stem, 1)
    return found


def main() -> int:
    given = sys.argv[1:]
    pytest = [sys.executable, "-m", "pytest", "-m", "not e2e", "--dist", "loadfile", "--no-loadscope-reorder"]
    if any(not word.startswith("-") and Path(word.split("::")[0]).exists() for word in given):
        return subprocess.call([*pytest, *given])  # somebody wants these
    failed = 0
    for i, files in enumerate(parts(), 1):
        print(f"part {i} of {PARTS}", flush=True)
        status = subprocess.call([*pytest, *(os.path.relpath(path) for path in files), *given])
        failed = failed or (0 if status == NOTHING_SELECTED else status)
    return failed


if __name__ == "__main__":
    sys.exit(main())
