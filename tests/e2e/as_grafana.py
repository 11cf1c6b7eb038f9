"""What Grafana does to a query before Prometheus sees it: variables, multi-value and All, intervals.

Written from Grafana's documentation of its Prometheus data source and of its variables.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ALL = "$__all"


@dataclass(frozen=True)
class View:
    """A dashboard as somebody looks at it.

    Attributes:
      chosen: variable -> values chosen, or [ALL].
      start, end: Unix seconds.
      scrape_seconds: the data source's scrape interval.
      width: pixels of a panel, one point each.
    """

    chosen: Mapping[str, Sequence[str]]
    start: float
    end: float
    scrape_seconds: float
    width: int = 800

    @property
    def interval(self) -> float:
        """$__interval: seconds between two points, not below the scrape interval."""
        return max((self.end - self.start) / self.width, self.scrape_seconds)

    @property
    def rate_interval(self) -> float:
        """$__rate_interval: wide enough for a rate to have two samples and none between two points unused."""
        return max(self.interval + self.scrape_seconds, 4 * self.scrape_seconds)

    def interpolate(self, expr: str, board: Mapping[str, Any]) -> str:
        """The query that goes to Prometheus."""
        built_in = {
            "__rate_interval": f"{round(self.rate_interval)}s",
            "__interval": f"{round(self.interval)}s",
            "__range": f"{round(self.end - self.start)}s",
        }
        variables = {variable["name"]: variable for variable in board["templating"]["list"]}

        def value(match: re.Match[str]) -> str:
            name = match[1] or match[2]
            if name in built_in:
                return built_in[name]
            if name in variables:
                return matcher_value(self.chosen[name], variables[name])
            return match[0]

        return re.sub(r"\$(\w+)|\$\{(\w+)\}", value, expr)


def matcher_value(chosen: Sequence[str], variable: Mapping[str, Any]) -> str:
    """The text that stands for a variable within the quotes of a matcher."""
    if list(chosen) == [ALL]:
        return variable["allValue"]  # as it is: it is a regular expression already
    if not (variable["multi"] or variable["includeAll"]):
        return chosen[0].replace("\\", "\\\\").replace('"', '\\"')
    escaped = [regex_escape(value) for value in chosen]
    return escaped[0] if len(escaped) == 1 else "(" + "|".join(escaped) + ")"


def regex_escape(value: str) -> str:
    """A value that matches only itself, as a regular expression within a PromQL string.

    Backslashes count twice: once for the string, once for the expression.
    """
    value = value.replace("\\", "\\\\\\\\")
    value = value.replace('"', '\\\\\\"')
    return re.sub(r"[$^*{}\[\]'+?.()|]", r"\\\\\g<0>", value)


def annotation_times(annotation: Mapping[str, Any], series: Sequence[Mapping[str, Any]], step: float) -> list[float]:
    """Unix seconds of the lines that Grafana draws: values as times, those within a step together."""
    assert annotation["useValueForTime"] is True
    times: list[float] = []
    for one in series:
        latest = None
        for _, value in one["values"]:
            time = int(float(value)) / 1000
            if latest is None or latest + step < time:
                times.append(time)
            latest = time
    return times
