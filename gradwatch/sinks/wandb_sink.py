"""A run of Weights & Biases as the target of a sink."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gradwatch.diagnosis.verdict import Diagnosis
from gradwatch.errors import ConfigError, MissingExtra
from gradwatch.reading.alerts import Alert

STEP = "gradwatch/step"


class Wandb:
    """Speaks to a run of wandb.

    Args:
      run: the run; None is the active one.

    Raises:
      MissingExtra: wandb is not installed.
      ConfigError: there is no run.
    """

    name = "wandb"

    def __init__(self, run: Any = None) -> None:
        try:
            import wandb
        except ImportError:
            raise MissingExtra("wandb", "wandb", "gradwatch.sinks.wandb()") from None
        run = wandb.run if run is None else run
        if run is None or not hasattr(run, "define_metric"):
            got = "none is active" if run is None else f"got {run!r}"
            raise ConfigError(f"gradwatch.sinks.wandb needs a run, {got}; call wandb.init(project=...) before")
        self._wandb, self._run = wandb, run
        run.define_metric(STEP, hidden=True)
        run.define_metric("gradwatch/*", step_metric=STEP)

    def send(self, rows: Sequence[tuple[int, float, Mapping[str, float]]]) -> None:
        """Each row as one of the run's history."""
        for step, _, numbers in rows:
            self._run.log({STEP: step, **numbers})

    def alert(self, alert: Alert) -> None:
        """As an alert of W&B, which may send it on, and a tag."""
        level = {"critical": "ERROR", "warning": "WARN"}.get(alert.severity, "INFO")
        self._run.alert(alert.title, alert.message, level=level, wait_duration=0)
        tag = f"gradwatch-{alert.kind}"
        if tag not in (self._run.tags or ()):
            self._run.tags = (*(self._run.tags or ()), tag)

    def verdict(self, prefix: str, diagnosis: Diagnosis) -> None:
        """Into the summary."""
        told = {"verdict": diagnosis.verdict, "why": diagnosis.why, "next": diagnosis.next, "cause": diagnosis.kind}
        self._run.summary.update({f"{prefix}{name}": text for name, text in told.items()})

    def report(self, path: Path) -> None:
        """As an artifact of the type "report"."""
        artifact = self._wandb.Artifact(f"{path.stem}-{self._run.id}", type="report")
        artifact.add_file(str(path))
        self._run.log_artifact(artifact)
