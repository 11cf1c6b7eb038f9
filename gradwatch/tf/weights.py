"""The weights of a monitor: their norms, and the share by which they really moved, in the graph.

Weights move slowly, so their norms are taken every `EVERY` steps only, and in the same steps the update is measured:
|dw| / |w|. docs/decisions/0008 has the measurements and the choices.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from gradwatch.core import norms as _norms
from gradwatch.core.guard import LIMB
from gradwatch.core.xp import HUGE, TINY
from gradwatch.tf import devices, distribution, gradients, rates
from gradwatch.tf.fused import ANY_REACH, NO_REACH
from gradwatch.tf.hidden import hidden_from_debuggers
from gradwatch.tf.once import numbers, once_for_all
from gradwatch.tf.ops import TENSORFLOW
from gradwatch.tf.places import UNKNOWN, concat, places_of, roots, squares, squares_of
from gradwatch.tf.reach import initial_norm, motion, weight_norm
from gradwatch.tf.stablehlo import in_one_kernel
from gradwatch.tf.updates import tf_variable

#: Steps between two looks at the weights.
EVERY = 50

#: What the state holds behind the norms, the ratios and the first norms of the variables: steps until the next look,
#: the newest ratio of all, the norm of all as `weight_norm` counts it, and two limbs of the number of limited updates.
SCALARS = ("rest", "ratio", "total", "limited_low", "limited_high")

#: In place of the kind of an optimizer where it or the variables are not known.
UNSEEN = ""


class Look(NamedTuple):
    """What a step is to do about the weights; equal ones can share a trace."""

    kind: str  # of the optimizer, `rates.LINEAR` and its like; "" where it, or its variables, are not known
    moving: tuple[int, ...]  # variables with a gradient that a linear optimizer moves
    follow: bool  # keep what `settle` needs
    due: bool | None  # whether it is time to look; None: that is asked in the graph

    @property
    def reads(self) -> bool:
        """Whether it needs the variables, and not their shapes alone."""
        return bool(self.kind) and self.due is not False


class _Update(NamedTuple):
    """One update under way: what is kept from before it."""

    graph: Any
    present: tuple[int, ...]  # variables with a gradient
    due: tf.Tensor
    before: Any  # of `HELD` places, or all the variables
    state: tf.Tensor  # so far, not yet written


class Weights:
    """What one monitor knows of the weights it watches, on the device.

    Args:
      limit: the share of |w| that an update may move the weights by; None for no limit.

    Attributes:
      count: how many variables have a gradient; 0 before `build`.
      state: norms, newest ratios and first norms of the variables, then `SCALARS`; shape [3 * count + 5].
      hurries: says in the graph whether to look in this step although it is not time; None: never.
    """

    def __init__(self, limit: float | None = None) -> None:
        self.limit: float | None = limit
        self.count: int = 0
        self._here = threading.local()  # each replica has a thread of its own
        self._settling: dict[tuple[int, ...], Callable[..., Any]] = {}  # in eager mode
        self.hurries: Callable[[], tf.Tensor] | None = None

    def build(self, count: int) -> None:
        """Make the state, once it is known how many gradients there are."""
        self.count = count
        self._settling.clear()
        self.initial: np.ndarray = np.full(3 * count + len(SCALARS), UNKNOWN, np.float32)
        self.initial[3 * count :] = [0.0, UNKNOWN, 0.0, 0.0, 0.0]
        self.state: tf.Variable = distribution.in_scope(
            lambda: distribution.state_variable(self.initial, "gradwatch_weights")
        )

    # -- before the update --------------------------------------------------------------------------------

    def plan(
        self, variables: Sequence[Any] | None, optimizer: Any, *, present: Sequence[int] = (), follow: bool = False
    ) -> tuple[Look, Any]:
        """(what `look` is to do in this step, learning_rate / (1 - momentum) as `FusedGuard.step` takes it).

        Args:
          variables: of the gradients, in their order; None when they are not known.
          optimizer: who applies the gradients; None when that is not known.
          present: the variables that have a gradient in this step.
          follow: keep what `settle` needs after the update.
        """
        self._here.update = None
        if variables is None or len(variables) != self.count or not all(map(_is_whole, variables)):
            return Look(UNSEEN, (), follow, None), 1.0
        kind, moving, rate = motion(optimizer, variables)
        moving = tuple(sorted(set(moving) & set(present)))
        return Look(kind or rates.NEITHER, moving, follow, self._due()), rate if kind == rates.LINEAR else 1.0

    def _due(self) -> bool | None:
        """Whether it is time to look, where the host can tell without waiting for a device."""
        if not tf.executing_eagerly() or distribution.replicas() > 1 or self.limit is not None or _predicates_travel():
            return None
        rest = tf.convert_to_tensor(self.state).numpy()[3 * self.count + SCALARS.index("rest")]
        return bool(rest < 0.5 or (self.hurries is not None and self.hurries().numpy()))

    def look(
        self, plan: Look, variables: Sequence[Any], *, scales: bool = False
    ) -> tuple[Any, tf.Tensor, tuple[Any, ...]]:
        """(norm of the weights, newest update ratio, what `follow` takes), the former as `FusedGuard.step` takes them.

        Args:
          plan: what `plan` said.
          variables: as `plan` was given them; where it does not read them, anything of their shapes.
          scales: `looked_first` comes next.
        """
        if plan.kind == UNSEEN:
            return NO_REACH, self._scalar(tf.convert_to_tensor(self.state), "ratio"), ()
        total, norms, ratio, update = (self._rest if plan.due is False else self._look)(variables, plan.follow)
        top = {rates.ADAPTIVE: ANY_REACH, rates.LINEAR: self._moved(total, norms, variables, plan.moving)}
        reached = top.get(plan.kind, NO_REACH)
        if scales and devices.compiled_by_xla():  # always true: `looked_first` needs what follows from the look
            reached = tf.where(total > -HUGE, reached, NO_REACH)
        return reached, ratio, update

    def follow(self, present: Sequence[int], update: tuple[Any, ...]) -> None:
        """The update comes next, and `settle` after it.

        Args:
          present: the variables that have a gradient in this step.
          update: what `look` returned; () for nothing to be done.
        """
        if update:
            self._here.update = _Update(_graph(), tuple(present), *update)

    def _rest(self, variables: Sequence[Any], follow: bool) -> tuple[Any, ...]:
        """`_look` where it is known that it is not time."""
        state = tf.convert_to_tensor(self.state)
        norms, _, _, (_, ratio, total, *_) = _split(state)
        one = np.zeros(self.initial.size, np.float32)
        one[3 * self.count + SCALARS.index("rest")] = 1.0
        self.state.assign(state - one)
        return total, norms, ratio, ()

    def _look(self, variables: Sequence[Any], follow: bool) -> tuple[Any, ...]:
        state = tf.convert_to_tensor(self.state)
        hurried = None if self.hurries is None else self.hurries()
        hold = follow and self.limit is None
        everything = self.limit is not None or not _predicates_travel()
        function = once_for_all(_looked, variables, hold, self.limit is not None or _predicates_travel(), everything)
        total, norms, ratio, due, before, state = function(state, hurried)
        if self.limit is not None and follow:
            before = [tf.identity(tf.convert_to_tensor(v)) for v in variables]
        if not follow:
            self.state.assign(state)
        # what follows writes once for both
        return total, norms, ratio, (due, before, state) if follow else ()

    def _moved(self, total: Any, norms: tf.Tensor, variables: Sequence[Any], moving: tuple[int, ...]) -> Any:
        """The norm of the weights that a linear optimizer moves, of all being `total`."""
        if not moving:
            return NO_REACH
        if len(moving) == self.count:
            return total
        return weight_norm(TENSORFLOW, tf.gather(norms, tf.constant(moving, tf.int32)), _initial(variables, moving))

    def measured(self) -> tf.Tensor:
        """Norms and newest update ratios of the variables, shape [2 * count]; `UNKNOWN` where there is none."""
        return tf.convert_to_tensor(self.state)[: 2 * self.count]

    def _scalar(self, state: tf.Tensor, name: str) -> tf.Tensor:
        return state[3 * self.count + SCALARS.index(name)]

    # -- after the update ---------------------------------------------------------------------------------

    @hidden_from_debuggers
    def settle(self, variables: Sequence[Any] | None) -> None:
        """The update that `look(..., follow=True)` began has been made: measure it, hold it within the limit."""
        update = getattr(self._here, "update", None)
        self._here.update = None
        if update is None or update.graph is not _graph():
            return
        held = [tf_variable(v) for v in variables or ()]
        if update.graph is not None or distribution.replicas() > 1:
            self._settle(held, update.present, update.due, update.before, update.state)
            return
        # in eager mode as one function instead of dozens of ops
        present = update.present
        function = self._settling.get(present)
        if function is None:
            # the variables are arguments: what is captured would live as long as the monitor
            function = tf.function(lambda variables, *given: self._settle(variables, present, *given), autograph=False)
            self._settling[present] = function
        function(held, update.due, update.before, update.state)

    def _settle(
        self, variables: list[Any], present: tuple[int, ...], due: tf.Tensor, before: Any, state: tf.Tensor
    ) -> None:
        if self.limit is not None:
            self.state.assign(self._limited(variables, present, before, state))
            return
        function = once_for_all(_settled, variables, present, _predicates_travel())
        self.state.assign(function(state, due, before))

    def _limited(
        self, variables: list[Any], present: tuple[int, ...], before: Sequence[tf.Tensor], state: tf.Tensor
    ) -> tf.Tensor:
        """Scale an update that was too long back to the limit; the state after it."""
        norms, _, first, (rest, _, total, low, high) = _split(state)
        after = [tf.convert_to_tensor(v) for v in variables]
        moved = squares([gradients.values(a - b) for a, b in zip(after, before)])
        found = _shares(TENSORFLOW, present, _initial(variables, present), norms, moved)
        ratios, ratio = found[:-1], found[-1]
        # an update that is NaN or Inf has no length: on_nonfinite is for that
        over = ratio > self.limit
        factor = tf.where(over, self.limit / tf.where(over, ratio, 1.0), 1.0)
        for v, b, a in zip(variables, before, after):
            v.assign(tf.where(over, b + tf.cast(factor, a.dtype) * (a - b), a))
        low = low + tf.cast(over, tf.float32)
        carry = tf.cast(low >= LIMB, tf.float32)
        return _join(norms, ratios, first, [rest, ratio, total, low - carry * LIMB, high + carry])

    # -- from the host ----------------------------------------------------------------------------------------

    def read(self, paths: Sequence[str]) -> dict[str, Any]:
        """The fields of a `Snapshot` that are known here."""
        if not self.count:
            return {}
        vector = tf.convert_to_tensor(self.state).numpy()
        scalars = dict(zip(SCALARS, vector[3 * self.count :].tolist()))
        norms, ratios, first = (zip(paths, part.tolist()) for part in np.split(vector[: 3 * self.count], 3))
        return {
            "update_ratio": None if scalars["ratio"] < 0.0 else scalars["ratio"],
            "layer_update_ratio": {path: x for path, x in ratios if x >= 0.0},
            "layer_weight_norms": {path: x for path, x in norms if x >= 0.0},
            "layer_first_weight_norms": {path: x for path, x in first if x >= 0.0},
            "limited_updates": int(scalars["limited_low"]) + int(scalars["limited_high"]) * int(LIMB),
        }

    def rewound(self, packed: np.ndarray) -> np.ndarray:
        """A state of then, with the updates that were limited since."""
        packed, limited = packed.copy(), slice(SCALARS.index("limited_low") - len(SCALARS), None)
        packed[limited] = tf.convert_to_tensor(self.state).numpy()[limited]
        return packed

    def put(self, packed: np.ndarray) -> None:
        with tf.init_scope():
            self.state.assign(packed)


# -- what all monitors over such variables share ------------------------------------------------------------


def _split(state: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, list[tf.Tensor]]:
    """Norms, ratios and first norms of the variables, and `SCALARS`."""
    count = (state.shape[0] - len(SCALARS)) // 3
    norms, ratios, first, scalars = tf.split(state, [*[count] * 3, len(SCALARS)])
    return norms, ratios, first, tf.unstack(scalars)


def _join(norms: tf.Tensor, ratios: tf.Tensor, first: tf.Tensor, scalars: Sequence[Any]) -> tf.Tensor:
    return tf.concat([norms, ratios, first, tf.stack(scalars)], 0)


def _looked(
    hold: bool, always: bool, everything: bool, state: tf.Tensor, hurried: tf.Tensor | None, variables: Sequence[Any]
) -> tuple[tf.Tensor, ...]:
    """(norm of the weights, norms of the variables, newest ratio, whether it is time, what is held, state after it).

    Args:
      hold: keep what `_settled` needs.
      always: look without a branch.
      everything: look at all numbers of the variables, not at their places alone.
      hurried: whether to look although it is not time.
    """
    norms, ratios, first, (rest, ratio, total, *limited) = _split(state)
    due = rest < 0.5 if hurried is None else (rest < 0.5) | hurried
    places = places_of(variables)
    count, least = len(variables), _initial(variables, range(len(variables)))

    def look() -> tuple[tf.Tensor, ...]:
        x = [numbers(v) for v in variables]
        now = concat(x, places)
        found = in_one_kernel(_lengths, (least,), squares_of(now, places, x if everything else None), first)
        return found, now if hold else tf.zeros([0])

    def keep() -> tuple[tf.Tensor, ...]:
        nothing = tf.zeros([sum(p.size for p in places) if hold else 0])
        return tf.concat([norms, first, tf.reshape(total, [1])], 0), nothing

    # only what is measured leaves the branch: with the whole state in it, XLA compiles the step around it otherwise
    found, before = look() if always else tf.cond(due, look, keep)
    norms, first, total = tf.split(found, [count, count, 1])
    total = tf.reshape(total, [])
    state = _join(norms, ratios, first, [tf.where(due, EVERY - 1.0, rest - 1.0), ratio, total, *limited])
    return total, norms, ratio, due, before, state


def _lengths(xp: Any, least: float, squares: Any, first: Any) -> Any:
    """Norms of the variables, their first norms, and the norm of the weights, as one vector."""
    now = roots(xp, squares)
    return xp.concat([now, xp.where(first < 0.0, now, first), xp.stack([weight_norm(xp, now, least)])])


def _settled(
    present: tuple[int, ...],
    always: bool,
    state: tf.Tensor,
    due: tf.Tensor,
    before: tf.Tensor,
    variables: Sequence[Any],
) -> tf.Tensor:
    """The state after the update, whose way is measured where it was time to look."""
    places = places_of(variables)

    def measure() -> tf.Tensor:
        norms, _, first, (rest, _, *others) = _split(state)
        now = concat([numbers(v) for v in variables], places)
        moved = squares_of(now - before, places)
        found = in_one_kernel(_shares, (present, _initial(variables, present)), norms, moved)
        return _join(norms, found[:-1], first, [rest, found[-1], *others])

    return measure() if always else tf.cond(due, measure, lambda: tf.identity(state))


def _shares(xp: Any, present: tuple[int, ...], least: float, norms: Any, moved: Any) -> Any:
    """|dw| / |w| of each variable, and last of all that have a gradient: this with the floor of `weight_norm`.

    Args:
      present: the variables that have a gradient.
      least: `initial_norm` of these.
      norms: of the variables.
      moved: sums of squares of their updates.
    """
    moved = roots(xp, moved)
    whole = weight_norm(xp, _only(xp, norms, present), least)
    distances = _only(xp, moved, present)
    distance = _norms.total(xp, xp.maximum(distances, 0.0))
    known = (whole > 0.0) & (distance <= HUGE) & (xp.max(-distances) <= 0.0)
    good = (norms > TINY) & (moved >= 0.0)
    share = xp.where(known, distance / xp.where(known, whole, 1.0), UNKNOWN)
    return xp.concat([xp.where(good, moved / xp.where(good, norms, 1.0), UNKNOWN), xp.stack([share])])


def _only(xp: Any, x: Any, present: tuple[int, ...]) -> Any:
    """A vector with zeros where no variable is present."""
    count = x.shape[0]
    return x if len(present) == count else xp.where(np.isin(np.arange(count), present), x, 0.0)


def looked_first(scale: tf.Tensor, signals: tf.Tensor) -> tf.Tensor:
    """`scale`, of which XLA can tell that the weights were looked at before the update that it scales.

    Else XLA copies all weights in each step, because the look and the update might overlap.

    Args:
      signals: as `FusedGuard.step` takes them; the first is what `Weights.look` returned.
    """
    return tf.where(signals[0] >= NO_REACH, scale, 0.0) if devices.compiled_by_xla() else scale


def _predicates_travel() -> bool:
    """Whether asking on the device whether it is time would make the host wait for it at each step."""
    return devices.has_accelerator()


def _initial(variables: Sequence[Any], places: Sequence[int]) -> float:
    return initial_norm(variables[i].shape.as_list() for i in places)


def _graph() -> Any:
    return None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()


def _is_whole(variable: Any) -> bool:
    """Whether every replica can read all of this variable."""
    held = tf_variable(variable)
    readable = isinstance(held, tf.Variable) and held.shape.is_fully_defined()
    return readable and getattr(held, "synchronization", None) != tf.VariableSynchronization.ON_READ
