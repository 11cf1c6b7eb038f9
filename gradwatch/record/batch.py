"""What a batch is made of, as numbers: nested tuples, lists and dicts of arrays, to and from a flat list of arrays.

An outline says how the arrays belong together. It is a dict that JSON can say, with one key:

    {"tuple": [...]}, {"list": [...]}, {"dict": [[key, outline], ...]}
    {"array": i}                 array number i
    {"number": i}                a number of Python, kept as array number i of shape ()
    {"ragged": [i, j, ...]}      a `Ragged`: its values, and its row splits from the outermost on
    {"sparse": [i, j, k]}        a `Sparse`: indices, values, shape
    {"parts": [...]}             the parts of the replicas, joined along the first axis
    {"text": "..."}              a text of Python
    {"nothing": "..."}           None, or an object that is no data, with the name of its type

The arrays may be tensors of a device, or arrays of numpy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Outline = Mapping[str, Any]


@dataclass(frozen=True)
class Ragged:
    """Rows of different lengths, as tf.RaggedTensor has them.

    Attributes:
      values: all rows one after the other, shape [number of values, ...].
      splits: for each ragged axis, the outermost first, where its rows begin and end; row i of the innermost axis is
        values[splits[-1][i] : splits[-1][i + 1]].
    """

    values: np.ndarray
    splits: tuple[np.ndarray, ...]

    def __len__(self) -> int:
        return len(self.splits[0]) - 1

    def row(self, i: int) -> Any:
        """One row: an array, or a `Ragged` where there are more ragged axes."""
        return self.rows(i, i + 1)._first()

    def rows(self, begin: int, end: int) -> Ragged:
        """The rows from `begin` to before `end`."""
        splits = []
        for split in self.splits:
            part = split[begin : end + 1]
            begin, end = int(part[0]), int(part[-1])
            splits.append(part - part[0])
        return Ragged(self.values[begin:end], tuple(splits))

    def _first(self) -> Any:
        return self.values if len(self.splits) == 1 else Ragged(self.values, self.splits[1:])


@dataclass(frozen=True)
class Sparse:
    """An array of mostly zeros, as tf.SparseTensor has it.

    Attributes:
      indices: shape [number of values, number of axes].
      values: shape [number of values].
      shape: of the whole array.
    """

    indices: np.ndarray
    values: np.ndarray
    shape: np.ndarray

    def __len__(self) -> int:
        return int(self.shape[0])

    def rows(self, begin: int, end: int) -> Sparse:
        """The rows from `begin` to before `end`."""
        inside = (self.indices[:, 0] >= begin) & (self.indices[:, 0] < end)
        first = np.zeros_like(self.indices[:1])
        first[:, 0] = begin
        shape = np.array([end - begin, *self.shape[1:]], self.shape.dtype)
        return Sparse(self.indices[inside] - first, self.values[inside], shape)


def build(outline: Outline, arrays: Sequence[Any]) -> Any:
    """The nested structure that an outline describes."""
    [(kind, inside)] = outline.items()
    if kind == "tuple":
        return tuple(build(one, arrays) for one in inside)
    if kind == "list":
        return [build(one, arrays) for one in inside]
    if kind == "dict":
        return {key: build(one, arrays) for key, one in inside}
    if kind == "parts":
        return join([build(one, arrays) for one in inside])
    if kind == "array":
        return arrays[inside]
    if kind == "number":
        return np.asarray(arrays[inside]).item()
    if kind == "ragged":
        return Ragged(arrays[inside[0]], tuple(arrays[i] for i in inside[1:]))
    if kind == "sparse":
        return Sparse(*(arrays[i] for i in inside))
    return inside if kind == "text" else None


def moved(outline: Any, by: int) -> Any:
    """The outline of arrays that stand `by` places further on."""
    [(kind, inside)] = outline.items()
    if kind in ("tuple", "list", "parts"):
        return {kind: [moved(one, by) for one in inside]}
    if kind == "dict":
        return {kind: [[key, moved(one, by)] for key, one in inside]}
    if kind in ("array", "number"):
        return {kind: inside + by}
    if kind in ("ragged", "sparse"):
        return {kind: [i + by for i in inside]}
    return outline


def join(parts: Sequence[Any]) -> Any:
    """The parts that the replicas had of one structure as the whole; what has no rows is that of the first replica."""
    first = parts[0]
    if len(parts) == 1:
        return first
    if isinstance(first, (tuple, list)):
        return type(first)(join(one) for one in zip(*parts))
    if isinstance(first, Mapping):
        return {key: join([part[key] for part in parts]) for key in first}
    if isinstance(first, Ragged):
        splits = []
        for level in zip(*(part.splits for part in parts)):
            offsets = np.cumsum([0, *(int(split[-1]) for split in level[:-1])])
            later = [split[1:] + offset for split, offset in zip(level[1:], offsets[1:])]
            splits.append(np.concatenate([level[0], *later]).astype(level[0].dtype))
        return Ragged(np.concatenate([part.values for part in parts]), tuple(splits))
    if isinstance(first, Sparse):
        offsets = np.cumsum([0, *(len(part) for part in parts[:-1])])
        indices = [
            part.indices + offset * (np.arange(part.indices.shape[1]) == 0) for part, offset in zip(parts, offsets)
        ]
        shape = np.max([part.shape for part in parts], 0)
        shape[0] = sum(len(part) for part in parts)
        return Sparse(np.concatenate(indices), np.concatenate([part.values for part in parts]), shape)
    if isinstance(first, np.ndarray) and first.ndim:
        return np.concatenate(parts)
    return first


def rows_of(batch: Any) -> int:
    """How many samples a batch has: the length that most of its arrays share; 0 where none has rows."""
    lengths = [len(x) for x in leaves(batch) if _has_rows(x)]
    # of equally frequent ones the first: that of the input
    return max(lengths, key=lengths.count, default=0)


def sample(batch: Any, begin: int, end: int, rows: int) -> Any:
    """The samples from `begin` to before `end` of a batch of `rows`; what has another length stays whole."""
    if isinstance(batch, (tuple, list)):
        return type(batch)(sample(one, begin, end, rows) for one in batch)
    if isinstance(batch, Mapping):
        return {key: sample(one, begin, end, rows) for key, one in batch.items()}
    if not _has_rows(batch) or len(batch) != rows:
        return batch
    return batch[begin:end] if isinstance(batch, np.ndarray) else batch.rows(begin, end)


def leaves(batch: Any) -> list[Any]:
    """The arrays, `Ragged`, `Sparse` and other ends of a nested structure, from left to right."""
    if isinstance(batch, (tuple, list)):
        return [leaf for one in batch for leaf in leaves(one)]
    if isinstance(batch, Mapping):
        return [leaf for one in batch.values() for leaf in leaves(one)]
    return [batch]


def _has_rows(x: Any) -> bool:
    return isinstance(x, (Ragged, Sparse)) or (isinstance(x, np.ndarray) and x.ndim > 0)
