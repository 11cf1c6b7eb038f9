"""The tensors among the arguments of a step, and how they belong together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf


def outline_of(args: Sequence[Any], keywords: Mapping[str, Any]) -> tuple[dict[str, Any], list[tf.Tensor]]:
    """(outline, its tensors) of a call; `gradwatch.record.batch` says what an outline is.

    Objects that are no data are left out: as a positional argument wholly (the instance of a method, a model), deeper
    inside as None. A tf.Variable is such an object: it is a part of the model.
    """
    tensors: list[tf.Tensor] = []
    positional = [one for one in (_outline(x, tensors) for x in args) if not _is_object(one)]
    named = [[key, _outline(x, tensors)] for key, x in keywords.items()]
    return {"tuple": [{"tuple": positional}, {"dict": named}]}, tensors


def _outline(x: Any, tensors: list[tf.Tensor]) -> dict[str, Any]:
    def add(tensor: Any) -> int:
        tensors.append(tf.convert_to_tensor(tensor))
        return len(tensors) - 1

    if isinstance(x, tf.distribute.DistributedValues) and not isinstance(x, tf.Variable):
        return {"parts": [_outline(part, tensors) for part in getattr(x, "values", ())]}
    if isinstance(x, tf.RaggedTensor):
        return {"ragged": [add(part) for part in (x.flat_values, *x.nested_row_splits)]}
    if isinstance(x, tf.SparseTensor):
        return {"sparse": [add(part) for part in (x.indices, x.values, x.dense_shape)]}
    if isinstance(x, tf.Tensor):
        # what holds a resource is a handle, not a number
        return {"nothing": x.dtype.name} if x.dtype in (tf.resource, tf.variant) else {"array": add(x)}
    if isinstance(x, (np.ndarray, np.generic)):
        return {"nothing": "object"} if x.dtype.kind in "OV" and x.dtype.isbuiltin != 2 else {"array": add(x)}
    if isinstance(x, (bool, int, float)):
        # as a tensor, so that a number that changes from call to call needs no other place
        return {"number": add(tf.constant(x, tf.bool if isinstance(x, bool) else _wide(x)))}
    if isinstance(x, str):
        return {"text": x}
    if isinstance(x, Mapping):
        return {"dict": [[_key(key), _outline(one, tensors)] for key, one in x.items()]}
    if isinstance(x, (tuple, list)):
        return {"list" if isinstance(x, list) else "tuple": [_outline(one, tensors) for one in x]}
    return {"nothing": "" if x is None else type(x).__name__}


def _wide(x: float) -> tf.DType:
    return tf.int64 if isinstance(x, int) and abs(x) < 1 << 63 else tf.float64


def _key(key: Any) -> Any:
    return key if isinstance(key, (str, int)) else str(key)


def _is_object(outline: Mapping[str, Any]) -> bool:
    return bool(outline.get("nothing"))
