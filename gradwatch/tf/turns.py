"""One step of a monitor at a time, whichever thread runs it.

A step reads the state, judges and writes the state. In a plain graph these are separate ops, so that two threads
could read the same state and one of their steps would be lost. A mutex in the graph keeps them apart; it is an op on
the CPU that waits for no device. XLA holds on to the variables of a program while it runs, and needs none.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from gradwatch.tf import compat, distribution


@contextlib.contextmanager
def one_at_a_time(name: str) -> Iterator[Callable[[Any], None]]:
    """Inside, no other thread is inside for the same name.

    Args:
      name: unique in the process.

    Yields:
      a function to be called with what `assign` of the state returned: the turn ends after it.
    """
    if tf.executing_eagerly() or distribution.replicas() > 1 or compat.in_xla():
        # eagerly each step is a function of its own; the replicas of a strategy share one call of one function
        yield lambda written: None
        return
    with tf.device("CPU:0"):
        # by name, not captured: a function that holds it can be saved
        turn = tf.raw_ops.MutexLock(mutex=tf.raw_ops.MutexV2(container="", shared_name=f"gradwatch_{name}"))
    last: list[Any] = []
    with tf.control_dependencies([turn]):
        yield lambda written: last.append(getattr(written, "op", written))
    with tf.control_dependencies(last), tf.device("CPU:0"):
        tf.raw_ops.ConsumeMutexLock(mutex_lock=turn)
