"""monitor.clip, the explicit form: gradients of every kind, every verdict, in every mode."""

from __future__ import annotations

import numpy as np
import pytest
import support
import tensorflow as tf

import gradwatch
from gradwatch import policies
from gradwatch.core.guard import COLUMNS
from gradwatch.errors import LayoutError, NothingToWatch

WRAPS = {
    "eager": lambda f: f,
    "function": tf.function,
    "jit": lambda f: tf.function(f, jit_compile=True),
}


@pytest.fixture(scope="module", params=WRAPS)
def clip(request):
    """One `fixed(1.0)` monitor for gradients of shape [3], in each mode: [3] -> (clipped, Decision)."""
    monitor = support.monitor(policies.fixed(1.0))

    def step(g):
        (clipped,), decision = monitor.clip([g])
        return clipped, decision

    return WRAPS[request.param](step)


@pytest.mark.parametrize(
    ("gradient", "expected"),
    [
        ([3.0, 4.0, 0.0], [0.6, 0.8, 0.0]),
        ([0.3, 0.4, 0.0], [0.3, 0.4, 0.0]),
        ([0.0, 0.0, 0.0], [0.0, 0.0, 0.0]),
        ([1e-40, 0.0, 0.0], [1e-40, 0.0, 0.0]),
        ([1e30, 0.0, 0.0], [1.0, 0.0, 0.0]),  # finite, though its square is not
        ([1e35, 1e35, 0.0], [0.70711, 0.70711, 0.0]),
        ([np.nan, 1.0, 0.0], [0.0, 0.0, 0.0]),
        ([np.inf, 1.0, 0.0], [0.0, 0.0, 0.0]),
        ([-np.inf, np.inf, np.nan], [0.0, 0.0, 0.0]),
    ],
    ids=str,
)
def test_every_float32_gradient_comes_out_right(clip, gradient, expected):
    clipped, decision = clip(tf.constant(gradient, tf.float32))
    # XLA flushes denormals
    np.testing.assert_allclose(clipped, np.float32(expected), rtol=1e-4, atol=1e-37)
    bad = not np.all(np.isfinite(gradient))
    assert float(decision.verdict) == (2.0 if bad else 1.0 if np.max(np.abs(gradient)) > 1 else 0.0)
    assert float(decision.finite) == float(not bad)


def test_a_norm_that_float32_can_hardly_hold_counts_as_infinite(clip):
    clipped, decision = clip(tf.constant([3e38, 3e38, -3e38]))
    assert float(decision.finite) == 0.0
    np.testing.assert_array_equal(clipped, np.zeros(3))


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16, tf.float32, tf.float64])
def test_every_dtype_keeps_its_dtype_and_has_a_float32_norm(dtype):
    monitor = support.monitor(policies.fixed(1.0))
    big = tf.constant([6e4, 0.0, 6e4], dtype)  # its squares overflow float16
    (clipped,), decision = monitor.clip([big])
    assert clipped.dtype == dtype
    assert float(decision.norm) == pytest.approx(6e4 * np.sqrt(2), rel=1e-2)
    np.testing.assert_allclose(tf.cast(clipped, tf.float32), [0.7071, 0.0, 0.7071], rtol=1e-2)


def test_gradients_of_several_kinds_go_through_together():
    monitor = support.monitor(policies.fixed(1.0))
    grads = [
        None,
        tf.constant(3.0),  # scalar
        tf.zeros([0, 4]),  # empty
        tf.IndexedSlices(tf.constant([[4.0]]), tf.constant([2]), tf.constant([9, 1])),
        tf.constant([0.0], tf.float64),
        tf.constant([[0.0]], tf.float16),
        None,
    ]
    clipped, decision = monitor.clip(grads)
    assert float(decision.norm) == pytest.approx(5.0)
    assert clipped[0] is None
    assert clipped[6] is None
    assert float(clipped[1]) == pytest.approx(0.6)
    assert clipped[2].shape == (0, 4)
    assert isinstance(clipped[3], tf.IndexedSlices)
    assert float(clipped[3].values[0, 0]) == pytest.approx(0.8)
    assert clipped[3].indices.numpy().tolist() == [2]
    assert [g.dtype for g in clipped[4:6]] == [tf.float64, tf.float16]
    # None is a zero norm of its variable: in another step it may have a gradient
    assert list(monitor.snapshot().layer_norms.values()) == pytest.approx([0, 3, 0, 4, 0, 0, 0], rel=1e-6)


def test_a_nan_in_one_gradient_zeroes_all_of_them():
    monitor = support.monitor()
    sparse = tf.IndexedSlices(tf.constant([[np.nan]], tf.float32), tf.constant([0]), tf.constant([3, 1]))
    clipped, _ = monitor.clip([tf.ones([2]), sparse, tf.ones([2], tf.float16)])
    assert all(float(tf.reduce_sum(tf.abs(tf.convert_to_tensor(g)))) == 0.0 for g in clipped)
    event = monitor.snapshot().last_events["nonfinite"]
    assert event.shares == {"gradient_0": 0.0, "gradient_1": 1.0, "gradient_2": 0.0}


@pytest.mark.parametrize("mode", WRAPS)
def test_it_is_a_drop_in_for_clip_by_global_norm(mode):
    """In a hand-written update, in place of `grads, norm = tf.clip_by_global_norm(grads, c)`."""

    def train(clip):
        net = support.model()

        def step(x, y):
            with tf.GradientTape() as tape:
                loss = support.loss_of(net, x, y)
            grads, norm = clip(tape.gradient(loss, net.trainable_variables), net.trainable_variables)
            for g, v in zip(grads, net.trainable_variables):
                v.assign_sub(0.01 * g)
            return norm

        support.run(WRAPS[mode](step), support.batches(12, spike_at=6))
        return support.weights(net)

    monitor = support.monitor()
    watched = train(monitor.clip)
    explicit = train(lambda grads, _: tf.clip_by_global_norm(grads, support.CLIP))
    support.assert_close(watched, explicit)
    assert monitor.snapshot().steps == 12
    assert any("kernel" in path for path in monitor.snapshot().layer_norms)


@pytest.mark.parametrize(
    ("policy", "reference"),
    [
        (policies.value(0.1), lambda gs: [tf.clip_by_value(g, -0.1, 0.1) for g in gs]),
        (policies.per_variable_norm(0.5), lambda gs: [tf.clip_by_norm(g, 0.5) for g in gs]),
        (policies.fixed(0.5), lambda gs: tf.clip_by_global_norm(gs, 0.5)[0]),
        (policies.observe(), lambda gs: gs),
    ],
    ids=["value", "per_variable_norm", "fixed", "observe"],
)
@pytest.mark.parametrize("mode", WRAPS)
def test_the_constant_policies_have_the_semantics_of_tensorflows_functions(policy, reference, mode):
    monitor = support.monitor(policy)
    step = WRAPS[mode](lambda a, b: monitor.clip([a, b])[0])
    rng = np.random.default_rng(0)
    for size in (0.05, 1.0, 30.0):
        grads = [tf.constant(rng.normal(size=shape) * size, tf.float32) for shape in ((4, 3), (2,))]
        clipped, expected = step(*grads), reference(grads)
        support.assert_close([g.numpy() for g in clipped], [g.numpy() for g in expected])
        applied = monitor.snapshot().applied_norm
        assert applied == pytest.approx(support.norm_of(expected), rel=1e-4)


# -- verdicts ---------------------------------------------------------------------------------------------


def feed(monitor, *values):
    step = tf.function(lambda g: monitor.clip([g]))
    return [step(tf.constant([value], tf.float32)) for value in values]


@pytest.mark.parametrize(("on_nonfinite", "verdict", "gradient"), [("zero", 2, 0.0), ("propagate", 0, np.nan)])
def test_what_happens_to_a_nan_is_the_users_choice(on_nonfinite, verdict, gradient):
    monitor = support.monitor(on_nonfinite=on_nonfinite)
    ((clipped,), decision), _ = feed(monitor, np.nan, 0.1)
    np.testing.assert_equal(float(clipped[0]), gradient)
    assert int(decision.verdict) == verdict
    snapshot = monitor.snapshot()
    assert snapshot.nonfinite_steps == 1
    assert snapshot.skipped_by_reason == {"nonfinite": 0, "explosion": 0}
    assert snapshot.anomalies["nonfinite"] == 1


@pytest.mark.parametrize(("on_explosion", "applied"), [("clip", support.CLIP), ("observe", 100.0)])
def test_what_happens_to_an_explosion_is_the_users_choice(on_explosion, applied):
    monitor = support.monitor(on_explosion=on_explosion)
    *_, ((clipped,), decision) = feed(monitor, *[0.1, 0.11, 0.12] * 4, 100.0)
    assert float(decision.explosion) == 1.0
    assert float(clipped[0]) == pytest.approx(applied)
    snapshot = monitor.snapshot()
    assert snapshot.explosions == 1
    assert snapshot.applied_norm == pytest.approx(applied)
    assert snapshot.skipped_by_reason["explosion"] == 0
    assert snapshot.last_explosion.step == 13
    assert snapshot.last_explosion.norm == pytest.approx(100.0)
    assert snapshot.last_explosion.shares == {"gradient_0": pytest.approx(1.0)}


def test_the_history_tells_the_last_1024_steps_in_order():
    monitor = support.monitor(jit_compile=True)
    step = tf.function(lambda g: monitor.clip([g]))
    for i in range(1, 1101):
        step(tf.constant([float(i)]))
    history = monitor.history()
    assert set(history) == {"step", *COLUMNS}
    assert history["step"].tolist() == list(range(77, 1101))
    assert history["norm"].tolist() == history["step"].tolist()
    assert set(history["applied_norm"].tolist()) == {support.CLIP}


@pytest.mark.parametrize("option", ["on_nonfinite", "on_explosion"])
def test_clip_refuses_to_skip_an_update_that_is_not_its_own(option):
    monitor = support.monitor(**{option: "skip"})
    with pytest.raises(gradwatch.errors.ConfigError, match=rf"{option}='skip' cannot be kept by monitor.clip.*watch"):
        monitor.clip([tf.ones([2])])
    assert monitor.snapshot().steps == 0


def test_before_the_first_step_there_is_an_empty_snapshot_and_history_and_no_norm():
    monitor = support.monitor()
    snapshot = monitor.snapshot()
    assert (snapshot.steps, snapshot.layer_norms, snapshot.warmup, snapshot.clip_scale) == (0, {}, True, 1.0)
    assert np.isnan([snapshot.norm, snapshot.applied_norm, snapshot.max_norm, snapshot.median]).all()
    assert np.isnan(list(snapshot.quantiles.values())).all()
    assert len(monitor.history()["step"]) == 0
    monitor.clip([tf.constant([np.nan])])
    assert np.isnan(monitor.snapshot().max_norm), "no finite step yet"
    monitor.clip([tf.constant([2.0])])
    snapshot = monitor.snapshot()
    assert (snapshot.norm, snapshot.applied_norm, snapshot.max_norm) == (2.0, support.CLIP, 2.0)
    assert snapshot.median == pytest.approx(2.0, rel=0.02)


def test_what_is_reported_are_numbers_of_the_host():
    monitor = support.monitor()
    monitor.report(loss=1, learning_rate=np.float32(0.5), accuracy=tf.constant(0.25))
    assert monitor.snapshot().extra == {"loss": 1.0, "learning_rate": 0.5, "accuracy": 0.25}


@pytest.mark.parametrize(
    "value", ["a", None, [1.0, 2.0], np.ones(3), tf.ones([2]), object()], ids=lambda x: type(x).__name__
)
def test_a_report_of_no_number_is_refused_and_changes_nothing(value):
    monitor = support.monitor()
    with pytest.raises(gradwatch.errors.ConfigError, match=r"report takes numbers, got .* for loss"):
        monitor.report(accuracy=0.5, loss=value)
    assert monitor.snapshot().extra == {}


@pytest.mark.parametrize("mode", ["function", "jit"])
def test_a_tensor_inside_a_graph_is_refused_by_report_where_it_was_lost(mode):
    monitor = support.monitor()

    def step(g):
        # a loss goes to the policy, in the graph; only the host takes other numbers
        monitor.report(loss=tf.reduce_sum(g), accuracy=tf.reduce_sum(g))
        return g

    with pytest.raises(gradwatch.errors.ConfigError, match="inside a graph for accuracy; return it from the step"):
        WRAPS[mode](step)(tf.ones([2]))


# -- bad input --------------------------------------------------------------------------------------------


def test_all_none_is_refused():
    with pytest.raises(NothingToWatch, match="None"):
        support.monitor().clip([None, None])


def test_an_empty_list_is_refused():
    with pytest.raises(NothingToWatch):
        support.monitor().clip([])


def test_other_gradients_than_at_the_first_step_are_refused():
    monitor = support.monitor()
    monitor.clip([tf.ones([3]), tf.ones([2])])
    with pytest.raises(LayoutError, match="number 1 had shape"):
        monitor.clip([tf.ones([3]), tf.ones([5])])
    with pytest.raises(LayoutError, match="2 gradients before, 1 now"):
        monitor.clip([tf.ones([3])])
    assert monitor.snapshot().steps == 1


def test_a_single_tensor_in_place_of_a_list_is_refused():
    with pytest.raises(gradwatch.errors.ConfigError, match="list"):
        support.monitor().clip(tf.ones([3]))


def test_a_list_of_variables_of_another_length_is_refused():
    with pytest.raises(gradwatch.errors.ConfigError, match="variables"):
        support.monitor().clip([tf.ones([3])], [tf.Variable([1.0]), tf.Variable([1.0])])


def test_variables_may_be_any_iterable():
    a, b = tf.Variable([1.0], name="a"), tf.Variable([1.0], name="b")
    monitor = support.monitor()
    for _ in range(2):
        monitor.clip([tf.ones([1]), None], (v for v in (a, b)))
    assert monitor.snapshot().layer_norms == {"a:0": 1.0, "b:0": 0.0}
    with pytest.raises(gradwatch.errors.ConfigError, match="variables must be a list"):
        monitor.clip([tf.ones([1])], 3)


def test_integer_gradients_are_refused():
    with pytest.raises(gradwatch.errors.ConfigError, match="int32"):
        support.monitor().clip([tf.constant([1, 2])])


def test_a_list_of_pairs_as_for_apply_gradients_is_refused_with_a_hint():
    with pytest.raises(gradwatch.errors.ConfigError, match="zip"):
        support.monitor().clip([(tf.ones([3]), tf.Variable(tf.ones([3])))])
