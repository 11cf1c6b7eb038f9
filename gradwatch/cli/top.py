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
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from json import dumps
from urllib.parse import urlsplit

from gradwatch.cli.rows import Row, as_json, parse
from gradwatch.errors import ConfigError, MissingExtra
from gradwatch.exporters.ports import DEFAULT_PORT
from gradwatch.reading.text import clean, redact

try:
    import click
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text
except ImportError as missing:
    raise MissingExtra(missing.name or "rich", "cli", "`gradwatch top`") from None

from gradwatch.cli.table import table  # it needs the same extra

#: Where a training on this host is unless it says otherwise.
_DEFAULT_URL = f"http://127.0.0.1:{DEFAULT_PORT}"

_TIMEOUT_SECONDS = 5.0
_MOST_BYTES = 16 * 2**20
_PACE_SECONDS = 20.0  # over which the step rate is taken
_MOST_AT_ONCE = 16
_WIDEST = 10_000  # characters of a line in a file or pipe


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
        self.url: str = parts._replace(path="/metrics" if parts.path in ("", "/") else parts.path).geturl()
        self.name: str = clean(parts.hostname) + port
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


def run(
    urls: Sequence[str],
    interval: float = 1.0,
    once: bool = False,
    *,
    json: bool = False,
    console: Console | None = None,
) -> int:
    """Shows the endpoints until Ctrl-C.

    Args:
      urls: addresses, see `Endpoint`.
      interval: seconds between two looks, > 0.
      once: look twice, `interval` apart (a pace needs two), print the table and return.
      json: print each look as one line, a JSON array of the rows (see `Row`), instead of a table.
      console: where to print; default: standard output.

    Returns:
      0, or with `once` 1 if an endpoint did not answer.

    Raises:
      ConfigError: no address, an invalid one, or `interval` out of range.
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
                _print(console, rows, json)
                return int(any(not row.monitor and row.tone == "critical" for row in rows))
            if json or not console.is_terminal:
                while True:
                    _print(console, look(), json)
                    time.sleep(interval)
            footer = Text(f"every {interval:g} s; Ctrl-C ends", "dim")
            with Live(console=console, auto_refresh=False, screen=True) as live:
                while True:
                    live.update(Group(table(look(), console.width), Text(), footer), refresh=True)
                    time.sleep(interval)
        except KeyboardInterrupt:
            return 0


def _print(console: Console, rows: Sequence[Row], json: bool) -> None:
    if json:
        console.file.write(dumps([as_json(row) for row in rows], allow_nan=False) + "\n")
        console.file.flush()
    elif console.is_terminal:
        console.print(table(rows, console.width))
    else:  # a file or a pipe is as wide as its lines
        drawn = table(rows)
        console.width = max(console.width, console.measure(drawn).maximum, _WIDEST)
        console.print(drawn)


@click.command()
@click.argument("urls", nargs=-1, metavar="[URL]...")
@click.option("--interval", default=1.0, show_default=True, help="Seconds between two looks.")
@click.option("--once", is_flag=True, help="Print the table once and end; status 1 if an endpoint does not answer.")
@click.option("--json", is_flag=True, help="Print each look as one line of JSON, for other programs.")
def top(urls: tuple[str, ...], interval: float, once: bool, json: bool) -> None:
    """Shows running trainings live, the most urgent first.

    URL is the address of an endpoint of `gradwatch.serve`; host:port is enough. Without any it is the
    endpoint that a training on this host opens by default. Where the terminal is narrow, the columns that
    matter least are left out.
    """
    raise SystemExit(run(urls or (_DEFAULT_URL,), interval, once, json=json))
