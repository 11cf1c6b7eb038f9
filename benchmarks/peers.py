"""The clipping rules that gradwatch is compared with, each written from its paper or its project's description.

Plain numpy on the host, one object per run. `step` is given the norms of one step and says what happens to the
gradients; whatever the published rule does with NaN, ours does too. Rules that need more than norms are in
tensor_peers.py.
"""

from __future__ import annotations

import math
from bisect import insort
from collections import deque
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import numpy as np

# torch.nn.utils.clip_grad_norm_, which most of them end in, divides by the norm plus this
_TORCH_EPSILON = 1e-6


class Verdict(NamedTuple):
    """What happens to one step.

    Attributes:
      scale: factor of each variable's gradient, shape [num_variables].
      skip: the whole update is dropped, optimizer slots included.
      clip_norm: bound of the global norm, Inf for none.
    """

    scale: np.ndarray
    skip: bool = False
    clip_norm: float = math.inf


class Seen(NamedTuple):
    """What a rule may know of the run beside the gradient, before the step.

    Attributes:
      weights: L2 norm of each variable, shape [num_variables].
      change: L2 norm of each variable's change in the step before, shape [num_variables]; zeros in the first.
      rate: learning rate of this step.
      momentum: of an optimizer that is linear in the gradient; 0 without.
      linear: whether the optimizer is (SGD), and does not divide by its own second moment (Adam).
    """

    weights: np.ndarray
    change: np.ndarray
    rate: float
    momentum: float
    linear: bool


class Peer(Protocol):
    """A rule with its memory. One that is defined for some optimizers only names them: `optimizers = ("adam",)`."""

    def step(self, norms: np.ndarray, loss: float, seen: Seen | None = None) -> Verdict:
        """Judge one step by the L2 norm of each variable's gradient, shape [num_variables], its loss, and the rest."""
        ...


def _global(norms: np.ndarray) -> float:
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.sqrt(np.sum(np.square(norms, dtype=np.float64))))


def _scaled_to(norms: np.ndarray, total: float, clip_norm: float) -> Verdict:
    """What torch's clip_grad_norm_ does: min(1, clip_norm / (total + 1e-6)), NaN kept."""
    factor = clip_norm / (total + _TORCH_EPSILON)
    return Verdict(np.full(len(norms), min(1.0, factor) if factor == factor else math.nan), clip_norm=clip_norm)


class Unclipped:
    """No clipping."""

    def step(self, norms: np.ndarray, loss: float, seen: Seen | None = None) -> Verdict:
        return Verdict(np.ones(len(norms)))


class Fixed:
    """The global norm is clipped at a constant. Source: Pascanu et al. 2013 (arXiv 1211.5063), algorithm 1."""

    def __init__(self, clip_norm: float) -> None:
        self.clip_norm = clip_norm

    def step(self, norms: np.ndarray, loss: float, seen: Seen | None = None) -> Verdict:
        return _scaled_to(norms, _global(norms), self.clip_norm)


class AutoClip:
    """The global norm is clipped at a percentile of all norms so far, the current one included.

    Source: Seetharaman et al. 2020 (arXiv 2007.14469), algorithm 1: p = 10 and the full history; window: as the
    ports for long runs do.
    """

    def __init__(self, percentile: float = 10.0, window: int | None = None) -> None:
        self.percentile = percentile
        self.recent: deque[float] = deque(maxlen=window)
        self.ordered: list[float] = []
        self.poisoned = False

    def step(self, norms: np.ndarray, loss: float, seen: Seen | None = None) -> Verdict:
        total = _global(norms)
        if len(self.recent) == self.recent.maxlen:
            old = self.recent[0]
            if old == old:
                del self.ordered[_place(self.ordered, old)]
        self.recent.append(total)
        if total == total:
            insort(self.ordered, total)
        # numpy's percentile of anything that holds a NaN is NaN
        clip_norm = self._percentile() if len(self.ordered) == len(self.recent) else math.nan
        return _scaled_to(norms, total, clip_norm)

    def _percentile(self) -> float:
        at = self.percentile / 100 * (len(self.ordered) - 1)
        low = math.floor(at)
        high = min(low + 1, len(self.ordered) - 1)
        a, b = self.ordered[low], self.ordered[high]
        return a if a == b else a + (b - a) * (at - low)


def _place(ordered: list[float], value: float) -> int:
    from bisect import bisect_left

    return bisect_left(ordered, value)


class ZClip:
    """Above a z-score of the global norm, clip to mean + z_max^2 * std / z: the farther out, the harder.

    After `warmup_steps` norms, mean and variance are running averages; a spike enters as what it was clipped to.
    `constant_clip` is applied in every step, the warm-up included; None leaves it out.

    Source: ZClip (Kumar et al. 2025, arXiv 2504.02507), section 3, and the defaults of its package.
    """

    def __init__(
        self, z_max: float = 2.5, decay: float = 0.97, warmup_steps: int = 25, constant_clip: float | None = 1.0
    ) -> None:
        self.z_max, self.decay, self.warmup_steps, self.constant_clip = z_max, decay, warmup_steps, constant_clip
        self.first: list[float] = []
        self.mean = self.var = math.nan
        self.ready = False

    def z(self, total: float) -> float:
        return (total - self.mean) / (math.sqrt(self.var) + 1e-6)

    def step(self, norms: np.ndarray, loss: float, seen: Seen | None = None) -> Verdict:
        total = _global(norms)
        if not self.ready:
            self.first.append(total)
            if len(self.first) >= self.warmup_steps:
                self.mean = sum(self.first) / len(self.first)
                self.var = sum((x - self.mean) ** 2 for x in self.first) / len(self.first)
                self.ready = True
            if self.constant_clip is None:
                return Verdict(np.ones(len(norms)))
            return _scaled_to(norms, total, self.constant_clip)
        z = self.z(total)
        kept = self.mean + self.z_max * math.sqrt(self.var) * self.z_max / z if z > self.z_max else total
        self.mean = self.decay * self.mean + (1 - self.decay) * kept
        self.var = self.decay * self.var + (1 - self.decay) * (kept - self.mean) ** 2
        bound = kept if self.constant_clip is None else min(kept, self.constant_clip)
        # the comparison is false for NaN: then nothing is clipped
        factor = bound / (total + _TORCH_EPSILON) if total > bound else 1.0
        return Verdict(np.full(len(norms), factor), clip_norm=bound)


class AdaGC:
    """Each variable's norm is clipped at `ratio` times the running mean of its own clipped norms.

    During the warm-up the global norm is clipped at `constant_clip` and each mean follows the smallest norm.

    Source: AdaGC (Wang et al. 2025, arXiv 2502.11034), algorithm 1, its absolute warm-up included: ratio (lambda_rel)
    1.05, constant (lambda_abs) 1.0, beta 0.98, 100 steps. Checked against two independent descriptions of it.
    `whole=True` treats all variables as one.
    """

    def __init__(
        self,
        ratio: float = 1.05,
        constant_clip: float = 1.0,
        decay: float = 0.98,
        warmup_steps: int = 100,
        *,
        whole: bool = False,
    ) -> None:
        self.ratio, self.constant_clip, self.decay, self.warmup_steps = ratio, constant_clip, decay, warmup_steps
        self.whole = whole
        self.gamma: np.ndarray | None = None
        self.steps = 0

    def step(self, norms: np.ndarray, loss: float, seen: Seen | None = None) -> Verdict:
        x = np.array([_global(norms)]) if self.whole else np.asarray(norms, np.float64)
        before = np.full(len(x), math.inf) if self.gamma is None else self.gamma
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            if self.steps < self.warmup_steps:
                h = np.full(len(x), np.minimum(self.constant_clip / _global(x), 1.0))
                self.gamma = np.minimum(before, h * x)
            else:
                h = np.where(x > 0, np.minimum(self.ratio * before / x, 1.0), 1.0)
                self.gamma = self.decay * before + (1 - self.decay) * h * x
        self.steps += 1
        return Verdict(np.full(len(norms), h[0]) if self.whole else h)


class GradientStabilizer:
    """Each variable's gradient keeps its direction and gets the length mean / root mean square of its recent norms.

        m <- gamma1 * m + (1 - gamma1) * |g|      v <- gamma2 * v + (1 - gamma2) * |g|^2      both bias-corrected
        g <- g / |g| * m / (sqrt(v) + epsilon)

    So every gradient is about 1 long, whatever it was before: this is no clipping, and made for optimizers that divide
    by their second moment. A norm that is zero or not finite changes nothing and teaches nothing.

    Source: Huang et al. 2025 (arXiv 2502.17055, from version 3 on; before, as "AdaGN" in Stable-SPAM with 0.7 and 0.9)
    and the authors' code (TianjinYellow/GradientStabilizer): gamma1 0.6, gamma2 0.999, epsilon 1e-12.
    """

    optimizers = ("adam",)

    def __init__(self, gamma1: float = 0.6, gamma2: float = 0.999, epsilon: float = 1e-12) -> None:
        self.gamma1, self.gamma2, self.epsilon = gamma1, gamma2, epsilon
        self.m = self.v = self.steps = np.zeros(0)

    def step(self, norms: np.ndarray, loss: float, seen: Seen | None = None) -> Verdict:
        x = np.asarray(norms, np.float64)
        if not len(self.m):
            self.m = self.v = self.steps = np.zeros(len(x))
        counts = np.isfinite(x) & (x > 0)
        usable = np.where(counts, x, 1.0)
        self.steps = self.steps + counts
        self.m = np.where(counts, self.gamma1 * self.m + (1 - self.gamma1) * usable, self.m)
        self.v = np.where(counts, self.gamma2 * self.v + (1 - self.gamma2) * usable**2, self.v)
        steps = np.maximum(self.steps, 1)
        mean, square = self.m / (1 - self.gamma1**steps), self.v / (1 - self.gamma2**steps)
        length = mean / (np.sqrt(square) + self.epsilon)
        return Verdict(np.where(counts, length / np.maximum(usable, self.epsilon), 1.0))


class MedianOfPeriod:
    """The global norm is clipped at twice the median of the last whole period of 100 norms.

    Source: icefall's ScaledAdam (k2-fsa), on plain norms: there, norms are weighted by the size of the parameters.
    Nothing is clipped during the first period, whose place 0 stays empty (0), as there.
    """

    def __init__(self, factor: float = 2.0, period: int = 100) -> None:
        self.factor, self.period = factor, period
        self.norms = np.zeros(period)
        self.threshold = math.inf
        self.steps = 0

    def step(self, norms: np.ndarray, loss: float, seen: Seen | None = None) -> Verdict:
        t, total = self.steps, _global(norms)
        self.steps += 1
        if t == 0:
            return Verdict(np.ones(len(norms)))
        self.norms[t % self.period] = total
        if t % self.period == 0:
            self.threshold = self.factor * float(np.sort(self.norms)[self.period // 4 * 2])
        if t < self.period:
            return Verdict(np.ones(len(norms)))
        ratio = self.threshold / (total + 1e-20)
        # Python's min keeps its first argument where the second is NaN
        return Verdict(np.full(len(norms), min(1.0, ratio)), clip_norm=self.threshold)


class SkipStep:
    """The update is skipped where loss or global norm is 6 standard deviations above the last 128, or not finite.

    Source: OLMo-core's SkipStepOptimizer (Ai2); it begins after half a window. Finite values enter as they are,
    those of skipped steps too.
    """

    def __init__(self, sigmas: float = 6.0, window: int = 128) -> None:
        self.sigmas, self.window = sigmas, window
        self.losses: deque[float] = deque(maxlen=window)
        self.totals: deque[float] = deque(maxlen=window)

    def step(self, norms: np.ndarray, loss: float, seen: Seen | None = None) -> Verdict:
        total = _global(norms)
        skip = False
        if len(self.losses) + 1 >= max(2, self.window // 2):
            within = _within(self.losses, loss, self.sigmas) and _within(self.totals, total, self.sigmas)
            skip = not (within and math.isfinite(loss) and math.isfinite(total))
        self.losses.append(loss)
        self.totals.append(total)
        return Verdict(np.ones(len(norms)), skip=skip)


def _within(past: deque[float], value: float, sigmas: float) -> bool:
    x = np.array(past)
    x = x[np.isfinite(x)]
    with np.errstate(all="ignore"):
        std = np.std(x, ddof=1) if len(x) > 1 else math.nan
        return bool(value - np.mean(x) <= sigmas * std) if len(x) else False


#: Every peer by the name it has in the tables, with the settings of its source.
PEERS: Mapping[str, Callable[[], Peer]] = {
    "none": Unclipped,
    "fixed 1": lambda: Fixed(1.0),
    "AutoClip p10": lambda: AutoClip(10.0),
    "AutoClip p90, 1000": lambda: AutoClip(90.0, 1000),
    "ZClip": ZClip,
    "ZClip, no constant": lambda: ZClip(constant_clip=None),
    "AdaGC": AdaGC,
    "GradientStabilizer": GradientStabilizer,
    "median x 2 (icefall)": MedianOfPeriod,
    "skip 6 sigma (OLMo-core)": SkipStep,
}
