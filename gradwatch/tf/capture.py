"""Gradients taken on their way to an optimizer, which then makes no update: a look at a step without training."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf

_here = threading.local()  # a trace stays in its thread, so that no other training notices


class Captured:
    """The gradients that came by, in the order of the updates.

    Attributes:
      grads: before clipping, unscaled, without None.
      variables: all that the first optimizer knows, in its order; [] where that is not known.
    """

    def __init__(self) -> None:
        self.grads: list[Any] = []
        self.variables: list[Any] = []
        self._by_hand = False

    def take(
        self, grads: Sequence[Any], variables: Sequence[Any] = (), *, loss_scale: Any = None, by_hand: bool = False
    ) -> None:
        """One update.

        Args:
          variables: those that the optimizer knows.
          loss_scale: what the gradients were multiplied by; None for nothing.
          by_hand: it came through `monitor.clip`; what reaches an optimizer afterwards is the same again.
        """
        self.variables = self.variables or list(variables)
        if self._by_hand and not by_hand:
            return
        self._by_hand = self._by_hand or by_hand
        self.grads += [_unscaled(gradient, loss_scale) for gradient in grads if gradient is not None]


def _unscaled(gradient: Any, loss_scale: Any) -> Any:
    if loss_scale is None:
        return gradient
    if isinstance(gradient, tf.IndexedSlices):
        return tf.IndexedSlices(_unscaled(gradient.values, loss_scale), gradient.indices, gradient.dense_shape)
    return gradient / tf.cast(loss_scale, gradient.dtype)


def under_way() -> Captured | None:
    """What takes the gradients of this thread's updates now; None as a rule."""
    found: Captured | None = getattr(_here, "captured", None)
    return found


@contextlib.contextmanager
def of_updates() -> Iterator[Captured]:
    """Inside, in this thread, an optimizer that is applied makes no update; its gradients are in what is yielded."""
    before, captured = under_way(), Captured()
    _here.captured = captured
    try:
        yield captured
    finally:
        _here.captured = before
