"""`gradwatch.watch`: one decorator above a train step."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, overload

import keras
import tensorflow as tf

from gradwatch.core.policies import Policy
from gradwatch.errors import ConfigError
from gradwatch.tf import batches, capture, compat, hook, legacy, losses, options, recovering, watchers
from gradwatch.tf.methods import WatchedMethod, class_of
from gradwatch.tf.monitor import Monitor
from gradwatch.tf.recovering import RecoveringStep, healer_of
from gradwatch.tf.watchers import Scope

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
S = TypeVar("S")
R_co = TypeVar("R_co", covariant=True)


class WatchedStep(Protocol[P, R_co]):
    """A watched train step: what was decorated, and its monitor. A watched method has a monitor for each instance."""

    @property
    def monitor(self) -> Monitor:
        """The monitor of this step."""
        ...

    @property
    def monitors(self) -> Mapping[str, Monitor]:
        """The monitors by name: several where `optimizer=` was given a dict."""
        ...

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...

    @overload
    def __get__(self, instance: None, owner: type, /) -> WatchedStep[P, R_co]: ...

    @overload
    def __get__(
        self: WatchedStep[Concatenate[S, Q], R], instance: S, owner: type | None = None, /
    ) -> WatchedStep[Q, R]: ...


@overload
def watch(
    step: Callable[P, R],
    *,
    policy: Any = None,
    name: str | None = None,
    optimizer: Any = None,
    monitor: Monitor | None = None,
    loss: Callable[[Any], Any] | None = None,
    **monitor_options: Any,
) -> WatchedStep[P, R]: ...


@overload
def watch(
    step: None = None,
    *,
    policy: Any = None,
    name: str | None = None,
    optimizer: Any = None,
    monitor: Monitor | None = None,
    loss: Callable[[Any], Any] | None = None,
    **monitor_options: Any,
) -> Callable[[Callable[P, R]], WatchedStep[P, R]]: ...


def watch(
    step: Any = None,
    *,
    policy: Any = None,
    name: str | None = None,
    optimizer: Any = None,
    monitor: Monitor | None = None,
    loss: Callable[[Any], Any] | None = None,
    **monitor_options: Any,
) -> Any:
    """Watch and clip the gradients of a train step: one decorator, nothing else changes.

        @gradwatch.watch
        @tf.function
        def train_step(x, y): ...

        train_step.monitor.snapshot()

    Works on plain functions and on `tf.function`, inside or outside, with `jit_compile=True` too. Every
    `optimizer.apply` and `apply_gradients` that the step reaches passes the monitor. A method that is decorated in
    its class has a monitor for each instance: `trainer.step.monitor`.

    Args:
      step: the train step; absent when the decorator is called with options.
      policy, name: as for `Monitor`, which is made from them; without a policy it is `policies.auto()`.
      optimizer: watch this optimizer only, wherever its `apply` is called. A mapping of names to optimizers
        gives each a monitor of that name, with the same options.
      monitor: use this monitor instead of making one; excludes the other options.
      loss: picks the loss out of what the step returns; by default it is the "loss" of a dict, else the first
        floating number of shape (). The policy gets it at the next step, as the mean over the replicas under a
        strategy. None from it: no loss.
      **monitor_options: further options of `Monitor`: detectors, on_nonfinite, on_explosion, on_alert, jit_compile,
        update_limit, record, keep_batch, batch_bytes, weights, recover.

    Returns:
      The watched step, of the same kind as the given one, with the attribute `monitor`; `monitors`, a dict by
      name, for a mapping of optimizers.

    Raises:
      ConfigError: the arguments do not fit together, or `step` is not a train step.
      NothingToWatch: at the first call, when no gradient came by.

    Example:
      >>> import gradwatch, keras, tensorflow as tf
      >>> w, optimizer = tf.Variable([3.0, 4.0]), keras.optimizers.SGD(1.0)
      >>> @gradwatch.watch(policy="fixed(1)")
      ... def train_step():
      ...     with tf.GradientTape() as tape:
      ...         loss = tf.reduce_sum(w * w) / 2.0
      ...     optimizer.apply_gradients([(tape.gradient(loss, w), w)])
      ...     return loss
      >>> float(train_step()), [round(float(x), 3) for x in w]
      (12.5, [2.4, 3.2])
      >>> train_step.monitor.snapshot().clipped_steps
      1
    """
    given = {"name": name, "policy": policy, **monitor_options}
    several = isinstance(optimizer, Mapping)
    options.check(monitor, given, "gradwatch.watch")
    if monitor is not None and several:
        raise ConfigError("monitor= is one monitor, got several optimizers; without it each gets a monitor of its own")
    if loss is not None and not callable(loss):
        raise ConfigError(
            f"loss must be a callable that picks the loss out of what the step returns, got {loss!r}; "
            "for example loss=lambda outputs: outputs[1]"
        )
    if step is not None:
        _check_step(step)
    optimizers = dict(optimizer) if several else {"": optimizer} if optimizer is not None else {}
    _check_optimizers(optimizers, several=several)
    if step is None:
        return functools.partial(watch, optimizer=optimizer, monitor=monitor, loss=loss, **given)
    hook.install()
    if several:
        monitors = {key: Monitor(**{**given, "name": f"{name}-{key}" if name else key}) for key in optimizers}
        scopes = [Scope(monitors[key], key) for key in optimizers]
        for scope, one in zip(scopes, optimizers.values()):
            watchers.attach(one, scope)
        return _watched(step, scopes, None, monitors, loss)
    first = options.monitor_from(monitor, given)
    if optimizer is not None:
        scope = Scope(first)
        watchers.attach(optimizer, scope)
        return _watched(step, [scope], None, {first.name: first}, loss)

    def watched_by(step: Any, monitor: Monitor) -> Any:
        scope = Scope(monitor)
        return _watched(step, [scope], scope, {monitor.name: monitor}, loss)

    if class_of(step) is None or monitor is not None:
        return watched_by(step, first)
    return WatchedMethod(step, first, lambda name: Monitor(**{**given, "name": name}), watched_by)


def _watched(
    step: Any,
    scopes: list[Scope],
    in_context: Scope | None,
    monitors: Mapping[str, Monitor],
    loss: Callable[[Any], Any] | None,
) -> Any:
    """The step, of the same kind, with its monitors as attributes."""
    body = compat.python_function(step)
    watched: Any
    if body is None:
        watched = _scoped(step, scopes, in_context, loss)
    else:
        # its own traces: an earlier trace, or one for another monitor, would stay unwatched
        watched = compat.cloned(step, _scoped(body, scopes, in_context, loss))
    watched.monitors = monitors
    if len(scopes) == 1 and not scopes[0].optimizer:
        watched.monitor = scopes[0].monitor
    healer = healer_of(list(monitors.values()))
    return watched if healer is None else RecoveringStep(watched, healer, monitors)


def _scoped(
    step: Callable[..., Any], scopes: list[Scope], in_context: Scope | None, loss: Callable[[Any], Any] | None
) -> Callable[..., Any]:
    """`step`, during which `in_context` watches; `scopes` must all see a gradient."""

    # AutoGraph must not rewrite what is done around the step: that takes it longer than the step itself
    @tf.autograph.experimental.do_not_convert
    @contextlib.contextmanager
    def around(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Callable[[Any], None]]:
        if capture.under_way() is not None:
            yield lambda result: None  # somebody looks at its gradients: it is no step of the training
            return
        results: list[Any] = []
        for scope in scopes:
            scope.enter()
            scope.monitor._engine.inputs.expect((args, kwargs), (args, kwargs))
        with watchers.watching(in_context):
            yield results.append
        for scope in scopes:
            scope.monitor._engine.inputs.forget()
            if not scope.leave():
                watchers.refuse_blindness(scope)
        losses.tell([scope.monitor for scope in scopes], results[0], loss)
        batches.keep([scope.monitor for scope in scopes], args, kwargs)
        recovering.tell(scopes[0].monitor, step, args)

    @functools.wraps(step)
    def watched(*args: Any, **kwargs: Any) -> Any:
        with around(args, kwargs) as ended:
            result = step(*args, **kwargs)
            ended(result)
        return result

    # TensorFlow's tracing would unwrap a step that is passed as an argument
    del watched.__wrapped__
    return watched


# -- what can be decorated --------------------------------------------------------------------------------


def _check_optimizers(optimizers: Mapping[Any, Any], *, several: bool) -> None:
    if several and not optimizers:
        raise ConfigError("optimizer= must name at least one optimizer, got an empty dict")
    for key, one in optimizers.items():
        if not hasattr(one, "apply_gradients") or not (hasattr(one, "apply") or legacy.is_old(one)):
            raise ConfigError(f"optimizer must be a Keras optimizer or a dict of such, got {one!r}")
        if several and not (isinstance(key, str) and key):
            raise ConfigError(f"the keys of optimizer= name the monitors and must be texts, got {key!r}")


def _check_step(step: Any) -> None:
    """ConfigError for what is no train step, each with what to do instead."""
    if isinstance(step, (classmethod, property)):
        kind = type(step).__name__
        raise ConfigError(f"watch decorates a train step and was given a {kind}; put @{kind} above @gradwatch.watch")
    if not callable(step) or isinstance(step, Policy) or (isinstance(step, type) and issubclass(step, Policy)):
        raise ConfigError(
            f"watch decorates a train step and was given {step!r}; options go by keyword: @gradwatch.watch(policy=...)"
        )
    if isinstance(step, type):
        raise ConfigError(
            f"watch decorates a train step and was given the class {step.__name__}; decorate its method that trains"
        )
    if _is_model(step):
        raise ConfigError(
            f"watch decorates a train step and was given the model {getattr(step, 'name', '')!r}; decorate the "
            "function that computes its gradients and applies them, or use gradwatch.KerasCallback() for model.fit"
        )
    if _is_watched(step):
        raise ConfigError(
            f"{_name(step)} is watched already; leave one of the two watch() away, or decorate the function below it: "
            "two monitors would count each update twice"
        )
    body = _innermost(step)
    if inspect.iscoroutinefunction(body) or inspect.isasyncgenfunction(body):
        raise ConfigError(
            f"{_name(step)} is an `async def`: calling it trains nothing yet; put the update into a plain function, "
            "decorate that and call it from here"
        )
    if inspect.isgeneratorfunction(body):
        raise ConfigError(
            f"{_name(step)} is a generator function: calling it trains nothing yet; put one update into a plain "
            "function, decorate that and call it before each yield"
        )


def _is_model(step: Any) -> bool:
    # a layer of tf-keras is known by its base class, which need not be imported here
    bases = (f"{c.__module__}.{c.__name__}" for c in type(step).__mro__)
    return isinstance(step, keras.layers.Layer) or any(
        b.startswith("tf_keras.") and b.endswith(".Layer") for b in bases
    )


def _layers(step: Any) -> list[Any]:
    """The step and what it is made of: the function of a method, of a partial, of a tf.function."""
    found: list[Any] = []
    while step is not None and len(found) < 100:
        found.append(step)
        inside = (getattr(step, name, None) for name in ("python_function", "func", "__func__", "__wrapped__"))
        step = next((one for one in inside if callable(one)), None)
    return found


def _is_watched(step: Any) -> bool:
    return any(isinstance(getattr(one, "monitors", None), Mapping) for one in _layers(step))


def _innermost(step: Any) -> Any:
    innermost = _layers(step)[-1]
    return innermost if inspect.isroutine(innermost) else getattr(innermost, "__call__", innermost)  # noqa: B004


def _name(step: Any) -> str:
    return repr(getattr(step, "__qualname__", None) or getattr(step, "__name__", None) or step)
