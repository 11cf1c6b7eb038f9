"""The guard on the device: scalars as one kernel of XLA, big arrays beside it.

XLA on the CPU runs a program on the calling thread only if it has at most eight kernels, or no buffer of more than 512
bytes; else it hands its kernels from thread to thread, which costs many times what they compute. So the sketches and
the history stay out of what computes the scalars: what the guard reads of them goes in as numbers, what it wants done
to them comes out as numbers. Where the scalars are one kernel, all of it is one program of seven, which reads and
writes the variable of the state (`update`). docs/decisions/0004 has the measurements.
"""

from __future__ import annotations

import itertools
import logging
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from gradwatch.core.guard import COLUMNS, NOT_KNOWN, TOLD, Guard
from gradwatch.core.layout import Layout
from gradwatch.core.sketch import BUCKETS
from gradwatch.core.xp import HUGE, NUMPY, TINY
from gradwatch.tf import devices, once, stablehlo
from gradwatch.tf.ops import TENSORFLOW, Fused, Traced

logger: logging.Logger = logging.getLogger("gradwatch")

Path = tuple[str, ...]
Read = tuple[Path, "int | float"]  # (sketch, index) or (sketch, fraction of count_below)
Program = tuple[Callable[..., Any], int]  # vector -> vector, and how many numbers that has

_HISTORY = ("history",)

#: What `signals` says where something is not known: a step under tf.debugging.enable_check_numerics may meet no NaN.
NO_REACH, NO_LOSS, NO_RATIO = 0.0, 3e38, -1.0
#: The weights' norm of an optimizer for which reach does not apply.
ANY_REACH = 3e38
#: Where the loss of the step before stands in them.
LOSS = 2
NO_SIGNALS = (NO_REACH, 1.0, NO_LOSS, NO_RATIO, *[NOT_KNOWN] * len(TOLD))

_ROW = 64  # divides BUCKETS; sums of so few numbers are not split


def _is_big(path: Path, shape: tuple[int, ...]) -> bool:
    """Whether a field of the state stays outside the compiled part."""
    return path == _HISTORY or (path[-1] == "cumulative" and shape == (BUCKETS,))


class _Outside:
    """Stands for a big array inside the compiled part."""

    def __init__(self, path: Path, read: Callable[[Read], Any]) -> None:
        self.path, self.read = path, read
        self.written: tuple[Any, ...] = ()

    def __getitem__(self, index: int) -> Any:
        return self.read((self.path, index))

    def after(self, *written: Any) -> _Outside:
        new = _Outside(self.path, self.read)
        new.written = written
        return new


def _count_below(ascending: tf.Tensor, fraction: float) -> tf.Tensor:
    """`count_below` for XLA, which makes three kernels of a sum over so many numbers, and one of a product."""
    below = tf.cast(tf.reshape(ascending < ascending[-1] * fraction, [-1, _ROW]), tf.float32)
    return tf.reduce_sum(tf.linalg.matvec(below, tf.ones([_ROW])))


def _without_big(namespace: type, *given: Any) -> Any:
    """A namespace of this class, made with `given`, for a state whose big arrays are `_Outside`."""

    class WithoutBig(namespace):
        def count_below(self, ascending: _Outside, fraction: float) -> Any:
            return ascending.read((ascending.path, float(fraction)))

        def enter(self, cumulative: _Outside, index: Any, keep: Any) -> _Outside:
            return cumulative.after(index, keep)

        def push(self, ring: _Outside, row: Any) -> _Outside:
            return ring.after(row)

    return WithoutBig(*given)


def _at(tree: Any, path: Path) -> Any:
    for name in path:
        tree = tree[name]
    return tree


_MOST_PROGRAMS = 64
_programs: OrderedDict[Any, FusedGuard] = OrderedDict()
_one_at_a_time = threading.Lock()


def program(guard: Guard, num_variables: int, *, jit_compile: bool) -> FusedGuard:
    """The program of a guard. Equal guards over as many variables share it: it is traced and compiled once."""
    key = (guard, num_variables, jit_compile)
    try:
        hash(key)
    except TypeError:  # a policy of the user's own that cannot be compared
        return FusedGuard(guard, guard.init(num_variables), jit_compile=jit_compile)
    with _one_at_a_time:
        if key not in _programs:
            _programs[key] = FusedGuard(guard, guard.init(num_variables), jit_compile=jit_compile)
            while len(_programs) > _MOST_PROGRAMS:
                _programs.popitem(last=False)
        _programs.move_to_end(key)
        return _programs[key]


def reach(xp: Any, weights: Any, rate: Any) -> Any:
    """weights / rate, 0 where one of them is not a positive number that can be divided; `ANY_REACH` stays."""
    # a comparison with NaN is false
    good = (weights > 0.0) & (rate >= TINY) & (rate <= HUGE)
    return xp.where(good, xp.minimum(weights / xp.where(good, rate, 1.0), ANY_REACH), NO_REACH)


class FusedGuard:
    """`guard.step` over the packed state vector.

    Args:
      guard: the guard.
      initial: its state before the first step.
      jit_compile: compile the scalar part with XLA.

    Attributes:
      layout: of its state: small arrays, then the sketches, then the history.
    """

    def __init__(self, guard: Guard, initial: Any, *, jit_compile: bool) -> None:
        self._guard, self.layout = guard, Layout(initial, last=_is_big)
        *self._small, sketches, (history,) = self.layout.groups
        self._sketches = [field.path for field in sketches]
        self._big = [*self._sketches, history.path]
        # the vector's order: small fields group by group, then the big ones
        self._sizes = [sum(field.size for field in group) for group in self._small]
        self._sizes += [field.size for field in (*sketches, history)]
        self._count = sum(self._sizes[: len(self._small)])  # numbers in the small fields
        self._reads = self._find_reads(initial)
        self._jit_compile = jit_compile
        self._written: dict[Any, Program | None] = {}  # by the sizes of what comes in beside the state
        self._whole = tf.function(self._step, autograph=False)
        self._updating = tf.function(self._update, jit_compile=True, autograph=False)
        self._traced = tf.function(self._trace, jit_compile=jit_compile or None, autograph=False)

    def step(
        self, vector: tf.Tensor, norms: tf.Tensor, applied: tf.Tensor, signals: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """(state after the step, scale, the other numbers of the Decision, shape [8]).

        Args:
          signals: the weights' norm, learning_rate / (1 - momentum), the loss of the step before, the newest update
            ratio and the columns of `TOLD`, shape [4 + len(TOLD)], finite: `NO_REACH`, `ANY_REACH`, `NO_LOSS`,
            `NO_RATIO` and `NOT_KNOWN` are codes for what `Norms` has NaN and Inf. None: nothing is known.
        """
        if signals is None:
            signals = tf.constant(NO_SIGNALS)
        same = applied is norms
        if once.inline():
            return self._step(vector, norms, None if same else applied, signals)
        # traced once for all monitors: a step that is traced holds one call
        return self._whole(vector, norms, None if same else applied, signals)

    def update(
        self, state: tf.Variable, norms: tf.Tensor, applied: tf.Tensor, signals: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor] | None:
        """`step` of what a variable holds, as one program that reads and writes it: (scale, the other numbers).

        XLA holds on to the variables of a program while it runs, so that no other thread comes between.

        Returns:
          None where this is not one program of few kernels, or a part of a larger one; nothing is done then.
        """
        given = (norms, None if applied is norms else applied, signals)
        sizes = [len(self._reads), *(None if x is None else x.shape.num_elements() for x in given)]
        if once.inline() or self._program_of(sizes) is None:
            return None
        return self._decided(*self._updating(state.handle, *given))

    def _update(
        self, handle: tf.Tensor, norms: tf.Tensor, applied: tf.Tensor | None, signals: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        vector = tf.raw_ops.ReadVariableOp(resource=handle, dtype=tf.float32)
        vector.set_shape([self.layout.size])
        vector, *made = self._advanced(vector, norms, applied, signals)
        tf.raw_ops.AssignVariableOp(resource=handle, value=vector)
        return tuple(made)

    def _step(
        self, vector: tf.Tensor, norms: tf.Tensor, applied: tf.Tensor | None, signals: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        vector, *made = self._advanced(vector, norms, applied, signals)
        return (vector, *self._decided(*made))

    def _advanced(
        self, vector: tf.Tensor, norms: tf.Tensor, applied: tf.Tensor | None, signals: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        """(state after the step, numbers [, a scale for each variable])."""
        first, *pieces = tf.split(vector, [self._count, *self._sizes[len(self._small) :]])
        big = dict(zip(self._big, pieces))
        others = [self._read(vector, big), norms, applied, signals]
        small, told, *several = self._scalars(first, others)
        _, _, row, *entries = self._parts(told)
        indices, factors = entries[::2], entries[1::2]
        entered = [TENSORFLOW.enter(big[p], at, keep) for p, at, keep in zip(self._sketches, indices, factors)]
        return (tf.concat([small, *entered, TENSORFLOW.push(big[_HISTORY], row)], 0), told, *several)

    def _decided(self, told: tf.Tensor, *several: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        scale, numbers, *_ = self._parts(told)
        return several[0] if several else tf.reshape(scale, []), numbers

    def _parts(self, told: tf.Tensor) -> list[tf.Tensor]:
        """Scale, the other numbers of the Decision, a row of the history, and (index, factor) for each sketch."""
        parts: list[tf.Tensor] = tf.split(told, [1, 8, len(COLUMNS), *[1] * (2 * len(self._sketches))])
        return parts

    def _read(self, vector: tf.Tensor, big: Mapping[Path, tf.Tensor]) -> tf.Tensor:
        """The numbers of `self._reads`: all indices, then all counts."""
        offsets = {field.path: field.offset for field in self.layout.fields}
        places = [offsets[path] + what % BUCKETS for path, what in self._reads if isinstance(what, int)]
        count = _count_below if devices.compiled_by_xla() else TENSORFLOW.count_below
        counts = [count(big[path], what) for path, what in self._reads if isinstance(what, float)]
        return tf.concat([tf.gather(vector, places), *[count[None] for count in counts]], 0)

    def _scalars(self, small: tf.Tensor, others: Sequence[tf.Tensor | None]) -> tuple[Any, ...]:
        """`_scalar_part`, compiled: (small fields, numbers [, a scale for each variable])."""
        program = self._program_of([None if x is None else x.shape.num_elements() for x in others])
        if program is None:
            pieces = tf.split(small, self._sizes[: len(self._small)])
            small, *more = self._traced(pieces, *others)
            return (tf.concat(small, 0), *more)
        run, size = program
        rest = 9 + len(COLUMNS) + 2 * len(self._sketches)
        sizes = [self._count, rest, size - self._count - rest]
        made = run(tf.concat([small, *(x for x in others if x is not None)], 0))
        return tuple(tf.split(made, sizes[: 3 if sizes[2] else 2]))

    def _program_of(self, sizes: Sequence[int | None]) -> Program | None:
        """What `stablehlo.function` made of the scalar part; None where it cannot be written down."""
        if not self._jit_compile or devices.has_accelerator() or not stablehlo.works():
            return None
        key = tuple(sizes)
        if key not in self._written:
            self._written[key] = self._write(key)
        return self._written[key]

    def _write(self, sizes: Sequence[int | None]) -> Program | None:
        small = self._sizes[: len(self._small)]

        def body(xp: Any, given: Any) -> Any:
            ends = np.cumsum([0, *small, *(size or 0 for size in sizes)]).tolist()
            pieces = [given[a:b] for a, b in itertools.pairwise(ends)]
            others = [piece if size else None for piece, size in zip(pieces[len(small) :], sizes)]
            packed, *more = self._scalar_part(xp, pieces[: len(small)], *others)
            return xp.concat([*packed, *more])

        try:
            size = self._count + sum(size or 0 for size in sizes)
            return stablehlo.function(body, size, lambda writer: _without_big(stablehlo.StableHLO, writer))
        except Exception as error:  # a policy of somebody's own may call TensorFlow
            logger.debug("the guard is traced, not written down: %s", error)
            return None

    def _trace(self, small: Sequence[tf.Tensor], *others: tf.Tensor | None) -> tuple[Any, ...]:
        return self._scalar_part(_without_big(Fused if self._jit_compile else Traced), small, *others)

    def _scalar_part(
        self, xp: Any, small: Sequence[Any], reads: Any, norms: Any, applied: Any, signals: Any
    ) -> tuple[Any, ...]:
        """(small fields, numbers [, a scale for each variable]), all of them used: TensorFlow compiles a program anew
        for a caller that leaves an output unused or gives a constant."""
        known = dict(zip(self._reads, xp.parts(reads, len(self._reads), ())))
        leaves: dict[Path, Any] = {path: _Outside(path, known.__getitem__) for path in self._big}
        for group, vector in zip(self._small, small):
            # one operation for a group, not one for each field
            fields = xp.parts(vector, len(group), group[0].shape)
            leaves.update({field.path: value for field, value in zip(group, fields)})
        applied = norms if applied is None else applied
        weights, rate, loss, ratio, *told = xp.parts(signals, len(NO_SIGNALS), ())
        state, decision = self._guard.step(
            xp,
            self.layout.build(leaves),
            norms,
            applied,
            reach=reach(xp, weights, rate),
            loss=xp.where(loss > HUGE, math.nan, loss),
            weights=weights,
            update_ratio=ratio,
            told=dict(zip(TOLD, told)),
        )
        [row] = _at(state, _HISTORY).written
        entries = [number for path in self._sketches for number in _at(state, path).written]
        several = [decision.scale] if len(decision.scale.shape) else []
        # few outputs: each is an allocation
        told = xp.stack([1.0 if several else decision.scale, *decision[1:], *xp.parts(row, len(COLUMNS), ()), *entries])
        return [self.layout.pack_group(xp, state, group) for group in self._small], told, *several

    def _find_reads(self, initial: Any) -> list[Read]:
        """What the guard reads of the sketches in a step, indices first, found by running one in numpy."""
        reads: dict[Read, None] = {}

        def read(key: Read) -> Any:
            reads[key] = None
            return NUMPY.number(0.0)

        small = [field.path for group in self._small for field in group]
        leaves = {path: _at(initial, path) for path in small}
        leaves |= {path: _Outside(path, read) for path in self._big}
        variables = np.zeros(len(initial["last"]["layer_norms"]), np.float32)
        known = NUMPY.number(1.0)
        self._guard.step(
            _without_big(type(NUMPY)),
            self.layout.build(leaves),
            variables,
            variables,
            reach=known,
            loss=known,
            weights=known,
            update_ratio=known,
            told=dict.fromkeys(TOLD, known),
        )
        return sorted(reads, key=lambda key: isinstance(key[1], float))
