"""The trainer trains many runs side by side without mixing them, and the tables say what the runs did."""

from __future__ import annotations

import json
import math
import sys

import numpy as np
import pytest

pytestmark = pytest.mark.tf

efficacy = pytest.importorskip("efficacy")
import finals  # noqa: E402
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


@pytest.mark.parametrize("name", list(finals.EVERY))
def test_every_task_starts_with_finite_loss_and_gradients_of_every_parameter(name):
    import tensorflow as tf

    task = finals.EVERY[name]()
    trainer = efficacy.Trainer(task, task.rates[0], runs=2, seed=3)
    batch = [tf.convert_to_tensor(x) for x in task.batch(np.random.default_rng(0), 0)]
    # once: XLA would compile for seconds what runs in a tenth of one
    loss, score, norms, weights, _ = trainer._gradients(*batch)
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


def test_constants_with_a_guard_run_where_the_data_hold_nan():
    guarded = [name for name in efficacy.methods("digits") if name.endswith("NaN dropped")]
    assert len(guarded) == len(efficacy.CONSTANTS)
    assert not [name for name in efficacy.methods("rnn-sgd") if name.endswith("NaN dropped")]
    rule = efficacy.methods("digits")["fixed 0.1, NaN dropped"]()
    assert rule.step(np.array([np.nan, 1.0]), 1.0).scale.tolist() == [0, 0]
    assert rule.step(np.array([3.0, 4.0]), 1.0).scale == pytest.approx(0.02, rel=1e-6)


def test_a_stopped_run_goes_on_where_it_was(tmp_path, monkeypatch, capsys):
    """Finished groups are not trained again; a line cut off by the stop is."""
    trained = []

    def train(task, rate, seed, rules, steps, trainers):
        trained.append((rate, seed, tuple(rules)))
        run = {"seed": seed, "rate": rate, "steps": steps, "final": 1.0, "untrained": 2.0, "diverged": False}
        return [{"method": m, **run, "clipped_last_half": 0.0, "steps_lost": 0, "group_seconds": 0.0} for m in rules]

    monkeypatch.setattr(efficacy, "train", train)
    monkeypatch.setattr(efficacy.runs, "save_norms", lambda lines: pytest.fail("it replaces the published norms"))
    file, output = tmp_path / "out.jsonl", tmp_path / "out.json"
    flags = ["--tasks", "digits", "--seeds", "1", "--steps", "5", "--methods", "none,fixed 1"]
    monkeypatch.setattr(sys, "argv", ["efficacy.py", *flags, "--output", str(output)])
    efficacy.main()
    assert len(trained) == 4
    kept = file.read_text().splitlines()
    output.unlink()
    file.write_text("\n".join(kept[:3]) + "\n" + kept[3][:20])
    trained.clear()
    efficacy.main()
    assert [(rate, rules) for rate, _, rules in trained] == [
        (0.005, ("fixed 1",)),
        (0.02, ("none", "fixed 1")),
        (0.1, ("none", "fixed 1")),
    ]
    trained.clear()
    file.unlink()  # what is published is enough
    efficacy.main()
    assert not trained
    assert len(json.loads(output.read_text())["rows"]) == 8
    capsys.readouterr()


def test_a_report_writes_no_file(monkeypatch, capsys):
    for name in ("save_norms", "publish"):
        monkeypatch.setattr(efficacy.runs, name, lambda *_: pytest.fail("a report only reads"))
    monkeypatch.setattr(sys, "argv", ["efficacy.py", "--report"])
    efficacy.main()
    assert "The goals of `auto`" in capsys.readouterr().out


def test_a_method_that_is_forgotten_is_trained_again_and_no_other(tmp_path, monkeypatch, capsys):
    trained = []

    def train(task, rate, seed, rules, steps, trainers):
        trained.extend(rules)
        run = {"seed": seed, "rate": rate, "steps": steps, "final": 1.0, "untrained": 2.0, "diverged": False}
        return [{"method": m, **run, "clipped_last_half": 0.0, "steps_lost": 0, "group_seconds": 0.0} for m in rules]

    monkeypatch.setattr(efficacy, "train", train)
    flags = ["--tasks", "heavy-tails", "--seeds", "1", "--steps", "5", "--methods", "none,fixed 1"]
    command = ["efficacy.py", *flags, "--output", str(tmp_path / "out.json")]
    monkeypatch.setattr(sys, "argv", command)
    efficacy.main()
    trained.clear()
    monkeypatch.setattr(sys, "argv", [*command, "--forget", "fixed 1"])
    efficacy.main()
    assert trained == ["fixed 1"] * 4
    monkeypatch.setattr(sys, "argv", [*command, "--forget", "fixed 7"])
    with pytest.raises(SystemExit):
        efficacy.main()
    assert "fixed 7" in capsys.readouterr().err


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


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_rule_on_tensors_trains_beside_the_others_and_touches_its_own_run_only(optimizer):
    """Oracle: the rules alone in a trainer of their own; the runs beside them are those of a trainer without them."""
    import tensor_peers

    def train(**rules):
        task = tasks.TASKS["heavy-tails"]()._replace(optimizer=optimizer)
        return {x["method"]: x for x in efficacy.train(task, 0.003, 0, rules, steps=60)}

    def own():
        return {"clippy": tensor_peers.Clippy(0.0, 1e-3), "dog": tensor_peers.DoG(1e-4)}

    many = train(none=peers.Unclipped(), **own(), fixed=peers.Fixed(0.1))
    for expected in (*train(**own()).values(), *train(none=peers.Unclipped(), fixed=peers.Fixed(0.1)).values()):
        assert many[expected["method"]]["final"] == pytest.approx(expected["final"], rel=1e-4)
        assert many[expected["method"]]["clipped"] == pytest.approx(expected["clipped"], abs=0.02)
    assert many["none"]["clipped"] == 0
    assert many["clippy"]["clipped"] > 0.2
    assert many["dog"]["clipped"] > 0
    assert len({round(x["final"], 4) for x in many.values()}) == 4


def test_peers_are_trained_where_they_are_defined():
    assert {"StableAdamW", "GradientStabilizer"} <= set(efficacy.methods("transformer"))
    assert not {"StableAdamW", "GradientStabilizer"} & set(efficacy.methods("rnn-sgd"))
    assert {"AGC", "Clippy", "DoG as a bound"} <= set(efficacy.methods("rnn-sgd")) & set(efficacy.methods("rnn-adam"))
    assert "StableAdamW" in efficacy.methods()
