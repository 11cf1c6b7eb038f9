"""After a return to a snapshot a monitor judges as it did then, and has forgotten nothing that it counted."""

from __future__ import annotations

import numpy as np

from gradwatch.core import decode, detectors, policies
from gradwatch.core.guard import Guard
from gradwatch.core.rewind import rewound
from gradwatch.core.xp import NUMPY

GUARD = Guard(policies.percentile(90), detectors.default())


def steps(state, norms):
    for norm in norms:
        state, _ = GUARD.step(NUMPY, state, np.array([norm], np.float32))
    return state


def test_thresholds_are_those_of_then_and_counters_those_of_now():
    calm = np.exp(0.1 * np.random.default_rng(0).standard_normal(200))
    then = steps(GUARD.init(1), calm)
    now = steps(then, [*(1e3 * calm[:60]), *[np.nan] * 20])
    back = rewound(now, then)
    known = {"name": "m", "paths": ["w"]}
    was, is_now = decode.snapshot(GUARD, then, **known), decode.snapshot(GUARD, now, **known)
    seen = decode.snapshot(GUARD, back, **known)
    assert (seen.steps, seen.nonfinite_steps, seen.max_norm) == (280, 20, is_now.max_norm)
    assert seen.norm_counts == is_now.norm_counts
    assert seen.anomalies == is_now.anomalies
    assert seen.last_explosion == is_now.last_explosion
    assert is_now.active["nonfinite"]
    assert not any(seen.active.values())
    assert seen.nonfinite_streak == 0
    assert seen.quantiles == was.quantiles
    # the next step is judged exactly as it was then
    _, first = GUARD.step(NUMPY, then, np.array([1.5], np.float32))
    _, again = GUARD.step(NUMPY, back, np.array([1.5], np.float32))
    assert (again.clip_norm, again.threshold, again.score) == (first.clip_norm, first.threshold, first.score)
