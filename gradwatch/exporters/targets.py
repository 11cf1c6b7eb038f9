"""The `file_sd` file by which Prometheus finds an endpoint."""

from __future__ import annotations

import json
import os
import re
import socket
import tempfile
from pathlib import Path
from typing import Any


def write_target(folder: Path, addr: str, port: int, advertise: str | None, *, tls: bool) -> Path:
    """Writes the file for an endpoint at (addr, port) and returns its path.

    Raises:
      OSError: the folder cannot be written.
    """
    wildcard = addr in ("", "0.0.0.0", "::")
    host = advertise or (socket.gethostname() if wildcard else addr)
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    entry: dict[str, Any] = {"targets": [address], "labels": {"__scheme__": "https" if tls else "http"}}
    path = folder / f"gradwatch-{re.sub(r'[^A-Za-z0-9.-]', '_', host)}-{port}.json"
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
    return path
