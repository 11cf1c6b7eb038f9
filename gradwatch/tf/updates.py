"""What an optimizer does with the gradients it is given: what it wraps, their scale, the variables it knows."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras

from gradwatch.tf import compat, legacy

#: The arguments with which an optimizer of Keras clips by itself.
OWN_CLIPPING = ("clipnorm", "global_clipnorm", "clipvalue")


def is_optimizer(thing: Any) -> bool:
    """Whether this is an optimizer of Keras or of tf-keras."""
    if not hasattr(type(thing), "apply_gradients"):
        return False  # asked of every attribute of an optimizer: this is the cheap answer
    return isinstance(thing, keras.optimizers.Optimizer) or ("tf_keras" in sys.modules and legacy.is_old(thing))


def wrapped(optimizer: Any) -> list[Any]:
    """The optimizers that this one holds, under whatever attribute: alone, in a list or in a dict."""
    distinct: dict[int, Any] = {}
    # walked several times in each eager step: most attributes are numbers, and lists of one kind of variable
    may_be: dict[type, bool] = {type(None): False, bool: False, int: False, float: False, str: False}
    for value in vars(optimizer).values():
        held: Any = (value,)
        if isinstance(value, (list, tuple)):
            held = value
        elif isinstance(value, Mapping):
            held = value.values()
        for one in held:
            kind = type(one)
            if kind not in may_be:
                may_be[kind] = is_optimizer(one)
            if may_be[kind] and one is not optimizer:
                distinct[id(one)] = one
    return list(distinct.values())


def chain(optimizer: Any) -> Iterator[Any]:
    """The optimizer, the one it wraps, the one that wraps, and so on; ends where there are several."""
    seen: set[int] = set()
    while id(optimizer) not in seen:
        seen.add(id(optimizer))
        yield optimizer
        inside = wrapped(optimizer)
        if len(inside) == 1:
            optimizer = inside[0]


def accumulating_inside(optimizer: Any) -> Any:
    """The optimizer, wrapped in this one, that accumulates micro-batches: it alone knows the effective gradient."""
    _, *inside = chain(optimizer)
    return next((one for one in inside if getattr(one, "gradient_accumulation_steps", None)), None)


def loss_scaler(optimizer: Any) -> Any:
    """The LossScaleOptimizer among the optimizer and what it wraps, or None."""
    found = (one for one in chain(optimizer) if hasattr(one, "inner_optimizer") and hasattr(one, "initial_scale"))
    return next(found, None)


def loss_scale(optimizer: Any) -> Any:
    """What the gradients that this optimizer is given were multiplied by, or None."""
    scaler = loss_scaler(optimizer)
    if scaler is not None:
        return scaler.dynamic_scale if scaler.built else scaler.initial_scale
    return next((one.loss_scale_factor for one in chain(optimizer) if getattr(one, "loss_scale_factor", None)), None)


def build(optimizer: Any, variables: list[Any] | None) -> None:
    """Make the slots of the optimizer and of what it wraps, if they are not there yet."""
    if legacy.is_old(optimizer):
        compat.build_legacy(optimizer, variables or [])
        return
    for one in chain(optimizer):
        if not one.built and variables is not None:  # else Keras says by itself what is missing
            one.build(variables)


def slots(optimizer: Any) -> list[Any]:
    """The variables of the optimizer and of all that it wraps; some may occur twice."""
    own = optimizer.variables() if callable(optimizer.variables) else optimizer.variables
    return [*own, *(v for one in wrapped(optimizer) for v in slots(one))]


# -- its variables ----------------------------------------------------------------------------------------


def in_known_order(
    optimizer: Any, grads: Sequence[Any], variables: Sequence[Any], given: Sequence[Any]
) -> tuple[list[Any], list[Any], list[int]]:
    """The gradients of all variables that the optimizer knows, None for those that this call leaves out.

    So alternating heads, or an encoder and then a decoder with one optimizer, are steps over one set of variables.

    Args:
      grads, variables: the gradients that are not None, and their variables.
      given: the variables of this call, with and without a gradient.

    Returns:
      (gradients, their variables, for each of `grads` its place among them); those that were given, where the
      optimizer does not know all of them.
    """
    # an optimizer that is not built yet is about to be, with what was given to this call
    known = next(filter(None, map(compat.trainable_variables, chain(optimizer))), given)
    # the "gradient" of a float8 scale is its new value
    known = [v for v in known if not getattr(v, "overwrite_with_gradient", False)]
    place = {id(tf_variable(v)): i for i, v in enumerate(known)}
    places = [place.get(id(tf_variable(v)), -1) for v in variables]
    if -1 in places or len(set(places)) < len(places):
        return list(grads), list(variables), list(range(len(grads)))
    spread: list[Any] = [None] * len(known)
    for i, gradient in zip(places, grads):
        spread[i] = gradient
    return spread, known, places


def tf_variable(variable: Any) -> Any:
    """The tf.Variable of a Keras variable; anything else as it is."""
    value = getattr(variable, "value", variable)
    return variable if callable(value) else value


# -- its arguments ----------------------------------------------------------------------------------------


def parameters(method: Callable[..., Any], default: Sequence[str]) -> list[str]:
    """The names of a method's first positional parameters after self, as many as `default` has.

    Where it has fewer, those of `default`: what can be given by keyword only is ours if it is called as there, and a
    `note` of a subclass is not.
    """
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    try:
        names = [p.name for p in inspect.signature(method).parameters.values() if p.kind in positional][1:]
    except (TypeError, ValueError):
        names = []
    return [*names[: len(default)], *default[len(names) :]]


class Arguments:
    """Those of one call of an optimizer's method. What is not ours is handed on as it came.

    Args:
      names: of the parameters that are ours.
      args, keywords: what the method was called with, without self.
    """

    def __init__(self, names: Sequence[str], args: Sequence[Any], keywords: Mapping[str, Any]) -> None:
        self._names, self._args, self._keywords = names, list(args), dict(keywords)

    def get(self, index: int) -> Any:
        """The value of one of ours, None where it was not given."""
        return self._args[index] if index < len(self._args) else self._keywords.get(self._names[index])

    def replaced(self, values: Sequence[Any]) -> tuple[list[Any], dict[str, Any]]:
        """(args, keywords) with other values for ours, in the form in which each was given."""
        args, keywords = list(self._args), dict(self._keywords)
        for i, (name, value) in enumerate(zip(self._names, values)):
            if i < len(args):
                args[i] = value
            elif name in keywords or value is not None:
                keywords[name] = value
        return args, keywords
