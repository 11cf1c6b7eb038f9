"""What every detector is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from gradwatch.core import checks
from gradwatch.core.norms import Norms
from gradwatch.core.values import Value
from gradwatch.core.xp import Array, Bool, Namespace
from gradwatch.errors import ConfigError

State = Mapping[str, Any]
Info = Mapping[str, Array]
Update = tuple[State, Bool, Info]


class Detector(Value):
    """A detector: two pure functions over explicit state. Make one with the functions of `gradwatch.detectors`.

    Your own is either `Detector(kind, name, init, update)`, which can be pickled when its functions can, or a frozen
    dataclass that derives from Detector, as ours are (`gradwatch.core.values` says how).

    Args:
      kind: what it finds, one of `gradwatch.core.snapshot.KINDS`.
      name: how it was made, for people.
      init: num_variables -> state, a dict of float32 arrays of fixed structure and shapes.
      update: (xp, state, norms) -> (state, alarm, info). `info` holds "score" and "threshold", and may hold "warmup",
        1.0 while the detector still gathers statistics.
      cooldown_steps: an episode ends after this many finite steps without an alarm, >= 1.

    Raises:
      ConfigError: an argument is not what it should be.

    Example:
      >>> from gradwatch import detectors
      >>> def update(xp, state, norms):
      ...     return state, norms.total > 100.0, {"score": norms.total, "threshold": norms.total * 0.0 + 100.0}
      >>> detectors.Detector("explosion", "above_100()", lambda num_variables: {}, update).cooldown_steps
      10
    """

    kind: str = ""
    cooldown_steps: int = 10

    def __init__(
        self,
        kind: str,
        name: str,
        init: Callable[[int], State],
        update: Callable[[Namespace, State, Norms], Update],
        cooldown_steps: int = 10,
    ) -> None:
        for argument, text in (("kind", kind), ("name", name)):
            if not isinstance(text, str) or not text:
                raise ConfigError(f"a detector's {argument} must be a text that is not empty, got {text!r}")
        for argument, function in (("init", init), ("update", update)):
            if not callable(function):
                raise ConfigError(f"a detector's {argument} must be a function, got {function!r}")
        self._store(kind=kind, name=name, init=init, update=update)
        self._store(cooldown_steps=checks.count("cooldown_steps", cooldown_steps))

    @property
    def budget_steps(self) -> int | None:
        """Healthy steps that a run needs for a budget of false alarms to be kept; 0 without one, None: never enough."""
        return 0

    def init(self, num_variables: int) -> State:
        """The state before the first step."""
        raise NotImplementedError

    def update(self, xp: Namespace, state: State, norms: Norms) -> Update:
        """(state after the step, whether it is abnormal, info)."""
        raise NotImplementedError
