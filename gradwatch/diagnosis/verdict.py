"""The answer: `Diagnosis`, and the `Cause`s in it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Cause:
    """One possible cause of what a run did.

    Attributes:
      kind: one of `gradwatch.diagnosis.causes.KINDS`.
      confidence: how well the numbers agree with it, in [0, 1]; those of all causes need not sum to 1.
      evidence: whole sentences with the numbers that speak for it, the strongest first.
      advice: what to do, one sentence, with a number where there is one.
      runbook: where to read more: a page and a section of the documents.
    """

    kind: str
    confidence: float
    evidence: tuple[str, ...]
    advice: str
    runbook: str


@dataclass(frozen=True)
class Diagnosis:
    """What `gradwatch.diagnose` found; `str` of it is three lines: Verdict, Why, Next.

    Attributes:
      causes: the likeliest first, at least one; a healthy run has `healthy` in front.
      first_step: the first step, counted from 1, at which the run was not as it should be; None for a healthy run.
      verdict: what happened, one sentence.
      why: the numbers that say so, one or two sentences.
      next: what to do, one or two sentences.
      outcome: what became of the run, as far as its loss tells: "survived" (the loss stayed where it was), "healed" (it
        left, and is back), "harmed" (it is above what it was before), "lost" (it is no better than at the start, or not
        finite any more), or "" where there was no trouble or it is not known.
      nonfinite_since: the step since which no finite loss came back, up to the newest step; None where it is finite.
    """

    causes: tuple[Cause, ...]
    first_step: int | None
    verdict: str
    why: str
    next: str
    outcome: str = ""
    nonfinite_since: int | None = None

    @property
    def kind(self) -> str:
        """Of the likeliest cause."""
        return self.causes[0].kind

    @property
    def confidence(self) -> float:
        """Of the likeliest cause, in [0, 1]."""
        return self.causes[0].confidence

    @property
    def healthy(self) -> bool:
        """Whether nothing speaks for a fault."""
        return self.kind == "healthy"

    def __str__(self) -> str:
        return f"Verdict: {self.verdict}\nWhy: {self.why}\nNext: {self.next}"

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON types."""
        causes = [{**asdict(cause), "evidence": list(cause.evidence)} for cause in self.causes]
        return {
            "verdict": self.verdict,
            "why": self.why,
            "next": self.next,
            "first_step": self.first_step,
            "outcome": self.outcome,
            "nonfinite_since": self.nonfinite_since,
            "causes": causes,
        }
