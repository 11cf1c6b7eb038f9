"""Both runs of the demo in one picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gradwatch.core.snapshot import Event
from gradwatch.demo.diagnosis import diverged_at, final_loss, number
from gradwatch.demo.training import Run
from gradwatch.errors import MissingExtra

# Okabe and Ito's colours, told apart by everybody
RED, BLUE, SKY, ORANGE, GREEN, GREY = "#D55E00", "#0072B2", "#56B4E9", "#E69F00", "#009E73", "#777777"

_MARKS = {
    "explosion": ("v", RED, "explosion begins"),
    "trend": ("^", ORANGE, "norm grows"),
    "saturated": ("D", SKY, "mostly clipped away"),
    "vanishing": ("s", GREY, "vanishing"),
    "nonfinite": ("X", "black", "NaN or Inf"),
}

#: A norm so many times above the highest threshold leaves the picture and is told as a number instead.
REACH = 1e3

#: The loss is drawn as the median of so many steps, over the losses themselves.
MEDIAN_STEPS = 25


def draw(
    unprotected: Run | None,
    protected: Run | None,
    uniform: float,
    path: Path,
    *,
    subtitle: str = "",
    names: tuple[str, str] = ("unprotected", "protected"),
) -> None:
    """Write the PNG: loss of both runs, then norm, clip_norm, threshold and events of each.

    Raises:
      MissingExtra: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as missing:
        raise MissingExtra(missing.name or "matplotlib", "demo", "the picture") from None

    figure = Figure(figsize=(11, 10), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    losses, raw, kept = panels = figure.subplots(3, 1, sharex=True, height_ratios=[1.1, 1, 1])
    longest = max((len(run.loss) for run in (unprotected, protected) if run is not None), default=1)
    losses.set_xlim(0, max(longest, 2) * 1.01)
    figure.suptitle(f"The same training, {names[0]} and {names[1]}\n{subtitle}", fontsize=12)
    lost = None if unprotected is None else diverged_at(unprotected.loss, uniform)

    _losses(losses, unprotected, protected, uniform)
    _norms(raw, unprotected, RED)
    _norms(kept, protected, SKY)
    kept.set_xlabel("step")
    for axes, title in zip(panels, ("Loss", *(f"Gradient norm, {name}" for name in names))):
        axes.set_title(title, loc="left", fontweight="bold", fontsize=11)
        axes.grid(True, which="major", alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if lost is not None:
            axes.axvline(lost, color=RED, linewidth=1, linestyle=(0, (2, 2)), alpha=0.7, zorder=0)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), fontsize=8, ncols=6, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _losses(axes: Any, unprotected: Run | None, protected: Run | None, uniform: float) -> None:
    axes.set_yscale("log")
    axes.set_ylabel("nats per character")
    lowest = highest = uniform
    for run, colour in ((unprotected, RED), (protected, BLUE)):
        if run is None or not len(run.loss):
            continue
        steps = np.arange(1, len(run.loss) + 1)
        loss = _shown(run.loss)
        usual = _median(loss)
        axes.plot(steps, loss, color=colour, alpha=0.35, linewidth=0.7)
        axes.plot(steps, usual, color=colour, linewidth=1.8, label=f"{run.name}: {run.snapshot.policy}")
        lowest = min(lowest, float(np.nanmin(loss, initial=uniform)))
        highest = max(highest, float(np.nanmax(loss, initial=uniform)))
        lost = diverged_at(run.loss, uniform)
        if lost is None:
            said, where, place = number(final_loss(run.loss)), (steps[-1], final_loss(run.loss)), (0, 10)
        else:
            what = "lost" if np.isfinite(run.loss[-1]) else "NaN"
            said, where, place = f"{what} from step {lost} on", (lost, uniform), (8, 8)
        axes.annotate(
            said, where, place, textcoords="offset points", ha="right" if lost is None else "left",
            color=colour, fontweight="bold",
        )  # fmt: skip
    axes.axhline(uniform, color=GREY, linewidth=1, linestyle=":", label=f"uniform guess: {number(uniform)}")
    bottom, top = lowest * 0.85, min(highest * 1.3, uniform * 10)
    axes.set_ylim(bottom, top)
    ticks = [t for t in (0.5, 1, 1.5, 2, 3, 5, 10, 20, 40) if bottom <= t <= top]
    axes.set_yticks(ticks, [f"{t:g}" for t in ticks])
    axes.minorticks_off()


def _norms(axes: Any, run: Run | None, colour: str) -> None:
    axes.set_yscale("log")
    axes.set_ylabel("L2 norm")
    if run is None or not len(run.series["step"]):
        axes.text(0.5, 0.5, "not run", transform=axes.transAxes, ha="center", color=GREY)
        return
    series = {key: _shown(values) for key, values in run.series.items() if key != "verdict"}
    steps, norm, threshold = series["step"], series["norm"], series["threshold"]
    axes.plot(steps, norm, color=colour, linewidth=0.9, label="norm")
    if np.isfinite(series["clip_norm"]).any():
        axes.plot(steps, series["applied_norm"], color=BLUE, linewidth=0.7, label="applied norm")
        axes.plot(steps, series["clip_norm"], color=GREEN, linewidth=1.8, label="clip_norm")
    axes.plot(steps, threshold, color="black", linewidth=1, linestyle="--", label="explosion threshold")

    seen = np.concatenate([norm, series["applied_norm"]])
    bottom = float(np.nanmin(seen, initial=1e30)) * 0.5
    usual = float(np.nanmax(np.concatenate([threshold, [np.nanmedian(norm) if np.isfinite(norm).any() else 1.0]])))
    highest = float(np.nanmax(norm, initial=usual))
    top = min(highest * 1.5, usual * REACH)
    # head room for the marks
    axes.set_ylim(bottom, top * (top / bottom) ** 0.12)
    if highest > top:
        at = float(steps[int(np.nanargmax(norm))])
        axes.annotate(
            f"{number(highest)}", (at, top), (6, -4), textcoords="offset points", color=colour, fontweight="bold",
            va="top",
        )  # fmt: skip
    _events(axes, run.events)


def _events(axes: Any, events: Sequence[Event]) -> None:
    across = axes.get_xaxis_transform()  # x in steps, y as a share of the panel
    for kind, (marker, colour, label) in _MARKS.items():
        began = [e.step for e in events if e.kind == kind]
        if began:
            axes.plot(
                began, np.full(len(began), 0.96), marker, color=colour, markersize=8, markeredgecolor="white",
                linestyle="none", label=label, transform=across,
            )  # fmt: skip


def _shown(values: np.ndarray) -> np.ndarray:
    """What a log axis can show: a bound that does not exist, a zero or a NaN leaves a gap."""
    with np.errstate(invalid="ignore"):
        return np.where(np.isfinite(values) & (values > 0) & (values < 9e29), values, np.nan)


def _median(loss: np.ndarray) -> np.ndarray:
    """Median of the last MEDIAN_STEPS losses; a gap where the loss itself is one."""
    padded = np.concatenate([np.full(MEDIAN_STEPS - 1, np.nan), loss])
    windows = np.lib.stride_tricks.sliding_window_view(padded, MEDIAN_STEPS)
    known = np.isfinite(loss)
    out = np.full(len(loss), np.nan)
    out[known] = np.nanmedian(windows[known], axis=1)
    return out
