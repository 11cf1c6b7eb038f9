"""gradwatch: a diagnostic agent for gradient health that clips by itself.

    @gradwatch.watch
    @tf.function
    def train_step(x, y): ...

`train_step.monitor.snapshot()` says how the gradients are, `gradwatch.serve()` exports it to Prometheus.
"""

from __future__ import annotations

from gradwatch import errors
from gradwatch.core import detectors, policies
from gradwatch.core.guard import Decision
from gradwatch.core.snapshot import Event, Snapshot
from gradwatch.tf.hook import watch
from gradwatch.tf.keras import KerasCallback
from gradwatch.tf.monitor import Monitor

__version__ = "0.1.0"

__all__ = [
    "Decision",
    "Event",
    "KerasCallback",
    "Monitor",
    "Snapshot",
    "detectors",
    "errors",
    "policies",
    "watch",
]
