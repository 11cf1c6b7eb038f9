"""Snapshots on a disk: a health file beside each, and the newest healthy one of a folder.

A snapshot is a checkpoint of TensorFlow and a JSON file of the same name. The JSON file is written last, and by a
rename, so a checkpoint without one was not finished; it says how large each file of the checkpoint must be, so one that
lost a file is not taken for whole either.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gradwatch.errors import LayoutError

#: Of the health file.
VERSION = 1
SUFFIX = ".health.json"

HEALTHY, CANDIDATE, HARMED, LAST = "healthy", "not yet known", "harmed", "last state"

Shapes = Sequence[tuple[str, tuple[int, ...]]]


def files_of(prefix: Path) -> dict[str, int]:
    """The files of the checkpoint with this prefix, name -> bytes."""
    pattern = prefix.name.replace("[", "[[]")
    found = [*prefix.parent.glob(f"{pattern}.index"), *prefix.parent.glob(f"{pattern}.data-*")]
    return {path.name: path.stat().st_size for path in sorted(found)}


def write_health(prefix: Path, verdict: str, step: int, variables: Shapes, **facts: Any) -> None:
    """Write or replace the health file of a checkpoint that is complete, all or nothing.

    Args:
      prefix: of the checkpoint.
      verdict: `HEALTHY`, `CANDIDATE`, `HARMED` or `LAST`.
      step: of the monitor.
      variables: path and shape of each.
      **facts: loss, norm and whatever JSON can say; NaN and Inf become null.

    Raises:
      OSError: the disk does not take it; the old file, if there was one, is as it was.
    """
    content = {
        "version": VERSION,
        "checkpoint": prefix.name,
        "verdict": verdict,
        "step": step,
        "time": time.time(),
        **{key: _plain(value) for key, value in facts.items()},
        "files": files_of(prefix),
        "variables": [[path, list(shape)] for path, shape in variables],
    }
    target = prefix.with_name(prefix.name + SUFFIX)
    unfinished = target.with_name(target.name + ".part")
    try:
        with unfinished.open("w", encoding="utf-8") as file:
            json.dump(content, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(target)
    except OSError:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise


def remove(prefix: Path) -> None:
    """Delete a snapshot: the health file first, so that it is never taken for whole."""
    for path in (prefix.with_name(prefix.name + SUFFIX), *(prefix.with_name(name) for name in files_of(prefix))):
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def latest_healthy(folder: str | os.PathLike[str], model: Any = None) -> str | None:
    """The newest snapshot in a folder that was healthy and is complete; None where there is none.

        path = gradwatch.recovery.latest_healthy("snapshots")
        if path is not None:
            tf.train.Checkpoint(model=model, optimizer=optimizer, gradwatch=monitor).restore(path)

    Args:
      folder: the `directory` of `rollback`. A folder that does not exist holds none.
      model: whose snapshot it must be: something with `variables`, or a list of variables. None takes any.

    Returns:
      The prefix of a checkpoint, for `tf.train.Checkpoint.restore`.

    Raises:
      LayoutError: the newest healthy snapshot holds other variables than `model`.
    """
    place = Path(folder)
    found: list[tuple[float, int, Path, Mapping[str, Any]]] = []
    for path in place.glob(f"*{SUFFIX}") if place.is_dir() else ():
        health = read_health(path)
        if health is not None and health["verdict"] == HEALTHY:
            found.append((float(health["time"]), int(health["step"]), place / str(health["checkpoint"]), health))
    if not found:
        return None
    *_, prefix, health = max(found, key=lambda item: item[:2])
    if model is not None:
        wanted = shapes_of(getattr(model, "variables", model))
        difference = _difference([(str(path), tuple(shape)) for path, shape in health["variables"]], wanted)
        if difference:
            raise LayoutError(
                f"the newest healthy snapshot in {os.fspath(folder)}, {prefix.name}, is of another model: "
                f"{difference}; give the folder of this model's own snapshots"
            )
    return str(prefix)


def read_health(path: Path) -> Mapping[str, Any] | None:
    """A health file whose checkpoint is complete; None for anything else."""
    try:
        health = json.loads(path.read_text(encoding="utf-8"))
        complete = health["version"] <= VERSION and bool(health["files"]) and "time" in health and "step" in health
        prefix = path.with_name(str(health["checkpoint"]))
        return health if complete and files_of(prefix) == health["files"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def shapes_of(variables: Sequence[Any]) -> list[tuple[str, tuple[int, ...]]]:
    """Path and shape of each variable."""
    return [
        (str(getattr(v, "path", None) or getattr(v, "name", "")).removesuffix(":0"), tuple(int(d) for d in v.shape))
        for v in variables
    ]


def _difference(there: Shapes, here: Shapes) -> str:
    """In words, which of the variables here the snapshot lacks; "" where it has them all.

    The snapshot holds more than the model: slots, statistics. Keras numbers its layers through a whole process, so of
    the paths the last part alone is compared.
    """
    left: dict[tuple[str, tuple[int, ...]], int] = {}
    for path, shape in there:
        key = (path.rsplit("/", 1)[-1], shape)
        left[key] = left.get(key, 0) + 1
    for path, shape in here:
        key = (path.rsplit("/", 1)[-1], shape)
        if not left.get(key):
            return f"it has no variable like {path} of shape {shape}"
        left[key] -= 1
    return ""


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
