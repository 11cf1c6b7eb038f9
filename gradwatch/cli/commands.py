"""The small subcommands of `gradwatch`: writing the Grafana files, trying a notification."""

from __future__ import annotations

import json as _json
from pathlib import Path

import click

from gradwatch import grafana as _grafana
from gradwatch.exporters import notify as _notify
from gradwatch.reading.text import redact


@click.group(short_help="Write dashboards, alert rules and a ready stack.")
def grafana() -> None:
    """Grafana, Prometheus and Alertmanager files for watched trainings."""


@grafana.command()
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@click.option("--runbooks", default=_grafana.RUNBOOKS, show_default=True, help="Address or path of the runbooks page.")
@click.option("--json", is_flag=True, help="Print the paths as one JSON array.")
def export(directory: Path, runbooks: str, json: bool) -> None:
    """Write dashboards, provisioning, rules and a docker-compose.yml into DIRECTORY, over older ones."""
    try:
        written = _grafana.export(directory, runbooks=runbooks)
    except OSError as error:
        raise click.ClickException(f"cannot write into {directory}: {error.strerror or error}") from error
    if json:
        click.echo(_json.dumps([str(path) for path in written]))
        return
    for path in written:
        click.echo(path)


@click.group(short_help="Try whether a notification arrives.")
def notify() -> None:
    """Notifications by webhook, Slack or any service that apprise knows."""


@notify.command()
@click.argument("url")
@click.option("--json", is_flag=True, help="Print what became of it as one JSON object.")
def test(url: str, json: bool) -> None:
    """Send one test message to URL: http(s)://..., a Slack webhook, or an apprise address such as mailto://..."""
    try:
        _notify.channel_for(url).test()
    except _notify.SendError as error:
        if json:
            click.echo(_json.dumps({"sent": False, "to": redact(url), "error": str(error)}))
            raise SystemExit(1) from None
        raise click.ClickException(f"the test message was not taken: {error}") from error
    click.echo(_json.dumps({"sent": True, "to": redact(url)}) if json else f"sent a test message to {redact(url)}")
