"""The real servers, as Debian ships them, for the end-to-end tests.

Each starts on a free port of 127.0.0.1, is ready when the `with` block begins, and is stopped by its own
process id when it ends. A server that is not installed skips the test (in CI, a skipped test here fails).

    with alertmanager(tmp_path / "am", config) as am, prometheus(tmp_path / "prom", config) as prom:
        prom.query("up")
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar

import pytest

T = TypeVar("T")

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
LOOPBACK = "127.0.0.1"
START_SECONDS = 30.0
STOP_SECONDS = 10.0

_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never through a proxy


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return probe.getsockname()[1]


def installed(program: str) -> str:
    """Path of a program; skips the test if it is not there."""
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"{program} is not installed (Debian has it; see .ci/run)")
    return path


def wait_until(condition: Callable[[], T], seconds: float, what: str, *, every: float = 0.2) -> T:
    """What `condition` returns once that is true; fails after `seconds`, telling what it waited for."""
    end = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > end:
            pytest.fail(f"waited {seconds:g} s for: {what}; last seen: {found!r}")
        time.sleep(every)


def get(url: str, **parameters: Any) -> Any:
    """JSON (or text) at an address; lists become repeated parameters."""
    query = urllib.parse.urlencode(parameters, doseq=True)
    try:
        with _DIRECT.open(f"{url}?{query}" if query else url, timeout=10) as answer:
            text = answer.read().decode()
    except urllib.error.HTTPError as error:
        raise AssertionError(f"{error.code} from {url}?{query}: {error.read().decode(errors='replace')}") from None
    try:
        return json.loads(text)
    except ValueError:
        return text


class Server:
    """A program that listens at `url`."""

    def __init__(self, process: subprocess.Popen[bytes], url: str, log: Path) -> None:
        self.process = process
        self.url = url
        self.log = log

    @property
    def address(self) -> str:
        """host:port"""
        return self.url.removeprefix("http://")

    def get(self, path: str, **parameters: Any) -> Any:
        return get(self.url + path, **parameters)

    def ready(self) -> bool:
        try:
            with _DIRECT.open(f"{self.url}/-/ready", timeout=2) as answer:
                return answer.status == 200
        except OSError:
            return False

    def reload(self) -> None:
        """Has it read its configuration again."""
        self.process.send_signal(signal.SIGHUP)


class Prometheus(Server):
    def query(self, expr: str, at: float | None = None) -> list[dict[str, Any]]:
        """The series of an instant query: [{"metric": labels, "value": [time, text]}]."""
        when = {} if at is None else {"time": at}
        return self.get("/api/v1/query", query=expr, **when)["data"]["result"]

    def query_range(self, expr: str, start: float, end: float, step: float) -> list[dict[str, Any]]:
        """The series of a range query: [{"metric": labels, "values": [[time, text], ...]}]."""
        answer = self.get("/api/v1/query_range", query=expr, start=start, end=end, step=step)
        return answer["data"]["result"]

    def label_values(self, label: str, selector: str) -> list[str]:
        """What Grafana's label_values(selector, label) offers."""
        return self.get(f"/api/v1/label/{label}/values", **{"match[]": selector})["data"]

    def alerts(self) -> list[dict[str, Any]]:
        """Pending and firing alerts."""
        return self.get("/api/v1/alerts")["data"]["alerts"]

    def firing(self) -> set[str]:
        """Names of the alerts that fire."""
        return {alert["labels"]["alertname"] for alert in self.alerts() if alert["state"] == "firing"}


class Alertmanager(Server):
    def alerts(self) -> list[dict[str, Any]]:
        """Alerts that are not resolved, muted ones too: [{"labels", "status": {"inhibitedBy", ...}, ...}]."""
        return self.get("/api/v2/alerts")


@contextmanager
def prometheus(directory: Path, config: dict[str, Any], *flags: str) -> Iterator[Prometheus]:
    """Prometheus with a configuration as data; relative paths in it start at `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "prometheus.yml").write_text(json.dumps(config))
    command = [
        installed("prometheus"),
        f"--config.file={directory / 'prometheus.yml'}",
        f"--storage.tsdb.path={directory / 'data'}",
        "--web.listen-address={address}",
        *flags,
    ]
    with _running(command, directory, Prometheus) as server:
        yield server


@contextmanager
def alertmanager(directory: Path, config: dict[str, Any], *flags: str) -> Iterator[Alertmanager]:
    """Alertmanager with a configuration as data."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "alertmanager.yml").write_text(json.dumps(config))
    command = [
        installed("prometheus-alertmanager"),
        f"--config.file={directory / 'alertmanager.yml'}",
        f"--storage.path={directory / 'data'}",
        "--web.listen-address={address}",
        "--cluster.listen-address=",
        *flags,
    ]
    with _running(command, directory, Alertmanager) as server:
        yield server


@contextmanager
def pushgateway(directory: Path, *flags: str) -> Iterator[Server]:
    """The Pushgateway."""
    directory.mkdir(parents=True, exist_ok=True)
    # Debian's default file would carry groups from one test to the next
    command = [installed("prometheus-pushgateway"), "--web.listen-address={address}", "--persistence.file=", *flags]
    with _running(command, directory, Server) as server:
        yield server


@contextmanager
def _running(command: Sequence[str], directory: Path, kind: type[T]) -> Iterator[T]:
    address = f"{LOOPBACK}:{free_port()}"
    log = directory / "log.txt"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [part.replace("{address}", address) for part in command], stdout=out, stderr=subprocess.STDOUT
        )
    try:
        server = kind(process, f"http://{address}", log)

        def answers() -> bool:
            if process.poll() is not None:
                pytest.fail(f"{command[0]} ended with {process.returncode}:\n{log.read_text()[-2000:]}")
            return server.ready()

        wait_until(answers, START_SECONDS, f"{command[0]} at {address}", every=0.1)
        yield server
    finally:
        stop(process)


def stop(process: subprocess.Popen[Any]) -> None:
    """Ends a process that we started, by its own id, within a bounded time."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_SECONDS)


class Receiver:
    """A webhook's other end: keeps every JSON message that is posted to it.

    Attributes:
      url: where to post.
      messages: what came, in order.
    """

    def __init__(self) -> None:
        self.messages: list[Any] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                outer.messages.append(json.loads(body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._httpd = ThreadingHTTPServer((LOOPBACK, 0), Handler)
        self.url = f"http://{LOOPBACK}:{self._httpd.server_port}/"
        self._thread = threading.Thread(target=self._httpd.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._httpd.shutdown()
        self._httpd.server_close()
        self._thread.join(STOP_SECONDS)


@contextmanager
def receiver() -> Iterator[Receiver]:
    """A webhook receiver of the test."""
    found = Receiver()
    try:
        yield found
    finally:
        found.close()


class Training:
    """A real training in a process of its own, steered by words (see steered_training.py)."""

    def __init__(self, *monitors: str, targets: Path | None = None) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
        if targets is not None:
            environment["TARGETS"] = str(targets)
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "steered_training.py"), *monitors],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip().removeprefix("http://").split("/")[0]
        assert self.address, "the training did not start"

    def say(self, word: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()


@contextmanager
def training(*monitors: str, targets: Path | None = None) -> Iterator[Training]:
    """A steered training; the process ends with the block. Its target file goes into `targets`, if there is one."""
    found = Training(*monitors, targets=targets)
    try:
        yield found
    finally:
        stop(found.process)
