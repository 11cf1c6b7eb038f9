"""`gradwatch.diagnose`: the causes that a run's numbers speak for."""

from __future__ import annotations

from typing import Any

from gradwatch.diagnosis.case import Case
from gradwatch.diagnosis.causes import CAUSES, HEALTHY
from gradwatch.diagnosis.observation import Observation, focus, is_monitor, observe
from gradwatch.diagnosis.opening import seen
from gradwatch.diagnosis.outcome import outcome
from gradwatch.diagnosis.signs import Signs
from gradwatch.diagnosis.verdict import Cause, Diagnosis

#: A cause must be at least so likely to be told instead of `healthy`.
LEAST = 0.5

RUNBOOK = "docs/diagnosis.md"


def diagnose(source: Any) -> Diagnosis:
    """Say why a run went wrong, or that it is healthy.

        print(gradwatch.diagnose(train_step.monitor))
        gradwatch.diagnose(gradwatch.open_run("runs")).causes[0].kind

    Takes milliseconds; call it outside a `tf.function`. A monitor knows its last 1,024 steps, and those around the
    beginning of trouble that lasts, where anybody looked at it then: an alert sink, a record, an exporter, the log, or
    this function. Of a record of more than 4,096 steps those around the newest trouble that did not heal are looked
    at, or an even choice where there is none.

    Args:
      source: a `gradwatch.Monitor`, or a `gradwatch.Run` as `gradwatch.open_run` gives it.

    Raises:
      ConfigError: `source` is neither.
      RecordError: the run's file cannot be read.
    """
    run = _observed(source)
    signs = Signs(focus(run))
    found: list[tuple[Case, Cause, str]] = []
    for row in CAUSES:
        case = signs.ask(row.evidence)
        if case is not None and case.confidence > 0.0:
            if signs.run.began is not None and row.kind != "unseen":  # of what came after, it is no evidence
                case = case._replace(confidence=case.confidence / 2)
            cause = Cause(row.kind, case.confidence, case.sentences, case.advice or row.advice, _runbook(row.kind))
            found.append((case, cause, case.verdict or row.verdict))
    found.sort(key=lambda item: -item[0].confidence)
    likely = found[0][0].confidence if found else 0.0
    step = found[0][0].step if likely >= LEAST else None
    became = outcome(Signs(run), step)  # the end of a long run may be out of focus
    calm = HEALTHY.evidence(signs)
    said = calm.sentences if calm is not None else ()
    healthy = Cause("healthy", 1.0 - likely, said, HEALTHY.advice, _runbook("healthy"))
    if likely < LEAST and not (found and became.nonfinite):
        causes = (healthy, *(cause for _, cause, _ in found))
        return Diagnosis(causes, None, HEALTHY.verdict, _why(healthy), healthy.advice, became.word)
    first = found[0][1]
    causes = (*(cause for _, cause, _ in found), healthy)
    since = became.since if became.nonfinite else None
    advice = " ".join(filter(None, (first.advice, became.advice)))
    return Diagnosis(causes, found[0][0].step, found[0][2], _why(first), advice, became.word, since)


def _observed(source: Any) -> Observation:
    if is_monitor(source):
        now = source.read()
        return seen(source, now.snapshot, now.history, source.run_facts)
    return observe(source)


def _why(cause: Cause) -> str:
    return " ".join(cause.evidence[:2])


def _runbook(kind: str) -> str:
    return f"{RUNBOOK}#{kind.replace('_', '-')}"
