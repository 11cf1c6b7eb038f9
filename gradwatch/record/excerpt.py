"""A long run as the diagnosis looks at it: its begin, its end, and the steps around what happened."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from gradwatch.record.columns import COLUMNS, columns_of
from gradwatch.record.schema import SELDOM

#: A shorter run is looked at as a whole.
WHOLE_STEPS = 100_000

_FIRST, _LAST = 10_000, 5_000  # steps
_BEFORE, _AFTER = 2_000, 1_000  # of an event
_MOST_EVENTS = 20  # half of them the first, half the newest


class Excerpt:
    """A `Run` of which `steps`, `chunks` and `layers` leave out what a diagnosis of a long run needs not.

    The numbers are those of the whole run: nothing is thinned, and what seldom changes is filled in from before.

    Args:
      run: a `Run`.
    """

    def __init__(self, run: Any) -> None:
        self._run = run
        self._read: dict[str, dict[str, np.ndarray]] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._run, name)

    @property
    def steps(self) -> dict[str, np.ndarray]:
        """As `Run.steps`, of the excerpt."""
        parts = list(self.chunks()) or [columns_of([], {})]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def chunks(self) -> Iterator[dict[str, np.ndarray]]:
        """As `Run.chunks`, of the excerpt."""
        spans = self._spans()
        if spans is None:
            yield from self._run.chunks()
            return
        with self._run.database() as db:
            known = " OR ".join(f"{name} IS NOT NULL" for name in SELDOM)
            told = np.array(
                db.execute(f"SELECT id, {', '.join(SELDOM)} FROM steps WHERE {known} ORDER BY id").fetchall(),
                np.float64,
            ).reshape(-1, len(SELDOM) + 1)
            for first, last in spans:
                newest = {}
                before = told[told[:, 0] < first]
                for name, column in zip(SELDOM, before.T[1:]):
                    at = np.flatnonzero(~np.isnan(column))
                    if len(at):
                        newest[name] = float(column[at[-1]])
                rows = db.execute(
                    f"SELECT {', '.join(COLUMNS)} FROM steps WHERE id BETWEEN ? AND ? ORDER BY id", (first, last)
                ).fetchall()
                yield columns_of(rows, newest)

    def layers(self, variable: str) -> dict[str, np.ndarray]:
        """As `Run.layers`, of the looks in the excerpt; all variables are read at once."""
        if self._read is None:
            self._read = self._all_layers()
        return self._read[variable] if variable in self._read else dict(self._run.layers(variable))

    def _all_layers(self) -> dict[str, dict[str, np.ndarray]]:
        spans = self._spans()
        where = "1"
        with self._run.database() as db:
            if spans is not None:
                steps = [
                    db.execute("SELECT min(step), max(step) FROM steps WHERE id BETWEEN ? AND ?", span).fetchone()
                    for span in spans
                ]
                where = " OR ".join(f"step BETWEEN {low} AND {high}" for low, high in steps)
            paths = dict(db.execute("SELECT id, path FROM variables ORDER BY id"))
            found = db.execute(
                "SELECT variable, step, time_ms / 1000.0, norm, weight_norm, update_ratio FROM layers "
                f"WHERE {where} ORDER BY rowid"
            ).fetchall()
        table = np.array(found, np.float64).reshape(-1, 6)
        names = ("step", "time", "norm", "weight_norm", "update_ratio")
        out = {}
        for id_, path in paths.items():
            part = table[table[:, 0] == id_, 1:]
            out[path] = {name: x.astype(np.int64) if name == "step" else x for name, x in zip(names, part.T)}
        return out

    def _spans(self) -> list[tuple[int, int]] | None:
        """(first, last) ids of the rows looked at, ascending and apart; None for all of them."""
        with self._run.database() as db:
            (last,) = db.execute("SELECT coalesce(max(id), 0) FROM steps").fetchone()
            if last <= WHOLE_STEPS:
                return None
            steps = sorted({step for (step,) in db.execute("SELECT step FROM events")})
            if len(steps) > _MOST_EVENTS:
                steps = steps[: _MOST_EVENTS // 2] + steps[-_MOST_EVENTS // 2 :]
            marks = ", ".join(map(str, steps)) or "NULL"
            ids = [id_ for (id_,) in db.execute(f"SELECT id FROM steps WHERE step IN ({marks}) ORDER BY id")]
        wanted = [(1, _FIRST), *((max(1, i - _BEFORE), min(last, i + _AFTER)) for i in ids), (last - _LAST + 1, last)]
        spans: list[tuple[int, int]] = []
        for begin, end in sorted(wanted):
            if spans and begin <= spans[-1][1] + 1:
                spans[-1] = (spans[-1][0], max(end, spans[-1][1]))
            else:
                spans.append((begin, end))
        return spans
