"""`gradwatch top` from Python: `gradwatch.top.run(["trainer-1:9464"], once=True)`."""

from __future__ import annotations

from gradwatch.cli.rows import Row, as_json, parse
from gradwatch.cli.table import table
from gradwatch.cli.top import Endpoint, run

__all__ = ["Endpoint", "Row", "as_json", "parse", "run", "table"]
