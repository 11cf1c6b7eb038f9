"""The small subcommands of `gradwatch`: writing the Grafana files, trying a notification."""

from __future__ import annotations

import json as _json
from pathlib import Path

import click

from gradwatch import grafana as _grafana
from gradwatch.exporters import notify as _notify
from gradwatch.grafana import rules as _rules
from gradwatch.grafana.links import LOCAL_GRAFANA, LOCAL_RUNBOOKS, default_runbooks
from gradwatch.reading.harm import SEVERITIES
from gradwatch.reading.text import redact


@click.group(short_help="Write dashboards, alert rules and a ready stack.")
def grafana() -> None:
    """Grafana, Prometheus and Alertmanager files for watched trainings."""


@grafana.command()
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@click.option("--slack", metavar="URL", default="", help="Tell a Slack channel: address of its incoming webhook.")
@click.option("--webhook", metavar="URL", default="", help="Tell an address that takes Alertmanager's JSON.")
@click.option("--email", metavar="ADDRESS", default="", help="Tell by mail; needs --smtp.")
@click.option("--smtp", metavar="HOST:PORT", default="", help="The mail server that takes it.")
@click.option("--sender", metavar="ADDRESS", default="", help="Where the mail comes from; default: where it goes.")
@click.option("--smtp-user", metavar="NAME", default="", help="For the mail server; see GRADWATCH_SMTP_PASSWORD.")
@click.option("--pagerduty", is_flag=True, help="Page on critical alerts; see GRADWATCH_PAGERDUTY_KEY.")
@click.option(
    "--objective", default=_rules.OBJECTIVE, show_default=True, help="Share of the steps that should be useful."
)
@click.option("--runbooks", metavar="URL", default=None, help="Where your people read the runbooks page.")
@click.option("--grafana", "address", metavar="URL", default=LOCAL_GRAFANA, show_default=True, help="Their Grafana.")
@click.option("--json", is_flag=True, help="Print the paths as one JSON array.")
def export(
    directory: Path, runbooks: str | None, address: str, objective: float, json: bool, **told: str | bool
) -> None:
    """Write dashboards, provisioning, rules and a docker-compose.yml into DIRECTORY, over older ones.

    Addresses that are secrets go into the file .env, which docker compose reads.
    """
    try:
        written = _grafana.export(
            directory,
            runbooks=runbooks,
            grafana=address,
            objective=objective,
            told=_grafana.Told(**told),  # type: ignore[arg-type]
        )
    except OSError as error:
        raise click.ClickException(f"cannot write into {directory}: {error.strerror or error}") from error
    if json:
        click.echo(_json.dumps([str(path) for path in written]))
        return
    for path in written:
        click.echo(path)
    if (runbooks or default_runbooks()) == LOCAL_RUNBOOKS:
        click.echo(
            f"The alerts link to {LOCAL_RUNBOOKS}, where nobody may serve anything. Put docs/runbooks.md of "
            "gradwatch's repository where your people read, and say where: --runbooks URL.",
            err=True,
        )
    if told["webhook"]:
        click.echo(
            "Alertmanager reads the webhook's address from a file (url_file), which needs 0.26 or newer. For an older "
            "one write it into alertmanager.yml as url; that file is a secret then.",
            err=True,
        )


@click.group(short_help="Try whether a notification arrives.")
def notify() -> None:
    """Notifications by webhook, Slack or any service that apprise knows."""


@notify.command()
@click.argument("url")
@click.option(
    "--as",
    "kind",
    type=click.Choice(list(_notify.KINDS)),
    default=None,
    help="The form of the message; default: what the URL says. slack is also for services that accept its format.",
)
@click.option("--severity", type=click.Choice(SEVERITIES), default="info", show_default=True, help="How it looks.")
@click.option("--json", is_flag=True, help="Print what became of it as one JSON object.")
def test(url: str, kind: str | None, severity: str, json: bool) -> None:
    """Send one test message to URL: http(s)://..., a Slack webhook, or an apprise address such as mailto://..."""
    try:
        _notify.channel_for(url, kind or "").test(severity)
    except _notify.SendError as error:
        if json:
            click.echo(_json.dumps({"sent": False, "to": redact(url), "error": str(error)}))
            raise SystemExit(1) from None
        raise click.ClickException(f"the test message was not taken: {error}") from error
    click.echo(_json.dumps({"sent": True, "to": redact(url)}) if json else f"sent a test message to {redact(url)}")
