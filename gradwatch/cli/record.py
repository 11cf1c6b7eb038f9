"""`gradwatch runs`, `gradwatch export` and `gradwatch diagnose`: recorded runs, for people and for other programs."""

from __future__ import annotations

import json as _json
import os
import time
from pathlib import Path

import click

from gradwatch.diagnosis.diagnose import diagnose as _diagnose
from gradwatch.reading.text import clean
from gradwatch.record import export as _export
from gradwatch.record.folder import Summary, summaries
from gradwatch.record.recorder import VARIABLE
from gradwatch.record.run import open_run
from gradwatch.report.facts import duration

_DEFAULT_FOLDER = "runs"


@click.command(short_help="List the recorded runs of a folder with their verdicts, newest first.")
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@click.option("--json", is_flag=True, help="Print a JSON array of the runs, for other programs.")
def runs(folder: Path | None, json: bool) -> None:
    """List the recorded runs of FOLDER with their verdicts, one line each, newest first.

    Without FOLDER it is the one that GRADWATCH_RECORD names, or else "runs".
    """
    found = summaries(folder or Path(os.environ.get(VARIABLE) or _DEFAULT_FOLDER))
    if json:
        click.echo(_json.dumps([run.as_json() for run in found], allow_nan=False))
        return
    for run in found:
        click.echo(_line(run))
    if not found:
        click.echo("no recorded runs")


def _line(run: Summary) -> str:
    file = clean(Path(run.file).name)
    if run.error:
        return f"{file}: {clean(run.error, 400)}"
    started = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.start))
    name = clean(f"{run.run_name}/{run.name}" if run.run_name else run.name, 32)
    ended = clean(run.ended, 60)
    if run.nonfinite_since is not None:
        ended += f", NaN since step {run.nonfinite_since:,}"
    elif run.outcome in ("harmed", "lost"):
        ended += f", {run.outcome}"
    events = f"{run.events} event{'' if run.events == 1 else 's'}"
    return (
        f"{started}  {name:<24}  {run.last_step:>9,} steps in {duration(run.end - run.start):>7}  {events:>10}  "
        f"{ended:<9}  {file}  {clean(run.verdict)}".rstrip()
    )


@click.command(short_help="Write a recorded run as CSV, JSON or Parquet.")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--format", "form", type=click.Choice(["csv", "json", "parquet"]), help="Default: csv.")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="A file; default: print it.")
@click.option("--json", is_flag=True, help="The same as --format json.")
def export(run: Path, form: str | None, output: Path | None, json: bool) -> None:
    """Write the steps of RUN, a file of `gradwatch runs` or a folder for its newest run, as a table.

    JSON has the facts of the run, its events, alerts and notes as well.
    """
    if json and form not in (None, "json"):
        raise click.UsageError(f"--json is --format json; leave it out or --format {form}")
    form = "json" if json else form or "csv"
    found = open_run(run)
    try:
        if form == "parquet":
            if output is None:
                raise click.UsageError("Parquet is no text; say where to with -o FILE")
            _export.write_parquet(found, output)
            return
        with click.open_file(str(output or "-"), "w", encoding="utf-8") as file:
            if form == "json":
                _export.write_json(found, file)
            else:
                _export.write_csv(found, file)
    except OSError as error:
        raise click.ClickException(
            f"cannot write {output or 'to standard output'}: {error.strerror or error}"
        ) from error


@click.command(short_help="Say why a recorded run went wrong.")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--json", is_flag=True, help="Print all causes as JSON, for other programs.")
def diagnose(run: Path, json: bool) -> None:
    """Say why RUN, a file of `gradwatch runs` or a folder for its newest run, went wrong, or that it is healthy."""
    found = _diagnose(open_run(run))
    click.echo(_json.dumps(found.to_dict(), allow_nan=False) if json else str(found))
