"""An anchor in a run's own healthy past: a level that a slow drift cannot take along as it takes a running mean.

It follows freely where that is harmless, and against that direction by max(0.0001, 1 / (n + 9)) a step at most, n the
norms so far: a power law of the step is followed in the beginning, later one decade in 23,000 steps.
"""

from __future__ import annotations

import math

from gradwatch.core.xp import Array, Namespace

DRIFT = 1e-4  # of an anchor in a step
DECADES = math.log(1000.0)  # away from an anchor: whoever stands so far off has left the run's healthy past


def follow(xp: Namespace, held: Array, level: Array, seen: Array, *, falls: bool) -> Array:
    """The anchor after a step, shape ().

    Args:
      held: the anchor before it.
      level: what it follows, a logarithm.
      seen: norms before the step; the first one sets the anchor.
      falls: whether the anchor falls freely and rises slowly, or the other way round.
    """
    drift = xp.maximum(1.0 / (seen + 9.0), DRIFT)
    moved = xp.minimum(level, held + drift) if falls else xp.maximum(level, held - drift)
    return xp.where(seen > 0.0, moved, level)
