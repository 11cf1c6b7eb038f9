"""Reads a record back: `gradwatch.open_run`."""

from __future__ import annotations

import contextlib
import difflib
import glob
import html
import json
import os
import re
import socket
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gradwatch.errors import MissingExtra, RecordError
from gradwatch.record.columns import COLUMNS, columns_of
from gradwatch.record.overview import material
from gradwatch.record.schema import APPLICATION_ID, NUMBERS, SUFFIX, VERSION
from gradwatch.report import card, figures, page
from gradwatch.report.material import Material

_ROWS = 50_000  # read at a time
_SILENT_SECONDS = 60.0  # a run on another host that says nothing for so long is over

#: Tables beside the steps and the variables' rows.
WORD_TABLES = ("events", "alerts", "notes")


def open_run(path: str | os.PathLike[str]) -> Run:
    """The record of a run, also of one that is under way or was killed.

        run = gradwatch.open_run("runs")
        run.info["ended"], run.steps["norm"].max()

    Args:
      path: of the run's file, or of a folder, whose newest run is meant.

    Raises:
      RecordError: there is no record, it is of a newer gradwatch or of another program, or the file is damaged.
    """
    given = Path(path)
    if given.is_dir():
        newest = next(iter(files_of(given)), None)
        if newest is None:
            raise RecordError(
                f"{given} holds no record of a run (a file *{SUFFIX}); gradwatch.watch(record={str(given)!r}) makes one"
            )
        given = newest
    run = Run(given)
    run.check()
    return run


def files_of(folder: Path) -> list[Path]:
    """The records in a folder, newest first; the names begin with the time."""
    return sorted(folder.glob(f"*{SUFFIX}"), key=lambda path: path.name, reverse=True)


def batches_of(run: Path) -> tuple[Path, ...]:
    """The files of the events of a run whose batch was kept, the earliest step first."""
    found = {}
    for path in run.parent.glob(f"{glob.escape(run.stem)}.event-*.npz"):
        number = re.fullmatch(r"\.event-(\d+)\.npz", path.name[len(run.stem) :])
        if number:
            found[int(number[1])] = path
    return tuple(found[step] for step in sorted(found))


class Run:
    """One recorded run. Each property reads the file anew, so a run under way shows what is there by now.

    In a notebook it shows itself: name, verdict, a few numbers and the curve of its norm.

    Attributes:
      path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @property
    def info(self) -> dict[str, Any]:
        """What is known of the run. Times are Unix seconds.

        name, id, run_name, script, host, pid, platform, versions, git_commit, policy, detectors, on_nonfinite,
        on_explosion, optimizer, optimizer_settings, strategy, replicas, precision, variables (path -> shape), start,
        end, steps (recorded), last_step, seen (the newest look), diagnosis (as `Diagnosis.to_dict`, once the run had a
        report), and ended: "finished", "exception: ...", "SIGTERM",
        "running", or "killed" for a run that could not say how it ended.
        """
        with self.database() as db:
            found = {key: json.loads(value) for key, value in db.execute("SELECT key, value FROM run")}
            shapes = db.execute("SELECT path, shape FROM variables ORDER BY id")
            found["variables"] = {path: None if shape is None else tuple(json.loads(shape)) for path, shape in shapes}
        if found.get("ended") is None:
            found["ended"] = "running" if _is_alive(found) else "killed"
        return found

    @property
    def steps(self) -> dict[str, np.ndarray]:
        """Every step as it was recorded, columns of one length.

        step, time (Unix seconds, as the host saw it), loss, norm, applied_norm, clip_norm, threshold, score,
        learning_rate, loss_scale, reach, update_ratio, input_rms, target_rms (root mean squares of the step's first and
        last array, to 5 %; Inf where one held a NaN or Inf), replica and replica_ratio (whose own gradient was the
        least like the others', and how many times it was longer); these are NaN where not known. And verdict
        ("pass", "clip", "zero", "skip") and missed. Where steps came faster than they could be read, one row of verdict
        "gap" stands for the `missed` steps from its step on. After a return to a checkpoint the steps count from there
        again.
        """
        parts = list(self.chunks()) or [columns_of([], {})]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def chunks(self) -> Iterator[dict[str, np.ndarray]]:
        """`steps` in parts of at most 50,000 rows, for who has little memory."""
        newest: dict[str, float] = {}
        with self.database() as db:
            cursor = db.execute(f"SELECT {', '.join(COLUMNS)} FROM steps ORDER BY id")
            while rows := cursor.fetchmany(_ROWS):
                yield columns_of(rows, newest)

    @property
    def variables(self) -> tuple[str, ...]:
        """Paths of the watched variables."""
        with self.database() as db:
            return tuple(path for (path,) in db.execute("SELECT path FROM variables ORDER BY id"))

    def layers(self, variable: str) -> dict[str, np.ndarray]:
        """One variable at each look: step, time, norm (of its gradient), weight_norm and update_ratio.

        Raises:
          RecordError: there is no such variable.
        """
        return self._of_variable("layers", variable)

    def around(self, variable: str) -> dict[str, np.ndarray]:
        """One variable step by step around each event, with the columns of `layers`: 16 steps before, 15 after it.

        norm is that of each step. weight_norm and update_ratio are measured in each step after the event; up to it they
        are the newest that were known. NaN where not known.

        Raises:
          RecordError: there is no such variable.
        """
        return self._of_variable("around", variable)

    def _of_variable(self, table: str, variable: str) -> dict[str, np.ndarray]:
        query = f"SELECT step, time_ms / 1000.0, norm, weight_norm, update_ratio FROM {table} WHERE variable = ?"
        with self.database() as db:
            found = db.execute("SELECT id FROM variables WHERE path = ?", (variable,)).fetchone()
            # a record of an earlier gradwatch has not all tables
            there = db.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (table,)).fetchone()
            rows = [] if found is None or there is None else db.execute(query, found).fetchall()
        if found is None:
            known = self.variables
            near = difflib.get_close_matches(str(variable), known, 3) or known[:3]
            raise RecordError(f"the run has no variable {variable!r}; it has {len(known)}, such as {', '.join(near)}")
        columns = np.array(rows, np.float64).reshape(-1, 5)  # None becomes NaN
        names = ("step", "time", "norm", "weight_norm", "update_ratio")
        return {name: column.astype(np.int64) if name == "step" else column for name, column in zip(names, columns.T)}

    @property
    def events(self) -> dict[str, np.ndarray]:
        """Where anomalies began: step, time, kind, norm, threshold, detail, follows (0: none), episodes, shares.

        `episodes` counts those of the kind since the look before, of which the newest is told. `shares` holds a dict
        of variable path -> share for each, the largest 20. See `gradwatch.Event`.
        """
        return self._words("events")

    @property
    def alerts(self) -> dict[str, np.ndarray]:
        """step, time, kind, severity, phase, message, advice, action: see `gradwatch.Alert`."""
        return self._words("alerts")

    @property
    def notes(self) -> dict[str, np.ndarray]:
        """step, time and text of `Monitor.note`, and of each return to a checkpoint."""
        return self._words("notes")

    @property
    def batches(self) -> tuple[Path, ...]:
        """Files of the events whose batch was kept (`keep_batch=True`), the earliest first; see `open_event`."""
        return batches_of(self.path)

    def to_pandas(self) -> Any:
        """`steps` as a pandas.DataFrame.

        Raises:
          MissingExtra: pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise MissingExtra("pandas", "record", "Run.to_pandas()") from None
        return pandas.DataFrame(self.steps)

    # -- what it looks like ------------------------------------------------------------------------------

    def write_report(self, path: str | os.PathLike[str]) -> Path:
        """Write the report: one HTML file that opens offline. Returns where it is.

        Raises:
          MissingExtra: Bokeh is not installed.
          RecordError: the record cannot be read.
          OSError: the report cannot be written.
        """
        target = Path(path)
        page.write(target, page.report(self.material()))
        return target

    def plot(self) -> Any:
        """Loss, learning rate, norms, update ratio and layers over the steps, as a Bokeh layout for a notebook.

            from bokeh.io import output_notebook, show
            output_notebook()
            show(run.plot())

        Raises:
          MissingExtra: Bokeh is not installed.
          RecordError: the record cannot be read.
        """
        return figures.column(self.material())

    def material(self) -> Material:
        """What a report shows of it, in bounded size."""
        return material(self)

    def _repr_html_(self) -> str:
        try:
            return card.card(self.material())
        except RecordError as error:
            return f"<pre>{html.escape(str(error))}</pre>"

    # -- the file ----------------------------------------------------------------------------------------

    def check(self) -> None:
        """RecordError where the file is no record that can be read here."""
        with self.database() as db:
            db.execute("SELECT count(*) FROM run").fetchone()

    @contextlib.contextmanager
    def database(self) -> Iterator[sqlite3.Connection]:
        """The file, open for reading; RecordError where it cannot be read."""
        if not self.path.is_file():
            raise RecordError(f"there is no file {self.path}; `gradwatch runs FOLDER` lists the runs of a folder")
        try:
            with contextlib.closing(_connect(self.path)) as db:
                _check_head(self.path, db)
                _add_columns(db)
                yield db
        except sqlite3.DatabaseError as error:
            raise RecordError(
                f"{self.path} cannot be read: {error}. If it was copied while the run was under way or from a run that "
                f"was killed, copy it again together with {self.path.name}-wal; a damaged file gives what it still "
                f"holds to `sqlite3 {self.path.name} .recover`"
            ) from error

    def _words(self, table: str) -> dict[str, np.ndarray]:
        with self.database() as db:
            cursor = db.execute(f"SELECT * FROM {table} ORDER BY rowid")
            names = [column[0] for column in cursor.description]
            rows = cursor.fetchall()
        columns = {name: [row[i] for row in rows] for i, name in enumerate(names)}
        out: dict[str, np.ndarray] = {}
        for name, values in columns.items():
            if name == "time_ms":
                out["time"] = np.array(values, np.float64) / 1000.0
            elif name in ("norm", "threshold"):
                out[name] = np.array(values, np.float64)
            elif name in ("step", "follows", "episodes"):
                out[name] = np.array([x or 0 for x in values], np.int64)
            elif name == "shares":
                out[name] = np.array([*map(json.loads, values), None], object)[:-1]  # an array of dicts, not of keys
            else:
                out[name] = np.array(values, str)
        return out


def _connect(path: Path) -> sqlite3.Connection:
    address = path.absolute().as_uri()
    try:
        db = sqlite3.connect(f"{address}?mode=ro", uri=True)
        db.execute("PRAGMA schema_version").fetchone()
        return db
    except sqlite3.OperationalError:
        if path.with_name(path.name + "-wal").exists():
            raise
        # in a folder where nothing can be written: nobody writes the file either
        return sqlite3.connect(f"{address}?mode=ro&immutable=1", uri=True)


def _add_columns(db: sqlite3.Connection) -> None:
    """Numbers that an older gradwatch did not record are NULL, which is "not known"; the file stays as it is."""
    there = {row[1] for row in db.execute("PRAGMA main.table_info(steps)")}
    missing = [name for name in NUMBERS if name not in there]
    if missing:  # a view in front of the table, of this connection alone
        columns = ", ".join(f"NULL AS {name}" for name in missing)
        db.execute(f"CREATE TEMP VIEW steps AS SELECT *, {columns} FROM main.steps")


def _check_head(path: Path, db: sqlite3.Connection) -> None:
    (program,), (version,) = (db.execute(f"PRAGMA {name}").fetchone() for name in ("application_id", "user_version"))
    empty = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
    if empty and program in (0, APPLICATION_ID):
        raise RecordError(
            f"{path} is empty: the run was killed before its first steps were written, or writes them now"
        )
    if program != APPLICATION_ID:
        raise RecordError(f"{path} is an SQLite file of another program, not a record of gradwatch")
    if version > VERSION:
        raise RecordError(
            f"{path} was written by a newer gradwatch (schema {version}, this one reads up to {VERSION}); "
            "update gradwatch to read it"
        )


def _is_alive(found: dict[str, Any]) -> bool:
    """Whether the process that records this run is probably still there."""
    if found.get("host") != socket.gethostname():
        return time.time() - float(found.get("seen", 0.0)) < _SILENT_SECONDS
    try:
        os.kill(int(found["pid"]), 0)
    except (ProcessLookupError, KeyError):
        return False
    except PermissionError:  # it is somebody else's
        return True
    return True
