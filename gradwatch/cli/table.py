"""The rows of `gradwatch top` as a table that fits."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from gradwatch.cli.rows import Row
from gradwatch.reading.state import TONES
from gradwatch.reading.text import clean, short_names

_STYLES = {"ok": "green", "info": "cyan", "warning": "yellow", "critical": "bold red"}

#: The columns beside monitor and state, the first to be left out last.
_PRIORITY = (
    *("norm", "steps", "anomalies", "verdict", "endpoint", "run", "clip_norm", "clipped", "steps/s", "update ratio"),
    *("threshold", "applied", "overhead"),
)
_GAP = 2  # between two columns
_NAME_LIMIT = 32  # characters of a name on a terminal


def table(rows: Sequence[Row], width: int | None = None) -> Table:
    """The rows as a table, the most urgent first.

    Args:
      width: characters there are; the columns that matter least are left out until the others fit. None: everything is
        shown, and no name is shortened.
    """
    rows = sorted(rows, key=lambda row: -TONES.index(row.tone))
    columns = _columns(rows, None if width is None else _NAME_LIMIT)
    for name in reversed(_PRIORITY):
        if width is None or sum(_width(name, cells) + _GAP for name, cells in columns.items()) - _GAP <= width:
            break
        columns.pop(name, None)
    drawn = Table(expand=False, pad_edge=False, box=None, padding=(0, _GAP, 0, 0), header_style="dim")
    for name in columns:
        left = name in ("endpoint", "run", "monitor", "state", "verdict")
        drawn.add_column(name, justify="left" if left else "right", no_wrap=True)
    for i, row in enumerate(rows):
        # Text, never markup: names come from somebody's model
        drawn.add_row(
            *(Text(cells[i], _STYLES[row.tone] if name == "state" else "") for name, cells in columns.items())
        )
    return drawn


def _width(name: str, cells: Sequence[str]) -> int:
    return max(Text(text).cell_len for text in (name, *cells))


def _columns(rows: Sequence[Row], limit: int | None) -> dict[str, list[str]]:
    """Heading -> cells, from left to right."""

    def names(texts: Sequence[str]) -> list[str]:
        short = {text: clean(text) for text in texts} if limit is None else short_names(texts, limit)
        return [short[text] or "-" for text in texts]

    columns = {
        "endpoint": names([row.endpoint for row in rows]) if len({row.endpoint for row in rows}) > 1 else [],
        "run": names([row.run for row in rows]) if len({row.run for row in rows if row.monitor}) > 1 else [],
        "monitor": names([row.monitor for row in rows]),
        "state": [row.state for row in rows],
    }
    cells = [_cells(row) if row.monitor else {} for row in rows]
    for name in (
        *("steps", "steps/s", "norm", "applied", "clip_norm", "threshold", "clipped", "update ratio"),
        *("anomalies", "verdict", "overhead"),
    ):
        columns[name] = [cell.get(name, "") for cell in cells]
    if not any(row.verdict for row in rows):
        columns.pop("verdict")
    return {name: column for name, column in columns.items() if column}


def _cells(row: Row) -> dict[str, str]:
    clipped = _percent(row.clip_ratio)
    if not math.isnan(row.expected_clip_ratio):
        clipped += f" of {_percent(row.expected_clip_ratio)}"
    return {
        "steps": f"{row.steps:,.0f}",
        "steps/s": _number(row.pace),
        "norm": _number(row.norm),
        "applied": _number(row.applied_norm),
        "clip_norm": "none" if row.clip_norm == math.inf else _number(row.clip_norm),
        "threshold": "none" if row.threshold == math.inf else _number(row.threshold),
        "clipped": clipped,
        "update ratio": _number(row.update_ratio),
        "anomalies": " ".join(f"{count:.0f} {kind}" for kind, count in row.anomalies.items() if count) or "0",
        "verdict": clean(row.verdict.replace("_", " ")) or "-",
        "overhead": _percent(row.overhead_ratio),
    }


def _number(value: float) -> str:
    if math.isnan(value):
        return "-"
    return "Inf" if math.isinf(value) else f"{value:.4g}"


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1%}"
