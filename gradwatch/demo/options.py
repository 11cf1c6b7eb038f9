"""The demo's options as plain values, checked before anything is loaded or trained."""

from __future__ import annotations

import ast
from typing import Any

from gradwatch.core import policies
from gradwatch.core.policies import Policy
from gradwatch.errors import ConfigError


def policy_from_text(text: str) -> Policy:
    """The policy that a person typed: "median", "percentile(95)", "percentile(90, window=500)".

    Only the names of `policies.POLICIES` are known and only plain numbers are taken: nothing is evaluated.

    Raises:
      ConfigError: it is not such a call, or the policy refuses the arguments.
    """
    name, positional, keywords = _call(text)
    if name not in policies.POLICIES:
        raise ConfigError(f"unknown policy {name!r}; there are: {', '.join(policies.POLICIES)}")
    try:
        return getattr(policies, name)(*positional, **keywords)
    except TypeError as error:
        raise ConfigError(f"policy {text!r} does not fit: {error}; an example is {_example(name)}") from None


def _example(name: str) -> str:
    return policies.POLICIES[name]().name


def _call(text: str) -> tuple[str, list[Any], dict[str, Any]]:
    problem = ConfigError(
        f"a policy is a name with plain numbers, such as percentile(90, window=500) or median; got {text!r}"
    )
    try:
        node = ast.parse(text.strip(), mode="eval").body
        if isinstance(node, ast.Name):
            return node.id, [], {}
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
            raise problem
        keywords = {str(word.arg): ast.literal_eval(word.value) for word in node.keywords}
        return node.func.id, [ast.literal_eval(value) for value in node.args], keywords
    except (SyntaxError, ValueError):
        raise problem from None
