"""Every page keeps its word: its Python runs, its names resolve, its commands exist.

The Python blocks of one page run one after the other, in one namespace, as a reader would paste them. What a reader has
and a page does not repeat (a model, data, a certificate) is there beforehand; where a block would reach another
machine, that machine is a stub.
"""

from __future__ import annotations

import ast
import functools
import inspect
import re
import shlex
import subprocess
import sys
import types
import urllib.request
from itertools import groupby
from pathlib import Path

import pytest
import tomllib
import yaml
from click.testing import CliRunner

from gradwatch import cli
from gradwatch.telemetry import MOVED

# a process that loads TensorFlow takes long on a busy machine, and here are several
pytestmark = [pytest.mark.tf, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
REFERENCE = re.compile(r"^::: (\S+)$", re.MULTILINE)
NAME = re.compile(r"\bgradwatch(?:\.[A-Za-z]\w*)+")

#: Names that pages mention and that are no attributes: files, settings, tags of MLflow.
NOT_PYTHON = re.compile(r"gradwatch\.(example|json|yml|md|py|verdict|cause|explosion)$")


def called(path):
    return str(path.relative_to(ROOT))


def blocks(path, *languages):
    return [body for language, body in BLOCK.findall(path.read_text(encoding="utf-8")) if language in languages]


WITH_PYTHON = [page for page in PAGES if blocks(page, "python")]


def a_model():
    import keras

    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    return model


@pytest.fixture(scope="module")
def reader_has():
    """What a reader of any page has at hand; made once, for a first step takes seconds."""
    import keras
    import numpy as np
    import tensorflow as tf

    import gradwatch
    from gradwatch.core import policies

    model, optimizer, loss_fn = a_model(), keras.optimizers.SGD(0.01), keras.losses.MeanSquaredError()
    x, y = tf.random.normal((8, 4)), tf.random.normal((8, 1))

    @gradwatch.watch
    @tf.function
    def train_step(x, y):
        with tf.GradientTape() as tape:
            loss = loss_fn(y, model(x, training=True))
        grads = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(grads, model.trainable_variables))
        return loss

    train_step(x, y)
    with tf.GradientTape() as tape:
        loss = loss_fn(y, model(x))
    return {
        "tf": tf,
        "np": np,
        "keras": keras,
        "model": model,
        "optimizer": optimizer,
        "loss_fn": loss_fn,
        "x": x,
        "y": y,
        "dataset": tf.data.Dataset.from_tensor_slices((x, y)).batch(4),
        "grads": tape.gradient(loss, model.trainable_variables),
        "train_step": train_step,
        "monitor": train_step.monitor,
        "my_policy": policies.median,
        "my_detector": gradwatch.detectors.spike,
        "gradwatch": gradwatch,
    }


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A folder with the files that pages about HTTPS name."""
    folder = tmp_path_factory.mktemp("certificate")
    request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    subprocess.run(
        [*request, "-keyout", "server.key", "-out", "server.pem"], check=True, capture_output=True, cwd=folder
    )
    (folder / "clients.pem").write_bytes((folder / "server.pem").read_bytes())
    return folder


@pytest.fixture
def elsewhere(tmp_path, monkeypatch, certificate):
    """No page reaches beyond this process: ports are free ones, other hosts stubs, files in a folder of the test."""
    import gradwatch
    from gradwatch.exporters import push
    from gradwatch.exporters.notify import services, webhook
    from gradwatch.reading import reader

    monkeypatch.chdir(tmp_path)
    real, signature = gradwatch.serve, inspect.signature(gradwatch.serve)
    servers = []

    def serve(*arguments, **options):
        bound = signature.bind(*arguments, **options)
        bound.arguments["port"] = 0
        if "file_sd" in bound.arguments:
            bound.arguments["file_sd"] = tmp_path
        servers.append(real(*bound.args, **bound.kwargs))
        return servers[-1]

    monkeypatch.setattr(gradwatch, "serve", serve)
    monkeypatch.setattr(push, "push_to_gateway", lambda *arguments: None)
    monkeypatch.setattr(services.Apprise, "_send", lambda self, alert, text: None)
    monkeypatch.setattr(webhook.Webhook, "_post", lambda self, payload: None)
    display = types.ModuleType("IPython.display")
    display.IFrame = lambda src, width, height: urllib.request.urlopen(src, timeout=5).close()
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    for name in ("server.key", "server.pem", "clients.pem"):
        (tmp_path / name).write_bytes((certificate / name).read_bytes())
    yield
    for server in servers:
        server.close()
    reader.reader.close()


@pytest.mark.parametrize("page", WITH_PYTHON, ids=called)
def test_every_python_block_of_the_page_runs(page, reader_has, elsewhere, monkeypatch):
    module = types.ModuleType("page")  # a class that a page defines can be pickled only if its module can be found
    monkeypatch.setitem(sys.modules, "page", module)
    space = vars(module)
    space.update(reader_has)
    for number, block in enumerate(blocks(page, "python"), 1):
        before = dict(space)
        exec(compile(block, f"{called(page)}, block {number}", "exec"), space)
        if space.get("train_step") is not before.get("train_step"):
            space["train_step"](space["x"], space["y"])
        for name, value in space.items():
            if name.startswith("test_") and before.get(name) is not value:
                value()


def in_the_menu(entries):
    for entry in entries:
        for target in entry.values() if isinstance(entry, dict) else [entry]:
            yield from in_the_menu(target) if isinstance(target, list) else [target]


def test_every_page_has_its_place_in_the_menu():
    menu = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert sorted(in_the_menu(menu)) == sorted(pages)


def test_all_pages_with_code_are_run():
    assert ROOT / "README.md" in WITH_PYTHON
    assert len(WITH_PYTHON) > 5


def names():
    found = set()
    for page in PAGES:
        for block in blocks(page, "python"):
            found |= set(imported(block))
        if page.name == "add-a-cause.md":  # for who changes gradwatch itself: it calls what is private
            continue
        text = BLOCK.sub(lambda block: block[2] if block[1] == "python" else "", page.read_text(encoding="utf-8"))
        for span in [*re.findall(r"`([^`\n]+)`", text), *blocks(page, "python"), *REFERENCE.findall(text)]:
            for name in NAME.findall(span):
                # a private part is spoken about, not offered; a path or an address is no name
                if not NOT_PYTHON.search(name) and f"{name}/" not in span:
                    found.add(name)
    return found


def imported(block):
    """Dotted names of what a block imports out of gradwatch."""
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("gradwatch."):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


DOCUMENTED = names()


def test_every_name_on_a_page_resolves_after_a_plain_import():
    """In a child for each `gradwatch.x.y`, forked right after the import, so that none is there thanks to another.

    TensorFlow and SciPy are there already: they are not what is looked for, and each child would load them again.
    """
    code = (
        "import os, sys, warnings, gradwatch\n"
        "before = {name for name in sys.modules if name.startswith('gradwatch')}\n"
        "import scipy.stats, tensorflow\n"
        "assert before == {name for name in sys.modules if name.startswith('gradwatch')}\n"
        "warnings.simplefilter('ignore')\n"
        "bad = []\n"
        "for names in sys.argv[1:]:\n"
        "    child = os.fork()\n"
        "    if not child:\n"
        "        try:\n"
        "            for name in names.split(): eval(name)\n"
        "        except BaseException as error:\n"
        "            print(f'{name}: {error!r}', flush=True)\n"
        "            os._exit(1)\n"
        "        os._exit(0)\n"
        "    if os.waitpid(child, 0)[1]: bad.append(names)\n"
        "sys.exit(len(bad))"
    )
    wanted = sorted({*DOCUMENTED, *ALWAYS, *MOVED.values()})
    groups = [" ".join(group) for _, group in groupby(wanted, lambda name: name.split(".")[1:3])]
    done = subprocess.run([sys.executable, "-c", code, *groups], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]


#: Documented once; they stay, wherever pages move.
ALWAYS = {
    "gradwatch.grafana.export",
    "gradwatch.top.run",
    "gradwatch.testing.check_policy",
    "gradwatch.telemetry.reader.set_interval",
    "gradwatch.telemetry.reader.mark_active",
    "gradwatch.reading.set_interval",
    "gradwatch.notify.Slack",
}


def test_a_plain_import_does_not_load_what_nobody_asked_for():
    code = (
        "import sys, gradwatch\n"
        "heavy = {'tensorflow', 'keras', 'prometheus_client', 'click', 'rich', 'yaml', 'bokeh'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("page", PAGES, ids=called)
def test_every_inline_call_on_the_page_fits_its_function(page):
    import gradwatch  # noqa: F401 - for eval

    for span in re.findall(r"`(gradwatch\.[^`\n]*\))`", page.read_text(encoding="utf-8")):
        try:
            tree = ast.parse(span.replace("...", "None") if "(..." in span else span)
        except SyntaxError:
            continue  # an outline such as serve(labels=...)
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            if not ast.unparse(call.func).startswith("gradwatch."):
                continue
            function = eval(ast.unparse(call.func))
            given = [argument for argument in call.args if not isinstance(argument, ast.Constant) or argument.value]
            inspect.signature(function).bind_partial(*given, **{k.arg: None for k in call.keywords})


@functools.cache
def help_of(*words):
    done = CliRunner().invoke(cli._app(), [*words, "--help"], prog_name="gradwatch", catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_the_command_is_there_as_a_module_too():
    done = subprocess.run(
        [sys.executable, "-m", "gradwatch", "--help"], capture_output=True, text=True, timeout=60, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == help_of().split()  # the width is that of the terminal


@pytest.mark.parametrize("page", PAGES, ids=called)
def test_every_gradwatch_command_on_the_page_exists_with_its_options(page):
    lines = [words for words in _lines(page) if words[0] == "gradwatch" and len(words) > 1]
    for words in lines:
        if words[1] not in cli.COMMANDS:
            assert words[1].startswith("-"), words
            continue
        subcommand = [words[1]]
        if (
            len(words) > 2
            and words[2][0] != "-"
            and re.search(rf"^  {re.escape(words[2])}\s", help_of(words[1]), re.MULTILINE)
        ):
            subcommand.append(words[2])
        text = help_of(*subcommand)
        for option in (word.split("=")[0] for word in words if word.startswith("--")):
            assert option in text, f"{called(page)}: gradwatch {' '.join(subcommand)} has no {option}"


def _lines(page):
    """Shell lines and inline commands, as words."""
    text = page.read_text(encoding="utf-8")
    inline = re.findall(r"`(gradwatch [a-z][^`\n]*)`", text)
    block = [
        line.removeprefix("$ ") for body in blocks(page, "", "sh", "bash", "console") for line in body.splitlines()
    ]
    for line in [*inline, *(line for line in block if line.startswith(("gradwatch ", "pip ", "make ", "python ")))]:
        words = shlex.split(line, comments=True)
        if words and not words[-1].endswith("."):  # a sentence that begins with the name
            yield words


@pytest.mark.parametrize("page", PAGES, ids=called)
def test_what_a_page_tells_to_install_is_this_distribution_with_extras_that_it_has(page):
    from gradwatch.errors import DISTRIBUTION

    known = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for command in re.findall(r"(?:pip install|uv add) ([^`\n#]+)", page.read_text(encoding="utf-8")):
        for name, extras in re.findall(r"(\.|gradwatch[\w-]*)(?:\[([a-z,]+)\])?", command):
            assert name in {".", DISTRIBUTION}, command
            assert set(filter(None, extras.split(","))) <= set(known), command
