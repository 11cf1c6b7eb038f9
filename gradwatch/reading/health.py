"""How gradwatch itself is doing: errors and messages of this process, counted and logged once.

Nothing that watches may break a run. So a failure on the host side ends here: `failed` counts it for the
metrics and logs the first one of its kind.
"""

from __future__ import annotations

import logging
import os
import threading

from gradwatch.reading import console

logger: logging.Logger = logging.getLogger("gradwatch")
console.install()

#: Parts of the host side whose failures are counted; each series exists from the start at 0.
COMPONENTS = (
    "snapshot",
    "alerts",
    "notify",
    "push",
    "server",
    "tensorboard",
    "live",
    "record",
    "sinks",
    "reader",
    "diagnosis",
    "recovery",
)

#: Where a scrape can fail: making the exposition, or the request itself (refused, too slow, too large).
SCRAPE_COMPONENTS = ("exposition", "http")

CHANNELS = ("webhook", "slack", "apprise")
OUTCOMES = ("sent", "failed", "suppressed")

_MOST_KEYS = 1000  # of things logged once; beyond it only the counters tell


class Health:
    """Counters of one process. They only go up. Safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._internal = dict.fromkeys(COMPONENTS, 0)
        self._scrape = dict.fromkeys(SCRAPE_COMPONENTS, 0)
        self._notifications = {(c, o): 0 for c in CHANNELS for o in OUTCOMES}
        self._logged: set[object] = set()

    def failed(self, component: str, message: str, *, key: object = None, exc_info: bool = False) -> None:
        """Counts one internal error of `component`; logs it if none with the same `key` was logged before."""
        with self._lock:
            self._internal[component] = self._internal.get(component, 0) + 1
        self._log_once((component, message if key is None else key), message, exc_info)

    def scrape_failed(self, component: str, message: str, *, exc_info: bool = False) -> None:
        """Counts one failed scrape or request; logs the first one with the same message."""
        with self._lock:
            self._scrape[component] = self._scrape.get(component, 0) + 1
        self._log_once(("scrape", component, message), message, exc_info)

    def notified(self, channel: str, outcome: str) -> None:
        """Counts one notification by its `outcome`, one of `OUTCOMES`."""
        with self._lock:
            self._notifications[channel, outcome] = self._notifications.get((channel, outcome), 0) + 1

    def internal_errors(self) -> dict[str, int]:
        """Component -> internal errors so far."""
        with self._lock:
            return dict(self._internal)

    def scrape_errors(self) -> dict[str, int]:
        """Component -> failed scrapes so far."""
        with self._lock:
            return dict(self._scrape)

    def notifications(self) -> dict[tuple[str, str], int]:
        """(channel, outcome) -> notifications so far."""
        with self._lock:
            return dict(self._notifications)

    def _log_once(self, key: object, message: str, exc_info: bool) -> None:
        with self._lock:
            if key in self._logged or len(self._logged) >= _MOST_KEYS:
                return
            self._logged.add(key)
        logger.warning("%s (logged once; further ones are only counted)", message, exc_info=exc_info)

    def _after_fork(self) -> None:
        self._lock = threading.Lock()  # the copy may have been taken while another thread held it


health: Health = Health()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=health._after_fork)
