"""A small HTTP server for one WSGI app that keeps out of the way of the training beside it.

The standard library's server, with what it lacks next to a training loop: a slow or silent client is cut
off, a request is bounded in size, connections are bounded in number and in rate (each one takes the
interpreter lock from the training thread for a moment), and a TLS handshake holds up nobody but itself.
Clients beyond the bounds wait in the kernel's queue.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import os
import socket
import ssl
import threading
import time
import weakref
from collections.abc import Callable
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from gradwatch.reading.health import health

REQUEST_SECONDS = 5.0  # for a request to arrive, TLS handshake included
RESPONSE_SECONDS = 60.0  # for a connection as a whole
REQUEST_BYTES = 32 * 1024  # of request line and headers
MOST_CONNECTIONS = 32
REQUESTS_PER_SECOND = 10.0  # in the long run: each costs about a millisecond of the training's processor
BURST = 100  # requests that may come at once after a quiet time

_running: weakref.WeakSet[Httpd] = weakref.WeakSet()


class Httpd(ThreadingMixIn, WSGIServer):
    """Serves `app` at (addr, port) from a daemon thread until `stop`. Port 0 takes a free one.

    Raises:
      OSError: the address cannot be bound.
    """

    daemon_threads = True
    request_queue_size = 128
    port: int

    def __init__(self, app: Callable[..., Any], addr: str, port: int, context: ssl.SSLContext | None = None) -> None:
        info = socket.getaddrinfo(addr, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        self.address_family = info[0]
        self._context = context
        self._lock = threading.Lock()
        self._deadlines: dict[socket.socket, float] = {}
        self._slots = threading.Semaphore(MOST_CONNECTIONS)
        self._tokens, self._token_time = float(BURST), time.monotonic()
        self._stopping = False
        super().__init__((str(info[4][0]), port), _Handler)
        self.set_app(app)
        self._thread = threading.Thread(
            target=self.serve_forever, kwargs={"poll_interval": 0.2}, name="gradwatch-http", daemon=True
        )
        _running.add(self)
        self._thread.start()

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # HTTPServer's own would look the host up in the DNS, which can take long
        self.server_name = str(self.server_address[0])
        self.server_port = self.port = int(self.server_address[1])
        self.setup_environ()

    def stop(self) -> None:
        """Stops serving, frees the port and cuts off who is still connected. May be called twice."""
        self._stopping = True
        if self._thread.is_alive():  # it is not in a forked child, and would never answer
            self.shutdown()
        self.server_close()
        self._cut_off(lambda deadline: True)

    # -- the accepting thread --------------------------------------------------------------------------

    def get_request(self) -> tuple[Any, Any]:
        while not self._slots.acquire(timeout=0.1):
            self.service_actions()
            if self._stopping:
                raise OSError("stopping")
        try:
            self._wait_for_token()
            connection, address = self.socket.accept()
            if self._context is not None:
                # the handshake belongs to the connection's own thread: here it would block all others
                connection = self._context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        except BaseException:
            self._slots.release()
            raise
        with self._lock:
            self._deadlines[connection] = time.monotonic() + REQUEST_SECONDS
        return connection, address

    def _wait_for_token(self) -> None:
        now = time.monotonic()
        self._tokens = min(BURST, self._tokens + (now - self._token_time) * REQUESTS_PER_SECOND)
        self._token_time = now
        self._tokens -= 1.0
        if self._tokens < 0:
            time.sleep(-self._tokens / REQUESTS_PER_SECOND)

    def service_actions(self) -> None:
        now = time.monotonic()
        if self._cut_off(lambda deadline: deadline < now):
            health.scrape_failed("http", "a client was too slow and was cut off")

    def _cut_off(self, due: Callable[[float], bool]) -> int:
        with self._lock:
            late = [connection for connection, deadline in self._deadlines.items() if due(deadline)]
            for connection in late:
                self._deadlines[connection] = float("inf")  # once is enough; its thread does the rest
        for connection in late:
            with contextlib.suppress(OSError):  # it went away by itself
                # of the socket below TLS: a TLS shutdown would wait for the peer
                socket.socket.shutdown(connection, socket.SHUT_RDWR)
        return len(late)

    # -- the thread of one connection ------------------------------------------------------------------

    def request_arrived(self, connection: socket.socket) -> None:
        with self._lock:
            if connection in self._deadlines:
                self._deadlines[connection] = time.monotonic() + RESPONSE_SECONDS

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            known = self._deadlines.pop(request, None) is not None
        try:
            super().shutdown_request(request)
        finally:
            if known:
                self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not self._stopping:
            health.scrape_failed("http", "a request could not be answered")


class _Handler(WSGIRequestHandler):
    timeout = REQUEST_SECONDS  # of one socket operation
    server: Httpd

    def setup(self) -> None:
        super().setup()
        if isinstance(self.connection, ssl.SSLSocket):
            self.connection.do_handshake()
        self.rfile = _Bounded(self.rfile)  # type: ignore[assignment]

    def parse_request(self) -> bool:
        understood = super().parse_request()
        if understood:
            self.server.request_arrived(self.connection)
        return understood

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        health.scrape_failed("http", f"a request was refused with status {int(code)}")
        super().send_error(code, message, explain)

    def get_stderr(self) -> Any:
        return io.StringIO()  # a client that hangs up is no news for the training's log

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a scrape every few seconds would fill the training's log."""


class _Bounded:
    """The request as a file that ends in an error beyond `REQUEST_BYTES`."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._left = REQUEST_BYTES

    def readline(self, limit: int = -1) -> bytes:
        line: bytes = self._file.readline(self._left + 1 if limit < 0 else min(limit, self._left + 1))
        self._left -= len(line)
        if self._left < 0:
            raise http.client.LineTooLong("request")  # answered with status 431
        return line

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _after_fork() -> None:
    for server in list(_running):
        server.socket.close()  # the child's copy would keep the port taken after the parent has closed it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
