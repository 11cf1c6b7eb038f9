"""The channel of a hundred services: mail, Telegram, Teams, through the package `apprise`."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

from gradwatch.errors import ConfigError, MissingExtra
from gradwatch.exporters.notify.channel import Channel, SendError, kind_of_error
from gradwatch.reading.alerts import Alert
from gradwatch.reading.text import clean


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
                        f"apprise does not understand the URL that begins with {scheme_of(url)!r}; "
                        "see the services and their URLs in apprise's documentation"
                    )
        self._types = apprise.NotifyType
        self._format = apprise.NotifyFormat.TEXT
        super().__init__("apprise", ", ".join(dict.fromkeys(scheme_of(url) for url in urls)), **limits)

    def _send(self, alert: Alert, text: str) -> None:
        kind = {"info": self._types.INFO, "warning": self._types.WARNING, "critical": self._types.FAILURE}
        style = self._types.SUCCESS if alert.phase == "resolved" else kind[alert.severity]
        try:
            with _muted():
                sent = self._apprise.notify(body=text, title=alert.title, notify_type=style, body_format=self._format)
        except Exception as error:
            raise SendError(kind_of_error(error), again=True) from None
        if not sent:
            raise SendError("apprise could not deliver it to every service", again=True)


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


def scheme_of(url: object) -> str:
    """`scheme://` of a URL: of apprise's, even the host can be a secret."""
    scheme, found, _ = str(url).partition("://")
    return clean(scheme.lower(), 32) + found if found else "(no scheme)"
