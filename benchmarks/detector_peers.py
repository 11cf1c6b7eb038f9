"""The spike detectors that gradwatch is compared with, written from their sources: plain numpy, one object per stream.

`step` is given the global gradient norm of one step, which may be NaN or Inf, and says whether it alarms.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
from peers import ZClip


class DetectorPeer(Protocol):
    """A detector with its memory."""

    def step(self, norm: float) -> bool:
        """Whether the step with this global gradient norm is abnormal."""
        ...


class ZClipScore:
    """ZClip's z-score above 2.5, its statistics updated with what it clips to (arXiv 2504.02507)."""

    def __init__(self, z_max: float = 2.5) -> None:
        self.rule = ZClip(z_max, constant_clip=None)

    def step(self, norm: float) -> bool:
        alarm = self.rule.ready and self.rule.z(norm) > self.rule.z_max
        self.rule.step(np.array([norm]), 0.0)
        return bool(alarm)


class LogMad:
    """The log norm stands 6 robust deviations above the median of the last 200: median + 6 * 1.4826 * MAD.

    Source: Leys et al. 2013, "Detecting outliers: do not use standard deviation around the mean", on the logarithm.
    """

    def __init__(self, deviations: float = 6.0, window: int = 200, warmup: int = 25) -> None:
        self.deviations, self.warmup = deviations, warmup
        self.past: deque[float] = deque(maxlen=window)

    def step(self, norm: float) -> bool:
        if not math.isfinite(norm):
            return True
        x = math.log(max(norm, 1e-37))
        alarm = False
        if len(self.past) >= self.warmup:
            past = np.array(self.past)
            middle = np.median(past)
            alarm = x > middle + self.deviations * 1.4826 * np.median(np.abs(past - middle))
        self.past.append(x)
        return bool(alarm)


class WindowSigma:
    """The norm stands `sigmas` standard deviations above the mean of the last `window` finite norms.

    Sources: OLMo-core's SkipStepOptimizer (6 of 128, from half a window on); OLMo 2 (arXiv 2501.00656) counts as
    spikes what is 7 of 1,000.
    """

    def __init__(self, sigmas: float, window: int) -> None:
        self.sigmas, self.window = sigmas, window
        self.past: deque[float] = deque(maxlen=window)

    def step(self, norm: float) -> bool:
        alarm = False
        if len(self.past) + 1 >= max(2, self.window // 2):
            past = np.array(self.past)
            past = past[np.isfinite(past)]
            with np.errstate(all="ignore"):
                alarm = not (math.isfinite(norm) and norm - past.mean() <= self.sigmas * past.std(ddof=1))
        self.past.append(norm)
        return bool(alarm)


class DelayedMean:
    """The norm exceeds 7.5 times the mean of the norms 500 to 1,000 steps ago.

    Source: llm-foundry's outlier detection (MosaicML), which keeps recent norms out because outliers cluster.
    """

    def __init__(self, factor: float = 7.5, delay: int = 500) -> None:
        self.factor, self.delay = factor, delay
        self.recent: deque[float] = deque()
        self.old: deque[float] = deque(maxlen=delay)

    def step(self, norm: float) -> bool:
        if len(self.recent) >= self.delay:
            self.old.append(self.recent.popleft())
        self.recent.append(norm)
        return bool(self.old) and norm > self.factor * (sum(self.old) / len(self.old))


class PageHinkley:
    """Page-Hinkley on the log norm, upward.

    S_t = alpha * S_{t-1} + x_t - mean_t - delta, alarm where S_t - min S > threshold; then everything starts anew.

    Source: Page 1954; the form and defaults of the river package.
    """

    def __init__(
        self, threshold: float = 50.0, delta: float = 0.005, alpha: float = 1 - 0.0001, min_instances: int = 30
    ) -> None:
        self.threshold, self.delta, self.alpha, self.min_instances = threshold, delta, alpha, min_instances
        self._reset()

    def _reset(self) -> None:
        self.n, self.mean, self.sum, self.least = 0, 0.0, 0.0, math.inf

    def step(self, norm: float) -> bool:
        x = math.log(max(norm, 1e-37)) if norm == norm else math.nan
        self.n += 1
        self.mean += (x - self.mean) / self.n
        self.sum = self.alpha * self.sum + x - self.mean - self.delta
        self.least = min(self.least, self.sum)
        alarm = self.n >= self.min_instances and self.sum - self.least > self.threshold
        if alarm:
            self._reset()
        return bool(alarm)


#: Every detector peer by the name it has in the tables, with the settings of its source.
DETECTOR_PEERS: Mapping[str, Callable[[], DetectorPeer]] = {
    "ZClip z 2.5": ZClipScore,
    "log median / MAD 6": LogMad,
    "6 sigma of 128 (OLMo-core)": lambda: WindowSigma(6.0, 128),
    "7 sigma of 1000 (OLMo 2)": lambda: WindowSigma(7.0, 1000),
    "7.5 x delayed mean (llm-foundry)": DelayedMean,
    "Page-Hinkley (river)": PageHinkley,
}
