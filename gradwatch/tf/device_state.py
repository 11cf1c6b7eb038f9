"""The state of a guard on the device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from gradwatch.core import counters, decode
from gradwatch.core.guard import Guard
from gradwatch.core.rewind import rewound
from gradwatch.core.xp import NUMPY
from gradwatch.tf import distribution, fingerprints, fused
from gradwatch.tf.fused import FusedGuard
from gradwatch.tf.host_copies import value_of
from gradwatch.tf.kept import Keeper
from gradwatch.tf.last_loss import LastLoss
from gradwatch.tf.trail import Trail
from gradwatch.tf.variables import VariableSet
from gradwatch.tf.weights import SCALARS, Weights


class DeviceState:
    """The state of a guard over one set of variables: one variable on the device, and the program that steps it."""

    def __init__(
        self,
        guard: Guard,
        variables: VariableSet,
        weights: Weights,
        loss: LastLoss,
        *,
        jit_compile: bool,
        recorded: bool,
    ) -> None:
        self.variables, self.weights, self.loss = variables, weights, loss
        weights.build(len(variables))
        loss.build()
        self._guard, self._jit_compile = guard, jit_compile
        self.layout = self.program().layout
        self.fingerprint = fingerprints.of(guard, f"{self.layout.fingerprint()}-{len(SCALARS)}", variables)
        initial = self.layout.pack(NUMPY, guard.init(len(variables)))
        self.initial = np.concatenate([initial, weights.initial, np.array([fused.NO_LOSS], np.float32)])
        self.state = distribution.in_scope(lambda: distribution.state_variable(initial, "gradwatch_state"))
        self.trail = Trail(self.layout, len(variables), self.vector) if recorded else None
        weights.hurries = None if self.trail is None else self.trail.hurries
        self.replaceable = False  # whether the next step may bring other variables
        self.started: list[float] = [0.0, 0.0]  # the step that it goes on from, as the two limbs of a counter

    def exported(self, keeper: Keeper | None) -> dict[str, tf.Variable]:
        """The variables that a step captures, by the names under which a SavedModel keeps them."""
        variables = {
            "gradwatch_state": self.state,
            "gradwatch_weights": self.weights.state,
            "gradwatch_loss": self.loss.variable,
        }
        kept = [v for owner in (keeper, self.trail) if owner is not None for v in owner.variables]
        return {**variables, **{f"gradwatch_kept_{i}": v for i, v in enumerate(kept)}}

    def program(self) -> FusedGuard:
        """What steps the state, for the function that is being traced."""
        return fused.program(self._guard, len(self.variables), jit_compile=self._jit_compile)

    def vector(self) -> tf.Tensor:
        """The state as this replica has it."""
        return tf.convert_to_tensor(self.state)

    def pack(self) -> tf.Tensor:
        """All that a checkpoint needs, as one vector."""
        return tf.concat([self.vector(), tf.convert_to_tensor(self.weights.state), self.loss.value()[None]], 0)

    def packed(self) -> np.ndarray:
        """`pack`, on the host; waits for the device."""
        return np.concatenate([value_of(self.state), value_of(self.weights.state), [self.loss.read().numpy()]])

    def put(self, packed: np.ndarray) -> None:
        """Overwrite the state, on every replica."""
        with tf.init_scope():
            self.state.assign(packed[: self.layout.size])
        self.weights.put(packed[self.layout.size : -1])
        self.loss.put(packed[-1])
        self.started = [*counters.limbs(self.layout.unpack(NUMPY, packed[: self.layout.size])["count"], "steps")]

    def rewind(self, packed: np.ndarray) -> None:
        """Go back to a state out of `pack`, but for what was counted since; the run goes on from its first step."""
        size, started = self.layout.size, self.started
        then, now = (self.layout.unpack(NUMPY, x) for x in (packed[:size], self.vector().numpy()))
        weights = self.weights.rewound(packed[size:-1])
        self.put(np.concatenate([self.layout.pack(NUMPY, rewound(now, then)), weights, packed[-1:]]))
        self.started = started

    def tree(self) -> dict[str, Any]:
        """The state by names, as numpy arrays of one instant."""
        return self.layout.unpack(NUMPY, self.vector().numpy())

    def history(self) -> dict[str, np.ndarray]:
        """See `Monitor.history`."""
        return self.history_of(self.tree())

    def history_of(self, state: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The history of a state out of `tree`, with the loss that belongs to its last step once that is known."""
        return decode.history(state, float(self.loss.value()))

    def recorded_history(self) -> dict[str, np.ndarray]:
        """`history` with the loss scale of each step."""
        found = self.history()
        return found if self.trail is None else {**found, "loss_scale": self.trail.loss_scales(found["step"])}

    def around(self, *, over: bool = False) -> Mapping[int, Mapping[str, Any]] | None:
        """See `Trail.around`."""
        return None if self.trail is None else self.trail.around(self.variables.paths, over=over)

    def steps_of(self, packed: np.ndarray) -> int:
        """How many steps a state out of `pack` has seen."""
        return counters.exact(self.layout.unpack(NUMPY, packed[: self.layout.size])["count"])["steps"]
