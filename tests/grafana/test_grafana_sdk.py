"""Grafana's own schema, as its `grafana-foundation-sdk` for version 11.6 has it, keeps every key of ours."""

from __future__ import annotations

import enum
import json
import sys
from typing import Any

import pytest

if sys.version_info < (3, 11):
    pytest.skip("grafana-foundation-sdk needs Python 3.11", allow_module_level=True)

pytest.importorskip("grafana_foundation_sdk")

from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import (
    common,
    heatmap,
    prometheus,
    stat,
    statetimeline,
    table,
    timeseries,
    units,
)
from grafana_foundation_sdk.models import (
    dashboard as schema,
)

#: What Prometheus' annotations have beyond the schema: Grafana keeps these with the data source's plugin.
BEYOND_THE_SCHEMA = {"target", "useValueForTime", "titleFormat", "textFormat", "tagKeys"}

PANELS = {
    "stat": stat,
    "timeseries": timeseries,
    "heatmap": heatmap,
    "state-timeline": statetimeline,
    "table": table,
}


@pytest.fixture(scope="module", autouse=True)
def _known_panels():
    plugins.register_default_plugins()


def plain(model: Any) -> Any:
    return json.loads(json.dumps(model, cls=JSONEncoder))


def lost(ours: Any, theirs: Any, path: str = "") -> list[str]:
    """Places whose key or value did not come back. What the schema adds by default is no loss."""
    if isinstance(ours, dict):
        if not isinstance(theirs, dict):
            return [path]
        return [
            place
            for key, value in ours.items()
            for place in (lost(value, theirs[key], f"{path}.{key}") if key in theirs else [f"{path}.{key}"])
        ]
    if isinstance(ours, list):
        if not isinstance(theirs, list) or len(ours) != len(theirs):
            return [path]
        return [place for i, (a, b) in enumerate(zip(ours, theirs)) for place in lost(a, b, f"{path}[{i}]")]
    return [] if ours == theirs else [f"{path}: {ours!r} != {theirs!r}"]


def test_the_comparison_sees_a_lost_key_and_a_changed_value():
    assert lost({"a": {"b": 1, "c": [1]}}, {"a": {"b": 2, "c": []}, "d": 1}) == [".a.b: 1 != 2", ".a.c"]
    assert lost({"a": 1}, {}) == [".a"]


def test_a_dashboard_comes_back_with_every_key(board):
    kept = json.loads(json.dumps(board))
    for annotation in kept["annotations"]["list"]:
        for key in BEYOND_THE_SCHEMA:
            del annotation[key]
    assert lost(kept, plain(schema.Dashboard.from_json(kept))) == []


def test_an_annotation_loses_only_what_belongs_to_the_data_source(board):
    for ours in board["annotations"]["list"]:
        kept = {key: value for key, value in ours.items() if key not in BEYOND_THE_SCHEMA}
        assert set(ours) - set(kept) == BEYOND_THE_SCHEMA
        assert lost(kept, plain(schema.AnnotationQuery.from_json(kept))) == []
        assert lost(ours["target"], plain(prometheus.Dataquery.from_json(ours["target"]))) == []


def test_options_and_fields_of_a_panel_are_in_the_schema_of_its_type(panel):
    model = PANELS[panel["type"]]
    assert lost(panel["options"], plain(model.Options.from_json(panel["options"]))) == []
    if "custom" in panel["fieldConfig"]["defaults"] and hasattr(model, "FieldConfig"):
        custom = panel["fieldConfig"]["defaults"]["custom"]
        assert lost(custom, plain(model.FieldConfig.from_json(custom))) == []


def test_an_option_that_the_schema_has_not_would_be_seen():
    wrong = {"colorMode": "value", "colourMode": "value"}
    assert lost(wrong, plain(stat.Options.from_json(wrong))) == [".colourMode"]


def values(kind: type[enum.Enum]) -> set[Any]:
    return {member.value for member in kind}


#: Key of options or custom fields -> what the schema allows there, by panel type where it differs.
ALLOWED = {
    "colorMode": values(common.BigValueColorMode),
    "graphMode": values(common.BigValueGraphMode),
    "justifyMode": values(common.BigValueJustifyMode),
    "textMode": values(common.BigValueTextMode),
    "drawStyle": values(common.GraphDrawStyle),
    "lineInterpolation": values(common.LineInterpolation),
    "showPoints": values(common.VisibilityMode),
    "displayMode": values(common.LegendDisplayMode),
    "placement": values(common.LegendPlacement),
    "axisPlacement": values(common.AxisPlacement),
    "alignValue": values(common.TimelineValueAlignment),
    "cellHeight": values(common.TableCellHeight),
    "scheme": {"Viridis"},
}
NESTED = {
    ("tooltip", "mode"): values(common.TooltipDisplayMode),
    ("tooltip", "sort"): values(common.SortOrder),
    ("stacking", "mode"): values(common.StackingMode),
    ("scaleDistribution", "type"): values(common.ScaleDistribution),
    ("thresholdsStyle", "mode"): values(common.GraphThresholdsStyleMode),
    ("color", "scale"): values(heatmap.HeatmapColorScale),
    ("rowsFrame", "layout"): values(common.HeatmapCellLayout),
    ("cellOptions", "type"): values(common.TableCellDisplayMode),
}


def leaves(value: Any, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    if isinstance(value, dict):
        return [leaf for key, child in value.items() for leaf in leaves(child, (*path, key))]
    return [(path, tuple(value) if isinstance(value, list) else value)]


def test_every_enumerated_value_is_one_that_grafana_knows(panel):
    found = leaves(panel["options"]) + leaves(panel["fieldConfig"]["defaults"].get("custom", {}))
    for path, value in found:
        allowed = NESTED.get(path[-2:]) or ALLOWED.get(path[-1])
        assert allowed is None or value in allowed, (path, value)
    for one in panel["targets"]:
        assert one["format"] in values(prometheus.PromQueryFormat)
        assert one["editorMode"] in values(prometheus.QueryEditorMode)
    assert panel["fieldConfig"]["defaults"].get("color", {"mode": "fixed"})["mode"] in values(schema.FieldColorModeId)


def test_enumerations_are_really_looked_at(board):
    """Every list above is met at least once, or it checks nothing."""
    text = json.dumps(board)
    if board["uid"] == "gradwatch-gradient-health":
        keys = {*ALLOWED, *(key for path in NESTED for key in path)}
        assert [key for key in keys if f'"{key}"' not in text] == []


def test_units_are_units_of_grafana(panel):
    known = {"suffix:steps/s"}  # a unit of one's own: "suffix:" is Grafana's way to say it
    known |= {value for name, value in vars(units).items() if isinstance(value, str) and not name.startswith("_")}
    assert panel["fieldConfig"]["defaults"]["unit"] in known
    for override in panel["fieldConfig"]["overrides"]:
        for prop in override["properties"]:
            assert prop["id"] != "unit" or prop["value"] in known


def test_variables_and_refresh_modes_are_known(board):
    for variable in board["templating"]["list"]:
        assert variable["type"] in values(schema.VariableType)
        assert variable["refresh"] in values(schema.VariableRefresh)
        assert variable["hide"] in values(schema.VariableHide)
        assert variable["sort" if "sort" in variable else "hide"] in values(schema.VariableSort)
