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

from typing import Any
from urllib.parse import urlsplit

from gradwatch.errors import ConfigError
from gradwatch.exporters.notify.channel import Channel, SendError
from gradwatch.exporters.notify.services import Apprise, scheme_of
from gradwatch.exporters.notify.webhook import Slack, Webhook

__all__ = ["Apprise", "Channel", "SendError", "Slack", "Webhook", "channel_for"]


#: Name of a channel -> the channel.
KINDS: dict[str, type[Webhook] | type[Apprise]] = {"webhook": Webhook, "slack": Slack, "apprise": Apprise}


def channel_for(url: str, kind: str = "", **limits: Any) -> Channel:
    """The channel that fits a URL: Slack's webhooks, any other http(s) URL, or one of apprise's.

    Args:
      url: where to send to.
      kind: "webhook", "slack" (also for what accepts Slack's format) or "apprise"; "" goes by the URL.
      limits: see `Channel`.

    Raises:
      ConfigError, MissingExtra: as the channel's own constructor, or `kind` is none of these.
    """
    if kind:
        if kind not in KINDS:
            raise ConfigError(f"the kind of a channel is one of {', '.join(KINDS)}, got {kind!r}")
        return KINDS[kind](url, **limits)
    scheme = scheme_of(url)
    if scheme not in ("http://", "https://"):
        return Apprise(url, **limits)
    return (Slack if (urlsplit(url).hostname or "").endswith("hooks.slack.com") else Webhook)(url, **limits)
