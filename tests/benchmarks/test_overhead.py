"""The contenders of benchmarks/overhead.py do what they are said to do. Nothing here measures time."""

from __future__ import annotations

import random

import numpy as np
import pytest

pytestmark = pytest.mark.tf

overhead = pytest.importorskip("overhead")
import tensorflow as tf  # noqa: E402


@pytest.mark.parametrize("jit", [False, True])
def test_windowed_autoclip_clips_at_the_percentile_of_the_last_norms(jit):
    """Oracle: numpy's percentile over the last `window` norms, the current one included."""
    window, q = 16, 10.0
    autoclip = overhead.WindowedAutoClip(q, window)
    clip = tf.function(lambda g: autoclip([g])[0], jit_compile=jit)
    norms = np.random.default_rng(0).lognormal(0, 1, 50).astype(np.float32)
    for t, norm in enumerate(norms):
        g = tf.constant([norm, 0.0])
        expected = min(norm, np.percentile(norms[max(0, t + 1 - window) : t + 1], q))
        assert float(tf.norm(clip(g))) == pytest.approx(expected, rel=1e-5), t


def test_every_model_has_the_size_its_name_says():
    sizes = {"mlp-2m": 2e6, "wide-17m": 17e6, "transformer-5m": 5e6}
    for name, size in sizes.items():
        model = overhead.MODELS[name][0]().model
        assert model.count_params() == pytest.approx(size, rel=0.05), name
        if name == "transformer-5m":
            assert len(model.trainable_variables) > 60


@pytest.mark.parametrize("contender", overhead.CONTENDERS)
def test_every_contender_trains(contender):
    mode = "eager" if contender == "smartclip" else "function"
    assert contender in overhead.contenders(mode)
    step = overhead.make_step(overhead.quickstart, contender, mode)
    first = float(step())
    for _ in range(20):
        last = float(step())
    assert last < first


def test_a_block_holds_what_comes_only_now_and_then():
    made = []

    def call():
        made.append(1)
        return tf.constant(0.0)

    _, block = overhead.interleave({"one": call}, rounds=1, seconds=0.0, rng=random.Random(0), least=overhead.PERIODIC)
    assert block["one"] >= 2 * 50, "two looks at the weights, or two snapshots"
    assert len(made) >= block["one"]


def test_a_monitor_can_be_put_at_a_million_steps_and_goes_on_counting():
    step = overhead.make_step(overhead.quickstart, "gradwatch", "function")
    step()
    overhead.set_steps(step.monitor, 1_000_000)
    step()
    assert step.monitor.snapshot().steps == 1_000_001


def test_a_short_soak_leaves_the_memory_where_it_was():
    """The long one, a million steps, is made by hand: docs/benchmarks.md."""
    found = overhead.soak(5000, seconds=60)
    assert found["steps"] == 5000
    assert found["monitor_steps"] >= 5000
    assert found["growth_bytes"] < 4 * 2**20  # a kB a step would be a leak
