"""The few array functions that numpy and TensorFlow share.

Policies, detectors and the guard take such a namespace as their first argument `xp`, so the very code that
runs in the training graph also replays a recorded run in numpy. Arrays are float32, scalars have shape ();
use operators for the rest (`+ - * / < >= & | ~`). TensorFlow's side is `gradwatch.tf.ops.TENSORFLOW`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

Array = Any  # a float32 numpy array or a tf.Tensor
Bool = Any  # the same, of booleans

#: Norms below this count as zero: float32's smallest normal number is 1.2e-38, and XLA flushes what is below.
TINY = 1e-37
#: Norms above this count as Inf: float32 ends at 3.4e38, and sums and multiples of a norm must stay finite.
HUGE = 1e36
#: "No bound", and what Inf is written as wherever numbers must stay finite: float32's largest. No norm is called that.
LARGEST = float(np.finfo(np.float32).max)


class Namespace(Protocol):
    """What a policy or detector may call. Each works on whole arrays; reductions return shape ()."""

    def where(self, condition: Bool, yes: Array | float, no: Array | float) -> Array: ...
    def log(self, x: Array) -> Array: ...
    def exp(self, x: Array) -> Array: ...
    def sqrt(self, x: Array) -> Array: ...
    def ceil(self, x: Array) -> Array: ...
    def abs(self, x: Array) -> Array: ...
    def minimum(self, x: Array | float, y: Array | float) -> Array: ...
    def maximum(self, x: Array | float, y: Array | float) -> Array: ...
    def is_finite(self, x: Array) -> Bool: ...
    def sum(self, x: Array) -> Array: ...
    def max(self, x: Array) -> Array: ...
    def number(self, x: Bool | float) -> Array: ...
    def arange(self, n: int) -> Array: ...
    def stack(self, xs: Sequence[Array]) -> Array: ...
    def concat(self, xs: Sequence[Array]) -> Array: ...
    def reshape(self, x: Array, shape: tuple[int, ...]) -> Array: ...

    # Arrays of a thousand numbers and more (sketches, the history) are touched through these three and by one
    # integer index only: the device runs them outside the compiled scalar part (gradwatch/tf/fused.py).
    def count_below(self, ascending: Array, fraction: float) -> Array:
        """How many entries are below `fraction` times the last one, shape ()."""
        ...

    def enter(self, cumulative: Array, index: Array, keep: Array) -> Array:
        """All entries times `keep`, plus 1 from `index` on; an index beyond the end adds nothing."""
        ...

    def push(self, ring: Array, row: Array) -> Array:
        """The ring without its oldest row, and `row` at its end."""
        ...


def _f32(x: Any) -> Any:
    return np.asarray(x, np.float32)


class _Numpy:
    """The numpy side, quiet about overflow in branches that `where` drops."""

    def where(self, condition: Bool, yes: Array | float, no: Array | float) -> Array:
        return np.where(condition, _f32(yes), _f32(no))

    def log(self, x: Array) -> Array:
        return np.log(_f32(x))

    def exp(self, x: Array) -> Array:
        with np.errstate(over="ignore", under="ignore"):
            return np.exp(_f32(x))

    def sqrt(self, x: Array) -> Array:
        return np.sqrt(_f32(x))

    def ceil(self, x: Array) -> Array:
        return np.ceil(_f32(x))

    def abs(self, x: Array) -> Array:
        return np.abs(_f32(x))

    def minimum(self, x: Array | float, y: Array | float) -> Array:
        return np.minimum(_f32(x), _f32(y))

    def maximum(self, x: Array | float, y: Array | float) -> Array:
        return np.maximum(_f32(x), _f32(y))

    def is_finite(self, x: Array) -> Bool:
        return np.isfinite(x)

    def sum(self, x: Array) -> Array:
        with np.errstate(over="ignore"):
            return np.sum(_f32(x), dtype=np.float32)

    def max(self, x: Array) -> Array:
        return np.max(_f32(x))

    def number(self, x: Bool | float) -> Array:
        return _f32(x)

    def arange(self, n: int) -> Array:
        return np.arange(n, dtype=np.float32)

    def stack(self, xs: Sequence[Array]) -> Array:
        return np.stack([_f32(x) for x in xs])

    def concat(self, xs: Sequence[Array]) -> Array:
        return np.concatenate([_f32(x) for x in xs])

    def reshape(self, x: Array, shape: tuple[int, ...]) -> Array:
        return np.reshape(_f32(x), shape)

    def count_below(self, ascending: Array, fraction: float) -> Array:
        return _f32(np.count_nonzero(ascending < ascending[-1] * np.float32(fraction)))

    def enter(self, cumulative: Array, index: Array, keep: Array) -> Array:
        return cumulative * keep + self.where(self.arange(len(cumulative)) >= index, 1.0, 0.0)

    def push(self, ring: Array, row: Array) -> Array:
        return self.concat([ring[len(row) :], row])


NUMPY: Namespace = _Numpy()
