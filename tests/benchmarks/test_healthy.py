"""Recorded healthy runs are what they say, and harm is judged by the twin alone."""

from __future__ import annotations

import harm
import healthy
import numpy as np
import pytest


def test_what_was_recorded_are_150_runs_of_a_dozen_kinds_and_more():
    with np.load(healthy.RESULTS) as file:
        runs = {tuple(name.split("/")[::2]) for name in file.files}
    assert len(runs) >= 150
    assert {kind for kind, _ in runs} == {*healthy.DESIGN, *healthy.JUDGED}
    assert healthy.RESULTS.stat().st_size < 4e6


def test_no_kind_is_in_both_splits():
    design, judged = ({name.split("/")[0] for name in healthy.load(split)} for split in ("design", "judged"))
    assert design == set(healthy.DESIGN)
    assert judged == set(healthy.JUDGED)
    assert not design & judged


def test_packing_keeps_norms_to_a_percent_and_leaves_out_what_is_none(tmp_path):
    norms, losses = np.array([1e-4, 3.0, np.inf, np.nan, 0.0, 7e4]), np.arange(6.0)
    np.savez_compressed(tmp_path / "x.npz", **{"perceptron/0/00": healthy.packed(losses, norms)})
    [(got, kept)] = healthy.load("design", tmp_path / "x.npz").values()
    assert got == pytest.approx([1e-4, 3.0, 7e4], rel=1e-2)
    assert kept.tolist() == [0, 1, 5]


def test_recording_one_kind_anew_leaves_the_others_as_they_were(tmp_path):
    runs = {f"{kind}/0/00": np.full((2, 5), i, np.float16) for i, kind in enumerate(("gan", "sarsa"))}
    np.savez_compressed(tmp_path / "runs.npz", **runs)
    (tmp_path / "runs").mkdir()
    np.savez_compressed(tmp_path / "runs" / "sarsa-3.npz", **{"0": np.full((2, 5), 9, np.float16)})
    healthy.publish(tmp_path / "runs", tmp_path / "runs.npz")
    with np.load(tmp_path / "runs.npz") as file:
        assert set(file.files) == {"gan/0/00", "sarsa/0/03"}
        assert file["gan/0/00"].tobytes() == runs["gan/0/00"].tobytes()


@pytest.mark.parametrize("fault", ["a batch x 100", "all batches empty", "20 batches mixed", "a batch of NaN"])
def test_a_fault_of_a_batch_leaves_the_number_of_the_step_alone(fault):
    batches = [(np.int32(i), np.ones((4, 3), np.float32), np.arange(4)) for i in range(harm.STEPS)]
    plan = harm.Plan(batches, np.ones(harm.STEPS))
    harm.FAULTS[fault](plan, np.random.default_rng(0))
    assert [int(batch[0]) for batch in plan.batches] == list(range(harm.STEPS))
    changed = plan.batches[harm.ONSET]
    assert not all(np.array_equal(x, y) for x, y in zip(changed[1:], (np.ones((4, 3)), np.arange(4))))


def levels(after: float, noise: float = 0.02) -> np.ndarray:
    loss = np.where(np.arange(harm.STEPS) < harm.ONSET, 1.0, after)
    return loss + noise * np.random.default_rng(0).standard_normal(harm.STEPS)


@pytest.mark.parametrize(("after", "harmed"), [(1.0, False), (1.08, False), (1.15, True), (np.nan, True), (0.5, False)])
def test_harmed_is_who_stays_a_tenth_above_the_twin(after, harmed):
    assert harm.was_harmed(levels(after), levels(1.0), harm.ONSET) is harmed


def test_under_noise_a_tenth_is_within_what_losses_do():
    assert not harm.was_harmed(levels(1.15, noise=0.3), levels(1.0, noise=0.3), harm.ONSET)


def test_who_is_back_within_fifty_steps_was_not_harmed():
    losses = levels(1.0)
    losses[harm.ONSET : harm.ONSET + 50] += 5
    assert not harm.was_harmed(losses, levels(1.0), harm.ONSET)


def test_precision_and_recall_count_what_was_said_and_what_was_true():
    def run(fault: str, after: float, said: str) -> harm.Run:
        return harm.Run("perceptron", 0, fault, harm.ONSET, said, [], levels(after), levels(1.0))

    runs = [run("nothing", 1.0, "harmless"), run("a layer x 30", 2.0, "harmful"), run("a layer x 30", 2.0, "fatal")]
    runs += [run("a layer x 1.5", 1.0, "harmful"), run("a layer x 30", 2.0, "harmless")]
    found = harm.score(runs, verbose=False)
    assert (found["precision"], found["recall"], found["harmed"]) == (2 / 3, 2 / 3, 3)
    assert ["a layer x 30", 2, 1, 0, 0] in found["faults"]
    assert "66.7% (2 of 3)" in harm.report(found)
