"""Rows of the table of steps as columns of numpy."""

from __future__ import annotations

from typing import Any

import numpy as np

from gradwatch.record.schema import NO_LONGER, NUMBERS, SELDOM, WORDS

#: Of the table of steps, in the order in which `columns_of` takes them.
COLUMNS = ("step", "time_ms", *NUMBERS, "verdict", "missed")


def columns_of(rows: list[tuple[Any, ...]], newest: dict[str, float]) -> dict[str, np.ndarray]:
    """Rows of the table as columns, with the numbers that were left out because they had not changed."""
    raw = dict(zip(COLUMNS, zip(*rows))) if rows else dict.fromkeys(COLUMNS, ())
    out: dict[str, np.ndarray] = {
        "step": np.array(raw["step"], np.int64),
        "time": np.array(raw["time_ms"], np.float64) / 1000.0,
    }
    gaps = np.array([missed is not None for missed in raw["missed"]], bool)
    for name in NUMBERS:
        column = np.array(raw[name], np.float64)  # None becomes NaN
        if name in SELDOM:
            column = _filled(column, newest.get(name, NO_LONGER))
            newest[name] = float(column[-1]) if len(column) else newest.get(name, NO_LONGER)
            column = np.where((column == NO_LONGER) | gaps, np.nan, column)
        out[name] = column
    out["verdict"] = np.array(WORDS)[np.array(raw["verdict"], np.int64)]
    out["missed"] = np.array([missed or 0 for missed in raw["missed"]], np.int64)
    return out


def _filled(column: np.ndarray, before: float) -> np.ndarray:
    """Each NaN replaced by the number in front of it."""
    known = np.append(before, column)
    places = np.maximum.accumulate(np.where(np.isnan(known), 0, np.arange(len(known))))
    return known[places][1:]
