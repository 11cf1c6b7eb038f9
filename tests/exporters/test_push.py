"""Pushing to a gateway, against a stand-in; the real one is in tests/e2e/test_pushgateway.py."""

from __future__ import annotations

import base64
import logging
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from telemetry.fake import FakeMonitor
from telemetry.processes import EXIT, run_script

from gradwatch.errors import ConfigError
from gradwatch.exporters.push import push

SECRET = "s3cr3t"


class Gateway:
    """Remembers method, path, headers and body of each request."""

    def __init__(self):
        self.got = []
        self.status = 202
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self):
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                gateway.got.append((self.path, dict(self.headers), body))
                self.send_response(gateway.status)
                self.end_headers()

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.address = f"127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @property
    def paths(self):
        return [path for path, _, _ in self.got]

    @property
    def bodies(self):
        return [body for _, _, body in self.got]


@pytest.fixture
def gateway():
    gateway = Gateway()
    yield gateway
    gateway.server.shutdown()
    gateway.server.server_close()


@pytest.fixture
def monitor(reader):
    monitor = FakeMonitor()
    reader.register(monitor)
    return monitor


def test_it_pushes_at_once_and_at_the_end_and_then_the_run_is_over(gateway, reader, monitor):
    monitor.step()
    push(gateway.address)
    monitor.step()
    reader.close()  # what the end of the process does
    first, last = gateway.bodies
    assert 'gradwatch_steps_total{monitor="run"} 1.0' in first
    assert 'gradwatch_run_active{monitor="run"} 1.0' in first
    assert 'gradwatch_steps_total{monitor="run"} 2.0' in last
    assert 'gradwatch_run_active{monitor="run"} 0.0' in last


def test_a_monitor_that_is_gone_is_still_in_the_last_push(gateway, reader):
    monitor = FakeMonitor()
    reader.register(monitor)
    monitor.step()
    made = push(gateway.address)
    del monitor
    made.close()
    assert 'gradwatch_steps_total{monitor="run"} 1.0' in gateway.bodies[-1]


def test_the_context_manager_pushes_last_when_its_body_raises(gateway, monitor):
    with pytest.raises(ZeroDivisionError), push(gateway.address):  # noqa: PT012
        monitor.step()
        1 / 0  # noqa: B018
    assert 'gradwatch_steps_total{monitor="run"} 1.0' in gateway.bodies[-1]
    assert 'gradwatch_run_active{monitor="run"} 0.0' in gateway.bodies[-1]


def test_closing_twice_pushes_once(gateway, reader, monitor):
    made = push(gateway.address)
    made.close()
    made.close()
    reader.close()
    assert len(gateway.got) == 2


def test_it_pushes_every_so_often_on_request(gateway, monitor):
    with push(gateway.address, every_seconds=0.05):
        end = time.monotonic() + 5
        while len(gateway.got) < 4 and time.monotonic() < end:
            time.sleep(0.01)
    assert len(gateway.got) >= 4


@pytest.mark.parametrize(
    ("job", "key", "path"),
    [
        ("train", {"instance": "host"}, "/metrics/job/train/instance/host"),
        ("train", {}, "/metrics/job/train"),
        ("train", {"b": "2", "a": "1"}, "/metrics/job/train/a/1/b/2"),
        ("a/b", {"instance": ""}, "/metrics/job@base64/YS9i/instance@base64/="),
    ],
)
def test_the_grouping_key_is_the_path(gateway, monitor, job, key, path):
    push(gateway.address, job, key).close()
    assert gateway.paths[0] == path


def test_the_default_key_is_this_host(gateway, monitor, monkeypatch):
    monkeypatch.setattr("gradwatch.exporters.push.socket.gethostname", lambda: "trainer-1")
    push(f"http://{gateway.address}/").close()
    assert gateway.paths[0] == "/metrics/job/gradwatch/instance/trainer-1"


@pytest.mark.parametrize("label", ["monitor", "kind", "job", "le", "quantile", "run_id"])
def test_a_key_that_would_overwrite_a_label_of_the_metrics_is_refused(label):
    with pytest.raises(ConfigError, match=f"must not hold '{label}'"):
        push("localhost:9091", grouping_key={label: "x"})


@pytest.mark.parametrize("label", ["", "with space", "__reserved", "1st", "a/b", 7])
def test_a_key_that_is_no_label_name_is_refused(label):
    with pytest.raises(ConfigError, match="not a label name"):
        push("localhost:9091", grouping_key={label: "x"})


@pytest.mark.parametrize("address", ["", "ftp://localhost/" + SECRET, f"http://u:{SECRET}@localhost:port", "http://"])
def test_an_address_that_is_none_is_refused_without_repeating_it(address):
    with pytest.raises(ConfigError, match="gateway must be") as refused:
        push(address)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    "arguments", [{"job": ""}, {"every_seconds": 0}, {"every_seconds": float("inf")}, {"timeout_seconds": -1}]
)
def test_other_arguments_that_cannot_be_are_refused(arguments):
    with pytest.raises(ConfigError):
        push("localhost:9091", **arguments)


def test_user_and_password_become_basic_authentication_and_are_not_logged(gateway, monitor, log, health):
    log.set_level(logging.DEBUG)
    gateway.status = 401
    made = push(f"http://me:{SECRET}%40@{gateway.address}")
    _, headers, _ = gateway.got[0]
    assert headers["Authorization"] == "Basic " + base64.b64encode(f"me:{SECRET}@".encode()).decode()
    assert "cannot push to http://127.0.0.1: status 401" in log.text
    assert SECRET not in log.text + repr(made)


def test_a_gateway_that_is_down_is_counted_and_logged_once_and_hurts_nobody(monitor, health, log):
    before = health.internal_errors()["push"]
    made = push("127.0.0.1:1")
    assert not made.now()
    made.close()
    assert health.internal_errors()["push"] == before + 3
    assert len([r for r in log.records if "cannot push to http://127.0.0.1" in r.message]) == 1


@pytest.mark.parametrize(
    "end", ["", "raise RuntimeError('crash')", "sys.exit(3)", "os.kill(os.getpid(), signal.SIGINT)"]
)
def test_the_last_numbers_are_pushed_however_the_program_ends(gateway, end):
    script = EXIT + f"from gradwatch.exporters.push import push\npush({gateway.address!r})\nmonitor.step()\n"
    run_script(f"{script}import os, signal\n{end}")
    assert 'gradwatch_steps_total{monitor="run"} 2.0' in gateway.bodies[-1]
    assert 'gradwatch_run_active{monitor="run"} 0.0' in gateway.bodies[-1]
