"""Every file in examples/ runs to its end, in this process."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

#: two_workers starts processes of its own: tests/tf/test_two_workers.py runs it.
EXAMPLES = sorted(
    path for path in (Path(__file__).parent.parent / "examples").glob("*.py") if path.stem != "two_workers"
)

#: What a run must print, for the examples whose numbers say that something was really watched.
PRINTS = {
    "explicit_clip": r"\d+ of 200 steps clipped",
    "keras_fit": r"189 steps watched",
    "quickstart": r"after 128 steps; median norm \d",
    "serve_and_resume": r'gradwatch_steps_total\{monitor="regression"\} \d+',
}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs_to_its_end(path, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", [str(path)])
    runpy.run_path(str(path), run_name="__main__")
    printed = capsys.readouterr().out
    assert re.search(PRINTS.get(path.stem, "."), printed), printed


def test_every_expectation_belongs_to_an_example():
    assert set(PRINTS) <= {path.stem for path in EXAMPLES}


def test_the_quickstart_is_a_usual_step_with_one_line_more():
    source = next(path for path in EXAMPLES if path.stem == "quickstart").read_text()
    assert source.count("gradwatch") - source.count("import gradwatch") == 1 + source.count("gradwatch.watch") - 1
    for usual in ("tf.GradientTape()", "apply_gradients", "Dense(10", "Dense(1)"):
        assert usual in source
