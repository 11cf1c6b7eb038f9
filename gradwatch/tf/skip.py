"""Drop one optimizer update exactly: weights, slots and iterations stay bit-identical.

`tf.cond(apply)` would be cheaper on one device, but it raises in replica context and its predicate travels
to the host on a GPU. So the update runs on zeroed gradients, and afterwards each variable keeps either its
new value or the one saved before (docs/decisions/0003).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import tensorflow as tf

from gradwatch.tf import compat, updates


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
    targets = variables if variables is not None else compat.trainable_variables(optimizer)
    before = saved([*targets, *updates.slots(optimizer)])
    result = update(optimizer, grads, variables)
    restore_where(keep, before)
    return result


def saved(variables: Iterable[Any]) -> list[tuple[tf.Variable, tf.Tensor]]:
    """The variables (Keras' or TensorFlow's) with their present values."""
    distinct = {id(v): v for v in map(updates.tf_variable, variables)}
    return [(v, tf.identity(tf.convert_to_tensor(v))) for v in distinct.values()]


def restore_where(keep: tf.Tensor, before: list[tuple[tf.Variable, tf.Tensor]]) -> None:
    """Undo all that was assigned since `saved`, where `keep` (a boolean scalar) is true."""
    for v, value in before:
        v.assign(tf.where(keep, value, tf.convert_to_tensor(v)))
