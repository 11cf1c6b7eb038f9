"""A run of MLflow as the target of a sink."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from gradwatch.diagnosis.verdict import Diagnosis
from gradwatch.errors import ConfigError, MissingExtra
from gradwatch.reading.alerts import Alert

_MOST_METRICS = 500  # in one request; MLflow takes 1,000
_MOST_CHARACTERS = 5000  # of a tag


class Mlflow:
    """Speaks to a run of MLflow, at the tracking URI that is set now.

    Args:
      run_id: of the run; None is the active one.

    Raises:
      MissingExtra: MLflow is not installed.
      ConfigError: there is no run.
    """

    name = "mlflow"

    def __init__(self, run_id: str | None = None) -> None:
        try:
            import mlflow
            from mlflow.entities import Metric
        except ImportError:
            raise MissingExtra("mlflow", "mlflow", "gradwatch.sinks.mlflow()") from None
        if run_id is None:
            active = mlflow.active_run()
            if active is None:
                raise ConfigError(
                    "gradwatch.sinks.mlflow needs a run, none is active; call mlflow.start_run() before, or give run_id"
                )
            run_id = active.info.run_id
        self._client, self._metric, self._run_id = mlflow.MlflowClient(), Metric, run_id

    def send(self, rows: Sequence[tuple[int, float, Mapping[str, float]]]) -> None:
        """Each number as a metric at its step."""
        metrics = [
            self._metric(name, number, round(1000 * time), step)
            for step, time, numbers in rows
            for name, number in numbers.items()
        ]
        for first in range(0, len(metrics), _MOST_METRICS):
            self._client.log_batch(self._run_id, metrics=metrics[first : first + _MOST_METRICS])

    def alert(self, alert: Alert) -> None:
        """As the tag of its kind; the newest stays."""
        self._tag(f"gradwatch.{alert.kind}", alert.message)

    def verdict(self, prefix: str, diagnosis: Diagnosis) -> None:
        """As tags."""
        dotted = prefix.replace("/", ".")
        for name, text in (("verdict", str(diagnosis)), ("cause", diagnosis.kind)):
            self._tag(f"{dotted}{name}", text)

    def report(self, path: Path) -> None:
        """As an artifact in the folder `gradwatch`."""
        self._client.log_artifact(self._run_id, str(path), "gradwatch")

    def _tag(self, name: str, text: str) -> None:
        self._client.set_tag(self._run_id, name, text[:_MOST_CHARACTERS])
