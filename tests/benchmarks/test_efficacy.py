"""The trainer trains many runs side by side without mixing them, and the tables say what the runs did."""

from __future__ import annotations

import json
import math
import sys

import numpy as np
import pytest

pytestmark = pytest.mark.tf

efficacy = pytest.importorskip("efficacy")
import peers  # noqa: E402
import tasks  # noqa: E402

from gradwatch.core.guard import Guard  # noqa: E402
from gradwatch.core.xp import NUMPY  # noqa: E402


def test_a_run_among_others_is_the_run_alone():
    task = tasks.TASKS["digits"]()
    many = efficacy.train(
        task, 0.03, 1, {"none": peers.Unclipped(), "a": peers.Fixed(0.1), "b": peers.Fixed(1.0)}, steps=130
    )
    alone = efficacy.train(task, 0.03, 1, {"b": peers.Fixed(1.0)}, steps=130)
    assert many[2]["final"] == pytest.approx(alone[0]["final"], rel=1e-4)
    assert many[2]["clipped"] == alone[0]["clipped"] > 0
    assert many[0]["final"] != many[1]["final"]
    assert len(many[0]["norms"]) == 130
    assert "norms" not in many[1]


@pytest.mark.parametrize("optimizer", ["sgd", "sgd-plain", "sgd-nesterov", "adam"])
def test_the_optimizers_are_those_of_keras(optimizer):
    """Oracle: keras.optimizers on the same gradients; a skipped step changes nothing, slots included."""
    keras = pytest.importorskip("keras")
    import tensorflow as tf

    task = tasks.TASKS["heavy-tails"]()._replace(optimizer=optimizer)
    trainer = efficacy.Trainer(task, 0.01, runs=2, seed=0)
    variables = [tf.Variable(p[0]) for p in trainer.params]
    theirs = (
        keras.optimizers.Adam(0.01, epsilon=1e-8)
        if optimizer == "adam"
        else keras.optimizers.SGD(0.01, 0.0 if optimizer == "sgd-plain" else 0.9, nesterov=optimizer == "sgd-nesterov")
    )
    rng = np.random.default_rng(0)
    for t in range(20):
        grads = [rng.normal(size=p.shape).astype(np.float32) for p in trainer.params]
        skip = np.array([t == 10, False])
        before = [p.numpy() for p in trainer.params]
        changes = trainer.apply(
            [tf.constant(g) for g in grads], np.full((2, len(grads)), 0.5, np.float32), skip, np.float32(0.01)
        )
        for i, (p, old) in enumerate(zip(trainer.params, before)):
            expected = [np.linalg.norm(p.numpy()[k] - old[k]) for k in range(2)]
            assert changes.numpy()[:, i] == pytest.approx(expected, rel=1e-2, abs=1e-6)
        if not skip[0]:
            theirs.apply_gradients(zip([tf.constant(0.5 * g[0]) for g in grads], variables))
    for ours, theirs_value in zip(trainer.params, variables):
        assert ours[0].numpy() == pytest.approx(theirs_value.numpy(), rel=1e-4, abs=1e-6)
        assert not np.allclose(ours[0], ours[1])


def test_a_scale_of_zero_drops_a_nan_and_any_other_keeps_it():
    import tensorflow as tf

    trainer = efficacy.Trainer(tasks.TASKS["heavy-tails"](), 0.1, runs=2, seed=0)
    grads = [tf.constant(np.full(p.shape, np.nan, np.float32)) for p in trainer.params]
    trainer.apply(grads, np.array([[0, 0], [1, 1]], np.float32), np.array([False, False]), np.float32(0.1))
    assert np.all(np.isfinite(trainer.params[0][0]))
    assert np.all(np.isnan(trainer.params[0][1]))


@pytest.mark.parametrize("name", list(efficacy.EVERY))
def test_every_task_starts_with_finite_loss_and_gradients_of_every_parameter(name):
    task = efficacy.EVERY[name]()
    trainer = efficacy.Trainer(task, task.rates[0], runs=2, seed=3)
    loss, score, norms, weights, _ = trainer.gradients(*task.batch(np.random.default_rng(0), 0))
    assert np.all(np.isfinite(loss))
    assert np.all(np.isfinite(score))
    assert norms.shape == (2, len(trainer.params))
    assert np.all(np.isfinite(norms) & (norms.numpy() > 0))
    assert norms[0].numpy() == pytest.approx(norms[1].numpy(), rel=1e-4)
    expected = [float(np.linalg.norm(p[0].numpy())) for p in trainer.params]
    assert weights[0].numpy() == pytest.approx(expected, rel=1e-4)


def test_a_run_that_ends_no_better_than_it_began_has_diverged():
    fine = efficacy.summary(np.linspace(4, 1, 200), 4.0)
    assert not fine["diverged"]
    assert fine["final"] == pytest.approx(np.linspace(4, 1, 200)[-10:].mean())
    assert fine["steps_lost"] == 0
    for ending in (math.nan, 9.0):
        dead = efficacy.summary(np.r_[np.linspace(4, 1, 100), np.full(100, ending)], 4.0)
        assert dead["diverged"]
        assert dead["final"] == 4.0
        assert dead["steps_lost"] > 90


def lines():
    """Two cells, two seeds: "mine" is 1 % worse than the best constant in one and better in the other."""
    finals = {
        (0.1, "none"): (1.00, 1.00),
        (0.1, "fixed 1"): (1.10, 1.30),
        (0.1, "mine"): (1.01, 1.01),
        (1.0, "none"): (4.0, 4.0),
        (1.0, "fixed 1"): (2.00, 2.20),
        (1.0, "mine"): (1.80, 4.0),
    }
    return [
        {
            "task": "rnn-sgd",
            "rate": rate,
            "method": method,
            "seed": seed,
            "steps": 10,
            "final": final,
            "diverged": final >= 4,
            "clipped_last_half": 0.1,
            "steps_lost": 3,
        }
        for (rate, method), values in finals.items()
        for seed, final in enumerate(values)
    ]


def test_the_oracle_is_the_best_constant_of_each_cell_and_none_is_one():
    cells = efficacy.Cells(lines(), 10)
    assert [cells.oracle(*cell) for cell in cells.cells] == ["none", "fixed 1"]
    g = efficacy.goals(cells, "mine")
    assert [row["ratio"] for row in g["cells"]] == [pytest.approx(1.01), pytest.approx(2.9 / 2.1)]
    assert g["within_2_percent"] == 0.5
    assert g["better"] == 0
    assert g["died"] == 1
    assert g["worst_over_none_where_none_is_best"] == pytest.approx(1.01)


def test_a_group_counts_once_every_method_of_its_task_has_run():
    found = lines()
    cells = efficacy.Cells(found[:-1], 10)
    assert cells.incomplete == [(found[-1]["task"], found[-1]["rate"], found[-1]["seed"])]
    assert [len(cells.values(*cell, name)) for cell in cells.cells for name in cells.names] == [2, 2, 2, 1, 1, 1]
    # a method that only one task has makes no other task incomplete, and may be that task's oracle
    guarded = [
        {**x, "task": "digits", "method": "fixed 1, NaN dropped", "final": 0.5} for x in found if x["rate"] == 0.1
    ]
    cells = efficacy.Cells([*found, *[{**x, "task": "digits"} for x in found], *guarded], 10)
    assert len(cells.incomplete) == 2
    assert cells.oracle("digits", 0.1) == "fixed 1, NaN dropped"
    assert cells.oracle("rnn-sgd", 0.1) == "none"


def test_constants_with_a_guard_run_where_the_data_hold_nan():
    guarded = [name for name in efficacy.methods("digits") if name.endswith("NaN dropped")]
    assert len(guarded) == len(efficacy.CONSTANTS)
    assert not [name for name in efficacy.methods("rnn-sgd") if name.endswith("NaN dropped")]
    rule = efficacy.methods("digits")["fixed 0.1, NaN dropped"]()
    assert rule.step(np.array([np.nan, 1.0]), 1.0).scale.tolist() == [0, 0]
    assert rule.step(np.array([3.0, 4.0]), 1.0).scale == pytest.approx(0.02, rel=1e-6)


def test_norms_are_kept_of_healthy_runs_without_clipping_only(tmp_path):
    calm = np.random.default_rng(0).lognormal(0, 0.3, 1000).tolist()
    run = {"task": "digits", "method": "none", "seed": 0, "rate": 0.1, "final": 1.0, "diverged": False, "norms": calm}
    runs = [
        run,
        {**run, "seed": 1, "norms": [*calm[:500], *[100 * x for x in calm[:500]]]},  # rises for good
        {**run, "seed": 2, "norms": [*calm[:-1], math.inf]},
        {**run, "rate": 0.2, "final": 1.01},
        {**run, "rate": 0.4, "final": 1.2},  # past the best rate, and worse
        {**run, "rate": 0.05, "final": 1.5},
        {**run, "rate": 0.05, "seed": 1, "final": 2.0, "diverged": True},
        {**run, "seed": 3, "method": "fixed 1"},
    ]
    path = tmp_path / "norms.npz"
    efficacy.save_norms(runs, path)
    with np.load(path) as file:
        assert set(file.files) == {"digits-0.1-0", "digits-0.2-0", "digits-0.05-0"}
        assert file["digits-0.1-0"] == pytest.approx(np.array(calm), rel=1e-6)


def test_the_report_marks_what_died():
    text = efficacy.report(efficacy.Cells(lines(), 10))
    mine = next(line for line in text.splitlines() if line.startswith("| mine"))
    assert "(1 of 2 died)**" in mine
    assert "1.01" in mine


def test_learning_rate_sensitivity_is_the_mean_excess_over_the_best_rate():
    cells = efficacy.Cells(lines(), 10)
    assert efficacy.sensitivity(cells, "rnn-sgd", "none") == pytest.approx((1 + 4) / 2 - 1)


def test_a_stopped_run_goes_on_where_it_was(tmp_path, monkeypatch, capsys):
    """Finished groups are not trained again; a line cut off by the stop is."""
    trained = []

    def train(task, rate, seed, rules, steps):
        trained.append((rate, seed, tuple(rules)))
        run = {"seed": seed, "rate": rate, "steps": steps, "final": 1.0, "diverged": False, "clipped_last_half": 0.0}
        return [{"method": m, **run, "steps_lost": 0, "group_seconds": 0.0} for m in rules]

    monkeypatch.setattr(efficacy, "train", train)
    monkeypatch.setattr(efficacy, "save_norms", lambda lines: pytest.fail("it replaces the published norms"))
    file, output = tmp_path / "lines.jsonl", tmp_path / "out.json"
    flags = ["--tasks", "digits", "--seeds", "1", "--steps", "5", "--methods", "none,fixed 1"]
    monkeypatch.setattr(sys, "argv", ["efficacy.py", *flags, "--lines", str(file), "--output", str(output)])
    efficacy.main()
    assert len(trained) == 4
    kept = file.read_text().splitlines()
    file.write_text("\n".join(kept[:3]) + "\n" + kept[3][:20])
    trained.clear()
    efficacy.main()
    assert [(rate, rules) for rate, _, rules in trained] == [
        (0.005, ("fixed 1",)),
        (0.02, ("none", "fixed 1")),
        (0.1, ("none", "fixed 1")),
    ]
    trained.clear()
    efficacy.main()
    assert not trained
    assert len(json.loads(output.read_text())["cells"]) == 8
    capsys.readouterr()


@pytest.mark.parametrize("name", efficacy.OURS)
def test_gradwatchs_policies_do_what_the_guard_does(name):
    rule, guard = efficacy.Gradwatch(efficacy.OURS[name]()), Guard(efficacy.OURS[name](), ())
    rng, state = np.random.default_rng(0), guard.init(3)
    for t in range(300):
        norms = rng.lognormal(0, 0.3, 3) * (30 if t % 70 == 69 else 1)
        norms[1] = math.nan if t % 90 == 80 else norms[1]
        state, decision = guard.step(NUMPY, state, norms.astype(np.float32))
        verdict = rule.step(norms, 1.0)
        assert verdict.scale.shape == (3,)
        assert verdict.scale == pytest.approx(np.broadcast_to(decision.scale, 3), rel=1e-5), t


@pytest.mark.parametrize("layer", ["tanh", "relu", "gru"])
def test_the_gradients_written_by_hand_are_those_of_automatic_differentiation(layer):
    """Oracle: the same recurrence in float64, differentiated by TensorFlow."""
    import tensorflow as tf

    rng, units = np.random.default_rng(0), 4
    inputs = tf.constant(rng.normal(size=(6, 2, 3, units * (3 if layer == "gru" else 1))))
    w = tf.constant(rng.normal(size=(2, units, inputs.shape[-1])))
    weights = rng.normal(size=(2, 18, units))

    def plain():
        h, states = tf.zeros([2, 3, units], tf.float64), []
        for x in tf.unstack(inputs):
            product = h @ w
            if layer == "gru":
                (xz, xr, xc), (pz, pr, pc) = tf.split(x, 3, -1), tf.split(product, 3, -1)
                z = tf.sigmoid(xz + pz)
                h = z * h + (1 - z) * tf.tanh(xc + tf.sigmoid(xr + pr) * pc)
            else:
                h = getattr(tf.nn, layer)(x + product)
            states.append(h)
        return tf.concat(states, 1)

    def ours():
        return tasks._gru(inputs, w) if layer == "gru" else tasks._rnn(inputs, w, layer)

    found = []
    for run in (plain, ours):
        with tf.GradientTape() as tape:
            tape.watch([inputs, w])
            states = run()
            loss = tf.reduce_sum(states * weights)
        found.append((states, *tape.gradient(loss, [inputs, w])))
    for expected, got in zip(*found):
        np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-12)
