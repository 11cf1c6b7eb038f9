"""The text of a program for XLA: values, and a writer that puts down a line of StableHLO for each operation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

Shape: TypeAlias = tuple[int, ...]

FLOAT, BOOL = "f32", "i1"

# XLA for the CPU makes one kernel of a call so marked; whoever does not know the marks computes the same.
_ONE_KERNEL = '{mhlo.frontend_attributes = {inlineable = "false", xla_cpu_small_call = "true"}}'


class Unwritable(Exception):
    """What is asked for is not in the namespace."""


class Value:
    """An array of float32 or of booleans in the program."""

    __array_ufunc__ = None  # numpy leaves the operators to us

    def __init__(self, writer: Writer, name: str, shape: Shape, kind: str) -> None:
        self.shape: Shape = shape
        self.kind: str = kind
        self.name: str = name
        self._writer = writer

    @property
    def type(self) -> str:
        return _type(self.shape, self.kind)

    def __add__(self, other: Any) -> Value:
        return self._writer.numbers("add", self, other)

    def __radd__(self, other: Any) -> Value:
        return self._writer.numbers("add", other, self)

    def __sub__(self, other: Any) -> Value:
        return self._writer.numbers("subtract", self, other)

    def __rsub__(self, other: Any) -> Value:
        return self._writer.numbers("subtract", other, self)

    def __mul__(self, other: Any) -> Value:
        return self._writer.numbers("multiply", self, other)

    def __rmul__(self, other: Any) -> Value:
        return self._writer.numbers("multiply", other, self)

    def __truediv__(self, other: Any) -> Value:
        return self._writer.numbers("divide", self, other)

    def __rtruediv__(self, other: Any) -> Value:
        return self._writer.numbers("divide", other, self)

    def __neg__(self) -> Value:
        return self._writer.unary("negate", self)

    def __abs__(self) -> Value:
        return self._writer.unary("abs", self)

    def __lt__(self, other: Any) -> Value:
        return self._writer.compared("LT", self, other)

    def __le__(self, other: Any) -> Value:
        return self._writer.compared("LE", self, other)

    def __gt__(self, other: Any) -> Value:
        return self._writer.compared("GT", self, other)

    def __ge__(self, other: Any) -> Value:
        return self._writer.compared("GE", self, other)

    def __eq__(self, other: Any) -> Value:  # type: ignore[override]
        return self._writer.compared("EQ", self, other)

    def __ne__(self, other: Any) -> Value:  # type: ignore[override]
        return self._writer.compared("NE", self, other)

    def __hash__(self) -> int:
        return id(self)

    def __and__(self, other: Any) -> Value:
        return self._writer.truths("and", self, other)

    def __rand__(self, other: Any) -> Value:
        return self._writer.truths("and", other, self)

    def __or__(self, other: Any) -> Value:
        return self._writer.truths("or", self, other)

    def __ror__(self, other: Any) -> Value:
        return self._writer.truths("or", other, self)

    def __invert__(self) -> Value:
        return self._writer.write("not", [self._writer.value(self, BOOL)], self.shape, BOOL)

    def __bool__(self) -> bool:
        raise Unwritable("whether a value is true is known when the program runs only")

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise Unwritable("what a value is is known when the program runs only")

    def __getitem__(self, place: Any) -> Value:
        if len(self.shape) != 1 or not isinstance(place, (int, np.integer, slice)):
            raise Unwritable(f"[{place}] of an array of shape {self.shape}")
        [count] = self.shape
        if isinstance(place, slice):
            first, last, step = place.indices(count)
            if step != 1:
                raise Unwritable(f"every {step}th number")
            return self._writer.part(self, first, max(first, last), (max(last - first, 0),))
        if not -count <= place < count:
            raise Unwritable(f"[{place}] of {count} numbers")
        first = int(place) % count
        return self._writer.part(self, first, first + 1, ())


class Writer:
    """Writes the lines of one program.

    Args:
      count: numbers in the vector of float32 that it is given.

    Attributes:
      given: that vector.
    """

    def __init__(self, count: int) -> None:
        self._lines: list[str] = []
        self._constants: dict[Any, Value] = {}
        self.given: Value = Value(self, "%given", (count,), FLOAT)

    def write(
        self, operation: str, operands: Sequence[Value], shape: Shape, kind: str = FLOAT, more: str = ""
    ) -> Value:
        """One operation; `more` is what stands between its operands and its type."""
        result = Value(self, f"%{len(self._lines)}", shape, kind)
        names, types = (", ".join(getattr(x, what) for x in operands) for what in ("name", "type"))
        self._lines.append(f'{result.name} = "stablehlo.{operation}"({names}){more} : ({types}) -> {result.type}')
        return result

    def value(self, x: Any, kind: str = FLOAT) -> Value:
        """A value of this kind; numbers and numpy's arrays become constants."""
        if isinstance(x, Value):
            if x.kind != kind:
                raise Unwritable(f"{x.kind} in the place of {kind}")
            return x
        if not isinstance(x, (bool, int, float, np.number, np.bool_, np.ndarray)):
            raise Unwritable(f"{type(x).__name__} in the place of a number")
        with np.errstate(over="ignore"):
            array = np.asarray(x, np.float32 if kind == FLOAT else np.bool_)
        key = (array.tobytes(), array.shape, kind)
        if key not in self._constants:
            text = _literal(array)
            more = f" {{value = dense<{text}> : {_type(array.shape, kind)}}}"
            self._constants[key] = self.write("constant", [], array.shape, kind, more)
        return self._constants[key]

    def numbers(self, operation: str, *operands: Any) -> Value:
        """An operation on numbers, element by element."""
        values, shape = self._alike([self.value(x) for x in operands])
        return self.write(operation, values, shape)

    def unary(self, operation: str, x: Any) -> Value:
        return self.numbers(operation, x)

    def truths(self, operation: str, *operands: Any) -> Value:
        """An operation on booleans, element by element."""
        values, shape = self._alike([self.value(x, BOOL) for x in operands])
        return self.write(operation, values, shape, BOOL)

    def compared(self, direction: str, x: Any, y: Any) -> Value:
        operands, shape = self._alike([self.value(x), self.value(y)])
        return self.write(
            "compare",
            operands,
            shape,
            BOOL,
            f" {{comparison_direction = #stablehlo<comparison_direction {direction}>}}",
        )

    def select(self, condition: Any, yes: Any, no: Any) -> Value:
        condition = self.value(condition, BOOL)
        (yes, no), shape = self._alike([self.value(yes), self.value(no)], condition.shape)
        if condition.shape:
            condition = self._spread(condition, shape)
        return self.write("select", [condition, yes, no], shape)

    def reduced(self, operation: str, first: float, x: Any) -> Value:
        """All numbers of an array as one, such as their sum."""
        x = self.value(x)
        if not x.shape:
            return x
        pair, end = (f'"stablehlo.{name}"(%{what}) : ' for name, what in ((operation, "x, %y"), ("return", "z")))
        one = _type((), FLOAT)
        region = f" ({{ ^bb0(%x: {one}, %y: {one}): %z = {pair}({one}, {one}) -> {one} {end}({one}) -> () }})"
        dimensions = ", ".join(map(str, range(len(x.shape))))
        return self.write(
            "reduce", [x, self.value(first)], (), more=f"{region} {{dimensions = array<i64: {dimensions}>}}"
        )

    def part(self, x: Value, first: int, last: int, shape: Shape) -> Value:
        """The numbers from `first` to before `last` of a vector, as an array of this shape."""
        bounds = f"start_indices = array<i64: {first}>, limit_indices = array<i64: {last}>, strides = array<i64: 1>"
        cut = x if x.shape == (last - first,) else self.write("slice", [x], (last - first,), x.kind, f" {{{bounds}}}")
        return self.reshaped(cut, shape)

    def reshaped(self, x: Any, shape: Shape) -> Value:
        x = x if isinstance(x, Value) else self.value(x)
        return x if x.shape == shape else self.write("reshape", [x], shape, x.kind)

    def joined(self, xs: Sequence[Any]) -> Value:
        """Arrays of one rank end to end."""
        xs = [self.value(x) for x in xs]
        shape = (sum(x.shape[0] for x in xs), *xs[0].shape[1:])
        return xs[0] if len(xs) == 1 else self.write("concatenate", xs, shape, more=" {dimension = 0 : i64}")

    def selected(self, values: Sequence[Value]) -> Value:
        """Scalars side by side, by a tree of selects by the bits of the place: less to compile than a concatenation."""
        count, bit = len(values), 0
        while len(values) > 1:
            odd = np.arange(count) >> bit & 1 > 0
            pairs = [self.select(odd, yes, self._spread(no, (count,))) for no, yes in zip(values[::2], values[1::2])]
            values = [*pairs, *values[len(pairs) * 2 :]]
            bit += 1
        return values[0]

    def text(self, result: Value) -> str:
        """The module, of which this is the result.

        One argument alone, which is surely used: XLA for the CPU ends the process at a call with one that is not.
        """
        given, made = self.given.type, result.type
        return "\n".join(
            [
                "module {",
                f"func.func private @body(%given: {given}) -> {made} {{",
                *self._lines,
                f"return {result.name} : {made}",
                "}",
                f"func.func public @main(%given: {given}) -> {made} {{",
                f"%made = func.call @body(%given) {_ONE_KERNEL} : ({given}) -> {made}",
                f"return %made : {made}",
                "}",
                "}",
            ]
        )

    def _alike(self, values: Sequence[Value], *others: Shape) -> tuple[list[Value], Shape]:
        """The values in the shape that they have together, as numpy broadcasts them."""
        shapes = {x.shape for x in values} | set(others)
        if len(shapes) == 1:
            return list(values), values[0].shape
        shape = np.broadcast_shapes(*shapes)
        return [self._spread(x, shape) for x in values], shape

    def _spread(self, x: Value, shape: Shape) -> Value:
        if x.shape == shape:
            return x
        # a dimension of length 1 may grow
        places = ", ".join(str(len(shape) - len(x.shape) + i) for i in range(len(x.shape)))
        dimensions = f"array<i64: {places}>" if places else "array<i64>"
        return self.write("broadcast_in_dim", [x], shape, x.kind, f" {{broadcast_dimensions = {dimensions}}}")


def _type(shape: Shape, kind: str) -> str:
    return f"tensor<{''.join(f'{n}x' for n in shape)}{kind}>"


def _literal(array: np.ndarray) -> str:
    if array.ndim:
        return f"[{', '.join(map(_literal, array))}]"
    if array.dtype == np.bool_:
        return "true" if array else "false"
    # the bits, where a decimal number has none
    return f"{float(array):.9e}" if np.isfinite(array) else f"0x{int(array.view(np.uint32)):08X}"
