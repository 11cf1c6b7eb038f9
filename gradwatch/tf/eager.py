"""A step of a monitor in eager mode: one function instead of a hundred operations, each of which costs a call.

What the host has at hand goes in as numbers. Where it is not time to look at the weights, which is known on the CPU
before, the function knows nothing of the variables.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from gradwatch.core.guard import NOT_KNOWN, Decision
from gradwatch.tf.devices import at_hand
from gradwatch.tf.gradients import Gradient
from gradwatch.tf.last_loss import LastLoss
from gradwatch.tf.updates import tf_variable
from gradwatch.tf.weights import Look, Weights

#: (gradients, loss scale or None, signals, *rest) -> (scaled gradients, decision)
Judge = Callable[..., tuple[list[Gradient], Decision]]


class EagerStep:
    """The step of one monitor, of the state that was built last; for a single replica.

    Args:
      judge: what is done to the gradients, once all signals are known.
      weights, loss: of the monitor.
    """

    def __init__(self, judge: Judge, weights: Weights, loss: LastLoss) -> None:
        self._judge, self._weights, self._loss = judge, weights, loss
        self._functions: dict[Any, Callable[..., Any]] = {}

    def __call__(
        self,
        grads: Sequence[Gradient],
        variables: Sequence[Any] | None,
        plan: Look,
        told: Sequence[Any],
        loss_scale: tf.Tensor | None,
        *how: Any,
    ) -> tuple[list[Gradient], Decision, tuple[Any, ...]]:
        """(scaled gradients, decision, what `Weights.follow` takes).

        Args:
          grads: without None.
          variables: theirs; None where they are not known.
          plan: what `Weights.plan` said.
          told: learning_rate / (1 - momentum), learning rate, mean squares of input and target.
          loss_scale: shape (); None where there is none.
          how: the rest of what `judge` takes; can be hashed.
        """
        flat = [part for gradient in grads for part in _parts(gradient)]
        kinds = tuple(len(_parts(gradient)) for gradient in grads)
        sparse = len(flat) > len(grads)
        # rows of slices come in any number
        shapes = None if sparse else tuple((x.dtype, x.shape) for x in flat)
        key = (plan, how, loss_scale is None, kinds, shapes)
        numbers = _vector([*told, self._loss.begin(), *([] if loss_scale is None else [loss_scale])])
        held = [tf_variable(v) for v in variables or ()] if plan.reads else []
        function = self._functions.get(key)
        if function is None:
            whole = [tf.TensorSpec(tuple(v.shape), v.dtype) for v in variables or ()]
            function = tf.function(self._of(plan, how, kinds, whole), autograph=False, reduce_retracing=True)
            if not sparse and not held:
                # called without a look at what its arguments are: the key says so
                function = function.get_concrete_function(*(tf.TensorSpec(x.shape, x.dtype) for x in (numbers, *flat)))
            self._functions[key] = function
        out, decision, update = function(numbers, *flat, *([held] if held else []))
        scaled = [
            tf.IndexedSlices(x, g.indices, g.dense_shape) if isinstance(g, tf.IndexedSlices) else x
            for x, g in zip(out, grads)
        ]
        return scaled, Decision(*decision), update

    def _of(self, plan: Look, how: Any, kinds: Sequence[int], whole: Sequence[Any]) -> Callable[..., Any]:
        """The function of these; the variables are its last argument: what is captured would live as long as it."""

        def run(numbers: tf.Tensor, *given: Any) -> tuple[Any, ...]:
            flat, variables = (given[:-1], given[-1]) if plan.reads else (given, whole)
            pieces = iter(flat)
            grads = [_gradient(*(next(pieces) for _ in range(kind))) for kind in kinds]
            speed, rate, first, last, own, *scale = tf.unstack(numbers)
            loss = self._loss.exchange(lambda: own)
            top, ratio, update = self._weights.look(plan, variables)
            signals = tf.stack([top, speed, loss, ratio, rate, first, last, NOT_KNOWN, NOT_KNOWN])
            out, decision = self._judge(grads, scale[0] if scale else None, signals, *how)
            return [x.values if isinstance(x, tf.IndexedSlices) else x for x in out], tuple(decision), update

        return run


def _parts(gradient: Gradient) -> Sequence[tf.Tensor]:
    if not isinstance(gradient, tf.IndexedSlices):
        return (gradient,)
    shape = gradient.dense_shape
    return (gradient.values, gradient.indices) if shape is None else (gradient.values, gradient.indices, shape)


def _gradient(*parts: tf.Tensor) -> Gradient:
    return parts[0] if len(parts) == 1 else tf.IndexedSlices(*parts)


def _vector(numbers: Sequence[Any]) -> tf.Tensor:
    """These as one tensor of float32, made on the host where it has all of them."""
    numbers = [at_hand(x) for x in numbers]
    if any(tf.is_tensor(x) for x in numbers):
        return tf.stack([tf.cast(x, tf.float32) for x in numbers])
    return tf.constant(np.array(numbers, np.float32))
