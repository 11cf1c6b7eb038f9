"""The guard on the device in two parts: scalars in one compiled program, big arrays outside.

XLA on the CPU runs a program on the calling thread only if every buffer in it has at most 512 bytes (or it has
at most 8 kernels); one larger buffer hands each of some fifty tiny kernels from thread to thread, which costs
many times what they compute. So the sketches and the history stay outside: what the guard reads of them goes
in as numbers, what it wants done to them comes out as numbers. docs/decisions/0004 has the measurements.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from gradwatch.core.guard import Guard
from gradwatch.core.layout import Field, Layout
from gradwatch.core.xp import NUMPY
from gradwatch.tf.ops import FUSED, TENSORFLOW

Path = tuple[str, ...]
Read = tuple[Path, "int | float"]  # (array, index) or (array, fraction of count_below)


def _is_bulk(field: Field) -> bool:
    return field.path == ("history",) or field.path[-1] == "cumulative"


class _Bulk:
    """Stands for a big array inside the compiled part."""

    def __init__(self, path: Path, read: Callable[[Read], Any]) -> None:
        self.path, self.read = path, read
        self.written: tuple[Any, ...] = ()

    def __getitem__(self, index: int) -> Any:
        return self.read((self.path, index))

    def after(self, *written: Any) -> _Bulk:
        new = _Bulk(self.path, self.read)
        new.written = written
        return new


def _with_bulk(namespace: Any) -> Any:
    """`namespace` with big arrays replaced by `_Bulk`."""

    class WithBulk(type(namespace)):  # type: ignore[misc]
        def count_below(self, ascending: _Bulk, fraction: float) -> Any:
            return ascending.read((ascending.path, float(fraction)))

        def enter(self, cumulative: _Bulk, index: Any, keep: Any) -> _Bulk:
            return cumulative.after(index, keep)

        def push(self, ring: _Bulk, row: Any) -> _Bulk:
            return ring.after(row)

    return WithBulk()


def _at(tree: Any, path: Path) -> Any:
    for name in path:
        tree = tree[name]
    return tree


class FusedGuard:
    """`guard.step` over the packed state vector.

    Args:
      guard: the guard.
      layout: of its state.
      initial: its state before the first step.
      jit_compile: compile the scalar part with XLA.
    """

    def __init__(self, guard: Guard, layout: Layout, initial: Any, *, jit_compile: bool) -> None:
        self._guard, self._layout = guard, layout
        self._small = [group for group in layout.groups if not _is_bulk(group[0])]
        self._bulk = [field for field in layout.fields if _is_bulk(field)]
        # the vector's order is groups by size, so the big ones are its end
        self._sizes = [sum(f.size for f in group) for group in self._small] + [f.size for f in self._bulk]
        self._reads = self._find_reads(initial)
        self._xp = _with_bulk(FUSED if jit_compile else TENSORFLOW)
        self._scalars = tf.function(self._scalar_part, jit_compile=jit_compile or None, autograph=False)

    def step(self, vector: tf.Tensor, norms: tf.Tensor, applied: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """(state after the step, scale, the other numbers of the Decision, shape [8])."""
        pieces = tf.split(vector, self._sizes)
        small, bulk = pieces[: len(self._small)], pieces[len(self._small) :]
        arrays = {field.path: array for field, array in zip(self._bulk, bulk)}
        reads = tf.stack([_read(arrays[path], what) for path, what in self._reads])
        small, scale, numbers, row, entries = self._scalars(small, reads, norms, applied)
        entries = tf.unstack(entries)
        done = []
        for field, array in zip(self._bulk, bulk):
            if field.path == ("history",):
                done.append(TENSORFLOW.push(array, row))
            else:
                done.append(TENSORFLOW.enter(array, entries.pop(0), entries.pop(0)))
        return tf.concat([*small, *done], 0), scale, numbers

    def _scalar_part(
        self, small: Sequence[tf.Tensor], reads: tf.Tensor, norms: tf.Tensor, applied: tf.Tensor
    ) -> tuple[list[tf.Tensor], tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        xp, known = self._xp, {read: reads[i] for i, read in enumerate(self._reads)}
        leaves: dict[Path, Any] = {field.path: _Bulk(field.path, known.__getitem__) for field in self._bulk}
        for group, vector in zip(self._small, small):
            fields = tf.reshape(vector, [len(group), *group[0].shape])
            leaves.update({field.path: fields[i] for i, field in enumerate(group)})
        state, decision = self._guard.step(xp, self._layout.build(leaves), norms, applied)
        entries = [x for f in self._bulk if f.path != ("history",) for x in _at(state, f.path).written]
        packed = [self._layout.pack_group(xp, state, group) for group in self._small]
        return packed, decision.scale, xp.stack(decision[1:]), state["history"].written[0], xp.stack(entries)

    def _find_reads(self, initial: Any) -> list[Read]:
        """What the guard reads of the big arrays in a step, found by running one in numpy."""
        reads: dict[Read, None] = {}

        def read(key: Read) -> Any:
            reads[key] = None
            return NUMPY.number(0.0)

        leaves = {f.path: _Bulk(f.path, read) if _is_bulk(f) else _at(initial, f.path) for f in self._layout.fields}
        variables = np.zeros(len(initial["last"]["layer_norms"]), np.float32)
        self._guard.step(_with_bulk(NUMPY), self._layout.build(leaves), variables, variables)
        return list(reads)


def _read(array: tf.Tensor, what: int | float) -> tf.Tensor:
    return array[what] if isinstance(what, int) else TENSORFLOW.count_below(array, what)
