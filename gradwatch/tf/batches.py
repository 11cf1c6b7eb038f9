"""What a step was called with: handed to the monitors that keep the batch of a step that alarmed."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf

from gradwatch.tf.monitor import Monitor


@tf.autograph.experimental.do_not_convert
def keep(monitors: Sequence[Monitor], args: Sequence[Any], keywords: Mapping[str, Any]) -> None:
    """A call of a watched step has ended; those who keep batches get its arguments."""
    for monitor in monitors:
        monitor._engine.keep(args, keywords)


@contextlib.contextmanager
def of_fit(model: Any, monitors: Sequence[Monitor]) -> Iterator[None]:
    """While the model trains inside, those who keep batches get what its `train_step` is given.

    `train_step(data)` is where Keras hands over a batch, within the graph and on each replica. The train function that
    is made inside holds the wrapped one for as long as it lives.
    """
    keeping = [monitor for monitor in monitors if monitor._engine.keeper is not None]
    original = getattr(model, "train_step", None)
    if original is None or not keeping:
        yield
        return
    before = vars(model).get("train_step")

    @functools.wraps(original)
    def train_step(data: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(data, *args, **kwargs)
        # (x, y), as the loss and blame take them
        keep(keeping, data if isinstance(data, tuple) else (data,), {})
        return result

    # AutoGraph would unwrap it
    del train_step.__wrapped__
    # past Keras' attribute tracking
    vars(model)["train_step"] = train_step
    try:
        yield
    finally:
        if before is None:
            vars(model).pop("train_step", None)
        else:
            vars(model)["train_step"] = before
