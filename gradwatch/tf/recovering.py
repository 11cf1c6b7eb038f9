"""A watched step that recovers: after each call from the host, the healer may act."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from gradwatch.tf import compat, updates
from gradwatch.tf.healing import Healer
from gradwatch.tf.training_state import variables_of


def healer_of(monitors: Sequence[Any]) -> Healer | None:
    """The one that acts for all of these monitors; None where none of them recovers."""
    healer = next((m._healer for m in monitors if m._healer is not None), None)
    if healer is not None:
        for monitor in monitors:
            monitor._healer = healer
            healer.follow(monitor)
    return healer


class RecoveringStep:
    """Calls a watched step, and then its healer. What else is asked of it, the step answers.

    Args:
      step: the watched step: a function, a method or a tf.function.
      healer: acts after each call.
      monitors: of the step, by name.
    """

    def __init__(self, step: Any, healer: Healer, monitors: Mapping[str, Any]) -> None:
        self._step, self._healer, self.monitors = step, healer, monitors
        if hasattr(step, "monitor"):
            self.monitor = step.monitor
        self.__name__: str = getattr(step, "__name__", "step")
        self.__doc__ = getattr(step, "__doc__", None)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not tf.executing_eagerly() or _in_replica():
            return self._step(*args, **kwargs)  # whoever calls from the host must act
        with self._healer.call():
            result = self._step(*args, **kwargs)
        self._healer.after_call()
        return result

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self
        return RecoveringStep(self._step.__get__(instance, owner), self._healer, self.monitors)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_step"], name)


def _in_replica() -> bool:
    context = tf.distribute.get_replica_context()
    return context is not None and context.num_replicas_in_sync > 1


@tf.autograph.experimental.do_not_convert
def tell(monitor: Any, step: Any, args: Sequence[Any]) -> None:
    """The step has ended, or its trace: which variables belong to its training.

    A trace knows all that it reads. In eager mode they are those of the models, optimizers and modules that the
    function names.
    """
    healer: Healer | None = monitor._healer
    if healer is None:
        return
    if tf.executing_eagerly():
        if healer.knows_step(step):
            return
        healer.include([v for thing in _named_in(step, args) for v in variables_of(thing)])
    else:
        healer.include(compat.variables_of_graph(tf.compat.v1.get_default_graph()))


def _named_in(step: Any, args: Sequence[Any]) -> list[Any]:
    """Models, optimizers, modules and variables that a function reaches: closure, globals, its instance."""
    try:
        named = inspect.getclosurevars(inspect.unwrap(getattr(step, "__func__", step)))
    except (TypeError, ValueError):
        return []
    values = [*named.nonlocals.values(), *named.globals.values()]
    # a method reaches them through its instance
    instance = args[0] if args and hasattr(args[0], "__dict__") and not isinstance(args[0], tf.Tensor) else None
    values += [] if instance is None else list(vars(instance).values())
    return [value for value in values if _is_trained(value)]


def _is_trained(value: Any) -> bool:
    if inspect.ismodule(value) or isinstance(value, type):
        return False
    return isinstance(value, (tf.Variable, tf.Module)) or updates.is_optimizer(value) or _is_keras(value)


def _is_keras(value: Any) -> bool:
    return any(cls.__name__ in ("Layer", "KerasVariable", "Variable") for cls in type(value).__mro__) and (
        type(value).__module__.split(".")[0] != "builtins"
    )
