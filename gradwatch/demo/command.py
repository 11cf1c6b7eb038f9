"""`gradwatch demo` on the command line."""

from __future__ import annotations

import json as _json
import os
from importlib.util import find_spec
from pathlib import Path

import click
from rich.console import Console

from gradwatch.core import policies
from gradwatch.errors import MissingExtra


@click.command("demo", short_help="Train unprotected and protected on real text, and tell what happened.")
@click.option(
    "--steps", type=click.IntRange(min=1), help="Training steps of each run.  [default: 1500, with --heal 800]"
)
@click.option(
    "--learning-rate",
    type=click.FloatRange(min=0, min_open=True),
    help="Peak learning rate.  [default: one at which the unprotected run diverges]",
)
@click.option(
    "--optimizer",
    type=click.Choice(["sgd", "adam"]),
    help="SGD has momentum 0.9.  [default: sgd, with --heal adam: the default policy holds SGD at any rate]",
)
@click.option(
    "--policy",
    default="auto",
    show_default=True,
    metavar="POLICY",
    help='Clip policy of the protected run, such as "auto", "percentile(90)" or "fixed(1.0)".',
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    help="Port of /metrics; 0 takes a free one.  [default: 9464, or a free one if that is taken]",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of weights and batches.")
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("demo-output"),
    show_default=True,
    help="Folder for the picture and the diagnosis.",
)
@click.option("--serve", is_flag=True, help="Keep serving the metrics at the end, until Ctrl-C.")
@click.option(
    "--heal",
    is_flag=True,
    help="At a rate that clipping does not hold: clipping alone, then with recover=gradwatch.recovery.ladder().",
)
@click.option("--keep-batch", is_flag=True, help="Keep the batch of each step at which an anomaly began.")
@click.option("--json", is_flag=True, help="Print what was found as one JSON object; all else goes to standard error.")
@click.pass_context
def demo(
    context: click.Context,
    steps: int | None,
    learning_rate: float | None,
    optimizer: str | None,
    policy: str,
    port: int | None,
    seed: int,
    output: Path,
    serve: bool,
    heal: bool,
    keep_batch: bool,
    json: bool,
) -> None:
    """Train a network unprotected, then protected, and tell what happened.

    A character-level recurrent network learns the English text that comes with Python, at a learning rate
    that is too high for it. Nothing is injected: the first run meets a cliff of the loss and is lost. The
    second run has the same seed and is watched and clipped by gradwatch.

    Meanwhile the metrics of both runs are served for Prometheus. At the end there is a diagnosis and a
    picture. Ctrl-C ends it early, with what was learned so far. It takes about two minutes on two cores.
    """
    chosen = policies.parse(policy)
    if find_spec("matplotlib") is None:
        raise MissingExtra("matplotlib", "demo", "the demo's picture")
    console = Console(stderr=json)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with console.status("Loading TensorFlow ..."):
        from gradwatch.demo import session

    options = session.Options(
        policy=chosen,
        steps=steps or (800 if heal else 1500),
        learning_rate=learning_rate,
        optimizer=optimizer or ("adam" if heal else "sgd"),
        port=port,
        seed=seed,
        output=output,
        serve=serve,
        heal=heal,
        keep_batch=keep_batch,
    )
    outcome = session.run(options, console)
    if json:
        click.echo(_json.dumps(outcome.as_json()))
    if outcome.interrupted:
        context.exit(130)  # as the shell says for Ctrl-C
