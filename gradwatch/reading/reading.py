"""What the host knows about one monitor at one instant: its snapshot, and what only the host can tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gradwatch.core.snapshot import KINDS, Snapshot
from gradwatch.diagnosis.verdict import Diagnosis
from gradwatch.reading.harm import Harm

#: Upper bounds in seconds of the histogram of snapshot durations; +Inf is implied.
DURATION_BOUNDS = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)


@dataclass(frozen=True)
class Reading:
    """What is known about one monitor at one instant. Times are Unix seconds; 0.0 means never.

    Attributes:
      name: the monitor's name, made safe to show (see `text.clean`).
      snapshot: the monitor's own numbers.
      run_id: of the run.
      run_info: strategy, replicas, precision, policy, run_name: whatever the monitor tells.
      host_seconds: time gradwatch's host side took from the training thread so far.
      run_start_time: when the monitor was registered.
      last_step_time: when `steps` was last seen to change.
      active: whether the run is under way.
      last_anomaly_time: kind -> when its newest episode was first seen.
      duration_counts: snapshots no slower than each of `DURATION_BOUNDS`, cumulative; the last one counts all.
      duration_sum: seconds spent in all snapshots.
      diagnosis: the newest verdict; None before the first one.
      harm: what the anomalies did to the training, and which steps were useful.
      recorded: steps in the run's record so far, and looks that its disk did not take.
    """

    name: str
    snapshot: Snapshot
    run_id: str = ""
    run_info: Mapping[str, str] = field(default_factory=dict)
    host_seconds: float = 0.0
    run_start_time: float = 0.0
    last_step_time: float = 0.0
    active: bool = False
    last_anomaly_time: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(KINDS, 0.0))
    duration_counts: tuple[int, ...] = (0,) * (len(DURATION_BOUNDS) + 1)
    duration_sum: float = 0.0
    recorded: tuple[int, int] = (0, 0)
    diagnosis: Diagnosis | None = None
    harm: Harm = field(default_factory=Harm)
