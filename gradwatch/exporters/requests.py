"""The bytes of one HTTP request -> the bytes of its answer, by a WSGI app. Knows no socket."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler

from gradwatch.reading.health import health

_END_OF_HEAD = re.compile(rb"\r?\n\r?\n")
_CONTENT_LENGTH = re.compile(rb"^content-length:[ \t]*([0-9]{1,9})[ \t]*\r?$", re.IGNORECASE | re.MULTILINE)


def missing_bytes(received: bytes | bytearray) -> int:
    """How many bytes of the request are still to come, as far as is known; 0: it is whole."""
    end = _END_OF_HEAD.search(received)
    if end is None:
        return 1
    length = _CONTENT_LENGTH.search(received, 0, end.start() + 1)
    return max(0, end.end() + int(length[1]) - len(received)) if length else 0


def answer(app: Callable[..., Any], environ: Mapping[str, str], received: bytes, address: tuple[Any, ...]) -> bytes:
    """What `app` answers to the request `received` from `address`; a refusal if it is no request.

    Args:
      app: its whole answer is gathered before the first byte is sent.
      environ: what the server says of itself (SERVER_NAME and so on).
    """
    return _Handler(app, environ, received, address).wfile.getvalue()


def refusal(status: str) -> bytes:
    """An answer without a body, for a request that is not read to its end."""
    health.scrape_failed("http", f"a request was refused with status {status.split()[0]}")
    return f"HTTP/1.0 {status}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".encode()


class _Handler(WSGIRequestHandler):
    """The standard library's request handler, between two buffers."""

    wfile: io.BytesIO

    def __init__(
        self, app: Callable[..., Any], environ: Mapping[str, str], received: bytes, address: tuple[Any, ...]
    ) -> None:
        self._received = received
        server: Any = SimpleNamespace(base_environ=dict(environ), get_app=lambda: app)
        no_socket: Any = None  # setup makes two buffers instead
        super().__init__(no_socket, address, server)

    def setup(self) -> None:
        self.rfile = io.BytesIO(self._received)
        self.wfile = io.BytesIO()

    def finish(self) -> None:
        """Nothing: both buffers stay readable."""

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        health.scrape_failed("http", f"a request was refused with status {int(code)}")
        super().send_error(code, message, explain)

    def get_stderr(self) -> Any:
        return io.StringIO()  # a page's traceback was counted where the page is called

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a scrape every few seconds would fill the training's log."""
