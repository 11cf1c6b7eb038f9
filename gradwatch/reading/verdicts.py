"""The verdict on a run that is read: asked for an alert, from time to time, and at the end of the run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from gradwatch.diagnosis.opening import opening_of, seen
from gradwatch.reading.health import health

if TYPE_CHECKING:
    from gradwatch.core.snapshot import Snapshot
    from gradwatch.diagnosis.verdict import Diagnosis

logger: logging.Logger = logging.getLogger("gradwatch")

#: Between two verdicts on a run of which nothing is heard. One takes some 20 ms.
EVERY_SECONDS = 30.0

#: A run must be so old before its end is told.
_LEAST_STEPS = 20

#: Whoever needs a verdict may call it; it is made once.
Judge = Callable[[], "Diagnosis | None"]


def judge(source: Any, snapshot: Snapshot) -> Diagnosis | None:
    """The verdict as of now; None where it cannot be made. It needs scipy, which is imported here and not before."""
    facts = getattr(source, "run_facts", None)
    if facts is None or not snapshot.steps:
        return None
    try:
        from gradwatch.diagnosis.diagnose import diagnose

        return diagnose(seen(source, snapshot, source.history(), facts))
    except Exception:
        health.failed("diagnosis", f"there is no verdict on monitor {source.name!r}", exc_info=True)
        return None


def remember(source: Any, snapshot: Snapshot, history: Mapping[str, Any]) -> None:
    """Keeps the steps around which trouble begins, for the verdicts to come; call it at each reading."""
    if getattr(source, "run_facts", None) is None:
        return
    try:
        opening_of(source).look(snapshot, history)
    except Exception:
        health.failed("diagnosis", f"trouble of monitor {source.name!r} cannot be remembered", exc_info=True)


def forget(source: Any) -> None:
    """The run begins anew, or goes on from a checkpoint."""
    opening_of(source).forget()


def once(make: Judge) -> Judge:
    """`make`, which is called at most once."""
    made: list[Diagnosis | None] = []

    def get() -> Diagnosis | None:
        if not made:
            made.append(make())
        return made[0]

    return get


def sentences(diagnosis: Diagnosis | None) -> str:
    """What an alert begins with: the verdict and the strongest number for it; "" for a healthy run and for none."""
    if diagnosis is None or diagnosis.healthy:
        return ""
    return " ".join([diagnosis.verdict, *diagnosis.causes[0].evidence[:1]])


def log_end(name: str, steps: int, diagnosis: Diagnosis | None) -> None:
    """Verdict, why and next at the end of a run: as a warning where there is something to do."""
    if diagnosis is None or steps < _LEAST_STEPS:
        return
    level = logging.INFO if diagnosis.healthy else logging.WARNING
    logger.log(level, "%s ended after %d steps.\n%s", name, steps, diagnosis)
