"""Programs for XLA that are written down, not traced: the namespace of `gradwatch.core.xp` as a writer of StableHLO.

TensorFlow takes half a second to trace the guard's thousand operations, and XLA a second and a half to compile the
sixty kernels that it makes of them. Here an operation is a line of text, and the whole is one call that XLA for the CPU
compiles as a single kernel (docs/decisions/0018). `gradwatch.tf.program_text` writes the lines.
"""

from __future__ import annotations

import functools
import itertools
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from gradwatch.tf import compat, devices
from gradwatch.tf.ops import TENSORFLOW
from gradwatch.tf.program_text import BOOL, Shape, Value, Writer

logger: logging.Logger = logging.getLogger("gradwatch")


class StableHLO:
    """The namespace `gradwatch.core.xp.Namespace`."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    def where(self, condition: Any, yes: Any, no: Any) -> Value:
        return self._writer.select(condition, yes, no)

    def log(self, x: Any) -> Value:
        return self._writer.unary("log", x)

    def exp(self, x: Any) -> Value:
        return self._writer.unary("exponential", x)

    def sqrt(self, x: Any) -> Value:
        return self._writer.unary("sqrt", x)

    def ceil(self, x: Any) -> Value:
        return self._writer.unary("ceil", x)

    def abs(self, x: Any) -> Value:
        return self._writer.unary("abs", x)

    def minimum(self, x: Any, y: Any) -> Value:
        return self._writer.numbers("minimum", x, y)

    def maximum(self, x: Any, y: Any) -> Value:
        return self._writer.numbers("maximum", x, y)

    def is_finite(self, x: Any) -> Value:
        x = self._writer.value(x)
        return self._writer.write("is_finite", [x], x.shape, BOOL)

    def sum(self, x: Any) -> Value:
        return self._writer.reduced("add", 0.0, x)

    def max(self, x: Any) -> Value:
        return self._writer.reduced("maximum", -math.inf, x)

    def number(self, x: Any) -> Value:
        if isinstance(x, Value) and x.kind == BOOL:
            return self._writer.write("convert", [x], x.shape)
        return self._writer.value(x)

    def arange(self, n: int) -> Value:
        return self._writer.value(np.arange(n, dtype=np.float32))

    def stack(self, xs: Sequence[Any]) -> Value:
        values = [self._writer.value(x) for x in xs]
        if values[0].shape or len(values) == 1:
            return self._writer.joined([self._writer.reshaped(x, (1, *x.shape)) for x in values])
        return self._writer.selected(values)

    def concat(self, xs: Sequence[Any]) -> Value:
        return self._writer.joined(xs)

    def reshape(self, x: Any, shape: Sequence[int]) -> Value:
        x = self._writer.value(x)
        known = -math.prod(shape)
        return self._writer.reshaped(x, tuple(math.prod(x.shape) // known if n == -1 else n for n in shape))

    def count_below(self, ascending: Value, fraction: float) -> Value:
        return self.sum(self.number(ascending < ascending[-1] * fraction))

    def enter(self, cumulative: Value, index: Any, keep: Any) -> Value:
        return cumulative * keep + self.number(self.arange(cumulative.shape[0]) >= index)

    def push(self, ring: Value, row: Value) -> Value:
        return self.concat([ring[row.shape[0] :], row])

    def parts(self, x: Value, count: int, shape: Shape) -> list[Value]:
        """So many arrays of one shape that lie side by side in a vector."""
        size = math.prod(shape)
        return [self._writer.part(x, i * size, (i + 1) * size, shape) for i in range(count)]


# -- as a function ------------------------------------------------------------------------------------------


def function(
    body: Callable[[Any, Value], Any], count: int, namespace: Callable[[Writer], Any] = StableHLO
) -> tuple[Any, int]:
    """(a compiled tf.function: a vector of so many numbers -> a vector, how many that has).

    Args:
      body: (namespace, vector) -> vector.
      namespace: makes the namespace, out of what writes the program.

    Raises:
      Unwritable: `body` does what no namespace has, or asks a value for its truth.
    """
    writer = Writer(count)
    result = writer.value(body(namespace(writer), writer.given))
    module, shape = writer.text(result), result.shape
    made = tf.function(lambda given: compat.run_module(given, module, shape), jit_compile=True, autograph=False)
    return made, math.prod(shape)


def in_one_kernel(body: Callable[..., Any], how: tuple[Any, ...], *vectors: tf.Tensor) -> Any:
    """`body(namespace, *how, *vectors)`, a vector: written down inside of what XLA compiles for a CPU, else traced."""
    if not devices.compiled_by_xla() or devices.has_accelerator() or not works():
        return body(TENSORFLOW, *how, *vectors)
    return _written(body, how, tuple(x.shape[0] for x in vectors))(tf.concat(vectors, 0))


@functools.lru_cache(maxsize=256)
def _written(body: Callable[..., Any], how: tuple[Any, ...], sizes: tuple[int, ...]) -> Any:
    ends = np.cumsum([0, *sizes]).tolist()

    def whole(xp: StableHLO, given: Value) -> Value:
        return body(xp, *how, *(given[a:b] for a, b in itertools.pairwise(ends)))

    made, _ = function(whole, ends[-1])
    return made


@functools.cache
def works() -> bool:
    """Whether this TensorFlow runs such a program, and to the right result; tried once in a process."""

    def body(xp: StableHLO, given: Value) -> Value:
        x, y = given[:4], given[4:]
        good = (x > 1.0) & ~(x >= 4.0) & xp.is_finite(x)
        chosen = xp.where(good, -x, xp.sum(y) / 2.0)
        return xp.concat([chosen, xp.stack([xp.max(y), y[-1], 1.0]), xp.number(good)])

    given = np.array([1.0, 2.0, 3.0, math.inf, 5.0, 6.0, 7.0], np.float32)
    expected = [9.0, -2.0, -3.0, 9.0, 7.0, 7.0, 1.0, 0.0, 1.0, 1.0, 0.0]
    try:
        with tf.init_scope(), tf.device("CPU:0"):
            if not tf.executing_eagerly():
                return False
            made, _ = function(body, given.size)
            return bool(np.array_equal(made(tf.constant(given)), expected))
    except Exception as error:  # whatever it is, the training goes on with a traced program
        logger.debug("programs are traced, not written down: %s", error)
        return False
