"""Each cause from the numbers that it makes, and none of them from those of a healthy run."""

from __future__ import annotations

import time
from dataclasses import replace

import made_runs as runs
import numpy as np
import pytest

import gradwatch
from gradwatch.diagnosis.causes import CAUSES, HEALTHY, KINDS
from gradwatch.diagnosis.observation import MOST
from gradwatch.diagnosis.signs import Signs

AT = 80  # index of the step at which a fault begins, which is step 81


def learning_rate_too_high():
    columns = runs.healthy()
    columns["reach"] = np.full(runs.STEPS, 0.5)
    columns["loss"] = 2.0 + 0.5 * np.random.default_rng(1).random(runs.STEPS)
    columns["norm"][40:] *= 10
    return runs.observation(columns)


def warmup_too_short():
    columns = runs.healthy()
    columns["reach"][:] = np.inf
    columns["update_ratio"] = np.where(np.arange(runs.STEPS) < 5, 0.3, 0.1)
    columns["learning_rate"] = 0.1 * np.minimum((np.arange(runs.STEPS) + 1) / 6, 1.0)
    columns["loss"] = 2.0 + 0.5 * np.random.default_rng(1).random(runs.STEPS)
    return runs.observation(columns)


def bad_batch():
    columns = runs.healthy()
    columns["input_rms"][AT] *= 300
    columns["norm"][AT] *= 200
    columns["loss"][AT] *= 100
    return runs.observation(columns, events=[runs.event("explosion", AT + 1)])


def corrupt_labels():
    columns = runs.healthy()
    columns["loss"][AT:] += 2.5
    columns["norm"][AT:] *= 3
    return runs.observation(columns)


def nonfinite_input():
    columns = runs.healthy()
    columns["input_rms"][AT] = np.inf
    columns["norm"][AT] = columns["loss"][AT] = np.nan
    return runs.observation(columns, events=[runs.event("nonfinite", AT + 1, np.nan)])


def loss_operation():
    columns = runs.healthy()
    columns["norm"][AT] = np.nan
    return runs.observation(columns, events=[runs.event("nonfinite", AT + 1, np.nan)])


def half_precision_overflow():
    columns = runs.healthy()
    columns["norm"][AT::4] = np.inf
    columns["loss"][AT::4] = np.inf
    columns["loss_scale"] = np.full(runs.STEPS, 1024.0)
    return runs.observation(columns, precision="mixed_float16")


def loss_scale():
    columns = runs.healthy()
    columns["norm"][AT::6] = np.inf
    columns["loss_scale"] = np.full(runs.STEPS, 65536.0)
    return runs.observation(columns, precision="mixed_float16")


def bad_start():
    columns = runs.healthy()
    columns["loss"] = columns["loss"] * np.linspace(3000, 10, runs.STEPS)
    return runs.observation(columns, start=12.0)


def exploding_recurrence():
    columns = runs.healthy()
    columns["loss"] = columns["loss"] * np.geomspace(3000, 10, runs.STEPS)
    variables = {"rnn/kernel": (4, 16), "rnn/recurrent_kernel": (16, 16), "head/kernel": (16, 5)}
    # a new orthogonal matrix of 16 x 16 has a norm of 4, as Glorot's
    return runs.observation(columns, variables=variables, start={"rnn/recurrent_kernel": 2.5})


def vanishing():
    columns = runs.healthy()
    columns["loss"] = 2.0 * np.exp(0.1 * np.random.default_rng(1).normal(size=runs.STEPS))
    return runs.observation(columns, usual={"one/kernel": 1e-7, "one/bias": 1e-7, "head/kernel": 1.0})


def dead_run():
    columns = runs.healthy()
    columns["learning_rate"][:] = 1e-7
    columns["reach"][:] = 6e7
    columns["loss"] = 2.0 * np.exp(0.1 * np.random.default_rng(1).normal(size=runs.STEPS))
    return runs.observation(columns)


def embedding_rows():
    columns = runs.healthy()
    columns["norm"][AT] *= 30
    variables = {"tokens/embeddings": (100, 8), "mix/kernel": (8, 16), "head/kernel": (16, 5)}
    shares = {"tokens/embeddings": 0.97, "mix/kernel": 0.02, "head/kernel": 0.01}
    usual = {"tokens/embeddings": 0.3, "mix/kernel": 1.0, "head/kernel": 1.0}
    return runs.observation(
        columns,
        variables=variables,
        usual=usual,
        events=[runs.event("explosion", AT + 1, **shares)],
        inputs={"input": "int32"},
    )


def odd_replica():
    columns = runs.healthy()
    columns["replica_ratio"] = np.full(runs.STEPS, 1.2)
    columns["replica"] = np.arange(runs.STEPS) % 2.0
    columns["replica_ratio"][AT:] = 40.0
    columns["replica"][AT:] = 1.0
    return runs.observation(columns, replicas="2")


def rate_jump():
    columns = runs.healthy()
    columns["learning_rate"][AT:] *= 50
    columns["reach"][AT:] /= 50
    columns["norm"][AT + 2 :] *= 20
    columns["loss"][AT + 2 :] *= 20
    return runs.observation(columns)


def unseen():
    columns = runs.healthy()
    columns["norm"][:] = columns["loss"][:] = np.nan
    found = runs.observation(columns)
    return replace(found, step=found.step + 1024, began=752, nonfinite_since=760)


def healthy():
    return runs.observation(runs.healthy())


MADE = {f.__name__: f for f in (
    *(learning_rate_too_high, warmup_too_short, bad_batch, corrupt_labels, nonfinite_input, loss_operation),
    *(half_precision_overflow, loss_scale, bad_start, exploding_recurrence, vanishing, dead_run, embedding_rows),
    *(odd_replica, rate_jump, unseen, healthy),
)}  # fmt: skip

#: Those that begin at step AT + 1; what acts from the start begins at step 1.
AT_STEP = ("bad_batch", "corrupt_labels", "nonfinite_input", "loss_operation", "rate_jump", "odd_replica")
AT_STEP = (*AT_STEP, "embedding_rows", "half_precision_overflow", "loss_scale")
FROM_START = ("bad_start", "exploding_recurrence", "vanishing", "dead_run")


def test_every_cause_of_the_table_has_a_run_that_it_makes():
    assert set(MADE) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_cause_is_named_first_in_the_run_that_it_makes(kind):
    found = gradwatch.diagnose(MADE[kind]())
    assert found.kind == kind, {cause.kind: round(cause.confidence, 2) for cause in found.causes}
    assert found.healthy == (kind == "healthy")


@pytest.mark.parametrize("kind", AT_STEP)
def test_the_first_bad_step_is_the_one_at_which_the_fault_began(kind):
    assert gradwatch.diagnose(MADE[kind]()).first_step == AT + 1


@pytest.mark.parametrize("kind", FROM_START)
def test_what_acts_from_the_start_is_dated_to_the_first_step(kind):
    assert gradwatch.diagnose(MADE[kind]()).first_step == 1


@pytest.mark.parametrize("kind", KINDS)
def test_evidence_is_whole_sentences_and_the_advice_says_what_to_do(kind):
    cause = gradwatch.diagnose(MADE[kind]()).causes[0]
    assert cause.evidence
    assert all(text[0].isalnum() and text.endswith(".") for text in (*cause.evidence, cause.advice))
    assert any(character.isdigit() for text in cause.evidence for character in text)
    assert cause.runbook == f"docs/diagnosis.md#{kind.replace('_', '-')}"


@pytest.mark.parametrize("seed", range(30))
def test_runs_that_learn_are_healthy_whatever_the_noise(seed):
    assert gradwatch.diagnose(runs.observation(runs.healthy(seed=seed))).healthy


def test_a_rate_that_is_too_high_is_advised_with_the_rate_at_which_a_step_is_as_long_as_usual():
    found = gradwatch.diagnose(learning_rate_too_high())
    # norms of 4 at the start over a reach of 0.5, where 0.05 is usual
    columns = learning_rate_too_high()
    share = np.median(columns["norm"][:5] / 0.5)
    expected = 0.1 * 0.05 / share
    told = float(found.next.split("try ")[1].split()[0])
    assert told == pytest.approx(expected, rel=0.3)


def test_clipping_that_hides_the_norm_does_not_hide_the_jump_of_the_rate():
    run = rate_jump()
    run.columns["applied_norm"][:] = 1.0
    assert gradwatch.diagnose(run).kind == "rate_jump"


def test_a_warm_up_that_rises_evenly_is_no_jump():
    columns = runs.healthy()
    columns["learning_rate"] = 0.1 * np.minimum((np.arange(runs.STEPS) + 1) / 40, 1.0)
    assert gradwatch.diagnose(runs.observation(columns)).healthy


def test_a_loss_scaler_that_finds_its_scale_in_the_first_steps_is_healthy():
    columns = runs.healthy()
    columns["norm"][:8] = np.inf
    columns["loss_scale"] = np.full(runs.STEPS, 4096.0)
    assert gradwatch.diagnose(runs.observation(columns, precision="mixed_float16")).healthy


def test_a_nan_that_comes_out_of_an_explosion_is_not_called_an_operation_of_the_loss():
    columns = runs.healthy()
    columns["reach"][:] = 0.5
    columns["norm"][60:] *= np.geomspace(1, 1e12, runs.STEPS - 60)
    columns["loss"][60:] *= np.geomspace(1, 1e12, runs.STEPS - 60)
    columns["norm"][90:] = columns["loss"][90:] = np.nan
    found = gradwatch.diagnose(runs.observation(columns))
    assert found.kind == "learning_rate_too_high"


def test_a_row_of_the_table_is_all_that_a_cause_needs():
    assert len({row.kind for row in CAUSES}) == len(CAUSES)
    assert all(row.verdict.endswith(".") and row.advice.endswith(".") for row in CAUSES)


@pytest.mark.parametrize("steps", [1, 2, 5, 11, 40])
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_of_a_few_steps_is_judged_without_an_error(kind, steps):
    run = MADE[kind]()
    short = {name: column[:steps] for name, column in run.columns.items()}
    cut = type(run)(run.step[:steps], short, run.events, run.layers, run.usual, run.facts)
    assert gradwatch.diagnose(cut).causes


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, 1e30])
@pytest.mark.parametrize("name", ["norm", "applied_norm", "loss", "reach", "learning_rate", "input_rms"])
def test_a_column_of_nothing_but_one_number_is_judged_without_an_error(name, value):
    columns = runs.healthy()
    columns[name] = np.full(runs.STEPS, value)
    assert gradwatch.diagnose(runs.observation(columns)).causes


def test_a_run_of_which_only_norms_are_known_is_judged_by_them():
    columns = {"norm": runs.healthy()["norm"]}
    run = runs.observation(columns)
    bare = type(run)(run.step, run.columns)
    assert gradwatch.diagnose(bare).healthy


def test_a_run_whose_weights_were_lost_at_once_is_never_called_healthy():
    """As `gradwatch demo` without protection: a usual update ratio, then two steps to NaN for good."""
    columns = runs.healthy()
    columns["norm"][AT : AT + 2] = columns["norm"][:AT].mean() * np.array([100.0, 1e12])
    columns["loss"][AT + 1] = 1e10
    columns["norm"][AT + 2 :] = columns["loss"][AT + 2 :] = np.nan
    found = gradwatch.diagnose(runs.observation(columns, events=[runs.event("explosion", AT + 1)]))
    assert found.causes[0].kind == "learning_rate_too_high"
    assert found.first_step == AT + 1
    third = columns["learning_rate"][AT] / 3
    assert f"try {third:.2g} instead" in found.causes[0].advice
    columns["input_rms"][AT] *= 300  # now the data explain it
    assert gradwatch.diagnose(runs.observation(columns)).causes[0].kind == "bad_batch"


def adam_after_a_jump(steps=800, back=True):
    """Adam at 0.001, and at 3.0 for steps 501 to 540: the weights and the loss are blown up and stay so."""
    columns = runs.healthy(steps)
    columns["reach"][:] = np.inf
    columns["update_ratio"][:] = 0.004
    columns["learning_rate"][:] = 1e-3
    columns["learning_rate"][500 : 540 if back else steps] = 3.0
    columns["update_ratio"][501:541] = 1.0
    columns["update_ratio"][541:] = 1e-6  # the weights are so large that a usual step does not move them
    columns["norm"][501:] *= 1e4
    columns["applied_norm"] = np.minimum(columns["norm"], 1.0)
    columns["loss"][501:] = 1e5 * np.exp(0.1 * np.random.default_rng(2).normal(size=steps - 501))
    return runs.observation(columns, events=[runs.event("explosion", 502)])


@pytest.mark.parametrize("back", [True, False])
@pytest.mark.parametrize("steps", [800, 3000])
def test_a_run_that_a_jump_of_the_rate_harmed_is_not_told_to_raise_the_rate(steps, back):
    found = gradwatch.diagnose(adam_after_a_jump(steps, back))
    assert (found.kind, found.first_step) == ("rate_jump", 501), str(found)
    others = {cause.kind: cause.confidence for cause in found.causes}
    assert others.get("dead_run", 0.0) < 0.5
    assert "0.001" in found.next
    assert "Raise" not in found.next
    assert found.outcome == "lost"
    assert "Restore a checkpoint from before step 501" in found.next


def test_weights_that_hold_a_nan_are_not_called_an_operation_of_the_loss_for_certain():
    columns = runs.healthy(800)
    columns["norm"][410:] = columns["loss"][410:] = np.nan
    found = gradwatch.diagnose(runs.observation(columns, events=[runs.event("nonfinite", 411, np.nan)]))
    assert (found.first_step, found.outcome, found.nonfinite_since) == (411, "lost", 411)
    assert "into the weights" in found.verdict
    assert found.confidence < 0.7
    assert "Restore a checkpoint from before step 411: no finite loss came back since step 411." in found.next


def test_a_jump_that_healed_long_ago_does_not_head_a_healthy_run():
    steps = 3000
    columns = runs.healthy(steps)
    columns["learning_rate"][500:] *= 3
    columns["norm"][501:520] *= 20
    columns["loss"][501:520] *= 20
    found = gradwatch.diagnose(
        runs.observation(columns, events=[runs.event("vanishing", step, 0.1) for step in range(2000, 2900, 100)])
    )
    assert found.healthy, str(found)


# -- what it costs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_evidence_of_every_cause_is_cheap_on_as_many_steps_as_it_is_ever_given(kind):
    """It runs beside the training. 20 ms is the rule; the bound is for a busy machine, and catches what is squared."""
    columns = runs.healthy(MOST)
    for name, factor in (("norm", 50.0), ("loss", 5.0), ("input_rms", 50.0)):
        columns[name][2000:2010] *= factor
    columns["norm"][3000::40] = np.nan
    events = [runs.event("explosion", 2001), runs.event("nonfinite", 3001, norm=np.nan)]
    row = {row.kind: row for row in (*CAUSES, HEALTHY)}[kind]
    signs = Signs(runs.observation(columns, events=events))
    began = time.process_time()
    signs.ask(row.evidence)
    assert time.process_time() - began < 1.0


def test_a_run_that_has_learned_all_there_is_is_not_told_to_raise_the_rate():
    columns = runs.healthy(1024)
    columns["loss"] *= 1e-13  # the newest steps; when it fell is not known any more
    columns["norm"] *= 1e-7
    columns["update_ratio"][:] = 1e-9
    columns["reach"][:] = np.inf
    found = gradwatch.diagnose(runs.observation(columns))
    assert found.healthy, str(found)
    assert "hardly anything is left to learn" in str(found)
