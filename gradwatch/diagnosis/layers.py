"""What the variables of a run show: how they began, how they grew, which of them gets no gradient."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from gradwatch.diagnosis.observation import Observation

_RECURRENT = re.compile(r"recurrent|w_?hh|hidden_to_hidden|(?:^|[/_])(?:u|hh)(?:_|/|:|$)", re.I)
_EMBEDDING = re.compile(r"embed|lookup|wte|wpe", re.I)


def initial_norm(shape: Sequence[int]) -> float:
    """The norm of a new matrix or kernel of this shape, (..., inputs, outputs): sqrt(2 size / (fan_in + fan_out)).

    Source: Glorot and Bengio 2010, eq. 12, as in `gradwatch.tf.reach.initial_norm`.
    """
    return math.sqrt(2.0 * shape[-2] * shape[-1] / (shape[-2] + shape[-1]))


class Layers:
    """The variables of one run."""

    def __init__(self, run: Observation) -> None:
        self.run = run
        found = run.facts.get("variables") or {}
        self.shapes: dict[str, tuple[int, ...]] = {p: tuple(s) for p, s in found.items() if s and None not in s}

    @property
    def ids(self) -> bool:
        """Whether the run's input are ids, whose size means nothing."""
        kind = (self.run.facts.get("inputs") or {}).get("input")
        return bool(self.embeddings) if kind is None else "float" not in str(kind)

    def is_recurrent(self, path: str) -> bool:
        """Whether a variable is multiplied with the state again and again."""
        shape = self.shapes.get(path, ())
        return bool(_RECURRENT.search(path)) and len(shape) == 2 and shape[1] % shape[0] == 0

    def is_embedding(self, path: str) -> bool:
        """Whether a variable is a table of rows that ids look up."""
        sparse = path in (self.run.facts.get("sparse_variables") or ())
        return len(self.shapes.get(path, ())) == 2 and (sparse or bool(_EMBEDDING.search(path)))

    @cached_property
    def embeddings(self) -> list[str]:
        return [path for path in self.shapes if self.is_embedding(path)]

    @cached_property
    def recurrent(self) -> list[str]:
        return [path for path in self.shapes if self.is_recurrent(path)]

    @cached_property
    def kernels(self) -> list[str]:
        """Matrices and kernels; embeddings and the biases of attention heads are left out."""
        large = (path for path, shape in self.shapes.items() if len(shape) >= 2 and min(shape) > 0)
        return [path for path in large if not self.is_embedding(path) and not path.endswith("bias")]

    def weight_norm(self, path: str, *, first: bool = False) -> float:
        """|w| when it was first known, or last; NaN where it is not."""
        return _first(self.run.layers.get(path, {}).get("weight_norm"), reverse=not first)

    def norm(self, path: str) -> float:
        """Usual norm of its gradient; NaN where it is not known."""
        return self.run.usual.get(path, math.nan)

    def fed(self, path: str) -> float:
        """The larger one of the usual and the last norm of its gradient: one that began at zero may catch up."""
        last = _first(self.run.layers.get(path, {}).get("norm"), reverse=True)
        return float(np.fmax(self.norm(path), last))

    @cached_property
    def start(self) -> dict[str, float]:
        """Kernel -> how many times the norm of a usual new one it began with, where that is known."""
        found = {path: self.weight_norm(path, first=True) / initial_norm(self.shapes[path]) for path in self.kernels}
        return {path: x for path, x in found.items() if math.isfinite(x)}

    @property
    def begins_large(self) -> float:
        """The median of `start`; 1 where nothing is known."""
        return float(np.median(list(self.start.values()))) if self.start else 1.0

    @cached_property
    def recurrence(self) -> tuple[str, float]:
        """(recurrent kernel, root mean square of its singular values) at its start, the largest; ("", NaN): none.

        An orthogonal matrix has 1. Above it, a state grows with every step of a sequence.
        """
        gains = {p: self.weight_norm(p, first=True) / math.sqrt(self.shapes[p][0]) for p in self.recurrent}
        gains = {path: gain for path, gain in gains.items() if math.isfinite(gain)}
        path = max(gains, key=lambda p: gains[p], default="")
        return path, gains.get(path, math.nan)

    @cached_property
    def starved(self) -> tuple[str, float]:
        """(a kernel with little gradient for its size, that ratio over the largest one); ("", NaN): not known.

        The ratio is `fed` / max(|w|, norm of a new one): what share of itself plain descent would move a layer.
        A quarter of the kernels has as little or less.
        """
        found = {}
        for path, shape in self.shapes.items():
            size = max(self.weight_norm(path), initial_norm(shape) if len(shape) > 1 else 1.0)
            if math.isfinite(self.fed(path)) and math.isfinite(size):
                found[path] = self.fed(path) / size
        kernels = {path: found[path] for path in self.kernels if path in found}
        if len(found) < 2 or not kernels or not max(found.values()) > 0:
            return "", math.nan
        path = sorted(kernels, key=lambda p: kernels[p])[(len(kernels) - 1) // 4]
        return path, kernels[path] / max(found.values())

    def grown(self, path: str) -> float:
        """|w| now over |w| at the start; NaN where it is not known."""
        first = self.weight_norm(path, first=True)
        return self.weight_norm(path) / first if first > 0 else math.nan

    def grown_more(self, path: str) -> float:
        """`grown` over that of a usual kernel, or over 1 where that shrank."""
        others = [x for p in self.kernels if math.isfinite(x := self.grown(p))]
        return self.grown(path) / max(float(np.median(others)) if others else 1.0, 1.0)

    @property
    def odd_growth(self) -> float:
        """The largest `grown_more` of an embedding; 0 where there is none."""
        return max((x for path in self.embeddings if (x := self.grown_more(path)) > 0), default=0.0)


def _first(column: np.ndarray | None, *, reverse: bool) -> float:
    if column is None:
        return math.nan
    known = column[np.isfinite(column)]
    return float(known[-1 if reverse else 0]) if len(known) else math.nan
