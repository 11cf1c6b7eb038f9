"""A watched step that is a method: each instance of its class has a monitor of its own."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from gradwatch.tf import compat
from gradwatch.tf.monitor import Monitor


def class_of(step: Any) -> str | None:
    """The qualified name of the class in whose body `step` was written; None for other functions.

    At the time of decorating the class does not exist yet: its name is all that the function knows of it.
    """
    body = compat.python_function(step) or step
    if inspect.ismethod(body):
        return None  # bound already: to one instance
    around, _, _ = str(getattr(body, "__qualname__", "")).rpartition(".")
    return around if around and not around.endswith("<locals>") else None


class WatchedMethod:
    """What `watch` makes of a function in a class body. The first instance has the monitor made at decoration.

    Args:
      step: the function, or tf.function, that takes the instance first.
      first: the monitor made at decoration; `monitor` of the class's attribute.
      make: makes another monitor of a given name.
      watched: makes the watched step out of a step and its monitor.
    """

    def __init__(
        self, step: Any, first: Monitor, make: Callable[[str], Monitor], watched: Callable[[Any, Monitor], Any]
    ) -> None:
        self.monitor = first
        self.monitors: Mapping[str, Monitor] = {first.name: first}
        self._step, self._make, self._watched = step, make, watched
        self._is_function = compat.python_function(step) is not None
        self._shared = watched(step, first)
        self._class = class_of(step)
        self._number = 0
        self._steps: dict[int, tuple[Any, Any]] = {}  # id of an instance -> (what keeps the id true, its step)
        body = compat.python_function(step) or step
        self.__name__: str = body.__name__
        self.__qualname__: str = body.__qualname__
        self.__module__, self.__doc__ = body.__module__, body.__doc__
        self.__signature__: inspect.Signature = inspect.signature(body)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self
        step = self._of(instance)
        bound = step.__get__(instance, owner)
        if self._is_function:  # a bound method shows the attributes of its function, a bound tf.function does not
            bound.monitor, bound.monitors = step.monitor, step.monitors
        return bound

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The unbound step: `Trainer.step(trainer, x, y)`; a static method comes here too."""
        if args and any(c.__qualname__ == self._class for c in type(args[0]).__mro__):
            return self._of(args[0])(*args, **kwargs)
        return self._shared(*args, **kwargs)

    def _of(self, instance: Any) -> Any:
        """The watched step of an instance, still to be called with it."""
        key = id(instance)
        if key not in self._steps:
            self._number += 1
            name = self.monitor.name
            first = self._number == 1
            step = self._shared if first else self._watched(self._step, self._make(f"{name}-{self._number}"))
            self._steps[key] = (_alive(instance, lambda _: self._steps.pop(key, None)), step)
        return self._steps[key][1]


def _alive(instance: Any, when_gone: Callable[[Any], Any]) -> Any:
    """Something that keeps the id of `instance` from meaning another object."""
    try:
        return weakref.ref(instance, when_gone)
    except TypeError:  # a class with __slots__: its instances stay
        return instance
