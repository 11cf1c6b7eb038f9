"""The live page in a real browser, over a real training.

GRADWATCH_PICTURES=docs/pictures keeps the pictures of the page, light and dark.
"""

from __future__ import annotations

import importlib.util
import math
import os
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from browser import chromium
from servers import wait_until

sys.path.insert(0, str(Path(__file__).parents[1] / "telemetry"))

from fake import FakeMonitor

import gradwatch
from gradwatch.exporters.prometheus import serve
from gradwatch.reading import reader as reader_module

for module in ("bokeh", "websocket", "PIL"):
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed", allow_module_level=True)

KEPT = os.environ.get("GRADWATCH_PICTURES")

#: name -> {"step": [...], "value": [...]} of what is drawn, out of BokehJS itself.
DRAWN = """
    Object.fromEntries(Bokeh.documents[0].roots()[0].renderers.slice(1).map((renderer, i) => [
        ["norm", "applied_norm", "clip_norm", "threshold"][i],
        {step: Array.from(renderer.data_source.data.step), value: Array.from(renderer.data_source.data.value)},
    ]))
"""

#: The plots below the norm: scale and range of their newest figure, and how many are on the page.
BELOW = """
    Object.fromEntries(["loss", "learning_rate"].filter((name) => document.getElementById(name).firstElementChild)
      .map((name) => {
        const height = {loss: 170, learning_rate: 120}[name];
        const figures = Bokeh.documents.map((one) => one.roots()[0]).filter((one) => one && one.height === height);
        const made = figures.at(-1);
        const scale = made.y_scale.type, range = [made.y_range.start, made.y_range.end];
        return [name, {scale, range, figures: document.getElementById(name).querySelectorAll(".bk-Figure").length}];
    }))
"""


class Training:
    """A small real training, run step by step by the test."""

    def __init__(self, name: str) -> None:
        keras.utils.set_random_seed(0)
        model = keras.Sequential(
            [
                keras.layers.Input((16,)),
                keras.layers.Dense(32, activation="tanh", name="embedding"),
                keras.layers.Dense(32, activation="tanh", name="encoder"),
                keras.layers.Dense(32, activation="tanh", name="decoder"),
                keras.layers.Dense(1, name="head"),
            ]
        )
        optimizer = keras.optimizers.SGD(1e-5)
        optimizer.build(model.trainable_variables)

        @gradwatch.watch(name=name)
        @tf.function
        def step(x: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
            with tf.GradientTape() as tape:
                loss = factor * tf.reduce_mean((model(x) - tf.reduce_sum(x, axis=1, keepdims=True)) ** 2)
            gradients = tape.gradient(loss, model.trainable_variables)
            optimizer.apply_gradients(zip(gradients, model.trainable_variables))
            return loss

        self._step, self._data = step, tf.random.Generator.from_seed(1)
        self.monitor = step.monitor

    def run(self, steps: int, factor: float = 1.0) -> None:
        for _ in range(steps):
            self._step(self._data.normal((16, 16)), tf.constant(factor))

    def in_parts(self, steps: int) -> None:
        """Many steps, with a look in between, as a slower training would have it."""
        for done in range(0, steps, 400):
            self.run(min(400, steps - done))
            reader_module.poll_now()


class Run(FakeMonitor):
    """A training made of plain numbers, that makes any number of steps at once; its norms are known."""

    def __init__(self, name: str, spike: int = 0, **state: Any) -> None:
        super().__init__(name, **state)
        self.norms = np.exp(np.random.default_rng(0).normal(size=100_000))
        self.norms[spike - 1] = 1e6

    def leap(self, steps: int) -> None:
        done = self.state.steps + steps
        self.state = replace(self.state, steps=done, norm=float(self.norms[done - 1]))
        reader_module.poll_now()

    def history(self) -> dict[str, np.ndarray]:
        steps = np.arange(max(1, self.state.steps - 1023), self.state.steps + 1)
        norm = self.norms[steps - 1]
        columns = {"norm": norm, "applied_norm": np.minimum(norm, 2.0), "verdict": (norm > 2.0).astype(np.int8)}
        return {"step": steps, **columns, "clip_norm": norm * 0 + 2.0, "threshold": norm * 0 + 9.0, "score": norm * 0}


def watched(name: str, steps: int, **state: Any) -> Run:
    """A `Run` that the reader knows and that has made its first steps."""
    run = Run(name, **state)
    reader_module.register(run)
    run.leap(steps)
    return run


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("chromium")) as found:
        found.size(1280, 1480)
        yield found


@pytest.fixture(autouse=True)
def fresh(browser):
    reader_module.reader.close()
    reader_module.reader._departed.clear()
    browser.scheme("light")
    browser.open("about:blank")
    browser.complaints.clear()
    browser.requests.clear()
    yield
    browser.open("about:blank")
    reader_module.reader.close()
    reader_module.reader._departed.clear()


def shown(browser, steps, seconds=30.0):
    """Waits until the page shows this number of steps."""
    browser.wait_for(f"Number(document.documentElement.dataset.steps) === {steps}", seconds)


def number(browser, name):
    """The value behind a row of the table of numbers."""
    text = browser.run(f"""document.querySelector('#numbers tr[data-id="{name}"] td').dataset.value""")
    return float(text.replace("Infinity", "inf"))


def pixels(path):
    """Colour -> number of pixels."""
    from PIL import Image

    counted = Image.open(path).convert("RGB").getcolors(2**24)
    return Counter({colour: count for count, colour in counted})


def rgb(text):
    return tuple(int(text.strip().lstrip("#")[i : i + 2], 16) for i in (0, 2, 4))


def test_the_page_shows_a_running_training_as_its_snapshot_has_it(browser, tmp_path):
    training = Training("language-model")
    with serve(0) as server:
        training.run(150)
        browser.open(server.url + "/")
        training.in_parts(450)
        training.run(12, factor=3e4)
        training.in_parts(250)
        training.run(3, factor=math.nan)
        training.in_parts(200)
        steps = training.monitor.snapshot().steps
        shown(browser, steps)

        snapshot, history = training.monitor.snapshot(), training.monitor.history()
        for name in ("norm", "applied_norm", "clip_norm", "explosion_threshold", "score", "max_norm", "clipped_steps"):
            assert number(browser, name) == getattr(snapshot, name), name
        for kind, episodes in snapshot.anomalies.items():
            assert number(browser, f"anomalies_{kind}") == episodes
        assert snapshot.anomalies["explosion"] == snapshot.anomalies["nonfinite"] == 1
        assert number(browser, "missed_steps") == 0
        assert browser.run("""document.querySelector('[data-tile="state"] dd').textContent""") == "healthy"

        drawn = browser.run(DRAWN)
        for name, curve in drawn.items():
            wanted = {
                int(step): float(value)
                for step, value in zip(history["step"], history[name])
                if np.isfinite(value) and value > 0
            }
            assert {step: value for step, value in zip(curve["step"], curve["value"]) if step in wanted} == wanted, name
        assert drawn["norm"]["step"][0] == 1
        marks = browser.run("Array.from(Bokeh.documents[0].roots()[0].renderers[0].data_source.data.step)")
        assert {event.step for event in snapshot.last_events.values() if event} <= set(marks)
        assert str(snapshot.last_explosion.step) in browser.run("document.getElementById('alerts').textContent")

        below = browser.run(BELOW)
        low, high = below["loss"]["range"]
        assert (below["loss"]["scale"], below["loss"]["figures"]) == ("LogScale", 1), "it rose by four decades"
        assert 0 < low < min(history["loss"][np.isfinite(history["loss"])])
        assert high > max(history["loss"][np.isfinite(history["loss"])])
        assert below["learning_rate"]["scale"] == "LinearScale"
        assert below["learning_rate"]["range"] == pytest.approx([0.5e-5, 1.5e-5]), "around a rate that is level"

        layers = browser.run("[...document.querySelectorAll('#layer-rows td.name')].map((cell) => cell.textContent)")
        assert layers == sorted(snapshot.layer_norms, key=lambda name: -snapshot.layer_norms[name])[:10]

        folder = Path(KEPT) if KEPT else tmp_path
        folder.mkdir(parents=True, exist_ok=True)
        for scheme in ("light", "dark"):
            browser.scheme(scheme)
            time.sleep(1.5)  # for the canvases to be drawn again
            found = pixels(browser.picture(folder / f"live-{scheme}.png"))
            for curve in ("applied_norm", "clip_norm", "threshold"):
                colour = browser.run(f"getComputedStyle(document.documentElement).getPropertyValue('--{curve}')")
                assert found[rgb(colour)] > 20, (scheme, curve)
            background = browser.run("getComputedStyle(document.documentElement).getPropertyValue('--card')")
            assert found.most_common(1)[0][0] == rgb(background)

    assert browser.complaints == []
    assert all(url.startswith((server.url, "data:", "about:")) for url in browser.requests), browser.requests


class Losing(Run):
    """Its losses are known: those from the step `below` on are below zero."""

    def __init__(self, name: str, below: int) -> None:
        super().__init__(name)
        self.losses = np.logspace(0, 6, 100_000)
        self.losses[::2] = 1e6
        self.losses[below - 1 :] = -1.0

    def history(self) -> dict[str, np.ndarray]:
        known = super().history()
        return {**known, "loss": self.losses[known["step"] - 1]}


def test_a_loss_has_a_log_axis_only_while_that_can_show_it(browser):
    with serve(0) as server:
        run = Losing("losing", below=150)
        reader_module.register(run)
        run.leap(100)
        browser.open(server.url + "/")
        shown(browser, 100)
        assert browser.run(BELOW)["loss"]["scale"] == "LogScale"
        run.leap(100)
        shown(browser, 200)
        below = browser.run(BELOW)["loss"]
        assert (below["scale"], below["figures"]) == ("LinearScale", 1)
        assert below["range"][0] < -1.0
    assert browser.complaints == []


def test_it_goes_on_by_itself_while_the_training_runs(browser):
    training = Training("train")
    with serve(0) as server:
        training.run(30)
        browser.open(server.url + "/")
        browser.wait_for("document.documentElement.dataset.steps > 0")
        for _ in range(3):
            training.run(40)
            shown(browser, training.monitor.snapshot().steps)
            assert number(browser, "norm") == training.monitor.snapshot().norm
        assert browser.complaints == []


def test_it_survives_a_restart_of_the_training(browser):
    with serve(0) as server:
        first = watched("train", 60)
        browser.open(server.url + "/")
        shown(browser, 60)
        port = server.port
    browser.wait_for("document.getElementById('connection').classList.contains('lost')")
    browser.wait_for("document.getElementById('summary').textContent.includes('does not answer')")
    assert number(browser, "steps") == 60  # what was known stays

    reader_module.unregister(first)
    second = Run("train")
    second.run_id = "another"
    with serve(port):
        reader_module.register(second)
        second.leap(25)
        shown(browser, 25)
        browser.wait_for("document.getElementById('connection').classList.contains('live')")
        assert browser.run(DRAWN)["norm"]["step"] == list(range(1, 26))
        assert "new run began" in browser.run("document.getElementById('summary').textContent")
    assert all("ERR_" in text for text in browser.complaints), browser.complaints  # of the time in between


def test_a_hundred_thousand_steps_are_shown_with_every_spike(browser):
    with serve(0) as server:
        run = watched("long", 900, spike=43_210)
        while run.state.steps < 99_000:
            run.leap(900)
        run.leap(1000)
        began = time.monotonic()
        browser.open(server.url + "/")
        shown(browser, 100_000)
        assert time.monotonic() - began < 20
        drawn = browser.run(DRAWN)["norm"]
        assert len(drawn["step"]) <= 2049
        assert drawn["value"] == [run.norms[step - 1] for step in drawn["step"]]
        assert drawn["value"][drawn["step"].index(43_210)] == 1e6
        assert drawn["step"][-1] == 100_000
        whole = browser.run("fetch('data.json').then((answer) => answer.text()).then((text) => text.length)")

        def later() -> str | None:
            browser.run("0")  # hears what was asked meanwhile
            return next((url for url in browser.requests if "since=" in url and "since=0" not in url), None)

        asked = wait_until(later, 10, "the page asking for what is new")
        part = browser.run(f"fetch({asked!r}).then((answer) => answer.text()).then((text) => text.length)")
        assert whole < 600_000
        assert part < 20_000
        assert browser.complaints == []


def test_it_works_behind_a_notebooks_proxy(browser):
    with serve(0) as server, notebook_proxy("/user/me/proxy/9464", server.port) as address:
        run = watched("train", 40)
        browser.open(address + "/user/me/proxy/9464/")
        shown(browser, 40)
        assert number(browser, "norm") == run.state.norm
        assert browser.run(DRAWN)["norm"]["step"] == list(range(1, 41))
    own = [url for url in browser.requests if url.startswith("http")]
    assert all(url.startswith(address + "/user/me/proxy/9464/") for url in own), own
    assert browser.complaints == []


@contextmanager
def notebook_proxy(prefix, port):
    """Gives what lies under `prefix` to the server at `port`, without the prefix; nothing else is there."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if not self.path.startswith(prefix + "/"):
                self.send_error(404)
                return
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}{self.path[len(prefix) :]}", timeout=5) as answer:
                    status, headers, body = answer.status, answer.headers, answer.read()
            except urllib.error.URLError:
                self.send_error(502)
                return
            self.send_response(status)
            for name, value in headers.items():
                if name.lower() not in ("server", "date", "connection"):
                    self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{httpd.server_port}"
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join(10)


def test_a_screen_reader_finds_the_state_the_numbers_and_the_plots(browser):
    with serve(0) as server:
        run = watched("train", 40, warmup=False)
        browser.open(server.url + "/")
        shown(browser, 40)
        spoken = browser.spoken()
        assert "status" in [role for role, _ in spoken]
        summary = browser.run("document.querySelector('[aria-live=polite]').textContent")
        assert summary.startswith("Last change: train healthy at step 40. Norm ")
        pictures = [name for role, name in spoken if role in ("image", "img")]
        assert len(pictures) == 3
        assert all(pictures)
        assert "Norm of the last step" in [name for role, name in spoken if role == "rowheader"]
        assert [name for role, name in spoken if role == "heading"][:2] == ["gradwatch", "Gradient norm"]

        browser.run(
            "window.told = 0; new MutationObserver(() => told++).observe(document.getElementById('summary'), "
            "{childList: true, characterData: true, subtree: true})"
        )
        run.leap(30)
        shown(browser, 70)
        assert browser.run("told") == 0  # nothing that a person should hear about, so it stays quiet
        run.state = replace(run.state, active={**run.state.active, "explosion": True})
        run.leap(1)
        shown(browser, 71)
        assert browser.run("told") > 0
        assert "exploding" in browser.run("document.querySelector('[aria-live=polite]').textContent")


def test_hostile_names_are_shown_and_do_nothing(browser):
    name = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>\'"&amp;\n'
    with serve(0) as server:
        run = Run(name)
        run.run_info = {"run_name": name, name: name}
        reader_module.register(run)
        run.leap(1)
        run.begin("explosion", **{name: 1.0})
        run.state = replace(run.state, layer_norms={name: 2.0, name + "2": 1.0}, extra={name: 1.0}, policy=name)
        run.leap(1)
        browser.open(server.url + "/#%3Cscript%3Ewindow.hacked%3D1%3C%2Fscript%3E")
        shown(browser, 3)
        time.sleep(1.2)
        assert browser.run("window.hacked") is None
        assert browser.run("document.querySelectorAll('img, body script').length") == 0
        for place in ("monitor", "layer-rows", "alerts", "numbers"):
            assert "<script>" in browser.run(f"document.getElementById('{place}').textContent"), place
        assert browser.complaints == []


def test_one_of_several_monitors_can_be_chosen(browser):
    with serve(0) as server:
        runs = [watched("generator", 20), watched("discriminator", 35)]
        browser.open(server.url + "/")
        shown(browser, 35)
        names = browser.run("[...document.getElementById('monitors').options].map((option) => option.value)")
        assert names == ["discriminator", "generator"]
        browser.run(
            "(() => { const list = document.getElementById('monitors'); list.value = 'generator'; "
            "list.dispatchEvent(new Event('change')); })()"
        )
        shown(browser, 20)
        assert browser.run(DRAWN)["norm"]["step"] == list(range(1, 21))
        assert browser.run("location.hash") == "#generator"
        assert len(runs) == 2
        assert browser.complaints == []
