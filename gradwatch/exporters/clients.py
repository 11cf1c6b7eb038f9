"""What the HTTP server keeps of one client, and how it counts what comes."""

from __future__ import annotations

import socket
import ssl
import time
from typing import Any


class Connection:
    """One client.

    Attributes:
      received: what it sent so far.
      answer: what is still to be sent; None before there is an answer, empty after it.
      deadline: monotonic seconds at which it is cut off.
      progress_time: when it last took a part of its answer.
    """

    def __init__(self, accepted: socket.socket, address: Any) -> None:
        self.socket: socket.socket | ssl.SSLSocket = accepted
        self.address = address
        self.handshaking = False
        self.registered = True
        self.received: bytearray = bytearray()
        self.answer: memoryview | None = None
        self.deadline: float = 0.0
        self.progress_time: float = 0.0


class Bucket:
    """So many at once, so many a second in the long run."""

    def __init__(self, per_second: float, burst: float) -> None:
        self._per_second, self._burst = per_second, float(burst)
        self._tokens, self._time = self._burst, time.monotonic()

    def seconds(self) -> float:
        """Until there is one to take; 0.0: now."""
        now = time.monotonic()
        self._tokens = min(self._burst, self._tokens + (now - self._time) * self._per_second)
        self._time = now
        return max(0.0, (1.0 - self._tokens) / self._per_second)

    def take(self) -> bool:
        """Takes one if there is one."""
        if self.seconds() > 0:
            return False
        self._tokens -= 1.0
        return True
