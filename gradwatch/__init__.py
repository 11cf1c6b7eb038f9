"""gradwatch: a diagnostic agent for gradient health that clips by itself.

    @gradwatch.watch
    @tf.function
    def train_step(x, y): ...

`train_step.monitor.snapshot()` says how the gradients are, `gradwatch.serve()` exports it to Prometheus.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gradwatch import errors
from gradwatch.core import detectors, policies
from gradwatch.core.guard import Decision
from gradwatch.core.snapshot import Event, Snapshot

if TYPE_CHECKING:
    from gradwatch.telemetry import notify
    from gradwatch.telemetry.alerts import Alert
    from gradwatch.telemetry.prometheus import Server, serve
    from gradwatch.telemetry.push import push
    from gradwatch.telemetry.tensorboard import TensorBoard
    from gradwatch.tf.decorator import watch
    from gradwatch.tf.keras import KerasCallback
    from gradwatch.tf.monitor import Monitor

__version__ = "0.1.0"

# Imported at first use: TensorFlow takes seconds, and `gradwatch --help` or a look at gradwatch.core needs none of it.
_LATER = {
    "Alert": "gradwatch.telemetry.alerts",
    "KerasCallback": "gradwatch.tf.keras",
    "Monitor": "gradwatch.tf.monitor",
    "Server": "gradwatch.telemetry.prometheus",
    "TensorBoard": "gradwatch.telemetry.tensorboard",
    "notify": "gradwatch.telemetry",
    "push": "gradwatch.telemetry.push",
    "serve": "gradwatch.telemetry.prometheus",
    "watch": "gradwatch.tf.decorator",
}

__all__ = [
    "Alert",
    "Decision",
    "Event",
    "KerasCallback",
    "Monitor",
    "Server",
    "Snapshot",
    "TensorBoard",
    "detectors",
    "errors",
    "notify",
    "policies",
    "push",
    "serve",
    "watch",
]


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'gradwatch' has no attribute {name!r}")
    module = importlib.import_module(f"{_LATER[name]}.{name}" if name == "notify" else _LATER[name])
    value = module if name == "notify" else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
