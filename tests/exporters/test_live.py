"""The live page's numbers and files, asked as a browser would ask, without one."""

from __future__ import annotations

import json
import math
import re
import sys
import time
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
from telemetry.fake import FakeMonitor

from gradwatch.exporters import live
from gradwatch.exporters.live.curves import MOST_BINS, Curves, thin
from gradwatch.exporters.live.store import CURVES, Store

HOSTILE = '</script><script>alert(1)</script>"\n\x1b[31m' + "x" * 10_000


class Run(FakeMonitor):
    """A monitor whose history has all of the real one's columns."""

    def history(self):
        rows = super().history()
        norm = rows["norm"]
        return {**rows, "clip_norm": norm * 0 + 2.0, "threshold": norm * 0 + 5.0, "score": norm * 0}


def rows(steps, norms, **columns):
    norms = np.asarray(norms, float)
    found = {name: np.asarray(columns.get(name, norms), float) for name in CURVES}
    return {"step": np.asarray(steps, np.int64), **found}


def ask(page, path="/", query="", method="GET"):
    """(status, headers, body) of the WSGI app."""
    started = []
    environ = {"REQUEST_METHOD": method, "PATH_INFO": path, "QUERY_STRING": query}
    body = b"".join(page(environ, lambda status, headers: started.append((status, dict(headers)))))
    ((status, headers),) = started
    return status, headers, body


@pytest.fixture
def page(reader):
    made = live.LivePage()
    if made._store is None:
        pytest.skip("bokeh is not installed")
    yield made
    made.close()


@pytest.fixture
def store(reader):
    made = Store()
    yield made
    made.close()


def number(data, name):
    return next(value for key, _, _, value in data["numbers"] if key == name)


# -- curves ----------------------------------------------------------------------------------------------


def test_each_step_is_kept_as_it_is_while_a_screen_can_show_it():
    curves = Curves(CURVES)
    curves.add(rows(range(1, 501), np.arange(1, 501) * 0.5))
    steps, values = curves.since(0)["norm"]
    assert steps == list(range(1, 501))
    assert values == [0.5 * step for step in steps]


def test_a_hundred_thousand_steps_fit_and_no_spike_or_dip_is_lost():
    rng = np.random.default_rng(1)
    norms = np.exp(rng.normal(size=100_000))
    norms[54_321], norms[77_777] = 1e6, 1e-6
    curves = Curves(CURVES)
    for first in range(0, len(norms), 700):  # as looks at the history bring them
        part = norms[first : first + 700]
        curves.add(rows(np.arange(first, first + len(part)) + 1, part))
    steps, values = curves.since(0)["norm"]
    assert len(steps) <= 2 * MOST_BINS + 1
    assert steps == sorted(set(steps))
    assert [norms[step - 1] for step in steps] == values  # real points, none invented
    assert (54_322, 1e6) in zip(steps, values)
    assert (77_778, 1e-6) in zip(steps, values)
    assert (steps[-1], values[-1]) == (100_000, norms[-1])


def test_each_bin_holds_its_lowest_and_its_highest_step_however_it_was_filled():
    rng = np.random.default_rng(2)
    norms = np.exp(rng.normal(size=9_000))
    curves = Curves(CURVES)
    first = 0
    while first < len(norms):
        part = norms[first : first + rng.integers(1, 400)]
        curves.add(rows(np.arange(first, first + len(part)) + 1, part))
        first += len(part)
    curve = curves._curves["norm"]
    kept = dict(zip(curve.steps.tolist(), curve.values.tolist()))
    for start in range(0, 9_001, curves.width):  # the oracle: bin by bin, from all points at once
        inside = {s: norms[s - 1] for s in range(max(start, 1), min(start + curves.width, 9_001))}
        found = {s: v for s, v in kept.items() if start <= s < start + curves.width}
        assert set(found.values()) == {min(inside.values()), max(inside.values())}


def test_what_a_log_axis_cannot_show_is_left_out():
    curves = Curves(CURVES)
    curves.add(rows([1, 2, 3, 4, 5], [1.0, math.nan, math.inf, 0.0, 2.0]))
    assert curves.since(0)["norm"] == ([1, 5], [1.0, 2.0])


def test_a_run_that_is_set_back_drops_the_future_that_did_not_happen():
    curves = Curves(CURVES)
    curves.add(rows([1, 2, 3, 4], [1.0, 2.0, 3.0, 4.0]))
    before = curves.generation
    curves.add(rows([3], [30.0]))
    assert curves.since(0)["norm"] == ([1, 2, 3], [1.0, 2.0, 30.0])
    assert curves.generation != before


def test_thinning_keeps_a_lone_point_once():
    steps, values = thin(np.array([7]), np.array([3.0]), 4)
    assert steps.tolist() == [7]
    assert values.tolist() == [3.0]


def test_what_a_page_puts_together_from_pieces_is_the_whole(reader, store):
    run = Run("run")
    reader.register(run)
    shown = {"key": "", "next": 0, "step": [], "value": []}
    rng = np.random.default_rng(3)
    for _ in range(30):
        for norm in np.exp(rng.normal(size=rng.integers(1, 150))):
            run.step(float(norm))
        reader.poll_now()
        data = store.page(key=shown["key"], since=shown["next"])
        fresh = data["curves"]["norm"]
        kept = [(s, v) for s, v in zip(shown["step"], shown["value"]) if s < data["from"]]
        shown = {"key": data["key"], "next": data["next"]}
        shown["step"] = [s for s, _ in kept] + fresh["step"]
        shown["value"] = [v for _, v in kept] + fresh["value"]
    whole = store.page()["curves"]["norm"]
    assert run.state.steps > MOST_BINS
    assert {"step": shown["step"], "value": shown["value"]} == whole
    assert len(fresh["step"]) < len(whole["step"]) / 2  # and it was told in pieces


# -- numbers ---------------------------------------------------------------------------------------------


def test_the_numbers_are_those_of_the_snapshot(reader, store):
    run = Run("run")
    reader.register(run)
    run.step(
        3.25, applied=2.0, verdict="clip", clip_norm=2.0, explosion_threshold=5.5, layer_norms={"a": 3.0, "b": 4.0}
    )
    reader.poll_now()
    data = store.page()
    snapshot = run.snapshot()
    assert number(data, "steps") == snapshot.steps
    assert number(data, "norm") == snapshot.norm
    assert number(data, "applied_norm") == snapshot.applied_norm
    assert number(data, "clip_norm") == snapshot.clip_norm
    assert number(data, "explosion_threshold") == snapshot.explosion_threshold
    assert number(data, "clip_ratio") == 1.0
    assert data["layers"] == [["b", 4.0, 0.64, "b"], ["a", 3.0, 0.36, "a"]]
    assert sum(data["histogram"]["count"]) == 1
    assert data["histogram"]["left"][0] < 3.25 <= data["histogram"]["right"][0]


def test_the_pace_is_steps_over_time(reader, store, monkeypatch):
    run = Run("run")
    reader.register(run)
    now = 1000.0
    monkeypatch.setattr(time, "time", lambda: now)
    for _ in range(10):
        for _ in range(5):
            run.step()
        reader.poll_now()
        now += 0.5
    assert number(store.page(), "steps_per_second") == pytest.approx(10.0)


def test_an_explosion_is_told_when_it_begins_and_when_it_is_over(reader, store):
    run = Run("run")
    reader.register(run)
    run.step()
    reader.poll_now()
    run.begin("explosion", norm=70.0)
    reader.poll_now()
    data = store.page()
    assert data["state"] == {"word": "exploding", "tone": "critical", "no_learning_since": None}
    assert [(e["kind"], e["phase"], e["step"], e["norm"]) for e in data["events"]] == [("explosion", "began", 2, 70.0)]
    run.end("explosion")
    reader.poll_now()
    assert [e["phase"] for e in store.page()["events"]] == ["began", "over"]


def test_a_page_that_comes_later_still_marks_what_happened_before(reader):
    run = Run("run")
    reader.register(run)
    run.step()
    run.begin("nonfinite", norm=math.nan)
    reader.poll_now()
    store = Store()
    reader.poll_now()
    (event,) = store.page()["events"]
    assert (event["kind"], event["step"], event["norm"]) == ("nonfinite", 2, "NaN")
    store.close()


def test_a_loss_that_is_nan_is_shown_as_such_with_the_step_since_which(reader, store):
    monitor = Run("run")
    reader.register(monitor)
    for loss in (2.0, 1.0, 2.8e18):
        monitor.step(1.0, loss=loss)
    for count in (3, 1100):
        for _ in range(count):
            monitor.step(math.nan, loss=math.nan)
        reader.poll_now()
        told = store.page()
        assert (told["loss"], told["loss_nonfinite_since"]) == ("NaN", 4)
    for _ in range(3):
        monitor.step(1.0, loss=1.5)
    reader.poll_now()
    assert (store.page()["loss"], store.page()["loss_nonfinite_since"]) == (1.5, None)


def test_before_the_first_step_no_number_pretends_to_be_a_norm(reader, store):
    run = Run(quantiles={0.5: math.nan}, norm=math.nan, applied_norm=math.nan, max_norm=math.nan)
    reader.register(run)
    reader.poll_now()
    numbers = {row[0]: row[2:] for row in store.page()["numbers"]}
    for name in ("norm", "applied_norm", "max_norm", "quantile_0.5", "verdict"):
        assert numbers[name] == ["text", "none yet"], name
    run.step(3.0, quantiles={0.5: 3.0}, max_norm=3.0)
    reader.poll_now()
    numbers = {row[0]: row[3] for row in store.page()["numbers"]}
    assert [numbers[name] for name in ("norm", "applied_norm", "max_norm", "quantile_0.5")] == [3.0] * 4


def test_a_page_that_is_asked_for_while_a_first_reading_is_taken_waits_for_the_next(reader, store):
    asked = []

    class Asking(Run):
        def history(self):
            if reader.readings():
                asked.append(store.page())
            return super().history()

    run = Asking()
    reader.register(run)
    run.step()
    reader.poll_now()
    assert "run_id" not in asked[0]
    assert store.page()["run_id"] == run.run_id


def test_long_layer_names_are_shown_by_what_tells_them_apart(reader, store):
    names = [f"my_transformer/encoder/block_{i}/attention/query_projection/kernel:0" for i in range(5)]
    run = Run(layer_norms=dict.fromkeys(names, 1.0))
    reader.register(run)
    run.step()
    reader.poll_now()
    assert {row[0]: row[3] for row in store.page()["layers"]} == {n: f"…/block_{i}/…" for i, n in enumerate(names)}


def test_alerts_and_layers_are_bounded(reader, store):
    run = Run("run")
    reader.register(run)
    run.step(layer_norms={f"layer{i}": 1.0 + i for i in range(500)})
    for _ in range(150):
        run.begin("explosion")
        reader.poll_now()
    data = store.page()
    assert len(data["events"]) == 100
    assert len(data["layers"]) == 10
    assert data["layer_count"] == 500


def test_runs_are_bounded_and_those_that_are_gone_make_room(reader, store):
    runs = [Run(f"run{i}") for i in range(70)]
    for run in runs:
        reader.register(run)
        run.step()
    reader.poll_now()
    assert len(store.page()["monitors"]) == 64
    reader.poll_now()
    assert store.page(monitor="run3")["curves"]["norm"]["step"] == [1]
    del run, runs[:20]
    reader.poll_now()
    reader.poll_now()
    monitors = store.page()["monitors"]
    assert "run69" in monitors
    assert len(monitors) == 64


def test_one_monitor_is_chosen_by_its_name_and_the_newest_without_one(reader, store):
    first, second = Run("first"), Run("second")
    for run in (first, second):
        reader.register(run)
        run.step()
        reader.poll_now()
    assert store.page()["monitor"] == "second"
    assert store.page(monitor="first")["monitor"] == "first"
    assert store.page(monitor="unknown")["monitor"] == "second"
    assert store.page()["monitors"] == ["first", "second"]


def test_a_new_run_of_the_same_name_takes_over(reader, store):
    first = Run("run")
    reader.register(first)
    first.step(1.0)
    reader.poll_now()
    before = store.page()
    second = Run("run")
    second.run_id = "run-2"
    reader.register(second)
    second.step(9.0)
    reader.poll_now()
    after = store.page(key=before["key"], since=before["next"])
    assert after["run_id"] == "run-2"
    assert after["from"] == 0
    assert after["curves"]["norm"] == {"step": [1], "value": [9.0]}


def test_a_run_that_is_gone_is_shown_as_ended(reader, store):
    run = Run("run")
    reader.register(run)
    run.step(4.0)
    reader.unregister(run)
    data = store.page()
    assert data["state"]["word"] == "ended"
    assert number(data, "norm") == 4.0


def test_asking_reads_nothing_from_the_monitor(reader, store):
    run = Run("run")
    reader.register(run)
    run.step()
    reader.poll_now()
    before = run.snapshots
    for _ in range(20):
        store.page()
    assert run.snapshots == before


def test_before_the_first_monitor_there_is_an_empty_answer(store):
    data = store.page()
    assert data["monitors"] == []
    assert "run_id" not in data


# -- over HTTP -------------------------------------------------------------------------------------------


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.addresses, self.inline, self.tags = [], [], []
        self._in_script = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags.append((tag, found))
        self.addresses += [found[name] for name in ("src", "href") if name in found]
        self.inline += [name for name in found if name.startswith("on") or name == "style"]
        self._in_script = tag in ("script", "style")

    def handle_data(self, data):
        if self._in_script and data.strip():
            self.inline.append(data)
        self._in_script = False


def test_every_address_of_the_page_is_relative_and_served(page):
    _, _, body = ask(page)
    found = Page(body.decode())
    assert "metrics" in found.addresses
    for address in found.addresses:
        assert re.fullmatch(r"[\w./+-]+", address), address
        assert not address.startswith("/")
        if address != "metrics":
            assert ask(page, "/" + address)[0] == "200 OK", address
    assert len([address for address in found.addresses if address.startswith("bokeh/")]) == 2


def test_no_file_of_the_page_names_another_host(page):
    for path in ("/", "/page.js", "/page.css"):
        text = ask(page, path)[2].decode()
        assert not re.search(r"(https?:)?//[a-z0-9.-]+\.[a-z]{2,}", text), path
        assert "{{" not in text


def test_the_page_has_no_inline_script_and_the_policy_forbids_one(page):
    _, headers, body = ask(page)
    assert Page(body.decode()).inline == []
    policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["connect-src"] == "'self'"
    assert headers["X-Content-Type-Options"] == "nosniff"


def test_no_text_can_become_markup(page):
    script = ask(page, "/page.js")[2].decode()
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
        assert way not in script


def test_a_screen_reader_gets_a_summary_and_tables(page):
    tags = Page(ask(page)[2].decode()).tags
    assert ("html", {"lang": "en"}) in tags
    assert [a for tag, a in tags if a.get("aria-live") == "polite"]
    assert len([tag for tag, _ in tags if tag == "table"]) == 3
    for _, attrs in tags:
        if attrs.get("role") == "img":
            assert attrs["aria-label"]


def test_hostile_names_are_inert_in_the_data(reader, page):
    run = Run(HOSTILE)
    run.run_info = {HOSTILE: HOSTILE}
    reader.register(run)
    run.step(layer_norms={HOSTILE: 1.0}, extra={HOSTILE: 1.0}, policy=HOSTILE)
    run.begin("explosion", **{HOSTILE: 1.0})
    reader.poll_now()
    _, headers, body = ask(page, "/data.json")
    assert headers["Content-Type"] == "application/json"
    assert b"<" not in body
    assert len(body) < 20_000
    data = json.loads(body)
    assert len(data["monitor"]) <= 200
    assert "\n" not in data["monitor"]
    assert "\x1b" not in body.decode()


def test_numbers_that_json_does_not_know_become_texts(reader, page):
    run = Run("run")
    reader.register(run)
    run.step(math.nan, applied=math.inf, score=-math.inf, layer_norms={"bad": math.nan, "good": 1.0})
    reader.poll_now()

    def refuse(text):
        raise AssertionError(text)

    data = json.loads(ask(page, "/data.json")[2], parse_constant=refuse)
    assert [number(data, name) for name in ("norm", "applied_norm", "score")] == ["NaN", "Infinity", "-Infinity"]
    assert data["layers"][0] == ["bad", "NaN", None, "bad"]


@pytest.mark.parametrize(
    "query", ["since=-1", "since=x", "since=" + "9" * 400, "monitor=%00%ff", "&" * 5000, "key=<script>", "since=٣"]
)
def test_a_strange_question_gets_a_whole_answer(reader, page, query):
    run = Run("run")
    reader.register(run)
    run.step()
    reader.poll_now()
    status, _, body = ask(page, "/data.json", query)
    assert status == "200 OK"
    assert json.loads(body)["curves"]["norm"]["step"] == [1]


@pytest.mark.parametrize(
    "path",
    ["/static/page.js", "/../pyproject.toml", "/bokeh/../../x", "/bokeh/1.0/bokeh.min.js", "/page.html", "//", "/x"],
)
def test_nothing_else_is_served(page, path):
    assert ask(page, path)[0] == "404 Not Found"


def test_only_reading_is_allowed(page):
    assert ask(page, "/data.json", method="POST")[0] == "405 Method Not Allowed"


def test_the_training_never_imports_bokeh(page, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "bokeh"]:
        monkeypatch.delitem(sys.modules, name)  # of another test
    ask(page)
    ask(page, "/data.json")
    assert "bokeh" not in sys.modules


def test_without_the_extra_the_page_says_how_to_install_it_and_gathers_nothing(reader, monkeypatch):
    monkeypatch.setattr(live.importlib.util, "find_spec", lambda name: None)
    page = live.LivePage()
    status, _, body = ask(page)
    assert status == "200 OK"
    assert b"pip install 'gradwatch-tf[live]'" in body
    assert b"/metrics" in body
    assert ask(page, "/data.json")[0] == "404 Not Found"
    assert reader._listeners == ()


def test_a_bokeh_without_its_files_counts_as_missing(reader, monkeypatch, tmp_path):
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(live.importlib.util, "find_spec", lambda name: spec)
    assert b"pip install" in ask(live.LivePage())[2]


def test_a_closed_page_gathers_no_more(reader):
    page = live.LivePage()
    page.close()
    assert reader._listeners == ()
