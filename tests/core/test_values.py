"""Policies are values: equal by their arguments, copied, pickled, and read from what they print."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import numpy as np
import pytest

from gradwatch.core import policies
from gradwatch.core.guard import Guard
from gradwatch.core.values import literal
from gradwatch.errors import ConfigError
from gradwatch.testing import replay

#: As a person would make them, each with options away from their defaults.
EXAMPLES = [
    policies.percentile(99.25, 77, warmup_steps=3, winsorise=1.7, minimum=1e-7, maximum=0.1 + 0.2),
    policies.median(1.5, warmup_steps=9),
    policies.zscore(3, decay=0.875, winsorise=2),
    policies.per_variable(1.2, decay=0.9),
    policies.fixed(1 / 3),
    policies.per_variable_norm(1e30),
    policies.value(0.1),
    policies.observe(),
    policies.smallest(policies.percentile(10), policies.bounded(policies.median(), minimum=2), policies.fixed(7)),
    policies.after(100, policies.bounded(policies.per_variable(), minimum=1e-3, maximum=5)),
]


@pytest.mark.parametrize("policy", EXAMPLES, ids=repr)
def test_copies_pickles_and_texts_are_equal_to_what_they_came_from(policy):
    for other in (
        copy.copy(policy),
        copy.deepcopy(policy),
        *(pickle.loads(pickle.dumps(policy, protocol)) for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1)),
        eval(repr(policy), vars(policies)),
        policies.parse(repr(policy)),
        policies.parse(policy),
    ):
        assert other == policy
        assert hash(other) == hash(policy)
        assert vars(other).items() >= {f.name: getattr(policy, f.name) for f in dataclasses.fields(policy)}.items()
        assert (other.name, other.scope, other.limit) == (repr(policy), policy.scope, policy.limit)
        assert other.expected_clip_ratio == policy.expected_clip_ratio


def test_policies_differ_by_every_argument_also_by_those_that_a_name_of_old_left_out():
    base = policies.percentile()
    options = {"q": 91, "window": 999, "warmup_steps": 2, "winsorise": 3, "minimum": 1, "maximum": 2}
    for name, value in options.items():
        other = policies.percentile(**{name: value})
        assert other != base, name
        assert other.name != base.name, name
    assert len({policies.percentile(**{name: value}) for name, value in options.items()} | {base}) == 7
    assert policies.fixed(1.0) != policies.per_variable_norm(1.0)
    assert policies.fixed(1) == policies.fixed(1.0)


@pytest.mark.parametrize(
    ("policy", "text"),
    [
        (policies.percentile(), "percentile(90, window=1000)"),
        (policies.percentile(95, maximum=2.0), "percentile(95, window=1000, maximum=2)"),
        (policies.zscore(), "zscore(2.5)"),
        (policies.observe(), "observe()"),
        (policies.after(3, policies.fixed(2)), "after(3, fixed(2))"),
        (policies.bounded(policies.fixed(2), maximum=1), "bounded(fixed(2), maximum=1)"),
    ],
)
def test_a_policy_is_printed_as_one_would_type_it(policy, text):
    assert repr(policy) == policy.name == text


@pytest.mark.parametrize("number", [0.1, 1e-30, 1e16, 123456789.125, 2.0, 1e22, 5, 0.30000000000000004])
def test_a_number_in_a_text_keeps_all_its_digits(number):
    assert float(literal(number)) == number


def test_a_policy_cannot_be_changed():
    own = policies.Policy("own()", init_of_own, update_of_own)
    for policy, name in ((policies.percentile(), "q"), (policies.percentile(), "scope"), (own, "name")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(policy, name, 1)


# -- one's own ----------------------------------------------------------------------------------------------


def init_of_own(num_variables):
    return {}


def update_of_own(xp, state, norms):
    return state, norms.total * 0.0 + 1.0, {}


def test_a_policy_made_of_functions_pickles_when_they_do():
    own = policies.Policy("own()", init_of_own, update_of_own, expected_clip_ratio=0.5)
    for other in (copy.deepcopy(own), pickle.loads(pickle.dumps(own))):
        assert other == own
        assert hash(other) == hash(own)
        assert (other.name, other.expected_clip_ratio, other.update) == ("own()", 0.5, update_of_own)
    assert own != policies.Policy("own()", init_of_own, lambda xp, state, norms: update_of_own(xp, state, norms))
    assert "own()" in repr(own)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"name": ""}, "name must be a text"),
        ({"init": {}}, "init must be a function"),
        ({"update": None}, "update must be a function"),
        ({"scope": "globl"}, "scope must be one of 'global', 'variable', 'value', 'none', got 'globl'"),
        ({"limit": 0}, "limit must be > 0"),
        ({"expected_clip_ratio": 10}, "a share of the steps, 0.1 and not 10"),
    ],
)
def test_a_policy_made_of_what_is_none_is_refused(options, says):
    with pytest.raises(ConfigError, match=says):
        policies.Policy(**{"name": "own()", "init": init_of_own, "update": update_of_own, **options})


# -- texts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("percentile", policies.percentile()),
        (" median( 2 , window=50 ) ", policies.median(2, window=50)),
        ("zscore(z_max=3.0)", policies.zscore(3.0)),
        ("percentile(maximum=None)", policies.percentile()),
        ("smallest(percentile, fixed(1))", policies.smallest(policies.percentile(), policies.fixed(1))),
        ("after(steps=5, policy=median)", policies.after(5, policies.median())),
    ],
)
def test_texts_are_policies_and_a_guard_takes_them(text, same):
    assert policies.parse(text) == same
    assert Guard(text, ()).policy == same
    assert np.array_equal(*(replay.policy(x, [1.0, 3.0, 0.5]).clip_norm for x in (text, same)))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("percentle", "unknown policy 'percentle'; there are: percentile, median"),
        ("percentle", "an example is percentile"),
        ("Policy('a')", "unknown policy 'Policy'"),
        (
            "clipnorm(1.0)",
            "bounds each variable, here 'per_variable_norm(1.0)'; the global norm is bounded by 'fixed(1.0)'",
        ),
        ("global_clipnorm(1.0)", "unknown policy 'global_clipnorm'; the global norm is bounded by 'fixed(1.0)'"),
        ("clipvalue(0.1)", "bounds each element, here 'value(0.1)'"),
        ("smallest(percentle(90), fixed(1))", "unknown policy 'percentle'"),
        ("percentile(-q)", "plain numbers"),
        ("percentile(", "plain numbers"),
        ("", "plain numbers"),
        ("90", "plain numbers"),
        ("percentile; median", "plain numbers"),
        ("percentile\x00", "plain numbers"),
        ("percentile(90)(90)", "plain numbers"),
        ("policies.percentile(90)", "plain numbers"),
        ("__import__('os').getcwd()", "plain numbers"),
        ("percentile(__import__('os').getpid())", "plain numbers"),
        ("percentile(exec('1'))", "unknown policy 'exec'"),
        ("percentile(2**9**9)", "plain numbers"),
        ("percentile([1] * 10**9)", "plain numbers"),
        ("(" * 500 + ")" * 500, "plain numbers"),
        ("-" * 50_000 + "1", "plain numbers"),
        ("fixed(" + "-" * 3_000 + "1)", "plain numbers"),
        ("percentile(90, 5, 6)", "does not fit"),
        ("percentile(90, widow=3)", "widow"),
        ("percentile(*[90])", "plain numbers"),
        ("percentile(**{'q': 90})", "does not fit"),
        ("fixed", "fixed takes clip_norm"),
        ("observe(1)", "observe takes nothing"),
        ("percentile('90')", "q must be"),
        ("fixed(median)", "clip_norm must be"),
        ("after(5, 1.0)", "after takes policies, such as percentile"),
        ("percentile(0.9)", "write 90"),
    ],
)
def test_a_text_that_is_no_policy_says_what_to_type(text, says):
    with pytest.raises(ConfigError) as raised:
        policies.parse(text)
    assert says in str(raised.value)


@pytest.mark.parametrize("thing", [None, 1.0, b"percentile", ["percentile"], policies.percentile])
def test_what_is_neither_a_policy_nor_a_text_is_refused(thing):
    for take in (policies.parse, lambda x: Guard(x, ())):
        with pytest.raises(ConfigError, match=r"policy must come from gradwatch\.policies.* or be its text"):
            take(thing)
