"""Which number is the loss of a step: an output of it, or what `model.fit` computes."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from gradwatch.tf import distribution, updates
from gradwatch.tf.monitor import Monitor


@tf.autograph.experimental.do_not_convert
def tell(monitors: Sequence[Monitor], outputs: Any, choose: Callable[[Any], Any] | None) -> None:
    """Give the monitors of a step the loss among its outputs, for their next step."""
    loss = of_outputs(outputs, choose)
    if loss is not None:
        for monitor in monitors:
            monitor._engine.loss.tell(loss)


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


@contextlib.contextmanager
def of_batches(model: Any, monitors: Sequence[Monitor]) -> Iterator[None]:
    """While the model trains on batches inside, the monitors expect the loss of each.

    `compute_loss` is where Keras makes the loss of a batch, and where a model with a loss of its own does; what `fit`
    reports is a mean over the epoch so far. Of a function that was traced before, the graph holds it already.
    """
    original = getattr(model, "compute_loss", None)
    if original is None or not monitors:
        yield
        return
    before = vars(model).get("compute_loss")

    @functools.wraps(original)
    @tf.autograph.experimental.do_not_convert
    def compute_loss(*args: Any, **kwargs: Any) -> Any:
        given = updates.Arguments(["x", "y"], args, kwargs)
        for monitor in monitors:
            monitor._engine.inputs.expect(given.get(0), given.get(1))
        loss = original(*args, **kwargs)
        if _is_number(loss):
            # Keras divides it by the number of replicas, so that their sum is the batch's
            batch = tf.stop_gradient(loss) * float(distribution.replicas())
            for monitor in monitors:
                monitor._engine.loss.expect(batch)
        return loss

    # past Keras' attribute tracking
    vars(model)["compute_loss"] = compute_loss
    try:
        yield
    finally:
        for monitor in monitors:
            monitor._engine.loss.forget()
            monitor._engine.inputs.forget()
        if before is None:
            vars(model).pop("compute_loss", None)
        else:
            vars(model)["compute_loss"] = before
