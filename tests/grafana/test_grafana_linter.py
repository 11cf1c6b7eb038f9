"""The rules of Grafana's dashboard-linter, with no exclusion.

The linter itself is a Go program that no registry here brings; its rules are written anew from its
documentation, and where its check is weaker than its text (counters with matchers), ours follows the text.
"""

from __future__ import annotations

import re
from typing import Any

import promql_parser
import pytest
from grafana_boards import nodes, parse, selectors

SOURCE = ("$datasource", "${datasource}")

UNITS = {"none", "short", "percentunit", "s", "sci"}  # those of the linter's list that we use
OWN = {"suffix:steps/s", "dateTimeFromNow", "dateTimeAsIso"}  # Grafana has them, the linter's list has not


def variables(board: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {variable["name"]: variable for variable in board["templating"]["list"]}


def test_template_datasource_rule(board):
    [source] = [v for v in board["templating"]["list"] if v["type"] == "datasource"]
    assert source["name"] == "datasource"
    assert source["label"] == "Data source"
    assert source["query"] == "prometheus"


@pytest.mark.parametrize("name", ["job", "instance", "monitor"])
def test_template_job_and_instance_rule(board, name):
    variable = variables(board)[name]
    assert variable["datasource"]["uid"] in SOURCE
    assert variable["type"] == "query"
    assert variable["label"] == name.title()
    assert variable["multi"] is True
    assert variable["allValue"] == ".+"


def test_template_label_promql_rule(board):
    for variable in variables(board).values():
        if variable["type"] == "query":
            function, selector, label = re.match(r"(\w+)\((.+), (\w+)\)$", variable["query"]).groups()
            assert function == "label_values"
            assert label == variable["name"]
            parse(selector)


def test_template_on_time_change_reload_rule(board):
    assert all(v["refresh"] == 2 for v in variables(board).values() if v["type"] == "query")


def test_a_variable_asks_only_for_variables_before_it(board):
    seen: set[str] = set()
    for name, variable in variables(board).items():
        assert set(re.findall(r"\$(\w+)", variable["query"])) <= seen
        seen.add(name)


def test_uneditable_dashboard_rule(board):
    """The linter wants `editable` not to be true; we leave it out, so that Grafana lets people try things."""
    assert "editable" not in board


def test_panel_datasource_rule(panel):
    assert panel["datasource"]["uid"] in SOURCE


def test_panel_title_description_rule(panel):
    assert panel["title"]
    assert panel["description"]


def test_panel_units_rule(panel):
    assert panel["fieldConfig"]["defaults"]["unit"] in UNITS | OWN
    for override in panel["fieldConfig"]["overrides"]:
        for prop in override["properties"]:
            assert prop["id"] != "unit" or prop["value"] in UNITS | OWN


def test_panel_no_targets_rule(panel):
    assert panel["targets"]


def test_target_promql_rule(target):
    parse(target["expr"])


@pytest.mark.parametrize("label", ["job", "instance"])
def test_target_job_and_instance_rule(target, label):
    found = list(selectors(target["expr"]))
    assert found
    for selector in found:
        matchers = {(m.name, str(m.op), m.value) for m in selector.matchers.matchers}
        assert any(n == label and "Re" in op and value == f"${label}" for n, op, value in matchers), selector.name


def test_target_rate_interval_rule(target):
    for node, parents in nodes(parse(target["expr"])):
        if isinstance(node, promql_parser.MatrixSelector):
            function = parents[-1].func.name
            seconds = {"$__rate_interval": 4380, "$__range": 26220}  # stand-ins
            wanted = set(seconds.values()) if function == "increase" else {seconds["$__rate_interval"]}
            assert int(node.range.total_seconds()) in wanted, "rates take $__rate_interval, increase also $__range"


def test_target_counter_agg_rule(target):
    for node, parents in nodes(parse(target["expr"])):
        if isinstance(node, promql_parser.VectorSelector) and node.name.endswith(
            ("_total", "_bucket", "_count", "_sum")
        ):
            assert isinstance(parents[-1], promql_parser.MatrixSelector), node.name
            assert parents[-2].func.name in ("rate", "irate", "increase")


def test_annotations_are_narrowed_like_queries(board):
    for annotation in board["annotations"]["list"]:
        assert annotation["datasource"]["uid"] in SOURCE
        for selector in selectors(annotation["target"]["expr"]):
            assert {"job", "instance", "monitor"} <= {m.name for m in selector.matchers.matchers}
