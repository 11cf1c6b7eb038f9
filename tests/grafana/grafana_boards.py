"""The generated dashboards and their queries, as a program finds them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import promql_parser

from gradwatch.grafana import fleet, health
from gradwatch.grafana.readme import walk

BOARDS = {"gradient-health": health.dashboard(), "gradient-fleet": fleet.dashboard()}

#: Stand-ins for Grafana's variables, told apart after parsing.
DURATIONS = {"$__rate_interval": "1h13m", "$__range": "7h17m", "$__interval": "3m11s"}

_CHILDREN = ("lhs", "rhs", "expr", "param", "args", "vector_selector")


def panels(board: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """All panels but headings."""
    return (panel for panel in walk(board["panels"]) if panel["type"] != "row")


def parse(expr: str) -> Any:
    """The syntax tree of a query."""
    for name, duration in DURATIONS.items():
        expr = expr.replace(name, duration)
    return promql_parser.parse(expr)


def nodes(node: Any, parents: tuple[Any, ...] = ()) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Every node of a query with the nodes above it."""
    yield node, parents
    for name in _CHILDREN:
        child = getattr(node, name, None)
        for one in child if isinstance(child, list) else [child]:
            if type(one).__module__.startswith("promql_parser"):
                yield from nodes(one, (*parents, node))


def selectors(expr: str) -> Iterator[Any]:
    """Every selector of a query."""
    return (node for node, _ in nodes(parse(expr)) if isinstance(node, promql_parser.VectorSelector))
