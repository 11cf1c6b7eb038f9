"""The numbers that a person tells a monitor with `report`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from gradwatch.errors import ConfigError


def in_graph(value: Any) -> bool:
    """Whether this is a tensor inside a graph, which has no value yet."""
    return bool(tf.is_tensor(value) and tf.is_symbolic_tensor(value))


def numbers(given: Mapping[str, Any]) -> dict[str, float]:
    """As numbers of the host, or ConfigError."""
    return {key: _number(key, value) for key, value in given.items()}


def _number(key: str, value: Any) -> float:
    if in_graph(value):
        raise ConfigError(
            f"report takes values of the host, got a tensor inside a graph for {key}; return it from the step and "
            f"report it there: monitor.report({key}=float(step(...)))"
        )
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"report takes numbers, got {value!r} for {key}") from error
