"""A background thread behind a bounded queue: work that must never make its caller wait."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from gradwatch.reading.health import health

Item = TypeVar("Item")

_workers: weakref.WeakSet[Worker[Any]] = weakref.WeakSet()


class Worker(Generic[Item]):
    """Calls `handle(item)` for each item put, one after the other, from a daemon thread of its own.

    The thread starts with the first item. What `handle` raises is counted and logged once.

    Args:
      handle: takes one item; may block.
      name: of the thread.
      capacity: items that may wait; one more is refused.
    """

    def __init__(self, handle: Callable[[Item], None], name: str, capacity: int = 100) -> None:
        self._handle = handle
        self._name = name
        self._capacity = capacity
        self._reset()
        _workers.add(self)

    def _reset(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[Item] = deque()
        self._busy = False
        self._thread: threading.Thread | None = None

    def put(self, item: Item) -> bool:
        """Queues `item` and returns at once; False if the queue is full or no thread can be started."""
        with self._changed:
            if len(self._waiting) >= self._capacity:
                return False
            if self._thread is None:
                thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # out of threads, or the interpreter is ending
                    return False
                self._thread = thread
            self._waiting.append(item)
            self._changed.notify_all()
        return True

    def flush(self, timeout_seconds: float) -> bool:
        """Waits until all queued items are done; False if that took longer than `timeout_seconds`."""
        if threading.current_thread() is self._thread:
            return False  # waiting for oneself would never end
        end = time.monotonic() + timeout_seconds
        with self._changed:
            while self._waiting or self._busy:
                if not self._changed.wait(end - time.monotonic()) and time.monotonic() >= end:
                    return False
        return True

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting:
                    self._changed.wait()
                self._busy = True
            try:
                # popped inside the call: a local of this frame would keep the item alive while waiting
                self._handle(self._waiting.popleft())
            except Exception:
                health.failed("reader", f"a background job of {self._name} failed", exc_info=True)
            finally:
                with self._changed:
                    self._busy = False
                    self._changed.notify_all()


def _after_fork() -> None:
    for worker in list(_workers):
        worker._reset()  # its thread lives in the parent, and so does the work that waited


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
