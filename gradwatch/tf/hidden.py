"""What a debugger of TensorFlow does not look into."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import tensorflow as tf

from gradwatch.tf import compat

P = ParamSpec("P")
R = TypeVar("R")


def hidden_from_debuggers(function: Callable[P, R]) -> Callable[P, R]:
    """A function that runs within `compat.unseen_by_debuggers`."""

    # AutoGraph takes all functions that a context manager decorates for one and the same
    @functools.wraps(function)
    @tf.autograph.experimental.do_not_convert
    def hidden(*args: P.args, **kwargs: P.kwargs) -> R:
        with compat.unseen_by_debuggers():
            return function(*args, **kwargs)

    return hidden
