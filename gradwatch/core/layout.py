"""Where each named array of a state tree lies in one packed float32 vector.

All that must be read consistently is one tensor, written by one assign per step (docs/decisions/0001).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
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


class Layout:
    """Names <-> slices of the packed vector, for trees of one fixed structure.

    Args:
      example: a tree of numpy arrays; its structure and shapes are the layout.
    """

    def __init__(self, example: Tree) -> None:
        self.fields: list[Field] = []
        self.size = 0
        self._root = self._place(example, ())

    def _place(self, tree: Tree, path: tuple[str, ...]) -> dict[str, Any]:
        """`tree` with a Field in place of each array."""
        node: dict[str, Any] = {}
        for name, value in tree.items():
            if isinstance(value, Mapping):
                node[name] = self._place(value, (*path, name))
                continue
            node[name] = Field((*path, name), self.size, tuple(np.shape(value)))
            self.fields.append(node[name])
            self.size += node[name].size
        return node

    def pack(self, xp: Namespace, tree: Tree) -> Array:
        """The tree as one vector, shape [size]."""
        pieces = []
        for field in self.fields:
            value: Any = tree
            for name in field.path:
                value = value[name]
            pieces.append(xp.reshape(value, (field.size,)))
        return xp.concat(pieces)

    def unpack(self, xp: Namespace, vector: Array) -> dict[str, Any]:
        """The vector, shape [size], as a tree again."""

        def read(node: Mapping[str, Any]) -> dict[str, Any]:
            return {
                name: read(value)
                if isinstance(value, dict)
                else xp.reshape(vector[value.offset : value.offset + value.size], value.shape)
                for name, value in node.items()
            }

        return read(self._root)

    def fingerprint(self) -> str:
        """A short text that is equal exactly when two layouts are."""
        text = ";".join(f"{'.'.join(field.path)}{list(field.shape)}" for field in self.fields)
        return hashlib.sha256(text.encode()).hexdigest()[:16]
