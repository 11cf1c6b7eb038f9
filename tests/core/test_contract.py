"""Every policy and detector of the tables keeps the contract, and the public checks notice one that does not."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest

from gradwatch import testing
from gradwatch.core import detectors, policies
from gradwatch.core.detectors import DETECTORS
from gradwatch.core.policies import COMBINATORS, POLICIES
from gradwatch.testing import conformance

#: Their bound is a number that the user gave: it does not follow the gradients.
ABSOLUTE = {"fixed", "per_variable_norm", "bounded"}

POLICY_CASES = [
    pytest.param(make, check, id=f"{name}-{check.__name__}")
    for name, make in {**POLICIES, **COMBINATORS}.items()
    for check in conformance.POLICY_CHECKS
    if not (name in ABSOLUTE and check is conformance.bounds_scale_with_the_gradients)
]
DETECTOR_CASES = [
    pytest.param(make, check, id=f"{name}-{check.__name__}")
    for name, make in DETECTORS.items()
    for check in conformance.DETECTOR_CHECKS
]


@pytest.mark.parametrize(("make", "check"), POLICY_CASES)
def test_policy_keeps_the_contract(make, check):
    check(conformance.part_of(make()))


@pytest.mark.parametrize(("make", "check"), DETECTOR_CASES)
def test_detector_keeps_the_contract(make, check):
    check(conformance.part_of(make()))


# -- the checks themselves ----------------------------------------------------------------------------------


def naive_autoclip() -> policies.Policy:
    """A running mean that takes the current norm as it comes, NaN included."""

    def init(num_variables):
        return {"mean": np.ones((), np.float32)}

    def update(xp, state, norms):
        mean = xp.number(0.9 * state["mean"] + 0.1 * norms.raw)
        return {"mean": mean}, mean, {}

    return policies.Policy("naive_autoclip()", init, update)


def test_a_policy_that_judges_a_step_by_itself_is_refused():
    part = conformance.part_of(naive_autoclip())
    with pytest.raises(AssertionError, match="depending on this step's norm"):
        conformance.a_step_is_judged_by_the_steps_before(part)


def test_a_policy_that_learns_from_nan_is_refused():
    part = conformance.part_of(naive_autoclip())
    with pytest.raises(AssertionError, match="changed the state"):
        conformance.nonfinite_steps_teach_nothing(part)
    with pytest.raises(AssertionError, match="mean is nan"):
        conformance.statistics_stay_finite(part)


def test_a_policy_whose_state_changes_shape_is_refused():
    def update(xp, state, norms):
        return {"ring": np.append(state["ring"], norms.total).astype(np.float32)}, norms.total * 0.0 + 1.0, {}

    grows = policies.Policy("grows()", lambda n: {"ring": np.zeros(2, np.float32)}, update)
    with pytest.raises(AssertionError, match="changed the shape of ring"):
        testing.check_policy(grows, absolute=True, tensorflow=False)


def test_a_policy_with_a_negative_bound_is_refused():
    negative = policies.Policy("negative()", lambda n: {}, lambda xp, state, norms: ({}, norms.total * 0.0 - 1.0, {}))
    with pytest.raises(AssertionError, match=r"clip_norm is -1\.0"):
        testing.check_policy(negative, absolute=True, tensorflow=False)


def test_a_policy_with_an_absolute_bound_must_say_so():
    with pytest.raises(AssertionError, match="by other factors"):
        testing.check_policy(policies.fixed(1.0), tensorflow=False)
    testing.check_policy(policies.fixed(1.0), absolute=True, tensorflow=False)


@dataclass(frozen=True, repr=False)
class forgetful(policies.median):
    def _texts(self):
        return []


def test_a_policy_whose_repr_does_not_make_it_again_is_refused():
    with pytest.raises(AssertionError, match=r"its repr gives forgetful\(\) instead of forgetful\(\)"):
        conformance.it_is_a_value(conformance.part_of(forgetful(3.0)))


def test_a_policy_that_cannot_be_pickled_is_refused():
    @dataclass(frozen=True, repr=False)
    class local(policies.median):
        pass

    with pytest.raises(AssertionError, match=r"cannot be pickled.*top of a module"):
        conformance.it_is_a_value(conformance.part_of(local(3.0)))


def test_a_policy_made_of_functions_that_cannot_be_pickled_is_still_one():
    own = policies.Policy("own()", lambda n: {}, lambda xp, state, norms: ({}, norms.total * 0.0 + 1.0, {}))
    testing.check_policy(own, absolute=True, tensorflow=False)


def test_an_impure_policy_is_refused():
    calls = []

    def update(xp, state, norms):
        calls.append(1)
        return {"x": np.full((), len(calls), np.float32)}, norms.total * 0.0 + math.inf, {}

    impure = policies.Policy("impure()", lambda n: {"x": np.zeros((), np.float32)}, update)
    with pytest.raises(AssertionError, match="must be pure"):
        conformance.state_keeps_its_structure(conformance.part_of(impure))


def test_a_detector_of_an_unknown_kind_is_refused():
    spike = detectors.spike()
    odd = detectors.Detector("surprise", "odd()", spike.init, spike.update)
    with pytest.raises(AssertionError, match="kind must be one of"):
        testing.check_detector(odd, tensorflow=False)
