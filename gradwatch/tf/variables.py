"""The set of variables that one monitor watches: what they are called, and whether those of a step are the same."""

from __future__ import annotations

import json
import re
import weakref
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from gradwatch.errors import ConfigError, LayoutError
from gradwatch.tf.gradients import Gradient

Shape = tuple[int | None, ...]  # (None,) of an unknown rank


def check_gradients(grads: Any) -> None:
    """ConfigError where `grads` is not a list of gradients and Nones."""
    if not isinstance(grads, (list, tuple)):
        raise ConfigError(
            f"grads must be a list with a gradient for each variable, got {type(grads).__name__}; "
            "give monitor.clip what tape.gradient returned for a list of variables"
        )
    for i, gradient in enumerate(grads):
        if isinstance(gradient, (list, tuple)):
            raise ConfigError(
                f"grads must be gradients, got a {type(gradient).__name__} at number {i}; give the gradients alone, "
                "and zip what monitor.clip returns with the variables afterwards"
            )
        dtype = getattr(gradient, "dtype", None)
        if dtype is not None and not (tf.as_dtype(dtype).is_floating or tf.as_dtype(dtype).is_complex):
            raise ConfigError(f"gradients must be floating or complex, got {tf.as_dtype(dtype).name} at number {i}")


def listed(variables: Any, count: int) -> list[Any] | None:
    """Any iterable of variables as a list of `count`, None as None.

    Raises:
      ConfigError: it is no iterable, or of another length.
    """
    if variables is None:
        return None
    try:
        found = list(variables)
    except TypeError as error:
        raise ConfigError(
            f"variables must be a list with the variable of each gradient, got {type(variables).__name__}"
        ) from error
    if len(found) != count:
        raise ConfigError(f"variables must be one for each gradient, got {len(found)} for {count}")
    return found


class VariableSet:
    """Paths, shapes and identities of the variables of a monitor's first step.

    Within a process a variable is the same only if it is the same object, whatever it is called. Those of another
    process (a restored checkpoint) are matched by path. Held weakly: watching keeps no model alive.

    Args:
      gradients: of the first step, without None.
      variables: theirs, or None where they were not given.
    """

    def __init__(self, gradients: Sequence[Gradient], variables: Sequence[Any] | None) -> None:
        self.shapes: tuple[Shape, ...] = tuple(map(shape_of, gradients))
        # of slices the gradient does not say how many rows there are
        self.whole_shapes: tuple[Shape, ...] = tuple(
            _shape_of_variable(v) or shape for v, shape in zip(variables or [None] * len(self.shapes), self.shapes)
        )
        self.sparse: tuple[bool, ...] = tuple(_is_sparse(gradient) for gradient in gradients)
        self.named: bool = variables is not None
        self.paths: tuple[str, ...] = _paths(variables if variables is not None else [None] * len(gradients))
        self._references = _references(variables)

    def __len__(self) -> int:
        return len(self.paths)

    def fingerprint(self) -> str:
        """Paths and shapes as JSON; equal texts are equal sets."""
        return json.dumps([[path, shape] for path, shape in zip(self.paths, self.shapes)])

    def check(
        self, monitor: str, gradients: Sequence[Gradient], variables: Sequence[Any] | None, *, same_optimizer: bool
    ) -> None:
        """LayoutError where a later step has others.

        Args:
          same_optimizer: whether it is applied by the optimizer that applied the step before.
        """
        difference = self._difference(gradients, variables)
        if difference:
            raise LayoutError(
                f"monitor {monitor!r} watches {len(self)} gradients ({', '.join(self.paths[:3])}, ...) and was given "
                f"{len(gradients)} others, first difference: {difference}; {self._advice(variables, same_optimizer)}"
            )
        if self._references is None:
            self._references = _references(variables)

    def fits(self, gradients: Sequence[Gradient], variables: Sequence[Any] | None) -> bool:
        """Whether these are of our variables."""
        return not self._difference(gradients, variables)

    def alive(self) -> list[Any]:
        """The variables themselves; [] where they are not known, or one of them is gone."""
        found = [None if reference is None else reference() for reference in self._references or ()]
        return found if all(isinstance(one, tf.Variable) for one in found) else []

    def forget_identities(self) -> None:
        """From now on variables of the same paths are the same: those of the next step are taken for ours."""
        self._references = None

    def _advice(self, variables: Sequence[Any] | None, same_optimizer: bool) -> str:
        """What to do about variables that are not ours, in the case that it looks like."""
        if variables is None or not self.named:
            return (
                "call monitor.clip with variables=, so that they can be told apart, use one Monitor for each list of "
                "gradients, and monitor.reset() where new ones replace the old ones"
            )
        common = self._references is not None and any(
            reference is not None and any(reference() is _resource(variable) for variable in variables)
            for reference in self._references
        )
        if common:
            return (
                "some of them are the same: where layers were frozen or unfrozen, call monitor.reset() before the next "
                "step; where one optimizer is applied to parts of its variables, let it know all of them first: "
                "optimizer.build(all_variables)"
            )
        if same_optimizer:
            return (
                "one optimizer is applied to both: if they belong to one model, let it know all of them first with "
                "optimizer.build(all_variables); if the new ones replace the old ones, call monitor.reset()"
            )
        if self.paths == _paths(variables):
            return (
                "it is another model of the same names: where it replaces the old one (another fold, another trial), "
                "call monitor.reset() before its first step; where both train, give each a monitor of its own, as "
                "watch(optimizer={'first': first_optimizer, 'second': second_optimizer}) does"
            )
        return (
            "another optimizer applies them: where both train, give each a monitor of its own, as "
            "watch(optimizer={'generator': g_optimizer, 'critic': c_optimizer}) does; where the new variables replace "
            "the old ones (another model), call monitor.reset()"
        )

    def _difference(self, gradients: Sequence[Gradient], variables: Sequence[Any] | None) -> str:
        shapes = tuple(map(shape_of, gradients))
        for i, (x, y) in enumerate(zip(self.shapes, shapes)):
            if not _compatible(x, y):
                return f"number {i} had shape {x} and has {y}"
        if len(self.shapes) != len(shapes):
            return f"{len(self.shapes)} gradients before, {len(shapes)} now"
        if not self.named or variables is None:
            return ""
        if self._references is not None and all(
            reference is not None and reference() is _resource(variable)
            for reference, variable in zip(self._references, variables)
        ):
            return ""  # as a rule; their paths are texts that would be made anew in each eager step
        references = self._references or [None] * len(self)
        for i, (path, reference, variable, now) in enumerate(zip(self.paths, references, variables, _paths(variables))):
            if reference is not None and reference() is _resource(variable):
                continue
            if path != now:
                return f"number {i} was of {path} and is of {now}"
            if reference is not None:
                return f"number {i} is another variable of the same name, {path}"
        return ""


def first_difference(saved: str, ours: str) -> str:
    """In words, where two fingerprints of variables differ; "" where they do not.

    Keras numbers its layers through a whole process: `dense_7` here may be `dense` in the process that saved.
    So the numbers are compared by their order alone.
    """
    before, now = json.loads(saved), json.loads(ours)
    renumbered = [_renumbered([path for path, _ in rows]) for rows in (before, now)]
    for i, ((path, shape), (our_path, our_shape), x, y) in enumerate(zip(before, now, *renumbered)):
        if x != y:
            return f"variable {i} is {path} there and {our_path} here"
        if not _compatible(tuple(shape), tuple(our_shape)):
            return f"variable {i}, {our_path}, has shape {tuple(shape)} there and {tuple(our_shape)} here"
    return "" if len(before) == len(now) else f"{len(before)} variables there, {len(now)} here"


def _renumbered(paths: Sequence[str]) -> list[str]:
    """The paths with the numbers of their parts counted anew: dense_7/a, dense_9/a -> dense_0/a, dense_1/a."""
    seen: dict[str, list[str]] = {}

    def count(match: re.Match[str]) -> str:
        base, number = match[1], match[2]
        numbers = seen.setdefault(base, [])
        if number not in numbers:
            numbers.append(number)
        return f"{base}_{numbers.index(number)}"

    # a part of a path: a name, then perhaps a number
    return [re.sub(r"([^/]*?)((?:_\d+)?)(?=/|$)", lambda m: count(m) if m[0] else "", path) for path in paths]


def shape_of(gradient: Gradient) -> Shape:
    shape = gradient.shape
    if shape.rank is None:
        return (None,)
    dims = tuple(shape.as_list())
    # the rows of IndexedSlices say nothing about the variable when its dense shape is unknown
    return (None, *dims[1:]) if isinstance(gradient, tf.IndexedSlices) and dims else dims


def _shape_of_variable(variable: Any) -> Shape | None:
    shape = getattr(variable, "shape", None)
    return None if shape is None else tuple(shape)


def _is_sparse(gradient: Gradient) -> bool:
    # a gradient of None came as slices of no rows
    return isinstance(gradient, tf.IndexedSlices) and gradient.values.shape[:1] != [0]


def _compatible(a: Shape, b: Shape) -> bool:
    if a == (None,) or b == (None,):
        return True
    return len(a) == len(b) and all(x is None or y is None or x == y for x, y in zip(a, b))


def _resource(variable: Any) -> Any:
    """What Keras' variables and TensorFlow's have in common: the latter."""
    value = getattr(variable, "value", variable)
    return variable if callable(value) else value


def _references(variables: Sequence[Any] | None) -> list[weakref.ref[Any] | None] | None:
    return None if variables is None else [_reference(_resource(variable)) for variable in variables]


def _reference(variable: Any) -> weakref.ref[Any] | None:
    try:
        return weakref.ref(variable)
    except TypeError:  # a name in place of a variable
        return None


def _path(variable: Any, index: int) -> str:
    found = getattr(variable, "path", None) or getattr(variable, "name", None) or f"gradient_{index}"
    # a tf.Variable under a strategy is called "w/replica_1:0" in the second replica
    return re.sub(r"/replica_\d+(?=:|$)", "", str(found))


def _paths(variables: Sequence[Any]) -> tuple[str, ...]:
    """A path for each, made unique: "w", "w#2"."""
    seen: dict[str, int] = {}
    out = []
    for i, variable in enumerate(variables):
        path = _path(variable, i)
        seen[path] = seen.get(path, 0) + 1
        out.append(path if seen[path] == 1 else f"{path}#{seen[path]}")
    return tuple(out)
