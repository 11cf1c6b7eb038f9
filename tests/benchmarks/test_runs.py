"""Finished runs survive a stop, and what is published is enough to go on from."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import runs


def run(**changes):
    return {
        "task": "digits",
        "rate": 0.1,
        "method": "none",
        "seed": 0,
        "steps": 10,
        "final": 1.0,
        "untrained": 4.0,
        "diverged": False,
        "steps_lost": 3,
        "clipped_last_half": 0.25,
        "clipped": 0.5,
        "norms": [1.0, 2.0],
        **changes,
    }


def test_what_is_published_is_read_as_the_lines_that_it_was_made_of(tmp_path):
    lines = [
        run(),
        run(seed=1, final=4.0, diverged=True),
        run(method="fixed 1", final=0.123456789),
        run(rate=0.2, final=2.0),
    ]
    path = tmp_path / "out.json"
    runs.publish(path, [*lines, run(steps=99)], 10, {"cpu": "some"})
    found = {(x["rate"], x["method"], x["seed"]): x for x in runs.load(path)}
    assert len(found) == len(lines)
    for line in lines:
        got = found[line["rate"], line["method"], line["seed"]]
        for field in ("final", "untrained", "steps_lost", "clipped_last_half"):
            assert got[field] == pytest.approx(line[field], rel=1e-6), field
        assert got["diverged"] == line["diverged"]
        assert got["steps"] == 10
    assert json.loads(path.read_text())["machine"] == {"cpu": "some"}


def test_a_published_row_is_one_line_and_holds_no_norms(tmp_path):
    path = tmp_path / "out.json"
    runs.publish(path, [run(seed=seed) for seed in range(5)], 10, {})
    rows = [line for line in path.read_text().splitlines() if line.startswith('["digits"')]
    assert len(rows) == 1
    assert "norms" not in path.read_text()


def test_a_line_counts_over_what_is_published_and_a_torn_one_is_nothing(tmp_path):
    path = tmp_path / "out.json"
    runs.publish(path, [run(), run(seed=1)], 10, {})
    runs.append(path, [run(final=0.5)])
    with path.with_suffix(".jsonl").open("a") as file:
        file.write(json.dumps(run(seed=2))[:30])
    runs.append(path, [run(seed=3)])
    assert {x["seed"]: x["final"] for x in runs.load(path)} == {0: 0.5, 1: 1.0, 3: 1.0}


def test_a_forgotten_method_is_in_neither_file(tmp_path):
    path = tmp_path / "out.json"
    runs.publish(path, [run(), run(method="mine")], 10, {"cpu": "some"})
    runs.append(path, [run(method="mine", seed=1), run(seed=1)])
    runs.forget(path, ["mine"])
    assert {(x["method"], x["seed"]) for x in runs.load(path)} == {("none", 0), ("none", 1)}
    assert json.loads(path.read_text())["machine"] == {"cpu": "some"}


def test_norms_are_kept_of_healthy_runs_without_clipping_only(tmp_path):
    calm = np.random.default_rng(0).lognormal(0, 0.3, 1000).tolist()
    one = {"task": "digits", "method": "none", "seed": 0, "rate": 0.1, "final": 1.0, "diverged": False, "norms": calm}
    lines = [
        one,
        {**one, "seed": 1, "norms": [*calm[:500], *[100 * x for x in calm[:500]]]},  # rises for good
        {**one, "seed": 2, "norms": [*calm[:-1], math.inf]},
        {**one, "rate": 0.2, "final": 1.01},
        {**one, "rate": 0.4, "final": 1.2},  # past the best rate, and worse
        {**one, "rate": 0.05, "final": 1.5},
        {**one, "rate": 0.05, "seed": 1, "final": 2.0, "diverged": True},
        {**one, "seed": 3, "method": "fixed 1"},
    ]
    path = tmp_path / "norms.npz"
    runs.save_norms(lines, path)
    with np.load(path) as file:
        assert set(file.files) == {"digits-0.1-0", "digits-0.2-0", "digits-0.05-0"}
        assert file["digits-0.1-0"] == pytest.approx(np.array(calm), rel=1e-6)


def test_recorded_norms_of_published_runs_stay_while_the_runs_are_healthy(tmp_path):
    calm = np.random.default_rng(0).lognormal(0, 0.3, 1000).tolist()
    path = tmp_path / "norms.npz"
    runs.save_norms([run(norms=calm), run(rate=0.2, norms=calm)], path)
    published = [run(norms=None), run(rate=0.2, final=3.0, norms=None), run(rate=0.05, final=1.5, norms=calm)]
    runs.save_norms(published, path)
    with np.load(path) as file:
        # 0.2 trains no longer, 0.05 is new
        assert set(file.files) == {"digits-0.1-0", "digits-0.05-0"}
        assert file["digits-0.1-0"] == pytest.approx(np.array(calm), rel=1e-6)
