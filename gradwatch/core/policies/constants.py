"""Bounds that the user gives and nothing moves: `fixed`, `per_variable_norm`, `value`; and `observe`, none at all."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from gradwatch.core import checks
from gradwatch.core.norms import Norms
from gradwatch.core.policies.base import NONE, VALUE, VARIABLE, WATCH_ONLY, Policy, State, Update
from gradwatch.core.xp import Namespace


class _Constant(Policy):
    """A policy without memory."""

    @property
    def _bound(self) -> float:
        return math.inf

    def init(self, num_variables: int) -> State:
        return {}

    def update(self, xp: Namespace, state: State, norms: Norms) -> Update:
        shape = norms.per_variable if self.scope == VARIABLE else norms.total
        return {}, shape * 0.0 + self._bound, {}


@dataclass(frozen=True, repr=False)
class _ConstantNorm(_Constant):
    clip_norm: float

    def __post_init__(self) -> None:
        self._store(clip_norm=checks.norm("clip_norm", self.clip_norm, hint=WATCH_ONLY))

    @property
    def _bound(self) -> float:
        return self.clip_norm


@dataclass(frozen=True, repr=False)
class fixed(_ConstantNorm):
    """Clip the global norm at a constant, as `tf.clip_by_global_norm` does.

    Args:
      clip_norm: the bound of the global norm, > 0.

    Raises:
      ConfigError: clip_norm is out of range.

    Example:
      >>> from gradwatch import policies
      >>> policies.fixed(1.0)
      fixed(1)

    Source: Pascanu, Mikolov, Bengio 2013 (arXiv 1211.5063), algorithm 1.
    """


@dataclass(frozen=True, repr=False)
class per_variable_norm(_ConstantNorm):
    """Clip each variable's norm at the same constant, as `tf.clip_by_norm` does (it can turn the direction).

    Args:
      clip_norm: the bound of every variable's norm, > 0.

    Raises:
      ConfigError: clip_norm is out of range.

    Example:
      >>> from gradwatch import policies
      >>> policies.per_variable_norm(0.5)
      per_variable_norm(0.5)
    """

    scope = VARIABLE


@dataclass(frozen=True, repr=False)
class value(_Constant):
    """Clip each element to [-limit, limit], as `tf.clip_by_value` does (it can turn the direction).

    There is no clip_norm: it reads as Inf.

    Args:
      limit: the bound of every element's magnitude, > 0, in units of the unscaled gradient.

    Raises:
      ConfigError: limit is out of range.

    Example:
      >>> from gradwatch import policies
      >>> policies.value(0.1)
      value(0.1)
    """

    scope = VALUE

    limit: float = field()  # without field() the base's default would be taken

    def __post_init__(self) -> None:
        self._store(limit=checks.norm("limit", self.limit, hint=WATCH_ONLY))


@dataclass(frozen=True, repr=False, init=False)
class observe(_Constant):
    """Watch and change nothing: training is bit-identical to an unwatched one. clip_norm reads as Inf.

    Under `jit_compile` XLA may fuse the last sum of a gradient in another way once its norm is read as well: of the
    models tried, only BatchNormalization's gamma under Adam differed, in its last bit (docs/policies.md).

    Example:
      >>> from gradwatch import policies
      >>> policies.observe().expected_clip_ratio
      0.0
    """

    scope = NONE
    expected_clip_ratio = 0.0

    # the base's takes a name and functions
    def __init__(self) -> None:
        pass
