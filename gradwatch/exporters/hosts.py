"""Which names an endpoint answers to.

A page in a browser can have its own name point to 127.0.0.1 ("DNS rebinding") and then read what listens there, as if
it were its own. The Host header still holds the page's name, so an endpoint of this host answers to names of this host
only.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from gradwatch.errors import ConfigError
from gradwatch.exporters.exposition import App
from gradwatch.reading.health import health
from gradwatch.reading.text import clean

_LOOPBACK_NAMES = ("localhost", "localhost.localdomain")
_NAME = re.compile(r"[a-z0-9._-]+|[0-9a-f:.]+")


def checked_hosts(allowed_hosts: Collection[str]) -> tuple[str, ...]:
    """The names in `allowed_hosts` as they are compared: lower case, no brackets, no dot at the end.

    Raises:
      ConfigError: one of them is no host name or address; a port and a scheme do not belong there.
    """
    if isinstance(allowed_hosts, str):
        raise ConfigError(f"allowed_hosts must be a list of names, got one text; write [{allowed_hosts!r}]")
    names = []
    for given in allowed_hosts:
        name = given.lower().strip("[]").rstrip(".") if isinstance(given, str) else ""
        if name != "*" and (not _NAME.fullmatch(name) or (":" in name and not _is_address(name))):
            raise ConfigError(
                f"allowed_hosts must hold host names without scheme and port, such as 'trainer-1.example', or '*', "
                f"got {clean(given)!r}"
            )
        names.append(name)
    return tuple(names)


def guarded(app: App, allowed_hosts: Collection[str]) -> App:
    """`app`, which answers 403 to a request whose Host header names somebody else.

    Without a Host header, which every browser sends, it answers. An endpoint that listens on another address than
    loopback answers to every name, unless `allowed_hosts` says which.

    Args:
      app: asked with the address that the endpoint listens on as SERVER_NAME.
      allowed_hosts: out of `checked_hosts`.
    """
    if "*" in allowed_hosts:
        return app
    own = socket.gethostname().lower()
    names = {*_LOOPBACK_NAMES, own, own.split(".")[0], *allowed_hosts}

    def guard(environ: Mapping[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        host, bound_to = _name_of(str(environ.get("HTTP_HOST", ""))), str(environ["SERVER_NAME"])
        if not allowed_hosts and not _is_loopback(bound_to):
            return app(environ, start_response)
        if not host or host in names or host == bound_to or host.endswith(".localhost") or _is_loopback(host):
            return app(environ, start_response)
        health.scrape_failed("http", "a request for another host's name was refused; serve(allowed_hosts=...) adds one")
        body = (
            f"403: this endpoint does not answer to the name {clean(host)!r}, so that no web page can read it through "
            "a name of its own.\n"
            f"It answers to localhost, {own} and what gradwatch.serve(allowed_hosts=[...]) names.\n"
        ).encode()
        headers = [("Content-Type", "text/plain; charset=utf-8"), ("X-Content-Type-Options", "nosniff")]
        start_response("403 Forbidden", [*headers, ("Content-Length", str(len(body)))])
        return [body]

    return guard


def _name_of(header: str) -> str:
    """The name in a Host header, as names are compared; a port and an IPv6 address' brackets are left out."""
    header = header.strip().lower()
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0].rstrip(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_loopback(name: str) -> bool:
    if not _is_address(name):
        return False
    address = ipaddress.ip_address(name)
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)
