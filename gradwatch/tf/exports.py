"""`tf.saved_model.save` of a module with a watched step.

A function that is exported holds the state of its monitor, and TensorFlow wants to reach every variable of an exported
function from the module. The optimizer is reached already, for its own variables: it names its monitors as parts.
"""

from __future__ import annotations

import weakref
from typing import Any

from keras.optimizers import Optimizer

from gradwatch.tf import compat
from gradwatch.tf.monitor import Monitor

_monitors: weakref.WeakKeyDictionary[Any, weakref.WeakSet[Monitor]] = weakref.WeakKeyDictionary()


def install() -> None:
    """From now on an optimizer that was watched in a graph has its monitors among its parts, in a SavedModel only."""
    compat.add_exported_parts(Optimizer, _parts)


def remember(optimizer: Any, monitor: Monitor) -> None:
    """A graph is traced in which the monitor watches the optimizer."""
    try:
        _monitors.setdefault(optimizer, weakref.WeakSet()).add(monitor)
    except TypeError:  # an optimizer that cannot be a key is exported as it always was
        return


def _parts(optimizer: Any) -> dict[str, Any]:
    monitors = sorted(_monitors.get(optimizer, ()), key=lambda monitor: monitor.run_id)
    return {f"gradwatch_{i}": monitor for i, monitor in enumerate(monitors)}
