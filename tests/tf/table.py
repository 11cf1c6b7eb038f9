"""The golden table, printed: every loop in every mode, each property checked. `python tests/tf/table.py [WORD ...]`

A cell is `ok`, the names of the properties that failed, or `-` where Keras or TensorFlow has no such mode.
"""

from __future__ import annotations

import inspect
import sys
import time

import conftest  # noqa: F401 - sets TensorFlow up as for the tests
import loops
import pytest
import test_table

PROPERTIES = {
    name.removeprefix("test_table_"): check
    for name, check in vars(test_table).items()
    if name.startswith("test_table_") and inspect.isfunction(check)
}
COLUMNS = [*loops.support.MODES, *loops.FIT]


def cells_of(check) -> set[tuple[str, str]]:
    (mark,) = (m for m in check.pytestmark if m.name == "parametrize")
    return {(loop.name, mode) for loop, mode in mark.args[1]}


def failed(loop: loops.Loop, mode: str) -> list[str]:
    """Names of the properties that do not hold."""
    found = []
    for name, check in PROPERTIES.items():
        if (loop.name, mode) not in cells_of(check):
            continue
        try:
            check(loop, mode)
        except pytest.skip.Exception:
            continue
        except Exception as error:
            found.append(f"{name}: {type(error).__name__}")
    return found


def main(words: list[str]) -> int:
    chosen = [loop for loop in loops.LOOPS if not words or any(word in loop.name for word in words)]
    width = max(len(loop.name) for loop in chosen)
    bad: list[str] = []
    began = time.monotonic()
    print(" | ".join(["loop".ljust(width), *COLUMNS]))
    for loop in chosen:
        row = [loop.name.ljust(width)]
        for mode in COLUMNS:
            problems = failed(loop, mode) if mode in loop.modes else []
            bad += [f"{loop.name}, {mode}: {problem}" for problem in problems]
            row.append((("FAILED" if problems else "ok") if mode in loop.modes else "-").ljust(len(mode)))
        print(" | ".join(row), flush=True)
    count = sum(len(loop.modes) for loop in chosen)
    print(f"\n{count} cells, {len(PROPERTIES)} properties, {len(bad)} failures, {time.monotonic() - began:.0f} s")
    print("\n".join(bad))
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
