"""Two real workers go back together, or not at all."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).with_name("recovering_worker.py")


def test_two_workers_go_back_together_or_not_at_all(tmp_path):
    """Worker 1 has no snapshot at first, worker 0 has one: neither goes back. Later both have one: both do."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    addresses = [f"127.0.0.1:{s.getsockname()[1]}" for s in sockets]
    for s in sockets:
        s.close()
    workers = []
    for index in range(2):
        task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        environment = {**os.environ, "TF_CONFIG": json.dumps(task)}
        environment.pop("XLA_FLAGS", None)
        command = [sys.executable, str(SCRIPT), str(tmp_path / "saw")]
        workers.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    try:
        errors = [worker.communicate(timeout=110)[1] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(errors)[-3000:]
    first, second = (json.loads((tmp_path / f"saw.{index}").read_text()) for index in (0, 1))
    assert first == second, "the same decisions and the same weights"
    assert first["alone"][0] == 0
    assert first["together"][0] >= 1
