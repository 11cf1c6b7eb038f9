"""The live page at `/`: one run, for one person, in a browser that need not reach the internet.

The plots are drawn in the browser by BokehJS, out of the files that the Python package `bokeh` (extra `live`)
brings. The training process never imports that package: it only hands out its files and numbers.

All addresses in the page are relative, so it works behind any proxy that puts a path before them.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from gradwatch.errors import install_hint
from gradwatch.exporters.live.store import Store
from gradwatch.exporters.metrics import version_of

_BOKEH_FILES = ("bokeh.min.js", "bokeh-api.min.js")

#: Nothing from elsewhere, no inline script. Bokeh writes style elements, hence 'unsafe-inline' for styles.
#: A notebook on this host may show the page in a frame.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'self' http://localhost:* http://127.0.0.1:*"
)

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

StartResponse = Callable[..., Any]


class LivePage:
    """WSGI app: the page at `/`, its numbers at `/data.json`, its files beside them.

    It gathers what it shows from the moment it is made until `close`. Without the extra `live` it gathers
    nothing, and `/` says how to install it.
    """

    def __init__(self) -> None:
        self._bokeh = _bokeh_folder()
        self._store = Store() if self._bokeh is not None else None
        self._version = _bokeh_version()

    def close(self) -> None:
        """Stops gathering."""
        if self._store is not None:
            self._store.close()

    def __call__(self, environ: Mapping[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO") or "/"
        if environ.get("REQUEST_METHOD", "GET") not in ("GET", "HEAD"):
            return _answer(start_response, "405 Method Not Allowed", b"Only GET.\n")
        if self._store is None or self._bokeh is None:
            if path == "/":
                return _answer(start_response, "200 OK", _NO_EXTRA.format(hint=install_hint("live")).encode())
        elif path == "/data.json":
            return _answer(start_response, "200 OK", self._data(environ), "application/json")
        elif path in _FILES:
            content = (files(__package__) / "static" / _FILES[path]).read_bytes()
            content = content.replace(b"{{bokeh}}", f"bokeh/{self._version}".encode())
            content = content.replace(b"{{version}}", re.sub(r"[^\w.+-]", "", version_of("gradwatch")).encode())
            return _answer(start_response, "200 OK", content, _TYPES[Path(_FILES[path]).suffix])
        else:
            for name in _BOKEH_FILES:
                if path == f"/bokeh/{self._version}/{name}":  # the version is in the path, so it may be kept
                    content = (self._bokeh / name).read_bytes()
                    return _answer(start_response, "200 OK", content, _TYPES[".js"], keep=True)
        return _answer(start_response, "404 Not Found", b"Nothing here. Metrics are at /metrics, the page is at /.\n")

    def _data(self, environ: Mapping[str, Any]) -> bytes:
        assert self._store is not None
        try:
            query = parse_qs(str(environ.get("QUERY_STRING", "")), max_num_fields=10)
        except ValueError:
            query = {}
        since = (query.get("since") or [""])[-1]
        page = self._store.page(
            monitor=(query.get("monitor") or [""])[-1],
            key=(query.get("key") or [""])[-1],
            since=int(since) if re.fullmatch(r"[0-9]{1,15}", since) else 0,
        )
        # "<" only as an escape: the answer stays data even where somebody puts it into a page
        return json.dumps(page, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c").encode()


_FILES = {"/": "page.html", "/page.css": "page.css", "/page.js": "page.js", "/icon.svg": "icon.svg"}

_NO_EXTRA = """gradwatch: metrics for Prometheus are at /metrics.

The live page is not installed. Install it with:

    {hint}

and start the training again.
"""


def _bokeh_folder() -> Path | None:
    """Where the package `bokeh` keeps BokehJS; found without importing it."""
    try:
        spec = importlib.util.find_spec("bokeh")
    except (ImportError, ValueError):
        return None
    for location in (spec.submodule_search_locations or ()) if spec else ():
        folder = Path(location) / "server" / "static" / "js"
        if all((folder / name).is_file() for name in _BOKEH_FILES):
            return folder
    return None


def _bokeh_version() -> str:
    try:
        return re.sub(r"[^\w.+-]", "", metadata.version("bokeh")) or "0"
    except metadata.PackageNotFoundError:
        return "0"


def _answer(
    start_response: StartResponse,
    status: str,
    body: bytes,
    content_type: str = "text/plain; charset=utf-8",
    *,
    keep: bool = False,
) -> Iterable[bytes]:
    headers = [
        ("Content-Type", content_type),
        ("Content-Length", str(len(body))),
        ("Cache-Control", "private, max-age=31536000, immutable" if keep else "no-store"),
        ("Content-Security-Policy", POLICY),
        ("X-Content-Type-Options", "nosniff"),
        ("Referrer-Policy", "no-referrer"),
    ]
    start_response(status, headers)
    return [body]
