"""The metric catalogue: ONE table of names, types, units, meanings and where each value comes from.

The exposition, the docs page, the dashboards and the alert rules are generated from it or tested against
it. Rules of the table:

- Prometheus naming: base units, `_total` for counters, ratios from 0 to 1, timestamps and not ages.
- Each metric of a monitor has the label `monitor`, and no other unless it is listed.
- Each series exists from the start at 0, so `increase()` sees the first event. The few that do not
  say so under `when`.
- No sample is ever NaN: a norm, loss or score that is NaN is shown as +Inf. No value in a histogram is
  infinite. A threshold that does not exist is +Inf.

`python -m gradwatch.exporters.metrics` prints the docs page.
"""

from __future__ import annotations

import math
import platform
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from importlib import metadata

from gradwatch.core.decode import QUANTILES
from gradwatch.core.snapshot import KINDS, RUNGS
from gradwatch.reading.harm import LOSS_KINDS, SEVERITIES
from gradwatch.reading.health import Health
from gradwatch.reading.losses import REASONS
from gradwatch.reading.reading import DURATION_BOUNDS, Reading
from gradwatch.reading.text import clean

#: Values of the extra labels, and the sample.
Samples = Iterable["tuple[tuple[str, ...], float]"]

SKIP_REASONS = ("nonfinite", "explosion")


@dataclass(frozen=True)
class Buckets:
    """A histogram: `counts[i]` observations <= `bounds[i]`, cumulative; one count more, of all of them."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float  # sum of the observed values


@dataclass(frozen=True)
class Metric:
    """One row of the catalogue.

    Attributes:
      name: as Prometheus shows it.
      type: "counter" (only goes up while the run lives), "gauge", "histogram", "info" (always 1), or
        "summary": quantiles, without sum and count, which the histogram has.
      help: one sentence.
      read: the samples, out of the newest reading of a monitor; for scope "process", out of its health.
      labels: extra labels, in the order of `read`'s.
      unit: OpenMetrics unit where the name carries one.
      scope: "monitor" (has the label `monitor`) or "process" (describes the process, no such label).
      group: heading on the docs page.
      when: when the series exists; "" means from the start.
    """

    name: str
    type: str
    help: str
    read: Callable[..., Samples | Buckets]
    labels: tuple[str, ...] = ()
    unit: str = ""
    scope: str = "monitor"
    group: str = ""
    when: str = ""


def _one(value: float) -> Samples:
    return [((), _no_nan(value))]


def _no_nan(value: float) -> float:
    value = float(value)
    return math.inf if math.isnan(value) else value


def _or_zero(value: float) -> float:
    """For statistics of the past: NaN there means that there is no past yet."""
    value = float(value)
    return 0.0 if math.isnan(value) else value


def _of_a_step(r: Reading, value: float) -> Samples:
    """NaN before the first step is no anomaly."""
    return _one(value if r.snapshot.steps else _or_zero(value))


def _per_kind(values: object) -> Samples:
    return [((kind,), float(values.get(kind, 0))) for kind in KINDS]  # type: ignore[attr-defined]


def _severities(r: Reading) -> Samples:
    ranks = {"": 0.0, **{severity: rank for rank, severity in enumerate(SEVERITIES, 1)}}
    return [((kind,), float(ranks[r.harm.severity(kind)])) for kind in (*KINDS, *LOSS_KINDS)]


def _norms(r: Reading) -> Buckets:
    s = r.snapshot
    counts = s.norm_counts or (0,) * (len(s.norm_bounds) + 1)
    # a sum beyond the float range would be Inf for good
    return Buckets(tuple(s.norm_bounds), tuple(counts), min(_or_zero(s.norm_sum), sys.float_info.max))


def _quantiles(r: Reading) -> Samples:
    known = {round(float(q), 6): value for q, value in r.snapshot.quantiles.items()}
    return [((f"{q:g}",), _or_zero(known.get(q, 0.0))) for q in QUANTILES]


def _last_steps(r: Reading) -> Samples:
    events = r.snapshot.last_events
    return [((kind,), float(event.step) if (event := events.get(kind)) else 0.0) for kind in KINDS]


def _skipped(r: Reading) -> Samples:
    reasons = dict.fromkeys(SKIP_REASONS, 0) | dict(r.snapshot.skipped_by_reason)
    return [((clean(reason),), float(count)) for reason, count in reasons.items()]


def _extra(key: str) -> Callable[[Reading], Samples]:
    def read(r: Reading) -> Samples:
        value = r.snapshot.extra.get(key)
        return [] if value is None else _one(value)

    return read


def _optional(value: float | None) -> Samples:
    return [] if value is None else _one(value)


_RUN_INFO = ("run_id", "run_name", "strategy", "replicas", "precision", "policy")


def _run_info(r: Reading) -> Samples:
    known = {"policy": clean(r.snapshot.policy), **r.run_info, "run_id": r.run_id}
    return [(tuple(str(known.get(key, "")) for key in _RUN_INFO), 1.0)]


@cache
def _installed(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def version_of(package: str) -> str:
    """Version of an imported or installed package; "" if there is none. Imports nothing."""
    return str(getattr(sys.modules.get(package), "__version__", "") or _installed(package))


def _verdict(r: Reading) -> Samples:
    return [] if r.diagnosis is None else [((r.diagnosis.kind, f"{r.diagnosis.confidence:.1f}"), 1.0)]


def _per_rung(values: object, rungs: tuple[str, ...] = RUNGS) -> Samples:
    return [((rung,), float(values.get(rung, 0))) for rung in rungs]  # type: ignore[attr-defined]


def _build_info(_: Health) -> Samples:
    return [((version_of("gradwatch"), version_of("tensorflow"), platform.python_version()), 1.0)]


def _counts(values: dict[str, int]) -> Samples:
    return [((key,), float(count)) for key, count in values.items()]


_RUN = "The run"
_NORM = "Gradient norm"
_CLIP = "Clipping"
_ANOMALY = "Anomalies"
_HARM = "Harm, since this process began to watch"
_RECOVERY = "Recovery"
_TRAINING = "Training, as far as it is told"
_SELF = "gradwatch itself"

METRICS: tuple[Metric, ...] = (
    Metric(
        "gradwatch_build_info",
        "info",
        "Versions in this process.",
        _build_info,
        labels=("version", "tensorflow_version", "python_version"),
        scope="process",
        group=_RUN,
    ),
    Metric(
        "gradwatch_run_info",
        "info",
        "What is being trained, and how.",
        _run_info,
        labels=_RUN_INFO,
        group=_RUN,
    ),
    Metric(
        "gradwatch_verdict_info",
        "info",
        "The newest verdict on the run: its likeliest cause, see gradwatch.diagnose.",
        _verdict,
        labels=("cause", "confidence"),
        when="once there is a verdict",
        group=_RUN,
    ),
    Metric(
        "gradwatch_steps_total",
        "counter",
        "Optimizer steps watched; a resumed run goes on counting.",
        lambda r: _one(r.snapshot.steps),
        group=_RUN,
    ),
    Metric(
        "gradwatch_run_active",
        "gauge",
        "1 from the first step seen until the run ended, else 0.",
        lambda r: _one(r.active),
        group=_RUN,
    ),
    Metric(
        "gradwatch_run_start_timestamp_seconds",
        "gauge",
        "When this process began to watch the monitor.",
        lambda r: _one(r.run_start_time),
        unit="seconds",
        group=_RUN,
    ),
    Metric(
        "gradwatch_last_step_timestamp_seconds",
        "gauge",
        "When a new step was last seen; 0 = none yet.",
        lambda r: _one(r.last_step_time),
        unit="seconds",
        group=_RUN,
    ),
    Metric(
        "gradwatch_snapshot_timestamp_seconds",
        "gauge",
        "When the numbers of this monitor were read.",
        lambda r: _one(r.snapshot.time),
        unit="seconds",
        group=_RUN,
    ),
    Metric(
        "gradwatch_gradient_norm",
        "histogram",
        "Global L2 norm of the gradient before clipping, of every step with a finite norm.",
        _norms,
        group=_NORM,
    ),
    Metric(
        "gradwatch_gradient_norm_quantile",
        "summary",
        "Quantile of the recent norms; 0 until there are any.",
        _quantiles,
        labels=("quantile",),
        group=_NORM,
    ),
    Metric(
        "gradwatch_gradient_norm_last",
        "gauge",
        "Norm of the last step before clipping; +Inf if it was not finite.",
        lambda r: _of_a_step(r, r.snapshot.norm),
        group=_NORM,
    ),
    Metric(
        "gradwatch_gradient_norm_applied",
        "gauge",
        "Norm of the last step after clipping; 0 for a zeroed or skipped step.",
        lambda r: _of_a_step(r, r.snapshot.applied_norm),
        group=_NORM,
    ),
    Metric(
        "gradwatch_gradient_norm_max",
        "gauge",
        "Largest finite norm of the run.",
        lambda r: _one(_or_zero(r.snapshot.max_norm)),
        group=_NORM,
    ),
    Metric(
        "gradwatch_layer_gradient_norm",
        "gauge",
        "Norm of one variable's gradient at the last step; +Inf if it was not finite.",
        lambda r: [((name,), _no_nan(norm)) for name, norm in r.snapshot.layer_norms.items()],
        labels=("layer",),
        group=_NORM,
        when="only with `serve(layers=...)`, for a set fixed at the first step",
    ),
    Metric(
        "gradwatch_reach_norm",
        "gauge",
        "Gradient norm which, sustained, moves the weights by their own length in a step.",
        lambda r: [] if r.snapshot.reach in (None, math.inf) else _one(r.snapshot.reach),
        group=_NORM,
        when="only for an optimizer whose update is linear in the gradient (SGD), once weights and rate are known",
    ),
    Metric(
        "gradwatch_clip_norm",
        "gauge",
        "Norm to which the policy clips; +Inf = it does not clip (warm-up, observe).",
        lambda r: _one(r.snapshot.clip_norm),
        group=_CLIP,
    ),
    Metric(
        "gradwatch_clip_scale_ratio",
        "gauge",
        "Applied norm / norm of the last step: 1 = untouched, 0 = dropped.",
        lambda r: [((), _or_zero(r.snapshot.clip_scale))],
        unit="ratio",
        group=_CLIP,
    ),
    Metric(
        "gradwatch_expected_clip_ratio",
        "gauge",
        "Share of clipped steps to expect from the policy.",
        lambda r: _optional(r.snapshot.expected_clip_ratio),
        unit="ratio",
        group=_CLIP,
        when="only for a policy that implies a share (`percentile`)",
    ),
    Metric(
        "gradwatch_clipped_steps_total",
        "counter",
        "Steps whose gradient was scaled down.",
        lambda r: _one(r.snapshot.clipped_steps),
        group=_CLIP,
    ),
    Metric(
        "gradwatch_warmup_active",
        "gauge",
        "1 while the explosion detector still gathers statistics and sees decades of growth only, else 0.",
        lambda r: _one(r.snapshot.warmup),
        group=_CLIP,
    ),
    Metric(
        "gradwatch_skipped_updates_total",
        "counter",
        "Updates left out, weights and slots unchanged.",
        _skipped,
        labels=("reason",),
        group=_CLIP,
    ),
    Metric(
        "gradwatch_explosion_score",
        "gauge",
        "The spike detector's statistic: robust z-score of the log norm.",
        lambda r: _one(r.snapshot.score),
        group=_ANOMALY,
    ),
    Metric(
        "gradwatch_explosion_threshold",
        "gauge",
        "Norm above which a step is an explosion; +Inf = none yet.",
        lambda r: _one(r.snapshot.explosion_threshold),
        group=_ANOMALY,
    ),
    Metric(
        "gradwatch_vanishing_threshold",
        "gauge",
        "Norm below which gradients count as vanishing; 0 = none yet.",
        lambda r: [((), _or_zero(r.snapshot.vanishing_threshold))],
        group=_ANOMALY,
    ),
    Metric(
        "gradwatch_anomalies_total",
        "counter",
        "Episodes that began: an explosion of 40 steps is one.",
        lambda r: _per_kind(r.snapshot.anomalies),
        labels=("kind",),
        group=_ANOMALY,
    ),
    Metric(
        "gradwatch_anomalous_steps_total",
        "counter",
        "Steps within episodes.",
        lambda r: _per_kind(r.snapshot.anomalous_steps),
        labels=("kind",),
        group=_ANOMALY,
    ),
    Metric(
        "gradwatch_anomaly_active",
        "gauge",
        "1 while an episode is under way, else 0.",
        lambda r: _per_kind(r.snapshot.active),
        labels=("kind",),
        group=_ANOMALY,
    ),
    Metric(
        "gradwatch_last_anomaly_timestamp_seconds",
        "gauge",
        "When the newest episode was first seen; 0 = never in this process.",
        lambda r: _per_kind(r.last_anomaly_time),
        labels=("kind",),
        unit="seconds",
        group=_ANOMALY,
    ),
    Metric(
        "gradwatch_last_anomaly_step",
        "gauge",
        "Step at which the newest episode began; 0 = never.",
        _last_steps,
        labels=("kind",),
        group=_ANOMALY,
    ),
    Metric(
        "gradwatch_episode_severity",
        "gauge",
        "What an open episode did: 0 = none open, 1 = harmless (info), 2 = harmful (warning), 3 = fatal (critical).",
        _severities,
        labels=("kind",),
        group=_HARM,
    ),
    Metric(
        "gradwatch_useful_steps_total",
        "counter",
        "Steps that were neither skipped, zeroed, non-finite nor in a harmful episode; counted once that is known.",
        lambda r: _one(r.harm.useful_steps),
        group=_HARM,
    ),
    Metric(
        "gradwatch_wasted_steps_total",
        "counter",
        "Steps that were not useful, each under the first reason that fits.",
        lambda r: [((reason,), float(r.harm.wasted_steps.get(reason, 0))) for reason in REASONS],
        labels=("reason",),
        group=_HARM,
    ),
    Metric(
        "gradwatch_nonfinite_steps_total",
        "counter",
        "Steps whose gradient had a NaN or Inf.",
        lambda r: _one(r.snapshot.nonfinite_steps),
        group=_ANOMALY,
    ),
    Metric(
        "gradwatch_nonfinite_streak_steps",
        "gauge",
        "Non-finite steps in a row, up to now.",
        lambda r: _one(r.snapshot.nonfinite_streak),
        group=_ANOMALY,
    ),
    Metric(
        "gradwatch_recoveries_total",
        "counter",
        "What the ladder of `recover=` did, by rung; for skip, updates that were dropped as bad batches.",
        lambda r: _per_rung(r.snapshot.recoveries),
        labels=("rung",),
        group=_RECOVERY,
    ),
    Metric(
        "gradwatch_lost_steps_total",
        "counter",
        "Steps whose updates the ladder left dropped, or took back.",
        lambda r: _per_rung(r.snapshot.lost_steps),
        labels=("rung",),
        group=_RECOVERY,
    ),
    Metric(
        "gradwatch_learning_rate_scale_ratio",
        "gauge",
        "What the ladder multiplies the learning rate by: 1 = as it was set.",
        lambda r: _one(r.snapshot.rate_scale),
        unit="ratio",
        group=_RECOVERY,
    ),
    Metric(
        "gradwatch_update_ratio",
        "gauge",
        "Share of their norm by which a step moves the weights, measured every 50 steps; about 0.001 is usual.",
        lambda r: _optional(r.snapshot.update_ratio),
        unit="ratio",
        group=_TRAINING,
        when="from the first measured update on",
    ),
    Metric(
        "gradwatch_layer_update_ratio",
        "gauge",
        "The same of one variable, which has none while it is zero.",
        lambda r: [((name,), _no_nan(share)) for name, share in r.snapshot.layer_update_ratio.items()],
        labels=("layer",),
        unit="ratio",
        group=_TRAINING,
        when="only with `serve(layers=...)`, for the set of `gradwatch_layer_gradient_norm`",
    ),
    Metric(
        "gradwatch_loss",
        "gauge",
        "Loss of the last step; +Inf if it was not finite.",
        _extra("loss"),
        group=_TRAINING,
        when="only when known",
    ),
    Metric(
        "gradwatch_learning_rate",
        "gauge",
        "Learning rate of the last step.",
        _extra("learning_rate"),
        group=_TRAINING,
        when="only when known",
    ),
    Metric(
        "gradwatch_loss_scale",
        "gauge",
        "Factor by which mixed precision scales the loss.",
        lambda r: _optional(r.snapshot.loss_scale),
        group=_TRAINING,
        when="only with loss scaling",
    ),
    Metric(
        "gradwatch_host_overhead_seconds_total",
        "counter",
        "Time that gradwatch's host side took from the training thread, in eager steps and in traces.",
        lambda r: _one(r.host_seconds),
        unit="seconds",
        group=_SELF,
    ),
    Metric(
        "gradwatch_snapshot_duration_seconds",
        "histogram",
        "Time to read a monitor, on a thread of its own.",
        lambda r: Buckets(DURATION_BOUNDS, r.duration_counts, r.duration_sum),
        unit="seconds",
        group=_SELF,
    ),
    Metric(
        "gradwatch_recorded_steps_total",
        "counter",
        "Steps written into the run's record.",
        lambda r: _one(r.recorded[0]),
        group=_SELF,
    ),
    Metric(
        "gradwatch_record_errors_total",
        "counter",
        "Looks that the disk of the run's record did not take; training went on, their steps are a gap in the record.",
        lambda r: _one(r.recorded[1]),
        group=_SELF,
    ),
    Metric(
        "gradwatch_notifications_total",
        "counter",
        "Messages to people; suppressed = held back by the rate limit.",
        lambda h: [(key, float(count)) for key, count in h.notifications().items()],
        labels=("channel", "outcome"),
        scope="process",
        group=_SELF,
    ),
    Metric(
        "gradwatch_internal_errors_total",
        "counter",
        "Failures of gradwatch's host side; training went on.",
        lambda h: _counts(h.internal_errors()),
        labels=("component",),
        scope="process",
        group=_SELF,
    ),
    Metric(
        "gradwatch_scrape_errors_total",
        "counter",
        "Scrapes or parts of one that failed: exposition = a value could not be read, http = a bad request.",
        lambda h: _counts(h.scrape_errors()),
        labels=("component",),
        scope="process",
        group=_SELF,
    ),
)

#: By name.
BY_NAME = {metric.name: metric for metric in METRICS}

#: Label names of the catalogue; a Pushgateway grouping key must not use them.
LABELS = frozenset({"monitor", "le"} | {label for metric in METRICS for label in metric.labels})


def markdown() -> str:
    """The docs page of the catalogue."""
    lines = [
        "# Metrics",
        "",
        "<!-- Generated from gradwatch/exporters/metrics.py: python -m gradwatch.exporters.metrics -->",
        "",
        "Every metric of a monitor has the label `monitor`. Those marked * describe the process and carry no",
        "`monitor` label. Every series exists from the start at 0, unless the last column says otherwise. A",
        "value that is not a number is shown as `+Inf`, never as `NaN`; a threshold that does not exist yet is `+Inf`.",
        "Counters and the histogram are counted at every step, so a spike of one step is seen by a scrape",
        "every 15 seconds. Gauges show the last step only.",
        "",
        "How to scrape them: [prometheus.md](prometheus.md).",
    ]
    for group in dict.fromkeys(metric.group for metric in METRICS):
        lines += ["", f"## {group}", "", "| metric | type | extra labels | meaning | exists |"]
        lines += ["| --- | --- | --- | --- | --- |"]
        for m in (m for m in METRICS if m.group == group):
            star = " *" if m.scope == "process" else ""
            labels = ", ".join(f"`{label}`" for label in m.labels)
            lines.append(f"| `{m.name}`{star} | {m.type} | {labels} | {m.help} | {m.when or 'always'} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(markdown(), end="")
