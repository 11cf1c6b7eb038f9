"""A monitor and its variables: whose they are, starting over, and copies."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import keras
import pytest
import support
import tensorflow as tf

import gradwatch
from gradwatch import policies
from gradwatch.errors import LayoutError


class Linear(tf.Module):
    def __init__(self, size: int = 3) -> None:
        super().__init__()
        self.w = tf.Variable(tf.ones([size]), name="w")

    def __call__(self, x, training=True):
        return tf.reduce_sum(self.w * x, keepdims=True)


def sum_step(net, optimizer):
    return support.train_step(net, optimizer)


DATA = (tf.constant([1.0, 2.0, 3.0]), tf.constant([1.0]))


@pytest.mark.parametrize("mode", ["eager", "function inside", "function outside"])
def test_two_networks_whose_variables_have_one_name_do_not_share_a_monitor(mode):
    one, other = Linear(), Linear()
    steps = [sum_step(net, keras.optimizers.SGD(0.01)) for net in (one, other)]

    def step(x, y):
        return [s(x, y) for s in steps]

    watched = support.MODES[mode](support.watch(), step)
    with pytest.raises(LayoutError, match=r"is another variable of the same name.*watch\(optimizer="):
        watched(*DATA)


def test_a_model_that_was_rebuilt_under_the_same_names_is_another_set_of_variables():
    """k-fold with clear_session: the second fold must not go on with the statistics of the first."""
    monitor = support.monitor()

    def fold():
        keras.backend.clear_session()
        net, optimizer = support.model(), support.sgd()
        support.run(gradwatch.watch(monitor=monitor)(support.train_step(net, optimizer)), support.batches(3))
        return [v.path for v in net.trainable_variables]

    first = fold()
    gc.collect()
    with pytest.raises(LayoutError, match=r"monitor\.reset\(\)"):
        fold()
    monitor.reset()
    assert fold() == first
    assert monitor.snapshot().steps == 3


def test_a_keras_variable_and_the_tensorflow_variable_within_are_one():
    monitor = support.monitor()
    v = keras.Variable([1.0, 1.0])
    monitor.clip([tf.ones([2])], [v])
    monitor.clip([tf.ones([2])], [v.value])
    assert monitor.snapshot().steps == 2


def test_watching_keeps_no_model_alive():
    monitor = support.monitor()
    net = Linear()
    monitor.clip([tf.ones([3])], [net.w])
    gone = weakref.ref(net.w)
    del net
    gc.collect()
    assert gone() is None
    assert monitor.snapshot().steps == 1


# -- starting over ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["eager", "function inside", "jit inside"])
def test_a_reset_run_decides_as_one_that_never_was(mode):
    def history(monitor, net, optimizer, data):
        step = support.MODES[mode](gradwatch.watch(monitor=monitor), support.train_step(net, optimizer))
        support.run(step, data)
        return monitor.history()

    monitor = gradwatch.Monitor("again", policies.percentile(75, window=20), jit_compile=False)
    history(monitor, support.model(), support.sgd(), support.batches(12, spike_at=7, seed=1))
    monitor.report(loss=1.0)
    monitor.reset()
    assert monitor.snapshot().steps == 0
    assert monitor.snapshot().extra == {}
    fresh = gradwatch.Monitor("fresh", policies.percentile(75, window=20), jit_compile=False)
    again, expected = (history(m, support.model(), support.sgd(), support.batches(9)) for m in (monitor, fresh))
    support.assert_same(list(again.values()), list(expected.values()))


def test_after_a_reset_a_step_that_was_traced_before_is_still_seen():
    net, optimizer = support.model(), support.sgd()
    watched = support.watch()(tf.function(support.train_step(net, optimizer)))
    support.run(watched, support.batches(3))
    watched.monitor.reset()
    support.run(watched, support.batches(2))
    assert watched.monitor.snapshot().steps == 2


def test_unfrozen_layers_train_on_after_a_reset():
    net, monitor = support.model(), support.monitor()

    def fit():
        net.compile(optimizer=support.sgd(), loss="mse", run_eagerly=True)
        x, y = support.batches(1)[0]
        net.fit(x, y, batch_size=4, verbose=0, callbacks=[gradwatch.KerasCallback(monitor)])

    net.layers[0].trainable = False
    fit()
    assert len(monitor.snapshot().layer_norms) == 2
    net.layers[0].trainable = True
    monitor.reset()
    fit()
    assert len(monitor.snapshot().layer_norms) == 4
    assert monitor.snapshot().steps == 2


# -- copies -----------------------------------------------------------------------------------------------

COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda x: pickle.loads(pickle.dumps(x)),
}


@pytest.mark.parametrize("way", COPIES)
def test_a_copy_has_the_options_and_no_run(way):
    sinks = [print]
    options = {"on_nonfinite": "skip", "on_explosion": "observe", "jit_compile": False}
    monitor = gradwatch.Monitor("run", policies.percentile(75, window=20), on_alert=sinks, **options)
    net = support.model()
    support.run(gradwatch.watch(monitor=monitor)(support.train_step(net, support.sgd())), support.batches(3))
    copied = COPIES[way](monitor)
    assert copied.name == "run"
    assert copied.guard == monitor.guard
    assert copied.alert_sinks == sinks
    assert copied.snapshot().steps == 0
    assert copied.run_id != monitor.run_id
    support.run(gradwatch.watch(monitor=copied)(support.train_step(support.model(), support.sgd())), support.batches(2))
    assert (monitor.snapshot().steps, copied.snapshot().steps) == (3, 2)


# -- advice that fits ------------------------------------------------------------------------------------------


def two_layers():
    net = support.model()
    return net, net.trainable_variables


def refused(first, second, optimizers=None):
    """What is said when `second` follows `first`; the gradients are ones."""
    monitor = support.monitor()
    one, other = optimizers or (support.sgd(), support.sgd())
    for variables, optimizer in ((first, one), (second, other)):
        grads = [tf.ones(v.shape) for v in variables]
        if variables is first:
            monitor.clip(grads, variables, optimizer)
    with pytest.raises(LayoutError) as error:
        monitor.clip(grads, variables, optimizer)
    return str(error.value)


def test_unfreezing_is_told_to_reset_and_not_to_use_several_optimizers():
    _, variables = two_layers()
    said = refused(variables[2:], variables)
    assert "frozen or unfrozen, call monitor.reset()" in said
    assert "watch(optimizer=" not in said


def test_another_model_of_the_same_names_is_told_to_reset_first():
    _, a = two_layers()
    keras.backend.clear_session()
    _, b = two_layers()
    said = refused(a, b)
    if [v.path for v in a] == [v.path for v in b]:
        assert said.index("monitor.reset()") < said.index("watch(optimizer=")


def test_one_optimizer_over_two_models_is_told_to_build_it_with_all():
    _, a = two_layers()
    _, b = two_layers()
    one = support.sgd()
    said = refused(a, b, (one, one))
    assert "optimizer.build(all_variables)" in said
    assert "watch(optimizer=" not in said


def test_two_optimizers_over_two_models_are_told_to_watch_a_dict():
    _, a = two_layers()
    b = [tf.Variable(tf.ones([3]), name="head")]
    assert "watch(optimizer={'generator'" in refused(a, b)


def test_gradients_without_variables_are_told_to_name_them():
    monitor = support.monitor()
    monitor.clip([tf.ones([2])])
    with pytest.raises(LayoutError, match="with variables="):
        monitor.clip([tf.ones([3])])
