"""The dashboards against the schema of Grafana 13, beside that of 11.6 in `test_grafana_sdk.py`.

The newest `grafana-foundation-sdk` for Python is that of Grafana 11.6. Of version 13 there are the types of the npm
package @grafana/schema (13.2.3, Apache-2.0). `grafana_13.json` holds them as JSON Schemas, by name and without the
descriptions: "Dashboard", and "Options" and "FieldConfig" of each type of panel. With the packages @grafana/schema,
typescript and ts-json-schema-generator in node_modules, each is made by

    ts-json-schema-generator --no-type-check --type Options \\
        --path node_modules/@grafana/schema/dist/types/raw/composable/table/panelcfg/x/types.gen.d.ts

and "Dashboard" from raw/dashboard/x/types.gen.d.ts. They allow no key that the types do not have.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

jsonschema = pytest.importorskip("jsonschema")

SCHEMAS = json.loads((Path(__file__).parent / "grafana_13.json").read_text(encoding="utf-8"))

#: What Prometheus' annotations have beyond the schema: Grafana keeps these with the data source's plugin.
OF_THE_PLUGIN = ("target", "useValueForTime", "titleFormat", "textFormat", "tagKeys")


def complaints(schema: str, data: Any) -> list[str]:
    """Path and fault of all that Grafana 13 does not know; nothing where it has no such schema."""
    if schema not in SCHEMAS:
        return []
    found = jsonschema.Draft7Validator(SCHEMAS[schema]).iter_errors(json.loads(json.dumps(data)))
    return [f"{error.json_path}: {error.message}" for error in found]


def test_the_dashboard_is_one_of_grafana_13(board):
    board = copy.deepcopy(board)
    for annotation in board["annotations"]["list"]:
        for key in OF_THE_PLUGIN:
            del annotation[key]
    source = board["templating"]["list"][0]
    assert source.pop("current") == {}, "nothing is chosen: Grafana takes its default data source"
    assert complaints("Dashboard", board) == []


def test_options_and_fields_of_a_panel_are_those_of_grafana_13(panel):
    kind = panel["type"].replace("-", "")
    assert f"{kind}.Options" in SCHEMAS
    assert complaints(f"{kind}.Options", panel["options"]) == []
    assert complaints(f"{kind}.FieldConfig", panel["fieldConfig"]["defaults"].get("custom", {})) == []


def test_what_grafana_13_has_dropped_or_never_had_is_seen(panel):
    kind = panel["type"].replace("-", "")
    assert complaints(f"{kind}.Options", {**panel["options"], "colourMode": "value"})
    if kind == "table":
        assert complaints("table.Options", {**panel["options"], "footer": {"show": False}}), "11.6 still had it"
    if kind == "timeseries":
        custom = {**panel["fieldConfig"]["defaults"]["custom"], "drawStyle": "crayon"}
        assert complaints("timeseries.FieldConfig", custom)
