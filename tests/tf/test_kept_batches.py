"""What the step that alarmed was called with lies beside the run: in every mode, of every structure, and no other."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import tensorflow as tf
from support import HOST_OPS, MODES, batches, model, one_variable_step, op_types, sgd, train_step, watch, weights

import gradwatch
from gradwatch.errors import ConfigError, RecordError
from gradwatch.reading.reader import reader
from gradwatch.record import batches as kept_files
from gradwatch.record import recorder

SPIKE = 9


pytestmark = pytest.mark.usefixtures("reader_of_this_test")


def look():
    assert reader.poll_now(20)
    assert recorder._writing.flush(20)


def kept(folder):
    look()
    return gradwatch.open_event(folder)


def same(batch, expected):
    for a, b in zip(batch, expected, strict=True):
        np.testing.assert_array_equal(a, np.asarray(b), strict=True)


QUICK = (gradwatch.detectors.spike(warmup_steps=4, cooldown_steps=1), gradwatch.detectors.nonfinite(cooldown_steps=1))


def step_of(loss, **options):
    """A watched step that moves one variable by the gradient of `loss(w, *args, **keywords)`."""
    return watch(detectors=QUICK, **options)(tf.function(one_variable_step(loss)))


# -- every mode -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_the_batch_of_the_step_that_alarmed_and_the_weights_after_it_are_kept(mode, folder):
    net, data = model(), batches(12, spike_at=SPIKE)
    step = MODES[mode](lambda s: watch(record=folder, keep_batch=True, weights=True)(s), train_step(net, sgd()))
    for i, batch in enumerate(data, 1):
        step(*batch)
        if i == SPIKE - 1:
            look()
            assert not list(folder.glob("*.npz"))
        if i == SPIKE:
            after = weights(net)
    event = kept(folder)
    same(event.batch, data[SPIKE - 1])
    same(event.weights.values(), after)
    assert (event.step, event.kinds, event.kind, event.keywords) == (SPIKE, ("explosion",), "explosion", {})
    run = gradwatch.open_run(folder)
    assert run.batches == (event.path,)
    assert event.norm == run.steps["norm"][SPIKE - 1]
    assert event.threshold == run.steps["threshold"][SPIKE - 1]
    assert event.loss == run.steps["loss"][SPIKE - 1]
    assert event.shares == run.events["shares"][0]
    assert event.run_id == run.info["id"]


def test_a_nan_in_the_first_batch_is_kept(folder):
    bad = (tf.fill([8, 5], np.nan), tf.ones([8, 1]))
    for make in (lambda s: watch(record=folder / "eager", keep_batch=True)(s),
                 lambda s: watch(record=folder / "function", keep_batch=True)(tf.function(s))):  # fmt: skip
        make(train_step(model(), sgd()))(*bad)
    for name in ("eager", "function"):
        event = kept(folder / name)
        assert (event.step, event.kinds) == (1, ("nonfinite",))
        same(event.batch, bad)


def test_a_keeping_step_stays_on_the_device(folder):
    step = watch(record=folder, keep_batch=True)(tf.function(train_step(model(), sgd())))
    x, y = batches(1)[0]
    assert not HOST_OPS & set(op_types(step.get_concrete_function(x, y)))


def test_without_keep_batch_the_graph_and_the_folder_are_as_before(folder):
    x, y = batches(1)[0]
    steps = [
        watch(record=folder, **options)(tf.function(train_step(model(), sgd())))
        for options in ({}, {"keep_batch": True})
    ]
    plain, keeping = (len(op_types(step.get_concrete_function(x, y))) for step in steps)
    assert plain < keeping
    assert steps[0].monitor._engine.keeper is None
    for batch in batches(12, spike_at=SPIKE):
        steps[0](*batch)
    look()
    assert not list(folder.glob("*.npz"))
    with pytest.raises(RecordError, match=r"no event with its batch.*keep_batch=True"):
        gradwatch.open_event(folder)


# -- fit and strategies -----------------------------------------------------------------------------------


def fitted(folder, spike, rows=44, size=8, **options):
    """A model fitted on numbered rows, of which the batch with row `spike` explodes; (event, x, y)."""
    x = np.random.default_rng(0).normal(size=(rows, 5)).astype(np.float32)
    y = np.arange(rows, dtype=np.float32)[:, None] / rows
    x[spike] *= 1e4
    net = model()
    net.compile(sgd(1e-4), "mse", **options)
    callback = gradwatch.KerasCallback(
        record=folder, keep_batch=True, detectors=[gradwatch.detectors.spike(warmup_steps=3)], jit_compile=False
    )
    net.fit(x, y, batch_size=size, epochs=1, verbose=0, shuffle=False, callbacks=[callback])
    return kept(folder), x, y


@pytest.mark.parametrize("options", [{}, {"jit_compile": True}, {"run_eagerly": True}], ids=["graph", "jit", "eager"])
@pytest.mark.parametrize("spike", [35, 42], ids=["whole batch", "last smaller batch"])
def test_in_fit_the_batch_is_what_the_model_was_given(folder, spike, options):
    event, x, y = fitted(folder, spike, **options)
    first = spike // 8 * 8
    assert event.step == spike // 8 + 1
    same(event.batch, (x[first : first + 8], y[first : first + 8]))


def test_a_model_that_was_fitted_with_a_keeper_is_left_as_it_was(folder):
    net = model()
    net.compile(sgd(), "mse")
    x, y = np.ones((16, 5), np.float32), np.ones((16, 1), np.float32)
    net.fit(x, y, verbose=0, callbacks=[gradwatch.KerasCallback(record=folder, keep_batch=True)])
    assert "train_step" not in vars(net)
    net.fit(x, y, verbose=0)


def test_under_a_strategy_the_batch_of_all_replicas_is_kept_in_their_order(folder, mirrored):
    with mirrored.scope():
        event, x, y = fitted(folder, 35)
    assert event.step == 5
    same(event.batch, (x[32:40], y[32:40]))


def test_under_a_strategy_a_last_smaller_batch_is_kept(folder, mirrored):
    with mirrored.scope():
        event, x, y = fitted(folder, 41, rows=43)
    assert event.step == 6
    same(event.batch, (x[40:43], y[40:43]))


@pytest.mark.parametrize("inside", [True, False], ids=["replica step decorated", "strategy.run decorated"])
def test_a_step_of_ones_own_under_a_strategy(folder, mirrored, inside):
    with mirrored.scope():
        net, optimizer = model(), sgd()
        optimizer.build(net.trainable_variables)
    plain = train_step(net, optimizer)
    keeping = watch(record=folder, keep_batch=True)
    if inside:
        watched = keeping(plain)
        run = tf.function(lambda x, y: mirrored.run(watched, args=(x, y)))
    else:
        run = keeping(tf.function(lambda x, y: mirrored.run(plain, args=(x, y))))
    data = batches(12, spike_at=SPIKE)
    for x, y in data:
        run(*(spread(mirrored, part) for part in (x, y)))
    event = kept(folder)
    assert event.step == SPIKE
    same(event.batch, data[SPIKE - 1])


def spread(strategy, tensor):
    halves = tf.split(tensor, 2)
    return strategy.experimental_distribute_values_from_function(lambda c: halves[c.replica_id_in_sync_group])


# -- every structure --------------------------------------------------------------------------------------


@pytest.mark.parametrize("jit", [False, True], ids=["function", "jit"])
def test_batches_of_any_length_are_kept_and_a_short_one_after_a_long_one(folder, jit):
    net = model()
    signature = [tf.TensorSpec([None, 5]), tf.TensorSpec([None, 1])]
    step = tf.function(train_step(net, sgd(1e-6)), input_signature=signature, jit_compile=jit)
    step = watch(record=folder, keep_batch=True, detectors=QUICK)(step)
    for i, (x, y) in enumerate(batches(30)):
        rows = 3 if i % 2 else 7
        size = 1e3 if i in (11, 20) else 1.0
        step(size * x[:rows], size * y[:rows])
        if i in (11, 20):
            look()
    first, second = map(gradwatch.open_event, gradwatch.open_run(folder).batches)
    data = batches(30)
    same(first.batch, [1e3 * part[:3] for part in data[11]])
    same(second.batch, [1e3 * part[:7] for part in data[20]])


def test_nested_ragged_and_sparse_arguments_come_back_as_they_were(folder):
    def loss(w, batch, scale, *, mode, mask=None):
        dense = tf.reduce_sum(batch["ids"].to_tensor()) + tf.sparse.reduce_sum(batch["sparse"])
        return w * scale * (dense + tf.reduce_sum(batch["pair"][0]))

    step = step_of(loss, record=folder, keep_batch=True)
    rows = [[1.0], [], [2.0, 3.0]]
    sparse = tf.sparse.from_dense([[0.0, 2.0], [3.0, 0.0]])
    for size in [1.0] * 8 + [1e6]:
        batch = {"ids": tf.ragged.constant(rows) * size, "pair": [tf.ones([2]), None], "sparse": sparse, "name": "a"}
        step(batch, 2, mode="train", mask=tf.constant([True, False]))
    event = kept(folder)
    batch, scale = event.batch
    assert (scale, batch["name"], batch["pair"][1], event.keywords["mode"]) == (2, "a", None, "train")
    assert isinstance(scale, int)
    assert event.keywords["mask"].tolist() == [True, False]
    assert [batch["ids"].row(i).tolist() for i in range(3)] == [[1e6 * x for x in row] for row in rows]
    assert batch["sparse"].indices.tolist() == [[0, 1], [1, 0]]
    assert batch["sparse"].values.tolist() == [2.0, 3.0]
    same([batch["pair"][0]], [np.ones(2, np.float32)])


def test_texts_half_precision_and_whole_numbers_come_back_as_they_were(folder):
    def loss(w, x, half, ids, words):
        return w * tf.reduce_sum(x)

    step = step_of(loss, record=folder, keep_batch=True)
    rest = (
        tf.constant([1.5, -2.0], tf.bfloat16),
        tf.constant([[1, 2]], tf.int64),
        tf.constant([b"a\0b", b"", b"\xff\0"]),
    )
    for size in [1.0] * 8 + [1e6]:
        step(size * tf.ones([2]), *rest)
    _, half, ids, words = kept(folder).batch
    assert half.dtype.name == "bfloat16"
    assert half.astype(np.float32).tolist() == [1.5, -2.0]
    assert (ids.tolist(), ids.dtype) == ([[1, 2]], np.int64)
    assert words.tolist() == [b"a\0b", b"", b"\xff\0"]


def test_the_instance_of_a_method_and_other_objects_are_left_out(folder):
    class Trainer:
        def __init__(self):
            self.step_body = one_variable_step(lambda w, x: w * tf.reduce_sum(x))

        @watch(record=folder, keep_batch=True)
        def step(self, x, optimizer):
            return self.step_body(x)

    trainer = Trainer()
    for size in [1.0] * 8 + [1e6]:
        trainer.step(size * tf.ones([3]), sgd())
    same(kept(folder).batch, [1e6 * np.ones(3, np.float32)])


def test_a_python_number_that_changes_at_each_eager_call_needs_no_place_of_its_own(folder):
    body = one_variable_step(lambda w, x: w * tf.reduce_sum(x))
    step = watch(record=folder, keep_batch=True)(lambda i, x: body(x))
    for i in range(40):
        step(i, tf.ones([3]) * (1e6 if i == 38 else 1.0))
    assert len(step.monitor._engine.keeper._slots) == 1
    assert kept(folder).batch[0] == 38


# -- what cannot be kept ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [8, None], ids=["fixed", "any length"])
def test_a_batch_beyond_the_limit_is_not_kept_and_the_event_says_so(folder, rows, caplog):
    net = model()
    signature = [tf.TensorSpec([rows, 5]), tf.TensorSpec([rows, 1])]
    step = tf.function(train_step(net, sgd()), input_signature=signature)
    step = watch(record=folder, keep_batch=True, batch_bytes=191)(step)  # they have 8 * 6 * 4 = 192
    for batch in batches(12, spike_at=SPIKE):
        step(*batch)
    event = kept(folder)
    assert (event.step, event.kind) == (SPIKE, "explosion")
    with pytest.raises(RecordError, match=r"without its batch: it has 192 bytes and batch_bytes is 191"):
        event.batch  # noqa: B018
    assert event.path.stat().st_size < 5000
    assert caplog.text.count("it has 192 bytes") == 1


def test_a_step_that_fetches_its_data_itself_is_told_what_to_do(folder, caplog):
    iterator = iter(tf.data.Dataset.from_tensor_slices(tf.concat([tf.ones([8]), [1e6]], 0)))
    body = one_variable_step(lambda w, x: w * x)
    step = watch(record=folder, keep_batch=True)(tf.function(lambda data: body(next(data))))
    for _ in range(9):
        step(iterator)
    assert caplog.text.count("give it the batch as arguments") == 1
    with pytest.raises(RecordError, match="no argument of the step is a tensor"):
        kept(folder).batch  # noqa: B018


def test_a_second_event_waits_for_the_host_and_does_not_replace_the_first(folder):
    step = step_of(lambda w, x: w * tf.reduce_sum(x), record=folder, keep_batch=True)
    reader.set_interval(1000.0)
    try:
        look_at = []
        for size in [1.0] * 8 + [1e6, 1.0, np.nan, 1.0]:
            step(size * tf.ones([2]))
        look()
        look_at.append(gradwatch.open_run(folder).batches)
        step(np.inf * tf.ones([2]))
        look()
        look_at.append(gradwatch.open_run(folder).batches)
    finally:
        reader.set_interval(1.0)
    assert [len(paths) for paths in look_at] == [1, 2]
    first, second = map(gradwatch.open_event, look_at[1])
    assert (first.step, first.kind) == (9, "explosion")
    assert (second.step, second.kind) == (13, "nonfinite")


def test_a_run_keeps_a_bounded_number_of_batches(folder, monkeypatch, caplog):
    monkeypatch.setattr(kept_files, "MOST", 2)
    step = step_of(lambda w, x: w * tf.reduce_sum(x), record=folder, keep_batch=True)
    for _ in range(4):
        step(tf.ones([2]))
        step(np.nan * tf.ones([2]))
        look()
    assert len(gradwatch.open_run(folder).batches) == 2
    assert caplog.text.count("this run keeps no more") == 1


def test_a_disk_that_takes_no_batch_does_not_stop_the_training(folder, monkeypatch, caplog):
    def full(*args, **keywords):
        raise OSError("no space left")

    monkeypatch.setattr(kept_files, "write_event", full)
    step = step_of(lambda w, x: w * tf.reduce_sum(x), record=folder, keep_batch=True)
    step(np.nan * tf.ones([2]))
    look()
    step(tf.ones([2]))
    assert step.monitor.recorded[1] == 1
    assert "no space left" in caplog.text


def test_events_out_of_a_checkpoint_are_no_news(folder, tmp_path):
    loss, bad = (lambda w, x: w * tf.reduce_sum(x)), np.nan * tf.ones([2])
    before = step_of(loss)
    for x in [tf.ones([2])] * 3 + [bad]:
        before(x)
    before.monitor.save(tmp_path / "state.npz")
    step = step_of(loss, record=folder, keep_batch=True)
    step.monitor.load(tmp_path / "state.npz")
    step(tf.ones([2]))
    look()
    assert not gradwatch.open_run(folder).batches
    step.monitor.load(tmp_path / "state.npz")  # in mid-run
    step(tf.ones([2]))
    look()
    assert not gradwatch.open_run(folder).batches
    step(bad)
    assert kept(folder).step == 6


def test_a_batch_that_waits_when_the_process_ends_is_written(folder):
    step = step_of(lambda w, x: w * tf.reduce_sum(x), record=folder, keep_batch=True)
    step(np.nan * tf.ones([2]))
    reader.close()
    assert gradwatch.open_event(folder).step == 1


# -- options and files ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep_batch": True}, "beside the record of the run, and there is no record"),
        ({"record": "runs", "weights": True}, "give keep_batch=True as well"),
        ({"record": "runs", "keep_batch": 1}, "must be True or False, got 1"),
        ({"record": "runs", "keep_batch": True, "batch_bytes": 0}, "batch_bytes must"),
    ],
)
def test_options_that_do_not_fit_together_are_refused(options, message, monkeypatch):
    monkeypatch.delenv(recorder.VARIABLE, raising=False)
    with pytest.raises(ConfigError, match=message):
        gradwatch.Monitor("m", **options)


def test_a_copy_keeps_batches_too(folder):
    monitor = gradwatch.Monitor("m", record=folder, keep_batch=True, batch_bytes=100, weights=True)
    keeper = copy.copy(monitor)._engine.keeper
    assert (keeper.limit, keeper.with_weights) == (100, True)


@pytest.fixture
def event(folder):
    step = step_of(lambda w, x: w * tf.reduce_sum(x), record=folder, keep_batch=True)
    step(np.nan * tf.ones([2]))
    return kept(folder)


def test_a_file_that_is_damaged_newer_or_of_another_program_says_so(event):
    path = event.path
    whole = path.read_bytes()
    assert gradwatch.open_event(path).step == gradwatch.open_event(gradwatch.open_run(path.parent).path).step == 1
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RecordError, match="cannot be read"):
        gradwatch.open_event(path)
    np.savez(path, a=np.ones(3))
    with pytest.raises(RecordError, match="no event of gradwatch"):
        gradwatch.open_event(path)
    np.savez(path, header=np.array(json.dumps({"format": "gradwatch event", "version": 99})))
    with pytest.raises(RecordError, match=r"newer gradwatch .version 99"):
        gradwatch.open_event(path)
    np.savez(path, header=np.array(json.dumps({"format": "gradwatch event", "version": 1})))
    with pytest.raises(RecordError, match="is damaged"):
        gradwatch.open_event(path)
    with pytest.raises(RecordError, match="there is no file"):
        gradwatch.open_event(path.with_name("no.npz"))


def test_a_watched_function_that_keeps_batches_can_be_exported(folder, tmp_path):
    class Exported(tf.Module):
        pass

    net = model()
    module = Exported()
    module.net, module.optimizer = net, sgd()
    step = watch(record=folder, keep_batch=True, weights=True)(tf.function(train_step(net, module.optimizer)))
    module.step, module.monitor = step, step.monitor
    x, y = batches(1)[0]
    step(x, y)
    tf.saved_model.save(module, str(tmp_path / "saved"), signatures=step.get_concrete_function(x, y))
    tf.saved_model.load(str(tmp_path / "saved"))
