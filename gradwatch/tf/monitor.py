"""The monitor: what a person holds of a watched optimizer."""

from __future__ import annotations

import functools
import itertools
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from gradwatch.core import checks, decode
from gradwatch.core.detectors import Detector
from gradwatch.core.guard import Decision, Guard
from gradwatch.core.policies import Policy
from gradwatch.core.snapshot import Snapshot
from gradwatch.errors import ConfigError, LayoutError, TrainingStopped
from gradwatch.reading import reader
from gradwatch.record import recorder
from gradwatch.recovery.rungs import ladder_of
from gradwatch.tf import capture, guards, kept, reports
from gradwatch.tf import variables as _variables
from gradwatch.tf.engine import Engine
from gradwatch.tf.gradients import Gradient
from gradwatch.tf.healing import Healer
from gradwatch.tf.host_side import HostSide
from gradwatch.tf.shown import Shown

_numbers = itertools.count(1)


class MonitorReading(NamedTuple):
    """What a monitor knows at one instant, from one read of the device.

    Attributes:
      snapshot: the newest numbers.
      history: the last 1,024 steps, see `Monitor.history`; its last row is the snapshot's step.
    """

    snapshot: Snapshot
    history: dict[str, np.ndarray]


class Monitor(Shown, tf.Module):
    """Watches and clips the gradients of one optimizer.

    Statistics, threshold, verdict and scaling are device ops over one state variable: no host sync per step,
    the same in eager mode, `tf.function` and `jit_compile=True`. `tf.train.Checkpoint(gradwatch=monitor)`
    saves and restores it; the same gradients after a restore give bit-identical decisions.

    Args:
      name: label of its metrics; a default is numbered: "default", "default-2", ...
      policy: a clip policy of `gradwatch.policies`, or its text such as "median(2)"; None is
        `auto()`.
      detectors: detectors of `gradwatch.detectors`, or texts such as "spike(6)"; None is default().
      on_nonfinite: a step whose gradients hold a NaN or Inf is turned to "zero", its update is dropped whole
        ("skip"), or it is let through ("propagate"). None is "zero", and "propagate" for policies.observe().
      on_explosion: "clip" leaves an exploding step to the policy, "skip" drops its update, "observe" lets it
        pass as it came.
      on_alert: called with a `gradwatch.Alert` from a host thread, or a list of such callables.
      jit_compile: compile the guard's small update with XLA (it costs less per step); False where there is
        no XLA.
      record: a folder: each run is recorded there in a file of its own, see `gradwatch.open_run`. None: what the
        environment variable GRADWATCH_RECORD says, or no record.
      update_limit: the share of their norm by which an update may move the weights, > 0; a longer update is scaled
        back to it, whatever the optimizer: w + update_limit * |w| / |dw| * dw. The optimizer's slots stay as the
        update left them. None for no limit.
      keep_batch: keep what the step was called with where it alarmed: on the device, and from the next reading on in a
        file beside the record, see `gradwatch.open_event`. Needs `record`. Batches can be private data: nothing is
        kept unless this is True.
      batch_bytes: a larger batch is not kept, and the log says so. The device holds one batch, and a run has at most
        20 files.
      weights: keep the weights after that step, too.
      recover: `gradwatch.recovery.ladder()`, or one of its rungs: what to do when clipping is not enough. It acts
        between two calls of a step that `gradwatch.watch` or `KerasCallback` watches. None: nothing.

    Raises:
      ConfigError: an argument is not what it should be.

    Example:
      >>> import gradwatch, tensorflow as tf
      >>> monitor = gradwatch.Monitor("example", policy="fixed(1)")
      >>> [gradient], decision = monitor.clip([tf.constant([3.0, 4.0])])
      >>> [round(float(x), 3) for x in gradient], float(decision.norm)
      ([0.6, 0.8], 5.0)
    """

    def __init__(
        self,
        name: str | None = None,
        policy: Policy | str | None = None,
        detectors: Detector | str | Sequence[Detector | str] | None = None,
        *,
        on_nonfinite: str | None = None,
        on_explosion: str = "clip",
        on_alert: Callable[[Any], None] | Sequence[Callable[[Any], None]] | None = None,
        jit_compile: bool = True,
        update_limit: float | None = None,
        record: str | os.PathLike[str] | None = None,
        keep_batch: bool = False,
        batch_bytes: int = kept.BYTES,
        weights: bool = False,
        recover: Any = None,
    ) -> None:
        super().__init__()
        if name is None:
            number = next(_numbers)
            name = "default" if number == 1 else f"default-{number}"
        if not isinstance(name, str) or not name:
            raise ConfigError(f"name must be a text that is not empty, got {name!r}")
        self._label = name
        guard = guards.guard_of(policy, detectors, on_nonfinite, on_explosion)
        self._host = HostSide(on_alert)
        if update_limit is not None:
            update_limit = checks.number(
                "update_limit",
                update_limit,
                above=0.0,
                hint="a share of the weights' norm as 0.05, or None for no limit",
            )
        folder = recorder.folder_of(record)
        self._host.record = record
        self._host.recorder = None if folder is None else recorder.Recorder(folder, report=recorder.wants_report())
        keeper = kept.keeper_of(keep_batch, batch_bytes, weights, recorded=folder is not None)
        self._engine = Engine(
            self,
            guard,
            jit_compile=bool(jit_compile),
            alerts=bool(self._host.alert_sinks),
            update_limit=update_limit,
            recorder=self._host.recorder,
            keeper=keeper,
        )
        self._host.recover = recover
        ladder = ladder_of(recover)
        self._healer = None if ladder is None else Healer(ladder)
        if self._healer is not None:
            self._healer.follow(self)

    @property
    def _healer(self) -> Healer | None:
        return self._host.healer

    @_healer.setter
    def _healer(self, healer: Healer | None) -> None:
        self._host.healer = healer

    @property
    def name(self) -> str:
        """Label of its metrics."""
        return self._label

    @property
    def guard(self) -> Guard:
        """Policy, detectors and what happens when they speak."""
        return self._engine.guard

    @property
    def run_id(self) -> str:
        """Unique for this monitor object."""
        return self._engine.run_id

    @property
    def run_info(self) -> Mapping[str, str]:
        """Facts about the run, for labels: run_name, strategy, replicas, precision, policy."""
        return dict(self._engine.run_info)

    @property
    def run_facts(self) -> dict[str, Any]:
        """What is known of the training; empty before the first step.

        policy, detectors, on_nonfinite, on_explosion, optimizer and its settings, variables (path -> shape), strategy,
        replicas, precision, inputs ("input" and "target" -> dtype), sparse_variables.
        """
        return self._engine.facts()

    @property
    def host_seconds(self) -> float:
        """Seconds that gradwatch's host side has taken from the training thread so far."""
        return self._engine.host_seconds

    @property
    def recorded(self) -> tuple[int, int]:
        """Steps in the record, and how often it could not be written; zeros without a record."""
        kept = self._host.recorder
        return (0, 0) if kept is None else (kept.steps, kept.errors)

    @property
    def record_path(self) -> Path | None:
        """The file that this run is recorded in, once the first step has been made; None without a record."""
        return None if self._host.recorder is None else self._host.recorder.path

    @property
    def stopped(self) -> TrainingStopped | None:
        """The error with which the rung `stop` ended the training; None where it did not."""
        return None if self._healer is None else self._healer.ledger.stopped

    @property
    def alert_sinks(self) -> list[Callable[[Any], None]]:
        """Callables that get each Alert; append to it at any time."""
        reader.start()  # whoever asks wants alerts
        return self._host.alert_sinks

    def clip(
        self, grads: Sequence[Gradient | None], variables: Sequence[Any] | None = None, optimizer: Any = None
    ) -> tuple[list[Gradient | None], Decision]:
        """Watch and clip a list of gradients: one step.

        In place of `grads, norm = tf.clip_by_global_norm(grads, c)` inside any train step.

        Args:
          grads: tensors, IndexedSlices or None, in the order of the variables.
          variables: their variables, for the names in reports and for `reach`; optional.
          optimizer: who will apply the gradients, for `reach`, which needs the variables too; without it no policy
            can know how far a step carries the weights, and `auto` clips to twice the median of the norms, from the
            second step on.

        Returns:
          (the gradients to apply, in the same order and of the same kinds; a `Decision` of tensors)

        Raises:
          NothingToWatch: all gradients are None.
          LayoutError: the variables are others than at the first step.
          ConfigError: grads is not a list of gradients, variables has another length, or the monitor is to skip or
            limit updates: who calls `clip` makes the update, and nobody else can change it.
        """
        guards.refuse_skip(self.guard)
        if self._engine.weights.limit is not None:
            raise ConfigError(
                f"update_limit={self._engine.weights.limit:g} needs to see the update, which monitor.clip does not; "
                "use gradwatch.watch or gradwatch.KerasCallback without monitor.clip, or leave update_limit out"
            )
        _variables.check_gradients(grads)
        named = _variables.listed(variables, len(grads))
        self._engine.explicit_calls += 1
        captured = capture.under_way()
        if captured is not None:
            captured.take(grads, by_hand=True)
        return self._engine.clip(list(grads), named, optimizer=optimizer)

    def read(self) -> MonitorReading:
        """Snapshot and history of one instant; safe from any thread."""
        state = self._engine.tree()
        return MonitorReading(self._snapshot(state), self._engine.history_of(state))

    def snapshot(self) -> Snapshot:
        """Plain numbers as of now, read off the device in one go; safe from any thread."""
        return self._snapshot(self._engine.tree())

    def history(self) -> dict[str, np.ndarray]:
        """The last 1,024 steps as numpy arrays, oldest first.

        Keys: step, norm, applied_norm, clip_norm, threshold, score, verdict (0 pass, 1 clip, 2 zero, 3 skip), reach,
        update_ratio (the newest that was known before the step), loss, learning_rate, input_rms and target_rms (root
        mean squares of the first and the last array that the step was given, Inf where one held a NaN or Inf), replica
        and replica_ratio (whose own gradient was the least like the others', and how many times it was longer, from a
        sample of it); those from reach on are NaN where they are not known. The newest step has its
        loss once it has returned it.
        """
        return self._engine.history_of(self._engine.tree())

    def _snapshot(self, state: Mapping[str, Any]) -> Snapshot:
        extra = dict(self._host.reported)
        if self._host.recorder is not None and (rate := self._engine.learning_rate_now()) is not None:
            extra["learning_rate"] = rate
        return decode.snapshot(
            self.guard,
            state,
            name=self.name,
            paths=self._engine.paths,
            extra=extra,
            loss_scale=self._engine.loss_scale_now(),
            **self._engine.weights.read(self._engine.paths),
            **({} if self._healer is None else self._healer.ledger.known()),
        )

    def report(self, **numbers: float) -> None:
        """Tell the exporters a number that the training knows: loss=..., learning_rate=...

        `loss` goes to the policy too, which gets it at the next step.

        Args:
          **numbers: values of the host: numbers, numpy scalars or eager tensors of one element. `loss` may be a
            tensor inside a `tf.function`; the policy gets it there, the exporters do not.

        Raises:
          ConfigError: a value is no number, or another than `loss` is a tensor inside a graph, which has no value yet.
        """
        loss = numbers.get("loss")
        values = reports.numbers({key: x for key, x in numbers.items() if key != "loss" or not reports.in_graph(x)})
        if loss is not None:
            self._engine.loss.report(loss)
        self._host.reported.update(values)

    def note(self, text: str) -> None:
        """Write a line into the run's record: monitor.note("unfroze the encoder"). Without a record it does nothing.

        Call it outside a `tf.function`. It waits for the device, to tell the step.

        Raises:
          ConfigError: `text` is no text.
        """
        if not isinstance(text, str) or not text.strip():
            raise ConfigError(f"note takes a text that is not empty, got {text!r}")
        if self._host.recorder is not None:
            with tf.init_scope():
                self._host.recorder.note(text, self.snapshot().steps)

    def flush_record(self, timeout_seconds: float = 10.0) -> bool:
        """Write all that is known by now into the record; False if that took longer. A second later it is there anyway.

        Without a record there is nothing to write, and the answer is True.
        """
        return self._host.recorder is None or self._host.recorder.flush(timeout_seconds)

    def reset(self) -> None:
        """Start over as before the first step, with the same options: statistics, counters, history, reports.

        The next step may bring other variables: a model of another fold, or layers that were unfrozen. A
        `tf.function` that was traced for the old variables must then be made anew.
        """
        self._engine.reset()
        if self._healer is not None:
            self._healer.reset()
        self._host.reported.clear()

    def __copy__(self) -> Monitor:
        """A monitor with the same name and options, before its first step."""
        return type(self)(**self._options())

    def __deepcopy__(self, memo: dict[int, Any]) -> Monitor:
        # as a copy: options do not change, and whoever takes the alerts stays the same
        return self.__copy__()

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial(type(self), **self._options()), ()

    def _options(self) -> dict[str, Any]:
        guard, keeper = self.guard, self._engine.keeper
        return {
            "name": self.name,
            "policy": guard.policy,
            "detectors": guard.detectors,
            "on_nonfinite": guard.on_nonfinite,
            "on_explosion": guard.on_explosion,
            "on_alert": list(self._host.alert_sinks),
            "jit_compile": self._engine.jit_compile,
            "update_limit": self._engine.weights.limit,
            "record": self._host.record,
            **({} if keeper is None else keeper.options),
            "recover": self._host.recover,
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state beside a model (a `.keras` file does not carry it), as one .npz file, all or nothing.

        Raises:
          OSError: the file cannot be written.
        """
        target = Path(path)
        unfinished = target.with_name(target.name + ".part")
        with unfinished.open("wb") as file:
            np.savez(file, **{key: x.numpy() for key, x in self._engine.serialize().items()})
        unfinished.replace(target)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Go on from a state that `save` wrote: the same gradients then give bit-identical decisions.

        Raises:
          LayoutError: the file is of another model, policy or detectors, or no monitor's state at all.
          OSError: the file cannot be read.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                restored = {key: tf.convert_to_tensor(file[key]) for key in ("layout", "state")}
        except (ValueError, KeyError, zipfile.BadZipFile) as error:
            raise LayoutError(
                f"{os.fspath(path)} holds no monitor's state; give a file that Monitor.save wrote"
            ) from error
        self._engine.restore(restored)

    def _trackable_children(self, save_type: str = "checkpoint", **options: Any) -> dict[str, Any]:
        children: dict[str, Any] = super()._trackable_children(save_type, **options)
        if save_type == "savedmodel" and self._engine.on_device is not None:
            # the functions that are exported capture it
            children.update(self._engine.on_device.exported(self._engine.keeper))
        return children

    def _serialize_to_tensors(self) -> dict[str, tf.Tensor]:
        return self._engine.serialize()

    def _restore_from_tensors(self, restored: Mapping[str, tf.Tensor]) -> None:
        self._engine.restore(restored)
