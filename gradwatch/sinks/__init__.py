"""Where people already look: what monitors see, in a run of Weights & Biases or of MLflow.

    import wandb
    run = wandb.init(project="translation")
    with gradwatch.sinks.wandb(run):
        train()

Each needs the extra of its name.
"""

from __future__ import annotations

from typing import Any

from gradwatch.reading.track import Source
from gradwatch.sinks.mlflow_sink import Mlflow
from gradwatch.sinks.sink import Sink
from gradwatch.sinks.wandb_sink import Wandb

__all__ = ["Sink", "mlflow", "wandb"]


def wandb(run: Any = None, *, monitor: Source | None = None, rows_a_look: int = 10, report: bool = True) -> Sink:
    """Sends what monitors see to a run of Weights & Biases, from a thread of its own.

    Norms, clip_norm, threshold, score, update ratio, learning rate and loss become `gradwatch/...` over
    `gradwatch/step`, the optimizer's step. Each alert becomes an alert and a tag, the verdict goes into the summary,
    and the report is an artifact.

    It calls `run.log` without a step, as W&B's own callback for Keras does. So log without `step=` beside it: W&B drops
    rows whose step lies behind.

    Args:
      run: as `wandb.init` gives it; None is the one that is active.
      monitor: send only this one; None is every monitor of the process, also those made later.
      rows_a_look: at most so many steps for each look, which is one a second; of more steps the highest norms are sent.
      report: hand over the report as well, when the sink is closed.

    Returns:
      the sink: `close()`, the end of its `with` block or the end of the process sends what is left. Close it before
      `run.finish()`.

    Raises:
      MissingExtra: wandb is not installed.
      ConfigError: there is no run, or an argument is out of range.
    """
    return Sink(Wandb(run), monitor, rows_a_look, report)


def mlflow(
    run_id: str | None = None, *, monitor: Source | None = None, rows_a_look: int = 10, report: bool = True
) -> Sink:
    """Sends what monitors see to a run of MLflow, from a thread of its own.

    Norms, clip_norm, threshold, score, update ratio, learning rate and loss become metrics `gradwatch/...` at the
    optimizer's step. Each alert becomes a tag `gradwatch.<kind>`, the verdict the tag `gradwatch.verdict`, and the
    report an artifact in the folder `gradwatch`.

    Args:
      run_id: of the run; None is the one that is active.
      monitor, rows_a_look, report: as for `wandb`.

    Returns:
      the sink: `close()`, the end of its `with` block or the end of the process sends what is left.

    Raises:
      MissingExtra: MLflow is not installed.
      ConfigError: there is no run, or an argument is out of range.
    """
    return Sink(Mlflow(run_id), monitor, rows_a_look, report)
