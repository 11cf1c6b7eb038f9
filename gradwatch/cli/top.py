"""`gradwatch top`: the numbers of one or many running trainings, live in a terminal.

It reads what Prometheus would read, so it works for every endpoint of `gradwatch.serve`, on this host or
another, and costs the training no more than a scrape.
"""

from __future__ import annotations

import math
import ssl
import time
import urllib.error
import urllib.request
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from urllib.parse import urlsplit

from prometheus_client.parser import text_string_to_metric_families

from gradwatch.core.snapshot import KINDS
from gradwatch.errors import ConfigError, MissingExtra
from gradwatch.exporters.ports import DEFAULT_PORT
from gradwatch.reading.state import TONES, state_of
from gradwatch.reading.text import clean, redact

try:
    import click
    from rich.console import Console, Group
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text
except ImportError as missing:
    raise MissingExtra(missing.name or "rich", "cli", "`gradwatch top`") from None

#: Where a training on this host is unless it says otherwise.
_DEFAULT_URL = f"http://127.0.0.1:{DEFAULT_PORT}"

_TIMEOUT_SECONDS = 5.0
_MOST_BYTES = 16 * 2**20
_PACE_SECONDS = 20.0  # over which the step rate is taken
_MOST_AT_ONCE = 16

_STYLES = {"ok": "green", "info": "cyan", "warning": "yellow", "critical": "bold red"}


@dataclass(frozen=True)
class Row:
    """One monitor of one endpoint, or one endpoint that does not answer. NaN: not known.

    Attributes:
      endpoint: host and port.
      monitor: name; "" for an endpoint that does not answer.
      state, tone: see `gradwatch.reading.state.state_of`.
      steps: optimizer steps so far.
      pace: steps per second, over the last 20 seconds or as long as it was watched.
      norm, applied_norm, clip_norm, threshold: norms of the last step; Inf where there is no limit, and for a
        norm that is not finite.
      clip_ratio: share of clipped steps.
      expected_clip_ratio: share that the policy means to clip.
      anomalies: kind -> episodes.
      overhead_ratio: share of the run that gradwatch's host side took from the training thread.
      time: Unix seconds at which the training's numbers were read.
    """

    endpoint: str
    monitor: str
    state: str
    tone: str
    steps: float = math.nan
    pace: float = math.nan
    norm: float = math.nan
    applied_norm: float = math.nan
    clip_norm: float = math.nan
    threshold: float = math.nan
    clip_ratio: float = math.nan
    expected_clip_ratio: float = math.nan
    anomalies: Mapping[str, float] = field(default_factory=dict)
    overhead_ratio: float = math.nan
    time: float = math.nan


def parse(text: str, endpoint: str = "") -> list[Row]:
    """The rows of one exposition, by monitor.

    Raises:
      ValueError: it is not in Prometheus' text format.
    """
    found: dict[str, dict[str, float]] = defaultdict(dict)
    kinds: dict[str, dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            monitor = sample.labels.get("monitor")
            if monitor is None or not sample.name.startswith("gradwatch_"):
                continue
            name = sample.name.removeprefix("gradwatch_")
            if "kind" in sample.labels:
                kinds[monitor][name][sample.labels["kind"]] = sample.value
            elif set(sample.labels) == {"monitor"}:
                found[monitor][name] = sample.value
    return [_row(endpoint, monitor, values, kinds[monitor]) for monitor, values in sorted(found.items())]


def _row(endpoint: str, monitor: str, v: Mapping[str, float], kinds: Mapping[str, Mapping[str, float]]) -> Row:
    def value(name: str) -> float:
        return v.get(name, math.nan)

    steps, now = value("steps_total"), value("snapshot_timestamp_seconds")
    elapsed = now - value("run_start_timestamp_seconds")
    state, tone = state_of(
        steps=v.get("steps_total", 0.0),
        running=value("run_active") == 1,
        warmup=value("warmup_active") == 1,
        active={kind: active == 1 for kind, active in kinds["anomaly_active"].items()},
        idle_seconds=now - value("last_step_timestamp_seconds"),
    )
    return Row(
        endpoint=endpoint,
        monitor=monitor,
        state=state,
        tone=tone,
        steps=steps,
        norm=value("gradient_norm_last"),
        applied_norm=value("gradient_norm_applied"),
        clip_norm=value("clip_norm"),
        threshold=value("explosion_threshold"),
        clip_ratio=value("clipped_steps_total") / steps if steps else 0.0,
        expected_clip_ratio=value("expected_clip_ratio"),
        anomalies={kind: kinds["anomalies_total"].get(kind, 0.0) for kind in KINDS},
        overhead_ratio=value("host_overhead_seconds_total") / elapsed if elapsed > 0 else math.nan,
        time=now,
    )


class Endpoint:
    """One address, asked again and again.

    Args:
      url: of a `gradwatch.serve` endpoint; "host:port" is enough, and "/metrics" is added where no path is.

    Raises:
      ConfigError: it is not an http or https address.
    """

    def __init__(self, url: str) -> None:
        whole = url if "://" in url else f"http://{url}"
        try:
            parts = urlsplit(whole)
            port = f":{parts.port}" if parts.port else ""
        except ValueError:
            parts, port = urlsplit(""), ""
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(
                f"gradwatch top needs the address of an endpoint such as {_DEFAULT_URL}, got {redact(whole)}"
            )
        if parts.username:
            raise ConfigError("user names in an address are not supported: gradwatch's endpoint knows none")
        self.url = parts._replace(path="/metrics" if parts.path in ("", "/") else parts.path).geturl()
        self.name = clean(parts.hostname) + port
        # a proxy of the environment is for other hosts, whatever no_proxy says or does not say
        local = parts.hostname in ("localhost", "::1") or parts.hostname.startswith("127.")
        self._opener = urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if local else []))
        self._paces: dict[str, deque[tuple[float, float]]] = {}

    def rows(self) -> list[Row]:
        """What it says now; never raises: an endpoint that does not answer is a row that says why."""
        try:
            with self._opener.open(self.url, timeout=_TIMEOUT_SECONDS) as answer:
                text = answer.read(_MOST_BYTES).decode("utf-8", "replace")
            rows = parse(text, self.name)
        except (OSError, ValueError) as error:
            return [Row(self.name, "", _why(error), "critical")]
        if not rows:
            return [Row(self.name, "", "no monitor yet", "info")]
        return [replace(row, pace=self._pace(row)) for row in rows]

    def _pace(self, row: Row) -> float:
        seen = self._paces.setdefault(row.monitor, deque())
        if seen and row.steps < seen[-1][1]:
            seen.clear()  # another run
        if not seen or row.time > seen[-1][0]:
            seen.append((row.time, row.steps))
        while len(seen) > 2 and row.time - seen[0][0] > _PACE_SECONDS:
            seen.popleft()
        (t0, s0), (t1, s1) = seen[0], seen[-1]
        return (s1 - s0) / (t1 - t0) if t1 > t0 else math.nan


def _why(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"answers with status {error.code}"
    reason = getattr(error, "reason", error)
    if isinstance(reason, ssl.SSLError):
        return "its certificate is not trusted here"
    if isinstance(reason, ConnectionRefusedError):
        return "nobody listens there"
    if isinstance(reason, TimeoutError):
        return "no answer in time"
    return "not a gradwatch endpoint" if isinstance(error, ValueError) else "cannot be reached"


def table(rows: Sequence[Row]) -> Table:
    """The rows as a table, the most urgent first."""
    several = len({row.endpoint for row in rows}) > 1
    drawn = Table(expand=False, pad_edge=False, box=None, header_style="dim")
    if several:
        drawn.add_column("endpoint", overflow="ellipsis", no_wrap=True)
    drawn.add_column("monitor", overflow="ellipsis", no_wrap=True, max_width=32)
    drawn.add_column("state", no_wrap=True)
    for name in ("steps", "steps/s", "norm", "applied", "clip_norm", "threshold", "clipped", "anomalies", "overhead"):
        drawn.add_column(name, justify="right", no_wrap=True)
    for row in sorted(rows, key=lambda row: -TONES.index(row.tone)):
        # Text, never markup: names come from somebody's model
        cells = [Text(clean(row.monitor) or "-"), Text(row.state, _STYLES[row.tone])]
        if several:
            cells.insert(0, Text(row.endpoint))
        if row.monitor:
            cells += [Text(cell) for cell in _cells(row)]
        drawn.add_row(*cells)
    return drawn


def _cells(row: Row) -> list[str]:
    clipped = _percent(row.clip_ratio)
    if not math.isnan(row.expected_clip_ratio):
        clipped += f" of {_percent(row.expected_clip_ratio)}"
    return [
        f"{row.steps:,.0f}",
        _number(row.pace),
        _number(row.norm),
        _number(row.applied_norm),
        "none" if row.clip_norm == math.inf else _number(row.clip_norm),
        "none" if row.threshold == math.inf else _number(row.threshold),
        clipped,
        " ".join(f"{count:.0f} {kind}" for kind, count in row.anomalies.items() if count) or "0",
        _percent(row.overhead_ratio),
    ]


def _number(value: float) -> str:
    if math.isnan(value):
        return "-"
    return "Inf" if math.isinf(value) else f"{value:.4g}"


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1%}"


def run(urls: Sequence[str], interval: float = 1.0, once: bool = False, *, console: Console | None = None) -> int:
    """Shows the endpoints until Ctrl-C.

    Args:
      urls: addresses, see `Endpoint`.
      interval: seconds between two looks, > 0.
      once: look twice, `interval` apart (a pace needs two), print the table and return.
      console: where to print; default: standard output.

    Returns:
      0, or with `once` 1 if an endpoint did not answer.

    Raises:
      ConfigError: no address, one that is none, or `interval` out of range.
    """
    if not urls:
        raise ConfigError(f"gradwatch top needs at least one address, such as {_DEFAULT_URL}")
    if not 0 < interval < math.inf:
        raise ConfigError(f"interval must be > 0 seconds, got {interval}; 1 is usual")
    endpoints = [Endpoint(url) for url in dict.fromkeys(urls)]
    console = console or Console()
    with ThreadPoolExecutor(min(len(endpoints), _MOST_AT_ONCE)) as pool:

        def look() -> list[Row]:
            return [row for rows in pool.map(Endpoint.rows, endpoints) for row in rows]

        try:
            if once:
                look()
                time.sleep(interval)
                rows = look()
                console.print(table(rows))
                return int(any(not row.monitor and row.tone == "critical" for row in rows))
            footer = Text(f"every {interval:g} s; Ctrl-C ends", "dim")
            with Live(console=console, auto_refresh=False, screen=console.is_terminal) as live:
                while True:
                    live.update(Group(table(look()), Text(), footer), refresh=True)
                    time.sleep(interval)
        except KeyboardInterrupt:
            return 0


@click.command()
@click.argument("urls", nargs=-1, metavar="[URL]...")
@click.option("--interval", default=1.0, show_default=True, help="Seconds between two looks.")
@click.option("--once", is_flag=True, help="Print the table once and end; status 1 if an endpoint does not answer.")
def top(urls: tuple[str, ...], interval: float, once: bool) -> None:
    """Shows running trainings live, the most urgent first.

    URL is the address of an endpoint of `gradwatch.serve`; host:port is enough. Without any it is the
    endpoint that a training on this host opens by default.
    """
    raise SystemExit(run(urls or (_DEFAULT_URL,), interval, once))
