"""A record as CSV, JSON or Parquet, for tools that read no SQLite. Needs memory for 50,000 rows, whatever the run."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from gradwatch.errors import MissingExtra
from gradwatch.record.run import WORD_TABLES, Run

#: Columns of a step in which NaN is a value and not "not known".
_MAY_BE_NAN = ("norm", "applied_norm")


def write_csv(run: Run, file: IO[str]) -> None:
    """The steps, one line each under a line of names; what is not known is empty, Inf and NaN are `inf` and `nan`."""
    writer = csv.writer(file, lineterminator="\n")
    for i, chunk in enumerate(run.chunks()):
        if not i:
            writer.writerow(chunk)
        writer.writerows(("" if x is None else x for x in row.values()) for row in _rows(chunk))


def write_json(run: Run, file: IO[str]) -> None:
    """One object: info, events, alerts, notes and steps, each of these a list of objects.

    What is not known is null; JSON has no Inf and NaN, so they are the texts "Infinity" and "NaN".
    """
    head = {"info": run.info, **{name: list(_rows(getattr(run, name))) for name in WORD_TABLES}}
    file.write(json.dumps(_json(head), allow_nan=False)[:-1] + ', "steps": [')
    comma = ""
    for chunk in run.chunks():
        for row in _rows(chunk):
            file.write(f"{comma}\n{json.dumps(_json(row), allow_nan=False)}")
            comma = ","
    file.write("\n]}\n")


def write_parquet(run: Run, path: Path) -> None:
    """The steps as one table; what is not known is null.

    Raises:
      MissingExtra: pyarrow is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtra("pyarrow", "record", "an export to Parquet") from None
    writer = None
    try:
        for chunk in run.chunks():
            columns = {name: pyarrow.array(column, mask=_unknown(chunk, name)) for name, column in chunk.items()}
            table = pyarrow.table(columns)
            writer = writer or pyarrow.parquet.ParquetWriter(path, table.schema)
            writer.write_table(table)
    finally:
        if writer is not None:
            writer.close()


def _unknown(columns: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    """Where a column has nothing to say."""
    column = columns[name]
    if column.dtype.kind != "f":
        return np.zeros(len(column), bool)
    unknown: np.ndarray = np.isnan(column)
    if name in _MAY_BE_NAN and "verdict" in columns:
        unknown &= columns["verdict"] == "gap"
    return unknown


def _rows(columns: Mapping[str, np.ndarray]) -> Iterator[dict[str, Any]]:
    """The columns row by row, None where nothing is known."""
    lists = []
    for name, column in columns.items():
        unknown = _unknown(columns, name)
        lists.append([None if no else x for x, no in zip(column.tolist(), unknown.tolist())])
    return (dict(zip(columns, values)) for values in zip(*lists))


def _json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _json(x) for key, x in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json(x) for x in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value
