"""Where each named array of a state tree lies in one packed float32 vector.

All that must be read consistently is one tensor, written by one assign per step (docs/decisions/0001).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradwatch.core.xp import Array, Namespace

Tree = Mapping[str, Any]  # nested dicts of arrays


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


class Layout:
    """Names <-> slices of the packed vector, for trees of one fixed structure.

    Args:
      example: a tree of numpy arrays; its structure and shapes are the layout.
    """

    def __init__(self, example: Tree) -> None:
        # scalars first and side by side: packing them is one operation instead of one each
        shapes = {path: tuple(np.shape(value)) for path, value in _leaves(example)}
        self.fields: list[Field] = []
        self.size = 0
        for path in sorted(shapes, key=lambda path: shapes[path] != ()):
            self.fields.append(Field(path, self.size, shapes[path]))
            self.size += self.fields[-1].size
        self._by_path = {field.path: field for field in self.fields}
        self._example = example

    def pack(self, xp: Namespace, tree: Tree) -> Array:
        """The tree as one vector, shape [size]."""
        found = dict(_leaves(tree))
        scalars = [found[field.path] for field in self.fields if field.shape == ()]
        arrays = [xp.reshape(found[field.path], (field.size,)) for field in self.fields if field.shape != ()]
        return xp.concat([xp.stack(scalars), *arrays] if scalars else arrays)

    def unpack(self, xp: Namespace, vector: Array) -> dict[str, Any]:
        """The vector, shape [size], as a tree again."""

        def read(node: Tree, path: tuple[str, ...]) -> dict[str, Any]:
            tree: dict[str, Any] = {}
            for name, value in node.items():
                here = (*path, name)
                if isinstance(value, Mapping):
                    tree[name] = read(value, here)
                    continue
                field = self._by_path[here]
                if field.shape == ():
                    tree[name] = vector[field.offset]
                else:
                    tree[name] = xp.reshape(vector[field.offset : field.offset + field.size], field.shape)
            return tree

        return read(self._example, ())

    def fingerprint(self) -> str:
        """A short text that is equal exactly when two layouts are."""
        text = ";".join(f"{'.'.join(field.path)}{list(field.shape)}" for field in self.fields)
        return hashlib.sha256(text.encode()).hexdigest()[:16]
