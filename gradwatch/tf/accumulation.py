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
from gradwatch.tf import compat, updates
from gradwatch.tf.monitor import Monitor
from gradwatch.tf.skip import restore_where, saved

_HOOKED = (compat.OWN_CLIPPING, compat.UPDATE)
_proven: set[type] = set()  # optimizer classes that were seen to hand their mean to `_clip_gradients`


@contextlib.contextmanager
def watched(optimizer: Any, monitor: Monitor, names: list[Any] | None) -> Iterator[None]:
    """During one `apply` of an accumulating optimizer, its mean gradient goes through the monitor.

    Args:
      names: the variables of the gradients that are not None.

    Raises:
      UnsupportedError: this Keras accumulates in another way.
    """
    compat.require(*_HOOKED, of=optimizer)
    clip, update = (getattr(optimizer, name) for name in _HOOKED)
    steps = optimizer.gradient_accumulation_steps
    iterations = compat.iterations(optimizer)
    watched_means: list[None] = []
    variables: list[Any] = []  # of the mean
    dropped: list[Any] = []  # (whether it is dropped, what it then goes back to)

    def clip_mean(grads: list[Any]) -> list[Any]:
        watched_means.append(None)
        given, known, places = list(grads), names, list(range(len(grads)))
        if names is not None:
            given, known, places = updates.in_known_order(optimizer, given, names, names)
        scaled, decision = monitor._engine.clip(given, known, optimizer=optimizer, follow=True)
        variables[:] = known or []
        if monitor.guard.skips:
            # here and not in `update`: weight decay comes between the two
            slots = [v for v in optimizer.variables if v is not iterations]
            before = saved([*compat.trainable_variables(optimizer), *slots])
            dropped[:] = tf.equal(decision.verdict, float(SKIP)), before
        return clip([scaled[place] for place in places])

    def update_or_keep(grads: list[Any], trainable_variables: list[Any], learning_rate: Any) -> None:
        update(grads, trainable_variables, learning_rate)
        if dropped:
            keep, before = dropped
            restore_where(keep, before)
            # the whole cycle is dropped: the next micro-batch begins a new one, `iterations` as before this one
            iterations.assign_sub(tf.cast(tf.where(keep, steps, 0), iterations.dtype))
        monitor._engine.settle(variables)

    # on the instance, for this call alone
    vars(optimizer).update(zip(_HOOKED, (clip_mean, update_or_keep)))
    try:
        yield
    finally:
        for name in _HOOKED:
            vars(optimizer).pop(name, None)
    if watched_means:
        _proven.add(type(optimizer))
    elif type(optimizer) not in _proven and _has_updated(iterations, steps):
        raise compat.not_called(
            compat.OWN_CLIPPING, "updated with the mean of the micro-batches without it: that mean passed unseen"
        )


def _has_updated(iterations: Any, steps: int) -> bool:
    """Whether this `apply` ended a cycle; a graph holds the update of every cycle."""
    return not tf.executing_eagerly() or int(tf.convert_to_tensor(iterations)) % steps == 0
