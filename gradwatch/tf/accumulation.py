"""`gradient_accumulation_steps`: what is watched is the mean of the micro-batches, once per update.

Keras sums the micro-batches inside `apply` and steps with their mean every n-th time. It hands that mean to
`_clip_gradients`, so that is where the monitor stands: one step is one update, as everywhere else, and a NaN in
any micro-batch reaches the mean.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from gradwatch.core.guard import SKIP
from gradwatch.errors import UnsupportedError
from gradwatch.tf.monitor import Monitor
from gradwatch.tf.skip import restore_where, saved

_HOOKED = ("_clip_gradients", "_backend_update_step")


@contextlib.contextmanager
def watched(optimizer: Any, monitor: Monitor, names: list[Any] | None) -> Iterator[None]:
    """During one `apply` of an accumulating optimizer, its mean gradient goes through the monitor.

    Args:
      names: the variables of the gradients that are not None.

    Raises:
      UnsupportedError: this Keras accumulates in another way.
    """
    missing = [name for name in _HOOKED if not hasattr(optimizer, name)]
    if missing:
        raise UnsupportedError(
            f"gradient_accumulation_steps cannot be watched in this Keras: its optimizers have no {missing[0]}; "
            "accumulate by hand and call monitor.clip on the mean"
        )
    clip, update = (getattr(optimizer, name) for name in _HOOKED)
    steps = optimizer.gradient_accumulation_steps
    held: list[Any] = []  # what a dropped update goes back to; weight decay comes between the two calls

    def clip_mean(grads: list[Any]) -> list[Any]:
        scaled, decision = monitor._hidden.clip(list(grads), names, optimizer=optimizer, follow=True)
        if monitor.guard.skips:
            slots = [v for v in optimizer.variables if v is not optimizer._iterations]
            held[:] = tf.equal(decision.verdict, float(SKIP)), saved([*optimizer._trainable_variables, *slots])
        return clip(scaled)

    def update_or_keep(grads: list[Any], trainable_variables: list[Any], learning_rate: Any) -> None:
        update(grads, trainable_variables, learning_rate)
        if held:
            keep, before = held
            restore_where(keep, before)
            # the whole cycle is dropped: the next micro-batch begins a new one, `iterations` as before this one
            optimizer._iterations.assign_sub(tf.cast(tf.where(keep, steps, 0), optimizer._iterations.dtype))
        monitor._hidden.weights.settle(names)

    # on the instance, for this call alone
    vars(optimizer).update(_clip_gradients=clip_mean, _backend_update_step=update_or_keep)
    try:
        yield
    finally:
        for name in _HOOKED:
            vars(optimizer).pop(name, None)
