"""Runs side by side: what differs in their settings, then numbers, curves and verdicts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from gradwatch.report import figures, page
from gradwatch.report.facts import duration, number, settings
from gradwatch.report.material import Curve, Material

_NOTHING = "·"
_CURVES = f"Curves, each from its lowest to its highest value; {_NOTHING} is none that is finite"
_BARS = "▁▂▃▄▅▆▇█"
_SPARK_WIDTH = 24
_LEAST_WIDTH = 34  # characters of a cell in a terminal that is too narrow for more
_WIDTH = 160  # of what is no terminal


@dataclass(frozen=True)
class Comparison:
    """Two or more runs.

    Attributes:
      labels: of the runs: the names of their files, or what the caller calls them.
      settings: name -> the value of each run, "" for none; only those in which the runs differ.
      same: how many settings are alike in all.
      numbers: name -> the number of each run as a text.
      materials: the runs.
    """

    labels: tuple[str, ...]
    settings: dict[str, tuple[str, ...]]
    same: int
    numbers: dict[str, tuple[str, ...]]
    materials: tuple[Material, ...]

    def as_json(self) -> dict[str, Any]:
        """Everything but the curves."""
        runs = [
            {
                "run": label,
                "settings": {name: values[i] for name, values in self.settings.items()},
                "numbers": {name: values[i] for name, values in self.numbers.items()},
                "diagnosis": None if material.diagnosis is None else material.diagnosis.to_dict(),
            }
            for i, (label, material) in enumerate(zip(self.labels, self.materials))
        ]
        return {"differing_settings": list(self.settings), "same_settings": self.same, "runs": runs}


def of(runs: Sequence[tuple[str, Material]]) -> Comparison:
    """Compare (label, run)s, two or more."""
    labels, materials = tuple(label for label, _ in runs), tuple(material for _, material in runs)
    told = [settings(material.facts) for material in materials]
    names = list(dict.fromkeys(name for one in told for name in one))
    table = {name: tuple(one.get(name, "") for one in told) for name in names}
    differing = {name: values for name, values in table.items() if len(set(values)) > 1}
    rows = [_numbers(material) for material in materials]
    known = list(dict.fromkeys(name for row in rows for name in row))
    return Comparison(
        labels=labels,
        settings=differing,
        same=len(table) - len(differing),
        numbers={name: tuple(row.get(name, "-") for row in rows) for name in known},
        materials=materials,
    )


def _numbers(material: Material) -> dict[str, str]:
    counts, facts = material.counts, material.facts
    seen = sum(counts.get(word, 0) for word in ("pass", "clip", "zero", "skip"))
    out = {"Steps": f"{material.steps:,}"}
    if facts.get("start"):
        out["Took"] = duration((facts.get("end") or facts.get("seen") or facts["start"]) - facts["start"])
    out["Ended"] = str(facts.get("ended") or "-")
    if material.diagnosis is not None and material.diagnosis.outcome:
        out["Outcome"] = f"{material.diagnosis.outcome}: {page.outcome_text(material.diagnosis)}"
    if "loss" in material.curves:
        loss = material.curves["loss"]
        out["Loss at the end"] = number(_end(loss))
        if "loss" in material.nonfinite:
            since, word = material.nonfinite["loss"]
            out["Loss at the end"] = f"{word} since step {since:,}"
        out["Smallest loss"] = number(float(np.nanmin(loss.low)))
    if "norm" in material.curves:
        norm = material.curves["norm"]
        out["Median norm"] = number(float(np.nanmedian((norm.low + norm.high) / 2)))
        out["Largest norm"] = number(float(np.nanmax(norm.high)))
    out["Clipped steps"] = f"{counts.get('clip', 0) / seen:.1%}" if seen else "-"
    out["Zeroed or skipped steps"] = f"{counts.get('zero', 0) + counts.get('skip', 0):,}"
    kinds: dict[str, int] = {}
    for event in material.events:
        kinds[str(event["kind"])] = kinds.get(str(event["kind"]), 0) + int(event.get("episodes", 1))
    out["Anomalies"] = ", ".join(f"{count:,} {kind}" for kind, count in kinds.items()) or "0"
    for name, label in (("learning_rate", "Largest learning rate"), ("update_ratio", "Median update ratio")):
        if name in material.seldom:
            values = material.seldom[name][1]
            known = values[~np.isnan(values)]
            out[label] = number(float(known.max() if name == "learning_rate" else np.median(known)))
    return out


def _end(curve: Curve) -> float:
    """The median over the last twentieth of what is known: one batch says little."""
    middle = (curve.low + curve.high) / 2
    known = middle[~np.isnan(middle)]
    return float(np.median(known[-max(1, len(known) // 20) :])) if len(known) else math.nan


# -- for a terminal -------------------------------------------------------------------------------------------


def text(found: Comparison, width: int | None = None) -> str:
    """The comparison as a table of text, each run a column.

    Args:
      width: characters of a line, 160 where it is not known; long texts are cut in the middle if they do not fit.
    """
    names = max(map(len, (*found.settings, *found.numbers)), default=0)
    room = max(_LEAST_WIDTH, ((width or _WIDTH) - names - 2) // len(found.labels) - 2)

    def cut(value: str) -> str:
        return value if len(value) <= room else f"{value[: room // 2 - 1]}…{value[-room // 2 :]}"

    short = {label: cut(label) for label in found.labels}
    head = ("", *(short[label] for label in found.labels))
    parts = []
    if found.settings:
        parts += ["Settings that differ", *_table(head, [(n, *map(cut, v)) for n, v in found.settings.items()])]
    else:
        parts.append("The settings are alike.")
    parts += [f"{found.same:,} other settings are alike.", "", "Numbers"]
    parts += _table(head, [(name, *map(cut, values)) for name, values in found.numbers.items()])
    curves = []
    for name in ("loss", "norm"):
        if any(name in material.curves for material in found.materials):
            curves.append((figures.COLOURS[name][1], *(_spark(m.curves.get(name)) for m in found.materials)))
    if curves:
        parts += ["", _CURVES, *_table(head, curves)]
    parts += ["", "Verdicts"]
    for label, material in zip(found.labels, found.materials):
        verdict = "none" if material.diagnosis is None else str(material.diagnosis).replace("\n", "\n  ")
        parts.append(f"{short[label]}\n  {verdict}")
    return "\n".join(parts)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(line[i]) for line in (head, *rows)) for i in range(len(head))]
    return ["  " + "  ".join(f"{c:<{w}}" for c, w in zip(line, widths)).rstrip() for line in (head, *rows)]


def _spark(curve: Curve | None) -> str:
    """The highest values of a curve as a line of bars, on a log axis where all are above zero."""
    if curve is None or not np.isfinite(curve.high).any():
        return "-"
    with np.errstate(all="ignore"):
        logs = bool(np.nanmin(curve.high) > 0)
        values = np.log(curve.high) if logs else curve.high
    bounds = np.linspace(0, len(values), min(len(values), _SPARK_WIDTH) + 1).astype(int)
    parts = [values[a:b][np.isfinite(values[a:b])] for a, b in pairwise(bounds)]
    tops = np.array([part.max() if len(part) else math.nan for part in parts])
    low, span = np.nanmin(tops), np.nanmax(tops) - np.nanmin(tops)
    return "".join(
        _NOTHING if np.isnan(top) else _BARS[int((top - low) / span * (len(_BARS) - 1)) if span > 0 else 0]
        for top in tops
    )


# -- for a browser --------------------------------------------------------------------------------------------


def page_of(found: Comparison) -> str:
    """The comparison as one HTML file.

    Raises:
      MissingExtra: Bokeh is not installed.
    """
    labelled = list(zip(found.labels, found.materials))
    drawn = [(name, figures.overlaid(labelled, name)) for name in ("loss", "norm")]
    shown = [(name, figure) for name, figure in drawn if figure is not None]
    head = (("", "name"), *((label, "name") for label in found.labels))
    different = page.table(head, [(name, *values) for name, values in found.settings.items()])
    sections = [
        page.section(
            "Settings that differ",
            different if found.settings else "<p>None: the settings are alike.</p>",
            f"{found.same:,} other settings are alike.",
        ),
        page.section("Numbers", page.table(head, [(name, *values) for name, values in found.numbers.items()])),
        *(
            page.section("Loss" if name == "loss" else "Gradient norm before clipping", f"{{{{plot {i}}}}}")
            for i, (name, _) in enumerate(shown)
        ),
        *(
            page.section(
                label,
                "<p>No verdict.</p>" if material.diagnosis is None else page.verdict_lines(material.diagnosis),
            )
            for label, material in labelled
        ),
    ]
    return page.document(
        f"{len(found.labels)} runs compared",
        "What differs, and what came of it",
        sections,
        [figure for _, figure in shown],
    )
