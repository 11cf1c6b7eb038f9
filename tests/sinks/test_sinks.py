"""What a sink hands to a tracker: every spike, each alert once, the verdict and the report, and never a failure."""

from __future__ import annotations

import math
import sys
import threading
import time

import numpy as np
import pytest
from record.recorded import Recorded
from telemetry.fake import FakeMonitor

from gradwatch import sinks
from gradwatch.errors import ConfigError, MissingExtra
from gradwatch.sinks.sink import Sink

NAN, INF = math.nan, math.inf


class Tracker:
    """Remembers what it was sent, and by which thread."""

    name = "tracker"

    def __init__(self):
        self.rows, self.alerts, self.verdicts, self.reports, self.threads = [], [], [], [], set()

    def send(self, rows):
        self.threads.add(threading.current_thread().name)
        self.rows.extend(rows)

    def alert(self, alert):
        self.alerts.append(alert)

    def verdict(self, prefix, diagnosis):
        self.verdicts.append((prefix, diagnosis))

    def report(self, path):
        self.reports.append((path.name, path.read_text()))


class Kept(Recorded):
    """A recorded monitor, as far as a sink knows it."""

    @property
    def record_path(self):
        return self.recorder.path

    def flush_record(self):
        self.look()


@pytest.fixture
def tracker():
    return Tracker()


def steps(monitor, norms):
    for norm in norms:
        monitor.step(norm)


def test_each_step_is_sent_where_there_are_few(reader, tracker):
    sink = Sink(tracker, None, 10, False)
    monitor = FakeMonitor("one")
    reader.register(monitor)
    steps(monitor, [1.0, 2.0, 3.0])
    assert sink.flush(20)
    steps(monitor, [4.0])
    assert sink.flush(20)
    assert [(step, numbers["gradwatch/norm"]) for step, _, numbers in tracker.rows] == [(1, 1), (2, 2), (3, 3), (4, 4)]
    assert tracker.threads == {"gradwatch-tracker"}
    times = [time for _, time, _ in tracker.rows]
    assert times == sorted(times)


def test_of_many_steps_the_highest_norm_of_each_part_is_sent_so_that_no_spike_is_lost(reader, tracker):
    sink = Sink(tracker, None, 10, False)
    monitor = FakeMonitor("one")
    norm = np.ones(1000)
    norm[537] = 90.0
    steps(monitor, norm)
    reader.register(monitor)
    assert sink.flush(20)
    assert len(tracker.rows) == 10
    assert (538, 90.0) in [(step, numbers["gradwatch/norm"]) for step, _, numbers in tracker.rows]


def test_what_is_not_finite_is_left_out_and_its_step_is_sent(reader, tracker):
    sink = Sink(tracker, None, 1, False)
    monitor = FakeMonitor("one")
    monitor.step(5.0)
    monitor.step(NAN, 0.0, "zero")
    reader.register(monitor)
    assert sink.flush(20)
    ((step, _, numbers),) = tracker.rows
    assert step == 2
    assert numbers["gradwatch/applied_norm"] == 0.0
    assert "gradwatch/norm" not in numbers
    assert all(map(math.isfinite, numbers.values()))


def test_a_second_monitor_is_told_from_the_first_by_its_name(reader, tracker):
    sink = Sink(tracker, None, 10, False)
    monitors = [FakeMonitor("generator"), FakeMonitor("critic")]
    for monitor in monitors:
        reader.register(monitor)
        monitor.step(1.0)
        assert sink.flush(20)
    names = {name for _, _, numbers in tracker.rows for name in numbers if name.endswith("/norm")}
    assert names == {"gradwatch/norm", "gradwatch/critic/norm"}


def test_only_the_monitor_that_was_named_is_sent(reader, tracker):
    one, other = FakeMonitor("one"), FakeMonitor("other")
    sink = Sink(tracker, one, 10, False)
    for monitor, norm in ((one, 1.0), (other, 2.0)):
        reader.register(monitor)
        monitor.step(norm)
    assert sink.flush(20)
    assert [numbers["gradwatch/norm"] for _, _, numbers in tracker.rows] == [1.0]


def test_an_alert_is_sent_once(reader, tracker):
    sink = Sink(tracker, None, 10, False)
    monitor = FakeMonitor("one")
    reader.register(monitor)
    monitor.step(1.0)
    assert sink.flush(20)
    monitor.begin("explosion", 80.0)
    assert sink.flush(20)
    assert sink.flush(20)
    assert [(alert.kind, alert.step) for alert in tracker.alerts] == [("explosion", 2)]


def test_at_the_end_the_verdict_and_the_report_of_a_recorded_run_are_handed_over(reader, tracker, tmp_path):
    monitor = Kept(tmp_path / "runs", "one")
    with Sink(tracker, None, 10, True):
        steps(monitor, [1.0] * 30)
    ((prefix, diagnosis),) = tracker.verdicts
    assert prefix == "gradwatch/"
    assert diagnosis.verdict
    ((name, text),) = tracker.reports
    assert name == "gradwatch-one.html"
    assert "30" in text
    assert tracker.rows  # what came since the last look is sent too


def test_the_end_of_the_process_closes_a_sink(reader, tracker):
    Sink(tracker, None, 10, False)
    monitor = FakeMonitor("one")
    reader.register(monitor)
    monitor.step(1.0)
    reader.close()
    assert [step for step, _, _ in tracker.rows] == [1]


def test_a_tracker_that_fails_is_one_line_of_the_log_and_counted_and_what_comes_later_is_sent(
    reader, tracker, log, health
):
    class Failing(Tracker):
        def send(self, rows):
            if rows[0][0] < 3:
                raise ConnectionError("the server is down")
            super().send(rows)

    failing = Failing()
    sink = Sink(failing, None, 10, False)
    monitor, before = FakeMonitor("one"), health.internal_errors()["sinks"]
    reader.register(monitor)
    for _ in range(3):
        monitor.step(1.0)
        assert sink.flush(20)
    assert [step for step, _, _ in failing.rows] == [3]
    assert health.internal_errors()["sinks"] == before + 2
    assert len([r for r in log.records if "tracker does not take" in r.getMessage()]) == 1


def after_twenty_steps(reader, wait):
    """(tracker, sink, monitor) of a tracker that waits before it takes anything."""

    class Slow(Tracker):
        def send(self, rows):
            wait()
            super().send(rows)

    slow = Slow()
    sink = Sink(slow, None, 1000, False)
    monitor = FakeMonitor("one")
    reader.register(monitor)
    for _ in range(20):
        monitor.step(1.0)
        assert reader.poll_now(20)
    return slow, sink, monitor


def test_a_slow_tracker_costs_no_memory_and_no_step(reader):
    """What is not taken stays in the history of the monitor, and is sent later."""
    free = threading.Event()
    slow, sink, _monitor = after_twenty_steps(reader, lambda: free.wait(30))
    assert len(sink._worker._waiting) <= 4
    free.set()
    assert sink.flush(20)
    assert [step for step, _, _ in slow.rows] == list(range(1, 21))


def test_a_sink_that_is_closed_behind_a_slow_tracker_still_sends_every_step(reader):
    slow, sink, _monitor = after_twenty_steps(reader, lambda: time.sleep(0.3))
    sink.close()
    assert [step for step, _, _ in slow.rows] == list(range(1, 21))


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_without_its_package_a_sink_names_its_extra(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtra, match=rf"\[{name}\]'"):
        getattr(sinks, name)()


def test_a_sink_refuses_less_than_a_row_a_look(tracker):
    for wrong in (0, -1, 2.5, "10"):
        with pytest.raises(ConfigError, match="rows_a_look"):
            Sink(tracker, None, wrong, True)
