"""The rules name only what exists, and each alert has what a person needs when it fires."""

from __future__ import annotations

import re
from pathlib import Path

import promql_parser
import pytest
from grafana_boards import BOARDS, panels, parse, selectors

from gradwatch.diagnosis import causes
from gradwatch.errors import ConfigError
from gradwatch.grafana import alertmanager, rule_file, rule_tests, rules
from gradwatch.grafana.links import LOCAL_RUNBOOKS, Links
from gradwatch.grafana.queries import series
from gradwatch.reading import harm, losses

ROOT = Path(__file__).parents[2]
RUNBOOK = (ROOT / "docs/runbooks.md").read_text(encoding="utf-8")
ALERTS = {alert.name: alert for alert in rules.alerts()}

#: The catalogue: name -> (for, severity).
CATALOGUE = {
    "GradwatchGradientExplosion": ("", "info"),
    "GradwatchTrainingHarmed": ("", "warning"),
    "GradwatchGradientExplosionSustained": ("", "critical"),
    "GradwatchGradientTrend": ("", "warning"),
    "GradwatchGradientNonFinite": ("", "critical"),
    "GradwatchGradientVanishing": ("10m", "warning"),
    "GradwatchUpdatesSaturated": ("", "critical"),
    "GradwatchLossNotFinite": ("", "critical"),
    "GradwatchLossRising": ("", "warning"),
    "GradwatchLossLost": ("", "critical"),
    "GradwatchNoProgress": ("5m", "warning"),
    "GradwatchStepsWastedFast": ("", "critical"),
    "GradwatchStepsWastedSlow": ("", "warning"),
    "GradwatchClippingSaturated": ("15m", "info"),
    "GradwatchClipNormDrift": ("5m", "warning"),
    "GradwatchTrainingStalled": ("1m", "critical"),
    "GradwatchTargetDown": ("5m", "warning"),
    "GradwatchOverheadHigh": ("15m", "info"),
    "GradwatchNotificationsFailing": ("", "warning"),
    "GradwatchInternalErrors": ("", "warning"),
    "GradwatchLossScaleCollapsed": ("5m", "warning"),
}


def sections() -> dict[str, str]:
    found = re.split(r"^## (.+)$", RUNBOOK, flags=re.MULTILINE)[1:]
    return dict(zip(found[::2], found[1::2]))


def test_the_alerts_are_those_of_the_catalogue():
    assert {name: (alert.hold, alert.severity) for name, alert in ALERTS.items()} == CATALOGUE
    assert ALERTS["GradwatchGradientExplosion"].keep == "10m"


@pytest.mark.parametrize("expr", [*(a.expr for a in rules.alerts()), *rules.recordings().values()])
def test_rules_name_only_metrics_and_labels_that_exist(expr):
    for selector in selectors(expr):
        if selector.name not in rules.recordings():
            series(selector.name, *(f"{m.name}=x" for m in selector.matchers.matchers))  # raises if it does not exist


@pytest.mark.parametrize("alert", rules.alerts(), ids=ALERTS)
def test_the_summary_and_the_description_name_the_run(alert):
    assert alert.summary.endswith(".")
    said = rule_file.texts(alert, Links())["summary"]
    assert alert.summary in said
    assert ("gradwatch_verdict_info" in said and "gradwatch_run_info" in said) or not alert.of_run
    assert "{{ $labels.instance }}" in alert.description


@pytest.mark.parametrize("alert", rules.alerts(), ids=ALERTS)
def test_every_alert_has_its_section_in_the_runbook(alert):
    section = sections()[alert.name]
    assert rule_file.texts(alert, Links())["runbook_url"] == f"{LOCAL_RUNBOOKS}#{alert.name.lower()}"
    assert f"Severity: {alert.severity}." in section
    assert re.findall(r"^\*\*(\w+)\.\*\*", section, re.MULTILINE) == ["Meaning", "Impact", "Diagnosis", "Mitigation"]
    said = re.split(r"^\*\*\w+\.\*\*", section, flags=re.MULTILINE)[1:]
    assert all(len(part.strip()) > 4 for part in said), "none of them is empty"


@pytest.mark.parametrize("alert", rules.alerts(), ids=ALERTS)
def test_the_links_of_an_alert_are_absolute(alert):
    said = rule_file.texts(alert, Links("https://wiki.example/r", "https://grafana.example/"))
    assert said["runbook_url"].startswith("https://wiki.example/r#")
    assert said["dashboard_url"].startswith("https://grafana.example/d/gradwatch-gradient-health?var-job=")
    assert ("var-monitor" in said["dashboard_url"]) == alert.of_run


@pytest.mark.parametrize("address", ["docs/runbooks.md", "ftp://wiki.example", "wiki.example/runbooks", ""])
def test_a_link_that_no_message_can_open_is_refused(address):
    with pytest.raises(ConfigError, match="absolute"):
        Links(address)


@pytest.mark.parametrize("objective", [0.0, 0.93, 1.0, 1.5, float("nan")])
def test_an_objective_that_no_run_could_miss_is_refused(objective):
    with pytest.raises(ConfigError, match=r"between 0\.931 and 1"):
        rules.alerts(objective)


def test_the_objective_moves_the_limits_of_both_burn_rates():
    strict = {alert.name: alert.expr for alert in rules.alerts(0.999)}
    assert "> 0.0144" in strict["GradwatchStepsWastedFast"]
    assert "> 0.006" in strict["GradwatchStepsWastedFast"]
    assert "> 0.001" in strict["GradwatchStepsWastedSlow"]


def test_the_runbook_has_no_section_without_an_alert_and_no_dead_link():
    assert list(sections()) == list(ALERTS)
    for anchor in re.findall(r"\(#([^)]+)\)", RUNBOOK):
        assert anchor in {alert.anchor for alert in ALERTS.values()}
    for link in re.findall(r"\((\.\./[^)]+)\)", RUNBOOK):
        assert (ROOT / "docs" / link).exists()


def test_the_runbook_names_only_panels_that_exist():
    titles = {panel["title"] for board in BOARDS.values() for panel in panels(board)}
    titles |= {board["title"] for board in BOARDS.values()}
    named = {re.sub(r"\s+", " ", name) for name in re.findall(r"(?<!\*)\*([A-Z][^*]+)\*(?!\*)", RUNBOOK)}
    assert named - titles <= {"Steps with NaN or Inf"}, "panels' titles stand in italics"


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_alert_is_tested_to_fire_and_to_stay_silent(name):
    cases = [case for case in rule_tests.CASES if case.alert == name]
    assert any(case.fires for case in cases)
    assert any(case.silent and not case.fires for case in cases), "a whole case in which it has no reason to fire"


@pytest.mark.parametrize("case", rule_tests.CASES, ids=[f"{case.alert}: {case.name}" for case in rule_tests.CASES])
def test_the_samples_of_a_case_are_of_series_that_exist(case):
    for selector in case.samples:
        parsed = parse(selector)
        assert isinstance(parsed, promql_parser.VectorSelector)
        series(parsed.name, *(f"{m.name}=x" for m in parsed.matchers.matchers))


def test_promtool_is_told_to_evaluate_every_group_in_the_order_of_the_file():
    """Else it takes them in any order: an alert saw a recorded value of this minute or of the one before, by chance."""
    groups = [group["name"] for group in rule_file.configuration(Links())["groups"]]
    assert rule_tests.configuration(Links())["group_eval_order"] == groups


def test_recording_rules_are_named_level_metric_operation():
    assert all(re.match(r"monitor:gradwatch_\w+:ratio_rate\d+[mhd]$", name) for name in rules.recordings())


def test_what_alertmanager_mutes_is_less_urgent_or_explained_and_never_a_circle():
    inhibited = alertmanager.configuration()["inhibit_rules"]
    assert all(rule["equal"] == ["job", "instance", "monitor"] for rule in inhibited)
    assert set(alertmanager.MUTES) | {name for muted in alertmanager.MUTES.values() for name in muted} <= set(ALERTS)
    for source, muted in alertmanager.MUTES.items():
        assert source not in muted
        for name in muted:
            assert source not in alertmanager.MUTES.get(name, []), "two alerts that mute each other are told by neither"
            urgent = harm.SEVERITIES.index
            assert urgent(ALERTS[source].severity) >= urgent(ALERTS[name].severity), "a page is muted by a page alone"


def test_what_explains_an_alert_is_over_together_with_it():
    """Earlier, and the alert is told, as new, of a run that was stopped; later, and its own end is muted, so untold."""
    kept = {
        (source, name): (ALERTS[source].keep, ALERTS[name].keep)
        for source, muted in alertmanager.MUTES.items()
        for name in muted
        if ALERTS[name].severity != "info"  # told to nobody
    }
    assert all(explains == explained != "" for explains, explained in kept.values()), kept


def test_the_summary_has_a_sentence_for_each_cause():
    said = rule_file.texts(ALERTS["GradwatchTrainingHarmed"], Links())["summary"]
    for row in causes.CAUSES:
        assert f'eq . "{row.kind}" }}}} Verdict: {row.verdict}' in said
    assert "gradwatch_last_anomaly_step" in said


def test_prometheus_and_the_process_agree_on_what_is_critical():
    """gradwatch's own messages and the rules must not tell two stories: both read one severity."""
    for name, kind in {
        "GradwatchGradientExplosionSustained": "explosion",
        "GradwatchGradientNonFinite": "nonfinite",
        "GradwatchUpdatesSaturated": "saturated",
        "GradwatchLossNotFinite": "loss_nonfinite",
        "GradwatchLossLost": "loss_rising",
    }.items():
        rank = harm.SEVERITIES.index("critical") + 1
        assert f'gradwatch_episode_severity{{kind="{kind}"}} == {rank}\n' in ALERTS[name].expr
    text = RUNBOOK.replace("\n", " ")
    assert f"at {losses.STREAK_STEPS} non-finite steps in a row ({losses.SCALING_STREAK_STEPS} under" in text
    assert f"for {losses.LOST_STEPS} steps" in text
    assert f"within {losses.BACK_STEPS} steps" in text
    assert f"{losses.PROGRESS_STEPS:,} losses" in text
