"""One event and the batch that it happened on: a file beside the run, written and read back.

A file is a plain .npz without pickled objects: numbered arrays, and a header in JSON that says how they belong
together.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from gradwatch.errors import RecordError
from gradwatch.record.batch import Outline, build
from gradwatch.record.run import batches_of, files_of
from gradwatch.record.schema import SUFFIX

#: Of the header. A reader refuses a newer one.
VERSION = 1

_FORMAT = "gradwatch event"
_HEADER = "header"


@dataclass(frozen=True)
class Kept:
    """What the device kept of one step.

    Attributes:
      step: at which the episodes began.
      kinds: of the anomalies, the most severe first.
      outline: of (positional arguments, keyword arguments); see `gradwatch.record.batch`.
      arrays: those that the outline names.
      weights: path of a variable -> its value after the step, where the weights are kept.
      missing: why the batch is not there; "" where it is.
    """

    step: int
    kinds: tuple[str, ...]
    outline: Outline
    arrays: tuple[np.ndarray, ...] = ()
    weights: Mapping[str, np.ndarray] = field(default_factory=dict)
    missing: str = ""


class BatchEvent:
    """An event with the batch that it happened on, as `gradwatch.open_event` reads it.

    Attributes:
      path: of the file.
      step: at which the anomaly began, counted from 1.
      kinds: of the anomalies that began there, the most severe first: "explosion", "nonfinite", ...
      norm: global gradient norm before clipping at that step; NaN where it was NaN or is not known.
      threshold: the norm beyond which the step counted as an explosion; Inf where there was none.
      loss: of the step; NaN where it is not known.
      shares: variable path -> its share of the anomaly, the largest first; see `gradwatch.Event`.
      time: Unix seconds when the host saw it.
      monitor, run_id: who watched.
    """

    def __init__(self, path: Path, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        self.path = path
        self.step: int = int(header["step"])
        self.kinds: tuple[str, ...] = tuple(header["kinds"])
        self.norm, self.threshold, self.loss = (float(header[name]) for name in ("norm", "threshold", "loss"))
        self.shares: dict[str, float] = dict(header["shares"])
        self.time: float = float(header["time"])
        self.monitor: str = header["monitor"]
        self.run_id: str = header["run_id"]
        self._missing: str = header["missing"]
        self._outline: Outline = header["outline"]
        self._arrays = [_as_it_was(arrays[f"array_{i}"], dtype) for i, dtype in enumerate(header["dtypes"])]
        self._weights = header["weights"]

    def __repr__(self) -> str:
        return f"BatchEvent({str(self.path)!r}, step={self.step}, kinds={self.kinds!r})"

    @property
    def kind(self) -> str:
        """The most severe of `kinds`."""
        return self.kinds[0] if self.kinds else ""

    @property
    def batch(self) -> tuple[Any, ...]:
        """The positional arguments of the step, (x, y) as a rule: arrays in the tuples, lists and dicts they came in.

        In `model.fit` they are the parts of a batch: (x, y) or (x, y, sample_weight). Rows of different lengths are a
        `Ragged`, mostly empty arrays a `Sparse`. Objects that are no data, as a model or an iterator, are left out.

        Raises:
          RecordError: the batch was not kept; the message says why.
        """
        return tuple(self._whole()[0])

    @property
    def keywords(self) -> dict[str, Any]:
        """The keyword arguments of the step, as `batch`."""
        return dict(self._whole()[1])

    @property
    def weights(self) -> dict[str, np.ndarray]:
        """Path of a variable -> its value after the step; {} without `weights=True`."""
        first = len(self._arrays) - len(self._weights)
        return dict(zip(self._weights, self._arrays[first:]))

    def _whole(self) -> Any:
        if self._missing:
            raise RecordError(f"{self.path.name} has the event of step {self.step} without its batch: {self._missing}")
        return build(self._outline, self._arrays)


def open_event(path: str | os.PathLike[str]) -> BatchEvent:
    """The event that a file beside the run holds, with the batch it happened on: `watch(record=..., keep_batch=True)`.

        event = gradwatch.open_event("runs")
        event.step, event.kind, event.norm
        x, y = event.batch

    Args:
      path: of the file; of a run's file, whose first event with a file is meant; or of a folder, for its newest run.

    Raises:
      RecordError: there is no such file, it is of a newer gradwatch or of another program, or it is damaged.
    """
    given = Path(path)
    if given.is_dir():
        run = next((run for run in files_of(given) if batches_of(run)), None)
        if run is None:
            raise RecordError(_none_in(given))
        given = run
    if given.suffix == SUFFIX:
        found = batches_of(given)
        if not found:
            raise RecordError(_none_in(given))
        given = found[0]
    if not given.is_file():
        raise RecordError(f"there is no file {given}; Run.batches lists those of a run")
    return _read(given)


def write_event(run: Path, kept: Kept, **told: Any) -> Path:
    """Writes the file of an event beside the run, whole or not at all, and returns its path.

    Args:
      run: the run's file.
      kept: what the device kept.
      **told: norm, threshold, loss, shares, time, monitor and run_id of the event, see `BatchEvent`.

    Raises:
      OSError: the disk did not take it.
    """
    path = run.with_name(f"{run.stem}.event-{kept.step}.npz")
    arrays = [*kept.arrays, *kept.weights.values()]
    header = {
        "format": _FORMAT,
        "version": VERSION,
        "step": kept.step,
        "kinds": kept.kinds,
        "outline": kept.outline,
        "missing": kept.missing,
        "weights": list(kept.weights),
        "dtypes": [_name(x) for x in arrays],
        **told,
    }
    unfinished = path.with_name(path.name + ".part")
    try:
        with unfinished.open("wb") as file:
            numbered: dict[str, Any] = {f"array_{i}": _plain(x) for i, x in enumerate(arrays)}
            np.savez(file, **{_HEADER: np.array(json.dumps(header)), **numbered})
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    return path


def _none_in(place: Path) -> str:
    return (
        f"{place} has no event with its batch; gradwatch.watch(record=..., keep_batch=True) keeps the batch of each "
        "anomaly from its next step on"
    )


def _read(path: Path) -> BatchEvent:
    try:
        with np.load(path, allow_pickle=False) as file:
            header = json.loads(str(file[_HEADER])) if _HEADER in file else {}
            arrays = {name: file[name] for name in file.files if name != _HEADER}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise RecordError(f"{path} cannot be read: {error}. Copy it again from where the run was recorded") from error
    if not isinstance(header, dict) or header.get("format") != _FORMAT:
        raise RecordError(f"{path} is no event of gradwatch; give a file that `Run.batches` lists")
    if header["version"] > VERSION:
        raise RecordError(
            f"{path} was written by a newer gradwatch (version {header['version']}, this one reads up to {VERSION}); "
            "update gradwatch to read it"
        )
    try:
        return BatchEvent(path, header, arrays)
    except (KeyError, TypeError, ValueError) as error:
        raise RecordError(f"{path} is damaged: {error!r}. Copy it again from where the run was recorded") from error


# -- arrays of types that numpy does not know --------------------------------------------------------------


def _name(x: np.ndarray) -> str:
    """What says how an array was: its type, "text" for bytes of any length; the shape of an array of texts with it."""
    return f"text {list(x.shape)}" if x.dtype.kind == "O" else x.dtype.name


def _plain(x: np.ndarray) -> np.ndarray:
    """The array in types that every numpy reads."""
    if x.dtype.kind == "O":
        whole = [one if isinstance(one, bytes) else str(one).encode() for one in x.reshape(-1).tolist()]
        lengths = np.array([len(one) for one in whole], np.int64)
        return np.frombuffer(lengths.tobytes() + b"".join(whole), np.uint8)
    if x.dtype.isbuiltin == 2:  # bfloat16, float8: of a package beside numpy
        return x.view(f"u{x.dtype.itemsize}")
    return x


def _as_it_was(x: np.ndarray, name: str) -> np.ndarray:
    if name.startswith("text "):
        shape = json.loads(name.removeprefix("text "))
        count = int(np.prod(shape))
        raw = x.tobytes()
        ends = np.cumsum([8 * count, *np.frombuffer(raw[: 8 * count], np.int64)]).tolist()
        texts = np.empty(count, object)
        texts[:] = [raw[begin:end] for begin, end in pairwise(ends)]
        whole: np.ndarray = texts.reshape(shape)
        return whole
    if x.dtype.name == name:
        return x
    try:
        kind = np.dtype(name)
    except TypeError:
        import ml_dtypes

        kind = np.dtype(getattr(ml_dtypes, name))
    found: np.ndarray = x.view(kind)
    return found
