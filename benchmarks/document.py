"""Write the measured numbers of benchmarks/results into docs/benchmarks.md and draw its pictures.

    python benchmarks/document.py

Only what stands between the lines `<!-- measured: NAME -->` and `<!-- end -->` is written, so the prose around it
stays; a table in the documents can therefore never differ from the results that it shows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import setting

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"
PICTURES = ROOT / "docs" / "pictures"


def result(name: str) -> dict[str, Any] | None:
    path = setting.RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def _made_with(found: dict[str, Any]) -> str:
    facts = found["machine"]
    return f"`{facts['command']}`; {setting.one_line(facts)}"


def overhead(found: dict[str, Any]) -> str:
    import overhead as script

    parts = [_made_with(found), script.ratios(found["cells"]), script.small_print(found["cells"])]
    if found["late_step"]:
        parts.append(script.late_table(found["late_step"]))
    if found["options"]:
        parts.append(script.options_table(found["options"]))
    if found["soak"]:
        parts.append(script.soak_line(found["soak"]))
    return "\n\n".join(part for part in parts if part)


def mirrored(found: dict[str, Any]) -> str:
    import mirrored as script

    return "\n\n".join([_made_with(found), script.report(found["cells"])])


def traffic(found: dict[str, Any]) -> str:
    import traffic as script

    return "\n\n".join([_made_with(found), script.report(found)])


def first_call(found: dict[str, Any]) -> str:
    import first_call as script

    return "\n\n".join([_made_with(found), script.report(found)])


def scrape(found: dict[str, Any]) -> str:
    middle, low, high = (100 * (found["ratios"]["here / elsewhere"][key] - 1) for key in ("median", "low", "high"))
    return (
        f"{_made_with(found)}\n\nWith {found['clients']} clients that scrape the training's own endpoint, a step takes "
        f"{middle:+.1f} % ({low:+.1f} to {high:+.1f} %) longer than while they scrape another process on "
        f"the same machine, {len(found['rounds'])} rounds. The goal is below 1 %."
    )


def detection(found: dict[str, Any]) -> str:
    import detection as script

    draw_tradeoff(found["tradeoff"])
    return "\n\n".join(
        [
            _made_with(found),
            script.report(found),
            "![Delay until a growth of 5 % a step is found, against false alarms](pictures/detection.png)",
        ]
    )


def efficacy(found: dict[str, Any]) -> str:
    import efficacy as script
    import finals
    import runs

    lines = runs.load(setting.RESULTS / "efficacy.json")
    cells = finals.Cells(lines, found["steps"], list(script.methods()))
    draw_sweep(cells)
    return "\n\n".join(
        [
            _made_with(found),
            finals.report(cells),
            "![Final loss over the learning rate, for every task](pictures/efficacy.png)",
        ]
    )


def longrun(found: dict[str, Any]) -> str:
    import longrun as script

    return "\n\n".join([_made_with(found), script.report(found)])


def healthy(found: dict[str, Any]) -> str:
    import healthy as script

    return "\n\n".join([_made_with(found), script.report(found)])


def harm(found: dict[str, Any]) -> str:
    import harm as script

    return "\n\n".join([_made_with(found), script.report(found)])


def diagnosis(found: dict[str, Any]) -> str:
    import diagnosis as script

    draw_confusion(found["confusion"])
    picture = "![Which cause was told for which fault](pictures/diagnosis.png)"
    return "\n\n".join([_made_with(found), script.report(found), picture])


def recovery(found: dict[str, Any]) -> str:
    import recovery as script

    return "\n\n".join([_made_with(found), script.report(found)])


SECTIONS: dict[str, Callable[[dict[str, Any]], str]] = {
    "overhead": overhead,
    "mirrored": mirrored,
    "traffic": traffic,
    "first_call": first_call,
    "scrape": scrape,
    "detection": detection,
    "healthy": healthy,
    "harm": harm,
    "efficacy": efficacy,
    "longrun": longrun,
    "recovery": recovery,
    "diagnosis": diagnosis,
}

#: Sections that stand on another page.
PAGES = {"diagnosis": ROOT / "docs" / "diagnosis.md"}


def fill(text: str, name: str, content: str) -> str:
    """`text` with the section of that name replaced; an error where it has none."""
    pattern = re.compile(rf"(<!-- measured: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"{PAGE} has no section <!-- measured: {name} -->")
    return pattern.sub(lambda match: f"{match[1]}\n{content}\n\n{match[2]}", text)


# -- pictures ---------------------------------------------------------------------------------------------


def _axes(n: int, columns: int) -> tuple[Any, list[Any]]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = -(-n // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(5.2 * columns, 3.6 * rows), squeeze=False)
    for spare in axes.ravel()[n:]:
        spare.axis("off")
    return figure, list(axes.ravel()[:n])


def _save(figure: Any, name: str) -> None:
    PICTURES.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(PICTURES / name, dpi=110)


def draw_tradeoff(found: dict[str, Any]) -> None:
    """Delay against false alarms, one line per detector."""
    figure, axes = _axes(len(found), 2)
    for axis, (title, sweeps) in zip(axes, found.items()):
        for name, points in sweeps.items():
            # nothing can be left of what was counted: none in this many steps
            rate = [max(point["per_10000"], 0.05) for point in points]
            ours = name.startswith("gradwatch")
            axis.plot(rate, [point["delay"] for point in points], "o-" if ours else "x--", label=name, alpha=0.9)
        axis.set(xscale="log", yscale="log", title=title, xlabel="false alarms per 10,000", ylabel="delay, steps")
    axes[0].legend(fontsize=7)
    _save(figure, "detection.png")


def draw_confusion(rows: list[list[Any]]) -> None:
    """Faults down, verdicts across; each row is shares of its runs."""
    kinds = [*sorted({fault for fault, *_ in rows} - {"healthy"}), "healthy"]
    told = [*kinds, *sorted({told for _, told, _ in rows} - set(kinds))]
    counts = {(fault, verdict): count for fault, verdict, count in rows}
    figure, (axis,) = _axes(1, 1)
    figure.set_size_inches(9.5, 8.5)
    table = [[counts.get((fault, verdict), 0) for verdict in told] for fault in kinds]
    shares = [[count / max(sum(row), 1) for count in row] for row in table]
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for i, row in enumerate(table):
        for j, count in enumerate(row):
            if count:
                axis.text(j, i, str(count), ha="center", va="center", color="white" if shares[i][j] > 0.5 else "black")
    axis.set_xticks(range(len(told)), [name.replace("_", " ") for name in told], rotation=60, ha="right")
    axis.set_yticks(range(len(kinds)), [name.replace("_", " ") for name in kinds])
    axis.set(xlabel="verdict, first rank", ylabel="fault", title="Runs of the judged seeds")
    _save(figure, "diagnosis.png")


#: What the picture of the sweep shows: method -> (line, colour); all methods are in the table.
SWEEP = {
    "fixed, tuned by oracle": ("-", "black"),
    "none": ("x:", "grey"),
    "fixed 1": ("x--", "tab:orange"),
    "AutoClip p10": ("x--", "tab:green"),
    "ZClip": ("x--", "tab:purple"),
    "AdaGC": ("x--", "tab:brown"),
    "gradwatch percentile(90)": ("o-", "tab:blue"),
    "gradwatch median(2)": ("o-", "tab:cyan"),
    "gradwatch auto": ("o-", "tab:red"),
}


def draw_sweep(cells: Any) -> None:
    """Final loss over the learning rate: the tuned constant, the best known rules, and ours."""
    tasks = list(dict.fromkeys(task for task, _ in cells.cells))
    figure, axes = _axes(len(tasks), 2)
    for axis, task in zip(axes, tasks):
        rates = [rate for name, rate in cells.cells if name == task]
        for name, (line, colour) in SWEEP.items():
            y = [cells.mean(task, rate, name) for rate in rates]
            axis.plot(rates, y, line, color=colour, label=name, lw=3 if colour == "black" else 1.4, alpha=0.85)
        axis.set(
            xscale="log", yscale="log", title=task, xlabel="learning rate", ylabel="final loss, mean over the seeds"
        )
        axis.yaxis.set_major_formatter("{x:g}")
        low, high = axis.get_ylim()
        axis.yaxis.set_minor_formatter("{x:g}" if high < 10 * low else "")
    axes[0].legend(fontsize=7)
    _save(figure, "efficacy.png")


def main() -> None:
    for name, section in SECTIONS.items():
        found = result(name)
        if found is None:
            print(f"no results of {name}: left as it is")
            continue
        page = PAGES.get(name, PAGE)
        page.write_text(fill(page.read_text(), name, section(found)))
        print(f"written: {name} into {page}")


if __name__ == "__main__":
    main()
