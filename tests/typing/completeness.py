"""Asks pyright how much of the public face of gradwatch has types that every checker reads alike; `make check` runs it.

Prints the share and the symbols that are short of it, and fails below `LEAST`. Pyright comes from PyPI whole, with a
Node.js beside it: nothing is fetched when it runs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

LEAST = 0.95
ROOT = Path(__file__).parents[2]


def report() -> dict[str, Any]:
    """What `pyright --verifytypes gradwatch` says of this checkout, types of other packages left out."""
    # elsewhere than in the checkout: pyright verifies a package as a user has it, found by import
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--outputjson"]
        done = subprocess.run(
            [*command, "--ignoreexternal", "--verifytypes", "gradwatch"],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
    try:
        found: dict[str, Any] = json.loads(done.stdout)["typeCompleteness"]
    except (ValueError, KeyError):
        sys.exit(f"pyright gave no report:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    if not found.get("pyTypedPath"):
        sys.exit(f"pyright found no gradwatch with a py.typed below {ROOT}")
    return found


def main() -> None:
    found = report()
    score = found["completenessScore"]
    if score < LEAST:
        for symbol in found["symbols"]:
            if symbol["isExported"] and not symbol["isTypeKnown"]:
                print(symbol["name"])
    print(f"types: pyright --verifytypes gradwatch {score:.1%}, wanted at least {LEAST:.0%}")
    sys.exit(score < LEAST)


if __name__ == "__main__":
    main()
