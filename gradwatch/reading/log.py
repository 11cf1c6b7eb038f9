"""Alerts as lines of the logger `gradwatch`."""

from __future__ import annotations

import logging
import time

from gradwatch.reading.alerts import RECOVERY, Alert
from gradwatch.reading.track import Track

logger: logging.Logger = logging.getLogger("gradwatch")

_LOG_GAP_SECONDS = 60.0  # between two log lines above DEBUG of one kind and monitor

_LOG_LEVELS = {"info": logging.INFO, "warning": logging.WARNING, "critical": logging.ERROR}


def log_alert(track: Track, alert: Alert) -> None:
    """Says it once a minute for each kind and severity; what comes between two lines, at a lower level."""
    if alert.kind == RECOVERY:
        return  # said at once, where it was done
    level = _LOG_LEVELS[alert.severity]
    message = alert.message
    if alert.phase == "fired" and level <= logging.WARNING:
        now, key = time.monotonic(), (alert.kind, level)
        last, quiet = track.logged.get(key, (-_LOG_GAP_SECONDS, 0))
        if now - last < _LOG_GAP_SECONDS:
            track.logged[key] = (last, quiet + alert.episodes)
            level = logging.DEBUG
        else:
            track.logged[key] = (now, 0)
            if quiet:
                message += f" {quiet} more episodes of this kind since the last line."
    logger.log(level, "%s", message)
