"""Where the loss of a healthy run lies: the band that harm is measured by."""

from __future__ import annotations

import math
import statistics
from collections import deque

_CALM_LOSSES = 200  # losses that the band is made of
_LEAST_CALM = 20  # below it, the first loss of the run takes the place of the band
_BAND_EVERY = 20  # new calm losses between two bands
_LASTING_SHARE = 0.1  # of the usual loss, that a rise must have to say something where it lasts
_LASTING = 1.5  # deviations: a median of 100 independent losses has a deviation of 0.13
_BLOCK, _LEAST_BLOCKS = 50, 6  # losses of which one median is taken; so many medians show how it wanders
_WANDER = 2.5  # times the largest rise so far that was followed by no harm
_NEWEST_BLOCKS = 4  # that D leaves out


class LossBand:
    """The upper ends of the band, out of the calm losses of a run.

        m + max(far * s, share * |m|),   m, s: median and scaled median absolute deviation of the last 200 calm losses

    A median of many losses has little noise of its own, so that less of a rise says something where it lasts:

        m + max(1.5 * s, 0.1 * |m|, 2.5 * D),   D: most that a median of 50 calm losses was above an earlier one,
                                                the newest 200 losses left out: they may be what is to be judged

    Before there are 20 calm losses the band ends at L + 2 |L|, L the first loss of the run. A loss is wild above both.

    Attributes:
      first: the first loss of the run; NaN before it.
      usual: median of the calm losses; NaN before there are 20.
      spread: their scaled median absolute deviation.
    """

    def __init__(self) -> None:
        self.first: float = math.nan
        self.usual: float = math.nan
        self.spread: float = math.nan
        self._calm: deque[float] = deque(maxlen=_CALM_LOSSES)
        self._end: float | None = None
        self._since = 0
        self._lowest = (math.inf, 0.0)
        self._block: list[float] = []
        self._newest: deque[float] = deque()
        self._blocks, self._low, self._rise = 0, math.inf, 0.0

    @property
    def is_known(self) -> bool:
        """Whether there are enough calm losses."""
        return self._end is not None

    @property
    def ends(self) -> tuple[float, float]:
        """(harmed from, wild from): losses above."""
        far = self.first + 2.0 * abs(self.first) + 1e-6
        return (far, far) if self._end is None else (self._end, max(self._end, far))

    @property
    def lasting_end(self) -> float:
        """A median of 100 losses above it is no chance; Inf before there are 500 calm losses."""
        if not self.is_known or self._blocks < _LEAST_BLOCKS:
            return math.inf
        return self.usual + max(_LASTING * self.spread, _LASTING_SHARE * abs(self.usual), _WANDER * self._rise)

    @property
    def has_learned(self) -> bool:
        """Whether the usual loss is lower than the first one, by a tenth."""
        return bool(self.usual <= self.first - 0.1 * abs(self.first))

    def add(self, *losses: float, anchored: bool = False, far: float = 6.0, share: float = 0.2) -> None:
        """Take calm losses, oldest first; the band is made anew at most once.

        Args:
          anchored: m and s are those of the lowest median so far, so that the band does not follow a slow rise.
          far, share: of the band's width.
        """
        self._calm.extend(losses)
        self._since += len(losses)
        self._block.extend(losses)
        while len(self._block) >= _BLOCK:
            self._take_block(statistics.median(self._block[:_BLOCK]))
            del self._block[:_BLOCK]
        if len(self._calm) < _LEAST_CALM or (self._end is not None and self._since < _BAND_EVERY):
            return
        middle = statistics.median(self._calm)
        spread = 1.4826 * statistics.median([abs(loss - middle) for loss in self._calm])
        if not anchored or middle < self._lowest[0]:
            self._lowest = middle, spread
        self.usual, self.spread = self._lowest
        self._end, self._since = self.usual + max(far * self.spread, share * abs(self.usual)), 0

    def forget_newest(self) -> None:
        """The newest losses were not calm: how far they rose is no measure of how a healthy loss wanders."""
        self._newest.clear()
        self._block.clear()

    def _take_block(self, middle: float) -> None:
        self._newest.append(middle)
        if len(self._newest) > _NEWEST_BLOCKS:
            middle = self._newest.popleft()
            self._blocks += 1
            self._rise = max(self._rise, middle - self._low)
            self._low = min(self._low, middle)

    def restart(self, first: float) -> None:
        """What was is no measure any more: from `first` on it is another task."""
        self.first, self.usual, self.spread = first, math.nan, math.nan
        self._calm.clear()
        self._end, self._lowest = None, (math.inf, 0.0)
        self.forget_newest()
        self._blocks, self._low, self._rise = 0, math.inf, 0.0
