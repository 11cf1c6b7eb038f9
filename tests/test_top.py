"""`gradwatch top`: what it shows is what the endpoint says."""

from __future__ import annotations

import io
import json
import math
import sys
from pathlib import Path

import pytest
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parent / "telemetry"))

from fake import FakeMonitor

from gradwatch.cli import top
from gradwatch.errors import ConfigError
from gradwatch.exporters.prometheus import serve
from gradwatch.reading.reader import reader as process_reader


@pytest.fixture
def reader():
    process_reader.close()
    process_reader._departed.clear()
    process_reader.set_interval(0.05)
    yield process_reader
    process_reader.close()
    process_reader._departed.clear()
    process_reader.set_interval(1.0)


@pytest.fixture
def server(reader):
    with serve(0) as running:
        yield running


def screen(width=200):
    return Console(file=io.StringIO(), width=width, force_terminal=False)


def shown(urls, **options):
    console = screen()
    status = top.run(urls, 0.1, once=True, console=console, **options)
    return status, console.file.getvalue()


def closed_port(server):
    server.close()
    return server.url


def test_a_row_has_the_numbers_of_the_snapshot(reader, server):
    run = FakeMonitor("train")
    reader.register(run)
    run.step(7.5, applied=2.0, verdict="clip", clip_norm=2.0, explosion_threshold=9.0, warmup=False, update_ratio=2e-3)
    reader.poll_now()
    (row,) = top.Endpoint(server.url).rows()
    snapshot = run.snapshot()
    assert (row.monitor, row.state, row.tone) == ("train", "healthy", "ok")
    assert row.steps == snapshot.steps
    assert row.norm == snapshot.norm
    assert row.applied_norm == snapshot.applied_norm
    assert row.clip_norm == snapshot.clip_norm
    assert row.threshold == snapshot.explosion_threshold
    assert row.clip_ratio == 1.0
    assert row.update_ratio == 2e-3


EXPOSITION = "".join(
    f'''gradwatch_steps_total{{monitor="{name}"}} 1234567
gradwatch_run_active{{monitor="{name}"}} 1
gradwatch_run_info{{monitor="{name}",run_name="lm-{i}",policy="percentile(90)"}} 1
gradwatch_snapshot_timestamp_seconds{{monitor="{name}"}} 1000
gradwatch_last_step_timestamp_seconds{{monitor="{name}"}} 1000
gradwatch_run_start_timestamp_seconds{{monitor="{name}"}} 0
gradwatch_host_overhead_seconds_total{{monitor="{name}"}} 1
gradwatch_gradient_norm_last{{monitor="{name}"}} 932812.5
gradwatch_gradient_norm_applied{{monitor="{name}"}} 12.06
gradwatch_clip_norm{{monitor="{name}"}} +Inf
gradwatch_explosion_threshold{{monitor="{name}"}} 230.6
gradwatch_clipped_steps_total{{monitor="{name}"}} 172839
gradwatch_expected_clip_ratio{{monitor="{name}"}} 0.1
gradwatch_anomaly_active{{monitor="{name}",kind="explosion"}} {i}
gradwatch_anomalies_total{{monitor="{name}",kind="explosion"}} {i}
gradwatch_anomalies_total{{monitor="{name}",kind="trend"}} {i}
'''
    for i, name in enumerate(("language-model", "a-monitor-with-a-name-that-is-longer-than-thirty-two-characters"))
)


def drawn(width, *, terminal=True):
    console = Console(file=io.StringIO(), width=width, force_terminal=terminal, color_system=None)
    top._print(console, top.parse(EXPOSITION, "trainer-1:9464"), False)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [60, 80, 100, 120, 200])
def test_a_terminal_shows_the_columns_that_fit_and_cuts_no_number(width):
    lines = drawn(width).splitlines()
    assert len(lines) == 3
    assert all(len(line.rstrip()) <= width for line in lines)
    assert "932812" in lines[1].replace(",", "") or "9.328e+05" in lines[1]
    assert "exploding" in lines[1]
    assert "language-model" in lines[2]
    assert not any(cell.endswith("…") for line in lines for cell in line.split())
    assert ("overhead" in lines[0]) == (width == 200)


def test_what_matters_most_stays_longest():
    assert drawn(46).splitlines()[0].split() == ["monitor", "state"]
    assert set(drawn(80).splitlines()[0].split()) == {"monitor", "state", "norm", "steps"}
    assert "overhead" not in drawn(80)


def test_in_a_pipe_everything_is_shown_in_full():
    text = drawn(80, terminal=False)
    assert "…" not in text
    assert "a-monitor-with-a-name-that-is-longer-than-thirty-two-characters" in text
    for heading in ("run", "monitor", "threshold", "applied", "anomalies", "overhead"):
        assert heading in text.splitlines()[0]
    assert "1 explosion 1 trend" in text


def test_json_has_every_number_and_is_strict():
    console = screen(80)
    top._print(console, [*top.parse(EXPOSITION, "trainer-1:9464"), top.Row("e", "", "no answer", "critical")], True)

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    wild, calm, silent = json.loads(console.file.getvalue(), parse_constant=refuse)
    assert (calm["monitor"], calm["run"], calm["steps"], calm["norm"]) == ("language-model", "lm-0", 1234567, 932812.5)
    assert calm["clip_norm"] == "Infinity"
    assert calm["pace"] is None
    assert wild["anomalies"]["explosion"] == 1
    assert (silent["monitor"], silent["steps"]) == ("", None)


def test_json_of_an_endpoint_is_one_line_for_each_look(reader, server):
    run = FakeMonitor("train")
    reader.register(run)
    run.step(7.5)
    reader.poll_now()
    status, text = shown([server.url], json=True)
    assert status == 0
    assert text.count("\n") == 1
    [row] = json.loads(text)
    assert (row["monitor"], row["norm"], row["run"]) == ("train", 7.5, "test")


def test_before_the_first_step_there_is_no_norm(reader, server):
    run = FakeMonitor("train")
    reader.register(run)
    reader.poll_now()
    [row] = top.Endpoint(server.url).rows()
    assert math.isnan(row.norm)
    assert math.isnan(row.applied_norm)
    assert row.state == "waiting for the first step"


def test_labels_of_the_endpoint_hide_nothing(reader):
    run = FakeMonitor("train")
    reader.register(run)
    run.step(7.5)
    reader.poll_now()
    with serve(0, labels={"team": "nlp"}) as server:
        [row] = top.Endpoint(server.url).rows()
    assert (row.norm, row.steps) == (7.5, 1)


def test_the_most_urgent_comes_first(reader, server):
    calm, wild = FakeMonitor("calm"), FakeMonitor("wild")
    for run in (calm, wild):
        reader.register(run)
        run.step(warmup=False)
    wild.begin("explosion")
    reader.poll_now()
    status, text = shown([server.url])
    assert status == 0
    lines = text.splitlines()
    assert "wild" in lines[1]
    assert "exploding" in lines[1]
    assert "1 explosion" in lines[1]
    assert "calm" in lines[2]


def test_many_endpoints_stand_side_by_side_and_one_that_is_down_says_so(reader, server):
    run = FakeMonitor("train")
    reader.register(run)
    run.step()
    reader.poll_now()
    other = serve(0)
    down = closed_port(other)
    status, text = shown([server.url, down])
    assert status == 1
    assert "nobody listens there" in text
    assert f"127.0.0.1:{server.port}" in text


def test_the_pace_is_steps_over_the_trainings_own_time():
    endpoint = top.Endpoint("127.0.0.1:1")
    row = top.Row("e", "m", "healthy", "ok", steps=100, time=1000.0)
    assert math.isnan(endpoint._pace(row))
    assert endpoint._pace(top.replace(row, steps=150, time=1005.0)) == 10.0
    assert math.isnan(endpoint._pace(top.replace(row, steps=3, time=1006.0)))  # another run


def test_a_proxy_of_the_environment_is_not_asked_for_this_host(reader, server, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    (row,) = top.Endpoint(server.url).rows()
    assert row.state == "no monitor yet"


def test_an_address_may_be_short():
    assert top.Endpoint("trainer:9464").url == "http://trainer:9464/metrics"
    assert top.Endpoint("https://trainer:9464/").url == "https://trainer:9464/metrics"
    assert top.Endpoint("http://hub/user/me/proxy/9464/metrics").url == "http://hub/user/me/proxy/9464/metrics"


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://host", "", "http://", "http://h:port", "http://u:secret@h"]
)
def test_what_is_no_address_of_an_endpoint_is_refused_without_its_secrets(url):
    with pytest.raises(ConfigError) as refused:
        top.run([url])
    assert "secret" not in str(refused.value)
    assert "passwd" not in str(refused.value)


def test_no_address_and_a_bad_interval_are_refused():
    with pytest.raises(ConfigError, match="at least one address"):
        top.run([])
    with pytest.raises(ConfigError, match="interval"):
        top.run(["h:1"], 0.0)


def test_a_hostile_name_is_plain_text_of_one_line():
    text = 'gradwatch_steps_total{monitor="[red]x[/red]\\n\x1b[31m"} 1\n'
    console = screen()
    console.print(top.table(top.parse(text, "e")))
    (_, line) = console.file.getvalue().rstrip("\n").split("\n")
    assert "[red]x[/red]" in line
    assert "\x1b" not in line


def test_another_programs_page_is_not_taken_for_an_endpoint(reader):
    def page(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/html")])
        return [b"<html>hello</html>"]

    with serve(0, page=page) as server:
        (row,) = top.Endpoint(server.url + "/other").rows()
    assert (row.state, row.tone) == ("not a gradwatch endpoint", "critical")


def test_it_looks_again_until_it_is_interrupted(reader, server, monkeypatch):
    run = FakeMonitor("train")
    reader.register(run)
    looks = []

    def sleep(seconds):
        run.step()
        reader.poll_now()
        looks.append(seconds)
        if len(looks) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(top.time, "sleep", sleep)
    console = screen()
    assert top.run([server.url], 0.5, console=console) == 0
    assert looks == [0.5, 0.5, 0.5]
    assert "train" in console.file.getvalue()
