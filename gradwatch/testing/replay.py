"""Run a policy or detector over recorded norms in numpy: the very code that runs in the training graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from gradwatch.core import norms as _norms
from gradwatch.core import policies
from gradwatch.core.detectors import Detector
from gradwatch.core.norms import Norms
from gradwatch.core.policies import Policy
from gradwatch.core.xp import HUGE, NUMPY, TINY

State = Mapping[str, Any]


class Clips(NamedTuple):
    """What a policy said.

    Attributes:
      clip_norm: float32, shape [steps], or [steps, num_variables] for a policy of scope "variable".
      state: after the last step, to go on from.
    """

    clip_norm: np.ndarray
    state: State


class Alarms(NamedTuple):
    """What a detector said: arrays of the norms' shape, and the state after the last step."""

    alarm: np.ndarray  # bool
    score: np.ndarray
    threshold: np.ndarray
    state: State


def policy(
    policy: Policy | str,
    norms: np.ndarray,
    state: State | None = None,
    *,
    reach: np.ndarray | float | None = None,
    loss: np.ndarray | None = None,
    weights: np.ndarray | float | None = None,
) -> Clips:
    """clip_norm at each step.

    Args:
      policy: the policy, or its text such as "median(2)".
      norms: the global norm of each step, shape [steps], or each variable's, shape [steps, num_variables].
      state: where to go on from; None starts anew.
      reach: of each step, shape [steps], or one for all, as `gradwatch.core.norms.Norms` has it; None: not known.
      loss: of the step before each, shape [steps]; None: not known.
      weights: their norm at each step, shape [steps], or one for all; None: not known.
    """
    policy = policies.parse(policy)
    table = np.asarray(norms, np.float32).reshape(len(norms), -1)
    state = policy.init(table.shape[1]) if state is None else state
    out = []
    signals = [np.broadcast_to(np.float32(np.nan if x is None else x), (len(table),)) for x in (reach, loss, weights)]
    for row, *known in zip(table, *signals):
        state, clip_norm, _ = policy.update(NUMPY, state, _norms.of(NUMPY, row, *known))
        out.append(clip_norm)
    return Clips(np.array(out, np.float32), state)


def detector(detector: Detector, norms: np.ndarray, state: State | None = None) -> Alarms:
    """Alarm, score and threshold at each step.

    Args:
      norms: the global norm of each step, shape [steps]; or [steps, many] for many independent streams at once,
        as long as the detector looks at the global norm alone and element by element, as all of ours do.
      state: where to go on from; None starts anew.
    """
    state = detector.init(1) if state is None else state
    out = []
    for row in np.asarray(norms, np.float32):
        state, alarm, info = detector.update(NUMPY, state, _side_by_side(row))
        out.append(tuple(np.broadcast_to(x, row.shape) for x in (alarm, info["score"], info["threshold"])))
    alarm, score, threshold = (np.array(column) for column in zip(*out))
    return Alarms(alarm.astype(bool), score, _norms.decode(threshold), state)


def episodes(alarm: np.ndarray, cooldown_steps: int = 10) -> int:
    """How often an alarm began after `cooldown_steps` without one, over all streams."""
    count = 0
    for column in alarm.reshape(len(alarm), -1).T:
        at = np.flatnonzero(column)
        count += int(len(at) > 0) + int(np.sum(np.diff(at) > cooldown_steps))
    return count


def _side_by_side(row: np.ndarray) -> Norms:
    """Global norms of independent streams where one stream's belongs."""
    finite = row <= HUGE
    total = np.where(finite & (row >= TINY), row, np.float32(0))
    return Norms(
        raw=row,
        finite=finite,
        enters=total > 0,
        total=total,
        log=np.log(np.maximum(total, np.float32(TINY))),
        per_variable=total,
        broken=np.where(finite, np.float32(0), np.float32(1)),
    )
