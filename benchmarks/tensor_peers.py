"""The peers that need more than norms: single weights, single gradients, or the update that the optimizer made.

One graph trains all methods side by side, so a `TensorRule` is a few tensor operations inside that graph
(`efficacy.Trainer`). It is handed the tensors of its own run only, without the axis of the runs: its formulas read as
those of the paper. It may act in two places, and what it leaves out changes nothing:

    gradients -> [gradients] -> optimizer -> [update] -> weights

Where a source could not be read to the end, the docstring says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import tensorflow as tf

#: Tensors in the order of the variables.
Tensors = list[Any]


class Step(NamedTuple):
    """What a rule knows of one step.

    Attributes:
      weights: the variables before the step, as they are shaped in the model.
      gradients: before clipping.
      second: Adam's second moment of this step, bias-corrected; None under SGD.
      rate: learning rate, shape ().
      momentum: of SGD; 0 under Adam.
      linear: the update is linear in the gradient (SGD).
    """

    weights: Tensors
    gradients: Tensors
    second: Tensors | None
    rate: Any
    momentum: float
    linear: bool


class TensorRule:
    """A rule on tensors. Both places change nothing unless a subclass says otherwise; `state` is a list of tensors.

    Attributes:
      optimizers: where the rule is defined, of "sgd" and "adam"; it is not trained elsewhere.
    """

    optimizers: tuple[str, ...] = ("sgd", "adam")

    def init(self, weights: Tensors) -> Tensors:
        """The state before the first step, made from the untrained weights."""
        return []

    def gradients(self, step: Step, state: Tensors) -> tuple[Tensors, Tensors]:
        """(the gradients for the optimizer, new state); `step.second` is not known yet and None."""
        return step.gradients, state

    def update(self, update: Tensors, step: Step, state: Tensors) -> Tensors:
        """What is subtracted from the weights, given what the optimizer would subtract (learning rate included)."""
        return update


def _norm(x: Any, axes: list[int] | None = None) -> Any:
    return tf.sqrt(tf.reduce_sum(tf.square(x), axes, keepdims=axes is not None))


def _global_norm(tensors: Tensors) -> Any:
    return tf.sqrt(tf.add_n([tf.reduce_sum(tf.square(x)) for x in tensors]))


class AGC(TensorRule):
    """Each unit's gradient is clipped at a share of the norm of the unit's weights.

        G_i <- G_i * min(1, share * max(|W_i|, floor) / |G_i|)

    A unit is a column of a matrix [inputs, outputs], a filter of a convolution [h, w, inputs, outputs], and a vector
    as a whole. The last layer, which is the last matrix and what follows it, is left alone, as in the paper; a model of
    one layer is clipped whole.

    Source: Brock et al. 2021 (arXiv 2102.06171), section 4: share (lambda) 0.01, floor (epsilon) 1e-3; the authors'
    code (deepmind-research, nfnets). That the last layer is left alone is quoted from reviews of the paper.
    """

    def __init__(self, share: float = 0.01, floor: float = 1e-3) -> None:
        self.share, self.floor = share, floor

    def gradients(self, step: Step, state: Tensors) -> tuple[Tensors, Tensors]:
        matrices = [i for i, w in enumerate(step.weights) if w.shape.rank >= 2]
        last = matrices[-1] if len(matrices) > 1 else len(step.weights)
        clipped = [self._clip(g, w) for g, w in zip(step.gradients[:last], step.weights[:last])]
        return clipped + step.gradients[last:], state

    def _clip(self, gradient: Any, weights: Any) -> Any:
        axes = list(range(gradient.shape.rank - 1)) if gradient.shape.rank > 1 else None
        limit = self.share * tf.maximum(_norm(weights, axes), self.floor)
        norm = _norm(gradient, axes)
        # as in the authors' code: where, not a minimum, so that nothing is touched below the limit
        return tf.where(norm < limit, gradient, gradient * (limit / tf.maximum(norm, 1e-6)))


class Clippy(TensorRule):
    """No weight moves by more than a share of itself plus a constant; a variable's whole update shrinks for it.

        update <- update * min(1, min over i of (relative * |w_i| + absolute) / |update_i|)

    Source: Tang et al. 2023 (arXiv 2302.09178) and the authors' code (tensorflow/recommenders, ClippyAdagrad). The
    paper clips Adagrad's update; here it is that of the task's own optimizer. relative 0.5 and absolute 0.01 are the
    settings of two independent ports, which name the paper; its text could not be read. The defaults of the authors'
    code, 0.1 and 1e-7, keep a variable that starts at zero there for a hundred steps.
    """

    def __init__(self, relative: float = 0.5, absolute: float = 0.01) -> None:
        self.relative, self.absolute = relative, absolute

    def update(self, update: Tensors, step: Step, state: Tensors) -> Tensors:
        return [self._shrink(u, w) for u, w in zip(update, step.weights)]

    def _shrink(self, update: Any, weights: Any) -> Any:
        limit = self.relative * tf.abs(weights) + self.absolute
        size = tf.abs(update)
        ratios = tf.where(size == 0.0, 1.0, limit / tf.where(size == 0.0, 1.0, size))
        return update * tf.minimum(1.0, tf.reduce_min(ratios))


class StableAdamW(TensorRule):
    """The learning rate of each variable is divided by how far its gradients exceed what Adam expects of them.

        RMS_t = sqrt(mean(g_t^2 / max(v_t, epsilon^2)))      update <- update / max(1, RMS_t)

    v_t is the bias-corrected second moment, g_t's own share in it. Defined for Adam alone.

    Source: Wortsman et al. 2023 (arXiv 2304.13013), algorithm 2, after Adafactor's update clipping (Shazeer and Stern
    2018); read in the documentation of optimi's StableAdamW. Only the clipping is taken over: beta_2 (0.99 there) and
    weight decay stay those of the task.
    """

    optimizers = ("adam",)

    def __init__(self, epsilon: float = 1e-6) -> None:
        self.epsilon = epsilon

    def update(self, update: Tensors, step: Step, state: Tensors) -> Tensors:
        if step.second is None:
            raise ValueError("StableAdamW is defined for Adam alone, got SGD: see TensorRule.optimizers")
        return [u / tf.maximum(1.0, self._rms(g, v)) for u, g, v in zip(update, step.gradients, step.second)]

    def _rms(self, gradient: Any, second: Any) -> Any:
        return tf.sqrt(tf.reduce_mean(tf.square(gradient) / tf.maximum(second, self.epsilon**2)))


class DoG(TensorRule):
    """The learning rate is held below the step size that DoG would choose.

        eta_t = max(r_epsilon, max over i <= t of |w_i - w_0|) / sqrt(sum over i <= t of |g_i|^2 + epsilon)

    DoG is a step size for SGD, not a clipping rule, so "bound" is our reading of it: the run keeps the learning rate
    that it was given and may not exceed eta_t. Under SGD the gradient is scaled by min(1, (1 - momentum) * eta_t /
    rate): a gradient that lasts moves the weights by rate / (1 - momentum) times itself. Adam's update does not follow
    the gradient's length; there it may not be longer than DoG's step, eta_t * |g_t|.

    Source: Ivgi et al. 2023 (arXiv 2302.12022), equation DoG with r_epsilon = 1e-6 * (1 + |w_0|), as in optax; the
    averaging of iterates that the paper recommends is left out.
    """

    def __init__(self, first: float = 1e-6, epsilon: float = 1e-8) -> None:
        self.first, self.epsilon = first, epsilon

    def init(self, weights: Tensors) -> Tensors:
        return [tf.zeros([]), self.first * (1.0 + _global_norm(weights)), *[tf.identity(w) for w in weights]]

    def gradients(self, step: Step, state: Tensors) -> tuple[Tensors, Tensors]:
        squares, farthest, *start = state
        farthest = tf.maximum(farthest, _global_norm([w - w0 for w, w0 in zip(step.weights, start)]))
        squares += tf.square(_global_norm(step.gradients))
        state = [squares, farthest, *start]
        if not step.linear:
            return step.gradients, state
        factor = tf.minimum(1.0, (1.0 - step.momentum) * self._step_size(state) / step.rate)
        return [g * factor for g in step.gradients], state

    def update(self, update: Tensors, step: Step, state: Tensors) -> Tensors:
        if step.linear:
            return update
        longest = self._step_size(state) * _global_norm(step.gradients)
        factor = tf.minimum(1.0, tf.math.divide_no_nan(longest, _global_norm(update)))
        return [u * factor for u in update]

    def _step_size(self, state: Tensors) -> Any:
        squares, farthest, *_ = state
        return farthest / tf.sqrt(squares + self.epsilon)


class RuleSet:
    """The rules of those runs that have one, for a trainer whose tensors have the runs as first axis.

    Args:
      rules: run -> its rule.
      params: the untrained variables, shape [runs, ...] each.
      momentum, linear: of the optimizer, see `Step`.

    Attributes:
      acted: whether a rule made something shorter in the last step, shape [runs].
    """

    def __init__(self, rules: Mapping[int, TensorRule], params: Tensors, momentum: float, linear: bool) -> None:
        self.rules, self.momentum, self.linear = dict(rules), momentum, linear
        self.acted = tf.Variable(tf.zeros([params[0].shape[0]], tf.bool))
        self.state = {
            run: [tf.Variable(x) for x in rule.init([p[run] for p in params])] for run, rule in self.rules.items()
        }

    def _step(self, run: int, params: Tensors, grads: Tensors, second: Tensors | None, rate: Any) -> Step:
        parts = [None if x is None else [a[run] for a in x] for x in (params, grads, second)]
        return Step(*parts, rate, self.momentum, self.linear)  # type: ignore[arg-type]

    def gradients(self, params: Tensors, grads: Tensors, rate: Any) -> Tensors:
        """The gradients for the optimizer; the states move on."""
        before = grads
        for run, rule in self.rules.items():
            state = self.state[run]
            own, new = rule.gradients(self._step(run, params, grads, None, rate), [tf.identity(x) for x in state])
            for variable, value in zip(state, new):
                variable.assign(value)
            grads = [_replaced(g, run, x) for g, x in zip(grads, own)]
        self.acted.assign(_shorter(grads, before))
        return grads

    def update(self, update: Tensors, params: Tensors, grads: Tensors, second: Tensors | None, rate: Any) -> Tensors:
        """What is subtracted from the weights; `grads` as they came, before any rule."""
        before = update
        for run, rule in self.rules.items():
            step = self._step(run, params, grads, second, rate)
            own = rule.update([u[run] for u in update], step, [tf.identity(x) for x in self.state[run]])
            update = [_replaced(u, run, x) for u, x in zip(update, own)]
        self.acted.assign(self.acted | _shorter(update, before))
        return update


def _shorter(after: Tensors, before: Tensors) -> Any:
    """Whether any variable of a run is shorter than it was, shape [runs]."""
    axes = [list(range(1, x.shape.rank)) for x in after]
    lengths = [[tf.reduce_sum(tf.square(x), a) for x, a in zip(tensors, axes)] for tensors in (after, before)]
    return tf.reduce_any([a < 0.9998 * b for a, b in zip(*lengths)], 0)


def _replaced(tensor: Any, run: int, value: Any) -> Any:
    """`tensor` with another part for this run."""
    return tf.concat([tensor[:run], value[None], tensor[run + 1 :]], 0)


#: Every such peer by the name it has in the tables, with the settings of its source.
TENSOR_PEERS: Mapping[str, Callable[[], TensorRule]] = {
    "AGC": AGC,
    "Clippy": Clippy,
    "StableAdamW": StableAdamW,
    "DoG as a bound": DoG,
}
