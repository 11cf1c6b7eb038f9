"""Drop one optimizer update exactly: weights, slots and iterations stay bit-identical.

On one CPU the update is a branch that is not taken. That raises in replica context, and on a GPU its predicate travels
to the host; there, and under XLA, which makes the same of both, the update is made, and afterwards each variable keeps
either its new value or the one saved before (docs/decisions/0003).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
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
    result = update(optimizer, grads, variables)
    restore_where(keep, before)
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


def saved(variables: Iterable[Any]) -> list[tuple[tf.Variable, tf.Tensor]]:
    """The variables (Keras' or TensorFlow's) with their present values."""
    distinct = {id(v): v for v in map(updates.tf_variable, variables)}
    return [(v, tf.identity(tf.convert_to_tensor(v))) for v in distinct.values()]


def restore_where(keep: tf.Tensor, before: list[tuple[tf.Variable, tf.Tensor]]) -> None:
    """Undo all that was assigned since `saved`, where `keep` (a boolean scalar) is true."""
    for v, value in before:
        v.assign(tf.where(keep, value, tf.convert_to_tensor(v)))
