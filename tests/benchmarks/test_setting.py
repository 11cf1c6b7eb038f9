"""Intervals and tables of the benchmarks."""

from __future__ import annotations

import numpy as np
import pytest
import setting


@pytest.mark.parametrize("n", [12, 40, 151])
def test_the_interval_of_the_median_covers_it_as_often_as_promised(n):
    rng = np.random.default_rng(n)
    hits = 0
    for _ in range(2000):
        # skewed on purpose: the interval must not assume a normal distribution
        _, low, high = setting.median_interval(rng.exponential(size=n))
        hits += low <= np.log(2) <= high
    assert hits / 2000 >= 0.94


def test_the_interval_of_a_mean_is_students():
    x = [1.0, 2.0, 4.0, 4.0, 5.0]
    mean, low, high = setting.mean_interval(x)
    # t(0.975, 4) = 2.776445
    half = 2.776445 * np.std(x, ddof=1) / np.sqrt(5)
    assert mean == pytest.approx(3.2)
    assert (low, high) == (pytest.approx(3.2 - half), pytest.approx(3.2 + half))


def test_a_table_is_markdown_with_one_line_per_row():
    text = setting.table(["a", "b"], [["1", "long text"]])
    assert text.splitlines() == ["| a | b         |", "| - | --------- |", "| 1 | long text |"]
