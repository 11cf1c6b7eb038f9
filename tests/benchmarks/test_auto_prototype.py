"""Congestion control of the clip norm, against the rule written out in plain words."""

from __future__ import annotations

import auto_prototype as prototype
import numpy as np
import pytest

from gradwatch.core import norms, sketch
from gradwatch.core.guard import Guard
from gradwatch.core.xp import NUMPY


def clip_norms(policy, x):
    state, out = policy.init(1), []
    for value in x:
        now = norms.of(NUMPY, np.array([value], np.float32))
        state, clip_norm, _ = policy.update(NUMPY, state, now)
        out.append(float(clip_norm))
    return np.array(out)


def test_it_is_slow_start_backoff_and_recovery_on_the_tenth_percentile():
    """Oracle: an exact weighted percentile instead of the sketch, gains in plain numbers."""
    rng = np.random.default_rng(0)
    x = rng.lognormal(0, 0.3, 600)
    x[[300, 450]] = 40.0, np.nan
    found = clip_norms(prototype.congestion(), x)
    gain, base, rest, events, values, weights = 0.02, None, 10**6, 0, [], []
    for t, value in enumerate(x):
        base = value if base is None else base
        assert found[t] == pytest.approx(gain * base, rel=0.05), t
        event = not np.isfinite(value) or value > 8 * base
        if event:
            gain, rest, events = gain / 2, 0, events + 1
        else:
            rest += 1
            if rest > 5:
                gain = min(gain * 1.003, max(gain, 1.0)) if events else min(gain * 1.02, max(gain, 1.0))
        if np.isfinite(value):
            weights = [w * (1 - 1 / 1000) for w in weights] + [1.0]
            values.append(min(value, 8 * base))
            order = np.argsort(values)
            total = np.cumsum(np.array(weights)[order])
            percentile = np.array(values)[order][np.searchsorted(total, 0.1 * total[-1])]
            base = value if t == 0 else min(percentile, base * 1.001)
    assert events == 2


def test_an_explosion_does_not_raise_its_own_limit():
    x = np.r_[np.ones(500), 1.05 ** np.arange(200)]
    found = clip_norms(prototype.congestion(), x)
    # the base alone could rise by 0.1 % a step, and the first event halves the gain
    assert found[500:].max() <= found[499] * 1.001**200 * 1.02**200
    assert found[-1] < 0.1 * found[499] * 1.001**200


def test_nothing_that_comes_in_makes_the_limit_unusable():
    x = np.r_[np.nan, 0.0, 1e-30, 1e30, np.inf, np.ones(50), 1e36, np.zeros(20), np.ones(50)]
    found = clip_norms(prototype.congestion(), x)
    assert np.all(np.isfinite(found[2:]))
    assert np.all(found >= 0)


def test_the_guard_accepts_it_and_scales_with_the_gradients():
    rng = np.random.default_rng(1)
    rows = rng.lognormal(0, 0.4, (300, 3)).astype(np.float32)
    guard = Guard(prototype.congestion(), ())
    # a power of two of the bucket's width would be exact; the sketch answers to 1 %
    for factor in (1.0, 64.0):
        state, out = guard.init(3), []
        for row in rows:
            state, decision = guard.step(NUMPY, state, row * np.float32(factor))
            out.append(float(decision.scale))
        if factor == 1.0:
            first = out
    assert out == pytest.approx(first, rel=2.5 * sketch.ACCURACY)
    assert all(0 <= s <= 1 for s in out)
