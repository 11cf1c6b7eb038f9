"""Where each named array of a state tree lies in one packed float32 vector.

All that must be read consistently is one tensor, written by one assign per step (docs/decisions/0001).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradwatch.core.xp import Array, Namespace

Tree = Mapping[str, Any]  # nested dicts of arrays

#: Numbers in a group of small fields, 512 bytes: of a program with a larger buffer, XLA on the CPU hands the kernels
#: from thread to thread (docs/decisions/0004).
MOST_IN_A_GROUP = 128


@dataclass(frozen=True)
class Field:
    """One array: its path in the tree, where it begins, its shape."""

    path: tuple[str, ...]
    offset: int
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def _leaves(tree: Tree, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*path, name))
        else:
            yield (*path, name), value


def _at(tree: Tree, path: Sequence[str]) -> Any:
    for name in path:
        tree = tree[name]
    return tree


def _shaped(xp: Namespace, value: Any, shape: tuple[int, ...]) -> Array:
    # an operation less for each field: they are hundreds
    return value if getattr(value, "shape", None) == shape else xp.reshape(value, shape)


class Layout:
    """Names <-> slices of the packed vector, for trees of one fixed structure.

    Fields of one shape lie side by side, scalars first and the largest last: a group is packed by one
    operation instead of one for each field.

    Args:
      example: a tree of numpy arrays; its structure and shapes are the layout.
      last: (path, shape) -> whether a field is to lie behind all others, whatever their sizes.

    Attributes:
      fields: every array of the tree, in the order of the vector.
      groups: the same, shape by shape, and of small fields at most `MOST_IN_A_GROUP` numbers.
      size: length of the vector.
    """

    def __init__(self, example: Tree, last: Callable[[tuple[str, ...], tuple[int, ...]], bool] | None = None) -> None:
        shapes = {path: tuple(np.shape(value)) for path, value in _leaves(example)}
        keys = {
            path: (last is not None and last(path, shape), math.prod(shape) if shape else 0, shape)
            for path, shape in shapes.items()
        }
        self.groups: list[tuple[Field, ...]] = []
        self.size: int = 0
        for key in sorted(set(keys.values())):
            (is_last, _, shape), group = key, list[Field]()
            for path in (path for path in shapes if keys[path] == key):
                size = math.prod(shape)
                if group and not is_last and size * (len(group) + 1) > MOST_IN_A_GROUP:
                    self.groups.append(tuple(group))
                    group = []
                group.append(Field(path, self.size, shape))
                self.size += size
            self.groups.append(tuple(group))
        self.fields: tuple[Field, ...] = tuple(field for group in self.groups for field in group)
        self._example = example

    def pack(self, xp: Namespace, tree: Tree) -> Array:
        """The tree as one vector, shape [size]."""
        return xp.concat([self.pack_group(xp, tree, group) for group in self.groups])

    def pack_group(self, xp: Namespace, tree: Tree, group: Sequence[Field]) -> Array:
        """The fields of one group, side by side, shape [sum of their sizes]."""
        stacked = xp.stack([_shaped(xp, _at(tree, field.path), field.shape) for field in group])
        return stacked if not group[0].shape else xp.reshape(stacked, (sum(field.size for field in group),))

    def unpack(self, xp: Namespace, vector: Array) -> dict[str, Any]:
        """The vector, shape [size], as a tree again."""

        def leaf(field: Field) -> Array:
            if field.shape == ():
                return vector[field.offset]
            return xp.reshape(vector[field.offset : field.offset + field.size], field.shape)

        return self.build({field.path: leaf(field) for field in self.fields})

    def build(self, leaves: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
        """A tree of this structure out of path -> leaf."""

        def read(value: Any, path: tuple[str, ...]) -> Any:
            if not isinstance(value, Mapping):
                return leaves[path]
            return {name: read(inner, (*path, name)) for name, inner in value.items()}

        tree: dict[str, Any] = read(self._example, ())
        return tree

    def fingerprint(self) -> str:
        """A short text that is equal exactly when two layouts are."""
        text = ";".join(f"{'.'.join(field.path)}{list(field.shape)}" for field in self.fields)
        return hashlib.sha256(text.encode()).hexdigest()[:16]
