"""How an existing train step reaches its monitor: `apply` is hooked on every optimizer class.

The hook looks up who is watching, in this order: the optimizer itself (`optimizer=`, model.fit), the context
of the call, and the FuncGraph that is being traced (replica threads inherit no context, but they re-enter the
same graph). Where nobody is watching it does nothing. docs/decisions/0002 tells what else was tried.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import tensorflow as tf
from keras.optimizers import Optimizer as _Optimizer

from gradwatch.core.guard import SKIP
from gradwatch.core.policies import Policy
from gradwatch.errors import ConfigError, NothingToWatch
from gradwatch.tf import accumulation, distribution, legacy
from gradwatch.tf.monitor import Monitor
from gradwatch.tf.skip import apply_or_keep


class Scope:
    """Who watches one step or one optimizer, and whether a gradient ever came by (traced or run)."""

    def __init__(self, monitor: Monitor, optimizer: str = "") -> None:
        self.monitor = monitor
        self.optimizer = optimizer  # the name it was given under, for messages
        self.seen = False
        self.enter()

    def enter(self) -> None:
        """A call of the step begins."""
        self._explicit_before = self.monitor._hidden.explicit_calls

    @property
    def clipped_by_hand(self) -> bool:
        """Whether the step called `monitor.clip` itself since it was entered."""
        return self.monitor._hidden.explicit_calls != self._explicit_before

    def leave(self) -> None:
        """A call of the step has ended.

        Raises:
          NothingToWatch: no gradient came by, in this call or before.
        """
        self.seen = self.seen or self.clipped_by_hand
        if not self.seen:
            _blind(self)


_context: contextvars.ContextVar[Scope | None] = contextvars.ContextVar("gradwatch", default=None)
_entered: list[Scope] = []  # the watched steps under way, newest last
_by_graph: weakref.WeakKeyDictionary[Any, Scope] = weakref.WeakKeyDictionary()
_by_optimizer: weakref.WeakKeyDictionary[Any, Scope] = weakref.WeakKeyDictionary()
# inner optimizers of a wrapper that is being applied, and how often: they get what the wrapper was given.
# Not by thread: MirroredStrategy applies them in threads of its own.
_inner: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
# optimizers whose `apply` this thread is in: a subclass may call its parent's, hooked too
_applying: contextvars.ContextVar[tuple[int, ...]] = contextvars.ContextVar("gradwatch_applying", default=())


def attach(optimizer: Any, monitor: Monitor, name: str = "") -> Scope:
    """From now on every `apply` of this optimizer goes through the monitor."""
    install()
    scope = Scope(monitor, name)
    _by_optimizer[optimizer] = scope
    return scope


def attached(optimizer: Any) -> Scope | None:
    """Who watches this optimizer wherever it is applied."""
    return _by_optimizer.get(optimizer)


def detach(optimizer: Any, before: Scope | None = None) -> None:
    """Stop watching this optimizer, or leave it to who watched `before`.

    Functions traced while it was watched keep the watching in their graph.
    """
    if before is None:
        _by_optimizer.pop(optimizer, None)
    else:
        _by_optimizer[optimizer] = before


def install() -> None:
    """Hook the update on each optimizer class that defines it. Classes made later inherit the hook."""
    _install(_base(), "apply", _hooked)
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
    for sub in cls.__subclasses__():
        _install(sub, name, hooked)


def _watcher(optimizer: Any) -> Scope | None:
    if _inner.get(optimizer) or id(optimizer) in _applying.get():
        return None
    scope = _by_optimizer.get(optimizer) or _context.get()
    if scope is None and not tf.executing_eagerly():
        graph = tf.compat.v1.get_default_graph()
        while scope is None and graph is not None:
            scope = _by_graph.get(graph)
            graph = getattr(graph, "outer_graph", None)
    if scope is None and _entered and tf.executing_eagerly() and distribution.replicas() > 1:
        # the thread of a replica in an eager strategy.run has neither: it belongs to the step that runs now
        scope = _entered[-1]
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
            return original(self, grads, trainable_variables)
        if _is_loss_scaler(self) and self.inner_optimizer.gradient_accumulation_steps:
            # only the inner one knows the effective gradient
            with _watching_instead(self.inner_optimizer, scope):
                return original(self, grads, trainable_variables)
        listed = None if trainable_variables is None else list(trainable_variables)
        once = distribution.sums_once(self)

        def update(optimizer: Any, grads: list[Any], variables: list[Any] | None) -> Any:
            with distribution.handed_on(optimizer) if once else contextlib.nullcontext():
                return original(optimizer, grads, variables)

        sums = distribution.HAND_ON if once else distribution.PART
        return _apply(scope.monitor, self, update, list(grads), listed, loss_scale=_loss_scale(self), sums=sums)

    apply._gradwatch = True  # type: ignore[attr-defined]
    return apply


def _hooked_legacy(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    @tf.autograph.experimental.do_not_convert
    def apply_gradients(self: Any, grads_and_vars: Any, *args: Any, **keywords: Any) -> Any:
        pairs = list(grads_and_vars)
        scope = _watcher(self) if pairs else None
        if scope is None:
            return original(self, pairs, *args, **keywords)
        scope.seen = True
        if scope.clipped_by_hand:
            return original(self, pairs, *args, **keywords)
        given = legacy.summed_already(self, keywords) if distribution.replicas() > 1 else keywords

        def update(optimizer: Any, grads: list[Any], variables: list[Any]) -> Any:
            return original(optimizer, list(zip(grads, variables)), *args, **given)

        sums = distribution.HAND_ON if legacy.sums(keywords) else distribution.DONE
        grads, variables = ([pair[i] for pair in pairs] for i in (0, 1))
        return _apply(scope.monitor, self, update, grads, variables, loss_scale=None, sums=sums)

    apply_gradients._gradwatch = True  # type: ignore[attr-defined]
    return apply_gradients


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
    if variables is not None and hasattr(optimizer, "optimizers") and not optimizer.built:
        # MultiOptimizer learns only here which optimizers it wraps
        optimizer.build(variables)
    named = variables if variables is not None else list(optimizer._trainable_variables)
    # variables that Keras overwrites with their "gradient" (fp8 scales) carry none
    watched = [
        i
        for i, g in enumerate(grads)
        if g is not None and not (i < len(named) and getattr(named[i], "overwrite_with_gradient", False))
    ]
    if not watched:
        name = getattr(optimizer, "name", None) or getattr(optimizer, "_name", "")
        raise NothingToWatch(
            f"optimizer {name!r} was given {len(grads)} gradients and all are None; the loss does not "
            "depend on the variables: is the forward pass inside the tape, and are these its variables?"
        )
    names = [named[i] for i in watched] if len(named) == len(grads) else None
    with _unwatched(optimizer):
        if getattr(optimizer, "gradient_accumulation_steps", None):
            with accumulation.watched(optimizer, monitor, names):
                return update(optimizer, grads, variables)
        scaled, decision = monitor._hidden.clip(
            [grads[i] for i in watched],
            names,
            loss_scale=loss_scale,
            skips_itself=_is_loss_scaler(optimizer),
            sums=sums,
        )
        for i, g in zip(watched, scaled):
            grads[i] = g
        if not _skips(monitor, optimizer):
            return update(optimizer, grads, variables)
        # a loss scaler that meets a NaN drops the step by itself and lowers its scale: that must stay
        itself = _is_loss_scaler(optimizer)
        keep = tf.equal(decision.verdict, float(SKIP)) & ((decision.finite > 0.0) | (not itself))
        return apply_or_keep(update, optimizer, grads, variables, keep)


def _is_loss_scaler(optimizer: Any) -> bool:
    return hasattr(optimizer, "inner_optimizer") and hasattr(optimizer, "initial_scale")


def _loss_scale(optimizer: Any) -> Any:
    """What the gradients at `apply` were multiplied by, or None."""
    if _is_loss_scaler(optimizer):
        return optimizer.dynamic_scale if optimizer.built else optimizer.initial_scale
    return getattr(optimizer, "loss_scale_factor", None)


def _skips(monitor: Monitor, optimizer: Any) -> bool:
    if _is_loss_scaler(optimizer):
        return monitor.guard.on_explosion == "skip"
    return monitor.guard.skips


@contextlib.contextmanager
def _watching_instead(optimizer: Any, scope: Scope) -> Iterator[None]:
    before = attached(optimizer)
    _by_optimizer[optimizer] = scope
    try:
        yield
    finally:
        detach(optimizer, before)


@contextlib.contextmanager
def _unwatched(optimizer: Any) -> Iterator[None]:
    """While an optimizer runs, neither its parent's `apply` nor what it wraps is watched a second time."""
    inside = [getattr(optimizer, "inner_optimizer", None), *(getattr(optimizer, "optimizers", None) or ())]
    inside = [o for o in inside if o is not None]
    for o in inside:
        _inner[o] = _inner.get(o, 0) + 1
    token = _applying.set((*_applying.get(), id(optimizer)))
    try:
        yield
    finally:
        _applying.reset(token)
        for o in inside:
            _inner[o] -= 1


# -- the decorator ----------------------------------------------------------------------------------------


def watch(
    step: Callable[..., Any] | None = None,
    *,
    policy: Policy | str | None = None,
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
      optimizer: watch this optimizer only, wherever its `apply` is called. A mapping of names to optimizers
        gives each a monitor of that name, with the same options.
      monitor: use this monitor instead of making one; excludes the other options.
      **options: further options of `Monitor`: detectors, on_nonfinite, on_explosion, on_alert.

    Returns:
      The watched step, of the same kind as the given one, with the attribute `monitor`; `monitors`, a dict by
      name, for a mapping of optimizers.

    Raises:
      ConfigError: the arguments do not fit together.
      NothingToWatch: at the first call, when no gradient came by.
    """
    several = isinstance(optimizer, Mapping)
    if monitor is not None and (policy is not None or name is not None or options or several):
        given = ["policy"] * (policy is not None) + ["name"] * (name is not None) + ["several optimizers"] * several
        raise ConfigError(
            f"monitor= brings its own options, got {', '.join([*given, *options])} as well; "
            "give options to gradwatch.Monitor(...), and watch several optimizers without monitor="
        )
    if monitor is not None and not isinstance(monitor, Monitor):
        raise ConfigError(f"monitor must be a gradwatch.Monitor, got {monitor!r}")
    if step is not None and (not callable(step) or (isinstance(step, type) and issubclass(step, Policy))):
        raise ConfigError(
            f"watch decorates a train step and was given {step!r}; options go by keyword: @gradwatch.watch(policy=...)"
        )
    optimizers = dict(optimizer) if several else {"": optimizer} if optimizer is not None else {}
    for key, one in optimizers.items():
        if not hasattr(one, "apply_gradients") or not (hasattr(one, "apply") or legacy.is_old(one)):
            raise ConfigError(f"optimizer must be a Keras optimizer or a dict of such, got {one!r}")
        if several and not (isinstance(key, str) and key):
            raise ConfigError(f"the keys of optimizer= name the monitors and must be texts, got {key!r}")
    if several and not optimizers:
        raise ConfigError("optimizer= must name at least one optimizer, got an empty dict")
    if step is None:
        return functools.partial(watch, policy=policy, name=name, optimizer=optimizer, monitor=monitor, **options)
    install()
    if several:
        made = {key: Monitor(f"{name}-{key}" if name else key, policy, **options) for key in optimizers}
        scopes = [attach(one, made[key], key) for key, one in optimizers.items()]
    else:
        single = monitor if monitor is not None else Monitor(name, policy, **options)
        made = {single.name: single}
        scopes = [attach(one, single) for one in optimizers.values()] or [Scope(single)]
    in_context = None if optimizers else scopes[0]
    inner = getattr(step, "python_function", None)
    if inner is not None and hasattr(step, "_clone"):
        # its own traces: an earlier trace, or one for another monitor, would stay unwatched
        watched = step._clone(python_function=_scoped(inner, scopes, in_context))
        _take_turns(watched, scopes)
    else:
        watched = _scoped(step, scopes, in_context)
    watched.monitors = made
    if not several:
        watched.monitor = single
    return watched


def _scoped(step: Callable[..., Any], scopes: list[Scope], in_context: Scope | None) -> Callable[..., Any]:
    """`step`, during which `in_context` watches; `scopes` must all see a gradient."""

    @functools.wraps(step)
    def watched(*args: Any, **kwargs: Any) -> Any:
        for scope in scopes:
            scope.enter()
        _take_turns_around(scopes)
        with _watching(in_context):
            result = step(*args, **kwargs)
        for scope in scopes:
            scope.leave()
        return result

    # TensorFlow's tracing would unwrap a step that is passed as an argument
    del watched.__wrapped__
    return watched


def _take_turns(function: Any, scopes: list[Scope]) -> None:
    """Let threads that call one tf.function run it one after the other, so that no step of theirs is lost.

    A plain graph reads the state and writes it in two ops; a jitted one holds on to it by itself.
    """
    call = getattr(function, "_call", None)
    if call is None or getattr(function, "_jit_compile", None):
        return
    before = getattr(function, "_gradwatch_turns", {})
    turns = [scope.monitor._hidden.turn for scope in scopes]
    # always in the same order: two functions with two monitors each must not wait for one another
    function._gradwatch_turns = dict(sorted({**before, **{id(turn): turn for turn in turns}}.items()))
    if before:
        return

    @functools.wraps(call)
    def in_turn(*args: Any, **kwargs: Any) -> Any:
        with contextlib.ExitStack() as held:
            for turn in function._gradwatch_turns.values():
                held.enter_context(turn)
            return call(*args, **kwargs)

    function._call = in_turn


@tf.autograph.experimental.do_not_convert
def _take_turns_around(scopes: list[Scope]) -> None:
    """The same for every tf.function that is being traced around this call: those of the user's."""
    frame = None if tf.executing_eagerly() else sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == "_call":
            function = frame.f_locals.get("self")
            if isinstance(function, tf.types.experimental.PolymorphicFunction):
                _take_turns(function, scopes)
        frame = frame.f_back


@contextlib.contextmanager
def _watching(scope: Scope | None) -> Iterator[None]:
    if scope is None:
        yield
        return
    token = _context.set(scope)
    _entered.append(scope)
    graph = None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
    before = None
    if graph is not None:
        before = _by_graph.get(graph)
        _by_graph[graph] = scope
    try:
        yield
    finally:
        _context.reset(token)
        _entered.remove(scope)
        if graph is not None:
            if before is None:
                _by_graph.pop(graph, None)
            else:
                _by_graph[graph] = before


@tf.autograph.experimental.do_not_convert
def _blind(scope: Scope) -> None:
    of = f" of the optimizer given as {scope.optimizer!r}" if scope.optimizer else ""
    raise NothingToWatch(
        f"monitor {scope.monitor.name!r} saw no gradient{of} in this step: neither optimizer.apply nor "
        "apply_gradients of a Keras optimizer was traced or run. If the update is written by hand, call "
        "`grads, decision = monitor.clip(grads)` before it; if the step calls a tf.function that was traced "
        "before, decorate that one, or pass optimizer= before its first call"
    )
