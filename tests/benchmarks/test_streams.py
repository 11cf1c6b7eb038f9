"""The streams are what their names say, and a fault changes what it says and nothing else."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import streams


def draw(name, n=4000, seed=0):
    return np.array([x[0] for x in islice(streams.STREAMS[name](np.random.default_rng(seed), 1), n)])


@pytest.mark.parametrize(
    ("name", "distribution", "arguments"),
    [
        ("normal", "norm", (1, 0.1)),
        ("log-normal 0.3", "lognorm", (0.3,)),
        ("log-normal 0.8", "lognorm", (0.8,)),
        ("Pareto 2.5", "pareto", (2.5,)),
    ],
)
def test_independent_streams_have_their_distribution(name, distribution, arguments):
    stats = pytest.importorskip("scipy.stats")
    assert stats.kstest(draw(name), distribution, arguments).pvalue > 0.001


def test_the_autoregressive_stream_correlates_by_0_9():
    x = np.log(draw("AR(1) 0.9", 20_000))
    assert np.corrcoef(x[1:], x[:-1])[0, 1] == pytest.approx(0.9, abs=0.02)
    assert x.std() == pytest.approx(0.5, rel=0.1)


def test_a_spike_changes_one_step():
    x = np.arange(1.0, 11.0)
    y = streams.inject(x, streams.FAULTS["spike x 10"])
    assert y[0] == 10
    assert np.array_equal(y[1:], x[1:])


def test_a_shift_lasts_and_growth_is_exponential():
    x = np.ones((300, 2))
    assert np.all(streams.inject(x, streams.FAULTS["shift x 3"]) == 3)
    growth = streams.inject(x, streams.FAULTS["growth 5 %"])[:, 1]
    assert growth[:200] == pytest.approx(1.05 ** np.arange(1, 201))


def test_a_recorded_run_is_repeated_without_a_seam():
    places = [streams._fold(t, 4) for t in range(14)]
    assert places == [0, 1, 2, 3, 2, 1] * 2 + [0, 1]
