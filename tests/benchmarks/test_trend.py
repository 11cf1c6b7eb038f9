"""The trend of the benchmarks: what a line holds, and that the page shows the lines."""

from __future__ import annotations

import json

import pytest
import trend


def line(commit="abc", reduced=False, **numbers):
    return {
        "date": "2026-01-02",
        "commit": commit,
        "cpu": "a processor",
        "cores": 2,
        "tensorflow": "2.21.0",
        "reduced": reduced,
        **numbers,
    }


def test_the_cost_is_that_of_gradwatch_in_a_tf_function():
    def cell(model, mode, ratio, added):
        other = {"ratio": [9, 9, 9], "added_us": [9, 9, 9]}
        ours = {"ratio": [ratio, 0, 2], "added_us": [added, 0, 2]}
        return {"model": model, "mode": mode, "contenders": {"gradwatch": ours, "clip": other}}

    cells = [cell("mlp-2m", "jit", 3, 3), cell("mlp-2m", "function", 1.25, 5), cell("quickstart", "function", 4, 321.0)]
    assert trend.cost({"cells": cells}) == {"mlp_ratio": 1.25, "small_added_us": 321.0}


def test_the_worst_budget_is_the_largest_of_the_synthetic_streams():
    budgets = {"normal": {"10": [0.5, 0, 1]}, "decay": {"10": [1.5, 0, 2]}, "recorded": {"10": [7.0, 0, 9]}}
    assert trend.false_alarms({"budgets": budgets}) == {"worst_budget": 1.5}


def test_a_benchmark_that_was_not_run_leaves_its_columns_empty():
    assert trend.cost({"cells": []}) == {}
    row = trend.table([line(lost_cells=3.0)]).splitlines()[-1].split("|")
    assert [cell.strip() for cell in row[5:-1]] == ["-", "-", "-", "3"]


def test_a_line_is_added_for_each_commit_and_replaced_when_one_is_measured_again(tmp_path):
    path = tmp_path / "trend.jsonl"
    trend.append(line("first", mlp_ratio=1.0), path)
    trend.append(line("second", mlp_ratio=1.1), path)
    trend.append(line("second", reduced=True, mlp_ratio=1.2), path)
    lines = trend.append(line("second", mlp_ratio=1.3), path)
    assert [json.loads(text) for text in path.read_text().splitlines()] == lines
    assert [(x["commit"], x["reduced"], x["mlp_ratio"]) for x in lines] == [
        ("first", False, 1.0),
        ("second", True, 1.2),
        ("second", False, 1.3),
    ]


def test_the_newest_line_stands_first():
    rows = trend.table([line("first"), line("second", reduced=True)]).splitlines()[2:]
    assert "`second`, reduced" in rows[0]
    assert "`first`" in rows[1]


def test_the_page_shows_the_lines_that_there_are():
    page = trend.PAGE.read_text()
    assert trend.load()
    assert trend.fill(page, trend.load()) == page


@pytest.mark.parametrize("column", trend.HEADLINES)
def test_the_page_says_of_every_number_which_way_is_better(column):
    heading, _ = trend.HEADLINES[column]
    assert f"| {heading} |" in trend.PAGE.read_text().split("<!-- measured")[0]
