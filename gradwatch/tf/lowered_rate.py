"""How far a learning rate is lowered, on the device."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from gradwatch.tf import distribution

_asking = threading.local()


@contextlib.contextmanager
def as_it_is_set() -> Iterator[None]:
    """Whoever asks an optimizer for its learning rate in here, within an update too, gets what the person set."""
    before, _asking.now = is_asked_as_set(), True
    try:
        yield
    finally:
        _asking.now = before


def is_asked_as_set() -> bool:
    """Whether this thread is within `as_it_is_set`."""
    return getattr(_asking, "now", False)


class Lowering(NamedTuple):
    """What is done to a learning rate, on the device: min(rate * scale, limit), float32, shape () each.

    Attributes:
      scale: for a rate that the monitor does not know; 1 at first.
      limit: Inf at first, so that a run that is well keeps its rate to the bit.
    """

    scale: tf.Variable
    limit: tf.Variable

    @classmethod
    def new(cls) -> Lowering:
        """Variables in the scope of the strategy, which lower nothing yet."""
        return cls(
            *distribution.in_scope(
                lambda: (
                    distribution.state_variable(np.float32(1.0), "gradwatch_rate_scale"),
                    distribution.state_variable(np.float32(np.inf), "gradwatch_rate_limit"),
                )
            )
        )

    def assign(self, scale: float, limit: float) -> None:
        """Lower the rate to this from now on."""
        with tf.init_scope():
            self.scale.assign(scale)
            self.limit.assign(limit)

    def of(self, rate: tf.Tensor) -> tf.Tensor:
        """The lowered rate, in the type of the rate."""
        return tf.minimum(rate * tf.cast(self.scale, rate.dtype), tf.cast(self.limit, rate.dtype))

    def share(self, rate: tf.Tensor | None) -> tf.Tensor:
        """What is left of a rate, float32, in (0, 1]; None for one that is not known."""
        whole = tf.convert_to_tensor(self.scale)
        if rate is None:
            return whole
        lowered = self.of(rate)
        return tf.where(lowered < rate, lowered / rate, 1.0)
