"""A scheduler understands how a run ended that could not be saved."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
from gradwatch.errors import TrainingStopped
from gradwatch.recovery import endings

endings.exit_with_its_code()
endings.exit_with_its_code()
error = {raised}
error.exit_code = 78
raise error
"""


@pytest.mark.parametrize(("raised", "code"), [("TrainingStopped('lost')", 78), ("ValueError('lost')", 1)])
def test_an_error_that_nobody_catches_ends_the_process_with_its_code(raised, code):
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(raised=raised)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == code
    assert done.stderr.count("lost") >= 1
    assert "Traceback" in done.stderr
