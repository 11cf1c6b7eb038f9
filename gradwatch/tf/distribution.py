"""tf.distribute: where the state is made, and the norm of the aggregated gradient.

In Keras 3 the gradients are summed over the replicas after `optimizer.apply` was called, so what arrives there
is one replica's part. The norm is taken of the sum; the replica's own part is scaled. Each replica computes the
same numbers from the same sum, and writes them to its own copy of the state.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import keras
import tensorflow as tf

from gradwatch.errors import UnsupportedError
from gradwatch.tf import compat, updates
from gradwatch.tf.gradients import Gradient

T = TypeVar("T")

_FIRST_KERAS = (3, 5)


def replicas() -> int:
    """How many replicas share this step; 1 outside of a strategy."""
    context = tf.distribute.get_replica_context()
    return int(context.num_replicas_in_sync) if context is not None else 1


def strategy_name() -> str:
    """The strategy in force, "none" for none."""
    return type(tf.distribute.get_strategy()).__name__ if tf.distribute.has_strategy() else "none"


def check_supported() -> None:
    """UnsupportedError where gradwatch would report wrong numbers."""
    if not tf.distribute.has_strategy():
        return
    strategy = tf.distribute.get_strategy()
    if isinstance(
        strategy,
        (tf.distribute.experimental.ParameterServerStrategy, tf.distribute.experimental.CentralStorageStrategy),
    ):
        raise UnsupportedError(
            f"{type(strategy).__name__} is not supported: its workers apply their gradients one after the other "
            "and share no step, so there is no one global norm; use MirroredStrategy or "
            "MultiWorkerMirroredStrategy, or watch a run on one device"
        )
    if keras_version() < _FIRST_KERAS and strategy.num_replicas_in_sync > 1:
        raise UnsupportedError(
            f"Keras {keras.__version__} under {type(strategy).__name__}: before Keras 3.5 the optimizer does not "
            "sum the gradients of the replicas at all, and every replica trains by itself; upgrade to Keras 3.5 "
            "or later"
        )


def keras_version() -> tuple[int, int]:
    """Major and minor of the Keras that `import keras` brings."""
    major, minor = keras.__version__.split(".")[:2]
    return int(major), int(minor)


def state_variable(initial: Any, name: str) -> tf.Variable:
    """A variable of ours, which holds what a monitor remembers; made inside of `in_scope`."""
    return tf.Variable(
        initial,
        trainable=False,
        name=name,
        dtype=tf.float32,
        # under a strategy each replica writes its own equal copy
        aggregation=tf.VariableAggregation.NONE,
        # a tf.function that sees a variable made would trace the user's step a second time
        experimental_enable_variable_lifting=False,
    )


def in_scope(make: Callable[[], T]) -> T:
    """Call `make` once, outside of every graph, where the strategy makes its variables."""
    if not tf.distribute.has_strategy():
        with tf.init_scope():
            return make()
    strategy = tf.distribute.get_strategy()

    def once(strategy: tf.distribute.Strategy) -> T:
        with strategy.scope():
            return make()

    with tf.init_scope():
        context = tf.distribute.get_replica_context()
        if context is not None and context.num_replicas_in_sync > 1:
            with meeting():
                return context.merge_call(once)  # every replica waits here, one makes it
        # a single replica is inside the scope already, and may not enter it again
        return once(strategy) if context is None else make()


@contextlib.contextmanager
def meeting() -> Iterator[None]:
    """Around what all replicas do together: UnsupportedError where TensorFlow does not let them meet."""
    try:
        yield
    except RuntimeError as error:
        if "merge_call" not in str(error):
            raise
        raise UnsupportedError(
            "a tf.function inside strategy.run cannot be watched: TensorFlow does not let its replicas meet "
            "while it is traced; put the tf.function around strategy.run instead"
        ) from error


def sum_of(x: Any) -> Any:
    """The sum of what the replicas have, tensors or a list of them, as one replica sees it."""
    with meeting():
        return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, x)


def summed(gradients: Sequence[Gradient], numbers: tf.Tensor) -> tuple[list[Gradient], tf.Tensor]:
    """The gradients summed over the replicas, which is what the optimizer will apply, and some numbers of float32 too.

    The numbers cost no meeting of their own where they can travel with the gradients. Those of one list become one
    array, so that it has one dtype; and where more than two are summed, the place in it says in which order, which
    changes how the sum is rounded: then the gradients go alone, as without a monitor.
    """
    if replicas() == 2 and all(g.dtype == numbers.dtype for g in gradients):
        # first in the list is last in the array
        total, *whole = sum_of([numbers, *gradients])
        return whole, total
    return list(sum_of(list(gradients))), sum_of(numbers)


# -- several workers --------------------------------------------------------------------------------------


def worker_of(strategy: Any) -> int:
    """The number of this process among the workers of a strategy; 0 for the first, and without one."""
    return int(getattr(getattr(strategy, "cluster_resolver", None), "task_id", None) or 0)


def has_several_workers(strategy: Any) -> bool:
    """Whether other processes share the steps."""
    return strategy is not None and strategy.num_replicas_in_sync > len(strategy.extended.worker_devices)


def same_on_all(number: float, strategy: Any) -> bool:
    """Whether all workers of a strategy have this number. Each of them must ask, between the same two steps.

    The replicas of one process have one host, and so one number.
    """
    if not has_several_workers(strategy):
        return True

    @tf.function
    def sums(mine: tf.Tensor) -> Any:
        def replica() -> tf.Tensor:
            here = tf.identity(mine)  # made on the replica's device, which is where the sum goes
            return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, here)

        return strategy.run(replica)

    # equal numbers are those whose variance is zero; whole numbers are exact in float64
    mine = tf.constant([number, number * number], tf.float64)
    total, squares = strategy.experimental_local_results(sums(mine))[0].numpy().tolist()
    return bool(strategy.num_replicas_in_sync * squares == total * total)


# -- summed once ------------------------------------------------------------------------------------------

#: What comes to the monitor is a replica's part and goes back as one; it goes back as the sum; it is the sum already.
PART, HAND_ON, DONE = "part", "hand on", "done"

# what stands between `apply` and the sum; where a class of the user's replaces one, we cannot know what it sums
_WAY_TO_THE_SUM = ("apply", "_backend_apply_gradients", compat.UPDATE, compat.SUM_OVER_REPLICAS)

# inside of `without_sum`: a list with an entry for each sum that was left out
_left_out: contextvars.ContextVar[list[None] | None] = contextvars.ContextVar("gradwatch_left_out", default=None)


def sums_once(optimizer: Any) -> bool:
    """Whether this optimizer can be given gradients that are summed already, to the same result.

    An optimizer that clips by itself does so before it sums; one that wraps others, or accumulates, does more.

    Raises:
      UnsupportedError: this Keras sums in another way, which cannot be told from not summing at all.
    """
    if (
        replicas() == 1
        or getattr(optimizer, "gradient_accumulation_steps", None)
        or any(getattr(optimizer, name, None) for name in updates.OWN_CLIPPING)
        or updates.wrapped(optimizer)
    ):
        return False
    if not _is_as_in("keras", optimizer, _WAY_TO_THE_SUM):
        return False
    compat.require(compat.SUM_OVER_REPLICAS, of=optimizer)
    _hook_sum(optimizer)
    return True


def sums_as_tf_keras(optimizer: Any) -> bool:
    """Whether an optimizer of tf-keras can be told not to sum: no class of the user's has a part in it."""
    return _is_as_in("tf_keras", optimizer, ("apply_gradients", "aggregate_gradients", "_aggregate_gradients"))


def _owner(optimizer: Any, name: str) -> type:
    """The class that this method of an optimizer is of; object where it has none."""
    return next((c for c in type(optimizer).__mro__ if name in c.__dict__), object)


def _is_as_in(package: str, optimizer: Any, names: Sequence[str]) -> bool:
    """Whether these methods, as far as an optimizer has them, are those of the package."""
    owners = [_owner(optimizer, name) for name in names]
    return all(owner is object or owner.__module__.startswith(f"{package}.") for owner in owners)


def _hook_sum(optimizer: Any) -> None:
    owner = _owner(optimizer, compat.SUM_OVER_REPLICAS)
    sums = owner.__dict__[compat.SUM_OVER_REPLICAS]
    if not hasattr(sums, "_gradwatch"):
        setattr(owner, compat.SUM_OVER_REPLICAS, _unless_left_out(sums))


@contextlib.contextmanager
def without_sum(optimizer: Any, *, summed: bool) -> Iterator[None]:
    """Inside, this thread's replica makes an update, in which Keras must not sum what is summed already.

    Of one replica the sum is what it was given. Yet TensorFlow remembers how to derive each such sum, and with it the
    graph of the step, for as long as the process lives: some 6 kB for an operation.

    Args:
      summed: they are summed already, over several replicas; see `sums_once`.

    Raises:
      UnsupportedError: Keras did not come by where it is known to sum, once: it summed elsewhere, a second time.
    """
    has_sum = hasattr(optimizer, compat.SUM_OVER_REPLICAS)
    alone = replicas() == 1 and has_sum and _is_as_in("keras", optimizer, [compat.SUM_OVER_REPLICAS])
    if not summed and not alone:
        yield
        return
    _hook_sum(optimizer)
    left_out: list[None] = []
    token = _left_out.set(left_out)
    try:
        yield
    finally:
        _left_out.reset(token)
    if summed and len(left_out) != 1:
        raise compat.not_called(
            compat.SUM_OVER_REPLICAS,
            f"called it {len(left_out)} times in an update instead of once: the gradients of the replicas would be "
            "summed twice",
        )


def _unless_left_out(sums: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(sums)
    @tf.autograph.experimental.do_not_convert
    def unless_left_out(self: Any, grads_and_vars: Any) -> Any:
        left_out = _left_out.get()
        if left_out is None:
            return sums(self, grads_and_vars)
        left_out.append(None)
        return list(grads_and_vars)

    unless_left_out._gradwatch = True  # type: ignore[attr-defined]
    return unless_left_out
