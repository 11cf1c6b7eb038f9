"""A small HTTP server for one WSGI app that keeps out of the way of the training beside it.

One thread accepts, reads requests and writes answers, without ever waiting for one client; a few others call the
app. So a client that sends nothing, half a request or a byte now and then, or that does not read its answer, costs a
socket and no thread:

- A request has `REQUEST_SECONDS` to arrive as a whole, TLS handshake included, and is bounded in size.
- Clients that have not sent a whole request are bounded in number; for a new one, the one that has been idle for the
  longest goes.
- Whole requests are answered in turn, at a bounded rate: each takes the interpreter lock from the training thread for
  a moment. So are new connections. Who comes beyond that waits in the kernel's queue.
"""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import selectors
import socket
import ssl
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

from gradwatch.exporters.clients import Bucket, Connection
from gradwatch.exporters.requests import answer, missing_bytes, refusal
from gradwatch.reading.health import health

REQUEST_SECONDS = 3.0  # for a request to arrive, TLS handshake included
RESPONSE_SECONDS = 60.0  # for the answer to be made and taken
REQUEST_BYTES = 32 * 1024  # of request line, headers and body
MOST_IDLE = 128  # clients that have not sent a whole request
MOST_CONNECTIONS = 32  # clients whose request is whole and whose answer is not yet taken
MOST_THREADS = 8  # that call the app
REQUESTS_PER_SECOND = 10.0  # in the long run: each costs about a millisecond of the training's processor
BURST = 100  # requests that may come at once after a quiet time
CONNECTIONS_PER_SECOND = 200.0  # in the long run: each costs about 50 microseconds
CONNECTION_BURST = 2000

_FAREWELL_SECONDS = 1.0  # for a client to hang up after its answer
_STUCK_SECONDS = 1.0  # an answer of which nothing was taken for so long may be dropped for another client
_PAUSE_SECONDS = 0.2  # before the next look when the process is out of file descriptors
_BACKLOG = 1024
_NO_MORE_FILES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

_running: weakref.WeakSet[Httpd] = weakref.WeakSet()


class Httpd:
    """Serves `app` at (addr, port) from daemon threads until `stop`. Port 0 takes a free one.

    Args:
      app: a WSGI app; its whole answer is gathered before it is sent, so it must end.
      context: for HTTPS.

    Attributes:
      port: it listens on.
      socket: it listens with.

    Raises:
      OSError: the address cannot be bound.
    """

    def __init__(self, app: Callable[..., Any], addr: str, port: int, context: ssl.SSLContext | None = None) -> None:
        family, _, _, _, address = socket.getaddrinfo(addr, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        self._app = app
        self._context = context
        self.socket: socket.socket = socket.socket(family, socket.SOCK_STREAM)
        try:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.socket.bind(address)
            self.socket.listen(_BACKLOG)
        except BaseException:
            self.socket.close()
            raise
        self.socket.setblocking(False)
        self.port: int = int(self.socket.getsockname()[1])
        self._environ = {
            "SERVER_NAME": str(address[0]),
            "SERVER_PORT": str(self.port),
            "GATEWAY_INTERFACE": "CGI/1.1",
            "SCRIPT_NAME": "",
            "REMOTE_HOST": "",
            "CONTENT_LENGTH": "",
            **({"HTTPS": "on"} if context is not None else {}),
        }
        self._idle: dict[Connection, None] = {}  # not yet a whole request, or answered: oldest first
        self._busy: dict[Connection, None] = {}  # from the whole request to the last byte of its answer
        self._ready: deque[Connection] = deque()  # those of the busy ones that wait for the app
        self._jobs: queue.SimpleQueue[Connection | None] = queue.SimpleQueue()
        self._answers: deque[tuple[Connection, bytes]] = deque()
        self._calls = 0  # of the app, under way
        self._threads: list[threading.Thread] = []
        self._requests = Bucket(REQUESTS_PER_SECOND, BURST)
        self._connections = Bucket(CONNECTIONS_PER_SECOND, CONNECTION_BURST)
        self._accept_time = 0.0  # no new client before
        self._accepting = True
        self._stopping = False
        self._selector = selectors.DefaultSelector()
        self._wake_socket, self._waker = socket.socketpair()
        self._wake_socket.setblocking(False)
        self._waker.setblocking(False)
        self._selector.register(self._wake_socket, selectors.EVENT_READ)
        self._selector.register(self.socket, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="gradwatch-http", daemon=True)
        _running.add(self)
        self._thread.start()

    def stop(self) -> None:
        """Stops serving, frees the port and cuts off who is still connected. May be called twice."""
        self._stopping = True
        if self._thread.is_alive():  # it is not in a forked child
            self._wake()
            self._thread.join(2.0)
        for _ in self._threads:
            self._jobs.put(None)
        self._close_all()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # full: it wakes up anyway; closed: it is gone
            self._waker.send(b"\0")

    def _close_all(self) -> None:
        for connection in [*self._idle, *self._busy]:
            connection.socket.close()
        for resource in (self.socket, self._wake_socket, self._waker, self._selector):
            resource.close()

    # -- the one thread that waits for the network -----------------------------------------------------

    def _run(self) -> None:
        while not self._stopping:
            try:
                for key, _ in self._selector.select(self._patience()):
                    if key.fileobj is self._wake_socket:
                        with contextlib.suppress(OSError):
                            self._wake_socket.recv(4096)
                    elif key.fileobj is self.socket:
                        self._accept()
                    elif key.data in self._idle or key.data in self._busy:  # else dropped a moment ago
                        self._advance(key.data)
                while self._answers:
                    self._calls -= 1
                    self._begin_answer(*self._answers.popleft())
                self._expire()
                self._call_app()
                self._listen_or_not()
            except Exception:
                if not self._stopping:  # else its sockets were closed under it
                    health.scrape_failed("http", "the endpoint's thread met an error and goes on", exc_info=True)
                time.sleep(_PAUSE_SECONDS)

    def _patience(self) -> float | None:
        """Seconds until there is something to do though no client stirs; None: nothing."""
        if not (self._idle or self._busy or not self._accepting):
            return None
        if self._ready and self._calls < MOST_THREADS:
            return min(0.1, self._requests.seconds())
        return 0.1

    def _accept(self) -> None:
        for _ in range(64):  # then it is the others' turn
            if not self._may_accept():
                return
            try:
                accepted, address = self.socket.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _NO_MORE_FILES:
                    self._accept_time = time.monotonic() + _PAUSE_SECONDS
                    for connection in list(self._idle):
                        self._drop(connection, "an idle client was cut off: the process is out of file descriptors")
                return
            self._connections.take()
            self._make_room()
            connection = Connection(accepted, address)
            try:
                accepted.setblocking(False)
                accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if self._context is not None:
                    connection.socket = self._context.wrap_socket(
                        accepted, server_side=True, do_handshake_on_connect=False
                    )
                    connection.handshaking = True
                self._selector.register(connection.socket, selectors.EVENT_READ, connection)
            except (OSError, ValueError):  # it went away again
                accepted.close()
                connection.socket.close()
                continue
            self._idle[connection] = None
            connection.deadline = time.monotonic() + REQUEST_SECONDS
            self._advance(connection)  # most send their request at once

    def _may_accept(self) -> bool:
        return (
            (len(self._busy) < MOST_CONNECTIONS or self._stuck() is not None)
            and self._connections.seconds() <= 0
            and time.monotonic() >= self._accept_time
        )

    def _stuck(self) -> Connection | None:
        """The client that has not read its answer for the longest, if for long enough to be cut off."""
        late = time.monotonic() - _STUCK_SECONDS
        stuck = [c for c in self._busy if c.answer is not None and c.progress_time < late]
        return min(stuck, key=lambda c: c.progress_time, default=None)

    def _make_room(self) -> None:
        """Before one more client: those that deserve it less go."""
        stuck = self._stuck() if len(self._busy) >= MOST_CONNECTIONS else None
        if stuck is not None:
            self._drop(stuck, "a client did not read its answer and was cut off")
        if len(self._idle) >= MOST_IDLE:
            self._drop(next(iter(self._idle)), "an idle client was cut off for a new one")

    def _listen_or_not(self) -> None:
        """Looks at new clients only while they may come, or an unanswered one would keep this thread busy."""
        wanted = self._may_accept()
        if wanted != self._accepting:
            self._accepting = wanted
            if wanted:
                self._selector.register(self.socket, selectors.EVENT_READ)
            else:
                self._selector.unregister(self.socket)

    def _advance(self, connection: Connection) -> None:
        """Goes on with a client as far as it goes without waiting."""
        try:
            if connection.handshaking:
                connection.socket.do_handshake()  # type: ignore[union-attr]
                connection.handshaking = False
                self._selector.modify(connection.socket, selectors.EVENT_READ, connection)
            if connection.answer is None:
                self._receive(connection)
            elif connection.answer:
                self._send(connection)
            elif not connection.socket.recv(65536):  # it hangs up, as it should
                self._close(connection)
        except (ssl.SSLWantReadError, BlockingIOError):
            self._selector.modify(connection.socket, selectors.EVENT_READ, connection)
        except ssl.SSLWantWriteError:
            self._selector.modify(connection.socket, selectors.EVENT_WRITE, connection)
        except OSError:  # it went away, or does not speak TLS
            if connection.answer is None:
                health.scrape_failed("http", "a client went away before its answer")
            self._close(connection)

    def _receive(self, connection: Connection) -> None:
        while True:
            part = connection.socket.recv(REQUEST_BYTES)
            connection.received += part
            missing = missing_bytes(connection.received)
            if len(connection.received) + max(0, missing - 1) > REQUEST_BYTES:
                line = b"\n" not in connection.received
                self._make_busy(connection)
                self._begin_answer(
                    connection, refusal("414 URI Too Long" if line else "431 Request Header Fields Too Large")
                )
                return
            if not missing or (not part and b"\n" in connection.received):
                self._make_busy(connection)
                self._ready.append(connection)
                # nothing more is read from it: bytes that come now need not wake this thread
                self._selector.unregister(connection.socket)
                connection.registered = False
                return
            if not part:
                self._close(connection)
                return

    def _make_busy(self, connection: Connection) -> None:
        self._idle.pop(connection, None)
        self._busy[connection] = None
        connection.deadline = time.monotonic() + RESPONSE_SECONDS

    def _begin_answer(self, connection: Connection, whole: bytes) -> None:
        if connection not in self._busy:
            return  # cut off meanwhile
        connection.answer = memoryview(whole)
        connection.progress_time = time.monotonic()
        if not connection.registered:
            self._selector.register(connection.socket, selectors.EVENT_WRITE, connection)
            connection.registered = True
        else:
            self._selector.modify(connection.socket, selectors.EVENT_WRITE, connection)
        self._advance(connection)

    def _send(self, connection: Connection) -> None:
        assert connection.answer is not None
        while connection.answer:
            try:
                sent = connection.socket.send(connection.answer[:65536])
            except BlockingIOError:
                self._selector.modify(connection.socket, selectors.EVENT_WRITE, connection)
                return
            connection.answer = connection.answer[sent:]
            connection.progress_time = time.monotonic()
        self._busy.pop(connection, None)
        # closed at once, the kernel would answer what the client still sends by a reset that overtakes the answer
        socket.socket.shutdown(connection.socket, socket.SHUT_WR)
        self._idle[connection] = None
        connection.deadline = time.monotonic() + _FAREWELL_SECONDS
        self._selector.modify(connection.socket, selectors.EVENT_READ, connection)

    def _expire(self) -> None:
        now = time.monotonic()
        for connection in [c for c in (*self._idle, *self._busy) if c.deadline < now]:
            self._drop(connection, "a client was too slow and was cut off")

    def _drop(self, connection: Connection, why: str) -> None:
        if connection.answer is None or connection.answer:  # else it was answered and did not hang up
            health.scrape_failed("http", why)
        self._close(connection)

    def _close(self, connection: Connection) -> None:
        self._idle.pop(connection, None)
        self._busy.pop(connection, None)
        if connection.registered:
            self._selector.unregister(connection.socket)
            connection.registered = False
        connection.socket.close()

    # -- the threads that call the app -----------------------------------------------------------------

    def _call_app(self) -> None:
        while self._ready and self._calls < MOST_THREADS:
            if self._ready[0] not in self._busy:
                self._ready.popleft()  # cut off meanwhile
                continue
            if not self._requests.take():
                return
            if self._calls >= len(self._threads):
                thread = threading.Thread(target=self._work, name="gradwatch-http-app", daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # out of threads: those that run must do
                    if not self._threads:
                        raise
                else:
                    self._threads.append(thread)
            self._calls += 1
            self._jobs.put(self._ready.popleft())

    def _work(self) -> None:
        while (connection := self._jobs.get()) is not None:
            try:
                whole = answer(self._app, self._environ, bytes(connection.received), connection.address)
            except Exception:
                health.scrape_failed("http", "a request could not be answered", exc_info=True)
                whole = b"HTTP/1.0 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n"
            self._answers.append((connection, whole))
            self._wake()


def _after_fork() -> None:
    # the child's copies would keep the port taken, and clients connected, after the parent has closed them
    for server in list(_running):
        server._close_all()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
