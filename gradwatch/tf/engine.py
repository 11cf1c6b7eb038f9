"""The engine of a monitor: its state on the device, and one step of the guard over the gradients, in the graph."""

from __future__ import annotations

import contextlib
import functools
import threading
import time
import uuid
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from gradwatch.core import decode, policies
from gradwatch.core.guard import NOT_KNOWN, Decision, Guard
from gradwatch.errors import NothingToWatch
from gradwatch.reading import reader
from gradwatch.record.recorder import Recorder
from gradwatch.tf import compat, distribution, facts, fingerprints, inputs, rates, replicas, turns
from gradwatch.tf import gradients as _gradients
from gradwatch.tf.device_state import DeviceState
from gradwatch.tf.eager import EagerStep
from gradwatch.tf.gradients import Gradient
from gradwatch.tf.hidden import hidden_from_debuggers
from gradwatch.tf.kept import Keeper
from gradwatch.tf.last_loss import LastLoss
from gradwatch.tf.lowered_rate import Lowering, as_it_is_set
from gradwatch.tf.updates import tf_variable
from gradwatch.tf.variables import VariableSet
from gradwatch.tf.weights import Weights, looked_first


class Engine:
    """What `Monitor` is the face of. Not a tf.Module, which wraps every list and tuple it sees.

    Args:
      owner: the monitor, for the reader.
      guard: judges each step.
      jit_compile: compile the guard's update with XLA.
      alerts: somebody waits for alerts, so that the reader is to start with the first step.
      update_limit: see `Monitor`.
      recorder: takes the run from its first step on; None for no record.
      keeper: keeps the batch of the step that alarmed; None to keep none.
      healer: acts on the training between two calls of the step; None for no recovery.

    Attributes:
      on_device: the state, once the variables are known.
      inputs: what the step under way was given.
      explicit_calls: of `Monitor.clip`, traced or run.
      loss_scale: of the last step, a number or a variable.
      lowering: what is done to the learning rate; None where it cannot be lowered.
      host_seconds: taken from the training's thread, in eager steps and in traces.
    """

    def __init__(
        self,
        owner: Any,
        guard: Guard,
        *,
        jit_compile: bool,
        alerts: bool = False,
        update_limit: float | None = None,
        recorder: Recorder | None = None,
        keeper: Keeper | None = None,
        healer: Any = None,
    ) -> None:
        self.guard = guard
        self.weights, self.loss, self.inputs = Weights(update_limit), LastLoss(), inputs.Inputs()
        self.run_id = uuid.uuid4().hex[:12]
        self.run_info = {
            "run_name": owner.name,
            "strategy": "none",
            "replicas": "1",
            "precision": "float32",
            "policy": guard.policy.name,
        }
        self.host_seconds = 0.0
        self.explicit_calls = 0
        self.on_device: DeviceState | None = None
        self.loss_scale: Any = None
        self.recorder, self.keeper, self.healer = recorder, keeper, healer
        self.lowering: Lowering | None = None
        self._optimizer: weakref.ref[Any] | None = None
        self._name = owner.name
        self._owner = owner
        self.jit_compile, self._alerts = jit_compile, alerts
        self._pending: tuple[str, np.ndarray] | None = None  # (fingerprint, state) restored before the first step
        self._building = threading.Lock()
        self._eager: EagerStep | None = None  # of the state that was built last

    # -- building ---------------------------------------------------------------------------------------

    def _ensure_built(
        self,
        grads: Sequence[Gradient],
        variables: Sequence[Any] | None,
        *,
        loss_scaled: bool,
        same_optimizer: bool,
    ) -> None:
        if self.on_device is not None and self.on_device.replaceable:
            self.on_device.replaceable = False
            self.on_device.variables.forget_identities()
            if not self.on_device.variables.fits(grads, variables):
                self.on_device = None
        if self.on_device is None:
            distribution.check_supported()
            # the replicas' threads meet while it is built: a lock around that would wait forever
            with contextlib.nullcontext() if distribution.replicas() > 1 else self._building:
                if self.on_device is None:
                    self._build(VariableSet(grads, variables), loss_scaled=loss_scaled)
        assert self.on_device is not None
        self.on_device.variables.check(self._name, grads, variables, same_optimizer=same_optimizer)

    def _build(self, variables: VariableSet, *, loss_scaled: bool) -> None:
        guard = self.guard.under_loss_scaling() if loss_scaled else self.guard
        recorded = self.recorder is not None
        built = DeviceState(guard, variables, self.weights, self.loss, jit_compile=self.jit_compile, recorded=recorded)
        restored, resumed_at = self._pending is not None, 0
        if self._pending is not None:
            fingerprint, vector = self._pending
            fingerprints.check(self._name, fingerprint, built.fingerprint)
            built.put(vector)
            resumed_at = built.steps_of(vector)
            self._pending = None
        self.run_info.update(strategy=distribution.strategy_name(), replicas=str(distribution.replicas()))
        self.on_device = built
        self._eager = EagerStep(self._step, self.weights, self.loss)
        reader.register(self._owner, restored=restored, lazily=not self._alerts)
        if self.recorder is not None:
            self.recorder.resume(resumed_at)
            known = functools.partial(
                facts.of, guard, variables, self._optimizer, dict(self.run_info), self.inputs.kinds
            )
            collect = None if self.keeper is None else self.keeper.collect
            self.recorder.begin(self._owner, known, built.recorded_history, collect, built.around)

    def lowered_rate(self) -> Lowering | None:
        """What is to be done to the learning rate, where it may be lowered at all; made at the first call."""
        if self.lowering is None and self.healer is not None and self.healer.lowers:
            self.lowering = Lowering.new()
        return self.lowering

    # -- one step ---------------------------------------------------------------------------------------

    @hidden_from_debuggers
    def clip(
        self,
        grads: list[Gradient | None],
        variables: Sequence[Any] | None,
        loss_scale: Any = None,
        *,
        optimizer: Any = None,
        follow: bool = False,
        skips_itself: bool = False,
        sums: str = distribution.PART,
    ) -> tuple[list[Gradient | None], Decision]:
        """`Monitor.clip`, of gradients that were multiplied by `loss_scale`.

        `follow`: the update comes next, and `settle` after it.

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
        variable_of = [None] * len(grads) if variables is None else variables
        tensors = [_nothing(v) if g is None else _convert(g) for g, v in zip(grads, variable_of)]
        same_optimizer = optimizer is not None and self._optimizer is not None and self._optimizer() is optimizer
        if optimizer is not None:
            self._optimizer = weakref.ref(optimizer)
        self._ensure_built(tensors, variables, loss_scaled=skips_itself, same_optimizer=same_optimizer)
        if self.healer is not None:
            self.healer.meet(optimizer, variables, loss_scaled=skips_itself)
        self.loss_scale = loss_scale
        if tf.executing_eagerly() and distribution.replicas() == 1:
            plan, speed = self.weights.plan(variables, optimizer, present=present, follow=follow)
            told = [speed, *self._told(optimizer)]
            assert self._eager is not None
            scaled, decision, update = self._eager(
                tensors, variables, plan, told, _float32(loss_scale), skips_itself, sums
            )
        else:  # the replicas meet in the sum over them, which a function of each cannot hold
            loss = self.loss.take()
            plan, speed = self.weights.plan(variables, optimizer, present=present, follow=follow)
            held = [tf_variable(v) for v in variables or ()]
            weights, ratio, update = self.weights.look(plan, held, scales=self.guard.scales)
            signals = tf.stack([weights, speed, loss, ratio, *self._told(optimizer), NOT_KNOWN, NOT_KNOWN])
            scaled, decision = self._step(tensors, _float32(loss_scale), signals, skips_itself, sums)
        self.weights.follow(present, update)
        self.host_seconds += time.perf_counter() - began
        out: list[Gradient | None] = list(grads)
        for i in present:
            out[i] = scaled[i]
        return out, decision

    def settle(self, variables: Sequence[Any] | None) -> None:
        """The update that follows `clip` has been made."""
        began = time.perf_counter()
        self.weights.settle(variables)
        self.host_seconds += time.perf_counter() - began

    def _told(self, optimizer: Any) -> list[Any]:
        """Learning rate, mean squares of input and target of this step; `NOT_KNOWN` where there is none."""
        with as_it_is_set():
            rate = None if optimizer is None else rates.learning_rate(optimizer)
        return [NOT_KNOWN if rate is None else rate, *self.inputs.known()]

    def _step(
        self,
        grads: list[Gradient],
        loss_scale: tf.Tensor | None,
        signals: tf.Tensor,
        skips_itself: bool,
        sums: str,
    ) -> tuple[list[Gradient], Decision]:
        """norms -> guard -> scaled gradients, with one read and one write of the state."""
        built, policy = self.on_device, self.guard.policy
        assert built is not None
        whole = grads
        if distribution.replicas() > 1:
            whole, signals = replicas.met(grads, signals, summed_already=sums == distribution.DONE)
        if sums == distribution.HAND_ON:
            grads = whole
        norms = applied = _gradients.norms(whole)
        if policy.scope == policies.VALUE:
            # the policy's limit is one of the unscaled gradient
            limit = policy.limit if loss_scale is None else policy.limit * loss_scale
            applied = _gradients.norms([_gradients.clip_by_value(g, limit) for g in whole])
            grads = [_gradients.clamped_part(part, g, limit) for part, g in zip(grads, whole)]
        if loss_scale is not None:
            norms, applied = norms / loss_scale, applied / loss_scale
        scale, numbers = self._judge(built, norms, applied, signals, loss_scale)
        decision = Decision(scale, *tf.unstack(numbers))
        if not self.guard.scales:
            return grads, decision
        scale = looked_first(scale, signals)
        if skips_itself:
            # NaN in every gradient of every replica, so that all come to the same verdict
            scale = scale / decision.finite
        return _gradients.scaled(grads, scale), decision

    def _judge(
        self, built: DeviceState, norms: tf.Tensor, applied: tf.Tensor, signals: tf.Tensor, loss_scale: Any
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """(scale, the other numbers of the Decision) of these norms; the state is that after the step."""
        program, trail = built.program(), built.trail
        if trail is None and (made := program.update(built.state, norms, applied, signals)) is not None:
            return made
        with turns.one_at_a_time(self.run_id) as wrote:
            made = None if trail is None else program.update(built.state, norms, applied, signals)
            if made is None:
                state, scale, numbers = program.step(built.vector(), norms, applied, signals)
                wrote(built.state.assign(state))
            else:
                state, (scale, numbers) = built.vector(), made
            if trail is not None:
                for written in trail.push(state, built.weights.measured(), loss_scale):
                    wrote(written)
        return scale, numbers

    def keep(self, args: Sequence[Any], keywords: Mapping[str, Any]) -> None:
        """A call of the step with these arguments has ended: keep them where it alarmed and somebody wants them."""
        if self.keeper is not None:
            self.keeper.keep(self.on_device, args, keywords)

    # -- reading ----------------------------------------------------------------------------------------

    def tree(self) -> dict[str, Any]:
        """The state by names, as numpy arrays of one instant; that of no variables before the first step."""
        return self.guard.init(0) if self.on_device is None else self.on_device.tree()

    def history_of(self, state: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """See `Monitor.history`, of a state out of `tree`."""
        return decode.history(state) if self.on_device is None else self.on_device.history_of(state)

    @property
    def paths(self) -> tuple[str, ...]:
        """Of the variables, () before the first step."""
        return () if self.on_device is None else self.on_device.variables.paths

    def loss_scale_now(self) -> float | None:
        """The loss scale as a number; None for a tensor inside a graph, and where there is none."""
        if self.loss_scale is None:
            return None
        try:
            return float(tf.convert_to_tensor(self.loss_scale))
        except TypeError:
            return None

    def learning_rate_now(self) -> float | None:
        """Of the optimizer that made the newest update; None where it is not known, or gone."""
        optimizer = None if self._optimizer is None else self._optimizer()
        return None if optimizer is None else rates.learning_rate_now(optimizer)

    def _put(self, built: DeviceState, packed: np.ndarray) -> None:
        built.put(packed)
        if built.trail is not None:
            built.trail.begin_anew(built.steps_of(packed))
        if self.keeper is not None:
            self.keeper.rebase(built.started)

    def facts(self) -> dict[str, Any]:
        """See `gradwatch.tf.facts.of`; empty before the first step."""
        if self.on_device is None:
            return {}
        variables = self.on_device.variables
        return facts.of(self.guard, variables, self._optimizer, dict(self.run_info), self.inputs.kinds)

    def own_variables(self) -> list[tf.Variable]:
        """Those that belong to the monitor and not to the training."""
        own = [] if self.lowering is None else list(self.lowering)
        return own if self.on_device is None else [*own, *self.on_device.exported(self.keeper).values()]

    def rewind(self, packed: np.ndarray) -> None:
        """The training went back to the time when the state was `packed`: judge as then, and keep what was counted."""
        if self.on_device is not None:
            self.on_device.rewind(packed)

    def reset(self) -> None:
        """As before the first step. Functions that were traced keep working as long as the variables stay the same."""
        # the loss scale stays: functions that were traced do not say again where it is
        self._pending = None
        if self.on_device is not None:
            self._put(self.on_device, self.on_device.initial)
            self.on_device.replaceable = True
            if self.recorder is not None:
                self.recorder.resume(0)
            reader.restart(self._owner)

    # -- checkpoints ------------------------------------------------------------------------------------

    def serialize(self) -> dict[str, tf.Tensor]:
        """What a checkpoint keeps: the fingerprint, "" before the first step, and the state."""
        if self.on_device is None:
            return {"layout": tf.constant(""), "state": tf.zeros([0])}
        # a SavedModel is written from a graph that captures nothing
        state = (
            self.on_device.pack()
            if tf.executing_eagerly()
            else tf.constant(compat.outside_of_graphs(self.on_device.pack))
        )
        return {"layout": tf.constant(self.on_device.fingerprint), "state": state}

    def restore(self, restored: Mapping[str, tf.Tensor]) -> None:
        """Go on from what `serialize` gave; LayoutError where it is of something else."""
        if tf.is_symbolic_tensor(restored["state"]):
            # a SavedModel is written: its functions hold the state under the same variable, which is saved by itself
            return
        fingerprint = restored["layout"].numpy().decode()
        vector = restored["state"].numpy()
        built = self.on_device
        if built is None:
            self._pending = (fingerprint, vector) if fingerprint else None
            return
        if fingerprint:
            fingerprints.check(self._name, fingerprint, built.fingerprint)
        else:  # saved before its first step
            vector = built.initial
        if self.recorder is not None:
            self.recorder.resume(built.steps_of(vector))
        self._put(built, vector)
        built.variables.forget_identities()
        reader.rebase(self._owner)  # what happened before the checkpoint is no news


def _convert(gradient: Any) -> Gradient:
    if isinstance(gradient, tf.IndexedSlices):
        return gradient
    return tf.convert_to_tensor(gradient)


def _float32(loss_scale: Any) -> tf.Tensor | None:
    return None if loss_scale is None else tf.cast(tf.convert_to_tensor(loss_scale), tf.float32)


def _nothing(variable: Any) -> Gradient:
    """In place of a gradient that is None: its norm is zero, and it costs no pass over the variable."""
    shape = getattr(variable, "shape", None)
    shape = None if shape is None else tuple(shape)
    if shape == () or (shape is not None and distribution.replicas() > 1):
        return tf.zeros(shape)  # that can be summed over the replicas
    rows = [0] if shape is None else [0, *shape[1:]]
    return tf.IndexedSlices(tf.zeros(rows), tf.zeros([0], tf.int32), None if shape is None else tf.constant(shape))
