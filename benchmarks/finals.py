"""What the finished runs of benchmarks/efficacy.py came to: cells, goals and tables."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import setting
from runs import UNCLIPPED, Line
from tasks import DESIGN_TASKS, TASKS

ORACLE = "fixed, tuned by oracle"
DEFAULT = "gradwatch auto"
PERCENTILE = "gradwatch percentile(90)"  # the default before, and the rule of AutoClip
EVERY = {**TASKS, **DESIGN_TASKS}


class Cells:
    """Finished runs, by task, learning rate and method. A group counts once every method of its task has run.

    Args:
      lines: finished runs.
      steps: those of so many steps count.
      order: names of methods in the order in which the tables have them; unknown ones come last.
    """

    def __init__(self, lines: Iterable[Line], steps: int, order: Sequence[str] = ()) -> None:
        groups: dict[tuple[str, float, int], dict[str, Line]] = defaultdict(dict)
        found: dict[str, dict[str, None]] = defaultdict(dict)  # sets that keep the order of the lines
        for line in lines:
            if line["steps"] == steps:
                groups[line["task"], line["rate"], line["seed"]][line["method"]] = line
                found[line["task"]][line["method"]] = None
        place = {name: i for i, name in enumerate(order)}
        self.of_task = {
            task: sorted(names, key=lambda name: place.get(name, len(place))) for task, names in found.items()
        }
        every = dict.fromkeys(name for names in self.of_task.values() for name in names)
        #: the methods that ran on every task
        self.names = [name for name in every if all(name in names for names in found.values())]
        #: those that are defined for some of the tasks only; a constant is no method there, but may be its oracle
        self.partial = [name for name in every if name not in self.names and not name.startswith("fixed ")]
        self.incomplete = [key for key, group in groups.items() if len(group) < len(found[key[0]])]
        self.runs: dict[tuple[str, float, str], dict[int, Line]] = defaultdict(dict)
        for (task, rate, seed), group in groups.items():
            if len(group) == len(found[task]):
                for name, line in group.items():
                    self.runs[task, rate, name][seed] = line
        self.cells = sorted({key[:2] for key in self.runs}, key=lambda c: (list(EVERY).index(c[0]), c[1]))

    def cells_of(self, method: str) -> list[tuple[str, float]]:
        """The cells in which the method ran."""
        return [cell for cell in self.cells if self.values(*cell, method)]

    def values(self, task: str, rate: float, method: str, field: str = "final") -> list[float]:
        runs = self.runs.get((task, rate, method), {})
        return [runs[seed][field] for seed in sorted(runs)]

    def constants(self, task: str) -> list[str]:
        return [name for name in self.of_task[task] if name == UNCLIPPED or name.startswith("fixed ")]

    def oracle(self, task: str, rate: float) -> str:
        """The constant with the smallest mean final loss in this cell."""
        return min(self.constants(task), key=lambda name: _mean(self.values(task, rate, name)))

    def held_out(self, task: str, rate: float) -> float:
        """Mean loss of the constants that are chosen without looking: each seed's by the means of the other seeds."""
        losses = {name: self.values(task, rate, name) for name in self.constants(task)}
        found = []
        for seed in range(len(losses[UNCLIPPED])):
            others = {name: _mean(values[:seed] + values[seed + 1 :]) for name, values in losses.items()}
            found.append(losses[min(others, key=lambda name: others[name])][seed])
        return _mean(found)

    def resolve(self, task: str, rate: float, method: str) -> str:
        return self.oracle(task, rate) if method == ORACLE else method

    def mean(self, task: str, rate: float, method: str, field: str = "final") -> float:
        return _mean(self.values(task, rate, self.resolve(task, rate, method), field))


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else math.inf


def goals(cells: Cells, method: str) -> dict[str, Any]:
    """A method against the tuned constant, no clipping and `percentile(90)`, cell by cell, where it ran."""
    rows = []
    for task, rate in cells.cells_of(method):
        oracle = cells.oracle(task, rate)
        mine, best, none = (cells.mean(task, rate, name) for name in (method, oracle, UNCLIPPED))
        survivors = [name for name in cells.constants(task) if not any(cells.values(task, rate, name, "diverged"))]
        rows.append(
            {
                "task": task,
                "rate": rate,
                "oracle": oracle,
                "ratio": mine / best,
                "over_none": mine / none if oracle == UNCLIPPED else None,
                "died_where_a_constant_survived": bool(survivors) and any(cells.values(task, rate, method, "diverged")),
            }
        )
    ratios = np.array([row["ratio"] for row in rows])
    over_none = [row["over_none"] for row in rows if row["over_none"] is not None]
    return {
        "cells": rows,
        "within_2_percent": float(np.mean(ratios <= 1.02)),
        "better": float(np.mean(ratios < 1.0)),
        "median_ratio": float(np.median(ratios)),
        "worst_ratio": float(np.max(ratios)),
        "died": sum(row["died_where_a_constant_survived"] for row in rows),
        "worst_over_none_where_none_is_best": max(over_none, default=None),
        "over_percentile": [cells.mean(*c, method) / cells.mean(*c, PERCENTILE) for c in cells.cells_of(method)]
        if PERCENTILE in cells.names
        else None,
    }


class Goal(NamedTuple):
    """What a method should reach on the judged cells.

    Attributes:
      text: the goal, its bound included.
      number: (cells, method) -> the measured number, None where nothing was measured.
      reached: number -> whether the goal is met.
      show: number -> as it stands in the table.
    """

    text: str
    number: Callable[[Cells, str], float | None]
    reached: Callable[[float], bool]
    show: Callable[[float], str] = "{:.0f}".format


def held_out(cells: Cells, method: str) -> list[float]:
    """The method's loss over that of the constant which the other seeds chose, for each of its cells."""
    return [cells.mean(*cell, method) / cells.held_out(*cell) for cell in cells.cells_of(method)]


def held_out_table(cells: Cells, method: str = DEFAULT, beside: Sequence[str] = (PERCENTILE, "fixed 1")) -> str:
    """A constant that is chosen by the very runs which judge it wins ties; one that the other seeds chose does not."""
    names = [name for name in (method, *beside) if name in cells.names]
    ratios = [held_out(cells, name) for name in names]
    rows = [
        ["cells within 2 % of it", *(str(sum(x <= 1.02 for x in found)) for found in ratios)],
        ["cells better than it", *(str(sum(x < 1.0 for x in found)) for found in ratios)],
        ["median ratio", *(f"{np.median(found):.3f}" for found in ratios)],
    ]
    return setting.table([f"of {len(cells.cells)}", *names], rows)


def _count(condition: Callable[[float], bool], column: str = "ratio") -> Callable[[Cells, str], float | None]:
    """In how many cells the condition holds for a method's ratio."""

    def number(cells: Cells, method: str) -> float | None:
        found = goals(cells, method)
        ratios = [row["ratio"] for row in found["cells"]] if column == "ratio" else found[column]
        return None if ratios is None else float(sum(condition(x) for x in ratios))

    return number


def the_goals(cells: Cells) -> list[Goal]:
    """Those of "clip without a number", for as many cells as were judged (34)."""
    near, better = math.ceil(33 / 34 * len(cells.cells)), math.ceil(20 / 34 * len(cells.cells))
    found = [
        Goal(
            f"cells within 2 % of the tuned constant: at least {near} of {len(cells.cells)}",
            _count(lambda ratio: ratio <= 1.02),
            lambda n: n >= near,
        ),
        Goal(f"cells better than it: at least {better}", _count(lambda ratio: ratio < 1.0), lambda n: n >= better),
        Goal(
            "cells in which a seed dies although a constant survives: 0",
            lambda c, method: goals(c, method)["died"],
            lambda n: n == 0,
        ),
        Goal(
            "worst loss over no clipping, where that is best: at most 1 % above",
            lambda c, method: goals(c, method)["worst_over_none_where_none_is_best"],
            lambda ratio: ratio <= 1.01,
            lambda ratio: f"{100 * (ratio - 1):+.1f} %",
        ),
    ]
    if any(task == "rnn-sgd" for task, _ in cells.cells):
        tuned = sensitivity(cells, "rnn-sgd", ORACLE)
        found.append(
            Goal(
                f"learning-rate sensitivity on rnn-sgd: at most 0.086 (tuned constants: {tuned:.3f})",
                lambda c, method: sensitivity(c, "rnn-sgd", method),
                lambda x: x <= 0.086,
                "{:.3f}".format,
            )
        )
    found.append(
        Goal(
            "cells more than 1 % worse than `percentile(90)`: 0",
            _count(lambda ratio: ratio > 1.01, "over_percentile"),
            lambda n: n == 0,
        )
    )
    return found


def goals_table(cells: Cells, method: str = DEFAULT, beside: Sequence[str] = (PERCENTILE, "fixed 1")) -> str:
    """One row a goal: what `method` reached, whether that is enough, and what others reach."""
    beside = [name for name in beside if name in cells.names]
    rows = []
    for goal in the_goals(cells):
        numbers = [goal.number(cells, name) for name in (method, *beside)]
        mine, *others = ["-" if x is None else goal.show(x) for x in numbers]
        verdict = "-" if numbers[0] is None else "met" if goal.reached(numbers[0]) else "**missed**"
        rows.append([goal.text, mine, verdict, *others])
    return setting.table(["goal", method, "", *beside], rows)


def sensitivity(cells: Cells, task: str, method: str) -> float:
    """Learning-rate sensitivity: final loss, mean over the rates minus the best rate's (Wortsman et al. 2023)."""
    finals = [cells.mean(task, rate, method) for name, rate in cells.cells if name == task]
    return float(np.mean(finals) - np.min(finals))


def report(cells: Cells) -> str:
    """The goals, every method against the tuned constant, and then the tasks one by one."""
    shown = [name for name in [*cells.names, *cells.partial] if not name.startswith("fixed ") or name == "fixed 1"]
    parts = []
    if DEFAULT in cells.names:
        parts += ["The goals of `auto`", goals_table(cells)]
        if min(len(cells.values(*cell, DEFAULT)) for cell in cells.cells) > 1:
            parts += [
                "Against the constant that the other seeds chose; the tuned one is chosen by the runs that judge it",
                held_out_table(cells),
            ]
    parts += [
        f"Every method in {len(cells.cells)} cells (task x learning rate), the nearest to the tuned constants first",
        against_constants(cells, shown),
    ]
    for task in dict.fromkeys(task for task, _ in cells.cells):
        parts += _task(cells, task, [name for name in shown if name in cells.of_task[task]])
    return "\n\n".join(parts)


def against_constants(cells: Cells, shown: Sequence[str]) -> str:
    """One row a method, against the constant that was tuned for each cell."""
    rows = []
    found = {name: goals(cells, name) for name in shown}
    for name, g in sorted(found.items(), key=lambda x: (-x[1]["within_2_percent"], x[1]["died"], -x[1]["better"])):
        over, judged = g["worst_over_none_where_none_is_best"], len(g["cells"])
        rows.append(
            [
                f"**{name}**" if name.startswith("gradwatch") else name,
                f"{100 * g['within_2_percent']:.0f} %" + (f" of {judged}" if judged < len(cells.cells) else ""),
                f"{100 * g['better']:.0f} %",
                f"{g['median_ratio']:.3f}",
                f"{g['worst_ratio']:.2f}",
                str(g["died"]),
                "-" if over is None else f"{over:.3f}",
                _won_and_lost(g["over_percentile"]),
            ]
        )
    head = ["method", "within 2 %", "better", "median ratio", "worst", "cells died", "worst / none"]
    return setting.table([*head, "against percentile(90): 2 % better / worse"], rows)


def _task(cells: Cells, task: str, names: Sequence[str]) -> list[str]:
    """Title and table of one task: final losses by learning rate."""
    rates = [rate for name, rate in cells.cells if name == task]
    rows = []
    for name in [*names[:1], ORACLE, *names[1:]]:
        row = [name]
        for rate in rates:
            actual = cells.resolve(task, rate, name)
            values = cells.values(task, rate, actual)
            mean, low, high = setting.mean_interval(values)
            dead = sum(cells.values(task, rate, actual, "diverged"))
            text = f"{mean:.3g} ± {(high - low) / 2:.1g}" + (f" ({dead} of {len(values)} died)" if dead else "")
            row.append(f"**{text}**" if dead else text)
        row.append(f"{sensitivity(cells, task, name):.3g}")
        share = [cells.mean(task, rate, name, "clipped_last_half") for rate in rates]
        row.append(f"{100 * np.min(share):.0f} to {100 * np.max(share):.0f}")
        row.append(f"{np.mean([cells.mean(task, rate, name, 'steps_lost') for rate in rates]):.0f}")
        rows.append(row)
    seeds = len(cells.values(task, rates[0], names[0]))
    head = ["method", *[f"{rate:g}" for rate in rates], "LR sensitivity", "clipped, %", "steps lost"]
    return [f"{task}: {EVERY[task]().text}; {seeds} seeds, final loss by learning rate", setting.table(head, rows)]


def _won_and_lost(ratios: list[float] | None) -> str:
    """In how many cells it is 2 % better, and worse."""
    return "-" if ratios is None else f"{sum(r < 0.98 for r in ratios)} / {sum(r > 1.02 for r in ratios)}"
