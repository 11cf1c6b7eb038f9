"""Gradient health in TensorBoard: every step, written beside the training.

The reader thread looks at the history often enough to see each step; a thread of its own writes. The files
are written through TensorFlow's record writer and not through `tf.summary`: that costs the training's
interpreter a small part of the time for each step, and it needs no `tensorboard` package.
"""

from __future__ import annotations

import hashlib
import html
import math
import os
import re
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

import numpy as np

from gradwatch.core.snapshot import VERDICTS
from gradwatch.errors import ConfigError
from gradwatch.reading.alerts import Alert
from gradwatch.reading.follower import Follower
from gradwatch.reading.health import health
from gradwatch.reading.reading import Reading
from gradwatch.reading.steps import StepCursor
from gradwatch.reading.text import clean
from gradwatch.reading.track import Source

#: History column -> tag; those of `_MAY_BE_MISSING` are left out of a step that has none.
SCALARS = {
    "norm": "gradwatch/norm",
    "applied_norm": "gradwatch/applied_norm",
    "clip_norm": "gradwatch/clip_norm",
    "threshold": "gradwatch/threshold",
    "score": "gradwatch/score",
    "reach": "gradwatch/reach",
    "update_ratio": "gradwatch/update_ratio",
}
CLIP_SHARE = "gradwatch/clip_share"
MISSED_STEPS = "gradwatch/missed_steps"
HISTOGRAM = "gradwatch/norm_of_recent_steps"
LAYERS = "gradwatch/layers/"
ALERTS = "gradwatch/alerts"

_CLIP = VERDICTS.index("clip")
_MAY_BE_MISSING = ("clip_norm", "threshold", "reach", "update_ratio")
_HISTOGRAM_BINS = 30
_MOST_WAITING = 4  # looks that wait for the disk; beyond it the steps stay in the history
_CLOSE_SECONDS = 10.0

_SCALAR, _TENSOR = 1, 2  # tensorflow.DataClass
_FLOAT, _DOUBLE, _STRING = 1, 2, 7  # tensorflow.DataType

_numbers = count()


class TensorBoard(Follower):
    """Writes what monitors see to event files under `log_dir`, one folder (a "run") for each monitor.

    For each step: norm, applied norm, clip_norm, threshold, score, and where they are known reach and update
    ratio. Every `every_seconds`, at the newest step: a histogram of the norms of the last 1,024 steps, the share of
    them that was clipped, the norm of each layer, and how many steps were missed. For each alert: its text. Steps are
    the training's own.

    It writes from a thread of its own. `close()`, the end of its `with` block or the end of the process
    writes what is left. A disk that is full or gone is logged once, counted in
    `gradwatch_internal_errors_total{component="tensorboard"}`, and does not reach the training.

    Args:
      log_dir: folder, or anything else that TensorFlow can write to (gs://...).
      monitor: write only this one; None is every monitor of the process, also those made later.
      every_seconds: between two histograms, > 0.
      layers: at most this many layers for each monitor, spread over the model; 0 is none.

    Raises:
      ConfigError: an argument is out of range, or `log_dir` cannot be written.

    Example:
      >>> import gradwatch, os, tempfile, tensorflow as tf
      >>> monitor, folder = gradwatch.Monitor("board"), tempfile.mkdtemp()
      >>> with gradwatch.TensorBoard(folder, monitor):
      ...     _ = monitor.clip([tf.constant([3.0, 4.0])])
      >>> os.listdir(folder)
      ['board']
    """

    def __init__(
        self,
        log_dir: str | os.PathLike[str],
        monitor: Source | None = None,
        *,
        every_seconds: float = 10.0,
        layers: int = 200,
    ) -> None:
        if not 0 < every_seconds < float("inf"):
            raise ConfigError(f"every_seconds must be > 0, got {every_seconds}; 10 is usual")
        if layers < 0:
            raise ConfigError(f"layers must be >= 0, got {layers}; 0 writes none")
        super().__init__(monitor, name="TensorBoard", component="tensorboard", seconds=_CLOSE_SECONDS)
        self.log_dir: str = os.fspath(log_dir)
        self._every_seconds = every_seconds
        self._layers = layers
        self._runs: dict[str, _Run] = {}
        _make_folder(self.log_dir)
        self._begin()

    @property
    def missed_steps(self) -> int:
        """Steps that had left the 1,024 of the history before they were seen, over all monitors."""
        return sum(run.cursor.missed for run in list(self._runs.values()))

    def _do(self, job: Callable[[], None]) -> None:
        try:
            job()
        except Exception:
            health.failed("tensorboard", "TensorBoard's files cannot be written", key="write", exc_info=True)

    def _endings(self) -> Sequence[Callable[[], None]]:
        return [run.close for run in list(self._runs.values())]

    def _take(self, source: Source, reading: Reading, alerts: Sequence[Alert]) -> float | None:
        """One look, on the reader's thread: what is new goes to the writing thread."""
        run = self._runs.get(source.run_id)
        if run is None:
            folder = os.path.join(self.log_dir, folder_name(reading.name))
            run = self._runs[source.run_id] = _Run(folder, self._every_seconds, self._layers)
        run.alerts.extend(alerts)
        if run.waiting > _MOST_WAITING:  # a slow disk: what is not taken now is still there at the next look
            return run.cursor.next_look_seconds()
        history = source.history()
        missed = run.cursor.missed
        rows = run.cursor.take(history, time.monotonic())
        if run.cursor.missed > missed:
            health.failed(
                "tensorboard",
                f"{run.cursor.missed - missed} steps of {reading.name!r} came too fast for TensorBoard and are "
                f"missing there; {MISSED_STEPS} counts them",
                key="missed",
            )
        waiting, run.alerts = run.alerts, []
        run.waiting += 1
        if not self._worker.put(partial(run.write, _Look(reading, history, rows, waiting))):
            run.waiting -= 1
            health.failed("tensorboard", "steps cannot be handed to TensorBoard's writing thread")
        return run.cursor.next_look_seconds()


@dataclass(frozen=True)
class _Look:
    """What one look brought: `rows` are the steps of `history` that are new."""

    reading: Reading
    history: Mapping[str, np.ndarray]
    rows: Mapping[str, np.ndarray]
    alerts: Sequence[Alert]


class _Run:
    """One monitor's folder. `cursor` and `alerts` belong to the reader's thread, the rest to the writing one."""

    def __init__(self, folder: str, every_seconds: float, layers: int) -> None:
        self.cursor = StepCursor()
        self.alerts: list[Alert] = []
        self.waiting = 0
        self._folder = folder
        self._every_seconds = every_seconds
        self._layers = layers
        self._file: _File | None = None
        self._time = 0.0  # of the look before
        self._due = 0.0
        self._summed_up = 0  # step of the newest histogram
        self._newest: _Look | None = None

    def write(self, look: _Look) -> None:
        """Writes the new steps, the alerts, and from time to time the summary."""
        self.waiting -= 1
        now = look.reading.snapshot.time
        if len(look.history["step"]):
            if self._file is None:
                self._file = _File(self._folder)
            self._newest = look
            self._write_steps(self._file, look.rows, now)
            for alert in look.alerts:
                self._write_alert(self._file, alert)
            if now >= self._due:
                self._write_summary(self._file, look)
                self._due = now + self._every_seconds
            self._file.flush()
        self._time = now

    def close(self) -> None:
        """Writes the summary of the last step and ends the file."""
        file, self._file = self._file, None
        if file is not None:
            if self._newest is not None:
                self._write_summary(file, self._newest)
            file.close()

    def _write_steps(self, file: _File, rows: Mapping[str, np.ndarray], now: float) -> None:
        steps = rows["step"].tolist()
        columns = [
            (tag, np.asarray(rows[name], np.float64).tolist(), name in _MAY_BE_MISSING)
            for name, tag in SCALARS.items()
            if name in rows
        ]
        # the host saw them at once; in between they are spread evenly, which is closer than one instant
        times = np.linspace(self._time or now, now, len(steps) + 1)[1:].tolist()
        for i, (step, wall_time) in enumerate(zip(steps, times)):
            event = file.event(step, wall_time)
            for tag, values, may_be_missing in columns:
                if not may_be_missing or math.isfinite(values[i]):
                    file.add_scalar(event, tag, values[i])
            file.append(event)

    def _write_summary(self, file: _File, look: _Look) -> None:
        step = int(look.history["step"][-1])
        if step == self._summed_up:
            return
        self._summed_up = step
        snapshot, norms = look.reading.snapshot, np.asarray(look.history["norm"], np.float64)
        event = file.event(step, snapshot.time)
        file.add_scalar(event, CLIP_SHARE, float(np.mean(np.asarray(look.history["verdict"]) == _CLIP)))
        file.add_scalar(event, MISSED_STEPS, float(self.cursor.missed))
        if np.isfinite(norms).any():
            file.add_histogram(event, HISTOGRAM, norms[np.isfinite(norms)])
        names = list(snapshot.layer_norms) if self._layers else []
        for name in names[:: max(1, -(-len(names) // max(1, self._layers)))]:
            file.add_scalar(event, LAYERS + clean(name), snapshot.layer_norms[name])
        file.append(event)

    def _write_alert(self, file: _File, alert: Alert) -> None:
        event = file.event(alert.step, alert.time)
        # TensorBoard renders Markdown: names in the message must not
        text = re.sub(r"([\\`*_{}\[\]#|~])", r"\\\1", html.escape(alert.message))
        file.add_text(event, ALERTS, f"**{alert.severity}, {alert.phase}:** {text}")
        file.append(event)


# -- event files ---------------------------------------------------------------------------------------


class _File:
    """One event file. The first value of a tag says what the tag is; repeating that would double the cost."""

    def __init__(self, folder: str) -> None:
        import tensorflow as tf

        tf.io.gfile.makedirs(folder)
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}.{next(_numbers)}"
        self._event = tf.compat.v1.Event
        self._tags: set[str] = set()
        self._records = tf.io.TFRecordWriter(os.path.join(folder, name))
        self._records.write(self._event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())

    def event(self, step: int, wall_time: float) -> Any:
        return self._event(step=step, wall_time=wall_time)

    def append(self, event: Any) -> None:
        self._records.write(event.SerializeToString())

    def flush(self) -> None:
        self._records.flush()

    def close(self) -> None:
        self._records.close()

    def add_scalar(self, event: Any, tag: str, number: float) -> None:
        tensor = self._tensor(event, tag, "scalars", _SCALAR)
        tensor.dtype = _FLOAT
        tensor.float_val.append(number)

    def add_histogram(self, event: Any, tag: str, values: np.ndarray) -> None:
        """Rows of (left edge, right edge, count)."""
        counts, edges = np.histogram(values, _HISTOGRAM_BINS)
        tensor = self._tensor(event, tag, "histograms", _TENSOR)
        tensor.dtype = _DOUBLE
        tensor.tensor_shape.dim.add(size=_HISTOGRAM_BINS)
        tensor.tensor_shape.dim.add(size=3)
        tensor.tensor_content = np.stack([edges[:-1], edges[1:], counts], axis=1).astype("<f8").tobytes()

    def add_text(self, event: Any, tag: str, text: str) -> None:
        tensor = self._tensor(event, tag, "text", _TENSOR)
        tensor.dtype = _STRING
        tensor.tensor_shape.dim.add(size=1)
        tensor.string_val.append(text.encode())

    def _tensor(self, event: Any, tag: str, plugin: str, data_class: int) -> Any:
        value = event.summary.value.add(tag=tag)
        if tag not in self._tags:
            self._tags.add(tag)
            value.metadata.plugin_data.plugin_name = plugin
            value.metadata.data_class = data_class
        return value.tensor


# -- folders -------------------------------------------------------------------------------------------


def folder_name(name: str) -> str:
    """A monitor's name as the name of one folder; two names give two folders, whatever they hold."""
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", name)[:80]
    if name and safe == name and not name.startswith("."):
        return name
    return f"{safe.lstrip('.') or 'monitor'}-{hashlib.sha256(name.encode('utf-8', 'replace')).hexdigest()[:8]}"


def _make_folder(path: str) -> None:
    import tensorflow as tf

    try:
        tf.io.gfile.makedirs(path)
        probe = os.path.join(path, f".gradwatch-{os.getpid()}")
        with tf.io.gfile.GFile(probe, "w") as file:
            file.write("")
        tf.io.gfile.remove(probe)
    except (tf.errors.OpError, OSError) as exc:
        raise ConfigError(f"log_dir {path!r} cannot be written: {exc}; choose a folder you may write to") from exc
