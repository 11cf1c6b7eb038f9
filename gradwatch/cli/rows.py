"""What an endpoint says, as one row for each monitor."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from gradwatch.core.snapshot import KINDS
from gradwatch.exporters.metrics import METRICS
from gradwatch.reading.state import state_of

#: Labels that part one metric of a monitor into several series.
_SPLIT = {label for metric in METRICS for label in metric.labels} | {"le"}


@dataclass(frozen=True)
class Row:
    """One monitor of one endpoint, or one endpoint that does not answer. NaN: not known.

    Attributes:
      endpoint: host and port.
      monitor: name; "" for an endpoint that does not answer.
      run: what the run is called; "" if it has no name.
      state, tone: see `gradwatch.reading.state.state_of`.
      steps: optimizer steps so far.
      pace: steps per second, over the last 20 seconds or as long as it was watched.
      norm, applied_norm, clip_norm, threshold: norms of the last step; Inf where there is no limit, and for a
        norm that is not finite.
      clip_ratio: share of clipped steps.
      expected_clip_ratio: share of clipped steps to expect from the policy.
      update_ratio: share of their norm by which a step moved the weights, when it was last measured.
      anomalies: kind -> episodes.
      overhead_ratio: share of the run that gradwatch's host side took from the training thread.
      verdict: likeliest cause, or "healthy"; "" before the first verdict.
      time: Unix seconds at which the training's numbers were read.
    """

    endpoint: str
    monitor: str
    state: str
    tone: str
    run: str = ""
    steps: float = math.nan
    pace: float = math.nan
    norm: float = math.nan
    applied_norm: float = math.nan
    clip_norm: float = math.nan
    threshold: float = math.nan
    clip_ratio: float = math.nan
    expected_clip_ratio: float = math.nan
    update_ratio: float = math.nan
    anomalies: Mapping[str, float] = field(default_factory=dict)
    overhead_ratio: float = math.nan
    verdict: str = ""
    time: float = math.nan


def parse(text: str, endpoint: str = "") -> list[Row]:
    """The rows of one exposition, by monitor.

    Raises:
      ValueError: it is not in Prometheus' text format.
    """
    found: dict[str, dict[str, float]] = defaultdict(dict)
    runs: dict[str, str] = {}
    causes: dict[str, str] = {}
    kinds: dict[str, dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            monitor = sample.labels.get("monitor")
            if monitor is None or not sample.name.startswith("gradwatch_"):
                continue
            name = sample.name.removeprefix("gradwatch_")
            if name == "run_info":
                runs[monitor] = sample.labels.get("run_name", "")
            if name == "verdict_info":
                causes[monitor] = sample.labels.get("cause", "")
            if "kind" in sample.labels:
                kinds[monitor][name][sample.labels["kind"]] = sample.value
            elif not _SPLIT & set(sample.labels):
                found[monitor][name] = sample.value
    return [
        replace(_row(endpoint, monitor, runs.get(monitor, ""), values, kinds[monitor]), verdict=causes.get(monitor, ""))
        for monitor, values in sorted(found.items())
    ]


def _row(
    endpoint: str, monitor: str, run: str, v: Mapping[str, float], kinds: Mapping[str, Mapping[str, float]]
) -> Row:
    def value(name: str) -> float:
        return v.get(name, math.nan)

    def of_step(name: str) -> float:
        return value(name) if steps else math.nan  # before the first step there is no norm

    steps, now = value("steps_total"), value("snapshot_timestamp_seconds")
    elapsed = now - value("run_start_timestamp_seconds")
    state, tone = state_of(
        steps=v.get("steps_total", 0.0),
        running=value("run_active") == 1,
        warmup=value("warmup_active") == 1,
        active={kind: active == 1 for kind, active in kinds["anomaly_active"].items()},
        idle_seconds=now - value("last_step_timestamp_seconds"),
    )
    return Row(
        endpoint=endpoint,
        monitor=monitor,
        state=state,
        tone=tone,
        run=run,
        steps=steps,
        norm=of_step("gradient_norm_last"),
        applied_norm=of_step("gradient_norm_applied"),
        clip_norm=value("clip_norm"),
        threshold=value("explosion_threshold"),
        clip_ratio=value("clipped_steps_total") / steps if steps else 0.0,
        expected_clip_ratio=value("expected_clip_ratio"),
        update_ratio=value("update_ratio"),
        anomalies={kind: kinds["anomalies_total"].get(kind, 0.0) for kind in KINDS},
        overhead_ratio=value("host_overhead_seconds_total") / elapsed if elapsed > 0 else math.nan,
        time=now,
    )


def as_json(row: Row) -> dict[str, Any]:
    """The row as JSON types: what is not known is null, an infinite number the text "Infinity"."""

    def plain(value: Any) -> Any:
        if isinstance(value, float):
            return None if math.isnan(value) else value if math.isfinite(value) else "Infinity"
        return value

    fields = {name: plain(value) for name, value in asdict(row).items()}
    return {**fields, "anomalies": {kind: plain(count) for kind, count in row.anomalies.items()}}
