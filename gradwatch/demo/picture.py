"""Both runs of the demo in one picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gradwatch.core.snapshot import Event
from gradwatch.demo.diagnosis import MEAN_STEPS, diverged_at, final_loss, number
from gradwatch.demo.training import Run
from gradwatch.errors import MissingExtra

# Okabe and Ito's colours, told apart by everybody
RED, BLUE, SKY, ORANGE, GREEN, GREY = "#D55E00", "#0072B2", "#56B4E9", "#E69F00", "#009E73", "#777777"

_MARKS = {
    "explosion": ("v", RED, "explosion"),
    "trend": ("^", ORANGE, "growing norm"),
    "vanishing": ("s", GREY, "vanishing"),
    "nonfinite": ("X", "black", "NaN or Inf"),
}


def draw(unprotected: Run | None, protected: Run | None, uniform: float, path: Path, *, subtitle: str = "") -> None:
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
    losses, raw, kept = figure.subplots(3, 1, sharex=True, height_ratios=[1.15, 1, 1.15])
    longest = max((len(run.loss) for run in (unprotected, protected) if run is not None), default=1)
    losses.set_xlim(0, max(longest, 2) * 1.01)
    figure.suptitle("The same training, unprotected and protected", fontsize=15, fontweight="bold")
    losses.set_title(subtitle, fontsize=9, color=GREY)

    _losses(losses, unprotected, protected, uniform)
    _norms(raw, unprotected, "norm, unprotected", RED)
    _norms(kept, protected, "norm, protected", SKY)
    lost = None if unprotected is None else diverged_at(unprotected.loss, uniform)
    if lost is not None:
        for axes in (losses, raw, kept):
            axes.axvline(lost, color=RED, linewidth=1, linestyle=(0, (2, 2)), alpha=0.7, zorder=0)
    kept.set_xlabel("step")
    for axes in (losses, raw, kept):
        axes.grid(True, which="major", alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="upper right", fontsize=8, ncols=3, framealpha=0.9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _losses(axes: Any, unprotected: Run | None, protected: Run | None, uniform: float) -> None:
    axes.set_yscale("log")
    axes.set_ylabel("loss (nats per character)")
    highest = uniform
    for run, colour in ((unprotected, RED), (protected, BLUE)):
        if run is None or not len(run.loss):
            continue
        steps = np.arange(1, len(run.loss) + 1)
        loss = np.where(np.isfinite(run.loss), run.loss, np.nan)
        axes.plot(steps, loss, color=colour, alpha=0.3, linewidth=0.7)
        axes.plot(steps, _smooth(loss), color=colour, linewidth=1.8, label=f"{run.name} ({run.snapshot.policy})")
        highest = max(highest, float(np.nanmax(loss, initial=0.0)))
        lost = diverged_at(run.loss, uniform)
        if lost is None:
            axes.annotate(
                number(final_loss(run.loss)), (steps[-1], final_loss(run.loss)), (0, 8),
                textcoords="offset points", ha="right", color=colour, fontweight="bold",
            )  # fmt: skip
        else:
            what = "NaN" if not np.isfinite(run.loss[-1]) else "lost"
            axes.annotate(
                f"{what} from step {lost} on", (lost, uniform), (8, 6),
                textcoords="offset points", color=colour, fontweight="bold",
            )  # fmt: skip
    axes.axhline(uniform, color=GREY, linewidth=1, linestyle=":", label=f"knowing nothing: {number(uniform)}")
    axes.set_ylim(top=min(highest, uniform * 100) * 1.6)
    ticks = [t for t in (1, 1.5, 2, 3, 5, 10, 20, 50, 100, 200) if axes.get_ylim()[0] <= t <= axes.get_ylim()[1]]
    axes.set_yticks(ticks, [f"{t:g}" for t in ticks])
    axes.minorticks_off()


def _norms(axes: Any, run: Run | None, title: str, colour: str) -> None:
    axes.set_yscale("log")
    axes.set_ylabel(title)
    if run is None or not len(run.series["step"]):
        axes.text(0.5, 0.5, "not run", transform=axes.transAxes, ha="center", color=GREY)
        return
    series = run.series
    steps, norm = series["step"], _shown(series["norm"])
    axes.plot(steps, norm, color=colour, linewidth=0.8, label="norm")
    if np.isfinite(_shown(series["clip_norm"])).any():
        axes.plot(steps, _shown(series["applied_norm"]), color=BLUE, linewidth=0.8, label="applied norm")
        axes.plot(steps, _shown(series["clip_norm"]), color=GREEN, linewidth=1.8, label="clip_norm")
    axes.plot(
        steps, _shown(series["threshold"]), color="black", linewidth=1, linestyle="--", label="explosion threshold"
    )
    _events(axes, run.events, norm)


def _events(axes: Any, events: Sequence[Event], norm: np.ndarray) -> None:
    top = float(np.nanmax(norm, initial=1e-3)) * 2.5
    for kind, (marker, colour, label) in _MARKS.items():
        began = [e.step for e in events if e.kind == kind]
        if began:
            axes.plot(
                began, np.full(len(began), top), marker, color=colour, markersize=7, markeredgecolor="white",
                linestyle="none", label=f"{label} begins", clip_on=False,
            )  # fmt: skip


def _shown(values: np.ndarray) -> np.ndarray:
    """What a log axis can show: a bound that does not exist, a zero or a NaN leaves a gap."""
    with np.errstate(invalid="ignore"):
        return np.where(np.isfinite(values) & (values > 0) & (values < 9e29), values, np.nan)


def _smooth(loss: np.ndarray) -> np.ndarray:
    """Mean of up to MEAN_STEPS losses, of the past ones only."""
    total = np.cumsum(np.where(np.isfinite(loss), loss, 0.0))
    shifted = np.concatenate([np.zeros(min(MEAN_STEPS, len(loss))), total[:-MEAN_STEPS]])
    count = np.minimum(np.arange(1, len(loss) + 1), MEAN_STEPS)
    return np.where(np.isfinite(loss), (total - shifted) / count, np.nan)
