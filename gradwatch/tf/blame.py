"""Which samples of a batch carried an anomaly: the norm of each sample's own gradient."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gradwatch.errors import ConfigError
from gradwatch.record.batch import Ragged, Sparse, rows_of, sample
from gradwatch.record.event import BatchEvent
from gradwatch.tf import capture, compat, gradients, hook, skip, updates

#: A sample stands out whose norm is so many times the median's.
_STANDS_OUT = 3.0

#: Those that stand out carried the batch where they have this share of the sum of all squared norms.
_CARRIES = 0.5

_NAMED = 5  # samples in a sentence


@dataclass(frozen=True)
class Blame:
    """Whose gradients were large.

    Attributes:
      norms: norm of each sample's own gradient, float64, shape [samples]; NaN or Inf where it held one.
      samples: numbers of the samples that carried it, counted from 0, the largest norm first: those whose norm is NaN
        or Inf; else those beyond three times the median, if they have half of the sum of all squared norms. () where
        the samples are alike.
      weights: "step" where the weights kept with the event were used, "now" where they are those of now.
    """

    norms: np.ndarray
    samples: tuple[int, ...]
    weights: str = "now"

    @property
    def shares(self) -> np.ndarray:
        """Each sample's part of the sum of squared norms, in [0, 1]; equal parts of those that are NaN or Inf."""
        finite = np.isfinite(self.norms)
        if not finite.all():
            return np.where(finite, 0.0, 1.0) / np.sum(~finite)
        squares = np.square(self.norms / max(float(self.norms.max(initial=0.0)), 1e-300))
        total = float(squares.sum())
        return squares / total if total else np.full(len(squares), 1.0 / max(len(squares), 1))

    def __str__(self) -> str:
        count, median = len(self.norms), _median(self.norms)
        if not self.samples:
            return (
                f"No sample stands out of {count}: the median norm is {median:.3g} and the largest is "
                f"{np.max(self.norms, initial=0.0):.3g}. Look for the cause in the learning rate or the loss."
            )
        named = [f"{i} (norm {self.norms[i]:.3g})" for i in self.samples[:_NAMED]]
        more = len(self.samples) - len(named)
        named += [f"{more} more"] if more else []
        text = " and ".join(filter(None, [", ".join(named[:-1]), named[-1]]))
        noun = "Sample" if len(self.samples) == 1 else "Samples"
        share = float(self.shares[list(self.samples)].sum())
        return f"{noun} {text} of {count} carried {share:.0%} of the squared gradient; the median norm is {median:.3g}."


def blame(event: BatchEvent | Sequence[Any], step_or_loss: Any) -> Blame:
    """Say which samples of a batch carried its gradient.

        event = gradwatch.open_event("runs")
        print(gradwatch.blame(event, train_step))
        print(gradwatch.blame(event, lambda x, y: loss_fn(y, model(x, training=True))))

    The gradient of each sample is computed by itself, as if it were a batch of one: of a mean over samples the batch's
    gradient is the mean of these. Nothing is trained: an optimizer that is reached makes no update, and every variable
    is afterwards what it was.

    Args:
      event: what `gradwatch.open_event` gave; or a batch, as the tuple of the step's arguments. Where the event has
        kept weights, the variables take them meanwhile, in their order.
      step_or_loss: the train step, watched or not; or a function of the same arguments that returns the loss, a number
        or one for each sample; or a compiled `keras.Model`.

    Returns:
      A `Blame`: the norms, the samples that carried it, and as text a sentence that names them. A norm counts the
      rows of sparse gradients as the monitor's norm does.

    Raises:
      ConfigError: the batch has no samples, or no gradient came by: the step calls a function that was traced before,
        or the loss depends on no variable.
      RecordError: the batch of the event was not kept.
    """
    batch, keywords, weights = _given(event)
    rows = rows_of([batch, keywords])
    if not rows:
        raise ConfigError("the batch has no samples: none of its arrays has rows; give blame the arguments of a step")
    norm_of, touched, trained = _traced(_function_of(step_or_loss), *_one(batch, keywords, 0, rows))
    norms = []
    with _left_as_they_were(touched):
        used = _take_weights(trained, weights)
        for i in range(rows):
            # no sample sees what another one did to a running mean, or to the seed of a dropout
            with _left_as_they_were(touched):
                norms.append(float(norm_of(*_one(batch, keywords, i, rows))))
    found = np.array(norms, np.float64)
    return Blame(found, _carriers(found), "step" if used else "now")


@contextlib.contextmanager
def _left_as_they_were(variables: Sequence[Any]) -> Iterator[None]:
    before = skip.saved(variables)
    try:
        yield
    finally:
        for variable, value in before:
            variable.assign(value)


def _given(event: Any) -> tuple[Any, Mapping[str, Any], Mapping[str, np.ndarray]]:
    """(positional arguments, keyword arguments, weights)"""
    if isinstance(event, BatchEvent):
        return event.batch, event.keywords, event.weights
    if not isinstance(event, (tuple, list)):
        raise ConfigError(
            f"event must be what gradwatch.open_event returned, or a batch such as (x, y), got {type(event).__name__}"
        )
    return tf.nest.map_structure(lambda x: x.numpy() if tf.is_tensor(x) else x, tuple(event)), {}, {}


def _one(batch: Any, keywords: Mapping[str, Any], i: int, rows: int) -> tuple[Any, Any]:
    """The arguments of a step on sample `i` alone, as tensors."""
    return _tensors(sample(batch, i, i + 1, rows)), _tensors(sample(dict(keywords), i, i + 1, rows))


def _tensors(x: Any) -> Any:
    if isinstance(x, (tuple, list)):
        return type(x)(_tensors(one) for one in x)
    if isinstance(x, Mapping):
        return {key: _tensors(one) for key, one in x.items()}
    if isinstance(x, Ragged):
        return tf.RaggedTensor.from_nested_row_splits(x.values, x.splits)
    if isinstance(x, Sparse):
        return tf.SparseTensor(x.indices, x.values, x.shape)
    return tf.convert_to_tensor(x) if isinstance(x, np.ndarray) else x


def _function_of(step_or_loss: Any) -> Callable[..., Any]:
    """What to trace: the step without whoever watches it, with no trace of before."""
    if isinstance(step_or_loss, keras.Model):
        return _loss_of(step_or_loss)
    if not callable(step_or_loss):
        raise ConfigError(
            f"step_or_loss must be a train step, a loss function or a compiled keras.Model, got {step_or_loss!r}"
        )
    body = compat.python_function(step_or_loss)
    return step_or_loss if body is None else body


def _loss_of(model: Any) -> Callable[..., Any]:
    if not getattr(model, "compiled", False):
        raise ConfigError(
            f"model {model.name!r} is not compiled, so that its loss is not known; call model.compile(...), or give "
            "blame a function that returns the loss"
        )

    def loss(x: Any, y: Any = None, sample_weight: Any = None) -> Any:
        return model.compute_loss(x=x, y=y, y_pred=model(x, training=True), sample_weight=sample_weight, training=True)

    return loss


def _traced(
    function: Callable[..., Any], batch: Any, keywords: Any
) -> tuple[Callable[..., Any], list[Any], list[list[Any]]]:
    """(arguments -> norm of the gradient, variables that this reads or writes, and lists of those that are trained).

    Nothing has run yet.
    """
    hook.install()
    trained: list[list[Any]] = []

    def norm_of(batch: Any, keywords: Any) -> tf.Tensor:
        with capture.of_updates() as captured, tf.GradientTape() as tape:
            result = function(*batch, **keywords)
        trained[:] = [[*map(updates.tf_variable, captured.variables)], list(tape.watched_variables())]
        norms = gradients.norms(captured.grads or _of_loss(tape, result))
        return tf.sqrt(tf.reduce_sum(tf.square(tf.cast(norms, tf.float64))))

    traced = tf.function(norm_of, reduce_retracing=True)
    concrete = traced.get_concrete_function(*tf.nest.map_structure(_any_length, (batch, keywords)))
    return traced, list(concrete.graph.variables), trained


def _any_length(x: Any) -> Any:
    return tf.type_spec_from_value(x) if tf.is_tensor(x) else x


def _of_loss(tape: tf.GradientTape, result: Any) -> list[Any]:
    """The gradients of what a loss function returned."""
    losses = [x for x in tf.nest.flatten(result) if tf.is_tensor(x) and x.dtype.is_floating]
    variables = tape.watched_variables()
    found = tape.gradient(losses[0], variables) if losses and variables else []
    grads = [gradient for gradient in found if gradient is not None]
    if not grads:
        raise ConfigError(
            "no gradient came by: no optimizer was applied, and what was returned depends on no variable. If the step "
            "calls a tf.function that was traced before, give blame that one; else give it a function of the same "
            "arguments that returns the loss"
        )
    return grads


def _take_weights(trained: Sequence[Sequence[Any]], weights: Mapping[str, np.ndarray]) -> bool:
    """Give the variables the values that were kept, in their order; whether they fit.

    Not by their paths: Keras numbers its layers through a process, so that another one calls them otherwise.
    """
    for variables in trained if weights else ():
        if [tuple(v.shape) for v in variables] == [value.shape for value in weights.values()]:
            for variable, value in zip(variables, weights.values()):
                variable.assign(value)
            return True
    return False


def _carriers(norms: np.ndarray) -> tuple[int, ...]:
    broken = np.flatnonzero(~np.isfinite(norms))
    if len(broken):
        return tuple(broken.tolist())
    order = np.argsort(-norms, kind="stable")
    large = [int(i) for i in order if norms[i] > _STANDS_OUT * _median(norms)]
    squares = np.square(norms / max(float(norms.max(initial=0.0)), 1e-300))
    return tuple(large) if large and squares[large].sum() >= _CARRIES * squares.sum() else ()


def _median(norms: np.ndarray) -> float:
    finite = norms[np.isfinite(norms)]
    return float(np.median(finite)) if len(finite) else float("nan")
