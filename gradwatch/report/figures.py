"""The figures of a report, as Bokeh's: for the page, and for a notebook."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gradwatch.errors import MissingExtra
from gradwatch.reading.text import short_names
from gradwatch.report.material import Curve, Material

#: Name -> colour on a light page, and what it is called. A page repaints each glyph by its name, see report.css.
COLOURS = {
    "loss": ("#2f6fde", "loss"),
    "learning_rate": ("#5b5bd6", "learning rate"),
    "norm": ("#2f6fde", "norm before clipping"),
    "applied_norm": ("#0c7d58", "norm after clipping"),
    "clip_norm": ("#b06000", "clip_norm"),
    "threshold": ("#c2272d", "explosion threshold"),
    "update_ratio": ("#0c7d58", "update ratio"),
    "explosion": ("#c2272d", "explosion"),
    "nonfinite": ("#a1258f", "NaN or Inf"),
    "vanishing": ("#5b5bd6", "vanishing"),
    "saturated": ("#8a6d00", "saturated"),
    "trend": ("#b06000", "growing trend"),
}
#: For several runs side by side.
SERIES = ("#2f6fde", "#b06000", "#0c7d58", "#a1258f", "#c2272d", "#5b5bd6", "#8a6d00", "#5a6472")

_DASHES = {"clip_norm": [7, 4], "threshold": [2, 3]}
_MOST_EVENTS = 200  # drawn as lines
_LABEL_LIMIT, _NARROW_LABEL_LIMIT = 26, 20  # characters of a layer beside the heat map


def of(material: Material) -> list[tuple[str, Any]]:
    """(heading, figure) of everything that is known, on one axis of steps.

    Raises:
      MissingExtra: Bokeh is not installed.
    """
    _bokeh()
    drawn = _Drawn(material)
    made = [
        ("Loss", drawn.curves("loss", ("loss",))),
        ("Learning rate", drawn.changes("learning_rate")),
        ("Gradient norm", drawn.curves("norm", ("norm", "applied_norm", "clip_norm", "threshold"))),
        ("Update ratio", drawn.changes("update_ratio")),
        ("Layers", drawn.heat()),
    ]
    return [(heading, figure) for heading, figure in made if figure is not None]


def column(material: Material) -> Any:
    """All figures below one another, for `plot()`."""
    _bokeh()
    from bokeh.layouts import column as below

    figures = of(material)
    for heading, figure in figures:
        figure.title = f"{heading}: {material.name}" if figure is figures[0][1] else heading
    return below([figure for _, figure in figures], sizing_mode="stretch_width")


def overlaid(materials: Sequence[tuple[str, Material]], curve: str) -> Any:
    """One quantity of several (label, run)s on one axis; None where no run has it."""
    _bokeh()
    shown = [(label, m.curves[curve]) for label, m in materials if curve in m.curves]
    if not shown:
        return None
    made = _figure(_scale([c for _, c in shown]), 300)
    for i, (label, one) in enumerate(shown):
        _line(made, one, f"series{i % len(SERIES)}", SERIES[i % len(SERIES)], legend_label=label, line_width=1.5)
    made.legend.click_policy = "hide"
    made.legend.location = "top_right"
    return made


class _Drawn:
    """The figures of one run; they share their axis of steps."""

    def __init__(self, material: Material) -> None:
        from bokeh.models import Range1d

        self.material = material
        first, last = material.first, max(material.last, material.first + 1)
        pad = max(0.5, 0.01 * (last - first))
        self.steps = Range1d(first - pad, last + pad, bounds=(first - 4 * pad, last + 4 * pad))

    def curves(self, heading: str, names: Sequence[str]) -> Any:
        from bokeh.models import ColumnDataSource

        known = {name: self.material.curves[name] for name in names if name in self.material.curves}
        if not known:
            return None
        if heading == "norm":  # of a norm the decades count, whatever it is
            known = {name: Curve(c.step, _positive(c.low), _positive(c.high)) for name, c in known.items()}
            made = _figure("log", 340, self.steps)
        else:
            made = _figure(_scale(list(known.values())), 240, self.steps)
        self._events(made)
        for name, curve in known.items():
            wide = name == "norm"
            _line(
                made,
                curve,
                name,
                COLOURS[name][0],
                line_width=3.5 if wide else 1.5,
                line_alpha=0.55 if wide else 1.0,
                line_dash=_DASHES.get(name, "solid"),
            )
        if heading == "norm" and len(self.material.broken):
            highest = np.concatenate([curve.high for curve in known.values()])
            top = np.nanmax(highest) if not np.isnan(highest).all() else 1.0
            marks = ColumnDataSource({"step": self.material.broken, "norm": np.full(len(self.material.broken), top)})
            made.scatter(
                "step",
                "norm",
                source=marks,
                marker="x",
                size=9,
                line_width=2,
                color=COLOURS["nonfinite"][0],
                name="nonfinite",
            )
        return made

    def changes(self, name: str) -> Any:
        from bokeh.models import ColumnDataSource

        if name not in self.material.seldom:
            return None
        steps, values = self.material.seldom[name]
        made = _figure(_scale([Curve(steps, values, values)]), 200, self.steps)
        made.y_range.default_span = 0.4 * float(np.nanmax(np.abs(values))) or 1.0  # of a number that never changes
        self._events(made)
        source = ColumnDataSource({"step": steps, "low": values, "high": values})
        line = made.step("step", "high", source=source, mode="after", line_width=1.8, color=COLOURS[name][0], name=name)
        _hover(made, line, COLOURS[name][1])
        return made

    def heat(self) -> Any:
        from bokeh.models import ColorBar, ColumnDataSource, FixedTicker, HoverTool, LogColorMapper, LogTicker

        told = self.material.heat
        if told is None:
            return None
        norm = told.norm[::-1].copy()  # the first layer at the top
        finite = norm[np.isfinite(norm) & (norm > 0)]
        low, high = (float(np.min(finite)), float(np.max(finite))) if len(finite) else (1.0, 10.0)
        low = max(low, high * 1e-8)
        mapper = LogColorMapper(
            palette="Viridis256",
            low=low,
            high=max(high, low * 1.01),
            low_color="#440154",
            high_color=COLOURS["nonfinite"][0],
            nan_color="rgba(0, 0, 0, 0)",
        )
        rows, columns = norm.shape
        width = max(told.last - told.first, 1.0) / columns
        steps = told.first + width * (np.arange(columns) + 0.5)
        if columns == 1:  # one look: the newest state, as wide as the run
            width, steps = float(self.steps.end - self.steps.start), np.array([(self.steps.end + self.steps.start) / 2])
        short, shorter = (labels(told.names, limit) for limit in (_LABEL_LIMIT, _NARROW_LABEL_LIMIT))
        names = list(told.names)[::-1]
        made = _figure("linear", int(min(900, 110 + 17 * rows)), self.steps, y_range=(-0.5, rows - 0.5))
        source = ColumnDataSource(
            {
                "step": np.tile(steps, rows),
                "row": np.repeat(np.arange(rows), columns),
                "norm": norm.reshape(-1),
                "layer": [short[name] for name in names for _ in range(columns)],
            }
        )
        cells = made.rect(
            "step", "row", width=width * 1.02, height=1, source=source, line_color=None,
            fill_color={"field": "norm", "transform": mapper}, name="heat",
        )  # fmt: skip
        made.add_tools(
            HoverTool(
                renderers=[cells], tooltips=[("layer", "@layer"), ("step", "@step{0,0}"), ("norm", "@norm{0.0000e}")]
            )
        )
        made.yaxis.ticker = FixedTicker(ticks=list(range(rows)))
        made.yaxis.major_label_overrides = {i: short[name] for i, name in enumerate(names)}
        made.tags = [[short[name] for name in names], [shorter[name] for name in names]]  # the page chooses
        made.yaxis.major_label_text_font_size = "11px"
        made.ygrid.visible = made.xgrid.visible = False
        bar = ColorBar(
            color_mapper=mapper, ticker=LogTicker(), width="auto", height=10, location=(0, 0), padding=4,
            background_fill_color=None, title="norm of the gradient", title_text_font_size="12px",
            title_text_font_style="normal", major_label_text_font_size="11px",
        )  # fmt: skip
        made.add_layout(bar, "above")
        return made

    def _events(self, made: Any) -> None:
        from bokeh.models import ColumnDataSource, HoverTool

        for kind in dict.fromkeys(str(event["kind"]) for event in self.material.events):
            told = [event for event in self.material.events if event["kind"] == kind][:_MOST_EVENTS]
            source = ColumnDataSource({"step": [e["step"] for e in told], "kind": [_kind(kind)] * len(told)})
            lines = made.vspan(
                "step",
                source=source,
                line_width=2,
                line_alpha=0.55,
                color=COLOURS.get(kind, ("#888888",))[0],
                name=kind,
            )
            made.add_tools(HoverTool(renderers=[lines], tooltips=[("@kind", "step @step{0,0}")]))


def _positive(values: np.ndarray) -> np.ndarray:
    return np.asarray(np.where(values > 0, values, np.nan))


def _kind(kind: str) -> str:
    return COLOURS[kind][1] if kind in COLOURS else kind


def _figure(scale: str, height: int, x_range: Any = None, **options: Any) -> Any:
    from bokeh.models import NumeralTickFormatter
    from bokeh.plotting import figure

    if x_range is not None:
        options["x_range"] = x_range
    made = figure(
        height=height,
        y_axis_type=scale,
        x_axis_label="step",
        tools="xpan,xbox_zoom,xwheel_zoom,reset,save",
        active_scroll=None,
        active_drag=None,
        sizing_mode="stretch_width",
        min_border_right=12,
        **options,
    )
    made.toolbar.logo = None
    made.toolbar.autohide = True
    made.xaxis.formatter = NumeralTickFormatter(format="0,0")
    return made


def _line(made: Any, curve: Curve, name: str, colour: str, **options: Any) -> None:
    """A line through the lowest and the highest value of each bucket, so that no spike is lost."""
    from bokeh.models import ColumnDataSource

    if np.array_equal(curve.low, curve.high, equal_nan=True):
        step, value = curve.step, curve.high
    else:
        step = np.repeat(curve.step, 2)
        value = np.stack([curve.low, curve.high], 1).reshape(-1)
    source = ColumnDataSource({"step": step, "high": value})
    line = made.line("step", "high", source=source, color=colour, line_join="round", name=name, **options)
    _hover(made, line, COLOURS[name][1] if name in COLOURS else options.get("legend_label", name))


def _hover(made: Any, line: Any, label: str) -> None:
    from bokeh.models import HoverTool

    tips = [("step", "@step{0,0}"), (label, "@high{0.0000e}")]
    made.add_tools(HoverTool(renderers=[line], mode="mouse", line_policy="nearest", tooltips=tips))


def _scale(curves: Sequence[Curve]) -> str:
    """A log axis where everything is above zero and something spans more than a few times its size."""
    low = min(float(np.nanmin(curve.low)) for curve in curves)
    high = max(float(np.nanmax(curve.high)) for curve in curves)
    return "log" if low > 0 and (high > 20 * low or len(curves) > 1) else "linear"


def _bokeh() -> None:
    try:
        import bokeh.plotting  # noqa: F401
    except ImportError:
        raise MissingExtra("bokeh", "live", "a report or a plot") from None


def labels(names: Sequence[str], limit: int) -> dict[str, str]:
    """Name of a layer -> what stands beside the heat map; long names go without the parts that all of them have."""
    if max(map(len, names), default=0) <= limit:
        return {name: name for name in names}
    common = set.intersection(*(set(name.split("/")) for name in names))
    kept = {name: "/".join(part for part in name.split("/") if part not in common) for name in names}
    if len(set(kept.values())) < len(names) or not all(kept.values()):
        kept = {name: name for name in names}
    short = short_names(list(kept.values()), limit)
    return {name: short[text] for name, text in kept.items()}


def legend(material: Material) -> Mapping[str, str]:
    """Name of a colour -> what it stands for, of everything that is drawn."""
    kinds = dict.fromkeys(str(event["kind"]) for event in material.events)
    names = [*material.curves, *material.seldom, *kinds]
    if len(material.broken):
        names.append("nonfinite")
    return {name: COLOURS[name][1] for name in dict.fromkeys(names) if name in COLOURS}
