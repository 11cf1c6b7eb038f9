"""What the host knows about the monitors of this process, read off the device once a second.

    gradwatch.reading.set_interval(0.5)              # seconds between two looks
    gradwatch.reading.mark_active(monitor, False)    # this run is over, though the process goes on

Exporters and alerts start from here; none of them touches the device.
"""

from __future__ import annotations

from gradwatch.reading.reader import mark_active, set_interval
from gradwatch.rooms import modules_of

__all__ = ["mark_active", "set_interval"]

__getattr__ = modules_of(__name__)
