"""The demo from beginning to end: serve, train twice, tell, draw."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

import gradwatch
from gradwatch import recovery
from gradwatch.core import policies
from gradwatch.core.policies import Policy
from gradwatch.core.snapshot import Snapshot
from gradwatch.demo import task
from gradwatch.demo.diagnosis import carried_by, diagnose, healed, number
from gradwatch.demo.picture import draw
from gradwatch.demo.text import Text, english, pages
from gradwatch.demo.training import LOST_STEPS, Run, train
from gradwatch.errors import MissingExtra, ServeError

#: Where there is no terminal to draw a bar on, a line is printed this often.
LINE_SECONDS = 10.0


@dataclass(frozen=True)
class Options:
    """What the command line says; see `gradwatch demo --help`.

    Attributes:
      learning_rate: None is the optimizer's, at which the unprotected run diverges.
      warmup_steps: the learning rate rises to its peak in so many steps.
      port: None takes the usual one, or a free one where that is taken.
      serve: keep serving the metrics at the end, until Ctrl-C.
      heal: compare clipping alone with clipping and a ladder, at a rate that clipping does not hold.
      keep_batch: keep the batch of each step at which an anomaly began.
    """

    policy: Policy
    steps: int = 1500
    learning_rate: float | None = None
    warmup_steps: int = 300
    optimizer: str = "sgd"
    port: int | None = None
    seed: int = 0
    output: Path = Path("demo-output")
    serve: bool = False
    heal: bool = False
    keep_batch: bool = False


@dataclass(frozen=True)
class Outcome:
    """The two runs (None: not begun) and the files written. With `heal`, `unprotected` is the one without a ladder."""

    unprotected: Run | None
    protected: Run | None
    picture: Path | None
    diagnosis: list[tuple[str, list[str]]]

    @property
    def interrupted(self) -> bool:
        return any(run is None or run.ended == "interrupted" for run in (self.unprotected, self.protected))

    def as_json(self) -> dict[str, Any]:
        """What was found, as JSON types."""
        return {
            "interrupted": self.interrupted,
            "picture": None if self.picture is None else str(self.picture),
            "reports": [str(run.report) for run in (self.unprotected, self.protected) if run and run.report],
            "diagnosis": [{"about": title, "sentences": sentences} for title, sentences in self.diagnosis],
        }


def run(options: Options, console: Console, *, text: Text | None = None) -> Outcome:
    """Train unprotected, then protected, from one seed; tell what happened and draw it.

    Ctrl-C ends the training; what was learned so far is told and drawn all the same.

    Args:
      text: what to learn; default: the topics of Python's `help()`.

    Raises:
      ServeError: `options.port` was asked for and cannot be opened.
    """
    text = english() if text is None else text
    usual = task.BEYOND_CLIPPING[options.optimizer] if options.heal else task.OPTIMIZERS[options.optimizer][1]
    rate = options.learning_rate or usual
    about = (
        f"{options.optimizer}, learning rate {rate:g} after {options.warmup_steps} steps of warm-up, "
        f"seed {options.seed}, {options.steps} steps"
    )
    for title, said in (
        ("Text", f"{len(text.codes):,} characters of Python's own documentation, {len(text.vocabulary)} different"),
        ("Network", f"{task.UNITS} recurrent ReLU units; a batch is a page of {task.BATCH} x {task.LENGTH} characters"),
        ("Training", about),
    ):
        console.print(f"[bold]{title:<10}[/]{said}", highlight=False)
    server = _serve(options.port, console)
    runs: list[Run | None] = [None, None]
    try:
        with _alerts_in(console) as alert:
            pair: tuple[tuple[str, Policy, Any], ...] = (
                ("unprotected", policies.observe(), None),
                ("protected", options.policy, None),
            )
            if options.heal:
                pair = (("clipped", options.policy, None), ("healed", options.policy, recovery.ladder()))
            for i, (name, policy, recover) in enumerate(pair):
                runs[i] = _one_run(name, policy, recover, options, rate, text, console, alert)
                if runs[i].ended == "interrupted":  # type: ignore[union-attr]
                    break
    except KeyboardInterrupt:
        pass  # between the steps of two runs: what there is, is told below
    tell = _tell_healed if options.heal else _tell
    outcome = tell(runs[0], runs[1], text.uniform_loss, about, options.output, console)
    if options.serve and not outcome.interrupted:
        console.print(f"Still serving {server.url} and /metrics; Ctrl-C ends it.", highlight=False)
        try:
            while True:
                time.sleep(1.0)
        except KeyboardInterrupt:
            pass
    server.close()
    return outcome


def _serve(port: int | None, console: Console) -> Any:
    if port is not None:
        server = gradwatch.serve(port=port)
    else:
        try:
            server = gradwatch.serve()
        except ServeError:
            server = gradwatch.serve(port=0)  # the usual port is taken: nobody asked for it by name
    console.print(
        f"[bold]Metrics[/]   curl {server.metrics_url}\n[bold]Page[/]      {server.url}",
        highlight=False,
        soft_wrap=True,
    )
    return server


def _one_run(
    name: str,
    policy: Policy,
    recover: Any,
    options: Options,
    rate: float,
    text: Text,
    console: Console,
    alert: Callable[[Any], None],
) -> Run:
    built = task.build(
        text, optimizer=options.optimizer, learning_rate=rate, warmup_steps=options.warmup_steps, seed=options.seed
    )
    watched = gradwatch.watch(
        built.train_step,
        policy=policy,
        name=name,
        on_alert=alert,
        record=options.output / "runs",
        recover=recover,
        keep_batch=options.keep_batch,
    )
    data = pages(text, seed=options.seed, batch=task.BATCH, length=task.LENGTH)
    with _progress(name, options.steps, console) as on_look:
        done = train(
            name,
            watched,
            data,
            steps=options.steps,
            learning_rate=lambda: float(built.optimizer.learning_rate),
            on_look=on_look,
            lost_steps=LOST_STEPS if recover is None else 10 * LOST_STEPS,
        )
    try:
        done.report = watched.monitor.write_report(options.output / f"{name}.html")
    except (MissingExtra, OSError) as error:
        console.print(f"No report of this run: {escape(str(error))}", highlight=False)
    if options.keep_batch and watched.monitor.record_path is not None:
        done.batches = gradwatch.open_run(watched.monitor.record_path).batches
    return done


@contextmanager
def _progress(name: str, steps: int, console: Console) -> Iterator[Callable[[int, float, Snapshot], None]]:
    """A bar on a terminal, a line every few seconds elsewhere."""
    if not console.is_terminal:
        printed = time.monotonic()

        def line(done: int, loss: float, snapshot: Snapshot) -> None:
            nonlocal printed
            if done == steps or time.monotonic() - printed > LINE_SECONDS:
                printed = time.monotonic()
                console.print(
                    f"{name:<11} {done}/{steps}  loss {number(loss)}  norm {number(snapshot.norm)}  "
                    f"clip_norm {number(snapshot.clip_norm)}  {snapshot.verdict}",
                    highlight=False,
                )

        yield line
        return
    bar = Progress(
        TextColumn("[bold]{task.description:<11}"),
        BarColumn(bar_width=None),
        TextColumn("{task.completed}/{task.total}"),
        TextColumn("loss [cyan]{task.fields[loss]:<6}"),
        TextColumn("norm [magenta]{task.fields[norm]:<8}"),
        TextColumn("clip_norm [green]{task.fields[clip_norm]:<6}"),
        TextColumn("{task.fields[verdict]:<4}"),
        TimeRemainingColumn(compact=True),
        console=console,
        expand=True,
    )
    with bar:
        shown = bar.add_task(name, total=steps, loss="", norm="", clip_norm="", verdict="")

        def move(done: int, loss: float, snapshot: Snapshot) -> None:
            bar.update(
                shown,
                completed=done,
                loss=number(loss),
                norm=number(snapshot.norm),
                clip_norm=number(snapshot.clip_norm),
                verdict=snapshot.verdict,
            )

        yield move


def _alarm_from(threshold: float) -> str:
    return f", alarm from {number(threshold)} on" if threshold < 9e29 else ""


@contextmanager
def _alerts_in(console: Console) -> Iterator[Callable[[Any], None]]:
    """Alerts as one short line each above the bar, in place of gradwatch's own long ones in the log."""

    def sink(alert: Any) -> None:
        if alert.kind == "recovery":
            console.print(f"[bold green]{escape(alert.message)}[/]", highlight=False, soft_wrap=True)
        elif alert.phase == "fired":
            console.print(
                f"[yellow]{alert.monitor}, step {alert.step}: {alert.kind}[/], norm {number(alert.norm)}"
                f"{_alarm_from(alert.threshold)}; {escape(carried_by(alert))}",
                highlight=False,
                soft_wrap=True,
            )

    logger = logging.getLogger("gradwatch")
    before = logger.propagate
    silent = logging.NullHandler()
    logger.addHandler(silent)
    logger.propagate = False
    try:
        yield sink
    finally:
        logger.propagate = before
        logger.removeHandler(silent)


def _tell_healed(
    clipped: Run | None, saved: Run | None, uniform: float, about: str, output: Path, console: Console
) -> Outcome:
    told = healed(clipped, saved, uniform)
    return _write(clipped, saved, told, ("clipped alone", "healed"), uniform, about, output, console)


def _tell(
    unprotected: Run | None, protected: Run | None, uniform: float, about: str, output: Path, console: Console
) -> Outcome:
    told = diagnose(unprotected, protected, uniform)
    return _write(unprotected, protected, told, ("unprotected", "protected"), uniform, about, output, console)


def _write(
    first: Run | None,
    second: Run | None,
    told: list[tuple[str, list[str]]],
    names: tuple[str, str],
    uniform: float,
    about: str,
    output: Path,
    console: Console,
) -> Outcome:
    if not told:
        console.print("Interrupted before the first step: nothing to tell.")
        return Outcome(first, second, None, told)
    console.print()
    for title, sentences in told:
        console.print(f"[bold]{title.capitalize()}[/]")
        for sentence in sentences:
            console.print(Padding(escape(sentence), (0, 0, 0, 2)), highlight=False)
    picture = output / "demo.png"
    draw(first, second, uniform, picture, subtitle=about, names=names)
    report = "\n\n".join("\n".join([title.capitalize(), *sentences]) for title, sentences in told)
    (output / "diagnosis.txt").write_text(f"{about}\n\n{report}\n", encoding="utf-8")
    console.print(f"\n[bold]Picture[/]   {picture}", highlight=False, soft_wrap=True)
    for run in (first, second):
        if run is not None and run.report is not None:
            console.print(f"[bold]Report[/]    {run.report}", highlight=False, soft_wrap=True)
        for path in () if run is None else run.batches:
            console.print(f"[bold]Batch[/]     {path}", highlight=False, soft_wrap=True)
    return Outcome(first, second, picture, told)
