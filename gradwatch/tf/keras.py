"""The callback for `model.fit`."""

from __future__ import annotations

from typing import Any

import keras

from gradwatch.errors import ConfigError
from gradwatch.tf import hook
from gradwatch.tf.monitor import Monitor


class KerasCallback(keras.callbacks.Callback):
    """Watch and clip during `model.fit`: `model.fit(..., callbacks=[gradwatch.KerasCallback()])`.

    Args:
      monitor: the `gradwatch.Monitor` to use; None makes one with its defaults.

    Raises:
      ConfigError: monitor is not a Monitor.
    """

    def __init__(self, monitor: Monitor | None = None) -> None:
        super().__init__()
        if monitor is not None and not isinstance(monitor, Monitor):
            raise ConfigError(f"monitor must be a gradwatch.Monitor, got {monitor!r}")
        self.monitor = Monitor() if monitor is None else monitor
        self._optimizer: Any = None

    def on_train_begin(self, logs: Any = None) -> None:
        self._optimizer = self.model.optimizer
        hook.attach(self._optimizer, self.monitor)
        # a train function traced by an earlier fit is unwatched
        self.model.make_train_function(force=True)

    def on_train_end(self, logs: Any = None) -> None:
        hook.detach(self._optimizer)
        # a later fit without the callback must not stay watched
        self.model.train_function = None
