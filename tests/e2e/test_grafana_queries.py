"""Every query of both dashboards, as Grafana sends it, against a real Prometheus that scrapes a real training.

There is no Grafana here: none can be installed. So the queries are interpolated as Grafana does it, and what
Prometheus answers must be there, with the labels that legend, columns and links need.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from as_grafana import ALL, View, annotation_times
from servers import Prometheus, installed, prometheus, training, wait_until

from gradwatch import grafana
from gradwatch.exporters.metrics import METRICS
from gradwatch.grafana import fleet, health
from gradwatch.grafana.readme import walk

pytestmark = pytest.mark.timeout(300)  # the training is set up in the first test

#: Names that break a careless query: quotes, regular expressions, backslashes, another one's beginning.
MONITORS = ("lm", 'lm.|"(fp16)\\$')
SCRAPE_SECONDS = 1

BOARDS = {"gradient-health": health.dashboard(), "gradient-fleet": fleet.dashboard()}
TARGETS = [
    pytest.param(name, panel, target, id=f"{name}: {panel['title']} {target['refId']}")
    for name, board in BOARDS.items()
    for panel in walk(board["panels"])
    for target in panel.get("targets", [])
]


def scraping(directory: Path, *addresses: str) -> dict[str, Any]:
    """Prometheus' configuration as we ship it, but each second, and with the rules next to it."""
    config = grafana.stack.prometheus()
    config["global"] = {"scrape_interval": f"{SCRAPE_SECONDS}s", "evaluation_interval": f"{SCRAPE_SECONDS}s"}
    [job] = config["scrape_configs"]
    del job["file_sd_configs"]
    job["static_configs"] = [{"targets": list(addresses)}]
    del config["alerting"]
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "rules.yml").write_text(grafana.files()["prometheus/rules.yml"])
    return config


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Prometheus, View]]:
    """A Prometheus that saw a run explode and recover, and the view of the last minute."""
    directory = tmp_path_factory.mktemp("prometheus")
    installed("prometheus")
    with training(*MONITORS) as run, prometheus(directory, scraping(directory, run.address)) as prom:
        began = time.time()
        steps = 'gradwatch_steps_total{monitor="lm"}'
        wait_until(lambda: _value(prom, steps) >= 150, 40, "150 steps, beyond every warm-up")
        run.say("explode")
        wait_until(lambda: "GradwatchGradientExplosion" in prom.firing(), 20, "the explosion's alert")
        time.sleep(2)
        run.say("calm")
        over = 'sum(gradwatch_anomaly_active{monitor="lm"}) == bool 0'
        wait_until(lambda: _value(prom, over) == 1, 30, "the end of the explosion")
        time.sleep(2)
        yield (
            prom,
            View({"datasource": ["x"], "job": [ALL], "instance": [ALL], "monitor": [ALL]}, began, time.time(), 1),
        )


def _value(prom: Prometheus, expr: str) -> float:
    found = prom.query(expr)
    return float(found[0]["value"][1]) if found else 0.0


def ask(prom: Prometheus, view: View, expr: str, *, instant: bool) -> list[dict[str, Any]]:
    if instant:
        return prom.query(expr, view.end)
    return prom.query_range(expr, view.start, view.end, view.interval)


def chosen(view: View, **values: list[str]) -> View:
    return View({**view.chosen, **values}, view.start, view.end, view.scrape_seconds)


# -- variables ------------------------------------------------------------------------------------------


def options(prom: Prometheus, view: View, board: dict[str, Any], name: str) -> list[str]:
    [variable] = [v for v in board["templating"]["list"] if v["name"] == name]
    selector, label = re.match(r"label_values\((.+), (\w+)\)$", variable["query"]).groups()
    return prom.label_values(label, view.interpolate(selector, board))


def test_the_variables_offer_job_instance_and_monitor(scraped):
    prom, view = scraped
    for board in BOARDS.values():
        assert options(prom, view, board, "job") == ["gradwatch"]
        [instance] = options(prom, view, board, "instance")
        assert re.match(r"127.0.0.1:\d+$", instance)
        assert options(prom, view, board, "monitor") == sorted(MONITORS)


def test_a_variable_offers_only_what_fits_the_ones_before_it(scraped):
    prom, view = scraped
    board = BOARDS["gradient-health"]
    assert options(prom, chosen(view, job=["another"]), board, "instance") == []
    assert options(prom, chosen(view, instance=["another:1", "one:2"]), board, "monitor") == []


# -- panels ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "panel", "target"), TARGETS)
def test_every_query_finds_data_with_the_labels_that_are_shown(scraped, name, panel, target):
    prom, view = scraped
    expr = view.interpolate(target["expr"], BOARDS[name])
    assert "$" not in expr
    found = ask(prom, view, expr, instant=target["instant"])
    assert found, f"nothing for {expr}"
    for label in re.findall(r"{{\s*(\w+)\s*}}", target["legendFormat"]):
        assert all(label in one["metric"] for one in found), f"the legend needs {label}: {found[0]['metric']}"
    for one in found:
        samples = [one["value"]] if target["instant"] else one["values"]
        assert any(value not in ("NaN", "+Inf", "-Inf") for _, value in samples), (expr, one["metric"])


@pytest.mark.parametrize(
    ("name", "panel"),
    [
        pytest.param(name, panel, id=panel["title"])
        for name, board in BOARDS.items()
        for panel in walk(board["panels"])
        if panel["type"] == "table"
    ],
)
def test_every_column_of_a_table_is_a_label_or_a_value_of_its_queries(scraped, name, panel):
    prom, view = scraped
    fields = set()
    for target in panel["targets"]:
        found = ask(prom, view, view.interpolate(target["expr"], BOARDS[name]), instant=True)
        fields |= {f"Value #{target['refId']}"} | {label for one in found for label in one["metric"]}
    assert set(panel["transformations"][-1]["options"]["renameByName"]) <= fields


@pytest.mark.parametrize("monitor", MONITORS)
@pytest.mark.parametrize(("name", "panel", "target"), TARGETS)
def test_every_query_keeps_to_the_chosen_monitor(scraped, monitor, name, panel, target):
    prom, view = scraped
    one = chosen(view, monitor=[monitor])
    for series in ask(prom, one, one.interpolate(target["expr"], BOARDS[name]), instant=target["instant"]):
        assert series["metric"].get("monitor", monitor) == monitor


@pytest.mark.parametrize("values", [list(MONITORS), [MONITORS[1], "not there"]])
def test_several_values_are_told_apart_whatever_they_are_called(scraped, values):
    prom, view = scraped
    expr = 'gradwatch_steps_total{job=~"$job", instance=~"$instance", monitor=~"$monitor"}'
    several = chosen(view, monitor=values)
    found = prom.query(several.interpolate(expr, BOARDS["gradient-health"]), view.end)
    assert {one["metric"]["monitor"] for one in found} == set(values) & set(MONITORS)


def test_a_name_is_no_pattern(scraped):
    """`l.` as a regular expression would match lm; as a chosen value it must not."""
    prom, view = scraped
    expr = chosen(view, monitor=["l."]).interpolate(
        'gradwatch_steps_total{monitor=~"$monitor"}', BOARDS["gradient-health"]
    )
    assert prom.query(expr, view.end) == []


def test_the_state_and_the_trouble_of_a_run_tell_what_happened(scraped):
    prom, view = scraped
    stats = {panel["title"]: panel for panel in walk(BOARDS["gradient-health"]["panels"])}
    [anomalies] = [
        one
        for one in prom.query(
            view.interpolate(stats["Anomalies in this time range"]["targets"][0]["expr"], BOARDS["gradient-health"]),
            view.end,
        )
        if one["metric"]["kind"] == "explosion"
    ]
    assert float(anomalies["value"][1]) == 1.0
    trouble = prom.query(view.interpolate(fleet.trouble(), BOARDS["gradient-fleet"]), view.end)
    by_monitor = {one["metric"]["monitor"]: float(one["value"][1]) for one in trouble}
    assert by_monitor["lm"] > by_monitor[MONITORS[1]], "the run that exploded comes first"


def test_during_the_explosion_the_state_said_anomaly(scraped):
    prom, view = scraped
    [state] = [panel for panel in BOARDS["gradient-health"]["panels"] if panel["title"] == "State"]
    expr = chosen(view, monitor=["lm"]).interpolate(state["targets"][0]["expr"], BOARDS["gradient-health"])
    [series] = prom.query_range(expr, view.start, view.end, 1)
    states = [int(float(value)) for _, value in series["values"]]
    assert {1, 3} <= set(states), "healthy before, anomaly during"
    assert states[-1] == 1


def test_explosions_are_marked_at_the_second_they_began(scraped):
    prom, view = scraped
    board = BOARDS["gradient-health"]
    found = {}
    for annotation in board["annotations"]["list"]:
        expr = view.interpolate(annotation["target"]["expr"], board)
        series = prom.query_range(expr, view.start, view.end, view.interval)
        found[annotation["name"]] = annotation_times(annotation, series, view.interval)
        assert all({"monitor", "instance"} <= set(one["metric"]) for one in series)
    [explosion] = found["Explosion"]
    seen = _value(prom, 'gradwatch_last_anomaly_timestamp_seconds{kind="explosion", monitor="lm"}')
    assert abs(explosion - seen) < 1
    assert view.start < explosion < view.end
    assert found["NaN or Inf"] == []


def test_a_spike_between_two_scrapes_is_seen_by_the_highest_of_the_interval(scraped):
    prom, view = scraped
    [panel] = [p for p in walk(BOARDS["gradient-health"]["panels"]) if p["title"].startswith("Gradient norm, clip")]
    [target] = [t for t in panel["targets"] if t["legendFormat"].startswith("highest")]
    one = chosen(view, monitor=["lm"])
    [series] = ask(prom, one, one.interpolate(target["expr"], BOARDS["gradient-health"]), instant=False)
    assert max(float(value) for _, value in series["values"]) > 1e4


# -- the catalogue --------------------------------------------------------------------------------------


def test_the_catalogue_that_the_queries_are_checked_against_is_what_is_scraped(scraped):
    """Names in the table and names at the endpoint are the same."""
    prom, _ = scraped
    known = set()
    for metric in METRICS:
        endings = ("_bucket", "_count", "_sum") if metric.type == "histogram" else ("",)
        known |= {metric.name + ending for ending in endings}
    scraped_names = {
        name for name in prom.label_values("__name__", '{job="gradwatch"}') if name.startswith("gradwatch_")
    }
    assert scraped_names == known


# -- Grafana's intervals --------------------------------------------------------------------------------


def test_the_rate_interval_is_four_scrapes_or_a_step_and_a_scrape():
    short = View({}, 0, 600, scrape_seconds=5)
    assert (short.interval, short.rate_interval) == (5, 20)
    long = View({}, 0, 86400, scrape_seconds=5)
    assert (long.interval, long.rate_interval) == (108, 113)


def test_a_chosen_value_is_escaped_twice_and_all_is_not():
    board = BOARDS["gradient-health"]
    view = View({"monitor": ["a.b"], "job": [ALL], "instance": ["x", "y+"]}, 0, 60, 1)
    expr = view.interpolate('m{monitor=~"$monitor", job=~"${job}", instance=~"$instance"}', board)
    assert expr == 'm{monitor=~"a\\\\.b", job=~".+", instance=~"(x|y\\\\+)"}'


# -- the shipped configuration --------------------------------------------------------------------------


def test_prometheus_accepts_the_shipped_configuration(tmp_path):
    grafana.export(tmp_path)
    checked = subprocess.run(
        [installed("promtool"), "check", "config", str(tmp_path / "prometheus/prometheus.yml")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr + checked.stdout


def test_the_environment_becomes_a_label_of_every_alert(tmp_path, monkeypatch):
    config = yaml.safe_load(grafana.files()["prometheus/prometheus.yml"])
    config["rule_files"], config["scrape_configs"] = [], []
    monkeypatch.setenv("GRADWATCH_ENVIRONMENT", "staging")
    with prometheus(tmp_path, config, "--enable-feature=expand-external-labels") as prom:
        assert "environment: staging" in prom.get("/api/v1/status/config")["data"]["yaml"]


def test_prometheus_finds_the_trainings_of_the_target_folder(tmp_path):
    grafana.export(tmp_path)
    config = yaml.safe_load((tmp_path / "prometheus/prometheus.yml").read_text())
    config["rule_files"] = ["rules.yml"]
    with prometheus(tmp_path / "prometheus", config) as prom:
        wait_until(
            lambda: (
                [t["labels"]["instance"] for t in prom.get("/api/v1/targets")["data"]["activeTargets"]]
                == ["127.0.0.1:9464"]
            ),
            20,
            "the target of targets/local.json",
        )
