"""The dashboards answer questions, in the order in which a person asks them."""

from __future__ import annotations

import re

import pytest

from gradwatch.core.snapshot import KINDS
from gradwatch.exporters.metrics import METRICS
from gradwatch.grafana import fleet, health, rules
from gradwatch.grafana.readme import walk

HEALTH = health.dashboard()
FLEET = fleet.dashboard()

#: What a run's page shows, from top to bottom.
ORDER = [
    "State",
    "Steps per second",
    "Anomalies in this time range",
    "Clip share",
    "Overhead",
    "Gradient norm, clip norm and threshold",
    "Distribution of the norm",
    "Quantiles of the recent norms",
    "Clip share against what the policy implies",
    "Loss",
    "Learning rate",
    "Loss scale",
    "Layers with the largest share of the squared norm",
    "Errors of gradwatch",
]

TYPES = {"row", "stat", "timeseries", "heatmap", "state-timeline", "table"}


def test_gradient_health_goes_from_the_state_to_gradwatch_itself():
    titles = [panel["title"] for panel in walk(HEALTH["panels"])]
    assert [title for title in titles if title in ORDER] == ORDER


def test_reading_order_is_the_order_on_the_page(board):
    for panels in [board["panels"], *(row["panels"] for row in board["panels"] if row["type"] == "row")]:
        places = [(panel["gridPos"]["y"], panel["gridPos"]["x"]) for panel in panels]
        assert places == sorted(places)


def test_panels_do_not_overlap_and_fit_the_page(board):
    taken = set()
    for panel in walk(board["panels"]):
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        if panel["type"] == "row" and panel["collapsed"]:
            continue  # its panels are shown once it is opened, and push the rest down
        if any(panel in row.get("panels", []) for row in board["panels"]):
            continue
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells


def test_ids_and_titles_are_unique(board):
    every = list(walk(board["panels"]))
    assert len({panel["id"] for panel in every}) == len(every)
    assert len({panel["title"] for panel in every}) == len(every)


def test_panel_types_are_known_ones(board):
    assert {panel["type"] for panel in walk(board["panels"])} <= TYPES


def test_every_description_asks_a_question_and_says_more(panel):
    question, _, answer = panel["description"].partition("?")
    assert 10 < len(question) < 90, "one question, short enough to be read at three in the morning"
    assert len(answer) > 40, "and what to do, or what to look at"


def test_a_panel_without_data_says_why(panel):
    assert len(panel["fieldConfig"]["defaults"]["noValue"]) > len("No data")


def test_every_query_narrows_to_the_chosen_data_source(target):
    assert target["datasource"] == {"type": "prometheus", "uid": "$datasource"}
    assert "${DS_" not in target["expr"]


def test_every_rate_uses_the_rate_interval(target):
    for function, window in re.findall(r"\b(rate|irate|increase)\([^\[]*\[([^\]]+)\]", target["expr"]):
        allowed = {"$__rate_interval", "$__range"} if function == "increase" else {"$__rate_interval"}
        assert window in allowed, target["expr"]


def test_curves_on_a_log_axis_leave_out_zero_and_infinity(panel):
    scale = panel["fieldConfig"]["defaults"].get("custom", {}).get("scaleDistribution", {})
    if scale.get("type") == "log":
        for one in panel["targets"]:
            assert re.search(r"< Inf\)|> 0\)", one["expr"]), one["expr"]


def test_the_norm_histogram_is_shown_as_buckets_not_as_samples():
    [panel] = [p for p in walk(HEALTH["panels"]) if p["type"] == "heatmap"]
    [one] = panel["targets"]
    assert panel["options"]["calculate"] is False
    assert one["format"] == "heatmap"
    assert one["legendFormat"] == "{{le}}"
    assert "sum by (le)" in one["expr"]


def test_layers_are_in_a_closed_row():
    [row] = [p for p in HEALTH["panels"] if p["type"] == "row" and p["title"] == "Layers"]
    assert row["collapsed"] is True
    assert row["panels"]
    assert all(
        p["collapsed"] is False and p["panels"] == [] for p in HEALTH["panels"] if p["type"] == "row" and p != row
    )


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_anomaly_is_marked_at_the_time_it_began(kind):
    [mark] = [a for a in HEALTH["annotations"]["list"] if f'kind="{kind}"' in a["target"]["expr"]]
    assert mark["useValueForTime"] is True
    expr = mark["target"]["expr"]
    assert expr.startswith("gradwatch_last_anomaly_timestamp_seconds{")
    assert expr.endswith("* 1000 > 0"), "milliseconds; never (0) is no event of 1970"


def test_the_worst_run_comes_first_and_leads_to_its_health():
    [table] = [p for p in walk(FLEET["panels"]) if p["title"] == "Runs, worst first"]
    assert table["options"]["sortBy"] == [{"displayName": "Trouble", "desc": True}]
    [url] = [
        link["url"]
        for override in table["fieldConfig"]["overrides"]
        for prop in override["properties"]
        if prop["id"] == "links"
        for link in prop["value"]
    ]
    assert url.startswith(f"/d/{HEALTH['uid']}?")
    for name in ("Job", "Instance", "Monitor"):
        assert f"var-{name.lower()}=${{__data.fields.{name}:percentencode}}" in url
    variables = {variable["name"] for variable in HEALTH["templating"]["list"]}
    assert set(re.findall(r"var-(\w+)=", url)) == variables


def test_a_column_that_an_override_names_is_there(panel):
    if panel["type"] != "table":
        return
    columns = set(panel["transformations"][-1]["options"]["renameByName"].values())
    named = {o["matcher"]["options"] for o in panel["fieldConfig"]["overrides"] if o["matcher"]["id"] == "byName"}
    named |= {column["displayName"] for column in panel["options"].get("sortBy", [])}
    assert named <= columns


def test_a_table_keeps_every_field_that_it_renames(panel):
    if panel["type"] != "table":
        return
    merge, keep, organize = panel["transformations"]
    assert merge["id"] == "merge"
    fields = organize["options"]["renameByName"]
    assert all(re.match(keep["options"]["include"]["pattern"], field) for field in fields)
    values = {field for field in fields if field.startswith("Value #")}
    assert values <= {f"Value #{one['refId']}" for one in panel["targets"]}


def test_trouble_tells_what_is_under_way_by_its_whole_part():
    weights = list(fleet.WEIGHTS.values())
    assert sorted(fleet.WEIGHTS) == sorted(KINDS)
    assert all(weight > sum(w for w in weights if w < weight) for weight in weights)


def test_every_metric_of_the_catalogue_is_shown_or_alerted_on():
    every = " ".join(
        [one["expr"] for board in (HEALTH, FLEET) for p in walk(board["panels"]) for one in p.get("targets", [])]
        + [variable["query"] for variable in HEALTH["templating"]["list"]]
        + [alert.expr for alert in rules.alerts()]
    )
    unused = [metric.name for metric in METRICS if not re.search(rf"\b{metric.name}(_bucket)?\b", every)]
    assert not unused


def test_a_hostile_monitor_name_stays_within_its_label():
    """Names come in as label values only: no title, id or regular expression is made of one."""
    text = str(HEALTH) + str(FLEET)
    assert "repeat" not in text
    assert "${monitor:raw}" not in text
    assert re.findall(r"[^\"]\$monitor", text) == []


def test_an_empty_cell_is_not_filled_with_the_panel_s_sentence(panel):
    """In a table, the text for "no data at all" would stand in every cell without a value."""
    if panel["type"] != "table":
        return
    columns = {
        name: field for field, name in panel["transformations"][-1]["options"]["renameByName"].items() if "#" in field
    }
    overrides = {o["matcher"]["options"]: {p["id"] for p in o["properties"]} for o in panel["fieldConfig"]["overrides"]}
    missing = [name for name in columns if "noValue" not in overrides.get(name, set())]
    assert missing in ([], ["Step"]), "Step is what makes the row"
