"""Fifty simulated jobs in a real Prometheus: which three need me now, how long the board takes, and a restart.

Each job is a target of its own. What it exposes is made by gradwatch's own exposition, of a monitor of plain numbers.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from as_grafana import ALL, View
from servers import Prometheus, prometheus, wait_until

sys.path.insert(0, str(Path(__file__).parents[1] / "telemetry"))

from fake import FakeMonitor

from gradwatch import grafana
from gradwatch.exporters.prometheus import serve
from gradwatch.grafana import fleet, ranking
from gradwatch.grafana.readme import walk
from gradwatch.reading import reader as reader_module

pytestmark = pytest.mark.timeout(300)

JOBS = 50
WASTED = 12  # makes steps as it should, but so many of them are wasted that a critical alert fires
IN_TROUBLE = {7: "nonfinite", 23: "explosion", 41: "saturated"}  # the worst first
BOARD = fleet.dashboard()

#: As the shipped rule that it stands for, which needs minutes.
ALERT = {
    "alert": "GradwatchStepsWastedFast",
    "expr": f'gradwatch_run_active{{monitor="job-{WASTED}"}} == 1',
    "labels": {"severity": "critical"},
}
#: A run that was killed, and the training of the host, which may come and go: nobody listens there.
GONE = [
    {"targets": ["127.0.0.1:1"], "labels": {"instance": "trainer-99:9464", "run": "lm-killed"}},
    {"targets": ["127.0.0.1:1"], "labels": {"instance": "local:9464", "expected": "no"}},
]
MOST_SECONDS = 5.0  # a query of the board takes milliseconds; the machine of a test may be busy


class Jobs:
    """Fifty trainings, each under a path of its own, as Prometheus scrapes them."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.monitors = [FakeMonitor(f"job-{i}", warmup=False, explosion_threshold=50.0) for i in range(JOBS)]
        for i, monitor in enumerate(self.monitors):
            monitor.run_info = {"run_name": f"lm-{i}"}
        self.texts: dict[int, str] = {}
        for monitor in self.monitors:
            reader_module.register(monitor)

    def advance(self, steps: int) -> None:
        """All jobs make steps; those in trouble begin an episode."""
        for i, monitor in enumerate(self.monitors):
            for _ in range(steps):
                monitor.step(1.0 + i / JOBS)
            kind = IN_TROUBLE.get(i)
            if kind and monitor.state.steps > 20 and not monitor.state.active[kind]:
                monitor.begin(kind, norm=float("nan") if kind == "nonfinite" else 500.0)
        reader_module.poll_now()
        with urllib.request.urlopen(self.source, timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        whole = [line for line in lines if 'monitor="' not in line]
        for i in range(JOBS):
            own = f'monitor="job-{i}"'
            self.texts[i] = "\n".join([*whole, *(line for line in lines if own in line), ""])


@contextmanager
def serving(jobs: Jobs) -> Iterator[str]:
    """host:port that answers /N/metrics for job N."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = re.match(r"/(\d+)/metrics", self.path)
            body = jobs.texts[int(found[1])].encode() if found else b""
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with contextlib.suppress(OSError):  # Prometheus gave up or was ended: it comes again
                self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 2 * JOBS  # all may come at once

    httpd = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{httpd.server_port}"
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join(10)


def configuration(directory: Path, address: str) -> dict[str, Any]:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "rules.yml").write_text(grafana.files()["prometheus/rules.yml"])
    (directory / "wasted.yml").write_text(json.dumps({"groups": [{"name": "wasted", "rules": [ALERT]}]}))
    targets = [
        {"targets": [address], "labels": {"__metrics_path__": f"/{i}/metrics", "instance": f"trainer-{i}:9464"}}
        for i in range(JOBS)
    ]
    return {
        "global": {"scrape_interval": "3s", "scrape_timeout": "3s", "evaluation_interval": "5s"},
        "rule_files": ["rules.yml", "wasted.yml"],
        "scrape_configs": [{"job_name": "gradwatch", "static_configs": targets + GONE}],
    }


@pytest.fixture(scope="module")
def fleet_of_fifty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Jobs, str, Path]]:
    reader_module.reader.close()
    reader_module.reader._departed.clear()
    with serve(0) as server:
        jobs = Jobs(server.metrics_url)
        jobs.advance(10)
        with serving(jobs) as address:
            yield jobs, address, tmp_path_factory.mktemp("fleet")
    reader_module.reader.close()
    reader_module.reader._departed.clear()


def view(began: float) -> View:
    every = {name: [ALL] for name in ("job", "instance", "monitor")}
    return View({"datasource": ["x"], **every}, began, time.time(), 3)


def scraped(jobs: Jobs, prom: Prometheus, seconds: float) -> float:
    """Lets the jobs train under the eyes of Prometheus; the Unix seconds at which that began."""
    wait_until(lambda: len(prom.query("gradwatch_steps_total")) == JOBS, 60, "all jobs scraped")
    began = time.time()
    while time.time() < began + seconds:
        jobs.advance(15)  # without a loss, what lasts for 100 steps is harm
        time.sleep(1.0)
    return began


def test_the_three_that_need_me_come_first_and_no_query_is_slow(fleet_of_fifty):
    jobs, address, directory = fleet_of_fifty
    with prometheus(directory, configuration(directory, address)) as prom:
        looked = view(scraped(jobs, prom, 20))
        times = {}
        for panel in walk(BOARD["panels"]):
            for target in panel.get("targets", []):
                expr = looked.interpolate(target["expr"], BOARD)
                before = time.perf_counter()
                if target["instant"]:
                    found = prom.query(expr, looked.end)
                else:
                    found = prom.query_range(expr, looked.start, looked.end, looked.interval)
                times[f"{panel['title']} {target['refId']}"] = time.perf_counter() - before
                assert found or panel["title"] in ("These three need you now", "Runs, worst first"), panel["title"]
        slowest = max(times, key=lambda name: times[name])
        print(
            f"{len(times)} queries over {JOBS} jobs: slowest {times[slowest]:.3f} s ({slowest}), "
            f"all together {sum(times.values()):.3f} s"
        )
        assert times[slowest] < MOST_SECONDS

        panels = {panel["title"]: panel for panel in walk(BOARD["panels"])}
        first = panels["These three need you now"]
        found = prom.query(looked.interpolate(first["targets"][0]["expr"], BOARD), looked.end)
        worst = sorted(found, key=lambda one: -float(one["value"][1]))
        assert [one["metric"]["monitor"] for one in worst] == [f"job-{i}" for i in (WASTED, *IN_TROUBLE)][:3]
        assert float(worst[0]["value"][1]) >= ranking.LOST
        names = prom.query(looked.interpolate(first["targets"][-1]["expr"], BOARD), looked.end)
        assert {one["metric"]["run_name"] for one in names} == {f"lm-{i}" for i in (WASTED, 7, 23)}
        every = prom.query(looked.interpolate(panels["Runs, worst first"]["targets"][-1]["expr"], BOARD), looked.end)
        assert {one["metric"]["run_name"] for one in every} == {f"lm-{i}" for i in range(JOBS)}

        down = prom.query(
            looked.interpolate(panels["Which endpoints are down"]["targets"][0]["expr"], BOARD), looked.end
        )
        assert [one["metric"].get("run") for one in down] == ["lm-killed"]
        [count] = prom.query(looked.interpolate(panels["Endpoints down"]["targets"][0]["expr"], BOARD), looked.end)
        assert float(count["value"][1]) == 1
        assert first["gridPos"]["y"] + first["gridPos"]["h"] <= 12, "they stand on the first screen"


def value(prom: Prometheus, expr: str) -> float:
    """-1 while there is none."""
    found = prom.query(expr)
    return float(found[0]["value"][1]) if found else -1.0


def test_a_prometheus_that_is_restarted_misses_no_count(fleet_of_fifty):
    """What happened while it was away is in the counters: nothing is lost but the points in between."""
    jobs, address, directory = fleet_of_fifty
    home = directory / "restarted"
    steps = 'gradwatch_steps_total{monitor="job-0"}'
    with prometheus(home, configuration(home, address)) as prom:
        began = scraped(jobs, prom, 5)
        wait_until(lambda: value(prom, steps) == jobs.monitors[0].state.steps, 30, "the last step")
        before = jobs.monitors[0].state.steps
    jobs.advance(40)
    with prometheus(home, configuration(home, address)) as prom:
        known = jobs.monitors[0].state.steps
        wait_until(lambda: value(prom, steps) == known, 30, "the new count")
        assert known == before + 40
        kept = prom.query_range(steps, began, time.time() + 2, 1)
        values = [float(value) for one in kept for _, value in one["values"]]
        assert min(values) <= before < max(values) == known, "its past is still there"
