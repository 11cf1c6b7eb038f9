"""Empties the device's place for a batch, and writes a file for each event beside the record."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gradwatch.core.snapshot import Event
from gradwatch.record.event import Kept, write_event

logger: logging.Logger = logging.getLogger("gradwatch")

#: Files of one run: a run that explodes all day must not fill the disk.
MOST = 20

#: Gives what the device kept of a step up to a given one, and forgets it; None where there is nothing.
Collect = Callable[[float], "Kept | None"]

_NAN = float("nan")


class BatchFiles:
    """The files of one run's events.

    Args:
      run: path of its record.
      collect: gives the batch of an event.
      failed: is told why a file could not be written; it is tried again at the next look.
      **told: name of the monitor and id of the run, see `BatchEvent`.
    """

    def __init__(self, run: Path, collect: Collect, failed: Callable[[str], None], **told: str) -> None:
        self._run, self._collect, self._failed, self._told = run, collect, failed, told
        self._count = 0
        self._busy = False  # a job has been given, and is not done
        self._unwritten: tuple[Kept, Mapping[str, Any]] | None = None

    def job(
        self, up_to: float, events: Mapping[str, Event | None], history: Callable[[], Mapping[str, np.ndarray]]
    ) -> Callable[[], None] | None:
        """What writes the next file, for another thread; None where there is nothing to write.

        Args:
          up_to: the newest step that the host knows of: a batch of a later one stays where it is.
          events: the newest of each kind.
          history: gives the last steps.
        """
        if self._busy:
            return None
        if self._unwritten is None:
            kept = self._collect(up_to)
            if kept is None:
                return None
            self._count += 1
            if self._count > MOST:
                if self._count == MOST + 1:
                    logger.warning(
                        "monitor %r has kept %d batches: this run keeps no more", self._told["monitor"], MOST
                    )
                return None
            self._unwritten = kept, {**_about(kept, events, history()), **self._told}
        # else a disk did not take it; the device keeps the next one meanwhile
        self._busy = True
        return partial(self._write, *self._unwritten)

    def _write(self, kept: Kept, about: Mapping[str, Any]) -> None:
        try:
            write_event(self._run, kept, **about)
            self._unwritten = None
        except OSError as error:
            self._failed(str(error))
        finally:
            self._busy = False


def _about(kept: Kept, events: Mapping[str, Event | None], history: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What is known of the event beside its batch."""
    at = np.flatnonzero(history["step"] == kept.step)
    row = {name: float(column[at[0]]) if len(at) else _NAN for name, column in history.items()}
    event = next((e for e in map(events.get, kept.kinds) if e is not None and e.step == kept.step), None)
    return {
        "norm": row["norm"] if event is None else event.norm,
        "threshold": row.get("threshold", _NAN) if event is None else event.threshold,
        "loss": row.get("loss", _NAN),
        "shares": {} if event is None else dict(event.shares),
        "time": time.time(),
    }
