"""Where the numbers of large variables are looked at: evenly spaced places, few enough to be held."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from gradwatch.core.xp import Array, Namespace
from gradwatch.tf import devices

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
    """What is looked at, as one vector, in which variables of equally many numbers are neighbours."""
    flat = tf.constant([-1])  # once: a model has hundreds of variables
    order = itertools.chain(*_of_one_size(places))
    return tf.concat([tf.cast(pick(arrays[i], places[i], flat), tf.float32) for i in order], 0)


def squares(arrays: Sequence[tf.Tensor]) -> tf.Tensor:
    """Sum of squares of each array, shape [len(arrays)]."""
    return 2.0 * tf.stack([tf.cast(tf.nn.l2_loss(x), tf.float32) for x in arrays])


def squares_of(looked_at: tf.Tensor, places: Sequence[Place], whole: Sequence[tf.Tensor] | None = None) -> tf.Tensor:
    """Sum of squares of each variable, shape [len(places)], estimated from its places.

    Args:
      looked_at: what `concat` made.
      places: of all variables.
      whole: the arrays; then the sums of those with more numbers than are looked at are exact.
    """
    groups = _of_one_size(places)
    order = [i for group in groups for i in group]
    # variables of one size are rows of a matrix: few operations, and few kernels for XLA
    parts = tf.split(looked_at, [len(group) * places[group[0]].size for group in groups])
    sums = [_of_rows(tf.reshape(part, [len(group), places[group[0]].size])) for group, part in zip(groups, parts)]
    large = [i for i, place in enumerate(places) if place.stride > 1]
    if whole is not None and large:
        sums.append(squares([whole[i] for i in large]))
        order += large
    last = {i: at for at, i in enumerate(order)}
    found = tf.gather(tf.concat(sums, 0), [last[i] for i in range(len(places))])
    if whole is not None or not large:
        return found
    return found * tf.constant([place.of / max(place.size, 1) for place in places], tf.float32)


def roots(xp: Namespace, squares: Array) -> Array:
    """Norms of arrays of which these are the sums of squares; `UNKNOWN` where they are not finite."""
    # a comparison with NaN is false
    good = squares <= 3e38
    return xp.where(good, xp.sqrt(xp.where(good, squares, 0.0)), UNKNOWN)


def _of_one_size(places: Sequence[Place]) -> list[list[int]]:
    """Variables of which equally many numbers are looked at."""
    order = sorted(range(len(places)), key=lambda i: places[i].size)
    return [list(group) for _, group in itertools.groupby(order, key=lambda i: places[i].size)]


def _of_rows(x: tf.Tensor) -> tf.Tensor:
    """Sum of squares of each row."""
    if not devices.compiled_by_xla() or devices.has_accelerator():
        return tf.reduce_sum(x * x, 1)
    # XLA for the CPU makes two kernels of a sum, and one of a product
    return tf.linalg.matvec(x * x, tf.ones([x.shape[1]]))
