"""Drop one optimizer update exactly: weights, slots and iterations stay bit-identical.

`tf.cond(apply)` would be cheaper on one device, but it raises in replica context and its predicate travels
to the host on a GPU. So the update runs on zeroed gradients, and afterwards each variable keeps either its
new value or the one saved before (docs/decisions/0003).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from gradwatch.core.guard import Decision


def apply_or_keep(
    original: Callable[..., Any],
    optimizer: Any,
    grads: list[Any],
    variables: list[Any] | None,
    decision: Decision,
) -> Any:
    """`original(optimizer, grads, variables)`, undone where the verdict is "skip"."""
    if not optimizer.built:
        with tf.init_scope():
            optimizer.build(variables)
    targets = list(variables if variables is not None else optimizer._trainable_variables)
    held = {id(v): v for v in (_tf_variable(v) for v in [*targets, *optimizer.variables])}
    saved = {key: tf.identity(tf.convert_to_tensor(v)) for key, v in held.items()}
    keep = tf.equal(decision.verdict, 3.0)
    with tf.control_dependencies(list(saved.values())):
        result = original(optimizer, grads, variables)
    for key, v in held.items():
        v.assign(tf.where(keep, saved[key], tf.convert_to_tensor(v)))
    return result


def _tf_variable(variable: Any) -> Any:
    value = getattr(variable, "value", variable)
    return variable if callable(value) else value
