"""What is known of this process and its code: the part of a run's facts that needs no TensorFlow."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from gradwatch.exporters.metrics import version_of
from gradwatch.reading import process_end

_PACKAGES = ("gradwatch", "tensorflow", "keras", "tf_keras", "numpy")
_GIT_SECONDS = 5.0


def of_process() -> dict[str, Any]:
    """script, host, process id, versions and git commit; takes milliseconds, so not on the training's thread.

    The arguments of the script are left out: people pass passwords there.
    """
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    versions = {name: version_of(name) for name in _PACKAGES}
    return {
        "script": str(Path(script).absolute()) if script else "",
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "platform": platform.platform(),
        "versions": {"python": platform.python_version(), **{k: v for k, v in versions.items() if v}},
        "git_commit": _git_commit(Path(script).absolute().parent if script else Path.cwd()),
    }


def how_it_ended() -> str:
    """At the end of the process: "finished", or the exception that ends it."""
    error = process_end.uncaught()
    return "finished" if error is None else f"exception: {type(error).__name__}: {error}"[:500]


def _git_commit(folder: Path) -> str | None:
    command = ["git", "-C", str(folder), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_SECONDS, check=False)
    except (OSError, subprocess.SubprocessError):  # no git here
        return None
    return done.stdout.strip() if done.returncode == 0 else None
