"""Every example runs to its end: scripts in this process, notebooks in a kernel, and the project of a team."""

from __future__ import annotations

import importlib.util
import re
import runpy
from pathlib import Path

import pytest
import yaml

#: two_workers starts processes of its own: tests/tf/test_two_workers.py runs it.
FOLDER = Path(__file__).parent.parent / "examples"
EXAMPLES = sorted(path for path in FOLDER.glob("*.py") if path.stem != "two_workers")

#: What each notebook must print, somewhere; in this order.
NOTEBOOKS = {
    "explosion": (
        r"loss before the bad file 0\.\d+, at the end (nan|inf|\d+\.?\d*e\+\d+|\d{3,})",
        r"loss before the bad file 0\.\d+, at the end [0-2]\.\d+",
        r"Verdict: .+\nWhy: .+\nNext: ",
        r"step 200: norm",
    ),
    "fit_and_prometheus": (r"clipped_steps \[", r'gradwatch_steps_total\{monitor="classifier".*\} 189'),
}

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


@pytest.mark.timeout(300)
def test_the_script_of_the_readme_runs_as_it_stands_and_prints_what_stands_below_it(tmp_path, capsys):
    text = (FOLDER.parent / "README.md").read_text(encoding="utf-8")
    script, shown = re.search(r"^```python\n(import keras.*?)^```\n\n```\n(.*?)^```", text, re.M | re.S).groups()
    path = tmp_path / "readme.py"
    path.write_text(script, encoding="utf-8")
    runpy.run_path(str(path), run_name="__main__")
    printed = capsys.readouterr().out
    numbers = re.compile(r"[\d.]+(e[+-]?\d+)?(?=\s)")  # they belong to one machine, the sentences do not
    assert numbers.sub("#", printed) == numbers.sub("#", shown)
    assert re.match(r"loss 0\.\d+\n", printed)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_runs_to_its_end_and_shows_what_it_tells(name):
    import nbclient
    import nbformat

    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=240, kernel_name="python3").execute()
    printed = "".join(
        output.text for cell in notebook.cells for output in cell.get("outputs", []) if output.output_type == "stream"
    )
    position = 0
    for expected in NOTEBOOKS[name]:
        found = re.compile(expected).search(printed, position)
        assert found, f"{expected} is not in\n{printed[position:]}"
        position = found.end()


def test_every_notebook_is_run_and_committed_without_output():
    import nbformat

    paths = sorted(FOLDER.rglob("*.ipynb"))
    assert {path.stem for path in paths} == set(NOTEBOOKS)
    for path in paths:
        for cell in nbformat.read(path, as_version=4).cells:
            assert not cell.get("outputs"), path
            assert cell.get("execution_count") is None, path


# -- the team's project -----------------------------------------------------------------------------------------

TEAM = FOLDER / "team"


@pytest.fixture
def train(monkeypatch):
    monkeypatch.delenv("SLACK_WEBHOOK_URL", raising=False)
    spec = importlib.util.spec_from_file_location("team_train", TEAM / "train.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.timeout(300)
def test_the_teams_training_goes_on_where_it_was_and_keeps_every_step(train, tmp_path, capsys):
    import gradwatch
    from gradwatch.reading.reader import reader
    from gradwatch.record import recorder

    targets = tmp_path / "targets"
    targets.mkdir()
    assert train.main(["--epochs", "1", "--folder", str(tmp_path / "run"), "--targets", str(targets)]) == 0
    assert train.main(["--epochs", "2", "--folder", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    assert "goes on from epoch 1" in printed
    assert re.search(r"epoch 2: loss 0\.\d+, \d+ of 128 steps clipped", printed), printed
    assert reader.poll_now()  # this line and the next do what the end of the process does
    assert recorder._writing.flush(60)
    assert gradwatch.open_run(tmp_path / "run" / "runs").steps["step"][-1] == 128
    assert not list(targets.iterdir())


@pytest.mark.timeout(300)
def test_the_teams_training_ends_with_a_verdict_and_status_3_when_the_run_is_lost(train, tmp_path, capsys, monkeypatch):
    whole = train.data

    def without_values(seed, batch_size):
        return whole(seed, batch_size).map(lambda x, y: (x * float("nan"), y))

    monkeypatch.setattr(train, "data", without_values)
    assert train.main(["--epochs", "4", "--folder", str(tmp_path)]) == 3
    assert "Verdict: " in capsys.readouterr().err


def test_the_teams_route_mutes_what_the_generated_one_mutes():
    ours = yaml.safe_load((TEAM / "alertmanager.yml").read_text(encoding="utf-8"))
    generated = yaml.safe_load(
        (FOLDER.parent / "grafana" / "alertmanager" / "alertmanager.yml").read_text(encoding="utf-8")
    )

    def muted(configuration):
        return {
            (rule["source_matchers"][0], *sorted(re.findall(r"Gradwatch\w+", rule["target_matchers"][0])))
            for rule in configuration["inhibit_rules"]
        }

    assert muted(ours) == muted(generated)
    named = {route["receiver"] for route in ours["route"]["routes"]} | {ours["route"]["receiver"]}
    assert named == {receiver["name"] for receiver in ours["receivers"]}


def test_the_teams_servers_lay_their_route_over_a_service_that_the_generated_stack_has():
    generated = yaml.safe_load((FOLDER.parent / "grafana" / "docker-compose.yml").read_text(encoding="utf-8"))
    over = yaml.safe_load((TEAM / "compose.route.yaml").read_text(encoding="utf-8"))
    for name, service in over["services"].items():
        places = [volume.split(":")[1] for volume in generated["services"][name]["volumes"]]
        assert all(volume.split(":")[1] in places for volume in service["volumes"])
    files = yaml.safe_load((TEAM / "compose.yaml").read_text(encoding="utf-8"))["include"][0]["path"]
    assert files == ["monitoring/docker-compose.yml", "compose.route.yaml"]
