"""The endpoint that Prometheus scrapes: `serve`, and what it hands to whom.

A scrape formats numbers that the reader thread left behind: it never touches the training thread or the
device, and never waits for a step.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from gradwatch.errors import ServeError
from gradwatch.exporters.exposition import App, metrics_app
from gradwatch.exporters.hosts import checked_hosts, guarded
from gradwatch.exporters.httpd import Httpd
from gradwatch.exporters.labels import check_labels
from gradwatch.exporters.live import LivePage
from gradwatch.exporters.ports import DEFAULT_PORT, port_of
from gradwatch.exporters.targets import conclude_targets, keep_target, remove_target, write_target
from gradwatch.exporters.tls import server_context
from gradwatch.reading import process_end
from gradwatch.reading.health import health
from gradwatch.reading.reader import reader
from gradwatch.reading.run_name import run_name
from gradwatch.reading.text import clean


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
        self.port: int = httpd.port
        self.target_file: Path | None = None
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}.get(addr, f"[{addr}]" if ":" in addr else addr)
        self.url: str = f"{'https' if tls else 'http'}://{host}:{self.port}"
        self.metrics_url: str = self.url + "/metrics"

    def close(self) -> None:
        """Stops serving, frees the port and removes the target file. May be called twice."""
        self._close(keep_target_file=False)

    def _close_at_exit(self) -> None:
        self._close(keep_target_file=process_end.failed())

    def _close(self, *, keep_target_file: bool) -> None:
        with _servers_lock:
            if _servers.get((self.addr, self.port)) is self:
                del _servers[self.addr, self.port]
            httpd, self._httpd = self._httpd, None
        if httpd is None:
            return
        reader.cancel_at_exit(self._close_at_exit)
        httpd.stop()
        if self._live is not None:
            self._live.close()
        if self.target_file is not None and keep_target_file:
            keep_target(self.target_file)
        elif self.target_file is not None:
            try:
                remove_target(self.target_file)
            except OSError as exc:
                health.failed("server", f"the target file cannot be removed: {exc.strerror}")

    def __enter__(self) -> Server:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        self._close(keep_target_file=process_end.is_failure(error))

    def __repr__(self) -> str:
        return f"<gradwatch.Server {self.url}{'' if self._httpd else ' (closed)'}>"


#: Labels of a target that are set elsewhere.
_TAKEN = {
    "job": "it is the job_name of Prometheus' scrape configuration",
    "instance": "it is the address of the endpoint; advertise= changes the one that is written to file_sd",
}

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
    labels: Mapping[str, str] | None = None,
    allowed_hosts: Collection[str] = (),
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
      file_sd: folder for a Prometheus `file_sd` target file of this endpoint; removed by `close` and at the end of the
        process, but left there by a process that fails, so that Prometheus misses it.
      advertise: host name to write into that file; default: `addr`, or this host's name if `addr` is a
        wildcard.
      labels: further labels of every series, such as {"run": "lr-3e-4"}; also in the `file_sd` file, which names the
        run by itself (`gradwatch.reading.run_name`) unless `run` is given here.
      allowed_hosts: names by which clients may call the endpoint, beside those of this host; "*" is any. An
        endpoint on a loopback address refuses all others; one on another address only if names are given here.
      page: WSGI app for every path but `/metrics`; default: the live page of `gradwatch.exporters.live`.

    Raises:
      ConfigError: an argument is out of range, or two contradict each other.
      ServeError: the address, the certificate or the folder cannot be used.

    Example:
      >>> import gradwatch, urllib.request
      >>> server = gradwatch.serve(0)
      >>> with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics") as answer:
      ...     b"gradwatch_" in answer.read()
      True
      >>> server.close()
    """
    port = port_of(port, worker)
    context = server_context(certfile, keyfile, client_cafile)
    labels = {str(name): clean(value) for name, value in (labels or {}).items()}
    check_labels("labels", labels, _TAKEN)
    allowed_hosts = checked_hosts(allowed_hosts)
    options = (certfile, keyfile, client_cafile, layers, str(file_sd), advertise, labels, allowed_hosts, page)
    with _servers_lock:
        running = _servers.get((addr, port))
        if running is not None:
            if running._options == options:
                return running
            raise ServeError(
                f"port {port} on {addr} is already served by this process, with other options; "
                "close that server first (server.close()) or take another port"
            )
        metrics = metrics_app(layers, labels)
        live = LivePage() if page is None else None
        front = live if page is None else page
        assert front is not None
        try:
            httpd = Httpd(guarded(_routes(metrics, front), allowed_hosts), addr, port, context)
        except (OSError, OverflowError) as exc:
            if live is not None:
                live.close()
            raise _cannot_listen(addr, port, exc) from exc
        server = Server(httpd, addr, context is not None, options, live)
        _servers[addr, server.port] = server
    reader.at_exit(server._close_at_exit)
    if file_sd is not None:
        try:
            server.target_file = write_target(
                Path(file_sd),
                server.addr,
                server.port,
                advertise,
                tls=context is not None,
                labels={"run": run_name(), **labels},
            )
        except OSError as exc:
            server.close()
            raise ServeError(f"the target file cannot be written to {str(file_sd)!r}: {exc.strerror}") from exc
        reader.at_exit(conclude_targets)
    reader.poll_now(timeout_seconds=1.0)
    return server


def _cannot_listen(addr: str, port: int, exc: Exception) -> ServeError:
    code = getattr(exc, "errno", None)
    if code == errno.EADDRINUSE:
        return ServeError(
            f"port {port} on {addr} is taken; use port=0 for any free one, or the next: port={min(port + 1, 65535)}"
        )
    if code == errno.EACCES:
        return ServeError(f"port {port} needs more rights than this process has; use one above 1023, or port=0")
    return ServeError(f"cannot listen on {addr!r} port {port}: {getattr(exc, 'strerror', None) or exc}; check addr")


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


def _after_fork() -> None:
    global _servers_lock
    _servers_lock = threading.RLock()
    for server in _servers.values():  # port and target file are the parent's: `close` must not touch them here
        server._httpd = server.target_file = None
    _servers.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
