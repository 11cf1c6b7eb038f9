"""Metrics of short jobs, pushed to a Prometheus Pushgateway.

A job that ends between two scrapes is never seen by Prometheus; a Pushgateway keeps its last numbers.
"""

from __future__ import annotations

import socket
import threading
import urllib.error
from collections.abc import Callable, Mapping
from urllib.parse import unquote, urlsplit

from prometheus_client import CollectorRegistry, push_to_gateway
from prometheus_client.exposition import basic_auth_handler, default_handler

from gradwatch.errors import ConfigError
from gradwatch.exporters.exposition import registry
from gradwatch.exporters.labels import check_labels
from gradwatch.reading.health import health
from gradwatch.reading.reader import reader
from gradwatch.reading.text import redact


class Gateway:
    """One group of a Pushgateway.

    Args:
      url: of the gateway, without a user name.
      user: (name, password) for basic authentication, or None.
      job, key: labels of the group.
      timeout_seconds: for one socket operation.
    """

    def __init__(
        self, url: str, user: tuple[str, str] | None, job: str, key: Mapping[str, str], timeout_seconds: float
    ) -> None:
        self._url, self._user, self._job, self._key, self._timeout = url, user, job, dict(key), timeout_seconds

    def put(self, metrics: CollectorRegistry) -> None:
        """Replaces the group by these metrics.

        Raises:
          OSError: the gateway cannot be reached or refuses (urllib.error.URLError).
        """
        push_to_gateway(self._url, self._job, metrics, self._key, self._timeout, self._handler)

    def _handler(
        self, url: str, method: str, timeout: float | None, headers: list[tuple[str, str]], data: bytes
    ) -> Callable[[], None]:
        if self._user is None:
            return default_handler(url, method, timeout, headers, data)
        return basic_auth_handler(url, method, timeout, headers, data, *self._user)


class Push:
    """What `push` set up: pushes again with `now`, ends with `close`. Also a context manager."""

    def __init__(self, target: Gateway, shown: str, every_seconds: float | None) -> None:
        self._target = target
        self._shown = shown
        self._lock = threading.Lock()  # two pushes at once could end with the older one
        self._closed = threading.Event()
        if every_seconds is not None:
            threading.Thread(target=self._repeat, args=(every_seconds,), name="gradwatch-push", daemon=True).start()

    def now(self) -> bool:
        """Pushes the newest readings; False if that failed (logged once, counted; never raised)."""
        return self._push(ended=False)

    def _push(self, ended: bool) -> bool:
        try:
            with self._lock:
                self._target.put(registry(departed=True, ended=ended))
        except Exception as exc:
            health.failed("push", f"cannot push to {self._shown}: {_reason(exc)}", key=self._shown)
            return False
        return True

    def close(self) -> None:
        """Reads every monitor and pushes one last time, all runs as over. May be called twice."""
        if self._closed.is_set():
            return
        reader.cancel_at_exit(self._end)
        reader.poll_now()
        self._end()

    def __enter__(self) -> Push:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<gradwatch.Push to {self._shown}>"

    def _end(self) -> None:  # at the end of the process the reader calls this after its last look
        self._closed.set()
        self._push(ended=True)

    def _repeat(self, seconds: float) -> None:
        while not self._closed.wait(seconds):
            self.now()


def push(
    gateway: str,
    job: str = "gradwatch",
    grouping_key: Mapping[str, str] | None = None,
    *,
    every_seconds: float | None = None,
    timeout_seconds: float = 5.0,
) -> Push:
    """Pushes the metrics of this process to a Pushgateway: now, and when the process ends.

    "Ends" is the end of the script, `sys.exit`, an exception that nobody caught, Ctrl-C; not a kill signal
    or a crash of the interpreter, for which `every_seconds` leaves numbers that are not too old. The last
    push says `gradwatch_run_active 0`. Each push replaces the group, so no old series stays behind.

    A gateway that cannot be reached is logged once and counted in
    `gradwatch_internal_errors_total{component="push"}`; training goes on.

    Args:
      gateway: "host:port" or a URL; a user name and password in it are sent as basic authentication and
        never logged.
      job: the group's `job` label.
      grouping_key: the group's other labels. The default is {"instance": this host's name}. Jobs that run
        at the same time need different keys, or they replace each other's numbers; a key that is new for
        each run (a process id) fills the gateway for good.
      every_seconds: also push this often, > 0.
      timeout_seconds: for one push, > 0.

    Raises:
      ConfigError: the gateway is no address, or the key uses a label that the metrics themselves have.
    """
    url, user, shown = _address(gateway)
    key = {"instance": socket.gethostname()} if grouping_key is None else dict(grouping_key)
    _check_key(job, key)
    for name, seconds in (("every_seconds", every_seconds), ("timeout_seconds", timeout_seconds)):
        if seconds is not None and not 0 < seconds < float("inf"):
            raise ConfigError(f"{name} must be > 0, got {seconds}")
    made = Push(Gateway(url, user, job, key, timeout_seconds), shown, every_seconds)
    reader.poll_now()
    made.now()
    reader.at_exit(made._end)
    return made


def _address(gateway: str) -> tuple[str, tuple[str, str] | None, str]:
    """(URL without user, user and password, what may be logged)"""
    text = gateway if "://" in gateway else f"http://{gateway}"
    shown = redact(text)
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise ConfigError(f"gateway must be host:port or a URL, got one that cannot be read: {shown}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"gateway must be host:port or an http(s) URL, got {shown}")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    url = f"{parts.scheme}://{host}{f':{port}' if port else ''}{parts.path.rstrip('/')}"
    user = (unquote(parts.username), unquote(parts.password or "")) if parts.username else None
    return url, user, shown


def _check_key(job: str, key: Mapping[str, str]) -> None:
    if not isinstance(job, str) or not job:
        raise ConfigError(f"job must be a text that is not empty, got {job!r}")
    check_labels("grouping_key", key, {"job": "give it as job="})


def _reason(exc: Exception) -> str:
    """Why it failed, without the URL, which may hold a secret."""
    if isinstance(exc, urllib.error.HTTPError):
        return f"status {exc.code}"
    if isinstance(exc, urllib.error.URLError) and isinstance(exc.reason, OSError):
        return exc.reason.strerror or type(exc.reason).__name__
    return type(exc).__name__
