"""What a report shows of a run: every spike survives, in bounded size, whatever the length of the record."""

from __future__ import annotations

import sqlite3

import numpy as np
import pytest
from click.testing import CliRunner
from report.synthetic import LAYERS, event, norms, record

from gradwatch import cli
from gradwatch.record import excerpt
from gradwatch.record.folder import summaries
from gradwatch.record.run import open_run
from gradwatch.report import compare, page
from gradwatch.report import material as materials
from gradwatch.report.figures import labels


@pytest.fixture
def path(tmp_path):
    return tmp_path / "runs" / "run.sqlite"


def test_a_short_run_is_shown_step_by_step(path):
    norm = norms(300)
    shown = open_run(record(path, norm)).material()
    curve = shown.curves["norm"]
    assert np.array_equal(curve.step, np.arange(1, 301))
    assert np.array_equal(curve.low, norm)
    assert np.array_equal(curve.high, norm)
    assert np.isnan(shown.curves["threshold"].high[:20]).all()  # Inf has no place on an axis
    assert (shown.steps, shown.first, shown.last) == (300, 1, 300)
    assert shown.counts["clip"] == int(np.sum(norm > 2.0))


def test_of_a_long_run_each_bucket_has_its_lowest_and_its_highest_value(path):
    norm = norms(20_000)
    norm[12_345], norm[777] = 1e6, 1e-6
    curve = open_run(record(path, norm, a_look=1000)).material().curves["norm"]
    width = -(-20_000 // materials.BUCKETS)
    assert len(curve.step) == -(-20_000 // width) <= materials.BUCKETS
    for i in range(len(curve.step)):  # an explicit loop over the steps
        part = norm[i * width : (i + 1) * width]
        assert (curve.low[i], curve.high[i]) == (part.min(), part.max())
    assert curve.high.max() == 1e6
    assert curve.low.min() == 1e-6


def test_steps_with_nan_or_inf_are_marked_and_leave_no_hole_in_the_axis(path):
    norm = norms(100)
    norm[40], norm[60] = np.nan, np.inf
    shown = open_run(record(path, norm)).material()
    assert shown.broken.tolist() == [41, 61]
    assert np.isnan(shown.curves["norm"].high[[40, 60]]).all()
    assert np.isfinite(np.delete(shown.curves["norm"].high, [40, 60])).all()


def lost(path, at=410, steps=800):
    """A run that has no finite loss from step `at` + 1 on; before, it blows up."""
    norm, loss = norms(steps), np.linspace(3.0, 1.0, steps)
    norm[at - 3 : at], loss[at - 3 : at] = (1e4, 1e8, 2.3e11), (1e6, 1e12, 2.8e18)
    norm[at:] = loss[at:] = np.nan
    return record(path, norm, loss=loss, words=event(at - 2, "explosion", 1e4) + event(at + 1, "nonfinite", np.nan))


def test_a_run_that_ends_without_a_finite_loss_shows_no_older_number_as_the_one_at_the_end(path):
    shown = open_run(lost(path)).material()
    assert shown.nonfinite == {"loss": (411, "NaN"), "norm": (411, "NaN")}
    told = {label: (value, word) for label, value, word in page.tiles(shown)}
    assert told["Loss at the end"] == ("NaN", "since step 411; 3 at the start")
    assert told["Norm at the end"][0] == "NaN"
    assert told["Outcome"] == ("lost", "nothing finite since step 411")
    found = compare.of([("a", shown), ("b", shown)])
    assert found.numbers["Loss at the end"] == ("NaN since step 411",) * 2
    assert found.numbers["Outcome"][0] == "lost: nothing finite since step 411"


def test_the_list_of_runs_says_since_when_there_was_nothing_finite(path):
    (found,) = summaries(lost(path).parent)
    assert (found.outcome, found.nonfinite_since) == ("lost", 411)
    assert "finished, NaN since step 411" in CliRunner().invoke(cli._app(), ["runs", str(path.parent)]).output


def test_a_loss_that_was_not_told_at_the_end_is_not_called_nan(path):
    loss = np.linspace(3.0, 1.0, 400)
    loss[300:] = np.nan
    shown = open_run(record(path, norms(400), loss=loss)).material()
    assert shown.nonfinite == {}
    assert open_run(record(path.with_name("inf.sqlite"), np.append(norms(99), np.inf))).material().nonfinite == {
        "norm": (100, "Inf")
    }


def test_what_seldom_changes_is_shown_where_it_does_and_at_the_end(path):
    rate = np.where(np.arange(300) < 100, 0.1, 0.05)
    steps, values = open_run(record(path, norms(300), rate=rate)).material().seldom["learning_rate"]
    assert steps.tolist() == [1.0, 101.0, 300.0]
    assert values.tolist() == [0.1, 0.05, 0.05]


def test_steps_that_were_made_again_after_a_return_are_shown_once(path):
    record(path, norms(100), ended=None)
    with sqlite3.connect(path) as db:  # as after a return from step 100 to step 60
        columns = "step, time_ms, loss, norm, applied_norm, clip_norm, threshold, score, verdict"
        db.execute(
            f"INSERT INTO steps ({columns}) SELECT step, time_ms, loss, 7.0, 2.0, clip_norm, threshold, score, 1 "
            "FROM steps WHERE step > 60 AND step <= 80 ORDER BY id"
        )
    db.close()
    shown = open_run(path).material()
    curve = shown.curves["norm"]
    assert shown.steps == 80
    assert curve.step.tolist() == list(range(1, 81))
    assert (curve.high[60:] == 7.0).all()
    assert (curve.high[:60] != 7.0).all()


def test_the_heat_map_holds_the_largest_norm_of_each_cell_and_infinity_for_nan(path):
    norm = norms(500)
    shown = open_run(record(path, norm)).material().heat
    assert shown.names == LAYERS
    looks = norm.reshape(10, 50).max(axis=1)
    assert np.allclose(shown.norm, [looks / (i + 1) for i in range(3)])
    with sqlite3.connect(path) as db:
        db.execute("UPDATE layers SET norm = NULL WHERE variable = 2 AND step = 250")
    db.close()
    assert open_run(path).material().heat.norm[1, 4] == np.inf


def test_the_heat_map_holds_the_steps_around_an_event_too(path):
    record(path, norms(500))
    with sqlite3.connect(path) as db:
        db.executemany(
            "INSERT INTO around VALUES (?, 0, 1, ?, NULL, NULL)", [(step, float(step)) for step in range(301, 333)]
        )
    db.close()
    shown = open_run(path).material().heat
    assert shown.norm.shape[1] == 10 + 32
    assert np.nanmax(shown.norm[0]) == 332.0
    assert np.nanmax(shown.norm[1]) < 100.0


def test_of_many_layers_the_largest_are_shown():
    names = [f"layer_{i}" for i in range(200)]
    steps, layers = np.tile([10, 20], 200), np.repeat(np.arange(200), 2)
    value = np.where(layers % 4 == 0, 5.0, 1.0)
    shown = materials.heat(names, steps, layers, value)
    assert shown.layers == 200
    assert len(shown.names) == materials.LAYERS
    assert set(shown.names[:50]) >= {f"layer_{i}" for i in range(0, 160, 4)}


def test_an_empty_record_has_a_report_too(path):
    record(path, norms(0))
    from gradwatch.record.writer import Look, RunFile

    RunFile(path, lambda: {"name": "none", "id": "x", "host": "h", "pid": 1, "start": 1.0, "end": None}).write(
        Look(2.0, 1.0, {"step": np.array([], int)}, words=[("notes", (0, 1, "begun"))])
    )
    shown = open_run(path).material()
    assert (shown.steps, shown.curves, shown.heat) == (0, {}, None)


# -- what the diagnosis sees of a long run --------------------------------------------------------------------


def test_a_long_run_is_diagnosed_by_its_ends_and_around_its_events(path, monkeypatch):
    for name, value in {"WHOLE_STEPS": 1000, "_FIRST": 300, "_LAST": 200, "_BEFORE": 50, "_AFTER": 20}.items():
        monkeypatch.setattr(excerpt, name, value)
    norm = norms(3000)
    run = open_run(record(path, norm, words=event(1500, "explosion", 80.0)))
    seen, whole = excerpt.Excerpt(run), run.steps
    steps = seen.steps["step"]
    assert steps.tolist() == [*range(1, 301), *range(1450, 1521), *range(2801, 3001)]
    for name, column in seen.steps.items():  # and each number is that of the whole run
        assert np.array_equal(column, whole[name][steps - 1], equal_nan=column.dtype.kind == "f"), name
    layer = seen.layers(LAYERS[0])
    looks = run.layers(LAYERS[0])
    kept = np.isin(looks["step"], steps)
    assert kept.sum() == 6 + 2 + 4
    assert all(np.array_equal(layer[name], looks[name][kept]) for name in layer)


def test_a_short_run_is_diagnosed_as_a_whole(path):
    run = open_run(record(path, norms(200)))
    seen = excerpt.Excerpt(run)
    assert np.array_equal(seen.steps["norm"], run.steps["norm"])
    assert np.array_equal(seen.layers(LAYERS[1])["norm"], run.layers(LAYERS[1])["norm"])


def test_a_diagnosis_that_fails_leaves_a_report_without_a_verdict(path, monkeypatch):
    def fails(source):
        raise ZeroDivisionError

    monkeypatch.setattr(materials, "diagnose", fails)
    assert open_run(record(path, norms(50))).material().diagnosis is None


def test_long_names_of_layers_go_without_what_they_have_in_common_and_stay_apart():
    names = [f"model/encoder/block_{i}/attention/{part}/kernel" for i in range(12) for part in ("query", "value")]
    short = labels(names, 26)
    assert short[names[0]] == "block_0/query"
    assert len(set(short.values())) == len(names)
    assert labels(["a", "b"], 26) == {"a": "a", "b": "b"}
