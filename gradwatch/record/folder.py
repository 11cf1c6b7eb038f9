"""The runs in a folder, in a line each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gradwatch.errors import RecordError
from gradwatch.record.excerpt import Excerpt
from gradwatch.record.run import Run, files_of
from gradwatch.report.material import verdict_of


@dataclass(frozen=True)
class Summary:
    """One file of the folder. Times are Unix seconds.

    Attributes:
      file: path.
      error: why it cannot be read; "" where it can, and the other fields are known.
      name: of the monitor.
      run_name: what the run is called; "" without a name.
      id: of the run.
      start: when the first step was made.
      end: when the run ended, or was heard of last.
      ended: as in `Run.info`.
      last_step: the newest step.
      steps: recorded.
      events: anomalies.
      policy, optimizer: as in `Run.info`.
      verdict: one sentence, as `gradwatch.diagnose` gives it; "" where it could not be given.
      cause: kind of the likeliest cause.
      outcome: what became of the run, see `Diagnosis.outcome`.
      nonfinite_since: the step since which nothing finite came; None where the run ends with a finite loss.
    """

    file: str
    error: str = ""
    name: str = ""
    run_name: str = ""
    id: str = ""
    start: float = 0.0
    end: float = 0.0
    ended: str = ""
    last_step: int = 0
    steps: int = 0
    events: int = 0
    policy: str = ""
    optimizer: str = ""
    verdict: str = ""
    cause: str = ""
    outcome: str = ""
    nonfinite_since: int | None = None

    def as_json(self) -> dict[str, Any]:
        """All of it, or file and error alone."""
        return {"file": self.file, "error": self.error} if self.error else asdict(self)


def summaries(folder: Path) -> list[Summary]:
    """Every record in `folder`, newest first; a file that cannot be read says why.

    Raises:
      RecordError: there is no such folder.
    """
    if not folder.is_dir():
        raise RecordError(f"there is no folder {folder}; give the one that record= or GRADWATCH_RECORD names")
    return [_summary(path) for path in files_of(folder)]


def _summary(path: Path) -> Summary:
    run = Run(path)
    try:
        info, events = run.info, run.events
    except RecordError as error:
        return Summary(str(path), str(error))
    return Summary(
        file=str(path),
        name=info["name"],
        run_name=info["run_name"],
        id=info["id"],
        start=info["start"],
        end=info["end"] or info["seen"],
        ended=info["ended"],
        last_step=info["last_step"],
        steps=info["steps"],
        events=int(events["episodes"].sum()),
        policy=info["policy"],
        optimizer=info["optimizer"] or "",
        **_verdict(run, info),
    )


def _verdict(run: Run, info: Mapping[str, Any]) -> dict[str, Any]:
    """The one that the record holds, if it is of all its steps, or a new one."""
    told = info.get("diagnosis") or {}
    if told.get("steps") != info["steps"]:
        found = verdict_of(Excerpt(run))
        if found is None:
            return {}
        told = found.to_dict()
    return {
        "verdict": str(told["verdict"]),
        "cause": str(told["causes"][0]["kind"]),
        "outcome": str(told.get("outcome", "")),
        "nonfinite_since": told.get("nonfinite_since"),
    }
