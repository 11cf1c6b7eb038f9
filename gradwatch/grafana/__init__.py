"""Grafana dashboards, Prometheus rules and Alertmanager routes, generated from the metric catalogue.

    gradwatch grafana export DIR

writes what stands in the folder `grafana/` of the source tree: two dashboards, the provisioning for them,
scrape configuration, recording and alert rules with their promtool tests, Alertmanager's configuration, a
docker-compose file and a README. Nothing in there is written by hand; a test fails on any difference.
"""

from __future__ import annotations

from pathlib import Path

from gradwatch.grafana import alertmanager, fleet, health, readme, rule_tests, rules, stack
from gradwatch.grafana.files import as_json, as_yaml

__all__ = ["export", "files"]

#: Where the runbook stands unless `export` is told otherwise.
RUNBOOKS = "docs/runbooks.md"


def files(runbooks: str = RUNBOOKS) -> dict[str, str]:
    """Path below the export folder -> text of the file.

    Args:
      runbooks: address of docs/runbooks.md as your people reach it; each alert links to its section.

    Raises:
      MissingExtra: PyYAML is not installed.
    """
    return {
        "README.md": readme.markdown(),
        "docker-compose.yml": as_yaml(stack.compose(), stack.COMPOSE_HEAD),
        "alertmanager/alertmanager.yml": as_yaml(alertmanager.configuration(), alertmanager.HEAD),
        "dashboards/gradient-fleet.json": as_json(fleet.dashboard()),
        "dashboards/gradient-health.json": as_json(health.dashboard()),
        "prometheus/prometheus.yml": as_yaml(stack.prometheus(), stack.PROMETHEUS_HEAD),
        "prometheus/rules.yml": as_yaml(rules.configuration(runbooks), rules.HEAD),
        "prometheus/rules.test.yml": as_yaml(rule_tests.configuration(runbooks), rule_tests.HEAD),
        "prometheus/targets/local.json": as_json(stack.targets()),
        "provisioning/dashboards/gradwatch.yml": as_yaml(stack.dashboard_provider(), stack.PROVIDER_HEAD),
        "provisioning/datasources/gradwatch.yml": as_yaml(stack.data_sources(), stack.SOURCES_HEAD),
    }


def export(directory: str | Path, *, runbooks: str = RUNBOOKS) -> list[Path]:
    """Writes the files below `directory`, over older ones, and returns their paths in order.

    Args:
      directory: made if it is not there. Other files in it are left alone.
      runbooks: see `files`.

    Raises:
      MissingExtra: PyYAML is not installed.
      OSError: a file cannot be written.
    """
    written = []
    for name, text in files(runbooks).items():
        path = Path(directory) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        written.append(path)
    return written
