"""Every private name of Keras and TensorFlow that this package touches, and what happens in a version without it.

The names stand in `PRIVATE_NAMES`; the functions below are the only users. A name that changes what is measured or
written is required where it is met: `require` raises UnsupportedError. That a name is still there says little when
nobody calls it any more, so `distribution` and `accumulation` count the calls of theirs in each trace.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.eager import context as _eager

from gradwatch.errors import UnsupportedError

#: Of Keras' optimizers: sums the gradients over the replicas, between the optimizer's own clipping and the update.
SUM_OVER_REPLICAS = "_all_reduce_sum_gradients"
#: Of Keras' optimizers: gets the mean of the accumulated micro-batches, once per update.
OWN_CLIPPING = "_clip_gradients"
#: Of Keras' optimizers: the update itself, after clipping and weight decay.
UPDATE = "_backend_update_step"
#: Of Keras' optimizers: the rate of this step, whatever it was set to; the update and the weight decay ask it.
LEARNING_RATE = "_get_current_learning_rate"


@dataclasses.dataclass(frozen=True)
class PrivateName:
    """A name that no documentation promises.

    Attributes:
      owner: the class or module it belongs to, for people.
      present: whether this version has it.
      without: a sentence that says what happens in a version without it.
    """

    owner: str
    present: Callable[[], bool]
    without: str


def _of_optimizers(name: str) -> Callable[[], bool]:
    return lambda: hasattr(keras.optimizers.Optimizer, name)


def _of_an_optimizer(name: str) -> Callable[[], bool]:
    return lambda: hasattr(keras.optimizers.SGD(), name)


def _of_functions(name: str) -> Callable[[], bool]:
    return lambda: hasattr(tf.function(lambda: None), name)


PRIVATE_NAMES: dict[str, PrivateName] = {
    SUM_OVER_REPLICAS: PrivateName(
        "keras.optimizers.Optimizer",
        _of_optimizers(SUM_OVER_REPLICAS),
        "the gradients of the replicas would be summed twice; a step under several replicas is refused",
    ),
    OWN_CLIPPING: PrivateName(
        "keras.optimizers.Optimizer",
        _of_optimizers(OWN_CLIPPING),
        "the mean of accumulated micro-batches would pass unseen; gradient_accumulation_steps is refused",
    ),
    UPDATE: PrivateName(
        "keras.optimizers.Optimizer",
        _of_optimizers(UPDATE),
        "an accumulated update could not be dropped; gradient_accumulation_steps is refused",
    ),
    LEARNING_RATE: PrivateName(
        "keras.optimizers.Optimizer",
        _of_optimizers(LEARNING_RATE),
        "the learning rate cannot be lowered; recover= with the rung lower() is refused",
    ),
    "_watched_variables": PrivateName(
        "the graph of a tf.function",
        lambda: hasattr(tf.__internal__.FuncGraph, "watch_variable"),
        "a rollback takes back the variables of the optimizer, and of what rollback(keep=...) names, no others",
    ),
    "_trainable_variables": PrivateName(
        "keras.optimizers.Optimizer",
        _of_an_optimizer("_trainable_variables"),
        "`apply(grads)` without variables reports gradient_0, gradient_1, ... in place of their paths, and an "
        "optimizer that is applied to parts of its variables needs a monitor for each part",
    ),
    "_iterations": PrivateName(
        "keras.optimizers.Optimizer",
        _of_an_optimizer("_iterations"),
        "an accumulated update could not be dropped; gradient_accumulation_steps with skip is refused",
    ),
    "_var_to_optimizer_idx": PrivateName(
        "keras.optimizers.MultiOptimizer",
        lambda: "_var_to_optimizer_idx" in _names_in_build_of_multi_optimizer(),
        "the reach of a step under a MultiOptimizer is not known",
    ),
    "_get_hyper": PrivateName(
        "tf_keras.optimizers.legacy.Optimizer",
        lambda: True,  # tf-keras is not imported to ask: its legacy family does not change any more
        "the reach of a step under its SGD is not known",
    ),
    "_decayed_lr": PrivateName("tf_keras.optimizers.legacy.Optimizer", lambda: True, "as for `_get_hyper`"),
    "_create_hypers": PrivateName("tf_keras.optimizers.legacy.Optimizer", lambda: True, "as for `_get_hyper`"),
    "_current_learning_rate": PrivateName(
        "tf_keras.optimizers.Optimizer",
        lambda: True,
        "the reach of a step under a schedule of its SGD is that of the rate of the step before",
    ),
    "_clone": PrivateName(
        "tf.function",
        _of_functions("_clone"),
        "a decorated tf.function is called from a plain function; one that was traced before raises NothingToWatch",
    ),
    "python_function": PrivateName("tf.function", _of_functions("python_function"), "as for `_clone`"),
    "outer_graph": PrivateName(
        "the graph of a tf.function",
        lambda: hasattr(tf.__internal__.FuncGraph, "outer_graph"),
        "a replica's thread inside a nested graph finds no watcher: NothingToWatch at the first step",
    ),
    "GraphOrParentsInXlaContext": PrivateName(
        "tensorflow.python.ops.control_flow_util",
        lambda: _xla_probe() is not None,
        "steps of several threads in one plain tf.function are not kept apart: some may be lost from the statistics",
    ),
    "call_module": PrivateName(
        "tensorflow.compiler.tf2xla.python.xla",
        lambda: hasattr(_xla_of_tensorflow(), "call_module"),
        "the guard is traced instead of written down, and the first call of a step takes two seconds longer",
    ),
    "invoking_op_callbacks": PrivateName(
        "tensorflow.python.eager.context",
        lambda: hasattr(_eager.context(), "invoking_op_callbacks"),
        "under tf.debugging.enable_check_numerics a watched step ends with an error about a number of the monitor's",
    ),
    "eager_mode": PrivateName(
        "tensorflow.python.eager.context",
        lambda: hasattr(_eager, "eager_mode"),
        "tf.saved_model.save refuses a module that holds a monitor",
    ),
    "_trackable_children": PrivateName(
        "keras.optimizers.Optimizer",
        _of_optimizers("_trackable_children"),
        "tf.saved_model.save refuses a module with a watched step unless the monitor is an attribute of the module",
    ),
    "_serialize_to_tensors": PrivateName(
        "tf.Module",
        lambda: hasattr(tf.Module, "_serialize_to_tensors"),
        "tf.train.Checkpoint does not carry a monitor; Monitor.save and Monitor.load do",
    ),
    "_restore_from_tensors": PrivateName(
        "tf.Module",
        lambda: hasattr(tf.Module, "_restore_from_tensors"),
        "as for `_serialize_to_tensors`",
    ),
    "_implements_train_batch_hooks": PrivateName(
        "tf_keras.callbacks.Callback",
        lambda: True,  # tf-keras is not imported to ask: where it does not, no harm is done
        "a fit of tf-keras would not call KerasCallback at each batch: it raises NothingToWatch",
    ),
    "make_train_function": PrivateName(
        "keras.Model",
        lambda: hasattr(keras.Model, "make_train_function"),
        "model.fit cannot be watched and is refused; decorate the model's train_step",
    ),
}


def require(*names: str, of: Any = None) -> None:
    """UnsupportedError where a private name is gone.

    Args:
      names: keys of `PRIVATE_NAMES`.
      of: the object that must have them; None asks the probe.
    """
    for name in names:
        private = PRIVATE_NAMES[name]
        if not (private.present() if of is None else hasattr(of, name)):
            raise UnsupportedError(
                f"{versions()} has no {private.owner}.{name}: {private.without}. Use versions that gradwatch was "
                "tested with (docs/loops.md), or call monitor.clip on the gradients yourself"
            )


def not_called(name: str, promise: str) -> UnsupportedError:
    """The error for a private name that is there but is not called as it was."""
    return UnsupportedError(
        f"{versions()} has {PRIVATE_NAMES[name].owner}.{name}, but {promise}; gradwatch would change the training "
        "here. Use versions that gradwatch was tested with (docs/loops.md), or call monitor.clip on the gradients "
        "yourself"
    )


def versions() -> str:
    """What is installed, for messages."""
    return f"Keras {keras.__version__} with TensorFlow {tf.__version__}"


# -- optimizers -------------------------------------------------------------------------------------------


def trainable_variables(optimizer: Any) -> list[Any]:
    """The variables that an optimizer was built with; none before."""
    return list(getattr(optimizer, "_trainable_variables", None) or ())


def iterations(optimizer: Any) -> Any:
    """The variable that counts the calls of `apply`: micro-batches, where those are accumulated."""
    require("_iterations", of=optimizer)
    return optimizer._iterations


def name_of(optimizer: Any) -> str:
    """What an optimizer of Keras or tf-keras is called."""
    return str(getattr(optimizer, "name", None) or getattr(optimizer, "_name", ""))


def build_legacy(optimizer: Any, variables: list[Any]) -> None:
    """Make the slots of an optimizer of tf-keras, if they are not there yet."""
    if is_legacy_family(optimizer):
        optimizer._create_all_weights(variables)
    else:
        optimizer.build(variables)


def is_legacy_family(optimizer: Any) -> bool:
    """Whether it is of `tf_keras.optimizers.legacy`, whose `apply_gradients` has keywords of its own."""
    return hasattr(optimizer, "_create_all_weights")


def _names_in_build_of_multi_optimizer() -> Sequence[str]:
    multi = getattr(keras.optimizers, "MultiOptimizer", None)
    # a Keras that has no such optimizer lacks nothing
    return ["_var_to_optimizer_idx"] if multi is None else multi.build.__code__.co_names


def places_in_multi_optimizer(optimizer: Any, variables: Sequence[Any]) -> list[int | None]:
    """For each variable, which of `optimizer.optimizers` moves it; None where that is not known."""
    places = getattr(optimizer, "_var_to_optimizer_idx", {})
    key = getattr(optimizer, "_var_key", id)
    return [places.get(key(variable)) for variable in variables]


def learning_rate(optimizer: Any) -> Any:
    """As it is in this step: a number, a variable or a tensor; None for an optimizer that has not the one."""
    if is_legacy_family(optimizer):
        _make_hyperparameters(optimizer)
        return optimizer._decayed_lr(tf.float32)
    given = getattr(optimizer, "_learning_rate", None)
    if hasattr(optimizer, "_current_learning_rate") and callable(given) and not isinstance(given, tf.Variable):
        # tf-keras asks a schedule within the update: what it holds until then is the rate of the step before
        return given(optimizer.iterations)
    try:
        return optimizer.learning_rate
    except (AttributeError, ValueError):
        return None


def rate_variables(optimizer: Any) -> list[Any]:
    """The variables that hold the learning rate of an optimizer and of what it wraps; a schedule has none."""
    held = [getattr(optimizer, name, None) for name in ("_learning_rate", "lr")]
    inside = vars(optimizer).values()
    several = [one for x in inside if isinstance(x, (list, tuple)) for one in x]
    wrapped = [one for one in (*inside, *several) if one is not optimizer and hasattr(type(one), "apply_gradients")]
    own = [x for x in held if isinstance(x, tf.Variable) or isinstance(getattr(x, "value", None), tf.Variable)]
    return own + [v for one in wrapped for v in rate_variables(one)]


def momentum(optimizer: Any) -> Any:
    """Of an SGD: a number or a tensor; 0.0 where it has none."""
    if is_legacy_family(optimizer):
        _make_hyperparameters(optimizer)
        return optimizer._get_hyper("momentum") if getattr(optimizer, "_momentum", False) else 0.0
    found = getattr(optimizer, "momentum", 0.0)
    return found() if callable(found) else found


def _make_hyperparameters(optimizer: Any) -> None:
    with tf.init_scope():
        # made within the step they would be initialized by it
        optimizer.iterations  # noqa: B018
        optimizer._create_hypers()


def add_exported_parts(cls: type, parts: Callable[[Any], dict[str, Any]]) -> None:
    """`parts(object)` are parts of each object of the class too, by name, when it is written into a SavedModel."""
    original = getattr(cls, "_trackable_children", None)
    if original is None or hasattr(original, "_gradwatch"):
        return

    def trackable_children(self: Any, save_type: str = "checkpoint", **options: Any) -> dict[str, Any]:
        children: dict[str, Any] = original(self, save_type, **options)
        return {**children, **parts(self)} if save_type == "savedmodel" else children

    trackable_children._gradwatch = True  # type: ignore[attr-defined]
    cls._trackable_children = trackable_children  # type: ignore[attr-defined]


# -- tf.function ------------------------------------------------------------------------------------------


def python_function(step: Any) -> Callable[..., Any] | None:
    """What a tf.function was made of; None for anything else."""
    found: Callable[..., Any] | None = getattr(step, "python_function", None) if hasattr(step, "_clone") else None
    return found


def cloned(function: Any, body: Callable[..., Any]) -> Any:
    """The same tf.function with another body and traces of its own."""
    return function._clone(python_function=body)


def outer_graph(graph: Any) -> Any:
    """The graph around the graph of a tf.function, or None."""
    return getattr(graph, "outer_graph", None)


def variables_of_graph(graph: Any) -> list[Any]:
    """The variables that were read so far in the graph of a tf.function and in those inside it."""
    found = []
    for variable in getattr(graph, "_watched_variables", ()):
        # of a strategy, a replica's part stands for the whole
        container = getattr(variable, "_distributed_container", None)
        whole = container() if callable(container) else None
        found.append(variable if whole is None else whole)
    return found


def in_xla() -> bool:
    """Whether XLA will compile the graph that is being traced; true where that cannot be told."""
    probe = _xla_probe()
    return probe is None or bool(probe(tf.compat.v1.get_default_graph()))


def _xla_probe() -> Callable[[Any], bool] | None:
    try:
        from tensorflow.python.ops import control_flow_util
    except ImportError:
        return None
    return getattr(control_flow_util, "GraphOrParentsInXlaContext", None)


def _xla_of_tensorflow() -> Any:
    try:
        from tensorflow.compiler.tf2xla.python import xla
    except ImportError:
        return None
    return xla


def run_module(given: tf.Tensor, module: str, shape: Sequence[int]) -> Any:
    """Runs a module of StableHLO, a text, inside of what XLA compiles; its result, float32 of this shape."""
    require("call_module")
    # a step that was saved may be loaded where there is a GPU
    how = {"version": 9, "platforms": ("CPU",), "disabled_checks": ("platform",)}
    return _xla_of_tensorflow().call_module([given], module=module, Tout=[tf.float32], Sout=[shape], **how)[0]


@contextlib.contextmanager
def unseen_by_debuggers() -> Iterator[None]:
    """What is run or traced inside is hidden from `tf.debugging.enable_check_numerics` and its like.

    The monitor computes with NaN and Inf where something is not known or not bounded, and XLA has no kernel for the
    operations that a debugger adds. TensorFlow has this flag so that a debugger does not look at its own operations.
    """
    here = _eager.context()
    if getattr(here, "invoking_op_callbacks", True) or not getattr(here, "op_callbacks", None):
        yield
        return
    here.invoking_op_callbacks = True
    try:
        yield
    finally:
        here.invoking_op_callbacks = False


def outside_of_graphs(read: Callable[[], tf.Tensor]) -> np.ndarray:
    """The value of `read()`, run outside of the graph that is being built."""
    require("eager_mode")
    with _eager.eager_mode():
        return read().numpy()


# -- model.fit --------------------------------------------------------------------------------------------

#: What a callback of Keras holds of the fit it runs in.
RUN_OF_A_CALLBACK: Mapping[str, None] = {"_model": None, "params": None}


def new_train_function(model: Any) -> Callable[..., Any]:
    """The function that `model.fit` calls for each batch, made anew."""
    require("make_train_function", of=model)
    model.make_train_function(force=True)
    made: Callable[..., Any] = model.train_function
    return made
