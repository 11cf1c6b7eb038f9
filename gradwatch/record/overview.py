"""What a report shows of a record, asked of SQLite itself: a million rows never become a million Python objects."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import Any

import numpy as np

from gradwatch.core.snapshot import VERDICTS
from gradwatch.record.excerpt import Excerpt
from gradwatch.record.schema import NO_LONGER, WORDS
from gradwatch.report.material import (
    BUCKETS,
    CURVES,
    LOOKS,
    MOST_MARKS,
    SELDOM,
    Curve,
    Heat,
    Material,
    heat,
    thinned,
    title,
    verdict_of,
)

_FINITE_NORM, _FINITE_LOSS = (f"{name} BETWEEN -1.7e308 AND 1.7e308" for name in ("norm", "loss"))
_MOST_RETURNS = 100  # to a checkpoint, of which the rows made again are left out


def material(run: Any) -> Material:
    """What a report shows of a recorded run.

    Raises:
      RecordError: the file cannot be read.
    """
    facts = run.info
    with run.database() as db:
        rows = _newest(db)
        curves, counts, first, last = _curves(db, rows)
        layers = _layers(db)
        seldom = _seldom(db, rows, last)
        nonfinite = _nonfinite(db, rows)
        broken = db.execute(
            f"SELECT step FROM steps WHERE missed IS NULL AND (norm IS NULL OR norm > 1e36) AND {rows} "
            f"ORDER BY id LIMIT {MOST_MARKS}"
        ).fetchall()
    return Material(
        name=title(str(facts.get("name", "")), str(facts.get("run_name", ""))),
        facts=facts,
        steps=sum(count for word, count in counts.items() if word != "missed"),
        first=first,
        last=last,
        counts=counts,
        curves=curves,
        seldom=seldom,
        broken=np.array(broken, np.int64).reshape(-1),
        events=_rows(run.events),
        alerts=_rows(run.alerts),
        notes=_rows(run.notes),
        nonfinite=nonfinite,
        heat=layers,
        diagnosis=verdict_of(Excerpt(run)),
    )


def _newest(db: sqlite3.Connection) -> str:
    """A condition for rows that were not made again after a return to a checkpoint."""
    rows, missed, steps = db.execute(
        "SELECT count(*) - count(missed), coalesce(sum(missed), 0), max(step + coalesce(missed, 1)) - min(step) "
        "FROM steps"
    ).fetchone()
    if not rows or rows + missed == steps:
        return "1"
    back = db.execute(
        "SELECT id, step FROM (SELECT id, step, lag(step) OVER (ORDER BY id) AS before FROM steps) "
        f"WHERE step <= before ORDER BY id DESC LIMIT {_MOST_RETURNS}"
    ).fetchall()
    return " AND ".join(["1", *(f"NOT (id < {id_} AND step >= {step})" for id_, step in back)])


def _curves(db: sqlite3.Connection, rows: str) -> tuple[dict[str, Curve], dict[str, int], int, int]:
    """The curves, how many steps had each verdict, and the first and the last step."""
    (most,) = db.execute("SELECT coalesce(max(id), 0) FROM steps").fetchone()
    width = max(1, -(-most // BUCKETS))
    # Inf has no place on an axis: as NULL it is left out of both ends of its bucket
    ends = ", ".join(f"min(nullif({name}, 9e999)), max(nullif({name}, 9e999))" for name in CURVES)
    verdicts = ", ".join(f"sum(verdict = {i})" for i in range(len(WORDS)))
    # a query for each bucket: one that groups a million rows has to sort them first
    query = (
        f"SELECT min(step), max(step), {verdicts}, sum(missed), {ends} FROM steps WHERE id BETWEEN ? AND ? AND {rows}"
    )
    found = [db.execute(query, (i, i + width - 1)).fetchone() for i in range(1, most + 1, width)]
    table = np.array([row for row in found if row[0] is not None], np.float64).reshape(
        -1, len(WORDS) + 3 + 2 * len(CURVES)
    )
    if not len(table):
        return {}, dict.fromkeys((*VERDICTS, "missed"), 0), 0, 0
    middle = (table[:, 0] + table[:, 1]) / 2
    seen = np.nansum(table[:, 2 : len(WORDS) + 3], axis=0).astype(int).tolist()
    counts = {word: count for word, count in zip((*WORDS, "missed"), seen) if word != "gap"}
    curves = {}
    for i, name in enumerate(CURVES):
        part = table[:, len(WORDS) + 3 + 2 * i :][:, :2]
        low, high = np.where(np.isfinite(part), part, np.nan).T
        if not np.isnan(high).all():
            curves[name] = Curve(middle, low, high)
    return curves, counts, int(table[0, 0]), int(table[-1, 1])


def _seldom(db: sqlite3.Connection, rows: str, last: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    known = " OR ".join(f"{name} IS NOT NULL" for name in SELDOM)
    found = db.execute(f"SELECT step, {', '.join(SELDOM)} FROM steps WHERE ({known}) AND {rows} ORDER BY id").fetchall()
    table = np.array(found, np.float64).reshape(-1, len(SELDOM) + 1)
    out = {}
    for name, column in zip(SELDOM, table.T[1:]):
        told = ~np.isnan(column)
        steps, values = table[told, 0], np.where(column[told] == NO_LONGER, np.nan, column[told])
        if not np.isnan(values).all():
            out[name] = thinned(np.append(steps, float(last)), np.append(values, values[-1]))
    return out


def _nonfinite(db: sqlite3.Connection, rows: str) -> dict[str, tuple[int, str]]:
    """Of loss and norm, what the run ends without: (the step since which none was finite, "NaN" or "Inf")."""
    out = {}
    # a loss that is NULL where the norm is finite is only not known
    for name, finite in (("norm", _FINITE_NORM), ("loss", f"({_FINITE_NORM} OR {_FINITE_LOSS})")):
        seen = f"FROM steps WHERE missed IS NULL AND {rows}"
        good = db.execute(f"SELECT id {seen} AND {finite} ORDER BY id DESC LIMIT 1").fetchone()
        known = db.execute(f"SELECT 1 {seen} AND {name} IS NOT NULL LIMIT 1").fetchone()
        if good is None or known is None:
            continue
        (since,) = db.execute(f"SELECT min(step) {seen} AND id > ?", good).fetchone()
        if since is not None:
            ((value,),) = db.execute(f"SELECT {name} {seen} ORDER BY id DESC LIMIT 1").fetchall()
            out[name] = int(since), "NaN" if value is None else "Inf"
    return out


def _layers(db: sqlite3.Connection) -> Heat | None:
    looks = "layers"
    if db.execute("SELECT 1 FROM sqlite_master WHERE name = 'around'").fetchone():  # not in an older record
        columns = "step, variable, norm"
        looks = f"(SELECT {columns} FROM layers UNION ALL SELECT {columns} FROM around)"
    first, last = db.execute(f"SELECT min(step), max(step) FROM {looks}").fetchone()
    if first is None:
        return None
    names = [path for (path,) in db.execute("SELECT path FROM variables ORDER BY id")]
    order = {id_: i for i, (id_,) in enumerate(db.execute("SELECT id FROM variables ORDER BY id"))}
    width = max(1.0, (last - first + 1) / (4 * LOOKS))
    found = db.execute(
        f"SELECT variable, max(step), max(coalesce(norm, 9e999)) FROM {looks} "
        "GROUP BY variable, CAST((step - ?) / ? AS INT)",
        (first, width),
    ).fetchall()
    table = np.array(found, np.float64)
    places = np.array([order[int(id_)] for id_ in table[:, 0]])
    return heat(names, table[:, 1].astype(np.int64), places, table[:, 2])


def _rows(columns: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    lists = {name: column.tolist() for name, column in columns.items()}
    return [dict(zip(lists, values)) for values in zip(*lists.values())]
