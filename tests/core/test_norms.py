"""The norms of one step: no overflow, no underflow, no NaN for those downstream."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gradwatch.core import norms
from gradwatch.core.xp import HUGE, NUMPY, TINY

pytestmark = pytest.mark.filterwarnings("error")


def of(*values):
    return norms.of(NUMPY, np.array(values, np.float32))


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1.0, 1e20, 5e34])
def test_global_norm_is_the_root_of_the_sum_of_squares_at_every_scale(scale):
    got = of(3 * scale, 4 * scale, 12 * scale)
    assert got.total == pytest.approx(13 * scale, rel=1e-6)
    assert got.raw == got.total
    assert got.log == pytest.approx(math.log(13 * scale), abs=1e-4)
    assert got.finite
    assert got.enters


def test_zero_is_finite_but_teaches_nothing():
    got = of(0.0, 0.0)
    assert got.finite
    assert not got.enters
    assert got.total == 0
    assert got.log == pytest.approx(math.log(TINY))


@pytest.mark.parametrize("denormal", [1e-40, 1e-38, 5e-38])
def test_norms_below_1e_37_count_as_zero_as_xla_would_flush_them(denormal):
    assert of(denormal).total == 0
    assert not of(denormal).enters
    assert of(1.0, denormal).per_variable.tolist() == [1.0, 0.0]


@pytest.mark.parametrize(("values", "kind"), [
    ((1.0, math.nan), "nan"), ((math.nan, math.nan), "nan"), ((math.inf, math.nan), "nan"), ((math.inf, 2.0), "inf"),
])  # fmt: skip
def test_what_was_not_finite_is_named_and_dropped(values, kind):
    got = of(*values)
    assert not got.finite
    assert not got.enters
    assert str(float(got.raw)) == kind
    assert got.total == 0
    assert got.broken.tolist() == [float(not math.isfinite(x)) for x in values]
    assert np.all(np.isfinite(got.per_variable))


@pytest.mark.parametrize("values", [(2e36,), (3.4e38, 3.4e38, 3.4e38), (9e35, 9e35)])
def test_norms_above_1e36_count_as_infinite(values):
    got = of(*values)
    assert not got.finite
    assert got.total == 0
    assert got.raw > HUGE


@pytest.mark.parametrize(
    ("given", "reach"),
    [(None, math.nan), (math.nan, math.nan), (0.0, math.nan), (-1.0, math.nan), (-math.inf, math.nan)]
    + [(1e-30, 1e-30), (2.5, 2.5), (1e36, 1e36), (1e37, math.inf), (3.4e38, math.inf), (math.inf, math.inf)],
)  # fmt: skip
def test_reach_is_positive_or_inf_or_nan_whatever_was_given(given, reach):
    got = norms.of(NUMPY, np.ones(2, np.float32), None if given is None else np.float32(given)).reach
    assert np.shape(got) == ()
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, np.float32(reach), rtol=1e-6)


@pytest.mark.parametrize(
    ("given", "loss"),
    [(None, math.nan), (math.nan, math.nan), (math.inf, HUGE), (-math.inf, -HUGE), (0.0, 0.0), (-2.0, -2.0)],
)
def test_the_loss_of_the_step_before_is_finite_or_nan(given, loss):
    got = norms.of(NUMPY, np.ones(2, np.float32), loss=None if given is None else np.float32(given)).loss
    assert np.shape(got) == ()
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, np.float32(loss), rtol=1e-6)


def test_norms_made_without_reach_and_loss_say_that_they_are_not_known():
    made = norms.Norms(*of(3.0, 4.0)[:7])
    assert math.isnan(made.reach)
    assert math.isnan(made.loss)
