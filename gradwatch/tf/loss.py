"""Which number is the loss of a step: an output of it, or what `model.fit` computes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from gradwatch.tf import distribution
from gradwatch.tf.reach import Weights


def of_outputs(outputs: Any, choose: Callable[[Any], Any] | None = None) -> Any:
    """The loss among what a step returned, or None.

    Args:
      outputs: of the step; a dict's "loss" is the loss, else the first floating number of shape () is.
      choose: outputs -> loss, for a step that returns another number first.
    """
    if choose is not None:
        return choose(outputs)
    if isinstance(outputs, Mapping) and _is_number(outputs.get("loss")):
        return outputs["loss"]
    return next((x for x in tf.nest.flatten(outputs) if _is_number(x)), None)


def _is_number(x: Any) -> bool:
    if isinstance(x, tf.distribute.DistributedValues):
        x = x.values[0] if getattr(x, "values", None) else None
    if isinstance(x, tf.Tensor):
        return bool(x.dtype.is_floating and x.shape.rank == 0)
    return isinstance(x, (float, np.floating))


def watch_model(model: Any, weights: Weights) -> Callable[[], None]:
    """From now on `weights` expects the loss of each batch that the model trains on; returns how to end that.

    `compute_loss` is where Keras makes the loss of a batch, and where a model with a loss of its own does. What
    `fit` reports is a mean over the epoch so far.
    """
    before = vars(model).get("compute_loss")
    original = getattr(model, "compute_loss", None)
    if original is None:
        return _nothing

    @functools.wraps(original)
    @tf.autograph.experimental.do_not_convert
    def compute_loss(*args: Any, **kwargs: Any) -> Any:
        loss = original(*args, **kwargs)
        if kwargs.get("training", True) and _is_number(loss):
            # Keras divides it by the number of replicas, so that their sum is the batch's
            weights.expect(loss * float(distribution.replicas()))
        return loss

    # past Keras' attribute tracking
    vars(model)["compute_loss"] = compute_loss

    def end() -> None:
        if before is None:
            vars(model).pop("compute_loss", None)
        else:
            vars(model)["compute_loss"] = before

    return end


def _nothing() -> None:
    pass
