"""Policies made of policies: `smallest`, `bounded`, `after`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from gradwatch.core import checks
from gradwatch.core.norms import Norms
from gradwatch.core.policies.base import GLOBAL, VARIABLE, Policy, State, Update, bounds, clamp, one_more
from gradwatch.core.values import literal
from gradwatch.core.xp import Namespace
from gradwatch.errors import ConfigError


def _with_clip_norm(combinator: str, policy: Policy) -> Policy:
    """`policy` if its clip_norm decides what it does, or ConfigError."""
    if not isinstance(policy, Policy):
        raise ConfigError(f"{combinator} takes policies, such as percentile(90), got {policy!r}")
    if policy.scope not in (GLOBAL, VARIABLE):
        raise ConfigError(
            f"{combinator} takes policies of scope 'global' or 'variable', got {policy.name}, which has no clip_norm"
        )
    return policy


@dataclass(frozen=True, repr=False, init=False)
class smallest(Policy):
    """Clip at the smallest clip_norm of several policies; each learns as if it were alone.

    clip_norm_t = min(clip_norm_t of each), for each variable where their scope is "variable".

    Args:
      policies: two or more, all of scope "global" or all of scope "variable".

    Raises:
      ConfigError: there are fewer, or their scopes differ.

    Example:
      >>> from gradwatch import policies
      >>> policies.smallest(policies.percentile(95), policies.zscore(3))
      smallest(percentile(95, window=1000), zscore(3))
    """

    policies: tuple[Policy, ...]

    def __init__(self, *policies: Policy) -> None:
        if len(policies) < 2:
            raise ConfigError(f"smallest takes two policies or more, got {len(policies)}")
        scopes = {_with_clip_norm("smallest", policy).scope for policy in policies}
        if len(scopes) > 1:
            named = ", ".join(f"{policy.name} ({policy.scope})" for policy in policies)
            raise ConfigError(f"smallest takes policies of one scope, got {named}")
        ratios = [policy.expected_clip_ratio for policy in policies]
        # whichever clips: at most the sum of their shares
        ratio = None if None in ratios else min(1.0, math.fsum(ratio for ratio in ratios if ratio is not None))
        self._store(policies=policies, scope=scopes.pop(), expected_clip_ratio=ratio)
        self._store(holds_rate=any(policy.holds_rate for policy in policies))

    def _texts(self) -> list[str]:
        return [literal(policy) for policy in self.policies]

    def init(self, num_variables: int) -> State:
        return {str(i): policy.init(num_variables) for i, policy in enumerate(self.policies)}

    def update(self, xp: Namespace, state: State, norms: Norms) -> Update:
        new, bounds = {}, []
        for i, policy in enumerate(self.policies):
            new[str(i)], clip_norm, _ = policy.update(xp, state[str(i)], norms)
            bounds.append(clip_norm)
        lowest = bounds[0]
        for clip_norm in bounds[1:]:
            lowest = xp.minimum(lowest, clip_norm)
        return new, lowest, {}


@dataclass(frozen=True, repr=False)
class bounded(Policy):
    """A policy whose clip_norm stays between two constants, from the first step on.

    clip_norm_t = min(max(clip_norm_t of the policy, minimum), maximum)

    Args:
      policy: of scope "global" or "variable".
      minimum: lower bound of clip_norm, None for none.
      maximum: upper bound of clip_norm, None for none.

    Raises:
      ConfigError: neither is given, they contradict each other, or the policy has no clip_norm.

    Example:
      >>> from gradwatch import policies
      >>> policies.bounded(policies.median(2), maximum=5.0)
      bounded(median(2, window=100), maximum=5)
    """

    policy: Policy
    minimum: float | None = field(default=None, kw_only=True)
    maximum: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        policy = _with_clip_norm("bounded", self.policy)
        minimum, maximum = bounds(self.minimum, self.maximum)
        if minimum is None and maximum is None:
            raise ConfigError("bounded takes minimum, maximum or both, got neither")
        ratio = policy.expected_clip_ratio if maximum is None else None
        self._store(minimum=minimum, maximum=maximum, scope=policy.scope, expected_clip_ratio=ratio)
        self._store(holds_rate=policy.holds_rate)

    def init(self, num_variables: int) -> State:
        return self.policy.init(num_variables)

    def update(self, xp: Namespace, state: State, norms: Norms) -> Update:
        new, clip_norm, info = self.policy.update(xp, state, norms)
        return new, clamp(xp, clip_norm, self.minimum, self.maximum), info


@dataclass(frozen=True, repr=False)
class after(Policy):
    """A policy that learns from the first step on and clips nothing before `steps` norms were observed.

    Args:
      steps: norms observed before the first clip, >= 1; NaN, Inf and zero do not count.
      policy: of scope "global" or "variable".

    Raises:
      ConfigError: steps is out of range, or the policy has no clip_norm.

    Example:
      >>> from gradwatch import policies
      >>> policies.after(500, policies.fixed(1.0))
      after(500, fixed(1))
    """

    steps: int
    policy: Policy

    def __post_init__(self) -> None:
        policy = _with_clip_norm("after", self.policy)
        steps = checks.count("steps", self.steps)
        self._store(steps=steps, scope=policy.scope, expected_clip_ratio=policy.expected_clip_ratio)
        self._store(holds_rate=policy.holds_rate)

    def init(self, num_variables: int) -> State:
        return {"policy": self.policy.init(num_variables), "seen": np.zeros((), np.float32)}

    def update(self, xp: Namespace, state: State, norms: Norms) -> Update:
        seen = state["seen"]
        after, clip_norm, info = self.policy.update(xp, state["policy"], norms)
        new = {"policy": after, "seen": xp.where(norms.enters, one_more(xp, seen), seen)}
        return new, xp.where(seen >= self.steps, clip_norm, math.inf), info
