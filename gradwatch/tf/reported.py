"""Numbers that the training reports: values of the host, or tensors inside a graph."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from gradwatch.errors import ConfigError


def is_symbolic(value: Any) -> bool:
    """Whether it is a tensor inside a graph, which has no value yet."""
    return bool(tf.is_tensor(value) and tf.is_symbolic_tensor(value))


def number(key: str, value: Any) -> float:
    """What was reported as `key`, as a number; ConfigError where it is none."""
    if is_symbolic(value):
        raise ConfigError(
            f"report takes values of the host, got a tensor inside a graph for {key}; return it from the step and "
            f"report it there: monitor.report({key}=float(step(...)))"
        )
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"report takes numbers, got {value!r} for {key}") from error
