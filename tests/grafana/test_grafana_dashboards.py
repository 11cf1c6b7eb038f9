"""The dashboards answer questions, in the order in which a person asks them."""

from __future__ import annotations

import re

import pytest

from gradwatch.core.snapshot import KINDS
from gradwatch.exporters.metrics import METRICS
from gradwatch.grafana import fleet, health, ranking, rules
from gradwatch.grafana.readme import walk

HEALTH = health.dashboard()
FLEET = fleet.dashboard()

#: What a run's page shows, from top to bottom.
ORDER = [
    "Loss now",
    "Useful steps",
    "Verdict",
    "Update ratio now",
    "State",
    "Loss",
    "Gradient norm, clip norm and threshold",
    "Learning rate",
    "Layers with the largest share of the squared norm",
    "Anomalies in this time range",
    "Clip share against what the policy implies",
    "Answers of the ladder",
    "Distribution of the norm",
    "Loss scale",
    "Steps per second",
    "Errors of gradwatch",
]

TYPES = {"row", "stat", "timeseries", "heatmap", "state-timeline", "table"}


def test_gradient_health_goes_from_the_loss_to_gradwatch_itself():
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


def test_the_first_row_says_whether_it_learns_whether_it_is_healthy_and_what_was_lost():
    first = [panel for panel in HEALTH["panels"] if panel["gridPos"]["y"] == 1]
    assert [panel["title"] for panel in first] == ORDER[:5]
    assert sum(panel["gridPos"]["w"] for panel in first) == 24


def test_no_row_is_folded_away(board):
    rows = [panel for panel in board["panels"] if panel["type"] == "row"]
    assert all(row["collapsed"] is False and row["panels"] == [] for row in rows)


def test_loss_norm_and_learning_rate_stand_one_below_the_other_on_one_time_axis():
    found = [
        p for p in HEALTH["panels"] if p["title"] in ("Loss", "Learning rate") or p["title"].startswith("Gradient n")
    ]
    assert [(p["gridPos"]["x"], p["gridPos"]["w"]) for p in found] == [(0, 24)] * 3
    at = [HEALTH["panels"].index(p) for p in found]
    assert at == list(range(at[0], at[0] + 3)), "nothing stands between them"
    widths = {(p["options"]["legend"]["width"], p["fieldConfig"]["defaults"]["custom"]["axisWidth"]) for p in found}
    assert len(widths) == 1, "the drawn part begins and ends at the same place in all three"
    assert len(HEALTH["annotations"]["list"]) == len(KINDS), "annotations without a filter are drawn in every panel"


def units(panel):
    """(unit, decimals) of a panel and of each column or series that has its own."""
    defaults = panel["fieldConfig"]["defaults"]
    yield defaults["unit"], defaults.get("decimals")
    for override in panel["fieldConfig"]["overrides"]:
        own = {prop["id"]: prop["value"] for prop in override["properties"]}
        if "unit" in own:
            yield own["unit"], own.get("decimals")


def test_no_number_is_written_with_sixteen_digits(panel):
    """Grafana writes a number of unit "sci" without decimals as 1.0285012423992157e-1, with two as 1.03e-1."""
    assert all(decimals in (1, 2, 3) for unit, decimals in units(panel) if unit == "sci")


def test_a_pace_is_written_in_steps_a_second(panel):
    """Grafana writes its unit "cps" as c/s."""
    assert all(unit != "cps" for unit, _ in units(panel))
    rates = [one for one in panel["targets"] if re.search(r"rate\(gradwatch_\w*steps_total", one["expr"])]
    if rates and panel["type"] != "table" and not any("/" in one["expr"].replace("=~", "") for one in rates):
        assert next(units(panel))[0] == "suffix:steps/s"


def test_a_curve_that_is_all_zero_has_an_axis_that_ends_near_it(panel):
    """Grafana draws zeros on an axis to 100: 10,000 % for a share."""
    defaults = panel["fieldConfig"]["defaults"]
    counted = defaults["unit"] in ("percentunit", "suffix:steps/s") or any(
        "increase(" in t["expr"] for t in panel["targets"]
    )
    if panel["type"] == "timeseries" and counted and "log" not in defaults["custom"]["scaleDistribution"]["type"]:
        pace_of_runs = defaults["unit"] == "suffix:steps/s" and "bottomk" in panel["targets"][0]["expr"]
        assert pace_of_runs or "max" in defaults or defaults["custom"].get("axisSoftMax", 100) <= 1


def test_a_count_stands_beside_the_word_that_says_what_is_counted(panel):
    if panel["type"] == "stat":
        named = any(one["legendFormat"] for one in panel["targets"])
        assert panel["options"]["textMode"] == ("value_and_name" if named else "value")
        if not named:
            assert len(panel["targets"]) == 1
            assert re.match(r"(count|sum)\(", panel["targets"][0]["expr"]), "one number, which the title names"


def test_a_legend_names_the_process_unless_the_query_sums_over_processes(target):
    legend = target["legendFormat"]
    if (
        target["format"] == "time_series"
        and legend
        and not re.search(r"(count|sum) by \((kind|severity|le)\)", target["expr"])
    ):
        assert "{{instance}}" in legend, "two processes may have a monitor of one name"


def test_a_run_can_be_seen_from_its_start_on():
    """An hour of empty axis is what a run of two minutes looks like otherwise."""
    assert HEALTH["time"]["from"] == "now-15m"
    tables = [p for b in (HEALTH, FLEET) for p in b["panels"] if "${__data.fields.Started}" in str(p)]
    assert [p["title"] for p in tables] == ["What is running here", "These three need you now", "Runs, worst first"]
    for table in tables:
        columns = table["transformations"][-1]["options"]["renameByName"].values()
        assert {"Started", "Job", "Instance", "Monitor"} <= set(columns), "the fields that the link reads"


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


def test_trouble_tells_the_harm_by_its_hundreds_and_what_is_under_way_by_the_rest_of_its_whole_part():
    weights = list(ranking.WEIGHTS.values())
    assert sorted(ranking.WEIGHTS) == sorted(KINDS)
    assert all(weight > sum(w for w in weights if w < weight) for weight in weights)
    assert sum(weights) + 1 < ranking.HARM, "no anomaly without harm comes before harm"


def test_every_row_of_the_fleet_names_its_run():
    for title in ("These three need you now", "Runs, worst first", "Which endpoints are down"):
        [table] = [panel for panel in walk(FLEET["panels"]) if panel["title"] == title]
        assert next(iter(table["transformations"][-1]["options"]["renameByName"].values())) == "Run"
    curves = [panel for panel in walk(FLEET["panels"]) if panel["type"] == "timeseries"]
    legends = {panel["title"]: panel["targets"][0]["legendFormat"] for panel in curves}
    assert all("{{run_name}}" in legend or legend == "{{kind}}" for legend in legends.values()), legends


def test_a_training_that_may_come_and_go_is_never_down():
    down = [p for p in walk(FLEET["panels"]) if p["title"] in ("Endpoints down", "Which endpoints are down")]
    for panel in down:
        assert 'expected!="no"' in panel["targets"][0]["expr"]


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
