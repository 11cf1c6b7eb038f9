"""The `file_sd` file by which Prometheus finds an endpoint.

While the file is there, Prometheus expects an answer; a file that is left behind means that the training crashed. So
the file goes whenever the process ends on purpose: with the server, at the end of the script, and by the signals that
would end the process without running another line of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))

_written: set[Path] = set()


def write_target(
    folder: Path, addr: str, port: int, advertise: str | None, *, tls: bool, labels: Mapping[str, str]
) -> Path:
    """Writes the file for an endpoint at (addr, port) and returns its path.

    From now on SIGTERM and SIGHUP remove it before they end the process, unless the program has a handler of its own
    for them, or calls this from a thread that may not set one.

    Args:
      labels: what Prometheus adds to each series of this target.

    Raises:
      OSError: the folder cannot be written.
    """
    wildcard = addr in ("", "0.0.0.0", "::")
    host = advertise or (socket.gethostname() if wildcard else addr)
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    entry: dict[str, Any] = {"targets": [address], "labels": {"__scheme__": "https" if tls else "http", **labels}}
    path = (folder / f"gradwatch-{re.sub(r'[^A-Za-z0-9.-]', '_', host)}-{port}.json").absolute()
    # written beside and renamed: Prometheus must never read half a file
    descriptor, draft = tempfile.mkstemp(dir=folder, prefix=".gradwatch-", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump([entry], file, indent=2)
        os.chmod(draft, 0o644)  # mkstemp's 0600 would hide it from the user Prometheus runs as
        os.replace(draft, path)
    except BaseException:
        os.unlink(draft)
        raise
    _written.add(path)
    if threading.current_thread() is threading.main_thread():
        for number in _ENDING:
            if signal.getsignal(number) == signal.SIG_DFL:
                signal.signal(number, _end)
    return path


def remove_target(path: Path) -> None:
    """Takes the file back.

    Raises:
      OSError: it cannot be removed.
    """
    _written.discard(path)
    path.unlink(missing_ok=True)


def _end(number: int, _: object) -> None:
    for path in list(_written):
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
    signal.signal(number, signal.SIG_DFL)  # the process ends as it would have, with the same status
    os.kill(os.getpid(), number)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_written.clear)  # the files are the parent's
