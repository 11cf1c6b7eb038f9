"""The batch of the step that alarmed, kept on the device until the host has written it.

A mailbox with one place. Each step asks the state that it has just written whether an episode of an anomaly began; if
one did and the place is free, the step's arguments are copied there, in the graph. The host empties the place at its
next look. It writes `collected` only and the step everything else, so that neither can undo what the other wrote.

How the copy is made depends on the place. On the CPU it is a branch, which a healthy step does not enter. Where XLA
compiles the step, or an accelerator runs it, it is a select between the old and the new numbers: a branch would send
its predicate to the host at each step there, and XLA needs arrays of fixed sizes. docs/decisions/0014 has the
measurements.
"""

from __future__ import annotations

import json
import logging
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from gradwatch.core import checks
from gradwatch.core.counters import COUNTERS, whole
from gradwatch.core.snapshot import KINDS
from gradwatch.errors import ConfigError
from gradwatch.record.batch import moved
from gradwatch.record.event import Kept
from gradwatch.record.recorder import VARIABLE
from gradwatch.tf import devices, distribution
from gradwatch.tf.arguments import outline_of

logger = logging.getLogger("gradwatch")

#: Most bytes of a batch that are kept, where nobody says another number.
BYTES = 64 << 20

#: How many batches of different structures can be kept: each has a place of its own. Beyond it the batch is missing.
_MOST_SLOTS = 16

#: In place of a dimension that a compiled step does not know when it is traced.
_ROWS = 1024

# what the header holds, in float32
_HEADER = ("seen_low", "seen_high", "step_low", "step_high", "number", "kinds", "slot")


class _Slot(NamedTuple):
    """The place for batches of one structure.

    Attributes:
      outline: of the arguments, see `gradwatch.record.batch`.
      sizes: how many numbers each array may have; None on the CPU, where a place takes any.
      values: for each array, its numbers in a row.
      shapes: of all arrays, one after the other, as float32.
      ranks: of the arrays.
      missing: why nothing can be kept here; "" where something can.
    """

    outline: Mapping[str, Any]
    sizes: tuple[int, ...] | None
    values: list[tf.Variable]
    shapes: tf.Variable | None
    ranks: tuple[int, ...]
    missing: str = ""


class Keeper:
    """Keeps what the steps of one monitor were called with.

    Args:
      limit: bytes of a batch that are kept at most.
      weights: whether the weights after the step are kept, too.
    """

    def __init__(self, limit: int, weights: bool) -> None:
        self.limit, self.with_weights = limit, weights
        self._built: Any = None  # the state of the device that the places belong to
        self._slots: list[_Slot] = []
        self._found: dict[Any, int] = {}  # structure -> place
        self._weights: list[tf.Variable] = []
        self._making = threading.RLock()
        self._functions: dict[Any, Callable[..., Any]] = {}
        self._told: set[str] = set()
        self._header: tf.Variable
        self._collected: tf.Variable

    @property
    def options(self) -> dict[str, Any]:
        """Those of `Monitor` that it was made from."""
        return {"keep_batch": True, "batch_bytes": self.limit, "weights": self.with_weights}

    @property
    def variables(self) -> list[tf.Variable]:
        """All that a function which is exported captures."""
        if self._built is None:
            return []
        shapes = [slot.shapes for slot in self._slots if slot.shapes is not None]
        kept = [v for slot in self._slots for v in slot.values]
        return [self._header, self._collected, *shapes, *kept, *self._weights]

    # -- the step ---------------------------------------------------------------------------------------

    def keep(self, built: Any, args: Sequence[Any], keywords: Mapping[str, Any]) -> None:
        """A call of the step has ended: what it was called with is kept where an episode began in it.

        Args:
          built: the monitor's state on the device, a `DeviceState`; None before its first step.
          args, keywords: of the call.
        """
        if built is None:
            return
        outline, tensors = outline_of(args, keywords)
        fixed = self._needs_fixed_sizes()
        key = (json.dumps(outline), tuple((x.dtype.name, x.shape.rank) for x in tensors), fixed)
        # the threads of the replicas meet while variables are made: a lock around that would wait forever
        if distribution.replicas() > 1:
            index = self._place(built, key, outline, tensors)
        else:
            with self._making:
                index = self._place(built, key, outline, tensors)
        if index is None:
            return
        weights = built.variables.alive() if self._weights else []
        if not tf.executing_eagerly() or distribution.replicas() > 1:
            self._put(index, tensors, weights)
            return
        function = self._functions.get(index)
        if function is None:
            # the weights are arguments: what is captured would live as long as the monitor
            function = tf.function(
                lambda tensors, weights: self._put(index, tensors, weights), autograph=False, reduce_retracing=True
            )
            self._functions[index] = function
        function(tensors, weights)

    def _needs_fixed_sizes(self) -> bool:
        return devices.compiled_by_xla() or devices.has_accelerator()

    def _place(self, built: Any, key: Any, outline: Mapping[str, Any], tensors: Sequence[tf.Tensor]) -> int | None:
        """The number of the place for this structure, made if there is none; None where there can be none."""
        if built is not self._built:
            self._begin(built)
        sizes = _sizes(tensors) if key[-1] else None
        found = self._found.get(key)
        # the replicas must come to one answer, whatever their parts of the batch
        if found is not None and (distribution.replicas() > 1 or _fit(sizes, self._slots[found])):
            return found
        if len(self._slots) == _MOST_SLOTS:
            self._say(f"the step has been called with arguments of {_MOST_SLOTS} other structures, which is the most")
            return None
        slot = self._slot(outline, tensors, sizes)
        if distribution.replicas() > 1 and key in self._found:  # another replica's thread came first
            return self._found[key]
        if slot.missing:
            self._say(slot.missing)
        self._slots.append(slot)
        self._found[key] = len(self._slots) - 1
        return self._found[key]

    def _begin(self, built: Any) -> None:
        """Make what all places share. Events of the past, out of a checkpoint, are no news."""
        self._slots, self._found, self._functions = [], {}, {}
        seen = np.zeros(len(_HEADER), np.float32)
        seen[:2] = built.started
        weights = built.variables.alive() if self.with_weights else []
        if self.with_weights and not weights:
            logger.warning("weights=True: the variables are not known; give them: monitor.clip(grads, variables)")

        def make() -> tuple[Any, ...]:
            return (
                _variable(seen, "gradwatch_kept"),
                _variable(np.float32(0.0), "gradwatch_collected"),
                [_variable(tf.zeros(v.shape, v.dtype), "gradwatch_kept_weights") for v in weights],
            )

        made = distribution.in_scope(make)
        if self._built is not built:  # else another replica's thread was here meanwhile
            self._header, self._collected, self._weights = made
            self._paths = built.variables.paths
            fields = {field.path: field.offset for field in built.layout.fields}
            steps = COUNTERS.index("steps")
            self._places = [fields["count", limb] + steps for limb in ("low", "high")]
            self._places += [fields["episodes", kind, f"step_{limb}"] for limb in ("low", "high") for kind in KINDS]
            self._built = built

    def _slot(self, outline: Mapping[str, Any], tensors: Sequence[tf.Tensor], sizes: tuple[int, ...] | None) -> _Slot:
        ranks = tuple(x.shape.rank for x in tensors)
        missing = self._hindrance(tensors, sizes)
        if missing:
            return _Slot(outline, sizes, [], None, ranks, missing)

        def make() -> tuple[list[tf.Variable], tf.Variable]:
            values = [
                _variable(tf.zeros([n], x.dtype), "gradwatch_kept_batch", [None] if sizes is None else None)
                for x, n in zip(tensors, sizes or [0] * len(tensors))
            ]
            return values, _variable(np.zeros(sum(ranks), np.float32), "gradwatch_kept_shapes")

        return _Slot(outline, sizes, *distribution.in_scope(make), ranks)

    def _hindrance(self, tensors: Sequence[tf.Tensor], sizes: tuple[int, ...] | None) -> str:
        """Why a batch of these arrays cannot be kept, "" where it can."""
        if not tensors:
            return (
                "no argument of the step is a tensor or an array. A step that takes an iterator and calls next() "
                "inside gets its data where gradwatch does not see them: give it the batch as arguments"
            )
        if any(x.shape.rank is None for x in tensors):
            return "an argument has no known number of dimensions; say it in the input_signature of the tf.function"
        if sizes is not None and any(x.dtype == tf.string for x in tensors):
            return "an argument is made of texts, which no accelerator holds"
        fewest = sum(math.prod(d or 0 for d in x.shape) * x.dtype.size for x in tensors if x.shape.is_fully_defined())
        return self._too_large(fewest) if fewest > self.limit else ""

    def _too_large(self, size: int) -> str:
        return (
            f"it has {size:,} bytes and batch_bytes is {self.limit:,}; raise batch_bytes if the device has room for "
            "one more batch"
        )

    def _put(self, index: int, tensors: Sequence[tf.Tensor], weights: Sequence[tf.Variable]) -> None:
        """The part that runs in each step."""
        slot = self._slots[index]
        header, collected = tf.convert_to_tensor(self._header), tf.convert_to_tensor(self._collected)
        seen_low, seen_high, *_, number, _, _ = tf.unstack(header)
        numbers = tf.gather(self._built.vector(), self._places)
        now, low, high = tf.split(numbers, [2, len(KINDS), len(KINDS)])
        began = (high > seen_high) | (tf.equal(high, seen_high) & (low > seen_low))
        take = tf.reduce_any(began) & (number <= collected)
        # they all began at one step, or at several updates of one call: the latest tells the number of the step
        step = tf.stack([tf.reduce_max(tf.where(began, limb, 0.0)) for limb in (low, high)])
        kinds = tf.reduce_sum(tf.where(began, [2.0**i for i in range(len(KINDS))], 0.0))
        fresh = tf.concat([step, tf.stack([collected + 1.0, kinds, float(index)])], 0)
        copied = [] if slot.missing else self._copy(take, slot, tensors, weights)
        # the header says that all is there: it comes last
        with tf.control_dependencies([getattr(x, "op", x) for x in copied]):
            self._header.assign(tf.concat([now, tf.where(take, fresh, header[2:])], 0))

    def _copy(
        self, take: tf.Tensor, slot: _Slot, tensors: Sequence[tf.Tensor], weights: Sequence[tf.Variable]
    ) -> list[Any]:
        assert slot.shapes is not None
        shapes = tf.concat([tf.cast(tf.shape(x), tf.float32) for x in tensors], 0)
        flat = [tf.reshape(x, [-1]) for x in tensors]
        if not all(x.shape.is_fully_defined() for x in tensors):
            sizes = [tf.size(x) for x in tensors]
            total = tf.add_n([tf.cast(n, tf.int64) * x.dtype.size for n, x in zip(sizes, tensors)])
            # shapes are known on the host: this asks nothing of the device
            room = tf.cast(total <= self.limit, tf.int32)
            flat = [x[: n * room] for x, n in zip(flat, sizes)]
        pairs = [(slot.shapes, shapes), *zip(slot.values, flat), *zip(self._weights, weights)]
        if slot.sizes is None:

            def put() -> tf.Tensor:
                for v, x in pairs:
                    v.assign(tf.convert_to_tensor(x))
                return tf.constant(0)

            return [tf.cond(take, put, lambda: tf.constant(0))]
        most = {id(v): n for v, n in zip(slot.values, slot.sizes)}
        return [
            v.assign(tf.where(take, _filled(tf.convert_to_tensor(x), most.get(id(v))), tf.convert_to_tensor(v)))
            for v, x in pairs
        ]

    # -- the host ---------------------------------------------------------------------------------------

    def collect(self, up_to: float = math.inf) -> Kept | None:
        """What is kept, and room for the next batch; None where nothing is. Safe from any thread.

        Args:
          up_to: leave what was kept at a later step than this.
        """
        if self._built is None:
            return None
        headers = [dict(zip(_HEADER, x.tolist())) for x in _parts(self._header)]
        newest = max(header["number"] for header in headers)
        if newest <= float(_parts(self._collected)[0]):
            return None
        step = max(whole(header["step_low"], header["step_high"]) for header in headers)
        if step > up_to:
            return None
        # replicas that the host emptied at the very moment of an event may have missed it
        which = [i for i, h in enumerate(headers) if whole(h["step_low"], h["step_high"]) == step]
        header = headers[which[0]]
        mask, slot = int(header["kinds"]), self._slots[int(header["slot"])]
        kinds = tuple(kind for i, kind in enumerate(KINDS) if mask & (1 << i))
        outline, arrays, missing = self._read(slot, which)
        if missing:
            self._say(missing)
        weights = {path: _parts(v)[which[0]] for path, v in zip(self._paths, self._weights)} if not slot.missing else {}
        with tf.init_scope():
            self._collected.assign(newest)
        return Kept(step, kinds, outline, tuple(arrays), weights, missing)

    def _read(self, slot: _Slot, which: Sequence[int]) -> tuple[Mapping[str, Any], list[np.ndarray], str]:
        """(outline, arrays, why they are missing) of the replicas that have them."""
        if slot.missing or slot.shapes is None:
            return {"nothing": ""}, [], slot.missing
        outlines: list[Mapping[str, Any]] = []
        arrays: list[np.ndarray] = []
        shapes, values = _parts(slot.shapes), [_parts(v) for v in slot.values]
        for i in which:
            dims = np.split(shapes[i].astype(np.int64), np.cumsum(slot.ranks)[:-1])
            size = sum(int(np.prod(d)) * v.dtype.size for d, v in zip(dims, slot.values))
            counts = [int(np.prod(d)) for d in dims]
            if size > self.limit:
                return {"nothing": ""}, [], self._too_large(size)
            if slot.sizes is not None and any(n > most for n, most in zip(counts, slot.sizes)):
                return {"nothing": ""}, [], self._too_long(counts, slot.sizes)
            outlines.append(moved(slot.outline, len(arrays)))
            arrays += [v[i][:n].reshape(d).copy() for v, n, d in zip(values, counts, dims)]
        return (outlines[0] if len(outlines) == 1 else {"parts": outlines}), arrays, ""

    def _too_long(self, counts: Sequence[int], sizes: Sequence[int]) -> str:
        count, most = next((n, most) for n, most in zip(counts, sizes) if n > most)
        return (
            f"an argument has {count:,} numbers, and a step that is compiled for any batch size has room for {most:,}; "
            "fix the batch size (batch(..., drop_remainder=True), or the input_signature)"
        )

    def rebase(self, steps: Sequence[float]) -> None:
        """The monitor goes on from another step, given as the two limbs of a counter: earlier events are no news."""
        if self._built is not None:
            with tf.init_scope():
                seen = _parts(self._header)[0]
                seen[:2] = steps
                self._header.assign(seen)

    def _say(self, text: str) -> None:
        """Into the log, once."""
        if text not in self._told:
            self._told.add(text)
            logger.warning("keep_batch: the batch is not kept: %s", text)


def keeper_of(keep_batch: Any, batch_bytes: Any, weights: Any, *, recorded: bool) -> Keeper | None:
    """What keeps the batches, None where nobody wants them; ConfigError where the options do not fit together."""
    for name, value in (("keep_batch", keep_batch), ("weights", weights)):
        if not isinstance(value, bool):
            raise ConfigError(f"{name} must be True or False, got {value!r}")
    limit = checks.count(
        "batch_bytes", batch_bytes, most=1 << 50, hint="the bytes of the largest batch to keep, as 64 << 20"
    )
    if weights and not keep_batch:
        raise ConfigError("weights=True keeps the weights beside the batch; give keep_batch=True as well")
    if not keep_batch:
        return None
    if not recorded:
        raise ConfigError(
            "keep_batch=True writes the batch beside the record of the run, and there is no record; give record='runs' "
            f"as well, or name a folder in the environment variable {VARIABLE}"
        )
    return Keeper(limit, weights)


def _filled(x: tf.Tensor, size: int | None) -> tf.Tensor:
    """An array in a row with so many numbers, cut or filled with zeros; as it is without a size."""
    if size is None or x.shape.num_elements() == size:
        return x
    x = x[:size]
    return tf.pad(x, [[0, size - tf.size(x)]])


def _sizes(tensors: Sequence[tf.Tensor]) -> tuple[int, ...]:
    """How many numbers to leave room for; of an unknown dimension, `_ROWS`."""
    return tuple(
        math.prod(_ROWS if d is None else d for d in x.shape) if x.shape.rank is not None else 0 for x in tensors
    )


def _fit(sizes: Sequence[int] | None, slot: _Slot) -> bool:
    if sizes is None or slot.sizes is None or slot.missing:
        return True
    return all(n <= most for n, most in zip(sizes, slot.sizes))


def _variable(initial: Any, name: str, shape: Any = None) -> tf.Variable:
    # as the monitor's state
    return tf.Variable(
        initial,
        trainable=False,
        name=name,
        shape=shape,
        aggregation=tf.VariableAggregation.NONE,
        experimental_enable_variable_lifting=False,
    )


def _parts(variable: tf.Variable) -> list[np.ndarray]:
    """Its value on each replica, as arrays of the host."""
    return [np.array(v.read_value().numpy()) for v in getattr(variable, "values", [variable])]
