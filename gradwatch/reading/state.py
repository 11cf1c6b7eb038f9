"""How a run is doing, in a word or two."""

from __future__ import annotations

from collections.abc import Mapping

from gradwatch.core.snapshot import KINDS

#: A run that is under way stalls after this long without a step: here, on the dashboards and in the alert rules.
STALL_SECONDS = 600

#: Kind of anomaly -> (word, tone).
_ANOMALIES = {
    "nonfinite": ("NaN or Inf", "critical"),
    "explosion": ("exploding", "critical"),
    "saturated": ("saturated", "warning"),
    "vanishing": ("vanishing", "warning"),
    "trend": ("growing", "warning"),
}

#: Tones, calm to urgent.
TONES = ("ok", "info", "warning", "critical")


def state_of(
    *, steps: float, running: bool, warmup: bool, active: Mapping[str, bool], idle_seconds: float
) -> tuple[str, str]:
    """The state of a run as (word, tone), the tone being one of `TONES`.

    Args:
      steps: optimizer steps so far.
      running: whether the run is under way.
      warmup: whether a detector of explosions still gathers statistics.
      active: kind of anomaly -> whether an episode is under way.
      idle_seconds: since the last step was seen.
    """
    if not steps:
        return "waiting for the first step", "info"
    if not running:
        return "ended", "info"
    for kind in KINDS:
        if active.get(kind):
            return _ANOMALIES[kind]
    if idle_seconds > STALL_SECONDS:
        return f"no step for {idle_seconds:,.0f} s", "warning"
    return ("warming up", "info") if warmup else ("healthy", "ok")
