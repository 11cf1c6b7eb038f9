"""The statistics that causes are told by, each against a formula of its own."""

from __future__ import annotations

import math

import made_runs as runs
import numpy as np
import pytest

from gradwatch.diagnosis import case, layers
from gradwatch.diagnosis.signs import Rise, Signs


@pytest.mark.parametrize("log", [True, False])
def test_a_rise_is_the_distance_from_the_median_of_the_32_numbers_before_in_median_deviations(log):
    x = np.random.default_rng(0).lognormal(size=80)
    x[[3, 17, 50]] = [np.nan, np.inf, 400.0]
    rise = Rise(x, log=log)
    for i in range(len(x)):
        past = [v for v in x[max(0, i - 32) : i] if math.isfinite(v)]
        past = np.log(past) if log else np.array(past)
        if len(past) < 6:
            assert math.isnan(rise.far[i])
            continue
        middle = np.median(past)
        spread = max(1.4826 * np.median(abs(past - middle)), 0.1 if log else 0.1 * abs(middle))
        expected = ((math.log(x[i]) if log else x[i]) - middle) / spread if math.isfinite(x[i]) else math.nan
        assert rise.far[i] == pytest.approx(expected, nan_ok=True)
        assert rise.usual[i] == pytest.approx(math.exp(middle) if log else middle)


def test_multiplying_all_numbers_by_a_constant_changes_no_rise():
    x = np.random.default_rng(0).lognormal(size=80)
    np.testing.assert_allclose(Rise(x).far, Rise(1e6 * x).far, rtol=1e-9)
    np.testing.assert_allclose(Rise(x, log=False).far, Rise(1e6 * x, log=False).far, rtol=1e-9)


def with_loss(loss):
    columns = runs.healthy(len(loss))
    columns["loss"] = np.asarray(loss, float)
    return Signs(runs.observation(columns))


def test_that_a_loss_fell_is_as_sure_as_the_ranks_of_its_first_and_last_quarter_allow():
    # all of 5 numbers below all of 5 others: one of the C(10, 5) = 252 ways to part them
    assert with_loss(np.linspace(2, 1, 20)).learned == pytest.approx(1 - 1 / 252)
    assert with_loss(np.linspace(1, 2, 20)).learned == pytest.approx(0.0)


def test_a_loss_of_nan_is_no_progress():
    assert with_loss(np.r_[np.linspace(2, 1, 60), np.full(60, np.nan)]).learned < 0.01


def test_of_a_loss_that_nobody_knows_nothing_is_said():
    assert with_loss(np.full(100, np.nan)).learned == 0.5


def test_the_share_of_a_linear_optimizer_is_what_its_applied_norm_moves_and_of_others_what_was_measured():
    columns = runs.healthy()
    columns["applied_norm"] = np.full(runs.STEPS, 3.0)
    assert Signs(runs.observation(columns)).share == pytest.approx(3.0 / 60.0)
    columns["reach"][:] = np.inf
    columns["update_ratio"] = np.r_[np.nan, np.full(50, 0.1), np.full(runs.STEPS - 51, 0.2)]
    share = Signs(runs.observation(columns)).share
    # what the history knows before a step is of the steps before it
    np.testing.assert_allclose(share[:50], 0.1)
    np.testing.assert_allclose(share[50:-1], 0.2)


@pytest.mark.parametrize(
    ("rate", "jump"),
    [
        (np.full(60, 0.1), None),
        (np.r_[np.full(30, 0.1), np.full(30, 1.0)], 30),
        (np.r_[np.full(30, 0.1), np.full(30, 0.15)], None),
        (np.linspace(0.001, 0.1, 60), None),  # a warm-up
        (np.r_[np.full(20, 0.1), np.full(20, 0.01), np.full(20, 0.1)], None),  # a restart to what was there before
        (np.r_[np.full(5, 0.01), np.full(55, 0.1)], None),  # a warm-up of five steps
        (np.full(60, np.nan), None),
    ],
)
def test_a_jump_of_the_rate_is_one_step_that_leaves_all_before_it_behind(rate, jump):
    columns = runs.healthy(60)
    columns["learning_rate"] = rate
    assert Signs(runs.observation(columns)).jump == jump


@pytest.mark.parametrize(
    ("rate", "steps"),
    [
        (np.full(60, 0.1), 0),
        (np.minimum(np.arange(1, 61) / 20, 1.0), 20),
        (np.linspace(0.1, 0.15, 60), 0),
        (np.linspace(1.0, 0.1, 60), 0),
    ],
)
def test_a_ramp_is_counted_from_the_first_step_to_the_highest_rate(rate, steps):
    columns = runs.healthy(60)
    columns["learning_rate"] = rate
    assert Signs(runs.observation(columns)).ramp == steps


def test_a_loss_is_sudden_only_where_no_long_step_came_before_it():
    columns = runs.healthy()
    columns["loss"][80:] += 3.0
    assert Signs(runs.observation(columns)).sudden_loss == 80
    columns["norm"][78] *= 20
    assert Signs(runs.observation(columns)).sudden_loss is None


def test_one_hard_batch_is_no_sudden_loss():
    columns = runs.healthy()
    columns["loss"][80] += 3.0
    assert Signs(runs.observation(columns)).sudden_loss is None


def test_the_norm_of_a_new_kernel_is_that_of_weights_drawn_as_glorot_says():
    rng, shape = np.random.default_rng(0), (3, 3, 20, 30)
    fan_in, fan_out = 9 * 20, 9 * 30
    drawn = [np.linalg.norm(rng.normal(0, math.sqrt(2 / (fan_in + fan_out)), shape)) for _ in range(50)]
    assert layers.initial_norm(shape) == pytest.approx(np.mean(drawn), rel=0.01)


def test_the_recurrence_of_an_orthogonal_kernel_is_one_and_scales_with_it():
    q, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(16, 16)))
    for times in (1.0, 2.5):
        path = "lstm/lstm_cell/recurrent_kernel"
        run = runs.observation(runs.healthy(), variables={path: (16, 16)})
        run.layers[path]["weight_norm"][:] = np.linalg.norm(times * q)
        assert Signs(run).layers.recurrence == (path, pytest.approx(times))


@pytest.mark.parametrize(
    ("path", "recurrent"),
    [
        ("rnn/simple_rnn_cell/recurrent_kernel", True),
        ("decoder/w_hh:0", True),
        ("rnn/simple_rnn_cell/kernel", False),
        ("queue/kernel", False),
        ("dense/kernel", False),
    ],
)
def test_a_recurrent_kernel_is_known_by_its_name_and_its_square_shape(path, recurrent):
    assert bool(Signs(runs.observation(runs.healthy(), variables={path: (16, 64)})).layers.recurrent) is recurrent


def test_an_embedding_is_known_by_its_name_or_by_its_slices():
    variables = {"tokens/embeddings": (100, 8), "table": (100, 8), "dense/kernel": (8, 8)}
    run = runs.observation(runs.healthy(), variables=variables, sparse_variables=["table"])
    assert Signs(run).layers.embeddings == ["tokens/embeddings", "table"]
    assert Signs(run).layers.kernels == ["dense/kernel"]


def test_starved_is_the_least_gradient_for_the_size_of_a_kernel_beside_the_best_fed_one():
    variables = {"one/kernel": (10, 10), "two/kernel": (10, 10)}
    run = runs.observation(runs.healthy(), variables=variables, usual={"one/kernel": 1e-4, "two/kernel": 0.5})
    assert Signs(run).layers.starved == ("one/kernel", pytest.approx(1e-4 / 0.5))


def test_above_is_a_half_at_its_middle_and_rises_with_the_logarithm():
    assert case.above(3.0, 3.0) == 0.5
    assert case.above(6.0, 3.0, 2.0) == pytest.approx(1 / (1 + 0.5**2))
    assert case.above(math.inf, 3.0) == 1.0
    assert case.above(math.nan, 3.0) == case.above(0.0, 3.0) == case.above(-1.0, 3.0) == 0.0
    assert 0.0 <= case.above(1e-300, 3.0) < case.above(1e300, 3.0) <= 1.0


def test_both_is_the_geometric_mean_and_fails_with_one_of_them():
    assert case.both(0.25, 1.0) == 0.5
    assert case.both(0.0, 1.0) == 0.0


def test_each_evidence_is_asked_once():
    asked = []
    found = Signs(runs.observation(runs.healthy()))

    def evidence(of):
        asked.append(of)

    assert found.ask(evidence) is found.ask(evidence) is None
    assert asked == [found]
