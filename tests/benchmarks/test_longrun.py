"""The long run counts what the policy did, and its events are what they are called."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

pytestmark = pytest.mark.tf

longrun = pytest.importorskip("longrun")

from gradwatch import policies  # noqa: E402


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(longrun, "JIT", False)


def test_a_policy_that_never_acts_is_the_unclipped_run_bit_for_bit():
    found = longrun.long_run(lambda: policies.fixed(1e6), 20)
    assert found["acted"] == 0
    assert found["ratio"] == 1.0
    assert found["ratio_by_chance"] != 1.0
    assert [w["steps"] for w in found["by_fifths"]] == [4] * 5


def test_a_window_counts_its_own_steps_in_which_the_policy_acts():
    run = longrun.Run(policies.median(1e-3, warmup_steps=4, winsorise=2e3), longrun.RATE)
    first, second = run.train(8), run.train(4)
    assert first.acted == 0.5
    assert second.acted == 1.0
    assert second.clip_norm == pytest.approx(1e-3 * second.median, rel=0.05)


def test_a_run_that_is_resumed_in_new_objects_is_the_run_that_went_through():
    found = longrun.resumed(lambda: policies.percentile(50, warmup_steps=2), 12)
    assert found["steps"] == [24, 24]
    assert found["clip_norm"][0] == found["clip_norm"][1]
    assert found["clipped_steps"][0] == found["clipped_steps"][1] > 0
    assert found["weights_equal_bit_for_bit"]


def test_frozen_layers_have_gradients_from_the_step_on_at_which_they_are_unfrozen():
    case = longrun.EVENTS["unfreezing"]
    run = longrun.Run(policies.observe(), case.rate(5))
    case.start(run)
    run.train(5)
    frozen = dict(run.monitor.snapshot().layer_norms)
    case.halfway(run, 5)
    run.train(1)
    norms = dict(run.monitor.snapshot().layer_norms)
    assert sum(x > 0 for x in frozen.values()) == 2  # kernel and bias of the last layer
    assert all(x > 0 for x in norms.values())


def test_the_rate_is_tenfold_and_the_schedule_restarts_halfway():
    tenfold, restart = longrun.EVENTS["rate x 10"], longrun.EVENTS["schedule restarts"]
    run = longrun.Run(None, tenfold.rate(5))
    tenfold.halfway(run, 5)
    assert float(run.optimizer.learning_rate) == pytest.approx(longrun.RATE)
    rate = restart.rate(100)
    assert float(rate(99)) < 0.01 * longrun.RATE
    assert float(rate(100)) == pytest.approx(longrun.RATE)


def test_the_report_says_which_goal_is_missed(tmp_path, monkeypatch, capsys):
    window = {"steps": 4, "acted": 0.02, "clip_norm": 2.0, "median": 1.0}
    case = {"before": window, "right after": window, "rest": window, "loss": {}, "ratio": 1.25}
    one = {"steps": 20, "acted": 0.0, "by_fifths": [window] * 5, "bounds": {"quantile": 1}, "ratio_by_chance": 0.98}
    found = {
        "policy": "mine",
        "long runs": [{**one, "ratio": 0.97}, {**one, "acted": 0.04, "ratio": 1.04}],
        "events": {"rate x 10": case},
        "resumed": {"weights_equal_bit_for_bit": False, "clip_norm": [1.0, 1.0]},
    }
    monkeypatch.setattr(longrun, "measure", lambda policy, steps, part, seeds: found)
    output = tmp_path / "out.json"
    monkeypatch.setattr(sys, "argv", ["longrun.py", "--quick", "--output", str(output)])
    longrun.main()
    lines = capsys.readouterr().out.splitlines()
    acts = next(line for line in lines if line.startswith("| acts"))
    assert "| 2.00 % " in acts
    assert acts.endswith("| **missed** |")
    loss = next(line for line in lines if line.startswith("| final loss at most"))
    # two seeds that differ by 2 % each: their mean by 2 % / sqrt(2)
    assert "+0.50 %; chance alone ± 1.41 %" in loss
    assert loss.endswith("| met        |")
    assert next(line for line in lines if line.startswith("resumed")).endswith("**missed**")
    assert "1.250" in next(line for line in lines if line.startswith("| rate x 10"))
    assert "clipped by: quantile 5.00 % of the steps" in lines
    assert json.loads(output.read_text())["policy"] == "mine"


def test_a_wrong_argument_of_a_policy_ends_before_anything_is_trained(monkeypatch, capsys):
    monkeypatch.setattr(longrun, "measure", lambda *_: pytest.fail("it trains"))
    monkeypatch.setattr(sys, "argv", ["longrun.py", "--policy", "percentile(900)"])
    with pytest.raises(SystemExit):
        longrun.main()
    assert "900" in capsys.readouterr().err


def test_every_run_of_a_seed_sees_the_same_batches():
    a, b = longrun.Run(None, 0.0), longrun.Run(None, 0.0)
    a.train(3), b.train(3)
    assert np.array_equal(a.losses, b.losses)
    assert len({float(x) for x in a.losses}) == 3


def test_the_bound_that_clips_is_the_one_that_is_counted():
    def update(xp, state, norms):
        # the first bound is the smaller one for five steps, then the second; both clip every step
        first = 1e-4 * (1.0 + state["t"])
        bounds = {"first_bound": first, "second_bound": 5e-4 + 0.0 * first, "score": first}
        return {"t": state["t"] + 1.0}, xp.minimum(first, bounds["second_bound"]), bounds

    run = longrun.Run(longrun.Policy("mine", lambda _: {"t": np.zeros((), np.float32)}, update), longrun.RATE)
    run.train(8)
    # in the fifth step both bounds are 5e-4 to the last digits
    counts = {name: int(count) for name, count in run.counts.items()}
    assert counts["first"] in (4, 5)
    assert counts["second"] in (3, 4)
    assert set(counts) == {"first", "second"}


def test_a_policy_of_one_bound_is_left_as_it_is():
    policy = policies.percentile()
    assert longrun.counted(policy) == (policy, {})
