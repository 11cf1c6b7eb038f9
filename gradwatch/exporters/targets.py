"""The `file_sd` file by which Prometheus finds an endpoint.

While the file is there, Prometheus expects an answer; a file that is left behind means that the training failed. So the
file goes when the process ends on purpose: with the server, at the end of the script, and by the signals that would end
the process without running another line of it. It stays after an exception that nobody caught, after `sys.exit` with
another status than 0, and after a crash, until a run of the same name serves on the same host.
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

from gradwatch.reading import process_end

_ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))

#: Who wrote a file. Prometheus drops labels that begin with two underscores once it has found the target.
_HOST, _PID = "__meta_gradwatch_host", "__meta_gradwatch_pid"
_MOST_BYTES = 65536

_written: set[Path] = set()
_kept: set[Path] = set()  # of these, the files of servers that an exception closed


def write_target(
    folder: Path, addr: str, port: int, advertise: str | None, *, tls: bool, labels: Mapping[str, str]
) -> Path:
    """Writes the file for an endpoint at (addr, port) and returns its path.

    What dead processes of this host left in the folder for a run of this name goes. From now on SIGTERM and SIGHUP
    remove the file before they end the process, unless the program has a handler of its own for them, or calls this
    from a thread that may not set one.

    Args:
      labels: what Prometheus adds to each series of this target.

    Raises:
      OSError: the folder cannot be written.
    """
    wildcard = addr in ("", "0.0.0.0", "::")
    host = advertise or (socket.gethostname() if wildcard else addr)
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    own = {_HOST: socket.gethostname(), _PID: str(os.getpid())}
    entry: dict[str, Any] = {
        "targets": [address],
        "labels": {"__scheme__": "https" if tls else "http", **own, **labels},
    }
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
    _kept.discard(path)
    for leftover in [*_kept, *_left_by_the_dead(folder, labels.get("run", ""))]:
        with contextlib.suppress(OSError):
            remove_target(leftover)
    process_end.note_exits()
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
    _kept.discard(path)
    path.unlink(missing_ok=True)


def keep_target(path: Path) -> None:
    """Leaves the file of a server that an exception closed, until it is known how the process ends."""
    _kept.add(path)


def conclude_targets() -> None:
    """At the end of the process: if it ends on purpose, no file stays."""
    if not process_end.failed():
        for path in list(_written):
            with contextlib.suppress(OSError):
                remove_target(path)


def _left_by_the_dead(folder: Path, run: str) -> list[Path]:
    """The files that processes of this host wrote for a run of this name, and that they did not live to remove."""
    if not run or not hasattr(os, "fork"):  # elsewhere a signal 0 is no question
        return []
    found = []
    for path in folder.absolute().glob("gradwatch-*.json"):
        try:
            if path in _written or path.stat().st_size > _MOST_BYTES:
                continue
            [entry] = json.loads(path.read_text(encoding="utf-8"))
            labels = entry["labels"]
            if labels.get("run") == run and labels.get(_HOST) == socket.gethostname() and _dead(int(labels[_PID])):
                found.append(path)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            continue  # somebody else's file
    return found


def _dead(pid: int) -> bool:
    if pid == os.getpid():  # a container that was started again counts its processes from 1
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:  # it is another user's
        return False
    return False


def _end(number: int, _: object) -> None:
    for path in list(_written):
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
    signal.signal(number, signal.SIG_DFL)  # the process ends as it would have, with the same status
    os.kill(os.getpid(), number)


def _after_fork() -> None:  # the files are the parent's
    _written.clear()
    _kept.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
