"""Those who listen to the reader see each poll, and cannot harm it."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from telemetry.fake import FakeMonitor


@pytest.fixture(autouse=True)
def quiet_again(reader):
    yield
    reader._listeners = ()


def test_a_listener_gets_the_source_its_reading_and_the_alerts(reader):
    heard = []
    reader.listen(lambda source, reading, alerts: heard.append((source, reading.snapshot.steps, list(alerts))))
    run = FakeMonitor("run")
    reader.register(run)
    reader.poll_now()
    run.begin("explosion")
    reader.poll_now()
    assert [(source, steps) for source, steps, _ in heard][-1] == (run, 1)
    assert [alert.kind for alert in heard[-1][2]] == ["explosion"]


def test_a_listener_hears_the_last_poll_of_a_process(reader):
    heard = []
    reader.listen(lambda source, reading, alerts: heard.append(reading.snapshot.steps))
    run = FakeMonitor("run")
    reader.register(run)
    reader.poll_now()
    run.step()
    reader.close()
    assert heard[-1] == 1


def test_a_listener_that_raises_is_counted_and_keeps_nobody_from_hearing(reader, health):
    heard = []

    def broken(*_):
        raise RuntimeError("broken listener")

    reader.listen(broken)
    reader.listen(lambda source, reading, alerts: heard.append(reading))
    before = health.internal_errors()["reader"]
    run = FakeMonitor("run")
    reader.register(run)
    reader.poll_now()
    assert heard
    assert health.internal_errors()["reader"] > before


def test_the_reader_looks_again_as_soon_as_a_listener_wants(reader):
    times = []

    def hurried(source, reading, alerts):
        times.append(time.monotonic())
        return 0.06 if len(times) < 6 else None

    reader.listen(hurried)
    run = FakeMonitor("run")
    reader.register(run)  # the interval is a minute here
    end = time.monotonic() + 20
    while len(times) < 6 and time.monotonic() < end:
        time.sleep(0.05)
    assert len(times) == 6
    assert min(b - a for a, b in pairwise(times[1:])) >= 0.05


def test_who_no_longer_listens_hears_nothing(reader):
    heard = []

    def listener(source, reading, alerts):
        heard.append(reading)

    reader.listen(listener)
    reader.unlisten(listener)
    run = FakeMonitor("run")
    reader.register(run)
    reader.poll_now()
    assert heard == []
