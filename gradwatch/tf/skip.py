"""Drop one optimizer update exactly: weights, slots and iterations stay bit-identical.

On one CPU the update is a branch that is not taken. That raises in replica context, and on a GPU its predicate travels
to the host; there, and under XLA, which makes the same of both, the update is made, and afterwards each variable keeps
either its new value or the one saved before (docs/decisions/0003). XLA copies what is read before an update and needed
after it. So there the optimizer adds zeros where the update is dropped, and only what it writes otherwise is saved.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import tensorflow as tf

from gradwatch.tf import compat, devices, legacy, updates


def apply_or_keep(
    update: Callable[..., Any],
    optimizer: Any,
    grads: list[Any],
    variables: list[Any] | None,
    keep: tf.Tensor,
) -> Any:
    """`update(optimizer, grads, variables)`, undone where `keep` (a boolean scalar) is true."""
    with tf.init_scope():
        updates.build(optimizer, variables)
    if not (tf.distribute.has_strategy() or devices.has_accelerator() or devices.compiled_by_xla()):
        _branch(keep, lambda: update(optimizer, grads, variables))
        # what their methods return: Keras' nothing, those of tf-keras the number of updates
        return optimizer.iterations if legacy.is_old(optimizer) else None
    targets = variables if variables is not None else compat.trainable_variables(optimizer)
    before = saved([*targets, *updates.slots(optimizer)])
    with written_unless(keep, optimizer) as is_kept:
        result = update(optimizer, grads, variables)
    restore_where(keep, [pair for pair in before if not is_kept(pair[0])])
    return result


def _branch(keep: tf.Tensor, update: Callable[[], Any]) -> None:
    if tf.executing_eagerly():
        if not keep.numpy():
            update()
        return

    def updated() -> tf.Tensor:
        update()
        return tf.constant(True)

    tf.cond(keep, lambda: tf.constant(False), updated)


#: Through these Keras' optimizers write, with the number that changes nothing: x + -0.0 and x - 0.0 are x for every x.
_WRITES = {"assign": None, "assign_add": -0.0, "assign_sub": 0.0}
_MARK = "gradwatch_unless_dropped"


@contextlib.contextmanager
def written_unless(keep: tf.Tensor, optimizer: Any) -> Iterator[Callable[[tf.Variable], bool]]:
    """Inside, what this optimizer writes under XLA changes nothing where `keep` (a boolean scalar) is true.

    Yields:
      Whether that is so for all that was written to a variable since: an optimizer may write in other ways too.
    """
    if not devices.compiled_by_xla() or tf.distribute.has_strategy():
        yield lambda variable: False
        return
    graph = tf.compat.v1.get_default_graph()
    began = len(graph.get_operations())

    def write(original: Callable[..., Any], neutral: float | None, variable: Any, value: Any) -> Any:
        held = updates.tf_variable(variable)
        if not held.dtype.is_floating or tf.compat.v1.get_default_graph() is not graph:
            return original(variable, value)
        value = tf.cast(value, held.dtype)
        sparse = isinstance(value, tf.IndexedSlices)
        if neutral is None and sparse:
            return original(variable, value)
        same = tf.convert_to_tensor(held) if neutral is None else tf.constant(neutral, held.dtype)
        if sparse:
            value = tf.IndexedSlices(tf.where(keep, same, value.values), value.indices, value.dense_shape)
        else:
            value = tf.where(keep, same, value)
        with tf.name_scope(_MARK):
            return original(variable, value)

    # on the instances, for this update alone
    *chain, last = updates.chain(optimizer)
    writers = [one for one in (*chain, last, *updates.wrapped(last)) if all(hasattr(one, name) for name in _WRITES)]
    for one in writers:
        vars(one).update({n: functools.partial(write, getattr(one, n), x) for n, x in _WRITES.items()})
    others: list[set[str]] = []

    def is_kept(variable: tf.Variable) -> bool:
        if not others:  # asked when the update has been made
            made = (one for one in graph.get_operations()[began:] if one.type != "ReadVariableOp")
            others.append({x.name for one in made if _MARK not in one.name for x in one.inputs})
        return graph.capture(variable.handle).name not in others[0]

    try:
        yield is_kept
    finally:
        for one in writers:
            for name in _WRITES:
                vars(one).pop(name, None)


def saved(variables: Iterable[Any]) -> list[tuple[tf.Variable, tf.Tensor]]:
    """The variables (Keras' or TensorFlow's) with their present values."""
    distinct = {id(v): v for v in map(updates.tf_variable, variables)}
    return [(v, tf.identity(tf.convert_to_tensor(v))) for v in distinct.values()]


def restore_where(keep: tf.Tensor, before: list[tuple[tf.Variable, tf.Tensor]]) -> None:
    """Undo all that was assigned since `saved`, where `keep` (a boolean scalar) is true."""
    for v, value in before:
        v.assign(tf.where(keep, value, tf.convert_to_tensor(v)))
