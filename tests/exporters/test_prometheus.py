"""The exposition and its endpoint, read as Prometheus reads them."""

from __future__ import annotations

import gc
import gzip
import json
import math
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.request

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse
from telemetry.fake import FakeMonitor
from telemetry.processes import run_script

from gradwatch.errors import ConfigError, ServeError
from gradwatch.exporters import exposition
from gradwatch.exporters.exposition import MOST_LAYERS
from gradwatch.exporters.metrics import METRICS
from gradwatch.exporters.ports import worker_index
from gradwatch.exporters.prometheus import serve
from gradwatch.reading.run_name import run_name

HOSTILE = ['quo"te', "back\\slash", "line\nbreak", "<script>alert(1)</script>", "{}", "x" * 10_000, "\x00\x1b[31m"]


def get(url: str, **headers: str) -> bytes:
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as response:
        return response.read()


def samples(text: bytes) -> dict[tuple[str, ...], float]:
    """(name, label, value, label, value ...) -> number"""
    found = {}
    for family in parse(text.decode()):
        for sample in family.samples:
            key = (sample.name, *(part for pair in sorted(sample.labels.items()) for part in pair))
            assert key not in found, f"{key} stands twice"
            found[key] = sample.value
    return found


@pytest.fixture
def server(reader):
    with serve(0) as server:
        yield server


def show(reader, *monitors):
    for monitor in monitors:
        reader.register(monitor)
    assert reader.poll_now()


def promtool(text: bytes) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed")
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, timeout=30)
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")


def test_promtool_has_nothing_to_say_before_the_first_step(reader, server):
    monitor = FakeMonitor()
    show(reader, monitor)
    promtool(get(server.metrics_url))


def test_promtool_has_nothing_to_say_about_a_run_that_went_bad(reader):
    monitor = FakeMonitor("bad", layer_norms=dict.fromkeys(HOSTILE, 1.0), extra={"loss": math.nan})
    monitors = [monitor, *(FakeMonitor(name) for name in HOSTILE)]
    for monitor in monitors:
        monitor.step(math.nan, 0.0, "zero")
        monitor.begin("explosion", math.inf)
    show(reader, *monitors)
    with serve(0, layers=10) as server:
        promtool(get(server.metrics_url))


def test_the_exposition_has_every_metric_of_the_table(reader, server):
    monitor = FakeMonitor()
    show(reader, monitor)
    text = get(server.metrics_url).decode()
    for metric in METRICS:
        assert f"# HELP {metric.name} " in text
        shown = "gauge" if metric.type == "info" else metric.type
        assert f"# TYPE {metric.name} {shown}\n" in text


def test_there_is_never_a_nan_sample(reader, server):
    monitor = FakeMonitor(extra={"loss": math.nan}, score=math.nan)
    monitor.step(math.nan, math.nan, "pass")
    show(reader, monitor)
    found = samples(get(server.metrics_url))
    assert not [key for key, number in found.items() if math.isnan(number)]
    assert found["gradwatch_gradient_norm_last", "monitor", "run"] == math.inf


def test_several_monitors_are_one_endpoint(reader, server):
    generator, critic = FakeMonitor("generator"), FakeMonitor("critic")
    generator.step()
    show(reader, generator, critic)
    found = samples(get(server.metrics_url))
    assert found["gradwatch_steps_total", "monitor", "generator"] == 1
    assert found["gradwatch_steps_total", "monitor", "critic"] == 0


def test_two_monitors_of_one_name_are_still_a_valid_exposition(reader, server):
    old, new = FakeMonitor("same"), FakeMonitor("same")
    new.step()
    show(reader, old, new)
    assert samples(get(server.metrics_url))["gradwatch_steps_total", "monitor", "same"] == 1


def test_a_dead_monitor_leaves_the_exposition(reader, server):
    monitor = FakeMonitor()
    show(reader, monitor)
    assert b'monitor="run"' in get(server.metrics_url)
    del monitor
    gc.collect()
    reader.poll_now()
    assert b'monitor="run"' not in get(server.metrics_url)


def test_a_new_reading_is_in_the_next_scrape(reader, server):
    monitor = FakeMonitor()
    show(reader, monitor)
    for steps in (1, 2, 3):
        monitor.step()
        reader.poll_now()
        assert samples(get(server.metrics_url))["gradwatch_steps_total", "monitor", "run"] == steps


def test_a_storm_of_scrapes_formats_once(reader, monkeypatch):
    formatted = []
    original = exposition.Collector.collect
    monkeypatch.setattr(exposition.Collector, "collect", lambda self: formatted.append(1) or original(self))
    with serve(0) as server:
        for _ in range(20):
            get(server.metrics_url)
    assert len(formatted) <= 3


def test_openmetrics_is_served_to_who_asks_for_it(reader, server):
    monitor = FakeMonitor()
    monitor.step(3.0)
    show(reader, monitor)
    text = get(server.metrics_url, Accept="application/openmetrics-text; version=1.0.0").decode()
    families = {family.name: family for family in parse_openmetrics(text)}
    assert families["gradwatch_steps"].type == "counter"
    assert families["gradwatch_snapshot_duration_seconds"].unit == "seconds"


def test_an_answer_is_compressed_for_who_asks_for_it(reader, server):
    monitor = FakeMonitor()
    show(reader, monitor)
    packed = get(server.metrics_url, **{"Accept-Encoding": "gzip"})
    assert b"gradwatch_steps_total" in gzip.decompress(packed)


def test_hostile_names_are_inert(reader):
    monitors = [FakeMonitor(name, layer_norms=dict.fromkeys(HOSTILE, 1.0)) for name in HOSTILE]
    show(reader, *monitors)
    with serve(0, layers=50) as server:
        text = get(server.metrics_url).decode()
    found = samples(text.encode())
    assert len([key for key in found if key[0] == "gradwatch_steps_total"]) == len(HOSTILE)
    assert len([key for key in found if key[0] == "gradwatch_layer_gradient_norm"]) == len(HOSTILE) ** 2
    assert max(map(len, text.splitlines())) < 2000
    assert "\x1b" not in text
    assert "\x00" not in text


def test_layers_are_shown_only_when_asked_for(reader, server):
    monitor = FakeMonitor(layer_norms={"a": 1.0})
    show(reader, monitor)
    assert b"gradwatch_layer_gradient_norm{" not in get(server.metrics_url)


def test_update_ratio_and_reach_are_shown_once_they_are_known(reader, server):
    names = [b"gradwatch_update_ratio{", b"gradwatch_layer_update_ratio{", b"gradwatch_reach_norm{"]
    show(reader, monitor := FakeMonitor(reach=float("inf")))
    text = get(server.metrics_url)
    assert [name in text for name in names] == [False, False, False]
    monitor.state = FakeMonitor(reach=42.0, update_ratio=0.0025, layer_update_ratio={"a": 0.01}).state
    reader.poll_now()
    found = samples(get(server.metrics_url))
    by_name = {
        key[0]: value for key, value in found.items() if key[0] in ("gradwatch_update_ratio", "gradwatch_reach_norm")
    }
    assert by_name == {"gradwatch_update_ratio": 0.0025, "gradwatch_reach_norm": 42.0}


def test_the_update_ratios_of_layers_are_those_of_the_chosen_layers(reader):
    layers = {f"layer{i}": float(i) for i in range(1000)}
    # a variable that is zero has a norm but no share
    shares = {name: x / 1e3 for name, x in layers.items() if x}
    show(reader, monitor := FakeMonitor(layer_norms=layers, layer_update_ratio=shares))
    assert len(monitor.state.layer_update_ratio) == 999
    collector = exposition.Collector(layers=3)
    (family,) = (f for f in collector.collect() if f.name == "gradwatch_layer_update_ratio")
    assert {s.labels["layer"]: s.value for s in family.samples} == {"layer500": 0.5, "layer999": 0.999}


def test_layers_are_capped_and_spread_over_the_model_and_stay_the_same(reader):
    monitor = FakeMonitor(layer_norms={f"layer{i}": float(i) for i in range(1000)})
    show(reader, monitor)
    collector = exposition.Collector(layers=3)

    def shown():
        (family,) = (f for f in collector.collect() if f.name == "gradwatch_layer_gradient_norm")
        return {sample.labels["layer"]: sample.value for sample in family.samples}

    assert shown() == {"layer0": 0.0, "layer500": 500.0, "layer999": 999.0}
    monitor.state = FakeMonitor(layer_norms={f"layer{i}": 1.0 for i in (0, 499, 500, 999)}).state
    reader.poll_now()
    assert set(shown()) == {"layer0", "layer500", "layer999"}


@pytest.mark.parametrize("layers", [-1, MOST_LAYERS + 1])
def test_more_layers_than_the_cap_are_refused(layers):
    with pytest.raises(ConfigError, match=f"between 0 and {MOST_LAYERS}"):
        exposition.Collector(layers)


def test_a_value_that_cannot_be_read_is_left_out_and_counted(reader, health, server):
    monitor = FakeMonitor(norm_counts=(1, 2))
    show(reader, monitor)
    before = health.scrape_errors()["exposition"]
    found = samples(get(server.metrics_url))
    assert ("gradwatch_steps_total", "monitor", "run") in found
    assert not [key for key in found if key[0] == "gradwatch_gradient_norm_bucket"]
    assert found["gradwatch_scrape_errors_total", "component", "exposition"] == before + 1


def test_a_scrape_does_not_wait_for_a_monitor_that_hangs(reader, server):
    release = threading.Event()
    monitor = FakeMonitor()
    show(reader, monitor)
    monitor.snapshot = lambda: release.wait(10)
    reader.poll_now(timeout_seconds=0.05)
    began = time.monotonic()
    assert b'gradwatch_steps_total{monitor="run"}' in get(server.metrics_url)
    assert time.monotonic() - began < 2
    release.set()


# -- the endpoint ----------------------------------------------------------------------------------------


def test_it_listens_on_this_host_only_unless_told_otherwise(server):
    assert server._httpd.socket.getsockname()[0] == "127.0.0.1"
    assert server.url == f"http://127.0.0.1:{server.port}"


def test_the_front_page_points_to_the_metrics_and_nothing_else_is_served(server):
    assert b"/metrics" in get(server.url + "/")
    for path in ("/metrics/", "/../etc/passwd", "/favicon.ico"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            get(server.url + path)
        with refused.value:
            assert refused.value.code == 404


def test_a_page_of_ones_own_takes_every_path_but_the_metrics(reader):
    def page(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [environ["PATH_INFO"].encode()]

    with serve(0, page=page) as server:
        assert get(server.url + "/live/data") == b"/live/data"
        assert b"gradwatch_build_info" in get(server.metrics_url)


def test_a_page_that_fails_is_an_error_500_and_counted(reader, health):
    def page(environ, start_response):
        raise RuntimeError("broken page")

    before = health.scrape_errors()["http"]
    with serve(0, page=page) as server, pytest.raises(urllib.error.HTTPError) as failed:
        get(server.url)
    with failed.value:
        assert failed.value.code == 500
        assert b"broken page" not in failed.value.read()
    assert health.scrape_errors()["http"] > before


def test_a_taken_port_is_an_error_that_names_it_and_the_cure():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ServeError, match=f"port {port} on 127.0.0.1 is taken; use port=0.*port={port + 1}"):
            serve(port)


def test_port_0_always_opens_another_server(server):
    with serve(0) as another:
        assert another.port != server.port


def test_serving_twice_on_one_port_is_one_server_or_an_error_that_says_why(reader):
    with serve(0) as probe:
        port = probe.port
    with serve(port) as first:
        assert serve(port) is first
        with pytest.raises(ServeError, match="already served by this process, with other options"):
            serve(port, layers=5)
    with serve(port, layers=5) as second:
        assert second.port == port


def test_a_closed_server_frees_its_port_and_may_be_closed_again(reader):
    server = serve(0)
    server.close()
    server.close()
    assert "closed" in repr(server)
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", server.port)) != 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"port": -1}, "between 0 and 65535"),
        ({"port": 65536}, "between 0 and 65535"),
        ({"port": "9464"}, "between 0 and 65535"),
        ({"port": 65000, "worker": 600}, "above 65535"),
        ({"worker": -1}, "worker must be an index"),
        ({"worker": "second"}, "worker must be an index"),
        ({"certfile": "c.pem"}, "belong together"),
        ({"client_cafile": "ca.pem"}, "needs HTTPS"),
        ({"layers": -1}, "layers must be"),
    ],
)
def test_arguments_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        serve(**{"port": 0, **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"addr": "no such host.invalid"}, "check addr"),
        ({"addr": "192.0.2.1"}, "check addr"),
        ({"certfile": "missing.pem", "keyfile": "missing.pem"}, "certificate cannot be used"),
        ({"file_sd": "missing/folder"}, "target file cannot be written"),
    ],
)
def test_what_the_system_refuses_is_a_serve_error(reader, arguments, message):
    with pytest.raises(ServeError, match=message):
        serve(**{"port": 0, **arguments})


# -- several workers on one host -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "index"),
    [
        ({}, 0),
        ({"LOCAL_RANK": "3"}, 3),
        ({"OMPI_COMM_WORLD_LOCAL_RANK": "2"}, 2),
        ({"SLURM_LOCALID": "1"}, 1),
        ({"LOCAL_RANK": "1", "SLURM_LOCALID": "7"}, 1),
        ({"TF_CONFIG": '{"cluster": {}, "task": {"type": "worker", "index": 4}}'}, 4),
        ({"TF_CONFIG": '{"cluster": {}}'}, 0),
        ({"LOCAL_RANK": "", "TF_CONFIG": ""}, 0),
    ],
)
def test_a_worker_finds_its_index_in_the_environment(environ, index):
    assert worker_index(environ) == index


@pytest.mark.parametrize("environ", [{"LOCAL_RANK": "one"}, {"TF_CONFIG": "{"}, {"TF_CONFIG": "[]"}])
def test_an_environment_without_an_index_is_refused(environ):
    with pytest.raises(ConfigError, match="give worker= as a number"):
        worker_index(environ)


def test_workers_of_one_host_take_ports_one_after_the_other(reader, monkeypatch):
    with serve(0) as probe:
        port = probe.port
    monkeypatch.setenv("LOCAL_RANK", "1")
    with serve(port - 1, worker="auto") as server:
        assert server.port == port


def test_the_target_file_names_the_endpoint_and_goes_with_it(reader, tmp_path):
    server = serve(0, file_sd=tmp_path, advertise="trainer-1.example")
    (path,) = tmp_path.iterdir()
    assert server.target_file == path
    assert path.suffix == ".json"
    assert path.stat().st_mode & 0o777 == 0o644
    (entry,) = json.loads(path.read_text())
    assert entry == {
        "targets": [f"trainer-1.example:{server.port}"],
        "labels": {
            "__scheme__": "http",
            "__meta_gradwatch_host": socket.gethostname(),
            "__meta_gradwatch_pid": str(os.getpid()),
            "run": run_name(),
        },
    }
    server.close()
    assert list(tmp_path.iterdir()) == []


def test_a_hostile_host_name_stays_inside_the_folder(reader, tmp_path):
    with serve(0, file_sd=tmp_path, advertise="../../evil\n"):
        assert len(list(tmp_path.iterdir())) == 1


# -- forks -----------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_neither_holds_the_port_nor_closes_the_parents_server(tmp_path):
    done = run_script(
        f"""
import os, time, urllib.request, warnings
warnings.simplefilter("ignore")
os.register_at_fork(after_in_child=lambda: time.sleep(0.2))  # a busy machine
from pathlib import Path
from gradwatch.exporters.prometheus import serve
folder = Path({str(tmp_path)!r})
with serve(0, file_sd=folder) as server:
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        print("FILES", len(list(folder.iterdir())), urllib.request.urlopen(server.url).status, flush=True)
if child == 0:
    os._exit(0)
forked, tell = os.pipe()
with serve(0) as server:
    child = os.fork()
    if child == 0:
        os.write(tell, b".")
        time.sleep(30)
        os._exit(0)
try:
    os.read(forked, 1)  # before that the child may not have come to close what it got with the fork
    port = server.port
    serve(port).close()
    print("FREE", flush=True)
finally:
    os.kill(child, 9)
"""
    )
    assert done.stdout.split("\n")[:2] == ["FILES 1 200", "FREE"], done.stderr


# -- TLS -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """One self-signed pair, used by the server and, in the test of client certificates, by the client."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=60)
    return str(folder / "cert.pem"), str(folder / "key.pem")


def get_tls(url, certificates, *, with_client_certificate: bool) -> bytes:
    context = ssl.create_default_context(cafile=certificates[0])
    if with_client_certificate:
        context.load_cert_chain(*certificates)
    with urllib.request.urlopen(url, context=context, timeout=10) as response:
        return response.read()


def test_it_speaks_https(reader, certificates):
    with serve(0, certfile=certificates[0], keyfile=certificates[1]) as server:
        assert server.url.startswith("https://")
        assert b"gradwatch_build_info" in get_tls(server.metrics_url, certificates, with_client_certificate=False)


def test_with_a_client_authority_only_known_clients_are_served(reader, certificates):
    with serve(0, certfile=certificates[0], keyfile=certificates[1], client_cafile=certificates[0]) as server:
        assert b"gradwatch_build_info" in get_tls(server.metrics_url, certificates, with_client_certificate=True)
        with pytest.raises(OSError):  # an SSLError or a reset, as the timing has it
            get_tls(server.metrics_url, certificates, with_client_certificate=False)


def test_a_client_that_never_shakes_hands_holds_nobody_up(reader, certificates):
    with (
        serve(0, certfile=certificates[0], keyfile=certificates[1]) as server,
        socket.create_connection(("127.0.0.1", server.port)),
    ):
        assert get_tls(server.metrics_url, certificates, with_client_certificate=False)
