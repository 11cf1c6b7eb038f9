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
from gradwatch.rooms import modules_of

if TYPE_CHECKING:
    from gradwatch import exporters as exporters
    from gradwatch import grafana, reading, recovery, testing
    from gradwatch import sinks as sinks
    from gradwatch import telemetry as telemetry
    from gradwatch import top as top
    from gradwatch.diagnosis.diagnose import diagnose
    from gradwatch.diagnosis.verdict import Cause, Diagnosis
    from gradwatch.exporters import notify
    from gradwatch.exporters.prometheus import Server, serve
    from gradwatch.exporters.push import push
    from gradwatch.exporters.tensorboard import TensorBoard
    from gradwatch.reading.alerts import Alert
    from gradwatch.record.event import BatchEvent, open_event
    from gradwatch.record.run import Run, open_run
    from gradwatch.tf.blame import Blame, blame
    from gradwatch.tf.decorator import watch
    from gradwatch.tf.keras import KerasCallback
    from gradwatch.tf.monitor import Monitor

__version__ = "0.1.0"

# Imported at first use: TensorFlow takes seconds, and `gradwatch --help` or a look at gradwatch.core needs none of it.
_NAMES = {
    "Alert": "gradwatch.reading.alerts",
    "BatchEvent": "gradwatch.record.event",
    "Blame": "gradwatch.tf.blame",
    "Cause": "gradwatch.diagnosis.verdict",
    "Diagnosis": "gradwatch.diagnosis.verdict",
    "KerasCallback": "gradwatch.tf.keras",
    "Monitor": "gradwatch.tf.monitor",
    "Run": "gradwatch.record.run",
    "Server": "gradwatch.exporters.prometheus",
    "TensorBoard": "gradwatch.exporters.tensorboard",
    "blame": "gradwatch.tf.blame",
    "open_event": "gradwatch.record.event",
    "diagnose": "gradwatch.diagnosis.diagnose",
    "open_run": "gradwatch.record.run",
    "push": "gradwatch.exporters.push",
    "serve": "gradwatch.exporters.prometheus",
    "watch": "gradwatch.tf.decorator",
}
_MODULES = {
    "diagnosis": "gradwatch.diagnosis",
    "exporters": "gradwatch.exporters",
    "grafana": "gradwatch.grafana",
    "notify": "gradwatch.exporters.notify",
    "reading": "gradwatch.reading",
    "recovery": "gradwatch.recovery",
    "sinks": "gradwatch.sinks",
    "telemetry": "gradwatch.telemetry",  # the former place of reading and exporters
    "testing": "gradwatch.testing",
    "top": "gradwatch.top",
}
_module = modules_of(__name__)

__all__ = [
    "Alert",
    "BatchEvent",
    "Blame",
    "Cause",
    "Decision",
    "Diagnosis",
    "Event",
    "KerasCallback",
    "Monitor",
    "Run",
    "Server",
    "Snapshot",
    "TensorBoard",
    "blame",
    "detectors",
    "diagnose",
    "errors",
    "grafana",
    "notify",
    "open_event",
    "open_run",
    "policies",
    "push",
    "reading",
    "recovery",
    "serve",
    "sinks",
    "testing",
    "top",
    "watch",
]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        value = getattr(importlib.import_module(_NAMES[name]), name)
    elif name in _MODULES:
        value = importlib.import_module(_MODULES[name])
    else:
        value = _module(name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_NAMES, *_MODULES})
