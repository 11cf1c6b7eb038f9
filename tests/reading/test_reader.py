"""The reader: one thread that reads every monitor, costs the training nothing and keeps nothing alive."""

from __future__ import annotations

import gc
import os
import threading
import time
import weakref
from dataclasses import replace

import pytest
from telemetry.fake import FakeMonitor
from telemetry.processes import EXIT, run_script

from gradwatch.errors import ConfigError
from gradwatch.reading.reader import Reader
from gradwatch.reading.reading import DURATION_BOUNDS


def wait_until(condition, seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.01)
    return False


def test_a_registered_monitor_is_read_without_being_asked(reader):
    monitor = FakeMonitor()
    reader.register(monitor)
    assert wait_until(lambda: [r.name for r in reader.readings()] == ["run"])


def test_asking_for_readings_never_reads_a_monitor(reader):
    monitor = FakeMonitor()
    reader.register(monitor)
    assert reader.poll_now()
    before = monitor.snapshots
    for _ in range(100):
        reader.readings()
    assert monitor.snapshots == before


def test_it_polls_at_its_interval():
    reader = Reader(interval_seconds=0.02)
    monitor = FakeMonitor()
    reader.register(monitor)
    assert wait_until(lambda: monitor.snapshots >= 5)
    reader.close()


def test_polling_now_sees_the_newest_step(reader):
    monitor = FakeMonitor()
    reader.register(monitor)
    for steps in range(1, 4):
        monitor.step()
        assert reader.poll_now()
        assert reader.readings()[0].snapshot.steps == steps


def test_the_last_step_time_moves_only_with_the_steps(reader):
    monitor = FakeMonitor()
    reader.register(monitor)
    reader.poll_now()
    assert reader.readings()[0].last_step_time == 0.0
    monitor.step()
    reader.poll_now()
    first = reader.readings()[0]
    assert first.last_step_time == first.snapshot.time
    reader.poll_now()
    later = reader.readings()[0]
    assert later.snapshot.time > first.snapshot.time
    assert later.last_step_time == first.last_step_time


def test_a_run_is_active_from_its_first_step_until_it_is_marked_over(reader):
    monitor = FakeMonitor()
    reader.register(monitor)
    reader.poll_now()
    assert not reader.readings()[0].active
    monitor.step()
    reader.poll_now()
    assert reader.readings()[0].active
    monitor.step()
    reader.mark_active(monitor, False)
    reader.poll_now()
    assert not reader.readings()[0].active
    monitor.step()
    reader.poll_now()
    assert reader.readings()[0].active


def test_an_episode_is_dated_when_it_is_first_seen(reader):
    monitor = FakeMonitor()
    monitor.begin("explosion")
    reader.register(monitor)
    reader.poll_now()
    seen = reader.readings()[0]
    assert seen.run_start_time <= seen.last_anomaly_time["explosion"] <= seen.snapshot.time
    assert seen.last_anomaly_time["trend"] == 0.0
    reader.poll_now()
    assert reader.readings()[0].last_anomaly_time == seen.last_anomaly_time


def test_the_duration_histogram_counts_every_snapshot_once(reader):
    monitor = FakeMonitor()
    reader.register(monitor)
    for _ in range(4):
        reader.poll_now()
    reading = reader.readings()[0]
    assert reading.duration_counts[-1] == monitor.snapshots
    assert len(reading.duration_counts) == len(DURATION_BOUNDS) + 1
    assert list(reading.duration_counts) == sorted(reading.duration_counts)
    assert reading.duration_sum > 0


def test_it_keeps_no_monitor_alive(reader):
    monitor = FakeMonitor()
    reader.register(monitor)
    monitor.begin("explosion")
    reader.poll_now()
    gone = weakref.ref(monitor)
    del monitor
    gc.collect()
    assert wait_until(lambda: gone() is None)


def test_a_monitor_that_is_gone_leaves_the_readings_and_stays_known_as_departed(reader):
    monitor = FakeMonitor()
    reader.register(monitor)
    monitor.step()
    reader.poll_now()
    del monitor
    gc.collect()
    assert wait_until(lambda: reader.readings() == [])
    (last,) = reader.readings(departed=True)
    assert last.snapshot.steps == 1
    assert not last.active


def test_unregistering_reads_the_last_steps_and_delivers_the_last_alerts(reader):
    monitor = FakeMonitor()
    alerts = []
    monitor.alert_sinks.append(alerts.append)
    reader.register(monitor)
    reader.poll_now()
    monitor.begin("explosion")
    reader.unregister(monitor)
    assert [alert.kind for alert in alerts] == ["explosion"]
    assert reader.readings() == []
    assert reader.readings(departed=True)[0].snapshot.steps == 1


def test_the_newest_monitor_wins_a_name_and_the_older_one_still_alerts(reader, log):
    old, new = FakeMonitor("same"), FakeMonitor("same")
    alerts = []
    old.alert_sinks.append(alerts.append)
    reader.register(old)
    reader.register(new)
    new.step()
    old.begin("explosion")
    reader.poll_now()
    (reading,) = reader.readings()
    assert reading.snapshot.steps == 1
    assert reading.snapshot.norm == 1.0
    assert [alert.kind for alert in alerts] == ["explosion"]
    assert "the older one leaves the metrics" in log.text


def test_the_older_one_does_not_come_back_by_itself_but_by_being_registered(reader):
    old, new = FakeMonitor("same"), FakeMonitor("same")
    reader.register(old)
    reader.register(new)
    del new
    gc.collect()
    reader.poll_now()
    assert reader.readings() == []
    reader.register(old)
    reader.poll_now()
    assert len(reader.readings()) == 1


def test_a_failing_snapshot_is_counted_logged_once_and_hurts_no_other_monitor(reader, health, log):
    class Broken(FakeMonitor):
        def snapshot(self):
            raise RuntimeError("device lost")

    broken, sound = Broken("broken"), FakeMonitor("sound")
    before = health.internal_errors()["snapshot"]
    reader.register(broken)
    reader.register(sound)
    for _ in range(3):
        reader.poll_now()
    assert [r.name for r in reader.readings()] == ["sound"]
    assert health.internal_errors()["snapshot"] >= before + 3
    assert len([r for r in log.records if "cannot be read" in r.message]) == 1


def test_a_snapshot_that_hangs_does_not_hang_who_asks(reader):
    release = threading.Event()

    class Hanging(FakeMonitor):
        def snapshot(self):
            release.wait(10)
            return super().snapshot()

    monitor = Hanging()
    began = time.monotonic()
    reader.register(monitor)
    assert not reader.poll_now(timeout_seconds=0.1)
    assert reader.readings() == []
    assert time.monotonic() - began < 2
    release.set()


def test_polling_from_an_alert_sink_does_not_deadlock(reader):
    monitor = FakeMonitor()
    answers = []
    monitor.alert_sinks.append(lambda alert: answers.append(reader.poll_now(timeout_seconds=0.2)))
    reader.register(monitor)
    monitor.begin("explosion")
    reader.poll_now()
    assert answers == [False]


def test_a_restored_monitor_does_not_tell_its_old_episodes_again(reader):
    monitor = FakeMonitor()
    alerts = []
    monitor.alert_sinks.append(alerts.append)
    monitor.begin("explosion")
    reader.register(monitor, restored=True)
    reader.poll_now()
    assert alerts == []
    monitor.end("explosion")
    monitor.begin("explosion")
    reader.poll_now()
    assert len(alerts) == 1


def test_going_back_to_an_older_checkpoint_is_no_news(reader):
    monitor = FakeMonitor()
    alerts = []
    reader.register(monitor)
    monitor.begin("explosion")
    earlier = monitor.state
    for _ in range(3):
        monitor.step()
    monitor.end("explosion")
    reader.poll_now()
    monitor.alert_sinks.append(alerts.append)
    monitor.state = earlier
    reader.poll_now()
    assert alerts == []


def test_rebasing_makes_what_is_there_the_baseline(reader):
    monitor = FakeMonitor()
    alerts = []
    monitor.alert_sinks.append(alerts.append)
    reader.register(monitor)
    reader.poll_now()
    reader.rebase(monitor)
    monitor.begin("explosion")
    reader.poll_now()
    assert alerts == []


def test_hundreds_of_monitors_come_and_go_from_many_threads(reader):
    stop = threading.Event()
    errors = []

    def churn(number):
        try:
            while not stop.is_set():
                monitor = FakeMonitor(f"m{number}")
                reader.register(monitor)
                monitor.step()
                reader.readings()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=churn, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    stop.set()
    for thread in threads:
        thread.join()
    gc.collect()
    assert reader.poll_now()
    assert errors == []
    assert reader.readings() == []


@pytest.mark.parametrize("seconds", [0, -1, float("inf"), float("nan")])
def test_an_interval_that_is_none_is_refused(seconds):
    with pytest.raises(ConfigError, match="must be > 0 seconds"):
        Reader(interval_seconds=seconds)


def test_the_last_alerts_are_delivered_when_the_process_ends():
    assert "ALERT explosion" in run_script(EXIT).stdout


def test_the_last_alerts_are_delivered_when_the_process_dies_of_an_exception():
    done = run_script(EXIT + "raise SystemError('crash')")
    assert "ALERT explosion" in done.stdout
    assert done.returncode == 1


def test_a_hanging_device_does_not_hang_the_end_of_the_process():
    began = time.monotonic()
    done = run_script(
        EXIT + "import time, gradwatch.reading.reader as r; r._EXIT_SECONDS = 0.3\n"
        "monitor.snapshot = lambda: time.sleep(60)"
    )
    assert done.returncode == 0
    assert time.monotonic() - began < 30


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_reads_nothing_and_alerts_nobody_twice():
    done = run_script(
        EXIT
        + """
import os, warnings
warnings.simplefilter("ignore")
child = os.fork()
if child == 0:
    print("CHILD", len(reader.readings()), reader.poll_now(), flush=True)
    other = FakeMonitor("child")
    reader.register(other)
    print("POLL", reader.poll_now(), [r.name for r in reader.readings()], flush=True)
    sys.exit(0)
os.waitpid(child, 0)
"""
    )
    assert "CHILD 0 True" in done.stdout
    assert "POLL True ['child']" in done.stdout
    assert done.stdout.count("ALERT") == 1


def test_a_loss_that_the_step_returns_is_known_without_a_report_and_a_reported_one_goes_before_it(reader):
    run = FakeMonitor("train")
    reader.register(run)
    run.step(loss=0.5)
    run.step()  # its loss is not known yet
    reader.poll_now()
    [reading] = reader.readings()
    assert reading.snapshot.extra == {"loss": 0.5}
    run.state = replace(run.state, extra={"loss": 0.25})
    run.step(loss=0.125)
    reader.poll_now()
    [reading] = reader.readings()
    assert reading.snapshot.extra == {"loss": 0.25}
