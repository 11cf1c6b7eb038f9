"""Channels that post JSON: any webhook, and Slack's."""

from __future__ import annotations

import http.client
import json
import math
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from gradwatch.errors import ConfigError
from gradwatch.exporters.notify.channel import Channel, SendError, kind_of_error
from gradwatch.reading.alerts import Alert
from gradwatch.reading.text import redact

_MARKS = {"info": "ℹ️", "warning": "⚠️", "critical": "🚨"}


class Webhook(Channel):
    """Sends each alert as a POST of JSON: `Alert.as_json()` and the message as `text`.

    An answer 2xx is a success; 408, 429 and 5xx and network errors are tried again; anything else, a
    redirection too, has failed.

    Args:
      url: http or https.
      headers: further headers, for example an authorization; never logged.
      limits: see `Channel`.

    Raises:
      ConfigError: the URL is invalid, or a limit is out of range.
    """

    def __init__(self, url: str, *, headers: Mapping[str, str] | None = None, **limits: Any) -> None:
        self._url = _http_url(url)
        self._headers = {"Content-Type": "application/json", "User-Agent": "gradwatch", **(headers or {})}
        super().__init__("webhook", redact(url), **limits)

    def _send(self, alert: Alert, text: str) -> None:
        self._post({**alert.as_json(), "text": text})

    def _post(self, payload: Mapping[str, Any]) -> None:
        body = json.dumps(payload, allow_nan=False).encode()
        request = urllib.request.Request(self._url, body, self._headers, method="POST")
        try:
            with _OPENER.open(request, timeout=self._timeout):
                return
        except urllib.error.HTTPError as error:
            with error:
                again = error.code in (408, 429) or error.code >= 500
                pause = _seconds(error.headers.get("Retry-After"))
                raise SendError(f"status {error.code}", again=again, pause_seconds=pause) from None
        except (OSError, http.client.HTTPException) as error:
            # only the kind of error: its text can hold the URL
            cause = error.reason if isinstance(error, urllib.error.URLError) else error
            raise SendError(kind_of_error(cause), again=True) from None
        except ValueError as error:
            raise SendError(kind_of_error(error), again=False) from None


class Slack(Webhook):
    """Posts to a Slack incoming webhook (also to the many services that accept its format).

    Args and errors as for `Webhook`.
    """

    def __init__(self, url: str, **limits: Any) -> None:
        super().__init__(url, **limits)
        self.channel = "slack"

    def _send(self, alert: Alert, text: str) -> None:
        mark = "✅" if alert.phase == "resolved" else _MARKS[alert.severity]
        # escaped, or a layer called <!channel> would call everybody
        self._post({"text": f"{mark} *{_slack(alert.title)}*\n{_slack(text)}"})


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirection would carry the message, and its authorization, to somewhere else."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)


def _http_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - raises for an invalid port
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.username is None
    except (ValueError, AttributeError):
        good = False
    if not good or any(c.isspace() or not c.isprintable() for c in url):
        shown = redact(url) if isinstance(url, str) else repr(type(url))
        raise ConfigError(
            f"url must be an http(s) URL without a user name, got {shown}; "
            "an authorization goes into headers={'Authorization': ...}"
        )
    return url


def _slack(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _seconds(value: str | None) -> float:
    try:
        seconds = float(value or 0)
    except ValueError:
        return 0.0  # a date
    return seconds if 0 <= seconds < math.inf else 0.0
