"""`gradwatch report`, `compare`, `replay` and `suggest`: what one does with recorded runs."""

from __future__ import annotations

import json as _json
import shutil
from pathlib import Path
from typing import Any

import click

from gradwatch.record.run import open_run
from gradwatch.report import compare as _compare
from gradwatch.report import page
from gradwatch.report import replay as _replay
from gradwatch.report import suggest as _suggest

_RUN = click.Path(path_type=Path)
_OUTPUT = click.Path(dir_okay=False, path_type=Path)


@click.command(short_help="Write the report of a run: one HTML file that opens offline.")
@click.argument("run", type=_RUN)
@click.option("-o", "--output", type=_OUTPUT, help="Default: beside the run, with its name and .html.")
@click.option("--json", is_flag=True, help="Print the verdict and where the report is as one JSON object.")
def report(run: Path, output: Path | None, json: bool) -> None:
    """Write the report of RUN, a file of `gradwatch runs` or a folder for its newest run.

    Verdict, curves on one axis of steps, layers, events and settings, in one HTML file that needs no network.
    """
    found = open_run(run)
    target = output or found.path.with_suffix(".html")
    material = found.material()
    _write(target, page.report(material))
    if json:
        told = None if material.diagnosis is None else material.diagnosis.to_dict()
        _print({"run": str(found.path), "report": str(target), "diagnosis": told})
        return
    if material.diagnosis is not None:
        click.echo(str(material.diagnosis))
    click.echo(f"Report: {target}")


@click.command(short_help="Set runs side by side: what differs in their settings, then numbers and verdicts.")
@click.argument("runs", nargs=-1, required=True, type=_RUN, metavar="RUN RUN...")
@click.option("-o", "--output", type=_OUTPUT, help="Write a page with the curves too, one HTML file.")
@click.option("--json", is_flag=True, help="Print one JSON object, for other programs.")
def compare(runs: tuple[Path, ...], output: Path | None, json: bool) -> None:
    """Set two or more runs side by side: first what differs in their settings, then numbers, curves and verdicts.

    A folder stands for its newest run.
    """
    if len(runs) < 2:
        raise click.UsageError("compare takes two runs or more; `gradwatch report RUN` tells about one")
    opened = [open_run(run) for run in runs]
    found = _compare.of([(run.path.stem, run.material()) for run in opened])
    if output is not None:
        _write(output, _compare.page_of(found))
    if json:
        _print({**found.as_json(), "report": None if output is None else str(output)})
        return
    click.echo(_compare.text(found, shutil.get_terminal_size((0, 0)).columns or None))
    if output is not None:
        click.echo(f"Report: {output}")


@click.command(short_help="What another policy or detector would have done with the norms of a run.")
@click.argument("run", type=_RUN)
@click.option("--policy", metavar="POLICY", help='Such as "median(2)".  [default: the one of the run]')
@click.option("--detector", "detectors", multiple=True, metavar="DETECTOR", help='Such as "spike(5)"; may be repeated.')
@click.option("--last", type=click.IntRange(min=1), help="Replay only so many steps, the last ones.  [default: all]")
@click.option("--json", is_flag=True, help="Print one JSON object, for other programs.")
def replay(run: Path, policy: str | None, detectors: tuple[str, ...], last: int | None, json: bool) -> None:
    """Say what POLICY and DETECTOR would have done with the norms of RUN, step by step.

    The norms are those that the run had under its own policy; under another one they would have been others.
    """
    found = _replay.of(open_run(run), policy, list(detectors) or None, last)
    if json:
        _print(found.as_json())
    else:
        click.echo(_replay.text(found))


@click.command(short_help="The constant clip_norm and the learning rate that would have fitted a run.")
@click.argument("run", type=_RUN)
@click.option("--json", is_flag=True, help="Print one JSON object, for other programs.")
def suggest(run: Path, json: bool) -> None:
    """Say which constant clip_norm would have been right for RUN, which learning rate, and why."""
    found = _suggest.of(open_run(run))
    if json:
        _print(found.as_json())
    else:
        click.echo(_suggest.text(found))


def _write(path: Path, text: str) -> None:
    try:
        page.write(path, text)
    except OSError as error:
        raise click.ClickException(f"cannot write {path}: {error.strerror or error}") from error


def _print(value: dict[str, Any]) -> None:
    click.echo(_json.dumps(value, allow_nan=False))
