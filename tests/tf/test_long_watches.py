"""Ten million steps of every detector on streams that never surprise: nothing wears out, in XLA and in numpy.

The first 200,000 steps, four times the longest memory, run in one compiled loop. From there to ten million a stationary
stream moves only what counts and what decays, so that the state is put there by its closed form.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from gradwatch.core import detectors
from gradwatch.core.norms import Norms
from gradwatch.core.xp import HUGE, NUMPY, TINY
from gradwatch.tf.ops import Fused

LOOPED, LATE = 200_000, 10_000_000
MORE = 1_000  # steps after that, in XLA and in numpy

DETECTORS = {
    **{name: make() for name, make in detectors.DETECTORS.items()},
    "budget of 10": detectors.spike(false_alarms_per_million=10),
    "budget of 10,000": detectors.spike(false_alarms_per_million=10_000),
}
STREAMS = ("constant", "calm", "silent")
COUNTS = ("seen", "calm", "waited", "streak")  # they stop at 10^6


def norms_of(xp: Any, x: Any) -> Norms:
    """Global norms of independent streams, side by side where one stream's belongs."""
    finite = x <= HUGE
    log = xp.log(xp.maximum(x, TINY))
    zero = log * 0.0
    return Norms(x, finite, finite & (x > 0.0), x, log, x, zero, zero, zero, zero + 1.0)


def stream_at(t: int) -> np.ndarray:
    """The norms of step t. In place of random numbers two incommensurable oscillations: log norm of deviation 0.02."""
    calm = 0.02 * (np.sin(t * 2.399963) + np.sin(t * 1.618034))
    return np.array([1.0, np.exp(calm), 0.0], np.float32)


def fast_forward(state: dict[str, Any]) -> dict[str, Any]:
    new = {}
    for name, x in state.items():
        if isinstance(x, dict):
            new[name] = fast_forward(x)
        else:
            new[name] = np.where(x > 1000.0, np.float32(1e6), x) if name in COUNTS else x
    if "tail" in new:
        prior = {"steps": 5 / 0.23, "peaks": 5, "sum1": 5, "sum2": 10, "sum3": 30, "outliers": 0}
        entered = new["calm"] > 1000.0
        left = (1 - 1 / 50_000) ** (LATE - LOOPED)
        for name, x in new["tail"].items():
            more = 50_000 if name == "steps" else 0.0
            grown = prior[name] + more + (x - prior[name] - more) * left
            new["tail"][name] = np.where(entered, grown, x).astype(np.float32)
    return new


def side_by_side(state: dict[str, Any]) -> dict[str, Any]:
    return {k: side_by_side(v) if isinstance(v, dict) else np.full(len(STREAMS), v) for k, v in state.items()}


def alarms_of(xp: Any, states: dict[str, Any], now: Norms) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """(states after, alarms, thresholds) of all detectors."""
    out = {name: detector.update(xp, states[name], now) for name, detector in DETECTORS.items()}
    return (
        {name: new for name, (new, _, _) in out.items()},
        {name: alarm for name, (_, alarm, _) in out.items()},
        {name: info["threshold"] for name, (_, _, info) in out.items()},
    )


@tf.function(jit_compile=True, autograph=False)
def compiled(states: Any, begin: Any, end: Any) -> Any:
    def step(t: Any, states: Any, counts: Any) -> Any:
        xp = Fused()  # its constants belong to this graph
        angle = tf.cast(t % 1_000_003, tf.float32)
        calm = 0.02 * (tf.sin(angle * 2.399963) + tf.sin(angle * 1.618034))
        x = xp.stack([angle * 0.0 + 1.0, tf.exp(calm), angle * 0.0])
        states, alarms, _ = alarms_of(xp, states, norms_of(xp, x))
        return t + 1, states, {name: counts[name] + tf.cast(alarms[name], tf.int32) for name in counts}

    zeros = {name: tf.zeros([len(STREAMS)], tf.int32) for name in DETECTORS}
    return tf.while_loop(lambda t, *_: t < end, step, (begin, states, zeros))[1:]


def plain(tree: Any) -> Any:
    return tf.nest.map_structure(lambda x: x.numpy(), tree)


@pytest.fixture(scope="module")
def late() -> dict[str, Any]:
    """By backend: (states `MORE` steps after ten million, alarms within those); "before": alarms of the loop."""
    first = {name: side_by_side(detector.init(1)) for name, detector in DETECTORS.items()}
    states, before = plain(compiled(tf.nest.map_structure(tf.constant, first), tf.constant(0), tf.constant(LOOPED)))
    ahead = {name: fast_forward(state) for name, state in states.items()}
    range_ = tf.constant(LOOPED), tf.constant(LOOPED + MORE)
    found = {"before": before, "xla": plain(compiled(tf.nest.map_structure(tf.constant, ahead), *range_))}
    counts = {name: np.zeros(len(STREAMS), np.int32) for name in DETECTORS}
    for t in range(LOOPED, LOOPED + MORE):
        ahead, alarms, _ = alarms_of(NUMPY, ahead, norms_of(NUMPY, stream_at(t)))
        counts = {name: counts[name] + alarms[name] for name in counts}
    found["numpy"] = ahead, counts
    return found


@pytest.mark.parametrize("name", DETECTORS)
def test_nothing_but_a_dead_gradient_ever_alarms(late, name):
    dead = [0, 0, 1] if name == "vanishing" else [0, 0, 0]
    assert np.array_equal(late["before"][name] > 0, np.array(dead, bool))
    for backend in ("xla", "numpy"):
        assert late[backend][1][name].tolist() == [MORE * x for x in dead], backend


@pytest.mark.parametrize("name", DETECTORS)
def test_numpy_and_xla_hold_the_same_finite_state(late, name):
    ours, theirs = (tf.nest.flatten(late[backend][0][name]) for backend in ("numpy", "xla"))
    for a, b in zip(ours, theirs):
        assert np.all(np.isfinite(a))
        assert a == pytest.approx(b, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("backend", ["xla", "numpy"])
@pytest.mark.parametrize("name", ["spike", "budget of 10", "budget of 10,000"])
def test_a_threshold_neither_sinks_to_the_noise_nor_rises_out_of_reach(late, backend, name):
    states = late[backend][0]
    xp = NUMPY if backend == "numpy" else Fused()
    for factor, alarms in ((1.08, False), (1.3, False), (3.0, True), (1e9, True)):
        x = np.full(len(STREAMS), factor, np.float32)
        _, alarm, info = DETECTORS[name].update(xp, states[name], norms_of(xp, x))
        assert np.asarray(alarm)[:2].tolist() == [alarms, alarms], factor
        assert np.all(np.asarray(info["threshold"])[:2] > 1.34)
        assert np.all(np.asarray(info["threshold"])[:2] < 2.0)


@pytest.mark.parametrize("backend", ["xla", "numpy"])
def test_a_gradient_that_dies_or_breaks_after_so_long_is_still_found(late, backend):
    states = late[backend][0]
    xp = NUMPY if backend == "numpy" else Fused()
    for name, value, kept in (("vanishing", 1e-5, 1.0), ("nonfinite", 2e38, 1.0), ("saturated", 1.0, 0.0)):
        state = states[name]
        for _ in range(40):
            now = norms_of(xp, np.full(len(STREAMS), value, np.float32))._replace(kept=np.float32(kept))
            state, alarm, _ = DETECTORS[name].update(xp, state, now)
        assert np.asarray(alarm)[:2].all(), name


# -- drifts over a whole training, and where the run was when it was healthy --------------------------------

DRIFTS = {
    # decades per 100,000 steps, linear in the log norm
    "three decades down": -3.0,
    "three decades up": 3.0,
    "eight decades down": -8.0,
    "eight decades up": 8.0,
}
SHIFTED_AT, SHIFT = 20_000, np.float32(np.log(1e4))


@pytest.fixture(scope="module")
def drifted() -> dict[str, Any]:
    """Detector -> (alarms in 100,000 steps, the last step with one), for each drift and a last stream that shifts."""
    judges = {"spike": DETECTORS["spike"], "vanishing": DETECTORS["vanishing"]}
    slopes = tf.constant([*DRIFTS.values(), 0.0]) * (np.log(10.0) / 1e5)

    @tf.function(jit_compile=True, autograph=False)
    def run(states: Any) -> Any:
        def step(t: Any, states: Any, counts: Any, last: Any) -> Any:
            xp, at = Fused(), tf.cast(t, tf.float32)
            noise = 0.3 * (tf.sin(at * 2.399963) + tf.sin(at * 1.618034))
            shift = tf.cast(at >= SHIFTED_AT, tf.float32) * tf.one_hot(len(DRIFTS), len(DRIFTS) + 1) * SHIFT
            now = norms_of(xp, tf.exp(slopes * at + noise + shift))
            out = {name: judge.update(xp, states[name], now) for name, judge in judges.items()}
            counts = {name: counts[name] + tf.cast(out[name][1], tf.int32) for name in judges}
            last = {name: tf.where(out[name][1], t, last[name]) for name in judges}
            return t + 1, {name: out[name][0] for name in judges}, counts, last

        zeros = {name: tf.zeros([len(DRIFTS) + 1], tf.int32) for name in judges}
        return tf.while_loop(lambda t, *_: t < 100_000, step, (tf.constant(0), states, zeros, zeros))[2:]

    first = {name: judge.init(1) for name, judge in judges.items()}
    counts, last = plain(run(tf.nest.map_structure(lambda x: tf.fill([len(DRIFTS) + 1], x), first)))
    return {name: (counts[name], last[name]) for name in judges}


def test_three_decades_over_a_training_are_healthy_and_eight_are_not(drifted):
    down, up = drifted["vanishing"][0], drifted["spike"][0]
    assert (down[0], up[1]) == (0, 0)
    assert down[2] > 1000
    assert up[3] > 1000
    assert (down[1], down[3], up[0], up[2]) == (0, 0, 0, 0)


def test_a_lasting_rise_of_four_decades_is_forgotten_after_23000_steps(drifted):
    # three are allowed, the fourth goes at 0.0001 a step, and so does the noise above it
    last = drifted["spike"][1][-1] - SHIFTED_AT
    assert last == pytest.approx((np.log(10) + 0.6) / 1e-4, rel=0.03)


def test_the_anchor_goes_on_following_after_a_million_steps(late):
    state = late["numpy"][0]["spike"]
    for _ in range(5):
        state, _, _ = DETECTORS["spike"].update(NUMPY, state, norms_of(NUMPY, np.full(3, 3.0, np.float32)))
    assert np.all(state["low"][:2] > late["numpy"][0]["spike"]["low"][:2])
