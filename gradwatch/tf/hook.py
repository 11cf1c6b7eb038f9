"""How an existing train step reaches its monitor: `apply` is hooked on every optimizer class.

The hook looks up who is watching, in this order: the optimizer itself (`optimizer=`, model.fit), the context
of the call, and the FuncGraph that is being traced (replica threads inherit no context, but they re-enter the
same graph). Where nobody is watching it does nothing. docs/decisions/0002 tells what else was tried.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import tensorflow as tf
from keras.optimizers import Optimizer as _Optimizer

from gradwatch.core.policies import Policy
from gradwatch.errors import ConfigError, NothingToWatch
from gradwatch.tf.monitor import Monitor
from gradwatch.tf.skip import apply_or_keep

Watchers = Mapping[int, Monitor]


class Scope:
    """Who watches during one call of a watched step, and whether a gradient ever came by (traced or run)."""

    def __init__(self, monitor: Monitor) -> None:
        self.monitor = monitor
        self.seen = False
        self.enter()

    def enter(self) -> None:
        self.explicit_before = self.monitor._hidden.explicit_calls

    @property
    def clipped_by_hand(self) -> bool:
        """Whether the step called `monitor.clip` itself since it was entered."""
        return self.monitor._hidden.explicit_calls != self.explicit_before


_context: contextvars.ContextVar[Scope | None] = contextvars.ContextVar("gradwatch", default=None)
_by_graph: weakref.WeakKeyDictionary[Any, Scope] = weakref.WeakKeyDictionary()
_by_optimizer: weakref.WeakKeyDictionary[Any, Scope] = weakref.WeakKeyDictionary()
# inner optimizers of a wrapper that is being applied: they get what the wrapper was given
_inner: weakref.WeakSet[Any] = weakref.WeakSet()


def attach(optimizer: Any, monitor: Monitor) -> Scope:
    """From now on every `apply` of this optimizer goes through the monitor."""
    install()
    scope = Scope(monitor)
    _by_optimizer[optimizer] = scope
    return scope


def detach(optimizer: Any) -> None:
    """Stop watching this optimizer; functions traced while it was watched keep the watching in their graph."""
    _by_optimizer.pop(optimizer, None)


def install() -> None:
    """Hook `apply` on each optimizer class that defines it. Classes made later inherit the hook."""
    _install(_base())


def _base() -> type:
    """The class at the root of Keras' optimizers, whatever this version calls it."""
    roots = [c for c in _Optimizer.__mro__ if "apply" in c.__dict__]
    return roots[-1] if roots else _Optimizer


def _install(cls: type) -> None:
    method = cls.__dict__.get("apply")
    if method is not None and not hasattr(method, "_gradwatch"):
        cls.apply = _hooked(method)  # type: ignore[attr-defined]
    for sub in cls.__subclasses__():
        _install(sub)


def _watcher(optimizer: Any) -> Scope | None:
    if optimizer in _inner:
        return None
    scope = _by_optimizer.get(optimizer) or _context.get()
    if scope is None and not tf.executing_eagerly():
        graph = tf.compat.v1.get_default_graph()
        while scope is None and graph is not None:
            scope = _by_graph.get(graph)
            graph = getattr(graph, "outer_graph", None)
    return scope


def _hooked(original: Callable[..., Any]) -> Callable[..., Any]:
    # AutoGraph must not rewrite the hook; the user's own code is left to it
    @functools.wraps(original)
    @tf.autograph.experimental.do_not_convert
    def apply(self: Any, grads: Any, trainable_variables: Any = None) -> Any:
        scope = _watcher(self)
        if scope is None:
            return original(self, grads, trainable_variables)
        scope.seen = True
        if scope.clipped_by_hand:
            # these gradients went through the monitor already
            return original(self, grads, trainable_variables)
        return _apply(scope.monitor, self, original, list(grads), trainable_variables)

    apply._gradwatch = True  # type: ignore[attr-defined]
    return apply


def _apply(monitor: Monitor, optimizer: Any, original: Callable[..., Any], grads: list[Any], variables: Any) -> Any:
    listed = None if variables is None else list(variables)
    if listed is not None and not optimizer.built and hasattr(optimizer, "optimizers"):
        # MultiOptimizer learns only here which optimizers it wraps
        optimizer.build(listed)
    named = listed if listed is not None else list(optimizer._trainable_variables)
    # variables that Keras overwrites with their "gradient" (fp8 scales) carry none
    watched = [
        i
        for i, g in enumerate(grads)
        if g is not None and not (i < len(named) and getattr(named[i], "overwrite_with_gradient", False))
    ]
    if not watched:
        raise NothingToWatch(
            f"optimizer {optimizer.name!r} was given {len(grads)} gradients and all are None; the loss does not "
            "depend on the variables: is the forward pass inside the tape, and are these its variables?"
        )
    scaled, decision = monitor._hidden.clip(
        [grads[i] for i in watched],
        [named[i] for i in watched] if len(named) == len(grads) else None,
        loss_scale=_loss_scale(optimizer),
    )
    for i, g in zip(watched, scaled):
        grads[i] = g
    with _unwatched(optimizer):
        if monitor.guard.skips and not _skips_itself(optimizer):
            return apply_or_keep(original, optimizer, grads, listed, decision)
        return original(optimizer, grads, listed)


def _loss_scale(optimizer: Any) -> Any:
    """What the gradients at `apply` were multiplied by, or None."""
    if hasattr(optimizer, "inner_optimizer") and hasattr(optimizer, "initial_scale"):
        return optimizer.dynamic_scale if optimizer.built else optimizer.initial_scale
    return getattr(optimizer, "loss_scale_factor", None)


def _skips_itself(optimizer: Any) -> bool:
    """LossScaleOptimizer drops a non-finite step by itself, and must see it to lower its scale."""
    return hasattr(optimizer, "inner_optimizer") and hasattr(optimizer, "initial_scale")


@contextlib.contextmanager
def _unwatched(optimizer: Any) -> Iterator[None]:
    """While a wrapper runs, what it wraps is not watched a second time."""
    inside = [getattr(optimizer, "inner_optimizer", None), *(getattr(optimizer, "optimizers", None) or ())]
    added = [o for o in inside if o is not None and o not in _inner]
    for o in added:
        _inner.add(o)
    try:
        yield
    finally:
        for o in added:
            _inner.discard(o)


# -- the decorator ----------------------------------------------------------------------------------------


def watch(
    step: Callable[..., Any] | None = None,
    *,
    policy: Policy | None = None,
    name: str | None = None,
    optimizer: Any = None,
    monitor: Monitor | None = None,
    **options: Any,
) -> Any:
    """Watch and clip the gradients of a train step: one decorator, nothing else changes.

        @gradwatch.watch
        @tf.function
        def train_step(x, y): ...

        train_step.monitor.snapshot()

    Works on plain functions and on `tf.function`, inside or outside, with `jit_compile=True` too. Every
    `optimizer.apply` and `apply_gradients` that the step reaches passes the monitor.

    Args:
      step: the train step; absent when the decorator is called with options.
      policy, name: as for `Monitor`, which is made from them.
      optimizer: watch this optimizer only, wherever its `apply` is called.
      monitor: use this monitor instead of making one; excludes the other options.
      **options: further options of `Monitor`: detectors, on_nonfinite, on_explosion, on_alert.

    Returns:
      The watched step, of the same kind as the given one, with the attribute `monitor`.

    Raises:
      ConfigError: the arguments do not fit together.
      NothingToWatch: at the first call, when no gradient came by.
    """
    if monitor is not None and (policy is not None or name is not None or options):
        given = sorted(["policy"] * (policy is not None) + ["name"] * (name is not None) + list(options))
        raise ConfigError(
            f"monitor= brings its own options, got {', '.join(given)} as well; give them to gradwatch.Monitor(...)"
        )
    if monitor is not None and not isinstance(monitor, Monitor):
        raise ConfigError(f"monitor must be a gradwatch.Monitor, got {monitor!r}")
    if step is not None and not callable(step):
        raise ConfigError(
            f"watch decorates a train step and was given {step!r}; options go by keyword: @gradwatch.watch(policy=...)"
        )
    if optimizer is not None and not hasattr(optimizer, "apply"):
        raise ConfigError(f"optimizer must be a Keras 3 optimizer, got {optimizer!r}")
    if step is None:
        return functools.partial(watch, policy=policy, name=name, optimizer=optimizer, monitor=monitor, **options)
    install()
    made = monitor if monitor is not None else Monitor(name, policy, **options)
    attached = attach(optimizer, made) if optimizer is not None else None
    inner = getattr(step, "python_function", None)
    if inner is not None and hasattr(step, "_clone"):
        # its own traces: an earlier trace, or one for another monitor, would stay unwatched
        watched = step._clone(python_function=_scoped(inner, made, attached))
    else:
        watched = _scoped(step, made, attached)
    watched.monitor = made
    return watched


def _scoped(step: Callable[..., Any], monitor: Monitor, attached: Scope | None) -> Callable[..., Any]:
    """`step`, during which `monitor` watches."""
    scope = attached or Scope(monitor)

    @functools.wraps(step)
    def watched(*args: Any, **kwargs: Any) -> Any:
        scope.enter()
        with _watching(scope if attached is None else None):
            result = step(*args, **kwargs)
        scope.seen = scope.seen or scope.clipped_by_hand
        if not scope.seen:
            _blind(monitor)
        return result

    # TensorFlow's tracing would unwrap a step that is passed as an argument
    del watched.__wrapped__
    return watched


@contextlib.contextmanager
def _watching(scope: Scope | None) -> Iterator[None]:
    if scope is None:
        yield
        return
    token = _context.set(scope)
    graph = None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
    before = None
    if graph is not None:
        before = _by_graph.get(graph)
        _by_graph[graph] = scope
    try:
        yield
    finally:
        _context.reset(token)
        if graph is not None:
            if before is None:
                _by_graph.pop(graph, None)
            else:
                _by_graph[graph] = before


@tf.autograph.experimental.do_not_convert
def _blind(monitor: Monitor) -> None:
    raise NothingToWatch(
        f"monitor {monitor.name!r} saw no gradient in this step: neither optimizer.apply nor apply_gradients of a "
        "Keras 3 optimizer was traced or run. If the update is written by hand, call "
        "`grads, decision = monitor.clip(grads)` before it; if the step calls a tf.function that was traced "
        "before, decorate that one, or pass optimizer= before its first call"
    )
