"""Writes one run into its file: everything of one look in one transaction, or nothing of it.

The file stays open between two looks, for opening and closing it takes longer than a look. A fork closes it first, so
that a child holds nothing that it could harm. Each look asks whether the file is still where it was: what is written
into a deleted file is lost. SQLite moves the newest looks from the file `-wal` into the run's file when some megabytes
have gathered there. Used from one thread.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sqlite3
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from gradwatch.record.schema import (
    APPLICATION_ID,
    GAP,
    LEAST_CHANGE,
    NO_LONGER,
    NUMBERS,
    SELDOM,
    TABLES,
    VERSION,
    WORDS,
)

_BUSY_SECONDS = 5.0
_FORK_SECONDS = 1.0  # that a fork waits for a look to be written
_MOST_SHARES = 20  # variables of an event
_MOST_PENDING = 1000  # words that wait for a disk that does not take them

# Rows of variables that may be written: so many at first, and then so many a step. A row has about 42 bytes.
_FIRST_LAYER_ROWS = 100_000
_LAYER_ROWS_A_STEP = 0.15

_ADD_STEP = f"INSERT INTO steps VALUES (NULL, ?, ?, {', '.join('?' * len(NUMBERS))}, ?, ?)"


@dataclass(frozen=True)
class Look:
    """What one look brought. Times are Unix seconds.

    Attributes:
      time: of this look.
      began: of the look before; the steps are spread evenly in between.
      rows: new steps, oldest first: columns of a history of one length.
      loss_before: of the step before the first row, which is known only now; NaN where it is not.
      learning_rate, loss_scale: now; None where they are not known.
      layers: variable path -> (norm, weight norm, update ratio) at the last step, NaN where not known.
      around: step -> variable path -> the same three, of the steps around an event.
      words: (table, values without the columns' names) of events, alerts and notes.
      told: whether something happened, so that the variables are worth their place.
      ended: when and how the run ended; (None, None): it goes on; None: as before.
    """

    time: float
    began: float
    rows: Mapping[str, np.ndarray]
    loss_before: float = math.nan
    learning_rate: float | None = None
    loss_scale: float | None = None
    layers: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)
    around: Mapping[int, Mapping[str, tuple[float, float, float]]] = field(default_factory=dict)
    words: Sequence[tuple[str, tuple[Any, ...]]] = ()
    told: bool = False
    ended: tuple[float | None, str | None] | None = None


@dataclass
class _Written:
    """What is in the file."""

    steps: int = 0
    last_step: int | None = None
    layer_rows: int = 0
    variables: dict[str, int] = field(default_factory=dict)
    seldom: dict[str, float] = field(default_factory=dict)

    def copied(self) -> _Written:
        return replace(self, variables=dict(self.variables), seldom=dict(self.seldom))


class RunFile:
    """The file of one run.

    Args:
      path: of the file; its folder is made. It appears with the first look.
      facts: gives what is known of the run, key -> anything that JSON can say; asked once, when the file is made.
    """

    def __init__(self, path: Path, facts: Callable[[], Mapping[str, Any]]) -> None:
        self.path = path
        self._facts = facts
        self._made = False
        self._db: sqlite3.Connection | None = None
        self._place: tuple[int, int] | None = None  # device and number of the open file
        self._busy = threading.Lock()
        _open_files.add(self)
        self._written = _Written()
        self._pending: deque[tuple[str, tuple[Any, ...]]] = deque(maxlen=_MOST_PENDING)

    def write(self, look: Look) -> int:
        """Puts a look into the file; returns how many steps it brought.

        Steps of a look that could not be written are a gap in front of the next one's; its words are kept.

        Raises:
          OSError, sqlite3.Error: the disk did not take it; the file is as before.
        """
        self._pending.extend(look.words)
        after = self._written.copied()
        with self._transaction() as db:
            self._add_steps(db, look, after)
            self._add_layers(db, look, after)
            for table, values in self._pending:
                db.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(values))})", values)
            _put(db, seen=look.time, steps=after.steps, last_step=after.last_step or 0)
            if look.ended is not None:
                _put(db, end=look.ended[0], ended=look.ended[1])
        new, self._written = after.steps - self._written.steps, after
        self._pending.clear()
        return new

    def fold(self) -> None:
        """Makes one plain file of it, that can be read from a folder where nothing can be written."""
        with self._busy:
            if self._made:
                with contextlib.suppress(sqlite3.OperationalError):  # refused while somebody reads: it stays as it is
                    self._opened().execute("PRAGMA journal_mode=DELETE")
            self._close()

    # -- the file ----------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        facts: Mapping[str, Any] = {}
        if not self._made:
            facts = self._facts()  # takes a while, in which nobody should find an empty file
            self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._busy:
            try:
                db = self._opened()
                db.execute("BEGIN IMMEDIATE")
                if not self._made:
                    self._make(db, facts)
                yield db
                db.execute("COMMIT")
                if not self._made:
                    # who copies the file alone, in mid-run, has a record at least
                    db.execute("PRAGMA wal_checkpoint(PASSIVE)")
            except BaseException:
                self._close()  # which rolls back; the disk may be another one at the next look
                raise
        self._made = True

    def _opened(self) -> sqlite3.Connection:
        """The connection, to the file that is there now."""
        if self._db is not None and self._place_now() != self._place:
            self._close()
        if self._db is None:
            mode = "rw" if self._made else "rwc"
            # from whichever thread, one at a time: a fork closes it from its own
            self._db = sqlite3.connect(
                f"{self.path.as_uri()}?mode={mode}",
                _BUSY_SECONDS,
                isolation_level=None,
                check_same_thread=False,
                uri=True,
            )
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._place = self._place_now()
        return self._db

    def _place_now(self) -> tuple[int, int]:
        found = os.stat(self.path)
        return found.st_dev, found.st_ino

    def _close(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            with contextlib.suppress(sqlite3.Error):
                db.close()

    def _before_fork(self) -> None:
        if self._busy.acquire(timeout=_FORK_SECONDS):
            try:
                self._close()
            finally:
                self._busy.release()

    def _make(self, db: sqlite3.Connection, facts: Mapping[str, Any]) -> None:
        for statement in filter(None, map(str.strip, TABLES.split(";"))):
            db.execute(statement)
        db.executemany("INSERT INTO verdicts VALUES (?, ?)", enumerate(WORDS))
        _put(db, **facts)
        db.execute(f"PRAGMA application_id={APPLICATION_ID}")
        db.execute(f"PRAGMA user_version={VERSION}")

    # -- rows --------------------------------------------------------------------------------------------

    def _add_steps(self, db: sqlite3.Connection, look: Look, after: _Written) -> None:
        steps = np.asarray(look.rows["step"], np.int64).tolist()
        if not steps:
            return
        spread = np.linspace(look.began, look.time, len(steps) + 1)[1:]
        times = np.rint(1000 * spread).astype(np.int64).tolist()
        if after.last_step is not None and steps[0] <= after.last_step:
            text = f"set back from step {after.last_step} to step {steps[0] - 1}"
            db.execute("INSERT INTO notes VALUES (?, ?, ?)", (steps[0] - 1, times[0], text))
        elif after.last_step is not None and steps[0] > after.last_step + 1:
            nothing = [None] * len(NUMBERS)
            missed = steps[0] - after.last_step - 1
            db.execute(_ADD_STEP, (after.last_step + 1, times[0], *nothing, GAP, missed))
        elif after.last_step is not None and not math.isnan(look.loss_before):
            db.execute("UPDATE steps SET loss = ? WHERE id = (SELECT max(id) FROM steps)", (look.loss_before,))
        unknown = np.full(len(steps), math.nan)
        columns: dict[str, Any] = {name: np.asarray(look.rows.get(name, unknown), np.float64) for name in NUMBERS}
        for name in ("learning_rate", "loss_scale"):
            if getattr(look, name) is not None:
                column = columns[name]
                columns[name] = np.where(np.isnan(column), float(getattr(look, name)), column)
        values = (
            _changes(column, after.seldom, name) if name in SELDOM else column.tolist()
            for name, column in columns.items()
        )
        verdicts = np.asarray(look.rows["verdict"], np.int64).tolist()
        db.executemany(_ADD_STEP, zip(steps, times, *values, verdicts, [None] * len(steps)))
        after.last_step = steps[-1]
        after.steps += len(steps)

    def _add_layers(self, db: sqlite3.Connection, look: Look, after: _Written) -> None:
        for layers in (look.layers, *look.around.values()):
            for path in layers.keys() - after.variables.keys():  # of another model, after a reset
                after.variables[path] = _variable(db, path)
        self._add_around(db, look, after)
        room = _FIRST_LAYER_ROWS + _LAYER_ROWS_A_STEP * after.steps - after.layer_rows
        if after.last_step is None or (len(look.layers) > room and not look.told):
            return
        at = (after.last_step, round(1000 * look.time))
        rows = ((*at, after.variables[path], *numbers) for path, numbers in look.layers.items())
        db.executemany("INSERT INTO layers VALUES (?, ?, ?, ?, ?, ?)", rows)
        after.layer_rows += len(look.layers)

    def _add_around(self, db: sqlite3.Connection, look: Look, after: _Written) -> None:
        rows = (
            (step, round(1000 * look.time), after.variables[path], *numbers)
            for step, layers in look.around.items()
            for path, numbers in layers.items()
        )
        db.executemany("INSERT INTO around VALUES (?, ?, ?, ?, ?, ?)", rows)


def _changes(column: np.ndarray, newest: dict[str, float], name: str) -> list[float | None]:
    """The column, which is not empty, with None wherever a number is that of the row before."""
    known = np.where(np.isnan(column), NO_LONGER, column)
    before, share = newest.get(name, float(NO_LONGER)), LEAST_CHANGE.get(name, 0.0)
    if not share:
        newest[name] = float(known[-1])
        same_as_before = (known == np.append(before, known[:-1])).tolist()
        return [None if same else x for x, same in zip(known.tolist(), same_as_before)]
    out: list[float | None] = []
    for x in known.tolist():
        same = x == before or (x > 0 < before and abs(x - before) < share * before < math.inf)
        out.append(None if same else x)
        before = before if same else x
    newest[name] = before
    return out


def _variable(db: sqlite3.Connection, path: str) -> int:
    db.execute("INSERT OR IGNORE INTO variables (path) VALUES (?)", (path,))
    return int(db.execute("SELECT id FROM variables WHERE path = ?", (path,)).fetchone()[0])


def _put(db: sqlite3.Connection, **facts: Any) -> None:
    variables = facts.pop("variables", {})
    shapes = ((path, json.dumps(shape)) for path, shape in variables.items())
    db.executemany("INSERT OR IGNORE INTO variables (path, shape) VALUES (?, ?)", shapes)
    rows = ((key, json.dumps(value, default=str)) for key, value in facts.items())
    db.executemany("INSERT OR REPLACE INTO run VALUES (?, ?)", rows)


def keep(path: Path, **facts: Any) -> None:
    """Puts facts into a record that is there; whoever writes it meanwhile waits a moment.

    Raises:
      OSError, sqlite3.Error: the disk did not take them.
    """
    address = f"{path.absolute().as_uri()}?mode=rw"
    with contextlib.closing(sqlite3.connect(address, _BUSY_SECONDS, isolation_level=None, uri=True)) as db:
        db.execute("BEGIN IMMEDIATE")
        _put(db, **facts)
        db.execute("COMMIT")


def shares_text(shares: Mapping[str, float]) -> str:
    """The largest shares of an event as JSON."""
    return json.dumps(dict(list(shares.items())[:_MOST_SHARES]))


_open_files: weakref.WeakSet[RunFile] = weakref.WeakSet()


def _before_fork() -> None:
    for file in list(_open_files):
        file._before_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork)
