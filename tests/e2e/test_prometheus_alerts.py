"""From a real training that is harmed to a message at a person's webhook, and to the message that it is over.

The rules, routes and inhibitions are the shipped ones. Only their clock runs faster: a minute lasts a second.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
import yaml
from servers import (
    Alertmanager,
    Prometheus,
    Receiver,
    alertmanager,
    installed,
    prometheus,
    receiver,
    training,
    wait_until,
)

from gradwatch import grafana
from gradwatch.grafana import alertmanager as shipped_alertmanager

pytestmark = pytest.mark.timeout(300)  # the story is told in the first test's set-up

RUN, NEIGHBOUR = "lm", "neighbour"


def faster(rules: str) -> str:
    """The rules with a minute that lasts a second."""
    rules = rules.replace("1h", "60m")
    rules = re.sub(r"\b(\d+)m\b", r"\1s", rules)
    return re.sub(r"(\d+) \* 60\b", r"\1 * 1", rules)


TOLD = grafana.Told(webhook="https://example.org/alerts", pagerduty=True)


def routed(team: Receiver, on_call: Receiver) -> dict[str, Any]:
    """What the export writes for a webhook and a pager, with our webhooks in their place, and little wait."""
    config = yaml.safe_load(grafana.files(told=TOLD)["alertmanager/alertmanager.yml"])
    config["route"] |= {"group_wait": "1s", "group_interval": "1s", "repeat_interval": "1h"}
    for route in config["route"]["routes"]:
        route.pop("repeat_interval", None)
    config["receivers"] = [
        {"name": "nobody"},
        {"name": "team", "webhook_configs": [{"url": team.url, "send_resolved": True}]},
        {"name": "on-call", "webhook_configs": [{"url": on_call.url, "send_resolved": True}]},
    ]
    return config


@dataclass
class Story:
    """What was seen while the training spiked, was harmed, recovered, gave NaN, hung and died."""

    team: list[dict[str, Any]] = field(default_factory=list)  # messages
    on_call: list[dict[str, Any]] = field(default_factory=list)
    after_spike: list[dict[str, Any]] = field(default_factory=list)  # messages to anybody, so far
    during_spike: list[dict[str, Any]] = field(default_factory=list)  # Alertmanager's alerts
    during_harm: list[dict[str, Any]] = field(default_factory=list)
    during_nan: list[dict[str, Any]] = field(default_factory=list)
    after_recovery: list[dict[str, Any]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)


def told(messages: list[dict[str, Any]], status: str) -> dict[str, dict[str, Any]]:
    """Alert name -> the alert as it was first told with that status."""
    found: dict[str, dict[str, Any]] = {}
    for message in messages:
        for alert in message["alerts"]:
            if alert["status"] == status:
                found.setdefault(alert["labels"]["alertname"], alert)
    return found


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    """Plays it once; the tests below look at what was seen."""
    directory = tmp_path_factory.mktemp("alerts")
    installed("prometheus")
    seen = Story()
    with (
        receiver() as team,
        receiver() as on_call,
        training(RUN, NEIGHBOUR) as run,
        alertmanager(directory / "alertmanager", routed(team, on_call)) as am,
        prometheus(directory / "prometheus", _scraping(directory / "prometheus", run.address, am.address)) as prom,
    ):
        wait_until(lambda: _value(prom, f'gradwatch_steps_total{{monitor="{RUN}"}}') >= 150, 60, "150 steps")
        assert prom.firing() == set(), "a calm training is silent"

        run.say("explode")
        time.sleep(0.5)
        run.say("calm")
        spike, harmed, lost = (
            "GradwatchGradientExplosion",
            "GradwatchTrainingHarmed",
            "GradwatchGradientExplosionSustained",
        )
        wait_until(lambda: _known(am, spike), 30, "the explosion at Alertmanager")
        time.sleep(4)  # group_wait and group_interval are a second each
        seen.during_spike, seen.after_spike = am.alerts(), [*team.messages, *on_call.messages]
        wait_until(lambda: not _known(am, spike), 60, "the end of the spike")

        began = time.monotonic()
        run.say("harm")
        wait_until(lambda: harmed in told(team.messages, "firing"), 30, "the message about harm")
        seen.seconds["harm told"] = time.monotonic() - began
        wait_until(lambda: lost in told(on_call.messages, "firing"), 60, "the page that the run is lost")
        wait_until(lambda: lost in told(team.messages, "firing"), 30, "the same to the team")
        seen.during_harm = am.alerts()
        run.say("calm")
        wait_until(lambda: {harmed, lost} <= set(told(team.messages, "resolved")), 90, "messages that it is over")
        wait_until(lambda: lost in told(on_call.messages, "resolved"), 30, "the page that it is over")
        seen.after_recovery = am.alerts()

        run.say("nan")
        nan = "GradwatchGradientNonFinite"
        wait_until(lambda: nan in told(on_call.messages, "firing"), 30, "the message about NaN")
        seen.during_nan = am.alerts()
        run.say("calm")
        wait_until(lambda: nan in told(on_call.messages, "resolved"), 60, "the message that NaN is over")

        run.say("hang")
        stall = "GradwatchTrainingStalled"
        wait_until(lambda: stall in told(on_call.messages, "firing"), 40, "the message about the stall")
        run.say("quit")
        wait_until(lambda: "GradwatchTargetDown" in told(team.messages, "firing"), 60, "the message about the target")
        seen.team, seen.on_call = list(team.messages), list(on_call.messages)
    return seen


def _scraping(directory: Path, training: str | Path, alertmanager: str) -> dict[str, Any]:
    """The shipped configuration for one training: an address, or the folder that it writes its target into."""
    config = yaml.safe_load(grafana.files()["prometheus/prometheus.yml"])
    config["global"] |= {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["global"]["external_labels"] = {"environment": "production"}
    config["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"] = [alertmanager]
    [job] = config["scrape_configs"]
    if isinstance(training, Path):
        job["file_sd_configs"] = [{"files": [str(training / "*.json")], "refresh_interval": "1s"}]
    else:
        del job["file_sd_configs"]
        job["static_configs"] = [{"targets": [training]}]
    directory.mkdir(parents=True)
    (directory / "rules.yml").write_text(_patient_with_targets(faster(grafana.files()["prometheus/rules.yml"])))
    return config


def _patient_with_targets(rules: str) -> str:
    """A target that is down is told after 20 seconds: Prometheus takes up to 5 to forget a target, on any clock."""
    before, name, after = rules.partition("- alert: GradwatchTargetDown\n")
    assert name
    return before + name + re.sub(r"\bfor: 5s\b", "for: 20s", after, count=1)


def _value(prom: Prometheus, expr: str) -> float:
    found = prom.query(expr)
    return float(found[0]["value"][1]) if found else 0.0


def _known(am: Alertmanager, name: str) -> bool:
    return any(alert["labels"]["alertname"] == name for alert in am.alerts())


# -- the story ------------------------------------------------------------------------------------------


def test_a_harmless_spike_is_known_and_told_to_nobody(story):
    [spike] = [alert for alert in story.during_spike if alert["labels"]["alertname"] == "GradwatchGradientExplosion"]
    assert spike["labels"]["severity"] == "info"
    assert story.after_spike == []


def test_harm_is_told_with_what_a_person_needs(story):
    alert = told(story.team, "firing")["GradwatchTrainingHarmed"]
    assert alert["labels"]["monitor"] == RUN
    assert alert["labels"]["severity"] == "warning"
    assert alert["labels"]["environment"] == "production"
    summary, links = alert["annotations"]["summary"], alert["annotations"]
    assert summary.startswith(f"steered_training, {RUN}: An anomaly of the gradients harmed the training.")
    assert re.search(r"Verdict: [A-Z][^.]+\. The newest anomaly began at step \d+\.$", summary), summary
    assert "has not come back" in alert["annotations"]["description"]
    assert re.match(r"https?://\S+#gradwatchtrainingharmed$", links["runbook_url"])
    board, _, asked = links["dashboard_url"].partition("?")
    assert re.match(r"https?://\S+/d/gradwatch-gradient-health$", board)
    found = parse_qs(asked)
    assert found["var-job"] == ["gradwatch"]
    assert found["var-instance"][0].startswith("127.0.0.1:")
    assert found["var-monitor"] == [RUN]
    began = datetime.fromisoformat(alert["startsAt"].split(".")[0].rstrip("Z") + "+00:00").timestamp()
    assert int(found["from"][0]) / 1000 < began < int(found["to"][0]) / 1000, "it shows the time of the alert"


def test_it_is_told_within_seconds(story):
    assert story.seconds["harm told"] < 20, "ten steps, one read, one scrape, one evaluation, one second of group_wait"


def test_one_message_holds_the_alerts_of_one_run(story):
    for message in story.team + story.on_call:
        assert set(message["groupLabels"]) == {"job", "run"}


def test_what_is_lost_is_a_page_and_no_ticket_beside_it(story):
    names = {a["labels"]["alertname"] for a in story.during_harm if not a["status"]["inhibitedBy"]}
    assert "GradwatchGradientExplosionSustained" in names
    assert names <= {"GradwatchGradientExplosionSustained", "GradwatchGradientExplosion"}, "the spike is told to nobody"


def test_only_critical_alerts_wake_whoever_is_on_call(story):
    woke = told(story.on_call, "firing")
    assert {"GradwatchGradientExplosionSustained", "GradwatchGradientNonFinite", "GradwatchTrainingStalled"} <= set(
        woke
    )
    assert {alert["labels"]["severity"] for alert in woke.values()} == {"critical"}


def test_the_team_hears_of_everything_but_info(story):
    assert set(told(story.on_call, "firing")) <= set(told(story.team, "firing"))
    assert {alert["labels"]["severity"] for alert in told(story.team, "firing").values()} <= {"critical", "warning"}


def test_after_the_recovery_each_of_them_is_told_to_be_over(story):
    over = {"GradwatchTrainingHarmed", "GradwatchGradientExplosionSustained"}
    assert over <= set(told(story.team, "resolved"))
    assert {"GradwatchGradientExplosionSustained", "GradwatchGradientNonFinite"} <= set(told(story.on_call, "resolved"))
    assert not {alert["labels"]["alertname"] for alert in story.after_recovery} & over


def test_a_training_that_hangs_is_told(story):
    alert = told(story.on_call, "firing")["GradwatchTrainingStalled"]
    assert "no step for" in alert["annotations"]["description"]


def test_a_training_that_died_is_told(story):
    alert = told(story.team, "firing")["GradwatchTargetDown"]
    assert "monitor" not in alert["labels"]


def test_the_neighbour_in_the_same_process_is_left_in_peace(story):
    about = {
        alert["labels"]["alertname"]
        for message in story.team + story.on_call
        for alert in message["alerts"]
        if alert["labels"].get("monitor") == NEIGHBOUR
    }
    assert about <= {"GradwatchTrainingStalled"}, "it hung, like its process"


# -- a job that ends ------------------------------------------------------------------------------------


def test_a_job_that_is_ended_by_sigterm_is_silent(tmp_path):
    targets = tmp_path / "targets"
    targets.mkdir()
    with (
        receiver() as team,
        training(RUN, targets=targets) as job,
        alertmanager(tmp_path / "alertmanager", routed(team, team)) as am,
        prometheus(tmp_path / "prometheus", _scraping(tmp_path / "prometheus", targets, am.address)) as prom,
    ):
        wait_until(lambda: _value(prom, f'gradwatch_steps_total{{monitor="{RUN}"}}') >= 30, 60, "30 steps")
        assert list(targets.glob("*.json"))
        job.process.send_signal(signal.SIGTERM)
        job.process.wait(30)
        assert not list(targets.glob("*.json")), "it took its target away"
        wait_until(lambda: not prom.query("up"), 18, "a Prometheus that knows of no target")
        time.sleep(3)  # an evaluation and a group_wait
        assert prom.firing() == set()
        assert team.messages == []


# -- the shipped files under Prometheus' and Alertmanager's own tools -----------------------------------


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("export")
    grafana.export(directory)
    return directory


def run(program: str, *arguments: str) -> str:
    """What a tool prints; fails with its output if it is not content."""
    done = subprocess.run([installed(program), *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_promtool_finds_every_rule_and_every_alert_fires_and_stays_silent(exported):
    assert "SUCCESS: 29 rules found" in run("promtool", "check", "rules", str(exported / "prometheus/rules.yml"))
    assert "SUCCESS" in run("promtool", "test", "rules", str(exported / "prometheus/rules.test.yml"))


@pytest.mark.parametrize(
    ("alert", "before", "after"),
    [
        ("GradwatchGradientExplosion", "< 5 * 60", "< 1 * 60"),
        ("GradwatchGradientExplosion", "keep_firing_for: 10m", "keep_firing_for: 1m"),
        ("GradwatchTrainingHarmed", 'kind=~"explosion|saturated|nonfinite"} >= 2', 'kind=~".+"} >= 1'),
        ("GradwatchGradientExplosionSustained", 'kind="explosion"} == 3', 'kind="explosion"} == 2'),
        ("GradwatchLossNotFinite", 'kind="loss_nonfinite"} == 3', 'kind="loss_nonfinite"} >= 2'),
        ("GradwatchStepsWastedFast", "> 0.144 and", "> 0.3 and"),
        ("GradwatchStepsWastedFast", "> 5 * 60)", "> 0 * 60)"),
        ("GradwatchStepsWastedSlow", "> 360 * 60)", "> 1 * 60)"),
        ("GradwatchClippingSaturated", "> 0.3\n", "> 0.9\n"),
        ("GradwatchClipNormDrift", "> 10 * (", "> 100 * ("),
        ("GradwatchClipNormDrift", "> 60 * 60", "> 1"),
        ("GradwatchTrainingStalled", "> 10 * 60", "> 1 * 60"),
        ("GradwatchTargetDown", "gradwatch_build_info[1d]", "gradwatch_loss[1d]"),
        ("GradwatchNotificationsFailing", 'outcome="failed"', 'outcome="sent"'),
        ("GradwatchInternalErrors", '{component="exposition"}', ""),
        ("GradwatchLossScaleCollapsed", " < 1\n", " < 0.1\n"),
    ],
)
def test_the_unit_tests_catch_a_wrong_rule(exported: Path, tmp_path: Path, alert: str, before: str, after: str):
    rules = (exported / "prometheus/rules.yml").read_text()
    assert before in rules
    (tmp_path / "rules.yml").write_text(rules.replace(before, after))
    tests = yaml.safe_load((exported / "prometheus/rules.test.yml").read_text())
    tests["tests"] = [test for test in tests["tests"] if test["name"].startswith(f"{alert}:")]
    (tmp_path / "rules.test.yml").write_text(json.dumps(tests))
    command = [installed("promtool"), "test", "rules", str(tmp_path / "rules.test.yml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert f"alertname: {alert}," in done.stdout + done.stderr


def test_amtool_accepts_the_shipped_configuration(exported):
    checked = run("amtool", "check-config", str(exported / "alertmanager/alertmanager.yml"))
    assert "7 inhibit rules" in checked
    assert "2 receivers" in checked


@pytest.mark.parametrize(
    "told",
    [
        grafana.Told(slack="https://hooks.example.org/x"),
        grafana.Told(webhook="https://example.org/x"),
        grafana.Told(email="team@example.org", smtp="smtp.example.org:587", smtp_user="gradwatch"),
        grafana.Told(
            slack="https://hooks.example.org/x", email="a@example.org", smtp="mail.example:25", pagerduty=True
        ),
    ],
)
def test_amtool_accepts_whatever_the_export_is_told(tmp_path, told):
    grafana.export(tmp_path, told=told)
    config = tmp_path / "alertmanager/alertmanager.yml"
    text = config.read_text()
    if "0.25" in run("amtool", "--version"):  # it does not know the file of a webhook's address yet
        text = text.replace("- url_file: /", "- url: https://example.org/")
    config.write_text(text)
    assert "SUCCESS" in run("amtool", "check-config", str(config))


@pytest.mark.parametrize(
    ("severity", "receivers"), [("critical", "on-call,research"), ("warning", "research"), ("info", "nobody")]
)
def test_the_route_of_the_teams_project_tells_whom_it_should(severity, receivers):
    config = Path(__file__).parents[2] / "examples" / "team" / "alertmanager.yml"
    assert "3 receivers" in run("amtool", "check-config", str(config))
    told = run("amtool", "config", "routes", "test", f"--config.file={config}", f"severity={severity}").strip()
    assert told == receivers


@pytest.mark.parametrize(
    ("labels", "receivers"),
    [
        ("environment=production severity=critical", "on-call,team"),
        ("environment=production severity=warning", "team"),
        ("environment=production severity=info", "nobody"),
        ("environment=staging severity=critical", "team"),
        ("severity=critical", "on-call,team"),
        ("environment= severity=warning", "team"),
        ("environment=staging-2 severity=critical", "on-call,team"),
        ("environment=prod severity=critical", "on-call,team"),
        ("environment=${GRADWATCH_ENVIRONMENT} severity=critical", "on-call,team"),
        ("environment=${GRADWATCH_ENVIRONMENT} severity=warning", "team"),
        ("environment=development severity=critical", "nobody"),
        ("environment=test severity=warning", "nobody"),
        ("environment=laptop severity=critical", "nobody"),
    ],
)
def test_who_is_told_depends_on_environment_and_severity(tmp_path, labels, receivers):
    grafana.export(tmp_path, told=grafana.Told(slack="https://hooks.example.org/x", pagerduty=True))
    config = str(tmp_path / "alertmanager/alertmanager.yml")
    assert run("amtool", "config", "routes", "test", f"--config.file={config}", *labels.split()).strip() == receivers


def hostile(status: str) -> dict[str, Any]:
    """What a template sees: a monitor whose name calls everybody on Slack."""
    alert = {
        "status": status,
        "labels": {"alertname": "GradwatchGradientExplosion", "severity": "warning"},
        "annotations": {
            "summary": "<!here> is harmed. Verdict: bad batch.",
            "description": "<!channel> on gpu7: boom",
            "runbook_url": "https://wiki.example/runbooks#x",
            "dashboard_url": "https://grafana.example/d/x",
        },
    }
    common = {"monitor": "<!channel>", "instance": "gpu7:9464", "run": "<!here>"}
    return {"status": status, "commonLabels": common, "alerts": [alert]}


@pytest.mark.parametrize("status", ["firing", "resolved"])
def test_the_message_is_readable_and_a_hostile_name_in_it_is_inert(tmp_path, status):
    (tmp_path / "none.tmpl").write_text("")
    (tmp_path / "data.json").write_text(json.dumps(hostile(status)))

    def render(template: str) -> str:
        arguments = (f"--template.glob={tmp_path}/none.tmpl", f"--template.data={tmp_path}/data.json")
        return run("amtool", "template", "render", *arguments, f"--template.text={template}").strip()

    over = "over: " if status == "resolved" else ""
    assert render(shipped_alertmanager.TITLE) == f"{over}&lt;!channel> of &lt;!here>: 1 alert"
    text = render(shipped_alertmanager.TEXT)
    assert text.startswith(f"*GradwatchGradientExplosion* (warning, {status})")
    assert "&lt;!here> is harmed. Verdict: bad batch." in text
    assert "&lt;!channel> on gpu7: boom" in text
    assert "Runbook: https://wiki.example/runbooks#x" in text
    assert "Dashboard: https://grafana.example/d/x" in text
    assert "<" not in text
