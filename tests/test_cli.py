"""The command line: help that reads well, errors in one line, a policy typed as text."""

from __future__ import annotations

import subprocess
import sys

import pytest

from gradwatch import cli
from gradwatch.core import policies
from gradwatch.errors import ConfigError, MissingExtra

click_testing = pytest.importorskip("click.testing")


def invoke(*arguments):
    return click_testing.CliRunner().invoke(cli._app(), list(arguments), prog_name="gradwatch")


def test_help_names_every_command_with_one_line_each():
    result = invoke("--help")
    assert result.exit_code == 0
    for command in cli.COMMANDS:
        line = next(line for line in result.output.splitlines() if line.strip().startswith(command + " "))
        assert len(line.split(maxsplit=1)[1]) > 10
        assert not line.endswith("...")  # cut off by click


def commands():
    """Every command that does something, with the words that call it."""
    import click

    app = cli._app()
    context = click.Context(app)
    for name in app.list_commands(context):
        command = app.get_command(context, name)
        if isinstance(command, click.Group):
            yield from ((f"{name} {below}", command.commands[below]) for below in command.commands)
        else:
            yield name, command


def test_every_command_prints_json_for_scripts_and_agents():
    without = [name for name, command in commands() if not any("--json" in option.opts for option in command.params)]
    assert without == []


def test_demo_help_names_every_flag_of_the_demo():
    output = invoke("demo", "--help").output
    for flag in ("steps", "learning-rate", "optimizer", "policy", "port", "seed", "output", "serve"):
        assert f"--{flag}" in output


def test_the_version_is_the_packages_own():
    import gradwatch

    assert gradwatch.__version__ in invoke("--version").output


def test_help_does_not_wait_for_tensorflow():
    code = (
        "import sys; from gradwatch import cli; sys.argv = ['gradwatch', 'demo', '--help']\n"
        "try: cli.main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, timeout=60)


def test_an_error_of_gradwatch_is_one_line_and_exit_code_1(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gradwatch", "demo", "--policy", "percentile(900)"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "q must be" in error
    assert "900" in error


def test_without_click_the_command_names_the_extra_to_install(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "click", None)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    assert "pip install 'gradwatch-tf[cli]'" in capsys.readouterr().err, "the smallest extra that brings it"


def test_without_matplotlib_the_demo_says_so_before_it_trains(monkeypatch):
    monkeypatch.setattr("gradwatch.demo.command.find_spec", lambda name: None)
    result = invoke("demo")
    assert isinstance(result.exception, MissingExtra)
    assert "pip install 'gradwatch-tf[demo]'" in str(result.exception)


def test_the_picture_names_the_extra_when_matplotlib_is_missing(monkeypatch, tmp_path):
    from gradwatch.demo.picture import draw

    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtra, match=r"'gradwatch-tf\[demo\]'"):
        draw(None, None, 4.6, tmp_path / "demo.png")


@pytest.mark.parametrize("name", policies.POLICIES)
def test_every_policy_can_be_typed_as_it_names_itself(name):
    made = policies.POLICIES[name]()
    assert policies.parse(made.name) == made


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("percentile", policies.percentile()),
        (" percentile( 95 , window=500 ) ", policies.percentile(95, window=500)),
        ("fixed(1)", policies.fixed(1.0)),
        ("zscore(z_max=3.0)", policies.zscore(3.0)),
    ],
)
def test_a_typed_policy_takes_positional_and_named_numbers(text, same):
    assert policies.parse(text) == same


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("percentle", "there are: percentile, median"),
        ("percentile(q)", "plain numbers"),
        ("percentile(", "plain numbers"),
        ("", "plain numbers"),
        ("percentile(90)(90)", "plain numbers"),
        ("percentile(**{'q': 90})", "does not fit"),
        ("fixed", "fixed takes clip_norm"),
        ("percentile(90, widow=3)", "widow"),
        ("percentile('90')", "q must be"),
        ("__import__('os').getcwd()", "plain numbers"),
        ("Policy('a')", "unknown policy 'Policy'"),
    ],
)
def test_a_typed_policy_that_is_wrong_says_what_to_type(text, said):
    with pytest.raises(ConfigError) as raised:
        policies.parse(text)
    assert said in str(raised.value)
