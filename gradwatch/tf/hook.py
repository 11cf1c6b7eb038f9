"""How an existing train step reaches its monitor: `apply` is hooked on every optimizer class that defines it.

Where nobody is watching (`watchers`) the hook does nothing. docs/decisions/0002 tells what else was tried.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf
from keras.optimizers import Optimizer as _Optimizer

from gradwatch.core.guard import SKIP
from gradwatch.errors import NothingToWatch
from gradwatch.tf import (
    accumulation,
    capture,
    compat,
    distribution,
    exports,
    legacy,
    lowering,
    notices,
    updates,
    watchers,
)
from gradwatch.tf.monitor import Monitor
from gradwatch.tf.skip import apply_or_keep


def install() -> None:
    """Hook the update on each optimizer class that defines it. Classes made later inherit the hook."""
    _install(_base(), "apply", _hooked)
    exports.install()
    for root in legacy.roots():
        _install(root, "apply_gradients", _hooked_legacy)


def _base() -> type:
    """The class at the root of Keras' optimizers, whatever this version calls it."""
    roots = [c for c in _Optimizer.__mro__ if "apply" in c.__dict__]
    return roots[-1] if roots else _Optimizer


def _install(cls: type, name: str, hooked: Callable[..., Any]) -> None:
    method = cls.__dict__.get(name)
    if method is not None and not hasattr(method, "_gradwatch"):
        setattr(cls, name, hooked(method))
    subclasses: list[type] = cls.__subclasses__()
    for sub in subclasses:
        _install(sub, name, hooked)


def _hooked(original: Callable[..., Any]) -> Callable[..., Any]:
    names = updates.parameters(original, ["grads", "trainable_variables"])

    # AutoGraph must not rewrite the hook; the user's own code is left to it
    @functools.wraps(original)
    @tf.autograph.experimental.do_not_convert
    def apply(self: Any, *args: Any, **keywords: Any) -> Any:
        scope, captured = watchers.watcher(self), capture.under_way()
        given = updates.Arguments(names, args, keywords)
        if captured is not None and given.get(0) is not None:
            known = given.get(1) if given.get(1) is not None and not self.built else compat.trainable_variables(self)
            return captured.take(given.get(0), known, loss_scale=updates.loss_scale(self))
        if scope is None or given.get(0) is None:
            return original(self, *args, **keywords)
        scope.seen = True
        if scope.clipped_by_hand:
            return _by_hand(scope.monitor, self, lambda *_: original(self, *args, **keywords), given.get(1))
        accumulating = updates.accumulating_inside(self)
        if accumulating is not None:
            notices.overflow_unseen(scope.monitor, self)
            with watchers.attached_meanwhile(accumulating, scope):
                result = original(self, *args, **keywords)
            # the inner optimizer is given gradients without the scale, and knows none
            scope.monitor._engine.loss_scale = updates.loss_scale(self)
            return result
        once = distribution.sums_once(self)

        def update(optimizer: Any, grads: list[Any], variables: list[Any] | None) -> Any:
            args, keywords = given.replaced([grads, variables])
            with distribution.without_sum(self, summed=once):
                return original(optimizer, *args, **keywords)

        grads, variables = list(given.get(0)), None if given.get(1) is None else list(given.get(1))
        sums = distribution.HAND_ON if once else distribution.PART
        return _apply(scope.monitor, self, update, grads, variables, loss_scale=updates.loss_scale(self), sums=sums)

    apply._gradwatch = True  # type: ignore[attr-defined]
    return apply


def _hooked_legacy(original: Callable[..., Any]) -> Callable[..., Any]:
    names = updates.parameters(original, ["grads_and_vars"])

    @functools.wraps(original)
    @tf.autograph.experimental.do_not_convert
    def apply_gradients(self: Any, *args: Any, **keywords: Any) -> Any:
        given = updates.Arguments(names, args, keywords)
        scope, captured = watchers.watcher(self), capture.under_way()
        if captured is not None and given.get(0) is not None:
            return captured.take([gradient for gradient, _ in given.get(0)])
        if scope is None or given.get(0) is None:
            return original(self, *args, **keywords)
        pairs = list(given.get(0))
        handed, others = given.replaced([pairs])
        if not pairs:
            return original(self, *handed, **others)
        scope.seen = True
        if scope.clipped_by_hand:
            variables = [pair[1] for pair in pairs]
            return _by_hand(scope.monitor, self, lambda *_: original(self, *handed, **others), variables)

        def update(optimizer: Any, grads: list[Any], variables: list[Any]) -> Any:
            args, keywords = given.replaced([list(zip(grads, variables))])
            if distribution.replicas() > 1 or distribution.sums_as_tf_keras(
                self
            ):  # of one, see `distribution.without_sum`
                keywords = legacy.summed_already(self, keywords)
            return original(optimizer, *args, **keywords)

        sums = distribution.HAND_ON if legacy.sums(keywords) else distribution.DONE
        grads, variables = ([pair[i] for pair in pairs] for i in (0, 1))
        return _apply(scope.monitor, self, update, grads, variables, loss_scale=None, sums=sums)

    apply_gradients._gradwatch = True  # type: ignore[attr-defined]
    return apply_gradients


def _by_hand(monitor: Monitor, optimizer: Any, update: lowering.Update, variables: Any) -> Any:
    """The update of gradients that came from `monitor.clip`: nothing is left to do but to lower its rate."""
    notices.clips_twice(monitor, optimizer)
    lowered = monitor._engine.lowered_rate()
    if lowered is None:
        return update(optimizer, None, variables)
    with watchers.one_step():
        lowering.attach(optimizer, lowered)
        return lowering.lowered(update, optimizer, lowered)(optimizer, None, list(variables or ()))


def _apply(
    monitor: Monitor,
    optimizer: Any,
    update: Callable[..., Any],
    grads: list[Any],
    variables: list[Any] | None,
    *,
    loss_scale: Any,
    sums: str,
) -> Any:
    """`update(optimizer, grads, variables)` with the gradients that the monitor lets through."""
    if not tf.executing_eagerly():
        exports.remember(optimizer, monitor)
    if variables is not None and hasattr(optimizer, "optimizers") and not optimizer.built:
        # MultiOptimizer learns only here which optimizers it wraps
        optimizer.build(variables)
    notices.clips_twice(monitor, optimizer)
    named = variables if variables is not None else compat.trainable_variables(optimizer)
    # variables that Keras overwrites with their "gradient" (fp8 scales) carry none
    watched = [
        i
        for i, g in enumerate(grads)
        if g is not None and not (i < len(named) and getattr(named[i], "overwrite_with_gradient", False))
    ]
    if not watched:
        raise NothingToWatch(
            f"optimizer {compat.name_of(optimizer)!r} was given {len(grads)} gradients and all are None; the loss does "
            "not depend on the variables: is the forward pass inside the tape, and are these its variables?"
        )
    names = [named[i] for i in watched] if len(named) == len(grads) else None
    with watchers.one_step():
        lowered = monitor._engine.lowered_rate()
        lowering.attach(optimizer, lowered)
        update = lowering.lowered(update, optimizer, lowered)
        if getattr(optimizer, "gradient_accumulation_steps", None):
            with accumulation.watched(optimizer, monitor, names):
                return update(optimizer, grads, variables)
        itself = updates.loss_scaler(optimizer) is not None
        given, known, places = [grads[i] for i in watched], names, list(range(len(watched)))
        if names is not None:
            given, known, places = updates.in_known_order(optimizer, given, names, named)
        scaled, decision = monitor._engine.clip(
            given,
            known,
            loss_scale=loss_scale,
            optimizer=optimizer,
            follow=True,
            skips_itself=itself,
            sums=sums,
        )
        for i, place in zip(watched, places):
            grads[i] = scaled[place]
        if monitor.guard.on_explosion == "skip" if itself else monitor.guard.skips:
            # a loss scaler that meets a NaN drops the step by itself and lowers its scale: that must stay
            keep = tf.equal(decision.verdict, float(SKIP)) & ((decision.finite > 0.0) | (not itself))
            result = apply_or_keep(update, optimizer, grads, variables, keep)
        else:
            result = update(optimizer, grads, variables)
        monitor._engine.settle(known)
        return result
