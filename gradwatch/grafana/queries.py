"""PromQL whose metric and label names are checked against the catalogue while it is put together."""

from __future__ import annotations

import re
from collections.abc import Callable

from gradwatch.errors import ConfigError
from gradwatch.exporters.metrics import BY_NAME

#: What every query of a dashboard is narrowed to: the variables at its top.
TARGET = ('job=~"$job"', 'instance=~"$instance"')
MONITOR = 'monitor=~"$monitor"'
MONITOR_IF_ANY = 'monitor=~"$monitor|"'  # an alert about a process has no monitor, and belongs to all of them

#: One series for each run.
RUN = ("job", "instance", "monitor")

#: What Prometheus adds; `run` is the name that `gradwatch.serve(file_sd=...)` gives a target.
_OF_TARGETS = ("job", "instance", "run")

_OF_HISTOGRAMS = ("_bucket", "_count", "_sum")
_OF_SERVERS = {
    "up": ("expected",),
    "ALERTS": ("alertname", "alertstate", "severity", "monitor"),
}  # Prometheus' own


def series(name: str, *matchers: str) -> str:
    """A selector, as rules use it.

    Args:
      name: a metric of the catalogue, or `up` or `ALERTS`.
      matchers: such as 'kind="explosion"'.

    Raises:
      ConfigError: the catalogue has no such metric, or the metric no such label.
    """
    known = _labels(name)
    for matcher in matchers:
        label = re.split(r"[=!]", matcher)[0]
        if label not in known:
            raise ConfigError(f"{name} has no label {label!r}; it has {', '.join(sorted(known)) or 'none'}")
    return f"{name}{{{', '.join(matchers)}}}" if matchers else name


def chosen(name: str, *matchers: str) -> str:
    """A selector for dashboards: what the variables at the top of the dashboard chose."""
    of_monitor = (name in BY_NAME and BY_NAME[name].scope == "monitor") or _histogram(name)
    return series(name, *TARGET, *([MONITOR] if of_monitor else []), *matchers)


def firing(*matchers: str) -> str:
    """The gradwatch alerts that fire for what the variables chose."""
    return series("ALERTS", *TARGET, MONITOR_IF_ANY, 'alertstate="firing"', 'alertname=~"Gradwatch.+"', *matchers)


def finite(selector: str) -> str:
    """Without the +Inf that stands for "none" or "not finite": a log axis cannot show it."""
    return f"({selector} < Inf)"


def positive(selector: str) -> str:
    """Without the 0 that stands for "none": a log axis cannot show it."""
    return f"({selector} > 0)"


def rate(selector: str, window: str = "$__rate_interval") -> str:
    return f"rate({selector}[{window}])"


def increase(selector: str, window: str = "$__rate_interval") -> str:
    return f"increase({selector}[{window}])"


def share_of_steps(counter: str, steps: str, window: str = "$__rate_interval") -> str:
    """Share of the steps that `counter` counted; nothing, rather than NaN, where no step was made."""
    return f"{rate(counter, window)} / ({rate(steps, window)} > 0)"


def share_of_both(
    bad: str, good: str, window: str, without: str = "reason", of: Callable[[str, str], str] = rate
) -> str:
    """Share of `bad` in both together, `bad` summed over a label; nothing, rather than NaN, where there was neither.

    Args:
      of: `rate`, or `increase` for a window that is the whole time range of a dashboard.
    """
    wasted = f"sum without ({without}) ({of(bad, window)})"
    return f"{wasted}\n/ (({wasted} + {of(good, window)}) > 0)"


def useful_share(window: str = "$__range") -> str:
    """Share of the steps that trained the model."""
    wasted, useful = chosen("gradwatch_wasted_steps_total"), chosen("gradwatch_useful_steps_total")
    return f"1 - {share_of_both(wasted, useful, window, of=increase)}"


def or_else(expression: str, instead: str, **labels: str) -> str:
    """`expression`, and for each run that it has nothing for, `instead` with these labels: no panel stays empty.

    Args:
      instead: one series for each run.
    """
    for label, value in labels.items():
        instead = f'label_replace({instead}, "{label}", "{value}", "", "")'
    return f"{expression} or on ({', '.join(RUN)}) {instead}"


def per_run(expression: str, function: str = "sum") -> str:
    """Down to the labels that name a run."""
    return f"{function} by ({', '.join(RUN)}) ({expression})"


def _histogram(name: str) -> str:
    """The histogram that a series such as x_bucket belongs to; "" for others."""
    for ending in _OF_HISTOGRAMS:
        base = name.removesuffix(ending)
        if base != name and base in BY_NAME and BY_NAME[base].type == "histogram":
            return base
    return ""


def _labels(name: str) -> set[str]:
    if name in _OF_SERVERS:
        return {*_OF_TARGETS, *_OF_SERVERS[name]}
    metric = BY_NAME.get(_histogram(name) or name)
    if metric is None or (metric.type == "histogram" and not _histogram(name)):
        raise ConfigError(f"the catalogue (exporters/metrics.py) has no series {name!r}")
    own = {"monitor"} if metric.scope == "monitor" else set()
    return {*_OF_TARGETS, *own, *metric.labels} | ({"le"} if _histogram(name) else set())
