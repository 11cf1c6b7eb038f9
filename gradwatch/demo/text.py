"""Real English text that every CPython has on disk: the topics of `help()`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Text:
    """A text as numbers.

    Attributes:
      codes: int32 [characters], each an index into `vocabulary`.
      vocabulary: the characters that occur, sorted.
    """

    codes: np.ndarray
    vocabulary: str

    @property
    def uniform_loss(self) -> float:
        """Cross-entropy in nats of a uniform guess: every character equally likely."""
        return float(np.log(len(self.vocabulary)))


def english() -> Text:
    """The topics of Python's `help()`, in the order of their names: about half a megabyte of prose and tables."""
    from pydoc_data.topics import topics

    return encode("\n".join(topics[name] for name in sorted(topics)))


def encode(text: str) -> Text:
    """`text` as indices into its own vocabulary."""
    points, codes = np.unique(np.frombuffer(text.encode("utf-32-le"), np.uint32), return_inverse=True)
    return Text(codes.astype(np.int32).reshape(-1), "".join(map(chr, points)))


def pages(text: Text, *, seed: int, batch: int, length: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Endless (x, y), int32 [batch, length] each; y is x one character later.

    A batch is one page: `batch` neighbouring pieces of the text. The pages come in a random order, each once
    before any comes again. So a page of tables is a step of its own, and its gradient is an unusual one.
    """
    random = np.random.default_rng(seed)
    page = batch * length
    window = np.arange(batch)[:, None] * length + np.arange(length + 1)
    starts = np.arange(0, len(text.codes) - page, page)
    while True:
        for start in random.permutation(starts):
            pieces = text.codes[start + window]
            yield pieces[:, :-1], pieces[:, 1:]
