"""Where the numbers of large variables are looked at: evenly spaced places, few enough to be held."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import tensorflow as tf

#: How many numbers of all variables together are held to see how far they moved. A variable that has more is looked
#: at in evenly spaced places.
HELD = 1 << 16

UNKNOWN = -1.0  # of a norm and a ratio in the state, which holds no NaN


class Place(NamedTuple):
    """Which numbers of a variable are looked at: every `stride`-th, `size` of them, of `of`."""

    size: int
    stride: int
    of: int


def places_of(variables: Sequence[Any]) -> list[Place]:
    """Where to look: all of the small variables, evenly spaced places of the large ones, `HELD` together."""
    sizes = [v.shape.num_elements() for v in variables]
    share, left = HELD // max(len(sizes), 1), HELD
    for i, size in enumerate(sorted(sizes)):
        share = max(left // (len(sizes) - i), 64)
        left -= min(size, share)
    return [_place_of(size, share) for size in sizes]


def _place_of(size: int, share: int) -> Place:
    if size <= share:
        return Place(size, 1, size)
    # a stride with a common divisor would stay in some columns of a matrix
    stride = next(s for s in itertools.count(-(-size // share)) if math.gcd(s, size) == 1)
    return Place(-(-size // stride), stride, size)


def pick(x: tf.Tensor, place: Place, flat: Any = (-1,)) -> tf.Tensor:
    x = x if x.shape.rank == 1 else tf.reshape(x, flat)
    return x if place.stride == 1 else x[:: place.stride]


def concat(arrays: Sequence[tf.Tensor], places: Sequence[Place]) -> tf.Tensor:
    flat = tf.constant([-1])  # once: a model has hundreds of variables
    return tf.concat([tf.cast(pick(x, p, flat), tf.float32) for x, p in zip(arrays, places)], 0)


def lengths(arrays: Sequence[tf.Tensor], places: Sequence[Place] | None = None, *, picked: bool = False) -> tf.Tensor:
    """Norm of each array, shape [len(arrays)], exact or estimated from its places; `UNKNOWN` where not finite."""
    if places is not None and not picked:
        arrays = [pick(x, p) for x, p in zip(arrays, places)]
    # few ops a variable: a model has hundreds of them
    squares = 2.0 * tf.stack([tf.cast(tf.nn.l2_loss(x), tf.float32) for x in arrays])
    if places is not None:
        squares = squares * tf.constant([p.of / max(p.size, 1) for p in places], tf.float32)
    # a comparison with NaN is false
    good = squares <= 3e38
    return tf.where(good, tf.sqrt(tf.where(good, squares, 0.0)), UNKNOWN)
