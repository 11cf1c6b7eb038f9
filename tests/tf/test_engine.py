"""What a monitor knows and when it is read: one reading, and a reader that starts when somebody listens."""

from __future__ import annotations

import subprocess
import sys
import threading

import support
import tensorflow as tf

START = """
import threading, tensorflow as tf, gradwatch
from gradwatch.reading.reader import reader
def readers():
    return [t.name for t in threading.enumerate() if t.name == "gradwatch-reader"]
def step(**options):
    monitor = gradwatch.Monitor("run", gradwatch.policies.fixed(1.0), jit_compile=False, **options)
    monitor.clip([tf.constant([1.0])])
    return monitor
"""

LOOKS = {
    "readings": "reader.readings()",
    "an alert sink": "monitor.alert_sinks.append(print)",
    "an exporter": "reader.listen(lambda *a: None)",
}


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", START + program], capture_output=True, text=True, timeout=120)


def test_the_readers_thread_starts_when_somebody_looks_and_not_at_the_first_step():
    """One after the other in one process, each with a reader that was closed and so knows of nobody before."""
    program = "".join(
        f"reader.close()\nmonitor = step()\nbefore = readers()\n{look}\nprint({name!r}, before, readers())\n"
        for name, look in LOOKS.items()
    )
    done = run(program + "reader.close()\nstep(on_alert=lambda alert: None)\nprint('alerts', readers())")
    expected = [f"{name} [] ['gradwatch-reader']" for name in LOOKS]
    # who wants alerts need not look
    assert done.stdout.splitlines() == [*expected, "alerts ['gradwatch-reader']"], done.stdout + done.stderr


def test_a_run_that_nobody_listens_to_says_its_alerts_when_it_ends():
    # harm: what is zeroed is a line of level INFO
    done = run(
        "monitor = step(on_nonfinite='propagate')\nmonitor.clip([tf.constant([float('nan')])])\nprint(readers())\n"
    )
    assert done.stdout == "[]\n", done.stdout + done.stderr
    assert "NaN or Inf" in done.stderr


def test_snapshot_and_history_of_one_reading_are_of_one_instant():
    monitor = support.monitor()
    step = tf.function(lambda g: monitor.clip([g]))
    step(tf.constant([1.0]))
    done = threading.Event()

    def train():
        for i in range(2000):
            step(tf.constant([float(i)]))
        done.set()

    thread = threading.Thread(target=train)
    thread.start()
    reads = 0
    while not done.is_set() or not reads:
        reading = monitor.read()
        assert reading.history["step"][-1] == reading.snapshot.steps
        assert reading.history["norm"][-1] == reading.snapshot.norm
        reads += 1
    thread.join()
    assert reads > 10
