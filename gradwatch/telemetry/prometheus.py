"""The newest readings as a Prometheus endpoint. The only module that knows `prometheus_client`.

A scrape formats numbers that the reader thread left behind: it never touches the training thread or the
device, and never waits for a step.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, make_wsgi_app, push_to_gateway
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    SummaryMetricFamily,
)
from prometheus_client.exposition import basic_auth_handler, default_handler
from prometheus_client.utils import floatToGoString

from gradwatch.errors import ConfigError, ServeError
from gradwatch.telemetry.health import Health, health
from gradwatch.telemetry.httpd import Httpd
from gradwatch.telemetry.live import LivePage
from gradwatch.telemetry.metrics import METRICS, Buckets, Metric
from gradwatch.telemetry.reader import Reader, Reading, reader
from gradwatch.telemetry.text import clean

#: The port from which workers count; registered for no other common exporter on a training host.
DEFAULT_PORT = 9464

#: No more layer series than this for one monitor, whatever is asked for.
MOST_LAYERS = 200

#: Environment variables that number the workers of one host, in the order they are asked.
WORKER_VARIABLES = ("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID")

_CACHE_SECONDS = 1.0

App = Callable[[Mapping[str, Any], Callable[..., Any]], Iterable[bytes]]


class Collector:
    """The catalogue over the newest readings, for a `prometheus_client` registry.

    Args:
      layers: layer series for each monitor, spread evenly over its variables in the model's order; the set
        is fixed when the first layers are seen. 0: none. At most `MOST_LAYERS`.
      departed: also show monitors that are gone, as they were last (for `push`).
      ended: show every run as over.
    """

    def __init__(
        self,
        layers: int = 0,
        *,
        departed: bool = False,
        ended: bool = False,
        source: Reader = reader,
        process: Health = health,
    ) -> None:
        if not 0 <= layers <= MOST_LAYERS:
            raise ConfigError(
                f"layers must be between 0 and {MOST_LAYERS} (each is a time series per monitor), got {layers}"
            )
        self._layers = layers
        self._departed = departed
        self._ended = ended
        self._reader = source
        self._health = process
        self._chosen: dict[tuple[str, str], frozenset[str]] = {}

    def describe(self) -> list[Any]:
        """Nothing: names are unique in the table, and a collection just to learn them would be waste."""
        return []

    def collect(self) -> Iterator[Any]:
        """One family for each metric of the table. A value that cannot be read is left out and counted."""
        readings = self._reader.readings(departed=self._departed)
        if self._ended:
            readings = [replace(reading, active=False) for reading in readings]
        self._choose_layers(readings)
        for metric in METRICS:
            family = _family(metric)
            if metric.scope == "process":
                self._add(family, metric, (), self._health)
            else:
                for reading in readings:
                    self._add(family, metric, (reading.name,), reading)
            yield family

    def _add(self, family: Any, metric: Metric, labels: tuple[str, ...], source: Any) -> None:
        try:
            samples = metric.read(source)
            if isinstance(samples, Buckets):
                family.add_metric(labels, *_buckets(samples))
                return
            rows = list(samples)
            if metric.name == "gradwatch_layer_gradient_norm":
                chosen = self._chosen.get((source.name, source.run_id), frozenset())
                rows = [((clean(values[0]),), value) for values, value in rows if values[0] in chosen]
            for values, value in rows:
                if metric.type == "info":
                    family.add_metric(labels, dict(zip(metric.labels, values)))
                elif metric.type == "summary":  # its own add_metric knows no quantiles
                    names = ("monitor", *metric.labels)
                    family.add_sample(metric.name, dict(zip(names, labels + values)), value)
                else:
                    family.add_metric(labels + values, value)
        except Exception:
            health.scrape_failed("exposition", f"metric {metric.name} cannot be read", exc_info=True)

    def _choose_layers(self, readings: list[Reading]) -> None:
        if not self._layers:
            return
        keys = {(reading.name, reading.run_id) for reading in readings}
        chosen = {key: names for key, names in self._chosen.items() if key in keys}
        for reading in readings:
            names = list(reading.snapshot.layer_norms)
            if names and (reading.name, reading.run_id) not in chosen:
                chosen[reading.name, reading.run_id] = frozenset(_spread(names, self._layers))
        self._chosen = chosen


def _spread(names: list[str], count: int) -> list[str]:
    """`count` of the names at even distances, the first and the last among them."""
    if count >= len(names):
        return names
    if count == 1:
        return names[:1]
    return [names[round(i * (len(names) - 1) / (count - 1))] for i in range(count)]


_FAMILIES: dict[str, Any] = {
    "counter": CounterMetricFamily,
    "gauge": GaugeMetricFamily,
    "histogram": HistogramMetricFamily,
    "summary": SummaryMetricFamily,
}


def _family(metric: Metric) -> Any:
    scope = ("monitor",) if metric.scope == "monitor" else ()
    if metric.type == "info":
        return InfoMetricFamily(metric.name.removesuffix("_info"), metric.help, labels=scope)
    return _FAMILIES[metric.type](metric.name, metric.help, labels=scope + metric.labels, unit=metric.unit)


def _buckets(b: Buckets) -> tuple[list[tuple[str, float]], float]:
    if len(b.counts) != len(b.bounds) + 1:
        raise ValueError(f"{len(b.bounds)} bounds need {len(b.bounds) + 1} counts, got {len(b.counts)}")
    bounds = [floatToGoString(bound) for bound in (*b.bounds, math.inf)]  # type: ignore[no-untyped-call]
    return list(zip(bounds, map(float, b.counts))), b.total


def registry(layers: int = 0, *, departed: bool = False, ended: bool = False) -> CollectorRegistry:
    """A fresh registry with nothing but gradwatch's metrics; arguments as for `Collector`."""
    fresh = CollectorRegistry(auto_describe=False)
    fresh.register(Collector(layers, departed=departed, ended=ended))
    return fresh


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


# -- the endpoint --------------------------------------------------------------------------------------


class Server:
    """A running endpoint; made by `serve`. Also a context manager that closes it.

    Attributes:
      addr: address it listens on.
      port: port it listens on.
      url: where a browser on this host finds it, without a trailing slash.
      metrics_url: where Prometheus finds it.
      target_file: the `file_sd` file it wrote, or None.
    """

    def __init__(
        self, httpd: Httpd, addr: str, tls: bool, options: tuple[Any, ...], live: LivePage | None = None
    ) -> None:
        self._httpd: Httpd | None = httpd
        self._options = options
        self._live = live
        self.addr = addr
        self.port = httpd.port
        self.target_file: Path | None = None
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}.get(addr, f"[{addr}]" if ":" in addr else addr)
        self.url = f"{'https' if tls else 'http'}://{host}:{self.port}"
        self.metrics_url = self.url + "/metrics"

    def close(self) -> None:
        """Stops serving, frees the port and removes the target file. May be called twice."""
        with _servers_lock:
            if _servers.get((self.addr, self.port)) is self:
                del _servers[self.addr, self.port]
            httpd, self._httpd = self._httpd, None
        if httpd is None:
            return
        reader.cancel_at_exit(self.close)
        httpd.stop()
        if self._live is not None:
            self._live.close()
        if self.target_file is not None:
            try:
                self.target_file.unlink(missing_ok=True)
            except OSError as exc:
                health.failed("server", f"the target file cannot be removed: {exc.strerror}")

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<gradwatch.Server {self.url}{'' if self._httpd else ' (closed)'}>"


_servers: dict[tuple[str, int], Server] = {}
_servers_lock = threading.RLock()


def serve(
    port: int = DEFAULT_PORT,
    addr: str = "127.0.0.1",
    *,
    certfile: str | None = None,
    keyfile: str | None = None,
    client_cafile: str | None = None,
    layers: int = 0,
    worker: int | str | None = None,
    file_sd: str | os.PathLike[str] | None = None,
    advertise: str | None = None,
    page: App | None = None,
) -> Server:
    """Serves the metrics of every monitor in this process at `/metrics`, from a thread of its own.

    One endpoint serves all monitors, also those made later. Calling `serve` again with the same arguments
    gives the running server (so a notebook cell can be run twice); with port 0 it always opens another.
    The endpoint closes with the process.

    Args:
      port: TCP port; 0 takes a free one (see `Server.port`).
      addr: address to listen on. The default is this host only; "0.0.0.0" is every network.
      certfile, keyfile: PEM files of the certificate and its key; both or neither. Given, it speaks HTTPS.
      client_cafile: PEM file of the authority that must have signed a client's certificate.
      layers: how many layer series for each monitor, see `Collector`.
      worker: index of this process among the workers of this host, added to `port`; "auto" takes it from
        the environment (`worker_index`). None adds nothing.
      file_sd: folder for a Prometheus `file_sd` target file of this endpoint; removed by `close`.
      advertise: host name to write into that file; default: `addr`, or this host's name if `addr` is a
        wildcard.
      page: WSGI app for every path but `/metrics`; default: the live page of `gradwatch.telemetry.live`.

    Raises:
      ConfigError: an argument is out of range, or two contradict each other.
      ServeError: the address, the certificate or the folder cannot be used.
    """
    port = _port(port, worker)
    context = _tls(certfile, keyfile, client_cafile)
    options = (certfile, keyfile, client_cafile, layers, str(file_sd), advertise, page)
    with _servers_lock:
        running = _servers.get((addr, port))
        if running is not None:
            if running._options == options:
                return running
            raise ServeError(
                f"port {port} on {addr} is already served by this process, with other options; "
                "close that server first (server.close()) or take another port"
            )
        metrics = _cached(make_wsgi_app(registry(layers)))
        live = LivePage() if page is None else None
        front = live if page is None else page
        assert front is not None
        try:
            httpd = Httpd(_routes(metrics, front), addr, port, context)
        except (OSError, OverflowError) as exc:
            if live is not None:
                live.close()
            raise _cannot_listen(addr, port, exc) from exc
        server = Server(httpd, addr, context is not None, options, live)
        _servers[addr, server.port] = server
    reader.at_exit(server.close)
    if file_sd is not None:
        try:
            server.target_file = _write_target(Path(file_sd), server, advertise, context is not None)
        except OSError as exc:
            server.close()
            raise ServeError(f"the target file cannot be written to {str(file_sd)!r}: {exc.strerror}") from exc
    reader.poll_now(timeout_seconds=1.0)
    return server


def worker_index(environ: Mapping[str, str] = os.environ) -> int:
    """Index of this process among the workers of its host, from the launcher's environment; else 0.

    Asked in this order: LOCAL_RANK (torchrun style launchers), OMPI_COMM_WORLD_LOCAL_RANK (Open MPI,
    Horovod), MPI_LOCALRANKID (Intel MPI, MPICH), SLURM_LOCALID (srun), and `task.index` of TF_CONFIG, which
    counts over all hosts: ports are then unique, too, but do not start at the first one on each host.

    Raises:
      ConfigError: TF_CONFIG or a variable does not hold an index.
    """
    for name in WORKER_VARIABLES:
        if environ.get(name):
            return _index_in(environ[name], name)
    if environ.get("TF_CONFIG"):
        try:
            task = json.loads(environ["TF_CONFIG"]).get("task", {})
            index = task.get("index", 0)
        except (ValueError, AttributeError) as exc:
            raise ConfigError("TF_CONFIG is not a JSON object; give worker= as a number") from exc
        return _index_in(index, "task.index of TF_CONFIG")
    return 0


def _index_in(value: object, name: str) -> int:
    if not re.fullmatch(r"\d{1,5}", str(value)):
        raise ConfigError(f"{name} must be an index >= 0, got {clean(value)!r}; give worker= as a number")
    return int(str(value))


def _port(port: int, worker: int | str | None) -> int:
    if worker == "auto":
        worker = worker_index()
    if worker is not None and (not isinstance(worker, int) or isinstance(worker, bool) or worker < 0):
        raise ConfigError(f'worker must be an index >= 0, "auto" or None, got {worker!r}')
    if not isinstance(port, int) or isinstance(port, bool) or not 0 <= port <= 65535:
        raise ConfigError(f"port must be between 0 and 65535, got {port!r}; 0 takes a free one")
    if port == 0:
        return 0
    wanted = port + (worker or 0)
    if wanted > 65535:
        raise ConfigError(f"port {port} + worker {worker} is above 65535; begin at a lower port")
    return wanted


def _tls(certfile: str | None, keyfile: str | None, client_cafile: str | None) -> ssl.SSLContext | None:
    if (certfile is None) != (keyfile is None):
        raise ConfigError("certfile and keyfile belong together: give both for HTTPS, or neither")
    if certfile is None:
        if client_cafile is not None:
            raise ConfigError("client_cafile needs HTTPS: give certfile and keyfile as well")
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certfile, keyfile)
        if client_cafile is not None:
            context.load_verify_locations(client_cafile)
            context.verify_mode = ssl.CERT_REQUIRED
    except OSError as exc:  # ssl.SSLError is one
        raise ServeError(
            f"the certificate cannot be used ({exc.strerror or exc}); certfile, keyfile and client_cafile "
            "must be readable PEM files that fit together"
        ) from exc
    return context


def _cannot_listen(addr: str, port: int, exc: Exception) -> ServeError:
    code = getattr(exc, "errno", None)
    if code == errno.EADDRINUSE:
        return ServeError(
            f"port {port} on {addr} is taken; use port=0 for any free one, or the next: port={min(port + 1, 65535)}"
        )
    if code == errno.EACCES:
        return ServeError(f"port {port} needs more rights than this process has; use one above 1023, or port=0")
    return ServeError(f"cannot listen on {addr!r} port {port}: {getattr(exc, 'strerror', None) or exc}; check addr")


def _write_target(folder: Path, server: Server, advertise: str | None, tls: bool) -> Path:
    wildcard = server.addr in ("", "0.0.0.0", "::")
    host = advertise or (socket.gethostname() if wildcard else server.addr)
    address = f"[{host}]:{server.port}" if ":" in host else f"{host}:{server.port}"
    entry: dict[str, Any] = {"targets": [address], "labels": {"__scheme__": "https" if tls else "http"}}
    path = folder / f"gradwatch-{re.sub(r'[^A-Za-z0-9.-]', '_', host)}-{server.port}.json"
    # written beside and renamed: Prometheus must never read half a file
    descriptor, draft = tempfile.mkstemp(dir=folder, prefix=".gradwatch-", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump([entry], file, indent=2)
        os.chmod(draft, 0o644)  # mkstemp's 0600 would hide it from the user Prometheus runs as
        os.replace(draft, path)
    except BaseException:
        os.unlink(draft)
        raise
    return path


# -- WSGI ----------------------------------------------------------------------------------------------


def _routes(metrics: App, page: App) -> App:
    def app(environ: Mapping[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        try:
            return (metrics if environ.get("PATH_INFO") == "/metrics" else page)(environ, start_response)
        except Exception:
            health.scrape_failed("http", "a page could not be made", exc_info=True)
            return _text(start_response, "500 Internal Server Error", "This page could not be made; see the log.\n")

    return app


def _text(start_response: Callable[..., Any], status: str, text: str) -> Iterable[bytes]:
    body = text.encode()
    headers = [("Content-Type", "text/plain; charset=utf-8"), ("X-Content-Type-Options", "nosniff")]
    start_response(status, [*headers, ("Content-Length", str(len(body)))])
    return [body]


def _cached(app: App) -> App:
    """`app`, with its answers kept until there are new readings: a storm of scrapes costs one formatting.

    At most for a second: the counters of the process are not part of the readings.
    """
    lock = threading.Lock()
    answers: dict[tuple[Any, ...], tuple[int, float, tuple[Any, ...], list[bytes]]] = {}

    def cached(environ: Mapping[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        keys = ("REQUEST_METHOD", "QUERY_STRING", "HTTP_ACCEPT", "HTTP_ACCEPT_ENCODING")
        key = tuple(environ.get(name) for name in keys)
        with lock:  # also has a storm format once
            version, now = reader.version(), time.monotonic()
            known = answers.get(key)
            if known is None or known[0] != version or now - known[1] > _CACHE_SECONDS:
                if len(answers) >= 8:
                    answers.clear()
                started: list[Any] = []
                body = list(app(environ, lambda *args: started.extend(args)))
                known = answers[key] = (version, now, tuple(started), body)
        start_response(*known[2])
        return known[3]

    return cached


def _after_fork() -> None:
    global _servers_lock
    _servers_lock = threading.RLock()
    for server in _servers.values():  # port and target file are the parent's: `close` must not touch them here
        server._httpd = server.target_file = None
    _servers.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
