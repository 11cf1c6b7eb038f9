"""Ways in which what the host knows leaves the process: Prometheus, the live page, TensorBoard, messages, pushes.

A user finds them at the front door: `gradwatch.serve`, `gradwatch.TensorBoard`, `gradwatch.notify`, `gradwatch.push`.
"""

from __future__ import annotations

from gradwatch.rooms import modules_of

__all__: list[str] = []

__getattr__ = modules_of(__name__)
