"""Who watches an optimizer that is being applied.

Asked in this order: the optimizer itself (`optimizer=`, model.fit), the context of the call, and the FuncGraph that
is being traced (replica threads inherit no context, but they re-enter the same graph). docs/decisions/0002 tells what
else was tried.
"""

from __future__ import annotations

import contextlib
import contextvars
import weakref
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from gradwatch.errors import NothingToWatch
from gradwatch.tf import compat, distribution
from gradwatch.tf.monitor import Monitor


class Scope:
    """Who watches one step or one optimizer, and whether a gradient ever came by (traced or run)."""

    def __init__(self, monitor: Monitor, optimizer: str = "") -> None:
        self.monitor = monitor
        self.optimizer = optimizer  # the name it was given under, for messages
        self.seen: bool = False
        self.enter()

    def enter(self) -> None:
        """A call of the step begins."""
        self._explicit_before = self.monitor._engine.explicit_calls

    @property
    def clipped_by_hand(self) -> bool:
        """Whether the step called `monitor.clip` itself since it was entered."""
        return self.monitor._engine.explicit_calls != self._explicit_before

    def leave(self) -> bool:
        """A call of the step has ended: whether a gradient came by, in this call or before."""
        self.seen = self.seen or self.clipped_by_hand
        return self.seen


_context: contextvars.ContextVar[Scope | None] = contextvars.ContextVar("gradwatch", default=None)
_entered: list[Scope] = []  # the watched steps under way, newest last
_by_graph: weakref.WeakKeyDictionary[Any, Scope] = weakref.WeakKeyDictionary()
_by_optimizer: weakref.WeakKeyDictionary[Any, Scope] = weakref.WeakKeyDictionary()


def attach(optimizer: Any, scope: Scope) -> None:
    """From now on every `apply` of this optimizer goes through the scope's monitor."""
    _by_optimizer[optimizer] = scope


def attached(optimizer: Any) -> Scope | None:
    """Who watches this optimizer wherever it is applied."""
    return _by_optimizer.get(optimizer)


@contextlib.contextmanager
def attached_meanwhile(optimizer: Any, scope: Scope) -> Iterator[None]:
    """Inside, this optimizer is watched by `scope`; afterwards by who watched it before, or by nobody."""
    before = attached(optimizer)
    attach(optimizer, scope)
    try:
        yield
    finally:
        if before is None:
            _by_optimizer.pop(optimizer, None)
        else:
            attach(optimizer, before)


@contextlib.contextmanager
def watching(scope: Scope | None) -> Iterator[None]:
    """Inside, `scope` watches every optimizer that nobody watches by itself."""
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


def watcher(optimizer: Any) -> Scope | None:
    """Who watches this `apply`; None for one inside another, which is no step of its own."""
    if _is_inside():
        return None
    scope = _by_optimizer.get(optimizer) or _context.get()
    if scope is None and not tf.executing_eagerly():
        graph = tf.compat.v1.get_default_graph()
        while scope is None and graph is not None:
            scope = _by_graph.get(graph)
            graph = compat.outer_graph(graph)
    if scope is None and _entered and tf.executing_eagerly() and distribution.replicas() > 1:
        # the thread of a replica in an eager strategy.run has neither: it belongs to the step that runs now
        scope = _entered[-1]
    return scope


# -- one apply inside another -----------------------------------------------------------------------------

_inside: contextvars.ContextVar[bool] = contextvars.ContextVar("gradwatch_inside", default=False)
# MirroredStrategy applies what an optimizer wraps in new threads, of the same replicas
_replicas_inside: list[tuple[int, int]] = []


@contextlib.contextmanager
def one_step() -> Iterator[None]:
    """Around a watched `apply`: whatever it applies in turn (its parent's `apply`, what it wraps) is the same step."""
    replica = _replica()
    token = _inside.set(True)
    if replica is not None:
        _replicas_inside.append(replica)
    try:
        yield
    finally:
        _inside.reset(token)
        if replica is not None:
            _replicas_inside.remove(replica)


def is_updating() -> bool:
    """Whether a watched update is under way here, or in a thread of a replica that waits for this one."""
    return _inside.get() or bool(_replicas_inside)


def _is_inside() -> bool:
    return _inside.get() or (bool(_replicas_inside) and _replica() in _replicas_inside)


def _replica() -> tuple[int, int] | None:
    """The replica that this thread runs, of several whose number Python knows."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return None
    number = context.replica_id_in_sync_group
    if tf.is_tensor(number):
        number = tf.get_static_value(number)
    return None if number is None else (id(context.strategy), int(number))


# -- blindness --------------------------------------------------------------------------------------------


@tf.autograph.experimental.do_not_convert
def refuse_blindness(scope: Scope) -> None:
    """NothingToWatch, for a step that has ended without a gradient."""
    of = f" of the optimizer given as {scope.optimizer!r}" if scope.optimizer else ""
    raise NothingToWatch(
        f"monitor {scope.monitor.name!r} saw no gradient{of} in this step: neither optimizer.apply nor "
        "apply_gradients of a Keras optimizer was traced or run. If the update is written by hand, call "
        "`grads, decision = monitor.clip(grads)` before it. If the step calls a tf.function that was traced before, "
        "decorate that one, or pass optimizer= before its first call. If it calls model.train_on_batch, which was "
        "traced by an earlier call (a notebook cell that ran twice), run `model.make_train_function(force=True)` "
        "first, so that Keras traces it again"
    )
