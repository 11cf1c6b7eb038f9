"""A monitor's state after its training went back to a snapshot: the statistics of then, the counts of now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: What the state knows of the whole run, which goes on: counters only go up, and the history is what happened.
_GOES_ON = ("count", "last", "history")
_RUN_GOES_ON = ("max_norm", "sum", "sum_rest")


def rewound(now: Mapping[str, Any], then: Mapping[str, Any]) -> dict[str, Any]:
    """The state tree of a guard from which it goes on.

    Policy and detectors judge by the norms of the time of the snapshot, so that the explosion has taught them nothing.
    What was counted stays counted, and the newest episode of each kind stays known, but it is over.

    Args:
      now, then: trees of numpy arrays of one structure, see `Guard.init`.
    """
    episodes = {
        kind: {
            **row,
            "active": then["episodes"][kind]["active"] * row["active"],
            "calm": then["episodes"][kind]["calm"],
        }
        for kind, row in now["episodes"].items()
    }
    run = {**then["run"], **{name: now["run"][name] for name in _RUN_GOES_ON}}
    return {**then, **{name: now[name] for name in _GOES_ON}, "run": run, "episodes": episodes}
