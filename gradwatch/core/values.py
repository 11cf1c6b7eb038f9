"""Policies and detectors as values: equal when their arguments are, written and read as the call that makes them.

A policy or detector is a frozen dataclass. Its fields are its arguments; `__post_init__` checks them:

    @dataclass(frozen=True, repr=False)
    class percentile(Policy):  # Policy, and Detector alike, derive from Value
        q: float = 90.0
        window: int = 1000
        warmup_steps: int = field(default=1, kw_only=True)

        def __post_init__(self) -> None:
            self._store(q=checks.number("q", self.q, least=0, most=100), ...)

        def init(self, num_variables): ...
        def update(self, xp, state, norms): ...

The dataclass brings the signature, `==` and the hash; `copy` and `pickle` need nothing more, for the class is found
by its name. From here come

- `repr`: the call that makes the value again. Positional arguments are always shown, the first and those that have no
  default without their names; keyword-only ones where they differ from the default:
  "percentile(95, window=1000, maximum=3)", "after(100, fixed(1))".
- `name`: the same text. A subclass that is not a dataclass may set another one.
- `parse(text, makers, noun)`: the value that a text means.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, TypeVar, cast

from gradwatch.errors import ConfigError

T = TypeVar("T")


class Value:
    """Base of everything that is made by its arguments; the module says how."""

    @cached_property
    def name(self) -> str:
        """How it was made, for people: "percentile(90, window=1000)". To compare, use `==`."""
        return repr(self)

    def __repr__(self) -> str:
        if not hasattr(self, "__dataclass_fields__"):
            return f"<{type(self).__name__} {vars(self).get('name', '')!r}>"
        return f"{type(self).__name__}({', '.join(self._texts())})"

    def _texts(self) -> list[str]:
        """The arguments as one would type them."""
        texts: list[str] = []
        # the options of a base come first among the fields, and last in the call
        for field in sorted(dataclasses.fields(cast(Any, self)), key=lambda field: bool(field.kw_only)):
            value = getattr(self, field.name)
            if not field.kw_only:
                bare = not texts or field.default is dataclasses.MISSING
                texts.append(literal(value) if bare else f"{field.name}={literal(value)}")
            elif value != field.default:
                texts.append(f"{field.name}={literal(value)}")
        return texts

    def _store(self, **checked: Any) -> None:
        """Put checked arguments in the place of those that were given; while it is made only."""
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    # A dataclass has its own of these, field by field.
    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((type(self), self.name))

    def __setattr__(self, name: str, value: Any) -> None:
        raise dataclasses.FrozenInstanceError(f"{self.name} cannot be changed; make another {type(self).__name__}")


def literal(value: object) -> str:
    """A literal, shortest first: 90 for 90.0, and all digits of any other number."""
    if isinstance(value, float) and value == int(value) and abs(value) < 1e16:
        return str(int(value))
    return repr(value)


def parse(
    text: str,
    makers: Mapping[str, Callable[..., T]],
    noun: str,
    example: str,
    elsewhere: Mapping[str, str] | None = None,
) -> T:
    """The value that a person typed: "median", "percentile(95)", "smallest(percentile(90), fixed(1))".

    Only names of `makers` and literals are taken: nothing is evaluated.

    Args:
      text: a name, or a call with literals and such calls as arguments.
      makers: name -> what makes the value.
      noun: what is wanted, for the error: "policy".
      elsewhere: names that others use -> what to write here instead, for the error.
      example: of a text, for the error.

    Raises:
      ConfigError: it is no such text, or the maker refuses the arguments.
    """
    wanted = f"a {noun} is a name with plain numbers, such as {example}; got {text!r}"
    if not isinstance(text, str):
        raise ConfigError(wanted)
    try:
        node = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ConfigError(wanted) from None

    def make(node: ast.expr) -> T:
        call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
        if not isinstance(call.func, ast.Name):
            raise ConfigError(wanted)
        name = call.func.id
        if name not in makers:
            hint = (elsewhere or {}).get(name)
            if hint is not None:
                raise ConfigError(f"unknown {noun} {name!r}; {hint}")
            raise ConfigError(f"unknown {noun} {name!r}; there are: {', '.join(makers)}; an example is {example}")
        positional = [argument(value) for value in call.args]
        keywords = {str(word.arg): argument(word.value) for word in call.keywords}
        try:
            return makers[name](*positional, **keywords)
        except TypeError as error:
            why = str(error).replace(".__init__()", "()")
            takes = ", ".join(inspect.signature(makers[name]).parameters) or "nothing"
            raise ConfigError(f"{noun} {ast.unparse(node)!r} does not fit: {why}; {name} takes {takes}") from None

    def argument(node: ast.expr) -> Any:
        if isinstance(node, ast.Call) or (isinstance(node, ast.Name) and node.id in makers):
            return make(node)
        try:
            return ast.literal_eval(node)
        except (ValueError, TypeError, RecursionError, MemoryError):
            raise ConfigError(wanted) from None

    return make(node)
