"""What a monitor knows and when it is read: one reading, and a reader that starts when somebody listens."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest
import support
import tensorflow as tf

SCRIPT = """
import threading, tensorflow as tf, gradwatch
def readers():
    return [t.name for t in threading.enumerate() if t.name == "gradwatch-reader"]
monitor = gradwatch.Monitor("run", gradwatch.policies.fixed(1.0), jit_compile=False{options})
monitor.clip([tf.constant([1.0])])
print("after a step", readers())
{look}
print("after a look", readers())
monitor.clip([tf.constant([float("nan")])])
"""


def run(options: str = "", look: str = "") -> subprocess.CompletedProcess[str]:
    script = SCRIPT.format(options=options, look=look)
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    "look",
    [
        "from gradwatch.telemetry import reader; reader.readings()",
        "monitor.alert_sinks.append(print)",
        "from gradwatch.telemetry import reader; reader.listen(lambda *a: None)",
    ],
    ids=["readings", "an alert sink", "an exporter"],
)
def test_the_readers_thread_starts_when_somebody_looks_and_not_at_the_first_step(look):
    done = run(look=look)
    assert done.stdout.startswith("after a step []\nafter a look ['gradwatch-reader']"), done.stdout + done.stderr


def test_the_readers_thread_starts_at_the_first_step_for_who_wants_alerts():
    assert "after a step ['gradwatch-reader']" in run(options=", on_alert=lambda alert: None").stdout


def test_a_run_that_nobody_listens_to_says_its_alerts_when_it_ends():
    done = run(', on_nonfinite="propagate"')  # harm: what is zeroed is a line of level INFO
    assert "after a look []" in done.stdout
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
