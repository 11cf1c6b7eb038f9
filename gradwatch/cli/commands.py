"""The small subcommands of `gradwatch`: writing the Grafana files, trying a notification."""

from __future__ import annotations

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
def export(directory: Path, runbooks: str) -> None:
    """Write dashboards, provisioning, rules and a docker-compose.yml into DIRECTORY, over older ones."""
    try:
        written = _grafana.export(directory, runbooks=runbooks)
    except OSError as error:
        raise click.ClickException(f"cannot write into {directory}: {error.strerror or error}") from error
    for path in written:
        click.echo(path)


@click.group(short_help="Try whether a notification arrives.")
def notify() -> None:
    """Notifications by webhook, Slack or any service that apprise knows."""


@notify.command()
@click.argument("url")
def test(url: str) -> None:
    """Send one test message to URL: http(s)://..., a Slack webhook, or an apprise address such as mailto://..."""
    try:
        _notify.channel_for(url).test()
    except _notify.SendError as error:
        raise click.ClickException(f"the test message was not taken: {error}") from error
    click.echo(f"sent a test message to {redact(url)}")
