"""The callback for `model.fit`."""

from __future__ import annotations

import copy
import logging
import re
import time
from pathlib import Path
from typing import Any

import keras

from gradwatch.core import checks
from gradwatch.core.snapshot import Snapshot
from gradwatch.errors import ConfigError, NothingToWatch, TrainingStopped
from gradwatch.reading.reader import reader
from gradwatch.tf import compat, fits, options, rates
from gradwatch.tf.monitor import Monitor
from gradwatch.tf.watchers import Scope

logger: logging.Logger = logging.getLogger("gradwatch")

_LOOK_SECONDS = 1.0  # between two reads of the learning rate from the device

#: Kinds of anomaly that a training does not survive for long, beside NaN, and what the gradients then are.
_LOST = {"explosion": "exploding", "saturated": "clipped or dropped in most steps"}

#: Attributes that belong to one fit, as they are before it.
_NO_RUN: dict[str, Any] = {"_optimizer": None, "_function": None, "_scope": None, "_looked": 0.0}


class KerasCallback(keras.callbacks.Callback):
    """Watch and clip during `model.fit`: `model.fit(..., callbacks=[gradwatch.KerasCallback()])`.

    Adds `gradient_norm` and `clip_norm` (as of the newest reading) and `clipped_steps` to the progress bar and to
    `History`, and reports loss and learning rate to the exporters.

    Args:
      monitor: the `gradwatch.Monitor` to use; None makes one from the options.
      optimizer: the optimizer to watch; None is the one given to `model.compile`. A model whose train_step has
        several takes a callback for each, with monitors of different names.
      backup_dir: keep the monitor's state in this folder at the end of each epoch and go on from it: the
        partner of `keras.callbacks.BackupAndRestore`, which does not carry it. Deleted when the training ends.
      stop_after: end the training once an explosion, saturated clipping or NaN gradients have lasted this many
        steps; None never.
      **monitor_options: those of `Monitor`: name, policy, detectors, on_nonfinite, ..., in place of `monitor`.

    A copy (`copy.deepcopy`, `pickle`) has the same configuration and begins with no run; a deep copy watches the same
    `optimizer`.

    Raises:
      ConfigError: an argument is not what it should be.
      NothingToWatch: in the first batch, when the model trains with another optimizer.

    Example:
      >>> import gradwatch, keras, numpy as np
      >>> model = keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(1)])
      >>> model.compile("sgd", "mse")
      >>> callback = gradwatch.KerasCallback(policy="median(2)")
      >>> _ = model.fit(np.ones((8, 2)), np.ones(8), batch_size=4, verbose=0, callbacks=[callback])
      >>> callback.monitor.snapshot().steps
      2
    """

    _optimizer: Any
    _function: fits.TrainFunction | None
    _scope: Scope | None
    _looked: float

    def __init__(
        self,
        monitor: Monitor | None = None,
        *,
        optimizer: Any = None,
        backup_dir: str | None = None,
        stop_after: int | None = None,
        **monitor_options: Any,
    ) -> None:
        super().__init__()
        options.check(monitor, monitor_options, "gradwatch.KerasCallback")
        self.monitor: Monitor = options.monitor_from(monitor, monitor_options)
        self.backup: Path | None = None if backup_dir is None else Path(backup_dir) / _file_name(self.monitor.name)
        self.stop_after: int | None = None if stop_after is None else checks.count("stop_after", stop_after)
        if optimizer is not None and not hasattr(optimizer, "apply_gradients"):
            raise ConfigError(f"optimizer must be a Keras optimizer, got {optimizer!r}")
        self._given = optimizer
        self.__dict__.update(_NO_RUN)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, **_NO_RUN, **compat.RUN_OF_A_CALLBACK}

    def __deepcopy__(self, memo: dict[int, Any]) -> KerasCallback:
        memo[id(self._given)] = self._given  # a copy of it would train nothing
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        new.__dict__.update(copy.deepcopy(self.__getstate__(), memo))
        return new

    def on_train_begin(self, logs: Any = None) -> None:
        self._optimizer = self._given if self._given is not None else self.model.optimizer
        if self.backup is not None and self.backup.exists():
            self.monitor.load(self.backup)
        self._function = fits.watched_train_function(self.model)
        self._scope = self._function.join(self.params, self._optimizer, self.monitor)
        healer = self._function.healer()
        if healer is not None:
            healer.restart(self.model)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if self._function is not None:
            self._function.announce()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self._scope is not None and not self._scope.seen:
            self._detach()
            raise NothingToWatch(
                f"monitor {self.monitor.name!r} saw no gradient in the first batch: the model's train_step does not "
                f"use its optimizer {getattr(self._optimizer, 'name', None)!r}. Say which one it uses: "
                "KerasCallback(monitor, optimizer=model.g_optimizer), one callback for each"
            )
        self._heal()
        if logs is None:
            return
        if "loss" in logs:
            # for the exporters alone: this is the mean of the epoch so far, the policy has the batch's own
            self.monitor._host.reported["loss"] = float(logs["loss"])
        if time.monotonic() - self._looked > _LOOK_SECONDS:
            self._looked = time.monotonic()
            rate = rates.learning_rate_now(self._optimizer)
            if rate is not None:
                self.monitor.report(learning_rate=rate)
        # what the reader's thread saw last: no step waits for the device here
        seen = next((r.snapshot for r in reader.readings() if r.run_id == self.monitor.run_id), None)
        if seen is not None and seen.steps:
            logs.update(self._shown(seen))
            self._stop_if_lost(seen)

    def on_test_begin(self, logs: Any = None) -> None:
        self._heal(now=True)  # a validation within fit: of healthy weights

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._heal(now=True)  # before anybody's checkpoint
        now = self.monitor.snapshot()
        if logs is not None:
            logs.update(self._shown(now))
        self._stop_if_lost(now)
        if self.backup is not None:
            try:
                self.backup.parent.mkdir(parents=True, exist_ok=True)
                self.monitor.save(self.backup)
            except OSError as error:  # a full disk must not end a training
                logger.warning("monitor %r could not be backed up: %s", self.monitor.name, error)

    # tf-keras asks its callbacks which hooks they have

    def _implements_train_batch_hooks(self) -> bool:
        return True

    def _implements_test_batch_hooks(self) -> bool:
        return True

    def _implements_predict_batch_hooks(self) -> bool:
        return False

    def _heal(self, *, now: bool = False) -> None:
        """Between two calls of the train function."""
        healer = None if self._function is None else self._function.healer()
        if healer is None or healer is not self.monitor._healer:
            return
        try:
            if now:
                healer.look(now=True)
            elif healer.leader is self.monitor:  # of several callbacks one counts the calls
                healer.after_call()
        except TrainingStopped:
            self.model.stop_training = True

    def _detach(self) -> None:
        """Leave the fit; what is left on the model watches nobody."""
        if self._function is not None and self._scope is not None:
            self._function.leave(self._scope)
        self.__dict__.update(_NO_RUN)

    def on_train_end(self, logs: Any = None) -> None:
        if self.monitor._healer is not None:
            self.monitor._healer.model = None  # a monitor does not keep a model
        self._detach()
        reader.mark_active(self.monitor, False)
        if self.backup is not None:
            self.backup.unlink(missing_ok=True)

    def _shown(self, now: Snapshot) -> dict[str, float]:
        values = {"gradient_norm": now.norm, "clip_norm": now.clip_norm, "clipped_steps": float(now.clipped_steps)}
        # several callbacks write into one progress bar
        prefix = "" if self._given is None else f"{self.monitor.name}_"
        return {prefix + key: value for key, value in values.items()}

    def _stop_if_lost(self, now: Snapshot) -> None:
        if self.stop_after is None or self.model.stop_training:
            return
        lasted = {kind: _steps_of_episode(now, kind) for kind in _LOST}
        lasted["nonfinite"] = now.nonfinite_streak
        worst = max(lasted, key=lambda kind: lasted[kind])
        if lasted[worst] >= self.stop_after:
            streak = now.nonfinite_streak if worst != "nonfinite" else 0
            logger.error(
                "monitor %r stops the training at step %d: the gradients have been %s for %d steps%s",
                now.name,
                now.steps,
                {"nonfinite": "NaN or Inf", **_LOST}[worst],
                lasted[worst],
                f", and NaN or Inf in the last {streak} of them" if streak else "",
            )
            self.model.stop_training = True


def _steps_of_episode(now: Snapshot, kind: str) -> int:
    """How many steps the present episode of this kind has lasted, 0 where there is none."""
    began = now.last_events.get(kind)
    return now.steps - began.step + 1 if began is not None and now.active.get(kind, False) else 0


def _file_name(name: str) -> str:
    """A file for a monitor of any name, and of any length."""
    return f"gradwatch-{re.sub(r'[^A-Za-z0-9_.-]', '_', name)[:64]}.npz"
