"""The pieces of a dashboard in Grafana's classic schema (versions 11 to 13): panels, variables, annotations.

Only plain dicts, so that generating needs nothing installed. The tests hold them against Grafana's own
schemas, of 11.6 and 13.2. docs/decisions/0015-boards-without-the-sdk.md says why they are not built with Grafana's
`grafana-foundation-sdk`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Json = dict[str, Any]

SOURCE: Json = {"type": "prometheus", "uid": "$datasource"}
SCHEMA_VERSION = 41

#: Unit of a pace. Grafana's own "cps" writes "c/s".
PACE = "suffix:steps/s"

#: Digits behind the point in "1.03e-1"; without them Grafana writes all sixteen that a number has.
_SCI_DECIMALS = 2

#: Curves with their legend on the right share one time axis only if legend and labels are equally wide in all.
_LEGEND_WIDTH, _AXIS_WIDTH = 420, 80

#: One colour for one meaning, everywhere.
GREEN, YELLOW, ORANGE, RED, PURPLE, BLUE, GREY = "green", "yellow", "orange", "red", "purple", "blue", "#8e8e8e"
KIND_COLOURS = {"nonfinite": PURPLE, "explosion": RED, "saturated": YELLOW, "vanishing": BLUE, "trend": ORANGE}


def target(expr: str, legend: str = "", *, instant: bool = False, form: str = "time_series") -> Json:
    """One query. `instant` asks for now only, so that what has ended is not shown as if it went on."""
    return {
        "datasource": SOURCE,
        "expr": expr,
        "legendFormat": legend,
        "instant": instant,
        "range": not instant,
        "format": form,
        "editorMode": "code",
    }


def override(column: str, *, regex: bool = False, **properties: Any) -> Json:
    """Properties of the series or columns named `column`; `__` in a property's name stands for a dot."""
    if properties.get("unit") == "sci":
        properties.setdefault("decimals", _SCI_DECIMALS)
    return {
        "matcher": {"id": "byRegexp" if regex else "byName", "options": column},
        "properties": [{"id": key.replace("__", "."), "value": value} for key, value in properties.items()],
    }


def colour(name: str) -> Json:
    return {"mode": "fixed", "fixedColor": name}


def steps(*pairs: tuple[float | None, str]) -> Json:
    """Colours from a value on; the first has no lower end."""
    return {"mode": "absolute", "steps": [{"value": value, "color": name} for value, name in pairs]}


def mapping(texts: Mapping[Any, tuple[str, str]]) -> list[Json]:
    """Value -> (text, colour)."""
    options = {
        str(value): {"text": text, "color": name, "index": index}
        for index, (value, (text, name)) in enumerate(texts.items())
    }
    return [{"type": "value", "options": options}]


def stat(
    title: str,
    description: str,
    targets: Sequence[Json],
    *,
    unit: str,
    empty: str,
    thresholds: Json | None = None,
    mappings: Sequence[Json] = (),
    decimals: int | None = None,
    background: bool = False,
    sparkline: bool = False,
    overrides: Sequence[Json] = (),
) -> Json:
    """One number for each series, in the colour of its threshold."""
    defaults: Json = {"color": {"mode": "thresholds"}, "mappings": list(mappings)}
    defaults["thresholds"] = thresholds or steps((None, GREEN))
    if decimals is not None:
        defaults["decimals"] = decimals
    options = {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "colorMode": "background" if background else "value",
        "graphMode": "area" if sparkline else "none",
        "justifyMode": "auto",
        "orientation": "auto",
        "percentChangeColorMode": "standard",
        "showPercentChange": False,
        # "auto" leaves the names out where there is little room: four counts, and no word which is which
        "textMode": "value_and_name" if any(one["legendFormat"] for one in targets) else "value",
        "wideLayout": True,
    }
    return _panel("stat", title, description, targets, unit, empty, defaults, overrides, options)


def timeseries(
    title: str,
    description: str,
    targets: Sequence[Json],
    *,
    unit: str,
    empty: str,
    log: bool = False,
    minimum: float | None = None,
    maximum: float | None = None,
    soft_maximum: float | None = None,
    bars: bool = False,
    table: bool = False,
    decimals: int | None = None,
    thresholds: Json | None = None,
    overrides: Sequence[Json] = (),
) -> Json:
    """Curves over time.

    Args:
      soft_maximum: the axis ends there unless a curve is higher. Without an end, Grafana draws curves that are all 0
        on an axis to 100, which is 10,000 % for a share.
      table: the legend is a table on the right, of one width for all, so that such panels share one time axis.
    """
    custom: Json = {
        "drawStyle": "bars" if bars else "line",
        "lineInterpolation": "linear",
        "lineWidth": 1,
        "fillOpacity": 60 if bars else 0,
        "showPoints": "auto",
        "spanNulls": False,
        "scaleDistribution": {"type": "log", "log": 10} if log else {"type": "linear"},
        "stacking": {"mode": "normal" if bars else "none", "group": "A"},
        "thresholdsStyle": {"mode": "dashed" if thresholds else "off"},
    }
    if soft_maximum is not None:
        custom["axisSoftMax"] = soft_maximum
    if table:
        custom["axisWidth"] = _AXIS_WIDTH
    defaults: Json = {"color": {"mode": "palette-classic"}, "custom": custom}
    if decimals is not None:
        defaults["decimals"] = decimals
    defaults["thresholds"] = thresholds or steps((None, GREEN))
    if minimum is not None:
        defaults["min"] = minimum
    if maximum is not None:
        defaults["max"] = maximum
    legend: Json = {
        "displayMode": "table" if table else "list",
        "placement": "right" if table else "bottom",
        "showLegend": True,
        "calcs": ["lastNotNull", "max"] if table else [],
    }
    if table:
        legend["width"] = _LEGEND_WIDTH
    options = {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}
    return _panel("timeseries", title, description, targets, unit, empty, defaults, overrides, options)


def heatmap(title: str, description: str, targets: Sequence[Json], *, unit: str, empty: str) -> Json:
    """How often each height occurred; the query gives the buckets."""
    hidden = {"legend": False, "tooltip": False, "viz": False}
    defaults = {"custom": {"hideFrom": hidden, "scaleDistribution": {"type": "linear"}}}
    options = {
        "calculate": False,
        "cellGap": 0,
        "cellValues": {"unit": "short"},
        "color": {
            "mode": "scheme",
            "scheme": "Viridis",
            "fill": "dark-orange",
            "scale": "exponential",
            "exponent": 0.5,
            "steps": 64,
            "reverse": False,
        },
        "exemplars": {"color": "rgba(255,0,255,0.7)"},
        "filterValues": {"le": 1e-9},
        "legend": {"show": True},
        "rowsFrame": {"layout": "auto"},
        "showValue": "never",
        "tooltip": {"mode": "single", "showColorScale": False, "yHistogram": True},
        "yAxis": {"axisPlacement": "left", "reverse": False, "unit": unit},
    }
    return _panel("heatmap", title, description, targets, unit, empty, defaults, (), options)


def timeline(
    title: str,
    description: str,
    targets: Sequence[Json],
    *,
    empty: str,
    mappings: Sequence[Json],
    overrides: Sequence[Json] = (),
) -> Json:
    """One bar for each series, coloured by its value."""
    defaults: Json = {
        "color": {"mode": "thresholds"},
        "custom": {"fillOpacity": 80, "lineWidth": 0},
        "mappings": list(mappings),
        "thresholds": steps((None, GREY)),
    }
    options = {
        "alignValue": "left",
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": False, "calcs": []},
        "mergeValues": True,
        "rowHeight": 0.8,
        "showValue": "never",
        "tooltip": {"mode": "single", "sort": "none"},
    }
    return _panel("state-timeline", title, description, targets, "none", empty, defaults, overrides, options)


def table(
    title: str,
    description: str,
    targets: Sequence[Json],
    *,
    columns: Mapping[str, str],
    empty: str,
    unit: str = "none",
    sort: str | None = None,
    overrides: Sequence[Json] = (),
) -> Json:
    """One row for each label set. `columns`: field -> heading, in order; other fields are hidden."""
    defaults: Json = {
        "color": {"mode": "thresholds"},
        "custom": {"align": "auto", "cellOptions": {"type": "auto"}, "filterable": True, "inspect": False},
        "thresholds": steps((None, GREEN)),
    }
    options: Json = {"cellHeight": "sm", "frameIndex": 0, "showHeader": True}
    if sort is not None:
        options["sortBy"] = [{"displayName": sort, "desc": True}]
    made = _panel("table", title, description, targets, unit, empty, defaults, overrides, options)
    keep = "^(" + "|".join(columns) + ")$"
    order = {field: index for index, field in enumerate(columns)}
    made["transformations"] = [
        {"id": "merge", "options": {}},
        {"id": "filterFieldsByName", "options": {"include": {"pattern": keep}}},
        {"id": "organize", "options": {"indexByName": order, "renameByName": dict(columns)}},
    ]
    return made


def row(title: str) -> Json:
    """A heading. All rows are open: what is folded away is not seen at three in the morning."""
    return {"type": "row", "title": title, "collapsed": False, "panels": []}


def arrange(rows: Sequence[Json | Sequence[tuple[Json, int, int]]]) -> list[Json]:
    """Panels in rows -> panels with ids and places.

    Args:
      rows: headings, and rows of (panel, width of 24, height).
    """
    placed: list[Json] = []
    y = 0
    count = 0

    def place(panel: Json, x: int, y: int, w: int, h: int) -> Json:
        nonlocal count
        count += 1
        return {"id": count, **panel, "gridPos": {"x": x, "y": y, "w": w, "h": h}}

    for entry in rows:
        if isinstance(entry, dict):
            placed.append(place(entry, 0, y, 24, 1))
            y += 1
        else:
            x = 0
            for panel, w, h in entry:
                placed.append(place(panel, x, y, w, h))
                x += w
            y += max(h for _, _, h in entry)
    return placed


def annotation(name: str, expr: str, title: str, text: str, tags: Sequence[str], colour: str) -> Json:
    """Vertical lines; the value of the series is their time, in milliseconds."""
    return {
        "name": name,
        "datasource": SOURCE,
        "enable": True,
        "hide": False,
        "iconColor": colour,
        "target": {"expr": expr, "refId": "Anno", "range": True, "instant": False, "interval": ""},
        "useValueForTime": True,
        "titleFormat": title,
        "textFormat": text,
        "tagKeys": ",".join(tags),
    }


def board(
    uid: str,
    title: str,
    description: str,
    *,
    variables: Sequence[Json],
    annotations: Sequence[Json],
    panels: Sequence[Json],
    time_from: str,
) -> Json:
    """The whole. It carries no `editable`: Grafana lets people try things, and keeps the provisioned one."""
    links = [
        {
            "type": "dashboards",
            "title": "gradwatch",
            "tags": ["gradwatch"],
            "asDropdown": False,
            "icon": "external link",
            "includeVars": True,
            "keepTime": True,
            "targetBlank": False,
            "tooltip": "",
            "url": "",
        }
    ]
    return {
        "uid": uid,
        "title": title,
        "description": description,
        "tags": ["gradwatch"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "timezone": "browser",
        "time": {"from": time_from, "to": "now"},
        "refresh": "10s",
        "graphTooltip": 1,  # the crosshair is shared: what happened when, across the panels
        "links": links,
        "annotations": {"list": list(annotations)},
        "templating": {"list": list(variables)},
        "panels": list(panels),
    }


def _panel(
    kind: str,
    title: str,
    description: str,
    targets: Sequence[Json],
    unit: str,
    empty: str,
    defaults: Json,
    overrides: Sequence[Json],
    options: Json,
) -> Json:
    if unit == "sci":
        defaults.setdefault("decimals", _SCI_DECIMALS)
    return {
        "type": kind,
        "title": title,
        "description": description,
        "datasource": SOURCE,
        "fieldConfig": {"defaults": {"unit": unit, "noValue": empty, **defaults}, "overrides": list(overrides)},
        "options": options,
        "targets": [{"refId": chr(ord("A") + index), **one} for index, one in enumerate(targets)],
    }
