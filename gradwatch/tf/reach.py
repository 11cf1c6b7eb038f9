"""How far a step carries the weights: their norms, the reach of a gradient, the share by which they really moved.

    reach = (1 - momentum) * |w| / learning_rate

is the global gradient norm which, sustained, moves the weights by their own length in a step. Weights move slowly, so
their norms are taken every `EVERY` steps only, and in the same steps the update is measured: |dw| / |w|. Both in the
graph. docs/decisions/0008 has the measurements and the choices.
"""

from __future__ import annotations

import itertools
import math
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from gradwatch.core import norms as _norms
from gradwatch.core.guard import LIMB
from gradwatch.core.xp import HUGE, TINY, Array, Namespace
from gradwatch.tf import compat, devices, distribution, gradients, rates
from gradwatch.tf.fused import ANY_REACH, NO_LOSS, NO_REACH
from gradwatch.tf.ops import TENSORFLOW
from gradwatch.tf.updates import tf_variable

#: Steps between two looks at the weights.
EVERY = 50

#: How many numbers of all variables together are held to see how far they moved. A variable that has more is looked
#: at in evenly spaced places.
HELD = 1 << 16

UNKNOWN = -1.0  # of a norm and a ratio in the state, which holds no NaN

# what the state holds behind the norms and the ratios of the variables
_SCALARS = ("rest", "ratio", "limited_low", "limited_high")


def weight_norm(xp: Namespace, per_variable: Array, least: float) -> Array:
    """|w| as reach and update_limit count it, shape (): max(sqrt(sum |w_i|^2), least), 0 where it is not known.

    A layer that starts at zero, or a model whose weights are all tiny, must be able to grow: it counts as long as its
    matrices would be after Glorot's initialisation, `initial_norm`.

    Args:
      per_variable: norms of the variables, shape [num_variables]; negative or NaN where it is not known.
      least: `initial_norm` of the variables.
    """
    # a comparison with NaN is false
    good = (per_variable >= 0.0) & (per_variable <= HUGE)
    total = _norms.total(xp, xp.where(good, per_variable, 0.0))
    known = (xp.sum(xp.where(good, 0.0, 1.0)) < 0.5) & (xp.maximum(total, least) > TINY) & (total <= HUGE)
    return xp.where(known, xp.maximum(total, least), 0.0)


def initial_norm(shapes: Iterable[Sequence[int]]) -> float:
    """The norm that matrices and kernels of these shapes have when they are new; vectors and scalars count as 0.

    sqrt(sum size * 2 / (fan_in + fan_out)), the variance of Glorot's initialisation times the number of elements.

    Args:
      shapes: of the variables, in Keras' order: (..., inputs, outputs).

    Source: Glorot and Bengio 2010, "Understanding the difficulty of training deep feedforward neural networks", eq. 12.
    """
    matrices = [tuple(shape) for shape in shapes if len(shape) >= 2 and min(shape) > 0]
    # size / (fan_in + fan_out): what a kernel covers is in both, and cancels
    return math.sqrt(sum(2.0 * shape[-2] * shape[-1] / (shape[-2] + shape[-1]) for shape in matrices))


class _Update(NamedTuple):
    """One update under way: what is kept from before it."""

    graph: Any
    present: tuple[int, ...]  # variables with a gradient
    due: tf.Tensor
    before: Any  # of `HELD` places, or all the variables
    parts: Any  # the state so far, not yet written


class Weights:
    """What one monitor knows of the weights it watches, on the device.

    Args:
      limit: the share of |w| that an update may move the weights by; None for no limit.

    Attributes:
      count: how many variables have a gradient; 0 before `build`.
      state: norms, newest ratios and first norms of the variables, then `_SCALARS`; shape [3 * count + 4].
      loss: of the newest step, shape (); `NO_LOSS` where it is not known.
      hurries: says in the graph whether to look in this step although it is not time; None: never.
    """

    def __init__(self, limit: float | None = None) -> None:
        self.limit: float | None = limit
        self.count: int = 0
        self._here = threading.local()  # each replica has a thread of its own
        self._functions: dict[Any, Callable[..., Any]] = {}
        self.hurries: Callable[[], tf.Tensor] | None = None

    def build(self, count: int) -> None:
        """Make the variables, once it is known how many gradients there are."""
        self.count = count
        self._functions.clear()
        self.initial: np.ndarray = np.full(3 * count + len(_SCALARS) + 1, UNKNOWN, np.float32)
        self.initial[3 * count :] = [0.0, UNKNOWN, 0.0, 0.0, NO_LOSS]
        self.state: tf.Variable
        self.loss: tf.Variable
        self.state, self.loss = distribution.in_scope(self._make)

    def _make(self) -> tuple[tf.Variable, tf.Variable]:
        def variable(value: Any, name: str) -> tf.Variable:
            # as the monitor's state
            return tf.Variable(
                value,
                trainable=False,
                name=name,
                dtype=tf.float32,
                aggregation=tf.VariableAggregation.NONE,
                experimental_enable_variable_lifting=False,
            )

        return variable(self.initial[:-1], "gradwatch_weights"), variable(NO_LOSS, "gradwatch_loss")

    # -- before the update --------------------------------------------------------------------------------

    def signals(
        self, variables: Sequence[Any] | None, optimizer: Any, *, present: Sequence[int] = (), follow: bool = False
    ) -> list[Any]:
        """What `FusedGuard.step` wants to know beside the norms, four numbers; looks at the weights where it is time.

        Args:
          variables: of the gradients, in their order; None when they are not known.
          optimizer: who applies the gradients; None when that is not known.
          present: the variables that have a gradient in this step.
          follow: keep what `settle` needs after the update.
        """
        graph = _graph()
        # weakly: a thread must not keep the graph of a training that is over
        self._here.update, self._here.judged = None, None if graph is None else weakref.ref(graph)
        loss = tf.convert_to_tensor(self.loss)
        self.loss.assign(self._pending())
        if variables is None or len(variables) != self.count or not all(map(_is_whole, variables)):
            ratio = tf.convert_to_tensor(self.state)[1 - len(_SCALARS)]
            return [NO_REACH, 1.0, loss, ratio]
        kind, moving, rate = _motion(optimizer, variables)
        moving = tuple(sorted(set(moving) & set(present)))
        total, ratio, update = self._in_function(
            "look", [tf_variable(v) for v in variables], self._look, (moving, follow)
        )
        if follow:
            self._here.update = _Update(_graph(), tuple(present), *update)
        top, rate = {rates.ADAPTIVE: (ANY_REACH, 1.0), rates.LINEAR: (total, rate)}.get(kind or "", (NO_REACH, 1.0))
        return [top, rate, loss, ratio]

    def _look(self, variables: list[Any], moving: tuple[int, ...], follow: bool) -> tuple[Any, ...]:
        norms, ratios, first, (rest, ratio, *limited) = self._parts()
        due = rest < 0.5 if self.hurries is None else (rest < 0.5) | self.hurries()
        places = _places(variables)

        def look() -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            x = [gradients.values(tf.convert_to_tensor(v)) for v in variables]
            found = _lengths(x, places if _predicates_travel() else None)
            return found, tf.where(first < 0.0, found, first), _concat(x, places) if follow else tf.zeros([0])

        def keep() -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            return norms, first, tf.zeros([sum(p.size for p in places) if follow else 0])

        if self.limit is not None:
            norms, first, _ = look()
            before: Any = [tf.identity(tf.convert_to_tensor(v)) for v in variables] if follow else []
        elif _predicates_travel():
            norms, first, before = look()
        else:
            norms, first, before = tf.cond(due, look, keep)
        rest = tf.where(due, EVERY - 1.0, rest - 1.0)
        if not follow:
            self._write(norms, ratios, first, [rest, ratio, *limited])
        total = weight_norm(TENSORFLOW, _some(norms, moving), _initial(variables, moving)) if moving else NO_REACH
        # what follows writes once for both: each op counts in a step of a millisecond
        return total, ratio, (due, before, (norms, ratios, first, [rest, ratio, *limited])) if follow else ()

    def measured(self) -> tf.Tensor:
        """Norms and newest update ratios of the variables, shape [2 * count]; `UNKNOWN` where there is none."""
        return tf.convert_to_tensor(self.state)[: 2 * self.count]

    def _parts(self) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, list[tf.Tensor]]:
        """Norms, ratios and first norms of the variables, and `_SCALARS`."""
        *found, scalars = tf.split(tf.convert_to_tensor(self.state), [*[self.count] * 3, len(_SCALARS)])
        norms, ratios, first = found
        return norms, ratios, first, tf.unstack(scalars)

    def _write(self, norms: tf.Tensor, ratios: tf.Tensor, first: tf.Tensor, scalars: Sequence[tf.Tensor]) -> None:
        self.state.assign(tf.concat([norms, ratios, first, tf.stack(scalars)], 0))

    # -- after the update ---------------------------------------------------------------------------------

    @compat.unseen_by_debuggers()
    def settle(self, variables: Sequence[Any] | None) -> None:
        """The update that `signals(..., follow=True)` began has been made: measure it, hold it within the limit."""
        update = getattr(self._here, "update", None)
        self._here.update = None
        if update is None or update.graph is not _graph():
            return
        held = [tf_variable(v) for v in variables or ()]
        self._in_function("settle", held, self._settle, (update.present,), update.due, update.before, update.parts)

    def _settle(self, variables: list[Any], present: tuple[int, ...], due: tf.Tensor, before: Any, parts: Any) -> None:
        norms, ratios, first, (rest, ratio, low, high) = parts
        places = _places(variables)

        def shares(moved: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            """|dw| / |w| of each variable, and of all that have a gradient: this with the floor of `weight_norm`."""
            whole = weight_norm(TENSORFLOW, _some(norms, present), _initial(variables, present))
            distances = _some(moved, present)
            distance = _norms.total(TENSORFLOW, tf.maximum(distances, 0.0))
            known = (whole > 0.0) & (distance <= HUGE) & (tf.reduce_min(distances) >= 0.0)
            good = (norms > TINY) & (moved >= 0.0)
            share = tf.where(known, distance / tf.where(known, whole, 1.0), UNKNOWN)
            return tf.where(good, moved / tf.where(good, norms, 1.0), UNKNOWN), share

        if self.limit is None:

            def look() -> tuple[tf.Tensor, tf.Tensor]:
                now = _concat([gradients.values(tf.convert_to_tensor(v)) for v in variables], places)
                return shares(_lengths(tf.split(now - before, [p.size for p in places]), places, picked=True))

            ratios, ratio = look() if _predicates_travel() else tf.cond(due, look, lambda: (ratios, ratio))
        else:
            after = [tf.convert_to_tensor(v) for v in variables]
            ratios, ratio = shares(_lengths([gradients.values(a - b) for a, b in zip(after, before)]))
            # an update that is NaN or Inf has no length: on_nonfinite is for that
            over = ratio > self.limit
            factor = tf.where(over, self.limit / tf.where(over, ratio, 1.0), 1.0)
            for v, b, a in zip(variables, before, after):
                v.assign(tf.where(over, b + tf.cast(factor, a.dtype) * (a - b), a))
            low = low + tf.cast(over, tf.float32)
            carry = tf.cast(low >= LIMB, tf.float32)
            low, high = low - carry * LIMB, high + carry
        self._write(norms, ratios, first, [rest, ratio, low, high])

    # -- the loss -------------------------------------------------------------------------------------------

    @compat.unseen_by_debuggers()
    def tell(self, loss: Any) -> None:
        """The step that was judged last had this loss: the next one gets it as `norms.loss`."""
        if self.count and loss is not None:
            self.loss.assign(_code(loss, getattr(self.loss, "distribute_strategy", None)))

    def expect(self, loss: Any) -> None:
        """The step that is judged next, here, has this loss: the one after it gets it as `norms.loss`."""
        self._here.loss = (_graph(), loss)

    def forget(self) -> None:
        """No step that is judged from now on has the loss that was expected."""
        self._here.loss = None

    def report(self, loss: Any) -> None:
        """This step's loss, said before or after it is judged."""
        judged = getattr(self._here, "judged", None)
        if tf.executing_eagerly() or (judged is not None and judged() is _graph()):
            self.tell(loss)
        else:
            self.expect(loss)

    def _pending(self) -> tf.Tensor:
        graph, loss = getattr(self._here, "loss", None) or (None, None)
        self.forget()
        here = _graph()
        while here is not None and here is not graph:
            here = compat.outer_graph(here)
        return tf.constant(NO_LOSS) if loss is None or here is not graph else _code(loss)

    # -- from the host ----------------------------------------------------------------------------------------

    def read(self, paths: Sequence[str]) -> dict[str, Any]:
        """The fields of a `Snapshot` that are known here."""
        if not self.count:
            return {}
        vector = tf.convert_to_tensor(self.state).numpy()
        scalars = dict(zip(_SCALARS, vector[3 * self.count :].tolist()))
        norms, ratios, first = (zip(paths, part.tolist()) for part in np.split(vector[: 3 * self.count], 3))
        return {
            "update_ratio": None if scalars["ratio"] < 0.0 else scalars["ratio"],
            "layer_update_ratio": {path: x for path, x in ratios if x >= 0.0},
            "layer_weight_norms": {path: x for path, x in norms if x >= 0.0},
            "layer_first_weight_norms": {path: x for path, x in first if x >= 0.0},
            "limited_updates": int(scalars["limited_low"]) + int(scalars["limited_high"]) * int(LIMB),
        }

    def pack(self) -> tf.Tensor:
        """All of it, to be saved beside the monitor's state."""
        return tf.concat([tf.convert_to_tensor(self.state), tf.convert_to_tensor(self.loss)[None]], 0)

    def variables(self) -> list[tf.Variable]:
        """What is kept on the device."""
        return [self.state, self.loss] if self.count else []

    def rewound(self, packed: np.ndarray) -> np.ndarray:
        """What `pack` gave then, with the updates that were limited since."""
        packed, last = packed.copy(), len(packed) - 1  # behind the scalars stands the loss
        limited = slice(last - len(_SCALARS) + _SCALARS.index("limited_low"), last)
        packed[limited] = tf.convert_to_tensor(self.state).numpy()[limited]
        return packed

    def put(self, packed: np.ndarray) -> None:
        with tf.init_scope():
            self.state.assign(packed[:-1])
            self.loss.assign(packed[-1])

    # -- eager mode -------------------------------------------------------------------------------------------

    def _in_function(
        self, name: str, variables: list[Any], run: Callable[..., Any], fixed: tuple[Any, ...], *given: Any
    ) -> Any:
        """`run(variables, *fixed, *given)`, in eager mode as one function instead of dozens of ops."""
        if not tf.executing_eagerly() or distribution.replicas() > 1:
            return run(variables, *fixed, *given)
        function = self._functions.get((name, fixed))
        if function is None:
            # the variables are arguments: what is captured would live as long as the monitor
            function = tf.function(lambda variables, *given: run(variables, *fixed, *given), autograph=False)
            self._functions[name, fixed] = function
        return function(variables, *given)


def _predicates_travel() -> bool:
    """Whether asking on the device whether it is time would make the host wait for it at each step."""
    return devices.has_accelerator()


def _initial(variables: Sequence[Any], places: Sequence[int]) -> float:
    return initial_norm(variables[i].shape.as_list() for i in places)


def _some(x: tf.Tensor, places: Sequence[int]) -> tf.Tensor:
    return x if len(places) == x.shape[0] else tf.gather(x, tf.constant(places, tf.int32))


def _motion(optimizer: Any, variables: Sequence[Any]) -> tuple[str | None, Sequence[int], tf.Tensor | None]:
    """(kind, variables that a linear optimizer moves, learning_rate / (1 - momentum)) of this step.

    In a MultiOptimizer each part has a rate of its own: the largest one of its linear parts counts, over the weights
    that these move, so that no gradient of norm `reach` moves them by more than their length. Linear parts decide
    before adaptive ones, and those before the rest.
    """
    if optimizer is None:
        return None, (), None
    found = [(rates.row(part.optimizer).kind, part) for part in rates.parts(optimizer, variables)]
    linear = [part for kind, part in found if kind == rates.LINEAR]
    if not linear:
        kinds = [kind for kind, _ in found]
        return (rates.ADAPTIVE if rates.ADAPTIVE in kinds else None), (), None
    speeds = [rates.effective_rate(part.optimizer) for part in linear]
    if any(speed is None for speed in speeds):
        return None, (), None
    rate = speeds[0] if len(speeds) == 1 else tf.reduce_max(tf.stack(speeds))
    return rates.LINEAR, [i for part in linear for i in part.variables], rate


class _Place(NamedTuple):
    """Which numbers of a variable are looked at: every `stride`-th, `size` of them, of `of`."""

    size: int
    stride: int
    of: int


def _places(variables: Sequence[Any]) -> list[_Place]:
    """Where to look: all of the small variables, evenly spaced places of the large ones, `HELD` together."""
    sizes = [v.shape.num_elements() for v in variables]
    share, left = HELD // max(len(sizes), 1), HELD
    for i, size in enumerate(sorted(sizes)):
        share = max(left // (len(sizes) - i), 64)
        left -= min(size, share)
    return [_place(size, share) for size in sizes]


def _place(size: int, share: int) -> _Place:
    if size <= share:
        return _Place(size, 1, size)
    # a stride with a common divisor would stay in some columns of a matrix
    stride = next(s for s in itertools.count(-(-size // share)) if math.gcd(s, size) == 1)
    return _Place(-(-size // stride), stride, size)


def _pick(x: tf.Tensor, place: _Place) -> tf.Tensor:
    flat = tf.reshape(x, [-1])
    return flat if place.stride == 1 else flat[:: place.stride]


def _concat(arrays: Sequence[tf.Tensor], places: Sequence[_Place]) -> tf.Tensor:
    return tf.concat([tf.cast(_pick(x, p), tf.float32) for x, p in zip(arrays, places)], 0)


def _lengths(arrays: Sequence[tf.Tensor], places: Sequence[_Place] | None = None, *, picked: bool = False) -> tf.Tensor:
    """Norm of each array, shape [len(arrays)], exact or estimated from its places; `UNKNOWN` where not finite."""
    if places is not None and not picked:
        arrays = [_pick(x, p) for x, p in zip(arrays, places)]
    # few ops a variable: a model has hundreds of them
    squares = 2.0 * tf.stack([tf.cast(tf.nn.l2_loss(x), tf.float32) for x in arrays])
    if places is not None:
        squares = squares * tf.constant([p.of / max(p.size, 1) for p in places], tf.float32)
    # a comparison with NaN is false
    good = squares <= 3e38
    return tf.where(good, tf.sqrt(tf.where(good, squares, 0.0)), UNKNOWN)


def _code(loss: Any, strategy: Any = None) -> tf.Tensor:
    """A loss as the finite number that stands for it; of several replicas the mean, so that all decide alike."""
    if isinstance(loss, tf.distribute.DistributedValues):
        loss = strategy.reduce(tf.distribute.ReduceOp.MEAN, loss, axis=None)
    x = tf.cast(tf.reshape(tf.convert_to_tensor(loss), []), tf.float32)
    if distribution.replicas() > 1:
        x = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.MEAN, x)
    bounded = tf.where(x > HUGE, HUGE, tf.where(x < -HUGE, -HUGE, x))
    return tf.where(tf.math.is_nan(bounded), NO_LOSS, bounded)


def _graph() -> Any:
    return None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()


def _is_whole(variable: Any) -> bool:
    """Whether every replica can read all of this variable."""
    held = tf_variable(variable)
    readable = isinstance(held, tf.Variable) and held.shape.is_fully_defined()
    return readable and getattr(held, "synchronization", None) != tf.VariableSynchronization.ON_READ
