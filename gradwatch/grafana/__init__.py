"""Grafana dashboards, Prometheus rules and Alertmanager routes, generated from the metric catalogue.

    gradwatch grafana export DIR

writes what stands in the folder `grafana/` of the source tree: two dashboards, the provisioning for them,
scrape configuration, recording and alert rules with their promtool tests, Alertmanager's configuration, a
docker-compose file and a README. Nothing in there is written by hand; a test fails on any difference.
"""

from __future__ import annotations

import os
from pathlib import Path

from gradwatch.grafana import alertmanager, fleet, health, readme, rule_file, rule_tests, rules, stack
from gradwatch.grafana.alertmanager import Told
from gradwatch.grafana.files import as_json, as_yaml
from gradwatch.grafana.links import LOCAL_GRAFANA, Links, default_runbooks

__all__ = ["Told", "export", "files"]


def files(
    runbooks: str | None = None,
    *,
    grafana: str = LOCAL_GRAFANA,
    objective: float = rules.OBJECTIVE,
    told: Told | None = None,
) -> dict[str, str]:
    """Path below the export folder -> text of the file.

    Args:
      runbooks: address of docs/runbooks.md as your people reach it; each alert links to its section. None: the page of
        this version in its repository, where that is known, else of the documentation on this host.
      grafana: address of Grafana as your people reach it; each alert links to the dashboard of its run.
      objective: share of the steps that should be useful, between 0.931 and 1.
      told: who is told, see `Told`. What of it is secret stands in none of these files.

    Raises:
      MissingExtra: PyYAML is not installed.
      ConfigError: an address is not absolute, or the objective is out of range.
    """
    links = Links(runbooks or default_runbooks(), grafana)
    told = told or Told()
    return {
        "README.md": readme.markdown(),
        "docker-compose.yml": as_yaml(stack.compose(told), stack.COMPOSE_HEAD),
        "alertmanager/alertmanager.yml": as_yaml(alertmanager.configuration(told), alertmanager.HEAD),
        "dashboards/gradient-fleet.json": as_json(fleet.dashboard()),
        "dashboards/gradient-health.json": as_json(health.dashboard()),
        "prometheus/prometheus.yml": as_yaml(stack.prometheus(), stack.PROMETHEUS_HEAD),
        "prometheus/rules.yml": as_yaml(rule_file.configuration(links, objective), rule_file.HEAD),
        "prometheus/rules.test.yml": as_yaml(rule_tests.configuration(links, objective), rule_tests.HEAD),
        "prometheus/targets/local.json": as_json(stack.targets()),
        "provisioning/dashboards/gradwatch.yml": as_yaml(stack.dashboard_provider(), stack.PROVIDER_HEAD),
        "provisioning/datasources/gradwatch.yml": as_yaml(stack.data_sources(), stack.SOURCES_HEAD),
    }


def export(
    directory: str | Path,
    *,
    runbooks: str | None = None,
    grafana: str = LOCAL_GRAFANA,
    objective: float = rules.OBJECTIVE,
    told: Told | None = None,
) -> list[Path]:
    """Writes the files below `directory`, over older ones, and returns their paths in order.

    Addresses that are secrets go into `.env`, which only its owner can read and which `.gitignore` beside it names;
    other lines of both stay.

    Args:
      directory: made if it is not there. Other files in it are left alone.
      runbooks, grafana, objective, told: see `files`.

    Raises:
      MissingExtra: PyYAML is not installed.
      ConfigError: see `files`.
      OSError: a file cannot be written.
    """
    written = []
    for name, text in files(runbooks, grafana=grafana, objective=objective, told=told).items():
        path = Path(directory) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        written.append(path)
    secret = Path(directory) / ".env"
    text = stack.environment(told or Told(), secret.read_text(encoding="utf-8") if secret.is_file() else "")
    if text:
        # born unreadable to others, not made so afterwards
        with os.fdopen(os.open(secret, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
        secret.chmod(0o600)
        written.append(secret)
        ignored = Path(directory) / ".gitignore"
        lines = ignored.read_text(encoding="utf-8").splitlines() if ignored.is_file() else []
        if secret.name not in lines:
            ignored.write_text("\n".join([*lines, secret.name]) + "\n", encoding="utf-8")
            written.append(ignored)
    return written
