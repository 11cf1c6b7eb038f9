"""`gradwatch top` from Python: `gradwatch.top.run(["trainer-1:9464"], once=True)`."""

from __future__ import annotations

from gradwatch.cli.top import Endpoint, Row, parse, run, table

__all__ = ["Endpoint", "Row", "parse", "run", "table"]
