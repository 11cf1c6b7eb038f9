"""Clip policies: how far a gradient may reach, judged from the steps before.

A policy is a pair of pure functions over explicit state, as in optax; `update` also returns an `info` that is
not carried, as in blackjax:

    init(num_variables) -> state
    update(xp, state, norms) -> (state, clip_norm, info)

`update` must compute `clip_norm` from the state alone (the steps before this one) and only then let the norms
enter, winsorised: clamped at a multiple of the threshold, so that an explosion cannot teach the policy that
explosions are normal. Steps with a NaN or Inf never enter, nor does a norm of zero.

A policy is a value: it compares, copies and pickles by its arguments, its `repr` makes it again, and
`parse("percentile(95, window=500)")` reads it from a text. That is why the classes are named like functions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from gradwatch.core import values
from gradwatch.core.policies.auto import auto
from gradwatch.core.policies.base import GLOBAL, NONE, VALUE, VARIABLE, Policy, State
from gradwatch.core.policies.combined import after, bounded, smallest
from gradwatch.core.policies.constants import fixed, observe, per_variable_norm, value
from gradwatch.core.policies.means import per_variable, zscore
from gradwatch.core.policies.quantiles import median, percentile
from gradwatch.errors import ConfigError

__all__ = [
    "COMBINATORS",
    "GLOBAL",
    "NONE",
    "POLICIES",
    "VALUE",
    "VARIABLE",
    "Policy",
    "State",
    "after",
    "auto",
    "bounded",
    "fixed",
    "median",
    "observe",
    "parse",
    "per_variable",
    "per_variable_norm",
    "percentile",
    "smallest",
    "value",
    "zscore",
]

#: Every policy of this package by name, each with its defaults: the contract tests and the CLI read it.
POLICIES: Mapping[str, Callable[[], Policy]] = {
    "percentile": percentile,
    "median": median,
    "zscore": zscore,
    "per_variable": per_variable,
    "auto": auto,
    "fixed": lambda: fixed(1.0),
    "per_variable_norm": lambda: per_variable_norm(1.0),
    "value": lambda: value(0.1),
    "observe": observe,
}

#: What makes a policy of policies, by name, each with an example: the contract tests read it.
COMBINATORS: Mapping[str, Callable[[], Policy]] = {
    "smallest": lambda: smallest(percentile(95), zscore(3)),
    "bounded": lambda: bounded(median(), maximum=10.0),
    "after": lambda: after(20, per_variable()),
}

_GLOBAL = "the global norm is bounded by 'fixed(1.0)', as with Keras' global_clipnorm"
#: What others call a clip -> what it is here.
_ELSEWHERE: Mapping[str, str] = {
    "clipnorm": f"Keras' clipnorm bounds each variable, here 'per_variable_norm(1.0)'; {_GLOBAL}",
    "global_clipnorm": _GLOBAL,
    "clip_by_global_norm": _GLOBAL,
    "clipvalue": "Keras' clipvalue bounds each element, here 'value(0.1)'",
}

_MAKERS: Mapping[str, Callable[..., Policy]] = {name: globals()[name] for name in (*POLICIES, *COMBINATORS)}


def parse(policy: Policy | str) -> Policy:
    """A policy from its text; a policy is handed back as it is.

    Args:
      policy: a name ("percentile"), or a call with numbers ("median(2, window=50)", "after(100, fixed(1))").

    Raises:
      ConfigError: it is no such text, or the policy refuses the arguments.

    Example:
      >>> from gradwatch import policies
      >>> policies.parse("percentile(95)") == policies.percentile(95)
      True
    """
    if isinstance(policy, Policy):
        return policy
    if not isinstance(policy, str):
        raise ConfigError(
            "policy must come from gradwatch.policies, for example percentile(90), or be its text, "
            f"for example 'percentile(90)'; got {policy!r}"
        )
    return values.parse(policy, _MAKERS, "policy", "percentile(90, window=500) or median", _ELSEWHERE)
