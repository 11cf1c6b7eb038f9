"""Log lines of a program that did not configure logging: time, level, and a line of their own."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

LINE = re.compile(r"^\d\d:\d\d:\d\d WARNING gradwatch: the norm is large$", re.MULTILINE)


def output(body: str) -> str:
    """Standard output and error of a program, in one pipe."""
    done = subprocess.run(
        [sys.executable, "-c", "import logging, sys, types\nfrom gradwatch.reading import health\n" + body],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


SAY = "logging.getLogger('gradwatch').warning('the norm is large')\n"

#: A function called fit in a file below keras/, as Keras' own, that draws a bar and logs in between.
FIT = """
def draw_and_say():
    sys.stdout.write(' 7/10 [====>...]')
    sys.stdout.flush()
    logging.getLogger('gradwatch').warning('the norm is large')
space = {'draw_and_say': draw_and_say}
exec(compile('def fit(): draw_and_say()', 'site-packages/keras/src/trainer.py', 'exec'), space)
space['fit']()
"""


def test_a_line_has_time_and_level():
    assert LINE.fullmatch(output(SAY).rstrip("\n"))


def test_a_line_within_a_fit_is_not_glued_to_the_progress_bar():
    said = output(FIT)
    assert said.startswith(" 7/10 [====>...]\n")
    assert LINE.search(said)


def test_a_line_beside_an_open_bar_of_tqdm_is_not_glued_to_it():
    bar = (
        "module = sys.modules['tqdm'] = types.ModuleType('tqdm'); module.tqdm = type('tqdm', (), {'_instances': {1}})\n"
    )
    said = output(bar + "sys.stdout.write(' 70%|####'); sys.stdout.flush()\n" + SAY)
    assert LINE.search(said)


def test_no_empty_line_is_written_where_no_bar_is_open():
    assert output(SAY + SAY).count("\n") == 2


def test_a_program_that_configures_logging_gets_each_line_once_in_its_own_form():
    assert output(f"logging.basicConfig(format='MINE %(message)s')\n{SAY}") == "MINE the norm is large\n"


@pytest.mark.parametrize(
    "silence",
    [
        "logging.getLogger('gradwatch').setLevel('ERROR')",
        "logging.getLogger('gradwatch').addHandler(logging.NullHandler())",
    ],
)
def test_a_program_may_silence_it(silence):
    assert output(f"{silence}\n{SAY}") == ""


def test_a_log_that_nobody_configured_still_counts_as_such():
    assert output("assert not logging.getLogger('gradwatch').hasHandlers()") == ""


def test_what_others_log_looks_as_before():
    assert output("logging.getLogger('other').warning('a message')") == "a message\n"
