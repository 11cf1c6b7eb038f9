"""The train function of a model during a `fit` with the callback.

`model.fit` looks `model.train_function` up at each batch, so a watched one stands there while the fit runs. It watches
only while it is called, and only for the fit whose callback announced the batch: after a fit that died, whoever calls
it next gets the plain one back. Both are kept beside the model, so that neither is traced again by the next fit.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from typing import Any

from gradwatch.tf import batches, compat, hook, losses, watchers
from gradwatch.tf.healing import Healer
from gradwatch.tf.monitor import Monitor
from gradwatch.tf.recovering import healer_of
from gradwatch.tf.watchers import Scope

_ATTRIBUTE = "_gradwatch_train_function"

# attributes of a model that its train function was made with, beside what `compile` sets anew
_SETTINGS = ("run_eagerly", "jit_compile", "unrolled_steps_per_execution", "distribute_strategy")


class TrainFunction:
    """A model's train function, watched by those who joined the fit that runs.

    Args:
      model: the model.
      plain: its own train function.
    """

    def __init__(self, model: Any, plain: Callable[..., Any]) -> None:
        self.plain: Callable[..., Any] = plain
        self._model = model
        self._settings = _settings(model)
        self._fit: Any = None  # the parameters that Keras gives to every callback of one fit
        self._history: Any = None  # that Keras hangs on the model, new in each fit
        self._watchers: list[tuple[Any, Scope]] = []
        self._announced = False
        self._made: Callable[..., Any] | None = None
        self._made_for: list[tuple[Any, Scope]] = []

    def __call__(self, *args: Any) -> Any:
        if not self._announced or self._model_history() is not self._history or _is_single_batch():
            # a fit, or train_on_batch, of somebody else, after a fit that died, perhaps between announcement and batch
            self._watchers.clear()
            self._announced = False
            self._model.train_function = self.plain
            return self.plain(*args)
        self._announced = False
        with contextlib.ExitStack() as stack:
            for optimizer, scope in self._watchers:
                scope.enter()
                stack.enter_context(watchers.attached_meanwhile(optimizer, scope))
                if scope.monitor._healer is not None:
                    stack.enter_context(scope.monitor._healer.call())
            monitors = [scope.monitor for _, scope in self._watchers]
            stack.enter_context(losses.of_batches(self._model, monitors))
            stack.enter_context(batches.of_fit(self._model, monitors))
            result = self._function()(*args)
        for _, scope in self._watchers:
            scope.leave()
        return result

    def healer(self) -> Healer | None:
        """Who acts between two calls, for all who watch; None where nobody recovers."""
        return healer_of([scope.monitor for _, scope in self._watchers])

    def _function(self) -> Callable[..., Any]:
        """The function that is traced while they watch; the one of an earlier fit, if the same watched there."""
        if self._made is None or not _same(self._made_for, self._watchers):
            self._made = compat.new_train_function(self._model)
            self._made_for = list(self._watchers)
            self._model.train_function = self
        return self._made

    def join(self, fit: Any, optimizer: Any, monitor: Monitor) -> Scope:
        """From now on, and until it leaves, `monitor` watches `optimizer` in this fit."""
        if fit is None or fit is not self._fit:
            self._watchers.clear()  # of a fit that died
        self._fit, self._history = fit, self._model_history()
        known = [(o, s) for o, s in (*self._watchers, *self._made_for) if o is optimizer and s.monitor is monitor]
        # its scope knows whether a gradient came by when the function was traced
        scope = known[0][1] if known else Scope(monitor)
        self._watchers = [(o, s) for o, s in self._watchers if o is not optimizer] + [(optimizer, scope)]
        return scope

    def _model_history(self) -> Any:
        return getattr(self._model, "history", None)

    def announce(self) -> None:
        """The next call belongs to the fit that was joined."""
        self._announced = True
        if self._model.train_function is not self:
            # somebody had it made anew during the fit: the new one is to be watched
            self.plain = self._model.train_function
            self._made = None
            self._model.train_function = self

    def leave(self, scope: Scope) -> None:
        """Its fit has ended; the last to leave puts the model's own train function back."""
        self._watchers = [(o, s) for o, s in self._watchers if s is not scope]
        self._announced = False
        if not self._watchers and self._model.train_function is self:
            self._model.train_function = self.plain

    def fits(self) -> bool:
        """Whether the model would still make the same functions."""
        return self._model.train_function in (self, self.plain) and self._settings == _settings(self._model)


def watched_train_function(model: Any) -> TrainFunction:
    """The one that stands at the model from now on: that of an earlier fit, if nothing has changed since."""
    hook.install()
    kept: TrainFunction | None = vars(model).get(_ATTRIBUTE)
    if kept is None or not kept.fits():
        # one that was traced by an earlier fit may be watched by whoever watched then
        kept = TrainFunction(model, compat.new_train_function(model))
        # on the model, for both hold on to it; past its __setattr__, which tracks what it is given
        object.__setattr__(model, _ATTRIBUTE, kept)
    model.train_function = kept
    return kept


def _is_single_batch() -> bool:
    """Whether who called the caller of this is `train_on_batch`, which calls the same train function as `fit`."""
    return sys._getframe(2).f_code.co_name == "train_on_batch"


def _settings(model: Any) -> list[Any]:
    """What the train function depends on and `compile` is not needed to change."""
    step = getattr(model, "train_step", None)
    steps = getattr(model, "steps_per_execution", None)
    return [
        *[getattr(model, name, None) for name in _SETTINGS],
        steps if isinstance(steps, int) else None,  # tf-keras holds a variable, and reads it at each call
        getattr(step, "__func__", step),
        [id(variable) for variable in model.trainable_variables],
    ]


def _same(a: list[tuple[Any, Scope]], b: list[tuple[Any, Scope]]) -> bool:
    return len(a) == len(b) and all(x[0] is y[0] and x[1] is y[1] for x, y in zip(a, b))
