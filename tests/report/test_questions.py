"""`gradwatch compare`, `replay` and `suggest`: what they say agrees with the numbers of the runs."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner
from report.synthetic import event, norms, record

from gradwatch import cli
from gradwatch.core import detectors, policies
from gradwatch.errors import ConfigError, RecordError
from gradwatch.record.run import open_run
from gradwatch.report import compare, replay, suggest
from gradwatch.testing import replay as reference


def invoke(*arguments):
    return CliRunner().invoke(cli._app(), [str(a) for a in arguments], prog_name="gradwatch")


# -- compare ----------------------------------------------------------------------------------------------


@pytest.fixture
def two(tmp_path):
    calm = record(tmp_path / "calm.sqlite", norms(200))
    other = {"name": "SGD", "learning_rate": 0.4, "momentum": 0.9}
    wild = record(
        tmp_path / "wild.sqlite",
        np.where(np.arange(150) == 120, 90.0, norms(150)),
        words=event(121, "explosion", 90.0),
        rate=0.4,
        optimizer_settings=other,
        ended="exception: ValueError: no more data",
    )
    return calm, wild


def test_compare_says_first_what_differs_in_the_settings_and_only_that(two):
    lines = invoke("compare", *two).output.splitlines()
    assert lines[0] == "Settings that differ"
    assert lines[1].split() == ["calm", "wild"]
    assert lines[2].split() == ["Optimizer:", "learning", "rate", "0.1", "0.4"]
    assert lines[3].endswith("other settings are alike.")
    rest = "\n".join(lines[4:])
    assert rest.index("Numbers") < rest.index("Curves") < rest.index("Verdicts")
    assert "1 explosion" in rest
    assert rest.count("Verdict: ") == 2


def test_a_curve_that_ends_in_nan_is_drawn_to_its_end(tmp_path):
    calm = record(tmp_path / "calm.sqlite", norms(240))
    lost = record(tmp_path / "lost.sqlite", np.where(np.arange(240) >= 120, np.nan, norms(240)))
    [line] = [line for line in invoke("compare", calm, lost).output.splitlines() if line.strip().startswith("norm")]
    first, second = line.split()[-2:]
    assert len(first) == len(second) == 24
    assert "·" not in first
    assert second.strip("·") == second[:12], "the second half"


def test_compare_as_json_has_the_same(two):
    told = json.loads(invoke("compare", *two, "--json").output)
    assert told["differing_settings"] == ["Optimizer: learning rate"]
    assert [run["run"] for run in told["runs"]] == ["calm", "wild"]
    assert [run["numbers"]["Steps"] for run in told["runs"]] == ["200", "150"]
    assert all(run["diagnosis"]["verdict"] for run in told["runs"])


def test_compare_writes_a_page_with_the_curves_of_both(two, tmp_path):
    result = invoke("compare", *two, "-o", tmp_path / "both.html")
    assert result.exit_code == 0, result.output
    text = (tmp_path / "both.html").read_text()
    assert text.index("Settings that differ") < text.index("Numbers") < text.index("Gradient norm")
    assert text.count('class="plot"') == 2


def test_compare_cuts_long_texts_only_where_there_is_no_room(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    names = [tmp_path / f"20261127-2035{i}8-default-6443cf9c978e.sqlite" for i in range(2)]
    for path in names:
        record(path, np.where(np.arange(150) == 120, 90.0, norms(150)), words=event(121, "explosion", 90.0))
    shown = [(path.stem, open_run(path).material()) for path in names]
    assert "…" not in compare.text(compare.of(shown))
    assert all(path.stem in invoke("compare", *names).output for path in names)
    narrow = compare.text(compare.of([(f"{label}-{'x' * 40}", material) for label, material in shown]), 80)
    assert "…" in narrow.splitlines()[4]


def test_runs_that_were_set_alike_are_called_so(tmp_path, two):
    again = record(tmp_path / "again.sqlite", norms(100, seed=1))
    assert invoke("compare", two[0], again).output.startswith("The settings are alike.")
    assert "two runs or more" in invoke("compare", two[0]).output


# -- replay -----------------------------------------------------------------------------------------------


def test_a_replay_clips_at_the_steps_at_which_the_policy_by_itself_would(tmp_path):
    norm = norms(400)
    norm[300] = 80.0
    run = open_run(record(tmp_path / "run.sqlite", norm))
    found = replay.of(run, "median(2)", "spike(5)")
    bound = reference.policy("median(2)", norm).clip_norm
    alarm = reference.detector(detectors.spike(5), norm).alarm
    assert found.would.clipped == int(np.sum(np.float32(norm) > bound))
    assert found.would.began["explosion"] == tuple((np.flatnonzero(alarm) + 1).tolist()) == (301,)
    assert found.would.applied_norm == pytest.approx(np.minimum(norm, bound).max(), rel=1e-5)
    assert found.was.clipped == int(np.sum(norm > 2.0))
    assert found.differ > 0


def test_a_replay_of_what_the_run_had_gives_what_the_run_did(tmp_path):
    norm = norms(200)
    run = open_run(record(tmp_path / "run.sqlite", norm, policy="fixed(2)", detectors=["nonfinite()"]))
    found = replay.of(run)
    assert found.would.policy == policies.fixed(2).name
    assert (found.differ, found.first_difference) == (0, 0)
    assert "would have been treated alike" in replay.text(found)


def test_a_replay_hands_the_policy_what_the_record_knows_beside_the_norm(tmp_path):
    """`auto` bounds a linear optimizer by its reach: under a small one it clips, under a large one it does not."""
    near, far = (open_run(record(tmp_path / f"{r:g}.sqlite", norms(200), reach=r)) for r in (5.0, 1e4))
    assert replay.of(near, "auto").would.clip_norm < replay.of(far, "auto").would.clip_norm


def test_a_replay_says_that_the_norms_would_have_been_others(tmp_path):
    path = record(tmp_path / "run.sqlite", norms(60))
    assert "would have been others" in invoke("replay", path, "--policy", "median(2)").output
    told = json.loads(invoke("replay", path, "--policy", "fixed(1)", "--detector", "spike(5)", "--json").output)
    assert "would have been others" in told["caveat"]
    assert told["would"]["clipped"] == int(np.sum(norms(60) > 1.0))
    assert told["would"]["detectors"] == [repr(detectors.spike(5))]
    assert json.loads(invoke("replay", path, "--policy", "fixed(1)", "--last", "10", "--json").output)["steps"] == 10


def test_a_replay_says_what_it_cannot_do(tmp_path):
    path = record(tmp_path / "run.sqlite", norms(60))
    assert "global norm" in str(invoke("replay", path, "--policy", "per_variable_norm(1)").exception)
    assert isinstance(invoke("replay", path, "--policy", "medium(2)").exception, ConfigError)
    unknown = record(tmp_path / "unknown.sqlite", norms(10), policy=None)
    assert "--policy" in str(invoke("replay", unknown).exception)
    empty = record(tmp_path / "empty.sqlite", norms(60))
    import sqlite3

    with sqlite3.connect(empty) as db:
        db.execute("DELETE FROM steps")
    db.close()
    for command in ("replay", "suggest"):
        assert isinstance(invoke(command, empty).exception, RecordError)


# -- suggest ----------------------------------------------------------------------------------------------


def test_the_constant_is_twice_the_median_of_the_calm_norms_where_the_reach_allows_it(tmp_path, monkeypatch):
    monkeypatch.setattr(suggest, "verdict_of", lambda source: None)
    norm = norms(600)
    norm[300:320] = 500.0
    run = open_run(record(tmp_path / "run.sqlite", norm, words=event(301, "explosion", 500.0), reach=1000.0))
    calm = np.concatenate([norm[: 301 - 20 - 1], norm[301 + 50 :]])
    found = suggest.of(run)
    assert found.clip_norm == pytest.approx(2.0 * np.median(calm))
    assert found.would_clip == pytest.approx(np.mean(calm > 2.0 * np.median(calm)))
    assert found.learning_rate == found.rate_was == 0.1  # 0.2 % of the weights a step: as it should be


def test_the_constant_is_a_share_of_the_reach_where_that_is_smaller_and_the_rate_falls_with_it(tmp_path):
    norm = norms(300)
    found = suggest.of(open_run(record(tmp_path / "run.sqlite", norm, reach=8.0)))
    assert found.clip_norm == pytest.approx(suggest.SHARE * 8.0)
    # at this rate the median gradient moves the weights by 5 %
    assert found.learning_rate == pytest.approx(0.1 * suggest.SHARE / (np.median(norm) / 8.0), rel=0.05)
    assert found.learning_rate < found.rate_was


def test_for_an_adaptive_optimizer_the_first_norms_count(tmp_path):
    norm = norms(300)
    found = suggest.of(open_run(record(tmp_path / "run.sqlite", norm, reach=np.inf)))
    assert found.clip_norm == pytest.approx(min(0.1 * np.median(norm[:10]), 2 * np.median(norm)))
    assert "second moment" in found.clip_why


def test_a_rate_that_the_verdict_names_is_the_one_that_is_suggested(tmp_path, monkeypatch):
    from gradwatch.diagnosis.verdict import Cause, Diagnosis

    advice = "Lower the learning rate: try 0.04."
    cause = Cause("learning_rate_too_high", 0.9, ("The norm grew.",), advice, "")
    told = Diagnosis((cause,), 3, "The learning rate is too high.", "The norm grew.", advice)
    monkeypatch.setattr(suggest, "verdict_of", lambda source: told)
    found = suggest.of(open_run(record(tmp_path / "run.sqlite", norms(100), reach=1000.0)))
    assert (found.learning_rate, found.rate_why) == (0.04, "The norm grew.")


def test_after_a_jump_of_the_rate_the_rate_before_it_is_suggested(tmp_path):
    steps, rate = 800, np.full(800, 0.001)
    rate[500:540] = 3.0
    norm = norms(steps)
    norm[501:] *= 1e4
    loss = np.linspace(3.0, 1.0, steps)
    loss[501:] = 1e5
    words = event(502, "explosion", 1e4)
    path = record(tmp_path / "run.sqlite", norm, loss=loss, words=words, rate=rate, reach=np.inf, a_look=1)
    found = suggest.of(open_run(path))
    assert found.diagnosis.kind == "rate_jump"
    assert (found.learning_rate, found.rate_was) == (0.001, 3.0)
    assert "learning rate  0.001, it was 3" in invoke("suggest", path).output
    assert "The learning rate jumped." in invoke("runs", tmp_path).output


def test_suggest_prints_both_numbers_with_their_reasons_and_json(tmp_path):
    path = record(tmp_path / "run.sqlite", norms(100), reach=1000.0)
    output = invoke("suggest", path).output
    assert output.startswith("clip_norm ")
    assert "learning rate  0.1, as it was" in output
    told = json.loads(invoke("suggest", path, "--json").output)
    assert told["clip_norm"] == pytest.approx(2 * np.median(norms(100)))
    assert told["clip_why"]
    assert told["rate_why"]


def test_of_a_run_without_a_calm_step_nothing_is_suggested(tmp_path):
    found = suggest.of(open_run(record(tmp_path / "run.sqlite", np.full(30, np.nan), rate=np.nan)))
    assert (found.clip_norm, found.learning_rate) == (None, None)
    assert "No step was calm" in suggest.text(found)
