"""The former place of what is now in `gradwatch.reading` and `gradwatch.exporters`. Deprecated.

Old names go on working, as attributes and as imports, and say once where they went.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

#: Former module -> where it is now.
MOVED = {
    "alerts": "gradwatch.reading.alerts",
    "health": "gradwatch.reading.health",
    "httpd": "gradwatch.exporters.httpd",
    "live": "gradwatch.exporters.live",
    "metrics": "gradwatch.exporters.metrics",
    "notify": "gradwatch.exporters.notify",
    "prometheus": "gradwatch.exporters.prometheus",
    "push": "gradwatch.exporters.push",
    "reader": "gradwatch.reading.reader",
    "state": "gradwatch.reading.state",
    "steps": "gradwatch.reading.steps",
    "tensorboard": "gradwatch.exporters.tensorboard",
    "text": "gradwatch.reading.text",
    "worker": "gradwatch.reading.worker",
}


def _moved(name: str) -> ModuleType:
    warnings.warn(
        f"gradwatch.telemetry.{name} is now {MOVED[name]}; the old name will go away",
        DeprecationWarning,
        stacklevel=3,
    )
    return import_module(MOVED[name])


def __getattr__(name: str) -> Any:
    if name not in MOVED:
        raise AttributeError(f"module 'gradwatch.telemetry' has no attribute {name!r}")
    module = globals()[name] = sys.modules[f"{__name__}.{name}"] = _moved(name)
    return module


def __dir__() -> list[str]:
    return sorted({*globals(), *MOVED})


class _Finder:
    """Answers `import gradwatch.telemetry.NAME` with the module at its new place."""

    @staticmethod
    def find_spec(fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> Any:
        package, _, name = fullname.rpartition(".")
        return ModuleSpec(fullname, _Finder) if package == __name__ and name in MOVED else None  # type: ignore[arg-type]

    @staticmethod
    def create_module(spec: ModuleSpec) -> None:
        return None

    @staticmethod
    def exec_module(module: ModuleType) -> None:
        # the import system hands out what stands here, not the empty module that it made
        sys.modules[module.__name__] = _moved(module.__name__.rpartition(".")[2])


sys.meta_path.append(_Finder)
