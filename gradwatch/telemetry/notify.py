"""Alerts as messages to people: a webhook, Slack, or any service that `apprise` knows.

    gradwatch.Monitor(on_alert=[gradwatch.notify.Slack("https://hooks.slack.com/services/...")])

A channel is an alert sink. It takes an alert at once and sends it from a thread of its own, so a dead or
slow endpoint costs the training nothing. What it does with an alert, in this order:

1. Below `min_severity` it is ignored.
2. For each monitor and kind, one message in `every_seconds`; what comes between is counted as suppressed
   and the next message says how many. A severity above that of the last message always passes.
3. A "resolved" alert is sent if its "fired" was sent while the episode was under way.
4. Sending is tried `attempts` times, with growing pauses; then it has failed.

Every message ends in `gradwatch_notifications_total{channel,outcome}`. No URL, path, user name or password
is logged, only scheme and host (of an `apprise` URL, whose host can be a token, only the scheme).
"""

from __future__ import annotations

import abc
import contextlib
import http.client
import json
import logging
import math
import random
import threading
import time
import urllib.error
import urllib.request
import weakref
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from gradwatch.errors import ConfigError, MissingExtra
from gradwatch.telemetry.alerts import SEVERITIES, Alert
from gradwatch.telemetry.health import health
from gradwatch.telemetry.reader import reader
from gradwatch.telemetry.text import clean, redact
from gradwatch.telemetry.worker import Worker

_FIRST_PAUSE_SECONDS = 1.0  # before the second attempt; twice as long before each further one
_LONGEST_PAUSE_SECONDS = 60.0  # also of what a server asks for
_EXIT_SECONDS = 5.0  # for the last messages when the process ends
_MARKS = {"info": "ℹ️", "warning": "⚠️", "critical": "🚨"}


class SendError(Exception):
    """A message was not taken. The text holds no secret.

    Attributes:
      again: whether another attempt makes sense.
      pause_seconds: how long the server asks to wait; 0.0 if it does not say.
    """

    def __init__(self, reason: str, *, again: bool, pause_seconds: float = 0.0) -> None:
        super().__init__(reason)
        self.again = again
        self.pause_seconds = pause_seconds


class Channel(abc.ABC):
    """Base of the channels; a subclass says how one message is sent (`_send`).

    Args:
      channel: its name in the metrics.
      shown: where it sends to, as it may be logged.
      min_severity: "info", "warning" or "critical"; alerts below it are ignored.
      every_seconds: for each monitor and kind, at most one message in this time; 0 = no limit.
      recovery: also say when it is over.
      timeout_seconds: for one attempt, > 0.
      attempts: tries for one message, >= 1.
      capacity: messages that may wait; further ones have failed.

    Raises:
      ConfigError: an argument is out of range.
    """

    def __init__(
        self,
        channel: str,
        shown: str,
        *,
        min_severity: str = "warning",
        every_seconds: float = 300.0,
        recovery: bool = True,
        timeout_seconds: float = 10.0,
        attempts: int = 4,
        capacity: int = 100,
    ) -> None:
        if min_severity not in SEVERITIES:
            raise ConfigError(f"min_severity must be one of {', '.join(SEVERITIES)}, got {min_severity!r}")
        if not every_seconds >= 0:
            raise ConfigError(f"every_seconds must be >= 0, got {every_seconds}; 0 sends every alert")
        if not 0 < timeout_seconds < math.inf:
            raise ConfigError(f"timeout_seconds must be > 0, got {timeout_seconds}")
        if attempts < 1 or capacity < 1:
            raise ConfigError(f"attempts and capacity must be >= 1, got {attempts} and {capacity}")
        self.channel = channel
        self._shown = shown
        self._min_rank = SEVERITIES.index(min_severity)
        self._every = every_seconds
        self._recovery = recovery
        self._timeout = timeout_seconds
        self._attempts = attempts
        self._lock = threading.Lock()
        self._said: dict[tuple[str, str], _Said] = {}
        self._ending = threading.Event()
        self._worker: Worker[tuple[Alert, str]] = Worker(self._deliver, f"gradwatch-{channel}", capacity)
        _channels.add(self)

    def __call__(self, alert: Alert) -> None:
        """Takes an alert, as `on_alert` hands it over. Returns at once."""
        with self._lock:
            note = self._admit(alert)
        reader.at_exit(_flush_at_exit)
        if note is not None and not self._worker.put((alert, note)):
            health.notified(self.channel, "failed")
            health.failed("notify", f"too many messages wait for {self._shown}: one is dropped", key=self._shown)

    def flush(self, timeout_seconds: float) -> bool:
        """Waits until all messages are sent or given up; False if that takes longer."""
        return self._worker.flush(timeout_seconds)

    def test(self) -> None:
        """Sends one test message now, in one attempt, whatever the limits.

        Raises:
          SendError: it was not taken; the text says why, without the URL.
        """
        alert = Alert(
            kind="test",
            monitor="gradwatch",
            step=0,
            norm=0.0,
            threshold=0.0,
            message="This is a test message of gradwatch. Nothing exploded.",
            severity="info",
            time=time.time(),
            active=False,
        )
        self._send(alert, alert.message)

    def __repr__(self) -> str:
        return f"<gradwatch.notify.{type(self).__name__} {self._shown}>"

    @abc.abstractmethod
    def _send(self, alert: Alert, text: str) -> None:
        """Sends one message; raises SendError if it was not taken."""

    def _admit(self, alert: Alert) -> str | None:
        """What to add to the message, or None if it is not to be sent. Called with the lock held."""
        key = (alert.monitor, alert.kind)
        said = self._said.get(key)
        if alert.phase == "resolved":
            if said is None or not said.open:
                return None
            said.open = False
            return "" if self._recovery else None
        rank = SEVERITIES.index(alert.severity)
        if rank < self._min_rank:
            return None
        now = time.monotonic()
        if said is not None and now - said.time < self._every and rank <= said.rank:
            said.quiet += 1
            health.notified(self.channel, "suppressed")
            return None
        quiet = said.quiet if said is not None else 0
        if len(self._said) >= 1000:  # names that are new for ever must not fill the memory
            self._said.clear()
        self._said[key] = _Said(now, rank, alert.active)
        return f" {quiet} more alerts of this kind since the last message." if quiet else ""

    def _deliver(self, item: tuple[Alert, str]) -> None:
        alert, note = item
        pause = _FIRST_PAUSE_SECONDS
        for attempt in range(1, self._attempts + 1):
            try:
                self._send(alert, alert.message + note)
            except SendError as error:
                reason = str(error)
                if not error.again or attempt == self._attempts:
                    break
                wait = max(pause * random.uniform(0.8, 1.2), error.pause_seconds)
                if self._ending.wait(min(wait, _LONGEST_PAUSE_SECONDS)):
                    break  # the process ends: no time for another attempt
                pause *= 2
            else:
                health.notified(self.channel, "sent")
                return
        health.notified(self.channel, "failed")
        health.failed("notify", f"no message to {self._shown}: {reason}", key=self._shown)


class _Said:
    """The last message about one kind of one monitor."""

    def __init__(self, when: float, rank: int, open_: bool) -> None:
        self.time, self.rank, self.open = when, rank, open_
        self.quiet = 0


_channels: weakref.WeakSet[Channel] = weakref.WeakSet()


def _flush_at_exit() -> None:
    """Gives all channels together a few seconds for their last messages, half of them with retries."""
    channels = list(_channels)
    end = time.monotonic() + _EXIT_SECONDS
    for channel in channels:
        channel.flush(max(0.0, end - time.monotonic() - _EXIT_SECONDS / 2))
    for channel in channels:
        channel._ending.set()
    for channel in channels:
        channel.flush(max(0.0, end - time.monotonic()))
        channel._ending.clear()


class Webhook(Channel):
    """Sends each alert as a POST of JSON: `Alert.as_json()` and the message as `text`.

    An answer 2xx is a success; 408, 429 and 5xx and network errors are tried again; anything else, a
    redirection too, has failed.

    Args:
      url: http or https.
      headers: further headers, for example an authorization; never logged.
      limits: see `Channel`.

    Raises:
      ConfigError: the URL is none, or a limit is out of range.
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
            raise SendError(_kind(cause), again=True) from None
        except ValueError as error:
            raise SendError(_kind(error), again=False) from None


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


class Apprise(Channel):
    """Sends through the `apprise` package: mail, Telegram, Teams, Discord and a hundred more services.

    Args:
      urls: in apprise's form, for example "mailto://user:password@example.org".
      limits: see `Channel`; the timeout of one attempt is set in the URL (`?cto=4&rto=4`, seconds).

    Raises:
      MissingExtra: the package is not installed (extra `notify`).
      ConfigError: apprise does not understand a URL, or a limit is out of range.
    """

    def __init__(self, *urls: str, **limits: Any) -> None:
        try:
            import apprise
        except ImportError:
            raise MissingExtra("apprise", "notify", "gradwatch.notify.Apprise") from None
        if not urls:
            raise ConfigError('Apprise needs at least one URL, for example "mailto://user:password@example.org"')
        with _muted():
            self._apprise = apprise.Apprise(asset=_in_this_thread(apprise))
            for url in urls:
                if not self._apprise.add(url):
                    raise ConfigError(
                        f"apprise does not understand the URL that begins with {_scheme(url)!r}; "
                        "see the services and their URLs in apprise's documentation"
                    )
        self._types = apprise.NotifyType
        self._format = apprise.NotifyFormat.TEXT
        super().__init__("apprise", ", ".join(dict.fromkeys(_scheme(url) for url in urls)), **limits)

    def _send(self, alert: Alert, text: str) -> None:
        kind = {"info": self._types.INFO, "warning": self._types.WARNING, "critical": self._types.FAILURE}
        style = self._types.SUCCESS if alert.phase == "resolved" else kind[alert.severity]
        try:
            with _muted():
                sent = self._apprise.notify(body=text, title=alert.title, notify_type=style, body_format=self._format)
        except Exception as error:
            raise SendError(_kind(error), again=True) from None
        if not sent:
            raise SendError("apprise could not deliver it to every service", again=True)


def channel_for(url: str, **limits: Any) -> Channel:
    """The channel that fits a URL: Slack's webhooks, any other http(s) URL, or one of apprise's.

    Raises:
      ConfigError, MissingExtra: as the channel's own constructor.
    """
    scheme = _scheme(url)
    if scheme not in ("http://", "https://"):
        return Apprise(url, **limits)
    return (Slack if (urlsplit(url).hostname or "").endswith("hooks.slack.com") else Webhook)(url, **limits)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirection would carry the message, and its authorization, to somewhere else."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)


@contextlib.contextmanager
def _muted() -> Iterator[None]:
    """Within it, apprise and the library it sends with log nothing, from any thread: they log URLs."""

    def nothing(record: logging.LogRecord) -> bool:
        return False

    loggers = [logging.getLogger(name) for name in ("apprise", "urllib3.connectionpool", "requests_oauthlib")]
    for quiet in loggers:
        quiet.addFilter(nothing)
    try:
        yield
    finally:
        for quiet in loggers:
            quiet.removeFilter(nothing)


def _in_this_thread(apprise: Any) -> Any:
    """apprise's settings for sending in the thread that asks.

    Its thread pool takes no work while the process ends, which is when the last message is sent, and would
    hold up the end for a service that hangs. Each service has its own timeout.
    """
    try:
        return apprise.AppriseAsset(async_mode=False, service_timeout=0)
    except (TypeError, AttributeError):  # before 2.2 there was no pool to switch off
        return apprise.AppriseAsset(async_mode=False)


def _http_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - raises for a port that is none
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


def _scheme(url: object) -> str:
    """`scheme://` of a URL: of apprise's, even the host can be a secret."""
    scheme, found, _ = str(url).partition("://")
    return clean(scheme.lower(), 32) + found if found else "(no scheme)"


def _slack(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _seconds(value: str | None) -> float:
    try:
        seconds = float(value or 0)
    except ValueError:
        return 0.0  # a date
    return seconds if 0 <= seconds < math.inf else 0.0


def _kind(error: object) -> str:
    if isinstance(error, OSError) and error.strerror and error.errno is not None:
        return error.strerror
    return type(error).__name__
