"""The tables say what the runs did."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.tf

finals = pytest.importorskip("finals")


def lines():
    """Two cells, two seeds: "mine" is 1 % worse than the best constant in one and better in the other."""
    finals = {
        (0.1, "none"): (1.00, 1.00),
        (0.1, "fixed 1"): (1.10, 1.30),
        (0.1, "mine"): (1.01, 1.01),
        (1.0, "none"): (4.0, 4.0),
        (1.0, "fixed 1"): (2.00, 2.20),
        (1.0, "mine"): (1.80, 4.0),
    }
    return [
        {
            "task": "rnn-sgd",
            "rate": rate,
            "method": method,
            "seed": seed,
            "steps": 10,
            "final": final,
            "diverged": final >= 4,
            "clipped_last_half": 0.1,
            "steps_lost": 3,
        }
        for (rate, method), values in finals.items()
        for seed, final in enumerate(values)
    ]


def test_the_oracle_is_the_best_constant_of_each_cell_and_none_is_one():
    cells = finals.Cells(lines(), 10)
    assert [cells.oracle(*cell) for cell in cells.cells] == ["none", "fixed 1"]
    g = finals.goals(cells, "mine")
    assert [row["ratio"] for row in g["cells"]] == [pytest.approx(1.01), pytest.approx(2.9 / 2.1)]
    assert g["within_2_percent"] == 0.5
    assert g["better"] == 0
    assert g["died"] == 1
    assert g["worst_over_none_where_none_is_best"] == pytest.approx(1.01)


def test_a_constant_that_the_other_seeds_chose_is_judged_on_the_seed_that_had_no_say():
    """Counted by hand."""
    losses = {"none": (1.0, 2.0, 3.0), "fixed 1": (3.0, 1.0, 1.0), finals.DEFAULT: (1.5, 1.5, 1.5)}
    found = [
        {
            **lines()[0],
            "method": name,
            "seed": seed,
            "final": final,
            "diverged": False,
        }
        for name, values in losses.items()
        for seed, final in enumerate(values)
    ]
    cells = finals.Cells(found, 10)
    # without seed 0: none 2.5, fixed 1.0; without 1: 2.0 and 2.0, a tie that goes to the first; without 2: 1.5 and 2.0
    assert cells.held_out("rnn-sgd", 0.1) == pytest.approx((3.0 + 2.0 + 3.0) / 3)
    assert finals.held_out(cells, finals.DEFAULT) == [pytest.approx(1.5 / (8 / 3))]
    assert "| cells better than it   | 1 " in finals.held_out_table(cells)
    # where the oracle looks, it is another constant
    assert cells.mean("rnn-sgd", 0.1, finals.ORACLE) == pytest.approx(5 / 3)


def test_a_group_counts_once_every_method_of_its_task_has_run():
    found = lines()
    cells = finals.Cells(found[:-1], 10)
    assert cells.incomplete == [(found[-1]["task"], found[-1]["rate"], found[-1]["seed"])]
    assert [len(cells.values(*cell, name)) for cell in cells.cells for name in cells.names] == [2, 2, 2, 1, 1, 1]
    # a method that only one task has makes no other task incomplete, and may be that task's oracle
    guarded = [
        {**x, "task": "digits", "method": "fixed 1, NaN dropped", "final": 0.5} for x in found if x["rate"] == 0.1
    ]
    cells = finals.Cells([*found, *[{**x, "task": "digits"} for x in found], *guarded], 10)
    assert len(cells.incomplete) == 2
    assert cells.oracle("digits", 0.1) == "fixed 1, NaN dropped"
    assert cells.oracle("rnn-sgd", 0.1) == "none"


def test_the_report_marks_what_died():
    text = finals.report(finals.Cells(lines(), 10))
    # of the two tables, the one of the task
    mine = [line for line in text.splitlines() if line.startswith("| mine")][1]
    assert "(1 of 2 died)**" in mine
    assert "1.01" in mine


def test_learning_rate_sensitivity_is_the_mean_excess_over_the_best_rate():
    cells = finals.Cells(lines(), 10)
    assert finals.sensitivity(cells, "rnn-sgd", "none") == pytest.approx((1 + 4) / 2 - 1)


def goal_lines(mine, best, default, dead=()):
    """One cell a number: final losses of "gradwatch auto", the best constant, percentile(90); 10 without."""
    methods = {"none": [10.0] * len(best), "fixed 1": best, finals.PERCENTILE: default, finals.DEFAULT: mine}
    return [
        {
            "task": "rnn-sgd",
            "rate": rate,
            "method": method,
            "seed": 0,
            "steps": 10,
            "final": values[rate],
            "diverged": method == "gradwatch auto" and rate in dead,
            "clipped_last_half": 0.0,
            "steps_lost": 0,
        }
        for method, values in methods.items()
        for rate in range(len(best))
    ]


def goal_rows(lines):
    """Goal -> (number, met), as the table shows them."""
    text = finals.goals_table(finals.Cells(lines, 10))
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[2:]]
    return {row[0].split(":")[0]: (row[1], row[2]) for row in rows}


def test_the_table_of_goals_says_met_where_every_cell_is_at_its_best():
    rows = goal_rows(goal_lines([0.9, 0.99, 0.95], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]))
    assert rows["cells within 2 % of the tuned constant"] == ("3", "met")
    assert rows["cells better than it"] == ("3", "met")
    assert rows["cells in which a seed dies although a constant survives"] == ("0", "met")
    # no cell is best without clipping
    assert rows["worst loss over no clipping, where that is best"] == ("-", "-")
    assert rows["learning-rate sensitivity on rnn-sgd"] == ("0.047", "met")
    assert rows["cells more than 1 % worse than `percentile(90)`"] == ("0", "met")


def test_the_table_of_goals_says_missed_where_a_number_misses():
    rows = goal_rows(goal_lines([1.5, 1.01, 1.0], [1.0, 1.0, 1.0], [1.0, 0.9, 2.0], dead=[0]))
    assert rows["cells within 2 % of the tuned constant"] == ("2", "**missed**")
    assert rows["cells better than it"] == ("0", "**missed**")
    assert rows["cells in which a seed dies although a constant survives"] == ("1", "**missed**")
    assert rows["learning-rate sensitivity on rnn-sgd"] == ("0.170", "**missed**")
    assert rows["cells more than 1 % worse than `percentile(90)`"] == ("2", "**missed**")


def test_the_loss_where_no_clipping_is_best_is_compared_with_no_clipping():
    lines = goal_lines([1.02, 1.0], [1.5, 1.5], [1.0, 1.0])
    for line in lines:
        line["final"] = 1.0 if line["method"] == "none" else line["final"]
    assert goal_rows(lines)["worst loss over no clipping, where that is best"] == ("+2.0 %", "**missed**")


def test_a_method_that_is_defined_for_some_tasks_is_judged_where_it_ran():
    here = goal_lines([1.0, 1.0], [1.0, 1.0], [1.0, 1.0])
    other = [{**x, "task": "digits", "final": 2.0} for x in here]
    only = [{**x, "method": "StableAdamW", "final": 0.5} for x in other if x["method"] == "none"]
    cells = finals.Cells([*here, *other, *only], 10)
    assert "StableAdamW" not in cells.names
    assert cells.partial == ["StableAdamW"]
    assert [row["task"] for row in finals.goals(cells, "StableAdamW")["cells"]] == ["digits", "digits"]
    text = finals.report(cells)
    assert "100 % of 2" in next(line for line in text.splitlines() if line.startswith("| StableAdamW"))
    # in the table of all methods and in the one of its task
    assert sum(line.startswith("| StableAdamW") for line in text.splitlines()) == 2


def test_methods_are_listed_from_the_nearest_to_the_tuned_constant():
    cells = finals.Cells(goal_lines([1.5, 1.0], [1.0, 1.0], [1.01, 1.02]), 10)
    text = finals.against_constants(cells, cells.names)
    names = [line.split("|")[1].strip() for line in text.splitlines()[2:]]
    assert names == ["fixed 1", "**gradwatch percentile(90)**", "**gradwatch auto**", "none"]
