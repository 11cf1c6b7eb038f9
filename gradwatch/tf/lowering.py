"""The learning rate as an optimizer sees it within its update: what it is set to, with a limit that is on the device.

The rate is lowered where an optimizer asks for it, so the person's own view of it stays: `optimizer.learning_rate`, its
schedule and the callbacks that read or set it know nothing of it. It holds for every optimizer of Keras, its
weight decay, its momentum and what it wraps, because all of them ask one method.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from gradwatch.tf import compat, legacy, rates, updates, watchers
from gradwatch.tf.lowered_rate import Lowering, as_it_is_set, is_asked_as_set
from gradwatch.tf.skip import saved

_lowerings: weakref.WeakKeyDictionary[Any, Lowering] = weakref.WeakKeyDictionary()
#: (optimizer, gradients, variables) -> whatever the optimizer returns.
Update = Callable[[Any, Any, Any], Any]


def attach(optimizer: Any, lowering: Lowering | None) -> None:
    """From now on this optimizer, and what it wraps, see their learning rate lowered; None: as it is.

    Raises:
      UnsupportedError: this Keras asks for the rate elsewhere.
    """
    for one in _tree(optimizer):
        if lowering is None:
            _lowerings.pop(one, None)
        elif not legacy.is_old(one):
            compat.require(compat.LEARNING_RATE, of=one)
            _install(type(one))
            _lowerings[one] = lowering


def lowered(update: Update, optimizer: Any, lowering: Lowering | None) -> Update:
    """`update` at the lowered rate: of tf-keras, whose optimizers ask for their rate in many places, scaled afterwards.

    Its slots stay as at the full rate, so momentum is slower to follow.
    """
    if lowering is None or not legacy.is_old(optimizer):
        return update

    def scaled(optimizer: Any, grads: list[Any], variables: list[Any]) -> Any:
        before, scale = saved(variables), lowering.share(rates.learning_rate(optimizer))
        result = update(optimizer, grads, variables)
        for v, b in before:
            after = tf.convert_to_tensor(v)
            # where, so that a run at its full rate stays the same to the bit
            v.assign(tf.where(scale < 1.0, b + tf.cast(scale, after.dtype) * (after - b), after))
        return result

    return scaled


def _tree(optimizer: Any) -> Iterator[Any]:
    yield optimizer
    for one in updates.wrapped(optimizer):
        yield from _tree(one)


def _install(cls: type) -> None:
    owner = next(c for c in cls.__mro__ if compat.LEARNING_RATE in c.__dict__)
    method = owner.__dict__[compat.LEARNING_RATE]
    if not hasattr(method, "_gradwatch"):
        setattr(owner, compat.LEARNING_RATE, _asked(method))


def _asked(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    @tf.autograph.experimental.do_not_convert
    def current(self: Any, *args: Any, **keywords: Any) -> Any:
        lowering = _lowerings.get(self)
        if lowering is None or is_asked_as_set() or not watchers.is_updating():
            return original(self, *args, **keywords)
        with as_it_is_set():  # a class of the user's may ask its parent: the rate must not be scaled twice
            rate = tf.convert_to_tensor(original(self, *args, **keywords))
        return lowering.of(rate)

    current._gradwatch = True  # type: ignore[attr-defined]
    return current
