"""The rules name only what exists, and each alert has what a person needs when it fires."""

from __future__ import annotations

import re
from pathlib import Path

import promql_parser
import pytest
from grafana_boards import BOARDS, panels, parse, selectors

from gradwatch.grafana import alertmanager, rule_tests, rules
from gradwatch.grafana.queries import series
from gradwatch.reading import alerts as in_process

ROOT = Path(__file__).parents[2]
RUNBOOK = (ROOT / "docs/runbooks.md").read_text(encoding="utf-8")
ALERTS = {alert.name: alert for alert in rules.alerts()}

#: The catalogue: name -> (for, severity).
CATALOGUE = {
    "GradwatchGradientExplosion": ("", "warning"),
    "GradwatchGradientExplosionSustained": ("2m", "critical"),
    "GradwatchGradientTrend": ("", "warning"),
    "GradwatchGradientNonFinite": ("", "critical"),
    "GradwatchGradientVanishing": ("10m", "warning"),
    "GradwatchUpdatesSaturated": ("2m", "critical"),
    "GradwatchClippingSaturated": ("15m", "warning"),
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
def test_the_summary_is_static_and_the_description_names_the_run(alert):
    assert "{{" not in alert.summary
    assert alert.summary.endswith(".")
    assert "{{ $labels.instance }}" in alert.description


@pytest.mark.parametrize("alert", rules.alerts(), ids=ALERTS)
def test_every_alert_has_its_section_in_the_runbook(alert):
    section = sections()[alert.name]
    assert rules.texts(alert, "docs/runbooks.md")["runbook_url"] == f"docs/runbooks.md#{alert.name.lower()}"
    assert f"Severity: {alert.severity}." in section
    assert [part in section for part in ("**What it means.**", "**How to confirm.**", "**What to do.**")] == [True] * 3


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


def test_recording_rules_are_named_level_metric_operation():
    assert all(re.match(r"monitor:gradwatch_\w+:ratio_rate5m$", name) for name in rules.recordings())


def test_what_alertmanager_mutes_is_as_the_catalogue_says():
    assert alertmanager.MUTES == {
        "GradwatchGradientNonFinite": [
            "GradwatchGradientExplosion",
            "GradwatchGradientExplosionSustained",
            "GradwatchUpdatesSaturated",
            "GradwatchClippingSaturated",
        ],
        "GradwatchGradientExplosionSustained": ["GradwatchGradientExplosion"],
    }
    assert all(
        rule["equal"] == ["job", "instance", "monitor"] for rule in alertmanager.configuration()["inhibit_rules"]
    )
    assert set(alertmanager.MUTES) | {name for muted in alertmanager.MUTES.values() for name in muted} <= set(ALERTS)


def test_prometheus_and_the_process_agree_on_what_is_critical():
    """gradwatch's own messages and the rules must not tell two stories."""
    assert rules.STREAK_STEPS == in_process.CRITICAL_STREAK_STEPS
    assert ALERTS["GradwatchGradientExplosionSustained"].hold == f"{in_process.CRITICAL_EXPLOSION_SECONDS / 60:g}m"
    assert set(rules.SEVERITIES) == set(in_process.SEVERITIES)
