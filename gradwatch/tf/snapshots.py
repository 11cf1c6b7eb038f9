"""Snapshots of a training that is healthy: taken, found healthy, gone back to; in the host's memory or on a disk."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

from gradwatch.reading.health import health
from gradwatch.recovery import folder
from gradwatch.recovery.generations import Generation, Generations
from gradwatch.recovery.rungs import rollback
from gradwatch.tf import distribution
from gradwatch.tf.host_copies import value_of
from gradwatch.tf.training_state import TrainingState, Values, variables_of
from gradwatch.tf.updates import tf_variable

#: What a full disk, a full memory or a device that is gone raise.
_FAILURES = (OSError, MemoryError, tf.errors.OpError)


class Snapshots:
    """The snapshots of one training.

    Args:
      rung: how often, and where.
      state: what is copied.
      run_id: for the names of files.
      objects: what a checkpoint holds beside single variables, by name.
    """

    def __init__(
        self, rung: rollback, state: TrainingState, run_id: str, objects: Callable[[], Mapping[str, Any]]
    ) -> None:
        self._rung, self._state, self._run_id, self._objects = rung, state, run_id, objects
        self.generations = Generations(self._rung)
        self._first = Values({}, ())
        self.generations.add(Generation(0, self._first, healthy=True))

    @property
    def directory(self) -> Path | None:
        return None if self._rung.directory is None else Path(os.fsdecode(self._rung.directory)).absolute()

    def begin(self, variables: list[tf.Variable]) -> None:
        """These variables come in, with values that no update has touched."""
        try:
            for v in variables:
                self._first.variables[id(v)] = self._state.first_value(v)
            for generation in self.generations.kept:
                if generation.token is self._first:
                    generation.facts["weight_norm"], _ = self._state.measure(self._first)
            if any(packed is None for packed in self._first.monitors) or not self._first.monitors:
                first = self._first._replace(monitors=self._state.read_monitors())
                for generation in self.generations.kept:
                    if generation.token is self._first:
                        generation.token = first
                self._first = first
        except _FAILURES as error:
            self._failed("the weights before the first step could not be kept", error)
            self.generations.kept = [g for g in self.generations.kept if g.token is not self._first]

    # -- while the run is healthy -----------------------------------------------------------------------

    def look(self, step: int, calm_steps: int, facts: Mapping[str, Any]) -> bool:
        """Tell which of those there are was healthy, and take one if it is time; False: a variable holds NaN or Inf."""
        self.generations.harm(step, calm_steps)
        for generation in self.generations.ripe(step, calm_steps):
            self._rewrite(generation)
        return not self.generations.is_due(step, calm_steps) or self._take(step, dict(facts))

    def _take(self, step: int, facts: dict[str, Any]) -> bool:
        old = self.generations.to_drop()
        if self.directory is None:  # memory is what is short there
            for generation in old:
                self._drop(generation)
        try:
            if self.directory is None:
                token: Any = self._state.read()
                # of values on the host it is cheaper to ask than of the device, variable by variable
                facts["weight_norm"], is_finite = self._state.measure(token)
            else:
                token, is_finite = None, not self._state.nonfinite()
                facts["weight_norm"] = self._state.weight_norm()
            if not is_finite:
                self.generations.tried(step)
                return False
            token = self.write(step, folder.CANDIDATE, facts) if token is None else token
        except _FAILURES as error:
            self.generations.tried(step)
            self._failed(f"no snapshot could be taken at step {step}; the run goes on with the one before", error)
            return True
        self.generations.add(Generation(step, token, facts=facts))
        for generation in old:
            if generation in self.generations.kept:
                self._drop(generation)
        return True

    def _drop(self, generation: Generation) -> None:
        self.generations.remove(generation)
        if isinstance(generation.token, Path):
            folder.remove(generation.token)

    def _rewrite(self, generation: Generation) -> None:
        """Say on the disk that it was healthy."""
        if isinstance(generation.token, Path):
            try:
                self._write_health(generation.token, folder.HEALTHY, generation.step, generation.facts)
            except _FAILURES as error:
                self._failed(f"the snapshot of step {generation.step} could not be marked as healthy", error)

    # -- on a disk --------------------------------------------------------------------------------------

    def write(self, step: int, verdict: str, facts: Mapping[str, Any]) -> Path:
        """Write a checkpoint and its health file into the directory; its prefix.

        Raises:
          OSError, tf.errors.OpError: the disk did not take it; nothing is left of it.
        """
        place = self.directory
        assert place is not None
        worker = distribution.worker_of(self._state.strategy)
        place = place / f"worker-{worker}" if worker else place
        place.mkdir(parents=True, exist_ok=True)
        prefix = place / f"gradwatch-{self._run_id}-{step:09d}{'-last' if verdict == folder.LAST else ''}"
        try:
            self._checkpoint().write(str(prefix))
            self._write_health(prefix, verdict, step, facts)
        except BaseException:
            folder.remove(prefix)
            raise
        return prefix

    def _write_health(self, prefix: Path, verdict: str, step: int, facts: Mapping[str, Any]) -> None:
        shapes = folder.shapes_of(self._state.variables())
        folder.write_health(prefix, verdict, step, shapes, run_id=self._run_id, **facts)

    def _checkpoint(self) -> tf.train.Checkpoint:
        named = self._objects()
        inside = {id(tf_variable(v)) for thing in named.values() for v in variables_of(thing)}
        others = [v for v in self._state.variables() if id(v) not in inside]
        return tf.train.Checkpoint(**named, **({"others": others} if others else {}))

    # -- going back -------------------------------------------------------------------------------------

    def restore(self, generation: Generation, keep: list[Any]) -> None:
        """Go back to a snapshot; those that are newer are worthless then.

        Args:
          keep: variables that stay as they are.
        """
        if isinstance(generation.token, Path):
            kept = [(v, value_of(v)) for v in keep]
            now = self._state.read_monitors()
            self._checkpoint().read(str(generation.token)).assert_existing_objects_matched()
            then = self._state.read_monitors()
            for engine, packed in zip(self._state.engines, now):
                if packed is not None:
                    engine.on_device.put(packed)
            self._state.rewind(then)
            for v, value in kept:
                v.assign(value)
        else:
            self._state.write(generation.token)
        for other in self.generations.newer_than(generation):
            self._drop(other)

    def _failed(self, what: str, error: BaseException) -> None:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        cure = "" if self.directory else "; recovery.rollback(directory=...) keeps snapshots on a disk instead"
        health.failed("recovery", f"{what}: {text}{cure}", key=(self._run_id, what[:20]))
