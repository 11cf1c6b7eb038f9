"""Small programs in fresh processes: for what happens when a process ends, crashes or forks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

#: First lines of a child that a signal is to end. What is ignored is inherited: tests that run under nohup, or in the
#: background of a script, ignore SIGHUP or SIGINT, and so would their children.
AS_FROM_A_TERMINAL = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGTERM, signal.SIG_DFL)
"""


def run_script(body: str) -> subprocess.CompletedProcess[str]:
    """Runs `body` in a fresh process, without TensorFlow: the package's own __init__ would import it.

    It leads a session: whatever it kills, it does not reach the tests.
    """
    script = f"""{AS_FROM_A_TERMINAL}
import sys, types
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
package = sys.modules["gradwatch"] = types.ModuleType("gradwatch")
package.__path__ = [{str(ROOT / "gradwatch")!r}]
{body}
"""
    command = [sys.executable, "-c", script]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, start_new_session=True)


EXIT = """
from telemetry.fake import FakeMonitor
from gradwatch.reading import reader
monitor = FakeMonitor()
monitor.alert_sinks.append(lambda alert: print("ALERT", alert.kind, flush=True))
reader.set_interval(30)
reader.register(monitor)
reader.poll_now()
monitor.begin("explosion", verdict="pass")
"""
