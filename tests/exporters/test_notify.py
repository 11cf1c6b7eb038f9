"""Messages to people: sent once, not too often, from a thread of their own, and without secrets in the log."""

from __future__ import annotations

import importlib.util
import json
import logging
import math
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from telemetry.fake import FakeMonitor
from telemetry.processes import EXIT, run_script

from gradwatch.errors import ConfigError, MissingExtra
from gradwatch.exporters import notify
from gradwatch.exporters.notify import Apprise, SendError, Slack, Webhook, channel_for
from gradwatch.reading.alerts import Alert

SECRET = "T00-B00-s3cr3t"


def alert(kind="explosion", severity="warning", *, phase="fired", monitor="run", active=True, **changes) -> Alert:
    values = {"step": 7, "norm": 50.0, "threshold": 5.0, "message": "it exploded", "time": 1000.0, **changes}
    return Alert(kind, monitor, severity=severity, phase=phase, active=active, **values)


class Receiver:
    """An endpoint that remembers what it got and answers as told."""

    def __init__(self):
        self.got: list[tuple[dict[str, str], dict]] = []
        self.answers: list[tuple[int, dict[str, str]]] = []  # the first ones; then 200
        self.delay = 0.0
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.got.append((dict(self.headers), json.loads(body)))
                time.sleep(receiver.delay)
                status, headers = receiver.answers.pop(0) if receiver.answers else (200, {})
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/hook/{SECRET}?token={SECRET}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @property
    def texts(self) -> list[str]:
        return [payload["text"] for _, payload in self.got]

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def receiver():
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(notify.channel, "_FIRST_PAUSE_SECONDS", 0.01)


@pytest.fixture
def counted(health):
    """outcome -> messages of a channel since the test began."""
    before = health.notifications()

    def since(channel: str) -> dict[str, int]:
        now = health.notifications()
        return {o: now[channel, o] - before[channel, o] for o in ("sent", "failed", "suppressed")}

    return since


def send(channel, *alerts):
    for one in alerts:
        channel(one)
    assert channel.flush(10)


# -- the channels ----------------------------------------------------------------------------------------


def test_a_webhook_gets_the_alert_as_json(receiver, counted):
    send(Webhook(receiver.url), alert(norm=math.nan, shares={"dense/kernel": 1.0}))
    ((headers, payload),) = receiver.got
    assert headers["Content-Type"] == "application/json"
    assert payload["kind"] == "explosion"
    assert payload["norm"] == "NaN"
    assert payload["shares"] == {"dense/kernel": 1.0}
    assert payload["text"] == "it exploded"
    assert counted("webhook") == {"sent": 1, "failed": 0, "suppressed": 0}


def test_a_webhook_sends_the_headers_it_was_given(receiver):
    send(Webhook(receiver.url, headers={"Authorization": f"Bearer {SECRET}"}), alert())
    assert receiver.got[0][0]["Authorization"] == f"Bearer {SECRET}"


def test_slack_gets_text_in_which_a_layer_name_can_call_nobody(receiver, counted):
    send(Slack(receiver.url), alert(message="Carried by <!channel> & <script> (70%)."))
    assert "Carried by &lt;!channel&gt; &amp; &lt;script&gt; (70%)." in receiver.texts[0]
    assert "*gradient explosion (run)*" in receiver.texts[0]
    assert counted("slack")["sent"] == 1


def test_apprise_sends_to_the_services_it_knows(receiver, counted):
    pytest.importorskip("apprise")
    send(Apprise(receiver.url.replace("http://", "json://")), alert(severity="critical"))
    ((_, payload),) = receiver.got
    assert payload["title"] == "gradient explosion (run)"
    assert payload["message"] == "it exploded"
    assert payload["type"] == "failure"
    assert counted("apprise")["sent"] == 1


def test_without_apprise_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "apprise", None)
    with pytest.raises(MissingExtra, match=r"gradwatch-tf\[notify\]"):
        Apprise("json://localhost")


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("https://hooks.slack.com/services/a/b/c", Slack),
        ("https://example.org/hook", Webhook),
        ("http://127.0.0.1:1", Webhook),
        ("json://localhost", Apprise),
    ],
)
def test_a_url_finds_its_channel(url, kind):
    if kind is Apprise:
        pytest.importorskip("apprise")
    assert type(channel_for(url)) is kind


@pytest.mark.parametrize("kind", ["webhook", "slack", "apprise"])
def test_the_command_tries_each_kind_of_receiver(receiver, kind):
    from click.testing import CliRunner

    from gradwatch.cli.commands import notify

    url = receiver.url
    if kind == "apprise":
        pytest.importorskip("apprise")
        url = url.replace("http://", "json://")
    done = CliRunner().invoke(notify, ["test", url, "--as", kind, "--severity", "critical"])
    assert done.exit_code == 0, done.output
    ((_, payload),) = receiver.got
    assert "This is a test message of gradwatch." in json.dumps(payload)
    shown = {"webhook": payload.get("severity"), "slack": payload.get("text", "")[:1], "apprise": payload.get("type")}
    assert shown[kind] == {"webhook": "critical", "slack": "🚨", "apprise": "failure"}[kind]


def test_a_kind_of_channel_that_there_is_none_of_is_refused():
    with pytest.raises(ConfigError, match="one of webhook, slack, apprise"):
        channel_for("https://example.org/hook", "pigeon")


def test_a_clipped_explosion_that_did_no_harm_is_sent_to_nobody(receiver, reader):
    monitor = FakeMonitor("generator")
    channel = Webhook(receiver.url)
    monitor.alert_sinks.append(channel)
    reader.register(monitor)
    for _ in range(100):
        monitor.step(loss=1.0)
    reader.poll_now()
    monitor.begin("explosion", loss=1.0)
    reader.poll_now()
    monitor.end("explosion", loss=1.0)
    for _ in range(100):
        monitor.step(loss=1.0)
    reader.poll_now()
    assert channel.flush(5)
    assert receiver.got == []


# -- failures --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_a_passing_failure_is_tried_again(receiver, counted, status):
    receiver.answers = [(status, {}), (status, {})]
    send(Webhook(receiver.url), alert())
    assert len(receiver.got) == 3
    assert counted("webhook") == {"sent": 1, "failed": 0, "suppressed": 0}


@pytest.mark.parametrize("status", [301, 302, 307, 400, 401, 403, 404, 410])
def test_a_lasting_failure_is_not_tried_again(receiver, counted, status):
    receiver.answers = [(status, {"Location": receiver.url})]
    send(Webhook(receiver.url), alert())
    assert len(receiver.got) == 1
    assert counted("webhook") == {"sent": 0, "failed": 1, "suppressed": 0}


def test_a_dead_endpoint_is_given_up_after_the_attempts_and_counted(counted, health):
    before = health.internal_errors()["notify"]
    send(Webhook("http://127.0.0.1:1/hook", attempts=3), alert())
    assert counted("webhook") == {"sent": 0, "failed": 1, "suppressed": 0}
    assert health.internal_errors()["notify"] == before + 1


def test_the_pauses_between_attempts_grow(monkeypatch, receiver):
    pauses = []
    monkeypatch.setattr(notify.channel.random, "uniform", lambda low, high: 1.0)
    receiver.answers = [(500, {})] * 4
    channel = Webhook(receiver.url, attempts=4)
    channel._ending.wait = lambda seconds: pauses.append(seconds)
    send(channel, alert())
    assert pauses == [0.01, 0.02, 0.04]


@pytest.mark.parametrize(("asked", "waited"), [("5", 5.0), ("1e9", 60.0), ("-3", 0.01), ("tomorrow", 0.01)])
def test_the_pause_a_server_asks_for_is_kept_within_reason(monkeypatch, receiver, asked, waited):
    pauses = []
    monkeypatch.setattr(notify.channel.random, "uniform", lambda low, high: 1.0)
    receiver.answers = [(429, {"Retry-After": asked})]
    channel = Webhook(receiver.url)
    channel._ending.wait = lambda seconds: pauses.append(seconds)
    send(channel, alert())
    assert pauses == [waited]


def test_a_slow_endpoint_makes_nobody_wait(receiver):
    receiver.delay = 0.5
    channel = Webhook(receiver.url, every_seconds=0)
    began = time.monotonic()
    for _ in range(50):
        channel(alert())
    assert time.monotonic() - began < 0.2
    receiver.delay = 0.0
    assert channel.flush(10)  # or the rest would count in the next test


def test_an_endpoint_that_never_answers_is_cut_off_by_the_timeout(receiver, counted):
    receiver.delay = 5.0
    began = time.monotonic()
    send(Webhook(receiver.url, timeout_seconds=0.1, attempts=2), alert())
    assert time.monotonic() - began < 3
    assert counted("webhook")["failed"] == 1


def test_a_full_queue_drops_and_counts(receiver, counted):
    receiver.delay = 0.5
    channel = Webhook(receiver.url, every_seconds=0, capacity=2)
    for _ in range(20):
        channel(alert())
    assert channel.flush(10)
    assert counted("webhook")["sent"] == len(receiver.got) <= 3  # one on its way and two that wait
    assert counted("webhook")["failed"] == 20 - len(receiver.got)


# -- how much is said ------------------------------------------------------------------------------------


def test_alerts_below_the_minimum_severity_are_ignored(receiver):
    send(Webhook(receiver.url, min_severity="critical"), alert(severity="warning"), alert(severity="critical"))
    assert [payload["severity"] for _, payload in receiver.got] == ["critical"]


def test_one_kind_is_said_once_in_a_while_and_the_next_message_says_how_many_were_held_back(
    receiver, counted, monkeypatch
):
    channel = Webhook(receiver.url, every_seconds=300)
    send(channel, *[alert() for _ in range(5)])
    assert len(receiver.got) == 1
    assert counted("webhook") == {"sent": 1, "failed": 0, "suppressed": 4}
    real = time.monotonic
    monkeypatch.setattr(notify.channel.time, "monotonic", lambda: real() + 301)
    channel(alert())
    monkeypatch.undo()
    assert channel.flush(5)
    assert receiver.texts[1] == "it exploded 4 more alerts of this kind since the last message."


def test_the_limit_holds_for_each_kind_and_monitor_by_itself(receiver):
    send(Webhook(receiver.url), alert("explosion"), alert("vanishing"), alert("explosion", monitor="other"))
    assert len(receiver.got) == 3


def test_a_higher_severity_passes_the_limit(receiver):
    send(Webhook(receiver.url), alert(severity="warning"), alert(severity="critical"), alert(severity="critical"))
    assert [payload["severity"] for _, payload in receiver.got] == ["warning", "critical"]


def over(**changes) -> Alert:
    return alert(severity="info", phase="resolved", active=False, message="it is over", **changes)


def test_a_recovery_is_said_once(receiver):
    send(Webhook(receiver.url), alert(), over(), over())
    assert receiver.texts == ["it exploded", "it is over"]


def test_a_recovery_from_what_was_never_said_is_not_said(receiver):
    channel = Webhook(receiver.url, min_severity="critical")
    send(channel, over(), alert(severity="warning"), over())
    assert receiver.got == []


def test_no_recovery_follows_an_alert_that_said_itself_that_it_was_over(receiver):
    send(Webhook(receiver.url), alert(active=False), over())
    assert receiver.texts == ["it exploded"]


def test_a_recovery_is_left_out_on_request(receiver):
    send(Webhook(receiver.url, recovery=False), alert(), over())
    assert receiver.texts == ["it exploded"]


def test_from_training_to_message(receiver, reader):
    monitor = FakeMonitor("generator")
    channel = Webhook(receiver.url)
    monitor.alert_sinks.append(channel)
    reader.register(monitor)
    monitor.begin("explosion", verdict="pass")  # it reached the weights, and the loss is not known
    reader.poll_now()
    monitor.end("explosion")
    reader.poll_now()
    assert channel.flush(5)
    assert [payload["phase"] for _, payload in receiver.got] == ["fired", "resolved"]
    assert "at step 1 of generator" in receiver.texts[0]


# -- the test message ------------------------------------------------------------------------------------


def test_a_test_message_ignores_the_limits(receiver):
    channel = Webhook(receiver.url, min_severity="critical")
    channel.test()
    channel.test()
    assert len(receiver.got) == 2


def test_a_test_message_that_fails_says_why_without_the_url(receiver):
    receiver.answers = [(403, {})]
    with pytest.raises(SendError, match="status 403") as failed:
        Webhook(receiver.url).test()
    assert SECRET not in str(failed.value)


# -- arguments -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"min_severity": "fatal"}, "min_severity must be one of info, warning, critical"),
        ({"every_seconds": -1}, "every_seconds must be >= 0"),
        ({"every_seconds": math.nan}, "every_seconds must be >= 0"),
        ({"timeout_seconds": 0}, "timeout_seconds must be > 0"),
        ({"timeout_seconds": math.inf}, "timeout_seconds must be > 0"),
        ({"attempts": 0}, "must be >= 1"),
        ({"capacity": 0}, "must be >= 1"),
    ],
)
def test_limits_that_cannot_be_are_refused(limits, message):
    with pytest.raises(ConfigError, match=message):
        Webhook("http://localhost", **limits)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:80",
        "ftp://localhost/" + SECRET,
        "file:///etc/passwd",
        f"http://user:{SECRET}@localhost",
        f"http://localhost:port/{SECRET}",
        f"http://localhost/{SECRET}\r\nX-Evil: 1",
        None,
        7,
    ],
)
def test_a_url_that_is_none_is_refused_without_repeating_it(url):
    with pytest.raises(ConfigError, match="must be an http") as refused:
        Webhook(url)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize("url", [f"nonsense://{SECRET}", f"slack://{SECRET}", SECRET])
def test_an_apprise_url_that_is_none_is_refused_without_repeating_it(url, log):
    pytest.importorskip("apprise")
    log.set_level(logging.DEBUG)
    with pytest.raises(ConfigError, match="apprise does not understand") as refused:
        Apprise(url)
    assert SECRET not in str(refused.value)
    assert SECRET not in log.text


def test_no_secret_is_logged_or_shown_whatever_goes_wrong(receiver, health, log, capfd):
    log.set_level(logging.DEBUG)
    headers = {"Authorization": f"Bearer {SECRET}"}
    receiver.answers = [(404, {}), (500, {"Retry-After": "0"})]
    dead = receiver.url.replace(receiver.url.split("/")[2], "127.0.0.1:1")
    channels = [Webhook(receiver.url, headers=headers), Slack(receiver.url), Webhook(dead, attempts=1)]
    if importlib.util.find_spec("apprise"):
        channels += [Apprise(url.replace("http", "json", 1), attempts=1) for url in (receiver.url, dead)]
    for channel in channels:
        send(channel, alert())
        assert SECRET not in repr(channel)
    out, err = capfd.readouterr()
    assert SECRET not in log.text + out + err
    assert "http://127.0.0.1" in log.text  # that it failed is said


@pytest.mark.parametrize("kind", ["Webhook", "Apprise"])
def test_the_last_message_is_sent_when_the_process_ends(receiver, kind):
    if kind == "Apprise":
        pytest.importorskip("apprise")
    url = receiver.url if kind == "Webhook" else receiver.url.replace("http", "json", 1)
    done = run_script(
        f"from gradwatch.exporters.notify import {kind}\nchannel = {kind}({url!r})\n"
        + EXIT.replace("reader.set_interval", "monitor.alert_sinks.append(channel)\nreader.set_interval")
    )
    assert done.returncode == 0, done.stderr
    assert len(receiver.got) == 1


def test_a_dead_endpoint_does_not_hold_up_the_end_of_the_process():
    began = time.monotonic()
    done = run_script(
        "from gradwatch.exporters import notify\nnotify.channel._EXIT_SECONDS = 0.5\n"
        + EXIT.replace(
            "reader.set_interval",
            "monitor.alert_sinks.append(notify.Webhook('http://127.0.0.1:1/x', attempts=50))\nreader.set_interval",
        )
    )
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - began < 20
