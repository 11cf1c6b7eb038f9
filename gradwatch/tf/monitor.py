"""The monitor: holds the state on the device and runs the guard in the graph."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import re
import threading
import time
import uuid
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from gradwatch.core import decode, policies
from gradwatch.core import detectors as _detectors
from gradwatch.core.detectors import Detector
from gradwatch.core.guard import Decision, Guard
from gradwatch.core.policies import Policy
from gradwatch.core.snapshot import Snapshot
from gradwatch.core.xp import NUMPY
from gradwatch.errors import ConfigError, LayoutError, NothingToWatch
from gradwatch.reading import reader
from gradwatch.tf import distribution, fused
from gradwatch.tf import gradients as _gradients
from gradwatch.tf.gradients import Gradient

_numbers = itertools.count(1)


class _Built:
    """What exists once the variables are known."""

    def __init__(
        self, guard: Guard, paths: Sequence[str], shapes: Sequence[tuple[int | None, ...]], *, jit_compile: bool
    ) -> None:
        self.paths = tuple(paths)
        self.shapes = tuple(shapes)
        initial = guard.init(len(paths))
        self.guard = fused.FusedGuard(guard, initial, jit_compile=jit_compile)
        self.layout = self.guard.layout
        self.fingerprint = f"{guard.policy.name}|{self.layout.fingerprint()}"
        self.initial = self.layout.pack(NUMPY, initial)
        self.state = distribution.in_scope(self._make)

    def _make(self) -> tf.Variable:
        return tf.Variable(
            self.initial,
            trainable=False,
            name="gradwatch_state",
            dtype=tf.float32,
            # under a strategy each replica writes its own equal copy
            aggregation=tf.VariableAggregation.NONE,
            # a tf.function that sees a variable made would trace the user's step a second time
            experimental_enable_variable_lifting=False,
        )

    def vector(self) -> tf.Tensor:
        """The state as this replica has it."""
        return tf.convert_to_tensor(self.state)

    def put(self, vector: np.ndarray) -> None:
        """Overwrite the state, on every replica."""
        with tf.init_scope():
            self.state.assign(vector)

    def tree(self) -> dict[str, Any]:
        return self.layout.unpack(NUMPY, self.vector().numpy())


class Monitor(tf.Module):
    """Watches and clips the gradients of one optimizer.

    Statistics, threshold, verdict and scaling are device ops over one state variable: no host sync per step,
    the same in eager mode, `tf.function` and `jit_compile=True`. `tf.train.Checkpoint(gradwatch=monitor)`
    saves and restores it; the same gradients after a restore give bit-identical decisions.

    Args:
      name: label of its metrics; a default is numbered: "default", "default-2", ...
      policy: a clip policy of `gradwatch.policies`, or its text such as "median(2)"; None is percentile(90).
      detectors: detectors of `gradwatch.detectors`; None is default().
      on_nonfinite: a step whose gradients hold a NaN or Inf is turned to "zero", its update is dropped whole
        ("skip"), or it is let through ("propagate"). None is "zero", and "propagate" for policies.observe().
      on_explosion: "clip" leaves an exploding step to the policy, "skip" drops its update, "observe" lets it
        pass as it came.
      on_alert: called with a `gradwatch.Alert` from a host thread, or a list of such callables.
      jit_compile: compile the guard's small update with XLA (it costs less per step); False where there is
        no XLA.

    Raises:
      ConfigError: an argument is not what it should be.
    """

    def __init__(
        self,
        name: str | None = None,
        policy: Policy | str | None = None,
        detectors: Sequence[Detector] | Detector | None = None,
        *,
        on_nonfinite: str | None = None,
        on_explosion: str = "clip",
        on_alert: Callable[[Any], None] | Sequence[Callable[[Any], None]] | None = None,
        jit_compile: bool = True,
    ) -> None:
        super().__init__()
        if name is None:
            number = next(_numbers)
            name = "default" if number == 1 else f"default-{number}"
        if not isinstance(name, str) or not name:
            raise ConfigError(f"name must be a text that is not empty, got {name!r}")
        self._label = name
        guard = Guard(
            policies.percentile() if policy is None else policy,
            _detectors.default() if detectors is None else detectors,  # type: ignore[arg-type]
            on_nonfinite,
            on_explosion,
        )
        self._hidden = _Hidden(self, guard, _sinks(on_alert), bool(jit_compile))

    @property
    def name(self) -> str:
        """Label of its metrics."""
        return self._label

    @property
    def guard(self) -> Guard:
        """Policy, detectors and what happens when they speak."""
        return self._hidden.guard

    @property
    def run_id(self) -> str:
        """Unique for this monitor object."""
        return self._hidden.run_id

    @property
    def run_info(self) -> Mapping[str, str]:
        """Facts about the run, for labels: run_name, strategy, replicas, precision, policy."""
        return dict(self._hidden.run_info)

    @property
    def host_seconds(self) -> float:
        """Seconds that gradwatch's host side has taken from the training thread so far."""
        return self._hidden.host_seconds

    @property
    def alert_sinks(self) -> list[Callable[[Any], None]]:
        """Callables that get each Alert; append to it at any time."""
        return self._hidden.alert_sinks

    def clip(
        self, grads: Sequence[Gradient | None], variables: Sequence[Any] | None = None
    ) -> tuple[list[Gradient | None], Decision]:
        """Watch and clip a list of gradients: one step.

        In place of `grads, norm = tf.clip_by_global_norm(grads, c)` inside any train step.

        Args:
          grads: tensors, IndexedSlices or None, in the order of the variables.
          variables: their variables, for the names in reports; optional.

        Returns:
          (the gradients to apply, in the same order and of the same kinds; a `Decision` of tensors)

        Raises:
          NothingToWatch: all gradients are None.
          LayoutError: the variables are others than at the first step.
          ConfigError: grads is not a list of gradients, or variables has another length.
        """
        _check_clip(grads, variables)
        self._hidden.explicit_calls += 1
        return self._hidden.clip(list(grads), variables)

    def snapshot(self) -> Snapshot:
        """Plain numbers as of now, read off the device in one go; safe from any thread."""
        return self._hidden.snapshot()

    def history(self) -> dict[str, np.ndarray]:
        """The last 1,024 steps as numpy arrays, oldest first.

        Keys: step, norm, applied_norm, clip_norm, threshold, score, verdict (0 pass, 1 clip, 2 zero, 3 skip).
        """
        return self._hidden.history()

    def report(self, **numbers: float) -> None:
        """Tell the exporters a number that the training knows: loss=..., learning_rate=... (host values)."""
        self._hidden.extra.update({key: float(x) for key, x in numbers.items()})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state beside a model (a `.keras` file does not carry it), as one .npz file, all or nothing.

        Raises:
          OSError: the file cannot be written.
        """
        target = Path(path)
        unfinished = target.with_name(target.name + ".part")
        with unfinished.open("wb") as file:
            np.savez(file, **{key: x.numpy() for key, x in self._hidden.serialize().items()})
        unfinished.replace(target)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Go on from a state that `save` wrote: the same gradients then give bit-identical decisions.

        Raises:
          LayoutError: the file is of another model, policy or detectors, or no monitor's state at all.
          OSError: the file cannot be read.
        """
        try:
            with np.load(path, allow_pickle=False) as held:
                restored = {key: tf.convert_to_tensor(held[key]) for key in ("layout", "state")}
        except (ValueError, KeyError, zipfile.BadZipFile) as error:
            raise LayoutError(
                f"{os.fspath(path)} holds no monitor's state; give a file that Monitor.save wrote"
            ) from error
        self._hidden.restore(restored)

    def _serialize_to_tensors(self) -> dict[str, tf.Tensor]:
        return self._hidden.serialize()

    def _restore_from_tensors(self, restored: Mapping[str, tf.Tensor]) -> None:
        self._hidden.restore(restored)


def _sinks(on_alert: Any) -> list[Callable[[Any], None]]:
    found = [] if on_alert is None else list(on_alert) if isinstance(on_alert, (list, tuple)) else [on_alert]
    for sink in found:
        if not callable(sink):
            raise ConfigError(f"on_alert must be callable with an Alert, or a list of such, got {sink!r}")
    return found


def _check_clip(grads: Any, variables: Any) -> None:
    if not isinstance(grads, (list, tuple)):
        raise ConfigError(
            f"grads must be a list with a gradient for each variable, got {type(grads).__name__}; "
            "give monitor.clip what tape.gradient returned for a list of variables"
        )
    if variables is not None and len(list(variables)) != len(grads):
        raise ConfigError(f"variables must be one for each gradient, got {len(list(variables))} for {len(grads)}")
    for i, gradient in enumerate(grads):
        if isinstance(gradient, (list, tuple)):
            raise ConfigError(
                f"grads must be gradients, got a {type(gradient).__name__} at number {i}; give the gradients alone, "
                "and zip what monitor.clip returns with the variables afterwards"
            )
        dtype = getattr(gradient, "dtype", None)
        if dtype is not None and not (tf.as_dtype(dtype).is_floating or tf.as_dtype(dtype).is_complex):
            raise ConfigError(f"gradients must be floating or complex, got {tf.as_dtype(dtype).name} at number {i}")


def _path(variable: Any, index: int) -> str:
    found = getattr(variable, "path", None) or getattr(variable, "name", None) or f"gradient_{index}"
    # a tf.Variable under a strategy is called "w/replica_1:0" in the second replica
    return re.sub(r"/replica_\d+(?=:|$)", "", str(found))


class _Hidden:
    """The monitor's works, out of tf.Module's attribute tracking (it wraps every list and tuple it sees)."""

    def __init__(self, monitor: Monitor, guard: Guard, sinks: list[Callable[[Any], None]], jit: bool) -> None:
        self.guard = guard
        self.alert_sinks = sinks
        self.run_id = uuid.uuid4().hex[:12]
        self.run_info = {
            "run_name": monitor.name,
            "strategy": "none",
            "replicas": "1",
            "precision": "float32",
            "policy": guard.policy.name,
        }
        self.host_seconds = 0.0
        self.explicit_calls = 0  # of Monitor.clip, traced or run
        self.extra: dict[str, float] = {}
        self.built: _Built | None = None
        self._pending: tuple[str, np.ndarray] | None = None
        self.loss_scale: Any = None  # a number or a variable, of the last step
        self._lock = threading.Lock()  # while it is built
        self.turn = threading.RLock()  # of one step, eager or of a watched tf.function
        self._named = False  # whether the variables were given at the first step
        self._name = monitor.name
        self._jit = jit
        self._eager = tf.function(self._step, autograph=False, reduce_retracing=True)
        self._monitor = monitor  # keep: the reader holds it weakly

    # -- building ---------------------------------------------------------------------------------------

    def _ensure_built(self, grads: Sequence[Gradient], variables: Sequence[Any] | None, *, loss_scaled: bool) -> _Built:
        shapes = [tuple(_shape(g)) for g in grads]
        paths = _unique([_path(v, i) for i, v in enumerate(variables or [None] * len(grads))])
        if self.built is None:
            distribution.check_supported()
            # the replicas' threads meet while it is built: a lock around that would wait forever
            with contextlib.nullcontext() if distribution.replicas() > 1 else self._lock:
                if self.built is None:
                    self._build(paths, shapes, named=variables is not None, loss_scaled=loss_scaled)
        assert self.built is not None
        others = self._named and variables is not None and tuple(paths) != self.built.paths
        if others or not _same_shapes(self.built.shapes, shapes):
            difference = _difference(self.built.shapes, shapes) or f"{next(_changes(self.built.paths, paths))}"
            raise LayoutError(
                f"monitor {self._name!r} watches {len(self.built.shapes)} gradients "
                f"({', '.join(self.built.paths[:3])}, ...) and was given {len(shapes)} others, first difference: "
                f"{difference}; use one Monitor for each set of variables, as "
                "watch(optimizer={'generator': g_optimizer, 'critic': c_optimizer}) does for several optimizers"
            )
        return self.built

    def _build(self, paths: list[str], shapes: list[tuple[int | None, ...]], *, named: bool, loss_scaled: bool) -> None:
        guard = self.guard.under_loss_scaling() if loss_scaled else self.guard
        built = _Built(guard, paths, shapes, jit_compile=self._jit)
        restored = self._pending is not None
        if self._pending is not None:
            fingerprint, vector = self._pending
            _check_layout(self._name, fingerprint, built.fingerprint)
            built.put(vector)
            self._pending = None
        self.run_info.update(strategy=distribution.strategy_name(), replicas=str(distribution.replicas()))
        self.built, self._named = built, named
        reader.register(self._monitor, restored=restored)

    # -- one step ---------------------------------------------------------------------------------------

    def clip(
        self,
        grads: list[Gradient | None],
        variables: Sequence[Any] | None,
        loss_scale: Any = None,
        *,
        skips_itself: bool = False,
        sums: str = distribution.PART,
    ) -> tuple[list[Gradient | None], Decision]:
        """`Monitor.clip`, of gradients that were multiplied by `loss_scale`.

        `skips_itself`: the optimizer drops non-finite steps by itself and must see them (LossScaleOptimizer).
        `sums`: of the replicas, see `distribution`.
        """
        began = time.perf_counter()
        present = [i for i, g in enumerate(grads) if g is not None]
        if not present:
            raise NothingToWatch(
                f"monitor {self._name!r} was given {len(grads)} gradients and all are None; "
                "the loss does not depend on the variables: is the forward pass inside the tape?"
            )
        held = [_convert(grads[i]) for i in present]
        named = None if variables is None else [list(variables)[i] for i in present]
        self._ensure_built(held, named, loss_scaled=skips_itself)
        self.loss_scale = loss_scale
        multiple = None if loss_scale is None else tf.cast(tf.convert_to_tensor(loss_scale), tf.float32)
        if tf.executing_eagerly():
            scaled, decision = self._clip_eagerly(held, multiple, skips_itself, sums)
            self.host_seconds += time.perf_counter() - began
        else:
            scaled, decision = self._step(held, multiple, skips_itself, sums)
        out: list[Gradient | None] = list(grads)
        for i, g in zip(present, scaled):
            out[i] = g
        return out, decision

    def _clip_eagerly(
        self, grads: list[Gradient], loss_scale: tf.Tensor | None, skips_itself: bool, sums: str
    ) -> tuple[list[Gradient], Decision]:
        if distribution.replicas() > 1:
            # the replicas meet in the sum over them, which a function of each cannot hold
            return self._step(grads, loss_scale, skips_itself, sums)
        # read, judge, write belong together: two threads on one monitor take turns
        with self.turn:
            return self._eager(grads, loss_scale, skips_itself, sums)

    def _step(
        self, grads: list[Gradient], loss_scale: tf.Tensor | None, skips_itself: bool, sums: str
    ) -> tuple[list[Gradient], Decision]:
        """norms -> guard -> scaled gradients, with one read and one write of the state."""
        built, policy = self.built, self.guard.policy
        assert built is not None
        whole: Callable[..., list[Gradient]] = distribution.summed
        if sums != distribution.PART:
            grads, whole = (grads if sums == distribution.DONE else whole(grads)), list
        clipped = grads
        norms = _gradients.norms(whole(grads))
        applied = norms
        if policy.scope == policies.VALUE:
            clipped = [_gradients.clip_by_value(g, policy.limit) for g in grads]
            applied = _gradients.norms(whole(clipped))
        if loss_scale is not None:
            norms, applied = norms / loss_scale, applied / loss_scale
        new_state, scale, numbers = built.guard.step(built.vector(), norms, applied)
        built.state.assign(new_state)
        decision = Decision(scale, *tf.unstack(numbers))
        if not self.guard.scales:
            return grads, decision
        if skips_itself:
            # every gradient of every replica, so that all come to the same verdict
            scale = tf.where(decision.finite > 0.0, scale, math.nan)
        return _gradients.scaled(clipped, scale), decision

    # -- reading ----------------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        built = self.built
        if built is None:
            tree, paths = self.guard.init(0), ()
        else:
            tree, paths = built.tree(), built.paths
        return decode.snapshot(
            self.guard, tree, name=self._name, paths=paths, extra=dict(self.extra), loss_scale=_number(self.loss_scale)
        )

    def history(self) -> dict[str, np.ndarray]:
        built = self.built
        return decode.history(self.guard.init(0) if built is None else built.tree())

    # -- checkpoints ------------------------------------------------------------------------------------

    def serialize(self) -> dict[str, tf.Tensor]:
        if self.built is None:
            return {"layout": tf.constant(""), "state": tf.zeros([0])}
        return {
            "layout": tf.constant(self.built.fingerprint),
            "state": tf.convert_to_tensor(self.built.state),
        }

    def restore(self, restored: Mapping[str, tf.Tensor]) -> None:
        fingerprint = restored["layout"].numpy().decode()
        vector = restored["state"].numpy()
        if self.built is None:
            self._pending = (fingerprint, vector) if fingerprint else None
            return
        if not fingerprint:  # saved before its first step
            vector = self.built.initial
        else:
            _check_layout(self._name, fingerprint, self.built.fingerprint)
        self.built.put(vector)
        reader.rebase(self._monitor)  # what happened before the checkpoint is no news


def _number(loss_scale: Any) -> float | None:
    """The loss scale as it is now; None for a tensor inside a graph."""
    if loss_scale is None:
        return None
    try:
        return float(tf.convert_to_tensor(loss_scale))
    except TypeError:
        return None


def _check_layout(name: str, saved: str, ours: str) -> None:
    if saved != ours:
        raise LayoutError(
            f"the checkpoint of monitor {name!r} was written with {saved.split('|')[0]} over other variables or "
            f"options (layout {saved.split('|')[-1]}), this monitor runs {ours.split('|')[0]} (layout "
            f"{ours.split('|')[-1]}); restore with the same model, policy and detectors, or leave the monitor "
            "out of the checkpoint"
        )


def _convert(gradient: Any) -> Gradient:
    if isinstance(gradient, tf.IndexedSlices):
        return gradient
    return tf.convert_to_tensor(gradient)


def _shape(gradient: Gradient) -> tuple[int | None, ...]:
    shape = gradient.shape
    if shape.rank is None:
        return (None,)
    dims = tuple(shape.as_list())
    # the rows of IndexedSlices say nothing about the variable when its dense shape is unknown
    return (None, *dims[1:]) if isinstance(gradient, tf.IndexedSlices) and dims else dims


def _same_shapes(a: Sequence[tuple[int | None, ...]], b: Sequence[tuple[int | None, ...]]) -> bool:
    return len(a) == len(b) and all(_compatible(x, y) for x, y in zip(a, b))


def _compatible(a: tuple[int | None, ...], b: tuple[int | None, ...]) -> bool:
    if a == (None,) or b == (None,):
        return True
    return len(a) == len(b) and all(x is None or y is None or x == y for x, y in zip(a, b))


def _difference(a: Sequence[tuple[int | None, ...]], b: Sequence[tuple[int | None, ...]]) -> str:
    for i, (x, y) in enumerate(zip(a, b)):
        if not _compatible(x, y):
            return f"number {i} had shape {x} and has {y}"
    return "" if len(a) == len(b) else f"{len(a)} gradients before, {len(b)} now"


def _changes(before: Sequence[str], now: Sequence[str]) -> Iterator[str]:
    for i, (x, y) in enumerate(zip(before, now)):
        if x != y:
            yield f"number {i} was of {x} and is of {y}"


def _unique(paths: list[str]) -> list[str]:
    seen: dict[str, int] = {}
    out = []
    for path in paths:
        seen[path] = seen.get(path, 0) + 1
        out.append(path if seen[path] == 1 else f"{path}#{seen[path]}")
    return out
