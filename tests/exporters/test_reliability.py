"""What the table of docs/reliability.md needs beside the tests of each part; and that all tests it names are there."""

from __future__ import annotations

import math
import re
import threading
import time
import urllib.request
from pathlib import Path

import pytest
from telemetry.fake import FakeMonitor

from gradwatch.exporters.live.store import Store
from gradwatch.exporters.prometheus import serve
from gradwatch.reading.state import state_of

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "docs" / "reliability.md"


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return answer.read()


def test_every_test_that_the_table_names_is_there():
    text = TABLE.read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)
    assert len(named) >= 20
    missing = [name for path, name in named if f"def {name}(" not in (ROOT / path).read_text(encoding="utf-8")]
    assert missing == []
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith(("| ---", "| what"))]
    assert all("::test_" in row for row in rows), "each row has a test that anybody can run"


def test_a_storm_of_nan_is_one_episode_and_every_step_is_counted(reader, health, log):
    monitor, alerts = FakeMonitor("train", warmup=False), []
    monitor.alert_sinks.append(alerts.append)
    reader.register(monitor)
    monitor.step()
    reader.poll_now()
    monitor.begin("nonfinite", norm=math.nan, verdict="skip")
    for _ in range(50):
        for _ in range(20):
            monitor.step(math.nan, applied=0.0, verdict="skip")
        reader.poll_now()
    assert reader.poll_now()
    with serve(0) as server:
        text = get(server.metrics_url).decode()
    assert 'gradwatch_nonfinite_steps_total{monitor="train"} 1001.0' in text
    assert 'gradwatch_anomalies_total{kind="nonfinite",monitor="train"} 1.0' in text
    assert "NaN" not in "".join(line for line in text.splitlines() if not line.startswith("#"))
    assert len(alerts) <= 3, "it began, and lasts: not an alert for each of a thousand steps"
    assert len([line for line in log.messages if "NaN" in line]) <= 3


@pytest.mark.parametrize("jump", [-86_400.0, 86_400.0])
def test_a_clock_that_jumps_neither_loses_a_step_nor_makes_an_alarm(reader, health, monkeypatch, jump):
    monitor, alerts, now = FakeMonitor("train", warmup=False), [], [time.time()]
    monitor.alert_sinks.append(alerts.append)
    monkeypatch.setattr(time, "time", lambda: now[0])
    store = Store()
    reader.register(monitor)
    for look in range(20):
        for _ in range(5):
            monitor.step()
        now[0] += 1.0 + (jump if look == 10 else 0.0)
        reader.poll_now()
    page = store.page()
    store.close()
    numbers = {row[0]: row[3] for row in page["numbers"]}
    assert numbers["steps"] == 100
    assert numbers["missed_steps"] == 0
    assert 0.0 <= numbers["steps_per_second"] <= 100.0
    assert page["state"]["word"] == "healthy"
    assert alerts == []
    assert state_of(steps=1, running=True, warmup=False, active={}, idle_seconds=-86_400.0) == ("healthy", "ok")


def test_a_hundred_scrapers_at_once_all_get_every_number_while_the_training_goes_on(reader):
    monitor = FakeMonitor("train", warmup=False)
    reader.register(monitor)
    monitor.step()
    reader.poll_now()
    answers, errors = [], []

    def scrape(url: str) -> None:
        try:
            for _ in range(3):
                answers.append(get(url))
        except OSError as error:
            errors.append(error)

    with serve(0) as server:
        scrapers = [threading.Thread(target=scrape, args=(server.metrics_url,)) for _ in range(100)]
        for one in scrapers:
            one.start()
        for _ in range(500):  # a step never waits for a scraper: it is no more than before
            monitor.step()
        for one in scrapers:
            one.join(60)
    assert errors == []
    assert len(answers) == 300
    assert all(b'gradwatch_steps_total{monitor="train"}' in answer for answer in answers)
    assert monitor.state.steps == 501


def test_64_monitors_are_all_scraped_and_all_on_the_page(reader):
    monitors = [FakeMonitor(f"monitor-{i}") for i in range(64)]
    store = Store()
    for monitor in monitors:
        reader.register(monitor)
        monitor.step()
    assert reader.poll_now()
    with serve(0) as server:
        text = get(server.metrics_url).decode()
    page = store.page()
    store.close()
    assert len(set(re.findall(r'gradwatch_steps_total{monitor="(monitor-\d+)"} 1\.0', text))) == 64
    assert len(page["monitors"]) == len(page["overview"]) == 64


def test_10000_variables_make_neither_the_page_nor_the_exposition_large(reader):
    names = {f"block_{i // 4}/dense_{i % 4}/kernel": 1.0 + i for i in range(10_000)}
    monitor = FakeMonitor("wide")
    store = Store()
    reader.register(monitor)
    monitor.step(layer_norms=names)
    began = time.process_time()
    assert reader.poll_now()
    with serve(0, layers=8) as server:
        text = get(server.metrics_url).decode()
    page = store.page()
    seconds = time.process_time() - began
    store.close()
    assert len(re.findall(r"^gradwatch_layer_gradient_norm\{", text, re.MULTILINE)) <= 8
    assert (len(page["layers"]), page["layer_count"]) == (10, 10_000)
    assert len(text) < 100_000
    assert seconds < 3, f"{seconds:.2f} s of a processor, on threads of their own"
