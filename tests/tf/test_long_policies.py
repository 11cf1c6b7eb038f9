"""Up to ten million real steps under XLA for every policy that learns: constant, calm and silent runs.

tests/core/test_long_runs.py proves the same in numpy for the edges of the arguments, with fewer steps.
"""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from gradwatch.core import norms, policies
from gradwatch.core.layout import Layout
from gradwatch.core.xp import NUMPY
from gradwatch.testing import streams
from gradwatch.tf.ops import Fused

PERIOD = 1024
CALM = streams.lognormal(np.random.default_rng(0), PERIOD, 0.02)

#: policy -> (steps, lowest and highest threshold in a calm run around 1). A step on a sketch costs XLA
#: a hundred times as much as one without (in a loop on the CPU); 20,000 are twenty windows.
POLICIES = {
    policies.percentile(): (20_000, 0.985, 1.08),
    policies.percentile(100, window=100_000): (20_000, 0.985, 1.12),
    policies.median(): (20_000, 1.95, 2.06),
    policies.zscore(): (10_000_000, 1.005, 1.09),
    policies.zscore(1.5, decay=0.99999): (1_000_000, 1.005, 1.06),
    policies.per_variable(): (10_000_000, 0.985, 1.07),
    policies.per_variable(winsorise=1): (1_000_000, 0.97, 1.06),
    policies.per_variable(decay=0.99999): (1_000_000, 0.97, 1.06),
    policies.smallest(policies.zscore(3), policies.fixed(2)): (1_000_000, 1.005, 1.1),
}


def runner(policy):
    """(state vector, norms of one period, steps) -> (state, lowest and highest clip_norm), compiled by XLA."""
    layout = Layout(policy.init(1))

    @tf.function(jit_compile=True, autograph=False)
    def run(vector, period, steps):
        def step(i, vector, low, high):
            xp = Fused()  # its constants belong to this graph
            now = norms.of(xp, period[i % PERIOD][None])
            state, clip_norm, _ = policy.update(xp, layout.unpack(xp, vector), now)
            clip_norm = tf.reduce_max(clip_norm)
            # NaN goes through: a minimum would drop it
            low = tf.where((clip_norm < low) | tf.math.is_nan(clip_norm), clip_norm, low)
            return i + 1, layout.pack(xp, state), low, tf.maximum(high, clip_norm)

        start = (tf.constant(0), vector, tf.constant(np.inf, tf.float32), tf.constant(0.0))
        return tf.while_loop(lambda i, *_: i < steps, step, start)[1:]

    return layout, run


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_a_long_run_neither_sinks_a_threshold_nor_locks_it_in(policy):
    steps, lowest, highest = POLICIES[policy]
    layout, run = runner(policy)
    start = tf.constant(layout.pack(NUMPY, policy.init(1)))
    warm, *_ = run(start, tf.constant(CALM, tf.float32), 2048)

    vector, low, high = run(warm, tf.constant(CALM, tf.float32), steps)
    assert lowest < low <= high < highest, "calm"

    vector, low, high = run(warm, tf.ones(PERIOD), steps)
    assert lowest < low <= high < highest, "constant"
    assert np.all(np.isfinite(vector))

    silent, low, high = run(warm, tf.zeros(PERIOD), steps)
    assert low == high
    assert np.array_equal(silent, warm), "silent"

    # and what was learnt in all that time is given up for a new level
    *_, before = run(vector, tf.ones(PERIOD), 1)
    *_, after = run(vector, tf.fill([PERIOD], 3.0), 2 * PERIOD)
    assert after > before
