"""What the diagnosis says about the cause of trouble, as far as it is sure enough to act on."""

from __future__ import annotations

from typing import Any, NamedTuple

from gradwatch.reading.verdicts import judge

#: Confidence of a cause from which on the ladder follows it.
_SURE = 0.7

#: Kind of cause -> what it is to the ladder. Causes that are not here change nothing.
_KINDS = {
    "rate_jump": "rate",
    "warmup_too_short": "rate",
    "learning_rate_too_high": "rate",
    "nonfinite_input": "data",
    "bad_batch": "data",
    "corrupt_labels": "data",
    "odd_replica": "data",
}


class Reason(NamedTuple):
    """Attributes:
    kind: "rate", "data" or None.
    verdict: a sentence, "" where there is none.
    likeliest: the same where it is not sure.
    """

    kind: str | None = None
    verdict: str = ""
    likeliest: str = ""


def reason_of(monitor: Any) -> Reason:
    """The likeliest cause of a monitor's trouble. Where there is no diagnosis, there is no reason either."""
    found = judge(monitor, monitor.snapshot())
    if found is None or found.healthy:
        return Reason()
    if found.confidence < _SURE:
        return Reason(likeliest=found.verdict)
    return Reason(_KINDS.get(found.kind), found.verdict, found.verdict)
