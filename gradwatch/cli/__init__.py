"""The command `gradwatch`. Each subcommand is one click command in a module of its own, listed in `COMMANDS`."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

from gradwatch import __version__
from gradwatch.errors import GradwatchError, MissingExtra

#: Subcommand -> module and attribute of its click command; loaded when it is asked for.
COMMANDS = {
    "demo": ("gradwatch.demo.command", "demo"),
    "top": ("gradwatch.cli.top", "top"),
    "runs": ("gradwatch.cli.record", "runs"),
    "report": ("gradwatch.cli.report", "report"),
    "compare": ("gradwatch.cli.report", "compare"),
    "replay": ("gradwatch.cli.report", "replay"),
    "suggest": ("gradwatch.cli.report", "suggest"),
    "export": ("gradwatch.cli.record", "export"),
    "diagnose": ("gradwatch.cli.record", "diagnose"),
    "grafana": ("gradwatch.cli.commands", "grafana"),
    "notify": ("gradwatch.cli.commands", "notify"),
}


def main() -> None:
    """Entry point of the console script: errors of gradwatch end it with one line instead of a traceback."""
    try:
        app = _app()
        app(prog_name="gradwatch")
    except GradwatchError as error:
        print(f"gradwatch: {error}", file=sys.stderr)
        sys.exit(1)


def _app() -> Any:
    try:
        import click
        import rich  # noqa: F401  (the commands print with it)
    except ImportError as missing:
        raise MissingExtra(missing.name or "click", "cli", "the command `gradwatch`") from None

    class Group(click.Group):
        def list_commands(self, ctx: Any) -> list[str]:
            return list(COMMANDS)

        def get_command(self, ctx: Any, name: str) -> Any:
            if name not in COMMANDS:
                return None
            module, attribute = COMMANDS[name]
            return getattr(import_module(module), attribute)

    @click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
    @click.version_option(__version__, prog_name="gradwatch")
    def app() -> None:
        """Watches the gradients of a TensorFlow training and clips explosions by itself.

        In a training it is one line, `@gradwatch.watch` above the train step. This command shows what that
        does: start with `gradwatch demo`.
        """

    return app
