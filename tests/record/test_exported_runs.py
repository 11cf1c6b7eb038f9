"""The commands `gradwatch runs` and `gradwatch export`, and what a record becomes outside SQLite."""

from __future__ import annotations

import csv
import io
import json
import math
import sys

import numpy as np
import pandas
import pyarrow.parquet
import pytest
from click.testing import CliRunner
from record.recorded import Recorded

from gradwatch import cli
from gradwatch.errors import MissingExtra, RecordError
from gradwatch.record import export
from gradwatch.record.run import Run

NAN, INF = math.nan, math.inf


def invoke(*arguments):
    return CliRunner().invoke(cli._app(), [str(a) for a in arguments], prog_name="gradwatch")


@pytest.fixture
def run(recorded, reader):
    recorded.step(2.0, 1.0, "clip", loss=0.5)
    recorded.step(NAN, 0.0, "zero")
    recorded.begin("explosion", INF, 5.0, "skip")
    recorded.recorder.note("a note", 3)
    recorded.look()
    reader.close()
    return Run(recorded.recorder.path)


def test_csv_has_a_line_for_each_step_and_empty_cells_for_what_is_not_known(run):
    rows = list(csv.DictReader(io.StringIO(invoke("export", run.path).output)))
    assert [row["norm"] for row in rows] == ["2.0", "nan", "inf"]
    assert [row["verdict"] for row in rows] == ["clip", "zero", "skip"]
    assert [row["loss"] for row in rows] == ["0.5", "", ""]
    assert [row["reach"] for row in rows] == ["", "", ""]


@pytest.mark.parametrize("option", [["--json"], ["--format", "json"]])
def test_json_is_strict_and_has_the_facts_the_events_and_the_notes_too(run, option):
    def no_constant(text):
        raise AssertionError(text)

    found = json.loads(invoke("export", run.path, *option).output, parse_constant=no_constant)
    assert [step["norm"] for step in found["steps"]] == [2.0, "NaN", "Infinity"]
    assert [step["loss"] for step in found["steps"]] == [0.5, None, None]
    assert found["info"]["variables"] == {"a/kernel": [3, 2], "b": []}
    assert found["events"][0]["shares"] == {"dense/kernel": 0.7, "dense/bias": 0.3}
    assert found["notes"][0]["text"] == "a note"
    assert len(found["alerts"]) == 1


def test_parquet_reads_back_as_the_steps(run, tmp_path):
    assert invoke("export", run.path, "--format", "parquet", "-o", tmp_path / "run.parquet").exit_code == 0
    table = pyarrow.parquet.read_table(tmp_path / "run.parquet").to_pydict()
    assert table["step"] == [1, 2, 3]
    assert np.array_equal(table["norm"], [2.0, NAN, INF], equal_nan=True)
    assert table["loss"] == [0.5, None, None]
    assert table["verdict"] == ["clip", "zero", "skip"]


def test_an_export_in_parts_is_the_export_in_one(run, monkeypatch):
    whole = [invoke("export", run.path, "--format", form).output for form in ("csv", "json")]
    monkeypatch.setattr("gradwatch.record.run._ROWS", 1)
    assert [invoke("export", run.path, "--format", form).output for form in ("csv", "json")] == whole


def test_export_says_what_it_cannot_do(run, tmp_path):
    assert "say where to with -o FILE" in invoke("export", run.path, "--format", "parquet").output
    assert "leave it out" in invoke("export", run.path, "--json", "--format", "csv").output
    assert "cannot write" in invoke("export", run.path, "-o", tmp_path / "no" / "file").output
    assert isinstance(invoke("export", tmp_path / "no.sqlite").exception, RecordError)


def test_a_frame_of_pandas_has_the_steps_with_verdicts_as_words(run):
    frame = run.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert frame["verdict"].tolist() == ["clip", "zero", "skip"]
    assert frame["step"].tolist() == [1, 2, 3]


def test_without_pandas_or_pyarrow_the_extra_is_named(run, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pandas", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for ask in (run.to_pandas, lambda: export.write_parquet(run, tmp_path / "a")):
        with pytest.raises(MissingExtra, match=r"'gradwatch-tf\[record\]'"):
            ask()


def test_runs_are_listed_a_line_each_newest_first_and_one_that_cannot_be_read_says_why(run, reader):
    folder = run.path.parent
    (folder / "20200101-000000-old-1.sqlite").write_text("no database" * 100)
    newer = Recorded(folder, "newer")
    newer.step()
    newer.look()
    newer.recorder.path.rename(folder / "29990101-000000-newer-1.sqlite")
    first, second, third = invoke("runs", folder).output.splitlines()
    assert "newer" in first
    assert "running" in first
    assert "3 steps" in second
    assert "1 event " in second
    assert "finished" in second
    assert third.startswith("20200101-000000-old-1.sqlite: ")
    assert "cannot be read" in third


def test_runs_as_json_are_an_array(run, monkeypatch):
    (found,) = json.loads(invoke("runs", run.path.parent, "--json").output)
    assert (found["file"], found["steps"], found["last_step"], found["ended"]) == (str(run.path), 3, 3, "finished")
    monkeypatch.setenv("GRADWATCH_RECORD", str(run.path.parent))
    assert json.loads(invoke("runs", "--json").output) == [found]


def test_a_folder_without_runs_is_said_and_a_folder_that_is_not_there_is_an_error(tmp_path):
    assert invoke("runs", tmp_path).output == "no recorded runs\n"
    assert json.loads(invoke("runs", tmp_path, "--json").output) == []
    assert "there is no folder" in str(invoke("runs", tmp_path / "no").exception)
