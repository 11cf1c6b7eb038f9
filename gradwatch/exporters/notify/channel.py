"""What all channels have in common: which alerts become messages, and how often a message is tried."""

from __future__ import annotations

import abc
import math
import random
import threading
import time
import weakref

from gradwatch.errors import ConfigError
from gradwatch.reading.alerts import Alert
from gradwatch.reading.harm import SEVERITIES
from gradwatch.reading.health import health
from gradwatch.reading.reader import reader
from gradwatch.reading.worker import Worker

_FIRST_PAUSE_SECONDS = 1.0  # before the second attempt; twice as long before each further one
_LONGEST_PAUSE_SECONDS = 60.0  # also of what a server asks for
_EXIT_SECONDS = 5.0  # for the last messages when the process ends


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

    def test(self, severity: str = "info") -> None:
        """Sends one test message now, in one attempt, whatever the limits.

        Args:
          severity: "info", "warning" or "critical": how it looks.

        Raises:
          ConfigError: there is no such severity.
          SendError: it was not taken; the text says why, without the URL.
        """
        if severity not in SEVERITIES:
            raise ConfigError(f"severity must be one of {', '.join(SEVERITIES)}, got {severity!r}")
        alert = Alert(
            kind="test",
            monitor="gradwatch",
            step=0,
            norm=0.0,
            threshold=0.0,
            message="This is a test message of gradwatch. Nothing exploded.",
            severity=severity,
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


def kind_of_error(error: object) -> str:
    """What went wrong, without the error's text, which can hold the URL."""
    if isinstance(error, OSError) and error.strerror and error.errno is not None:
        return error.strerror
    return type(error).__name__
