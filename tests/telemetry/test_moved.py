"""Names that moved go on working, and say where they went."""

from __future__ import annotations

import subprocess
import sys

import pytest

from gradwatch import telemetry

FORMS = ("import gradwatch.telemetry.{}", "from gradwatch.telemetry import {}")

#: Each old module in both forms in a child of its own, forked before gradwatch is imported; numpy is not looked at.
PROGRAM = """
import importlib, os, sys, warnings
import numpy
failed = 0
for line, name, new in zip(*[iter(sys.argv[1:])] * 3):
    child = os.fork()
    if child:
        failed += bool(os.waitpid(child, 0)[1])
        continue
    try:
        assert not [module for module in sys.modules if module.startswith("gradwatch")]
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            exec(line)
        import gradwatch
        assert getattr(gradwatch.telemetry, name) is importlib.import_module(new)
        said = [str(w.message) for w in said if "gradwatch" in str(w.message)]
        assert said == [f"gradwatch.telemetry.{name} is now {new}; the old name will go away"], said
    except BaseException as error:
        print(f"{line}: {error!r}", flush=True)
        os._exit(1)
    os._exit(0)
sys.exit(failed)
"""


def test_an_old_module_is_the_new_one_and_says_so():
    cells = [(form.format(name), name, new) for name, new in telemetry.MOVED.items() for form in FORMS]
    assert len(cells) >= 20
    command = [sys.executable, "-c", PROGRAM, *[word for cell in cells for word in cell]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_name_that_never_was_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such"):
        telemetry.no_such  # noqa: B018
    with pytest.raises(ModuleNotFoundError):
        __import__("gradwatch.telemetry.no_such")
