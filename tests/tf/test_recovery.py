"""A run that explodes beyond clipping comes through by itself, and a healthy one is not touched."""

from __future__ import annotations

import copy
import json
import logging
import math
import pickle

import keras
import numpy as np
import pytest
import support
import tensorflow as tf

import gradwatch
from gradwatch import policies, recovery
from gradwatch.core import norms
from gradwatch.core.guard import COLUMNS
from gradwatch.errors import ConfigError, LayoutError, TrainingStopped
from gradwatch.reading.health import health
from gradwatch.recovery import folder
from gradwatch.recovery.reasons import Reason
from gradwatch.recovery.signs import Trouble
from gradwatch.tf import healing

TARGET = np.random.default_rng(0).normal(size=(5, 1)).astype(np.float32)


def batch(i, seed=0):
    """Batch number `i` of a task that the small model can learn, the loss falling from 1 to 0.01."""
    rng = np.random.default_rng([seed, i])
    x = rng.normal(size=(16, 5)).astype(np.float32)
    return x, np.tanh(x @ TARGET) + 0.05 * rng.normal(size=(16, 1)).astype(np.float32)


def quick(**options):
    """A ladder whose snapshots ripen fast enough for a test."""
    return recovery.ladder(
        recovery.skip(), recovery.lower(), recovery.rollback(every=20, calm_steps=10, **options), recovery.stop()
    )


def watched(net, optimizer, recover, *, mode="function inside", **options):
    options = {"policy": policies.percentile(90), "recover": recover, **options}
    return support.MODES[mode](support.watch(**options), support.train_step(net, optimizer))


def train(step, steps, start=0, change=lambda i, x, y: (x, y)):
    return [float(step(*map(tf.constant, change(i, *batch(i))))) for i in range(start, start + steps)]


def noisy(i, x, y):
    """Labels of which a part cannot be learned: the loss ends at 0.25."""
    return x, (y + 0.5 * np.random.default_rng(i).normal(size=y.shape)).astype(np.float32)


def wreck(net, factor=1e3):
    """What an update that went wrong leaves behind."""
    for v in net.trainable_variables:
        v.assign(factor * (v + 1.0))


def bn_model():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.layers.Input((5,)),
            keras.layers.Dense(10),
            keras.layers.BatchNormalization(),
            keras.layers.Activation("relu"),
            keras.layers.Dropout(0.1),
            keras.layers.Dense(1),
        ]
    )


# -- healthy runs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["function inside", "jit inside"])
def test_a_healthy_run_stays_bit_identical_with_the_ladder_armed(mode):
    def run(recover):
        net, optimizer = bn_model(), keras.optimizers.AdamW(0.01, weight_decay=0.01)
        losses = train(watched(net, optimizer, recover, mode=mode), 60)
        return [*support.weights(net, optimizer), np.array(losses)]

    support.assert_same(run(quick()), run(None))


def test_nothing_recovers_unless_it_is_asked_for():
    step = watched(support.model(), support.sgd(), None)
    train(step, 2)
    assert step.monitor._healer is None
    assert isinstance(step, type(tf.function(lambda: None)))
    assert step.monitor.snapshot().recoveries == {}


def test_a_recovering_tf_function_is_still_one_for_all_who_ask():
    step = watched(support.model(), support.sgd(), recovery.ladder())
    x, y = map(tf.constant, batch(0))
    assert callable(step.get_concrete_function)
    step(x, y)
    assert step.experimental_get_tracing_count() == 1
    assert set(support.op_types(step._step.get_concrete_function(x, y))).isdisjoint(support.HOST_OPS)


# -- going back -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["eager", "function inside", "jit inside"])
def test_a_rollback_brings_back_weights_slots_iterations_statistics_and_random_states(mode):
    net, optimizer = bn_model(), keras.optimizers.Adam(0.01)
    step = watched(net, optimizer, quick(), mode=mode)
    train(step, 60)
    healer = step.monitor._healer
    assert healer._snapshots.generations.target().step == 41
    at_snapshot = {id(v): value for v, value in zip(healer._state.variables(), healer._state.read().variables.values())}
    assert len(at_snapshot) == len(net.variables) + len(optimizer.variables) - 1, "all but the learning rate"
    wreck(net)
    train(step, 20, 60)
    seen = step.monitor.snapshot()
    assert seen.recoveries["rollback"] == 1
    assert seen.steps == 80, "counters only go up"
    assert 20 <= seen.lost_steps["rollback"] <= 40
    assert int(optimizer.iterations.numpy()) == 41 + 80 - seen.last_recoveries[0].step
    assert all(np.all(np.isfinite(x)) for x in support.weights(net, optimizer))
    assert train(step, 10, 80)[-1] < 1.0


def test_after_a_rollback_every_variable_is_as_at_the_snapshot_to_the_bit():
    net, optimizer = bn_model(), keras.optimizers.Adam(0.01)
    ladder = recovery.ladder(recovery.rollback(every=20, calm_steps=10), look_every=1)
    step = watched(net, optimizer, ladder)
    train(step, 40)
    healer = step.monitor._healer
    assert [g.step for g in healer._snapshots.generations.kept] == [20, 40]
    kept = support.weights(net, optimizer)
    rate = optimizer.learning_rate
    train(step, 15, 40)
    rate.assign(0.02)  # the person's own
    wreck(net)
    i = 55
    while not step.monitor.snapshot().recoveries["rollback"]:
        train(step, 1, i)
        i += 1
    assert i <= 55 + 11
    now = support.weights(net, optimizer)
    differ = [k for k, (a, b) in enumerate(zip(kept, now)) if a.tobytes() != b.tobytes()]
    assert len(differ) == 1
    assert now[differ[0]] == np.float32(0.02), "but for the learning rate that was set since"


def test_the_statistics_go_back_and_the_counters_do_not():
    net = support.model()
    step = watched(net, support.sgd(0.05), quick())
    train(step, 60)
    before = step.monitor.snapshot()
    wreck(net)
    train(step, 20, 60)
    after = step.monitor.snapshot()
    assert after.recoveries["rollback"] == 1
    assert after.steps == 80
    assert after.max_norm > 100 * before.max_norm
    assert not after.active["explosion"]
    assert after.explosion_threshold < 10 * before.explosion_threshold
    assert after.clip_norm < 10 * before.clip_norm


def test_the_weights_from_before_the_first_step_are_the_first_snapshot():
    net, optimizer = support.model(), support.sgd(50.0)
    start = support.weights(net)
    step = watched(net, optimizer, recovery.ladder(recovery.rollback(), look_every=1))
    i = 0
    while not step.monitor.snapshot().recoveries["rollback"]:
        train(step, 1, i)
        i += 1
    support.assert_same(support.weights(net), start)
    assert "to before the first step" in step.monitor.snapshot().last_recoveries[-1].text


def test_a_run_that_goes_back_to_its_start_may_have_the_losses_of_a_start(monkeypatch):
    monkeypatch.setattr(healing, "reason_of", lambda monitor: Reason())
    net = support.model()
    ladder = recovery.ladder(recovery.lower(), recovery.rollback(every=1000), recovery.stop())
    step = watched(net, support.sgd(0.05), ladder)
    train(step, 95)
    wreck(net)
    train(step, 300, 95)
    seen = step.monitor.snapshot()
    assert seen.recoveries["lower"] == 1, "at the lower rate it takes longer than the patience to come as far again"
    assert seen.recoveries["rollback"] == 1
    assert seen.recoveries["stop"] == 0


def test_moving_averages_that_a_bad_batch_made_nan_come_back():
    net = bn_model()
    step = watched(net, keras.optimizers.Adam(0.01), quick())
    train(step, 60)
    train(step, 1, 60, lambda i, x, y: (x * np.nan, y))
    assert not np.all(np.isfinite(net.layers[1].moving_mean.numpy()))
    train(step, 12, 61)
    assert np.all(np.isfinite(net.layers[1].moving_mean.numpy()))
    last = step.monitor.snapshot().last_recoveries[-1]
    assert (last.rung, last.cause) == ("rollback", "poisoned")
    assert "moving" in last.text


def test_a_weight_that_is_nan_and_harms_no_loss_is_found_with_the_next_snapshot():
    net, optimizer = bn_model(), keras.optimizers.Adam(0.01)
    spare = tf.Variable([1.0, 2.0])
    step = watched(net, optimizer, quick(keep={"spare": spare, "mask": tf.Variable([0.0, -np.inf])}))
    train(step, 65)
    spare.assign([1.0, np.nan])  # as a unit that a relu hides
    train(step, 40, 65)
    seen = step.monitor.snapshot()
    assert (seen.recoveries["rollback"], seen.recoveries["stop"]) == (1, 0)
    assert "holds NaN or Inf" in seen.last_recoveries[0].text
    np.testing.assert_array_equal(spare, [1.0, 2.0])


def test_a_mask_of_minus_infinity_hinders_no_snapshot():
    net, optimizer = bn_model(), keras.optimizers.Adam(0.01)
    mask = tf.Variable([0.0, -np.inf])
    step = watched(net, optimizer, quick(keep=mask))
    train(step, 60)
    train(step, 2, 60, lambda i, x, y: (x * np.nan, y))  # which makes it look for NaN
    train(step, 60, 62)
    snapshots = step.monitor._healer._snapshots
    assert snapshots.generations.target().step > 60
    recoveries = step.monitor.snapshot().recoveries
    assert recoveries["stop"] == 0
    assert recoveries["rollback"] <= 1, "moving averages that became NaN"


def test_a_bad_batch_is_left_to_the_guard_and_counted():
    net = support.model()
    step = watched(net, support.sgd(0.05), quick())
    train(step, 60, 0, lambda i, x, y: (x * np.nan if i == 30 else x, y))
    seen = step.monitor.snapshot()
    assert seen.recoveries == {"skip": 1, "lower": 0, "rollback": 0, "stop": 0}
    assert seen.lost_steps == {"skip": 1, "lower": 0, "rollback": 0, "stop": 0}


def test_a_second_explosion_right_after_the_rollback_goes_back_further():
    net = support.model()
    step = watched(net, support.sgd(0.05), quick())
    train(step, 75)
    assert [g.step for g in step.monitor._healer._snapshots.generations.kept if g.healthy] == [41, 61]
    wreck(net)
    train(step, 8, 75)
    wreck(net)
    train(step, 32, 83)
    first, second = step.monitor.snapshot().last_recoveries
    assert "snapshot of step 61:" in first.text
    assert "snapshot of step 41:" in second.text
    assert "at most 0.005," in second.text, "with SGD, how far the weights went says nothing of the rate"
    assert train(step, 30, 115)[-1] < 1.0


def test_sudden_trouble_goes_back_to_a_snapshot_that_nobody_knows_to_be_healthy_yet():
    net, optimizer = support.model(), support.sgd(0.05, momentum=0.9)
    step = watched(net, optimizer, quick())
    train(step, 65)
    kept = step.monitor._healer._snapshots.generations.kept
    assert [(g.step, g.healthy) for g in kept] == [(41, True), (61, False)]
    wreck(net)
    train(step, 20, 65)
    seen = step.monitor.snapshot()
    assert "snapshot of step 61:" in seen.last_recoveries[0].text
    assert seen.lost_steps["rollback"] <= 20
    assert train(step, 20, 85)[-1] < 1.0


def test_where_it_was_hurt_already_the_same_answer_goes_back_to_the_healthy_one_and_each_step_is_lost_once():
    net = support.model()
    step = watched(net, support.sgd(0.05), quick())
    train(step, 65)
    candidate = step.monitor._healer._snapshots.generations.kept[-1]
    hurt = {key: np.flip(-20.0 * value) if value.ndim else value for key, value in candidate.token.variables.items()}
    candidate.token = candidate.token._replace(variables=hurt)
    wreck(net)
    train(step, 40, 65)
    seen = step.monitor.snapshot()
    first, second = seen.last_recoveries
    assert "snapshot of step 61:" in first.text
    assert "snapshot of step 41:" in second.text
    assert seen.recoveries["rollback"] == 2
    assert seen.recoveries["lower"] <= 1, "one trouble, one answer"
    assert seen.lost_steps["rollback"] == second.step - 41
    assert train(step, 20, 105)[-1] < 1.0


def test_weights_that_have_grown_are_no_place_to_go_back_to():
    net = support.model()
    step = watched(net, support.sgd(0.05), quick())
    train(step, 65)
    generations = step.monitor._healer._snapshots.generations
    generations.kept[-1].facts["weight_norm"] *= 3.0
    wreck(net)
    train(step, 20, 65)
    assert "snapshot of step 41:" in step.monitor.snapshot().last_recoveries[0].text


def test_a_step_that_was_dropped_and_then_gone_back_over_is_lost_once():
    net = support.model()
    step = watched(net, support.sgd(0.05), quick())
    train(step, 60)
    train(step, 45, 60, lambda i, x, y: (x * np.nan, y))
    train(step, 40, 105)
    seen = step.monitor.snapshot()
    assert seen.recoveries["rollback"] == 1
    answer = seen.last_recoveries[0]
    assert seen.lost_steps["skip"] == 45
    assert seen.lost_steps["rollback"] == answer.lost_steps == 60 - 41, "those since were dropped"


def test_weights_that_are_nan_are_found_at_the_next_look_and_no_streak_is_waited_for():
    net = support.model()
    step = watched(net, support.sgd(0.05), quick())
    train(step, 65)
    kernel = net.trainable_variables[-2]  # after the last relu, which may hide a NaN
    kernel.assign(np.nan * kernel)
    train(step, 10, 65)
    seen = step.monitor.snapshot()
    assert (seen.recoveries["rollback"], seen.recoveries["lower"]) == (1, 0)
    assert "holds NaN or Inf" in seen.last_recoveries[0].text
    assert sum(seen.lost_steps.values()) <= 10
    assert train(step, 20, 75)[-1] < 1.0


@pytest.mark.parametrize("unusual", ["a loss", "a batch of NaN"])
def test_of_a_usual_run_many_steps_are_looked_at_together_and_what_stands_out_is_seen_at_once(unusual):
    net = support.model()
    step = watched(net, support.sgd(0.05), recovery.ladder(recovery.rollback(every=100), recovery.lower()))
    train(step, 131)
    signs = step.monitor._healer._watched[0].signs
    assert signs.last_step == 101 + 25 + 5, "when the snapshot of step 101 is ripe"
    train(step, 30, 131)
    assert signs.last_step == 131, "nothing stands out"
    change = {
        "a loss": lambda i, x, y: (x, y + np.float32(30.0 * (i == 165))),
        "a batch of NaN": lambda i, x, y: (x * np.float32(np.nan if i == 165 else 1.0), y),
    }[unusual]
    train(step, 10, 161, change)
    assert signs.last_step == 171
    train(step, 60, 171)
    assert 171 < signs.last_step <= 231


def test_each_thing_that_stands_out_in_a_single_step_is_worth_a_closer_look():
    step = watched(support.model(), support.sgd(0.05), quick())
    train(step, 75)
    one = step.monitor._healer._watched[0]
    peek, end = one.peek, one.signs.usual_end
    train(step, 4, 75)
    assert peek.fetch(now=True) == 8
    assert peek.is_usual(end)
    row = peek._end - 3 * len(COLUMNS)  # one of those that wait
    threshold = float(peek._vector[row + COLUMNS.index("threshold")])
    odd = {
        "a norm above its threshold": (row + COLUMNS.index("norm"), 2.0 * threshold),
        "a norm of NaN": (row + COLUMNS.index("norm"), -1.0),
        "a norm of Inf": (row + COLUMNS.index("norm"), norms.LARGEST),
        "a dropped update": (row + COLUMNS.index("verdict"), 2.0),
        "a loss above the band": (row + COLUMNS.index("loss"), 2.0 * end),
        "a loss that is not known": (row + COLUMNS.index("loss"), 3e38),
        "an anomaly under way": (int(peek._active_at[0]), 1.0),
    }
    usual = peek._vector
    for what, (at, value) in odd.items():
        peek._vector = usual.copy()
        peek._vector[at] = value
        assert not peek.is_usual(end), what
    assert not peek.is_usual(-math.inf)


# -- the rate ---------------------------------------------------------------------------------------------


class Falling(keras.optimizers.schedules.LearningRateSchedule):
    def __call__(self, step):
        return 0.1 / (1.0 + tf.cast(step, tf.float32))

    def get_config(self):
        return {}


OPTIMIZERS = {
    "SGD": lambda: support.sgd(0.1),
    "a schedule": lambda: support.sgd(Falling()),
    "Nesterov": lambda: support.sgd(0.1, momentum=0.9, nesterov=True),
    "AdamW": lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1),
    "Lion": lambda: keras.optimizers.Lion(0.01),
    "accumulating": lambda: support.sgd(0.1, gradient_accumulation_steps=2),
    "LossScaleOptimizer": lambda: keras.optimizers.LossScaleOptimizer(support.sgd(0.1), initial_scale=8.0),
    "MultiOptimizer": lambda: support.multi(keras.optimizers.Adam(0.01)),
}
if not hasattr(keras.optimizers, "MultiOptimizer"):
    del OPTIMIZERS["MultiOptimizer"]


CASES = [(name, "scale") for name in OPTIMIZERS] + [
    (name, "limit") for name in ("Nesterov", "AdamW", "accumulating", "LossScaleOptimizer")
]


@pytest.mark.parametrize(("name", "by"), CASES)
def test_a_lowered_rate_is_what_a_smaller_rate_would_be_and_the_person_does_not_see_it(name, by):
    """The oracle: the same optimizer whose rate was set to a quarter by hand."""

    def run(lowered):
        net, optimizer = support.model(), OPTIMIZERS[name]()
        step = watched(net, optimizer, recovery.lower(), policy=policies.fixed(1e6), on_nonfinite="zero")
        inner = getattr(optimizer, "inner_optimizer", optimizer)
        train(step, 4)
        several = getattr(inner, "optimizers", None) or [inner]
        if lowered:
            lowering = step.monitor._healer._watched[0].engine.lowering
            if by == "scale":
                lowering.assign(0.25, np.inf)
            else:
                lowering.assign(1.0, 0.25 * float(inner.learning_rate))
        else:
            for one in several:
                if isinstance(one._learning_rate, keras.optimizers.schedules.LearningRateSchedule):
                    one._learning_rate = Quarter()
                else:
                    one.learning_rate = 0.25 * float(one.learning_rate)
            step = watched(net, optimizer, None, policy=policies.fixed(1e6), on_nonfinite="zero")
        train(step, 4, 4)
        seen = [float(one.learning_rate) for one in several]
        return support.weights(net), seen

    (ours, rates), (theirs, smaller) = run(True), run(False)
    support.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(np.array(rates), 4.0 * np.array(smaller), rtol=1e-6)


class Quarter(Falling):
    def __call__(self, step):
        return 0.25 * super().__call__(step)


def test_the_rate_is_lowered_shown_as_a_metric_and_comes_back(monkeypatch):
    monkeypatch.setattr(healing, "reason_of", lambda monitor: Reason())
    ladder = recovery.ladder(recovery.lower(hold_steps=20, return_steps=20), recovery.rollback(every=20, calm_steps=10))
    net, optimizer = support.model(), support.sgd(0.05)
    step = watched(net, optimizer, ladder)
    train(step, 60)
    assert step.monitor.snapshot().rate_scale == 1.0
    wreck(net)
    train(step, 20, 60)
    seen = step.monitor.snapshot()
    assert seen.recoveries["lower"] == 1
    assert 0.0 < seen.rate_scale < 0.2
    assert float(optimizer.learning_rate) == pytest.approx(0.05), "what the person set"
    train(step, 120, 80)
    assert step.monitor.snapshot().rate_scale == 1.0


@pytest.mark.parametrize("optimizer", [support.sgd, keras.optimizers.Adam])
@pytest.mark.parametrize("mode", ["eager", "function inside", "jit inside"])
def test_a_lowered_rate_is_recorded_as_the_person_set_it(monkeypatch, optimizer, mode):
    monkeypatch.setattr(healing, "reason_of", lambda monitor: Reason())
    step = watched(support.model(), optimizer(0.05), recovery.lower(hold_steps=100), mode=mode)
    train(step, 20)
    healer = step.monitor._healer
    for at in (20, 80):
        healer._answer(at, healer._watched[0], Trouble("lost", at - 5, 5, "made"))
        train(step, 60)
        np.testing.assert_array_equal(step.monitor.history()["learning_rate"], np.float32(0.05))
    # a rate that is held at its limit is one that the limit touches: what is found at it is not forgotten
    first, second = (r.text.split("at most ")[1] for r in step.monitor.snapshot().last_recoveries)
    first, second = float(first.split(",")[0]), float(second.split(",")[0])
    assert second < 0.11 * first
    assert healer._course.rate.ceiling == pytest.approx(second / 0.05, rel=0.01)
    assert step.monitor.snapshot().rate_scale == pytest.approx(second / 0.05, rel=0.01)


class Spike(keras.optimizers.schedules.LearningRateSchedule):
    """0.01, but 3 for updates 60 to 79."""

    def __call__(self, step):
        now = tf.cast(step, tf.float32)
        return tf.where((now >= 60.0) & (now < 80.0), 3.0, 0.01)

    def get_config(self):
        return {}


@pytest.mark.parametrize("own", ["a schedule", "by hand"])
def test_a_rate_that_was_too_high_lowers_no_smaller_rate_that_is_set_later(monkeypatch, own):
    monkeypatch.setattr(healing, "reason_of", lambda monitor: Reason())
    optimizer = keras.optimizers.Adam(Spike() if own == "a schedule" else 0.01)
    step = watched(support.model(), optimizer, quick())
    losses = []
    for i in range(400):
        if own == "by hand":
            optimizer.learning_rate = 3.0 if 60 <= i < 80 else 0.01
        losses += train(step, 1, i)
    seen = step.monitor.snapshot()
    assert seen.recoveries["lower"] >= 1
    assert seen.recoveries["stop"] == 0
    assert seen.rate_scale == 1.0
    lowering = step.monitor._engine.lowering
    assert float(lowering.of(tf.constant(0.01))) == np.float32(0.01), "what is set now is what the optimizer sees"
    assert float(lowering.of(tf.constant(3.0))) < 3.0, "and the rate that was too high stays out of reach"
    assert np.mean(losses[-50:]) < 0.05


def test_a_rate_that_stays_lowered_though_nothing_is_wrong_is_told_once(monkeypatch, caplog):
    monkeypatch.setattr(healing, "reason_of", lambda monitor: Reason())
    monkeypatch.setattr(healing, "LONG_STEPS", 60)
    step = watched(support.model(), support.sgd(0.05), recovery.lower(hold_steps=500))
    train(step, 60)
    step.monitor._healer._course.answer(60, Trouble("saturated", 50, 10, "made"))
    with caplog.at_level(logging.WARNING, "gradwatch"):
        train(step, 100, 60)
    told = [r.getMessage() for r in caplog.records if "still held at 0.1 times" in r.getMessage()]
    assert len(told) == 1


# -- what threw the weights away --------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [300, 1e4])
def test_a_rate_that_is_too_high_from_the_first_step_on_is_found_and_lowered_by_as_much(factor):
    def run(rate, recover=None):
        keras.utils.set_random_seed(0)
        net = keras.Sequential(
            [keras.layers.Input((5,)), *[keras.layers.Dense(32, "relu") for _ in range(2)], keras.layers.Dense(1)]
        )
        step = watched(net, keras.optimizers.Adam(rate), recover, policy=policies.auto())
        return step, train(step, 1000)

    _, alone = run(0.003 * factor)
    step, losses = run(0.003 * factor, recovery.ladder())
    assert np.mean(alone[-50:]) > 0.1, "the others never come back"
    assert np.mean(losses[-50:]) < 0.02
    first = step.monitor.snapshot().last_recoveries[0]
    assert (first.step, first.rung) < (30, "s")
    # by one answer, however much too high it is
    assert 0.0005 < float(first.text.split("at most ")[1].split(",")[0]) < 0.03


@pytest.mark.parametrize("factor", [300.0, 1e5])
def test_a_rate_that_the_default_policy_holds_is_lowered_once_the_run_learns_no_more(factor):
    net, optimizer = support.model(), keras.optimizers.SGD(0.1 * factor)
    step = watched(net, optimizer, quick(), policy=policies.auto())
    losses = train(step, 1000, change=noisy)
    seen, history = step.monitor.snapshot(), step.monitor.history()
    assert dict(seen.recoveries) == {"skip": 0, "lower": 1, "rollback": 0, "stop": 0}
    lowered = seen.last_recoveries[-1].step
    kept = history["applied_norm"] / history["norm"]
    before = np.median(kept[lowered - 100 : lowered])
    assert before < 0.1
    assert seen.rate_scale == pytest.approx(0.5 * before, rel=0.05)
    assert np.median(kept[-100:]) > 0.9, "most gradients are as they came"
    assert np.median(losses[-200:]) < 0.95 * np.median(losses[lowered - 200 : lowered])


def test_under_adam_gradients_that_are_clipped_hard_say_nothing_of_the_rate():
    step = watched(support.model(), keras.optimizers.Adam(0.01), quick(), policy=policies.auto(first=0.003))
    train(step, 700, change=noisy)
    history = step.monitor.history()
    assert np.median(history["applied_norm"][-100:] / history["norm"][-100:]) < 0.1
    assert step.monitor.snapshot().recoveries["lower"] == 0


def test_a_single_weight_that_outgrows_all_others_is_no_reason_to_lower_the_rate(monkeypatch):
    monkeypatch.setattr(healing, "reason_of", lambda monitor: Reason())
    net = support.model()
    step = watched(net, support.sgd(0.05), quick())
    train(step, 75)
    kernel = net.trainable_variables[0]
    kernel.assign(tf.tensor_scatter_nd_update(tf.convert_to_tensor(kernel), [[2, 1]], [1e6]))
    train(step, 40, 75)
    seen = step.monitor.snapshot()
    assert (seen.recoveries["rollback"], seen.recoveries["lower"]) == (1, 0)
    assert train(step, 20, 115)[-1] < 1.0


def test_batches_out_of_scale_are_taken_back_until_they_end_and_each_step_is_lost_once():
    net = support.model()
    step = watched(net, support.sgd(0.05), quick())
    train(step, 75)
    train(step, 65, 75, lambda i, x, y: (x * np.float32(1e4), y))
    losses = train(step, 60, 140)
    seen = step.monitor.snapshot()
    assert seen.recoveries["rollback"] > 4
    assert seen.recoveries["lower"] <= 1
    assert seen.recoveries["stop"] == 0
    # from the snapshot of step 61 to the look after the last of them, at 140
    assert 70 <= seen.lost_steps["rollback"] <= 90
    assert losses[-1] < 1.0


# -- stop -------------------------------------------------------------------------------------------------


def test_a_run_whose_data_stay_broken_is_stopped_with_the_verdict_within_200_steps(caplog):
    net = support.model()
    step = watched(net, support.sgd(0.05), quick())
    train(step, 60)
    with caplog.at_level(logging.WARNING, "gradwatch"), pytest.raises(TrainingStopped) as caught:
        train(step, 400, 60, lambda i, x, y: (x * np.nan, y))
    error = caught.value
    assert error is step.monitor.stopped
    assert error.step <= 60 + 200
    assert error.exit_code == 78
    assert "NaN" in error.verdict
    seen = step.monitor.snapshot()
    assert seen.recoveries["rollback"] == 1, "a broken input is not answered by going back again and again"
    assert seen.recoveries["stop"] == 1
    assert all(np.all(np.isfinite(x)) for x in support.weights(net))
    assert any("stops the training" in record.getMessage() for record in caplog.records)


def test_a_run_that_is_stopped_says_the_likeliest_cause_though_it_is_not_sure():
    net, optimizer = support.model(), support.sgd(0.05)

    @support.watch(policy=policies.percentile(90), recover=quick())
    @tf.function
    def step(x, y, broken):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(net(x, training=True) - y)) * (1.0 + tf.sqrt(-broken))
        optimizer.apply_gradients(zip(tape.gradient(loss, net.trainable_variables), net.trainable_variables))
        return loss

    def go_on():
        for i in range(460):
            step(*map(tf.constant, batch(i)), tf.constant(float(i >= 60)))

    with pytest.raises(TrainingStopped) as caught:
        go_on()
    found = gradwatch.diagnose(step.monitor)
    assert found.kind == "loss_operation"
    assert found.confidence < 0.7
    assert caught.value.verdict == found.verdict


def test_without_the_rung_stop_the_training_goes_on():
    net = support.model()
    step = watched(net, support.sgd(0.05), recovery.rollback(every=20, calm_steps=10))
    train(step, 60)
    train(step, 200, 60, lambda i, x, y: (x * np.nan, y))
    assert step.monitor.stopped is None


# -- where it acts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["function outside", "jit outside"])
def test_a_step_that_is_called_inside_a_function_alone_is_refused_by_name(mode):
    step = watched(support.model(), support.sgd(), recovery.ladder(), mode=mode)
    with pytest.raises(ConfigError, match="above the outermost function"):
        step(*map(tf.constant, batch(0)))


def test_clip_alone_cannot_recover_and_says_so():
    with pytest.raises(ConfigError, match=r"monitor\.clip alone"):
        support.monitor(recover=recovery.ladder()).clip([tf.ones([2])])


def test_a_loop_in_the_graph_is_answered_at_the_end_of_the_call():
    net, optimizer = support.model(), support.sgd(0.05)
    inner = support.train_step(net, optimizer)

    @support.watch(policy=policies.percentile(90), recover=quick())
    @tf.function
    def many(xs, ys):
        loss = tf.constant(0.0)
        for k in tf.range(30):
            loss = inner(xs[k], ys[k])
        return loss

    def call(start):
        pairs = [batch(i) for i in range(start, start + 30)]
        return float(many(*(tf.constant(np.stack(part)) for part in zip(*pairs))))

    for start in range(0, 120, 30):
        call(start)
    wreck(net)
    call(120)
    seen = many.monitor.snapshot()
    assert (seen.steps, seen.recoveries["rollback"]) == (150, 1)
    assert seen.last_recoveries[0].step == 150
    assert call(150) < 1.0


def test_a_recovering_method_has_a_ladder_for_each_instance():
    class Trainer:
        def __init__(self):
            self.net, self.optimizer = support.model(), support.sgd(0.05)

        @support.watch(policy=policies.percentile(90), recover=quick())
        @tf.function
        def step(self, x, y):
            return support.train_step(self.net, self.optimizer)(x, y)

    one, other = Trainer(), Trainer()
    train(one.step, 60)
    train(other.step, 60)
    wreck(one.net)
    train(one.step, 20, 60)
    assert one.step.monitor.snapshot().recoveries["rollback"] == 1
    assert other.step.monitor.snapshot().recoveries["rollback"] == 0


def test_two_optimizers_of_a_step_go_back_together():
    nets = [support.model(i) for i in range(2)]
    optimizers = {"a": support.sgd(0.05), "b": support.sgd(0.05)}

    @support.watch(policy=policies.percentile(90), recover=quick(), optimizer=optimizers)
    @tf.function
    def step(x, y):
        return sum(support.train_step(n, o)(x, y) for n, o in zip(nets, optimizers.values()))

    train(step, 60)
    wreck(nets[1])
    train(step, 20, 60)
    assert sum(m.snapshot().recoveries["rollback"] for m in step.monitors.values()) >= 1
    assert train(step, 20, 80)[-1] < 2.0
    assert int(optimizers["a"].iterations.numpy()) == int(optimizers["b"].iterations.numpy()) < 100


def test_replicas_go_back_together(mirrored):
    with mirrored.scope():
        net, optimizer = bn_model(), keras.optimizers.Adam(0.01)
    replica = support.train_step(net, optimizer)

    @support.watch(policy=policies.percentile(90), recover=quick())
    @tf.function
    def step(x, y):
        parts = mirrored.run(replica, args=(x, y))
        return mirrored.reduce(tf.distribute.ReduceOp.MEAN, parts, axis=None)

    train(step, 60)
    kept = step.monitor._healer._snapshots.generations.target().step
    wreck(net)
    train(step, 20, 60)
    assert step.monitor.snapshot().recoveries["rollback"] == 1
    for v in net.trainable_variables:
        first, second = (np.array(part) for part in mirrored.experimental_local_results(v.value))
        assert first.tobytes() == second.tobytes()
    assert int(optimizer.iterations.numpy()) < kept + 30
    assert train(step, 20, 80)[-1] < 1.0


def test_replicas_that_go_back_to_before_the_first_step_go_on_counting(mirrored):
    with mirrored.scope():
        net, optimizer = support.model(), support.sgd(50.0)
    replica = support.train_step(net, optimizer)
    start = support.weights(net)

    @support.watch(policy=policies.percentile(90), recover=recovery.ladder(recovery.rollback(), look_every=1))
    @tf.function
    def step(x, y):
        return mirrored.reduce(tf.distribute.ReduceOp.MEAN, mirrored.run(replica, args=(x, y)), axis=None)

    for i in range(60):
        train(step, 1, i)
        if step.monitor.snapshot().recoveries["rollback"]:
            break
    support.assert_same(support.weights(net), start)
    assert step.monitor.snapshot().steps == i + 1
    assert step.monitor.history()["step"][-1] == i + 1


# -- faults of our own ------------------------------------------------------------------------------------


def test_no_memory_for_a_second_snapshot_leaves_the_one_there_is(monkeypatch, caplog):
    net = support.model()
    step = watched(net, support.sgd(0.05), quick())
    train(step, 45)
    state = step.monitor._healer._state
    before = step.monitor._healer._snapshots.generations.target().step

    def full():
        raise MemoryError

    monkeypatch.setattr(state, "read", full)
    with caplog.at_level(logging.WARNING, "gradwatch"):
        train(step, 60, 45)
    assert sum("no snapshot could be taken" in r.getMessage() for r in caplog.records) == 1, "logged once"
    wreck(net)
    train(step, 20, 105)
    assert step.monitor.snapshot().recoveries["rollback"] == 1
    assert f"snapshot of step {max(before, 41)}:" in step.monitor.snapshot().last_recoveries[0].text
    assert train(step, 20, 125)[-1] < 1.0


def on_disk(place, **options):
    net, optimizer = bn_model(), keras.optimizers.Adam(0.01)
    return net, optimizer, watched(net, optimizer, quick(directory=place, keep={"model": net}), **options)


def test_a_restarted_job_finds_the_newest_healthy_snapshot_and_goes_on_from_it(tmp_path):
    net, _, step = on_disk(tmp_path, name="first")
    train(step, 75)
    found = recovery.latest_healthy(tmp_path, net)
    health = json.loads((tmp_path / (found.rsplit("/", 1)[-1] + folder.SUFFIX)).read_text())
    assert health["verdict"] == "healthy"
    assert health["step"] == 61
    assert health["loss"] > 0 < health["norm"]
    assert len(list(tmp_path.glob("*.index"))) == 2, "two generations"

    again, other, restarted = on_disk(tmp_path, name="second")
    other.build(again.trainable_variables)
    monitor = restarted.monitor
    tf.train.Checkpoint(model=again, optimizer=other, gradwatch=monitor).restore(found).expect_partial()
    assert int(other.iterations.numpy()) == 61
    train(restarted, 1, 61)
    assert restarted.monitor.snapshot().steps == 62


def test_a_run_goes_back_to_a_snapshot_on_the_disk(tmp_path):
    net, optimizer, step = on_disk(tmp_path)
    train(step, 75)
    optimizer.learning_rate.assign(0.005)
    wreck(net)
    train(step, 20, 75)
    seen = step.monitor.snapshot()
    assert seen.recoveries["rollback"] == 1
    assert seen.steps == 95
    assert float(optimizer.learning_rate) == pytest.approx(0.005)
    assert train(step, 20, 95)[-1] < 1.0


def test_a_process_that_is_killed_while_a_snapshot_is_written_leaves_the_one_before(tmp_path, monkeypatch):
    net, _, step = on_disk(tmp_path)
    train(step, 75)
    whole = recovery.latest_healthy(tmp_path)

    class Killed(BaseException):
        pass

    def killed(*args, **facts):
        raise Killed

    monkeypatch.setattr(folder, "write_health", killed)
    monkeypatch.setattr(folder, "remove", lambda prefix: None)  # the dead remove nothing
    with pytest.raises(Killed):
        train(step, 20, 75)
    assert len(list(tmp_path.glob("*.index"))) == 3
    assert recovery.latest_healthy(tmp_path, net) == whole


def test_a_full_disk_costs_the_snapshot_and_nothing_else(tmp_path, monkeypatch, caplog):
    net, _, step = on_disk(tmp_path)
    train(step, 75)
    files = sorted(path.name for path in tmp_path.iterdir())

    def full(self, prefix, *args, **keywords):
        (tmp_path / "torn").write_bytes(b"half")
        raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")

    monkeypatch.setattr(tf.train.Checkpoint, "write", full)
    with caplog.at_level(logging.WARNING, "gradwatch"):
        train(step, 40, 75)
    assert sum("No space left on device" in r.getMessage() for r in caplog.records) == 1
    assert recovery.latest_healthy(tmp_path) is not None
    assert [name for name in files if not (tmp_path / name).exists()] == []
    wreck(net)
    train(step, 20, 115)
    assert step.monitor.snapshot().recoveries["rollback"] == 1
    assert train(step, 20, 135)[-1] < 1.0


def test_a_snapshot_of_another_model_is_never_gone_back_to(tmp_path):
    other = keras.Sequential([keras.layers.Input((5,)), keras.layers.Dense(3), keras.layers.Dense(1)])
    theirs = watched(other, support.sgd(0.05), quick(directory=tmp_path, keep={"model": other}), name="theirs")
    train(theirs, 75)
    net, _, step = on_disk(tmp_path)
    with pytest.raises(LayoutError, match="of another model"):
        recovery.latest_healthy(tmp_path, net)
    train(step, 5)
    wreck(net)
    train(step, 20, 5)
    assert "to before the first step" in step.monitor.snapshot().last_recoveries[0].text
    assert len(list(tmp_path.glob(f"*{theirs.monitor.run_id}*.index"))) == 2, "theirs are theirs"


def test_a_run_that_is_stopped_leaves_its_last_state(tmp_path):
    _, _, step = on_disk(tmp_path)
    train(step, 60)
    with pytest.raises(TrainingStopped):
        train(step, 400, 60, lambda i, x, y: (x * np.nan, y))
    assert len(list(tmp_path.glob("*-last.health.json"))) == 1
    assert "-last" not in recovery.latest_healthy(tmp_path)


def test_whatever_fails_in_the_ladder_the_training_goes_on(monkeypatch):
    step = watched(support.model(), support.sgd(0.05), quick())
    train(step, 20)

    def broken(**_):
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(step.monitor._healer._watched[0].peek, "fetch", broken)
    before = health.internal_errors()["recovery"]
    train(step, 40, 20)
    assert step.monitor.snapshot().steps == 60
    assert health.internal_errors()["recovery"] - before == 4, "at each look"


def test_a_monitor_that_recovers_is_copied_with_its_options():
    monitor = gradwatch.Monitor("m", recover=recovery.ladder())
    for other in (copy.deepcopy(monitor), pickle.loads(pickle.dumps(monitor))):
        assert other._options()["recover"] == recovery.ladder()
        assert other._healer is not monitor._healer
