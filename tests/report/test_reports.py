"""`gradwatch report`: one file that opens offline, that no name can break, of a million steps in five seconds."""

from __future__ import annotations

import json
import re
import sqlite3
import sys
import time

import numpy as np
import pytest
from click.testing import CliRunner
from report.synthetic import START, event, norms, record

from gradwatch import cli
from gradwatch.errors import MissingExtra, RecordError
from gradwatch.record.run import open_run
from gradwatch.report import facts, page


def invoke(*arguments):
    return CliRunner().invoke(cli._app(), [str(a) for a in arguments], prog_name="gradwatch")


@pytest.fixture
def path(tmp_path):
    return record(tmp_path / "runs" / "one.sqlite", norms(400), words=event(300, "explosion", 80.0))


def test_the_report_is_one_file_with_everything_in_it(path, tmp_path):
    result = invoke("report", path, "-o", tmp_path / "report.html")
    assert result.exit_code == 0, result.output
    assert re.match(r"Verdict: .+\nWhy: .+\nNext: .+\nReport: ", result.output)
    text = (tmp_path / "report.html").read_text()
    # nothing is loaded: no address in what a browser follows, and a policy that forbids it
    assert not re.search(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=\"(?!data:)", text)
    assert "default-src 'none'" in text
    for words in ("explosion", "the alert of step 300", "query/kernel", "percentile(90, window=1000)", "translation"):
        assert words in text
    assert "{{" not in text.split('<script type="application/json"')[0]


def test_without_an_output_the_report_stands_beside_the_run_and_a_folder_is_its_newest_run(path):
    told = json.loads(invoke("report", path.parent, "--json").output)
    assert told["report"] == str(path.with_suffix(".html"))
    assert path.with_suffix(".html").stat().st_size > 1_000_000
    assert told["diagnosis"]["verdict"]
    assert [file.name for file in path.parent.iterdir() if file.name.endswith(".part")] == []


def test_a_name_that_is_markup_stays_a_name(tmp_path):
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
    path = record(
        tmp_path / "evil.sqlite",
        norms(100),
        words=event(60, "explosion", 80.0, shares={evil: 1.0}),
        name=evil,
        policy=evil,
        optimizer_settings={evil: evil},
        variables={evil: (2, 2)},
        ended=evil,
    )
    run = open_run(path)
    with sqlite3.connect(path) as db:
        db.execute("UPDATE variables SET path = ? WHERE id = 1", (evil + "2",))
        db.execute("INSERT INTO notes VALUES (3, 4, ?)", (evil,))
    db.close()
    text = page.report(run.material())
    assert "alert(1)" in text
    assert "<script>alert" not in text
    assert "<img src=x" not in text
    assert "<script>alert" not in run._repr_html_()
    assert "<img src=x" not in run._repr_html_()


def test_a_place_to_fill_in_a_name_is_not_filled(tmp_path):
    path = record(tmp_path / "run.sqlite", norms(60), name="{{body}} {{plot 0}} {{data}}")
    assert "{{body}}" in page.report(open_run(path).material())


def test_a_report_that_cannot_be_written_says_so_and_leaves_nothing(path, tmp_path):
    result = invoke("report", path, "-o", tmp_path / "no" / "report.html")
    assert result.exit_code == 1
    assert "cannot write" in result.output
    assert isinstance(invoke("report", tmp_path / "no.sqlite").exception, RecordError)


def test_without_bokeh_the_extra_is_named(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bokeh.plotting", None)
    monkeypatch.setitem(sys.modules, "bokeh", None)
    for ask in (open_run(path).plot, lambda: open_run(path).write_report(path.with_suffix(".html"))):
        with pytest.raises(MissingExtra, match=r"\[live\]'"):
            ask()
    assert open_run(path)._repr_html_()  # a notebook's card needs no Bokeh


def test_a_report_on_a_million_steps_has_no_more_points_than_one_on_thousands(tmp_path):
    path = record(tmp_path / "long.sqlite", norms(1000), words=event(300, "explosion", 80.0))
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA synchronous=OFF")
        db.execute("CREATE TEMP TABLE a AS SELECT * FROM steps")
        names = "step, time_ms, loss, norm, applied_norm, clip_norm, threshold, score, reach, update_ratio, verdict"
        old = names.replace("step,", "step + 1000 * i,", 1)
        db.execute(
            "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 999) "
            f"INSERT INTO steps ({names}) SELECT {old} FROM n, a"
        )
        db.execute("UPDATE steps SET norm = 1e7 WHERE step = 654321")
    db.close()
    shown = open_run(path).material()
    text = page.report(shown)
    assert shown.steps == 1_000_000
    assert np.nanmax(shown.curves["norm"].high) == 1e7
    assert max(len(curve.high) for curve in shown.curves.values()) < 10_000
    assert len(text) < 3_000_000


# -- figures ----------------------------------------------------------------------------------------------


def test_a_plot_of_a_run_has_all_figures_on_one_axis_of_steps(path):
    figures = open_run(path).plot().children
    assert [figure.title.text for figure in figures] == [
        "Loss: translation/train_step",
        "Learning rate",
        "Gradient norm",
        "Update ratio",
        "Layers",
    ]
    assert len({figure.x_range.id for figure in figures}) == 1
    drawn = {renderer.name for renderer in figures[2].renderers}
    assert drawn == {"norm", "applied_norm", "clip_norm", "threshold", "explosion"}
    assert figures[-1].renderers[0].data_source.data["layer"][0] == "block_1/kernel"  # from below; all have "query"


# -- what was set -----------------------------------------------------------------------------------------


def test_settings_are_told_as_they_were_set():
    told = facts.settings(
        {
            "policy": "fixed(1)",
            "optimizer": "SGD",
            "optimizer_settings": {"name": "SGD", "learning_rate": 0.009999999776482582, "clipnorm": None},
            "variables": {"a": (3, 2), "b": ()},
            "versions": {"keras": "3.15.1"},
        }
    )
    assert told == {
        "Policy": "fixed(1)",
        "Optimizer": "SGD",
        "Optimizer: learning rate": "0.01",
        "Variables": "2",
        "Parameters": "7",
        "Version of keras": "3.15.1",
    }


@pytest.mark.parametrize("shape", [None, (None, 3)])
def test_of_a_variable_whose_shape_is_not_known_no_parameters_are_counted(shape):
    assert facts.settings({"variables": {"a": (3, 2), "b": shape}}) == {"Variables": "2"}


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (1234.5, "1,234"), (3.14159, "3.142"), (1e-5, "1.000e-05"), (12345.6, "12,346"), (1e7, "1.000e+07")],
)
def test_numbers_are_written_in_four_digits(value, text):
    assert facts.number(value) == text


def test_what_is_no_number_is_told_from_what_is_not_known():
    assert [facts.number(x) for x in (None, float("nan"), float("inf"), -float("inf"))] == ["-", "-", "Inf", "-Inf"]
    assert [facts.duration(x) for x in (-1, 5, 65, 3661)] == ["0 s", "5 s", "1 min", "1 h 01"]


def test_a_run_that_goes_on_shows_its_begin(path):
    assert time.strftime("%Y-%m-%d", time.localtime(START)) in page.report(open_run(path).material())
