"""What to do with a run that explodes beyond clipping: skip, lower the rate, roll back, stop.

    @gradwatch.watch(recover=gradwatch.recovery.ladder())
    @tf.function
    def train_step(x, y): ...

Off unless it is asked for. docs/recovery.md has the table of what is answered by what.
"""

from __future__ import annotations

from gradwatch.recovery.folder import latest_healthy
from gradwatch.recovery.rungs import Ladder, ladder, lower, rollback, skip, stop

__all__ = ["Ladder", "ladder", "latest_healthy", "lower", "rollback", "skip", "stop"]
