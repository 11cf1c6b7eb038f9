"""The catalogue: one table, and what it promises about every series."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from telemetry.fake import BOUNDS, FakeMonitor, snapshot

from gradwatch.core.snapshot import KINDS
from gradwatch.exporters.metrics import BY_NAME, LABELS, METRICS, Buckets, markdown
from gradwatch.reading.health import CHANNELS, COMPONENTS, OUTCOMES, SCRAPE_COMPONENTS, Health
from gradwatch.reading.reading import Reading

ROOT = Path(__file__).parents[2]

OF_MONITORS = [m for m in METRICS if m.scope == "monitor"]
ALWAYS = [m for m in OF_MONITORS if not m.when]
names = lambda metrics: [m.name for m in metrics]  # noqa: E731


def read(metric, **state):
    return metric.read(Reading("run", snapshot(**state)))


def value(name, **state):
    ((_, number),) = read(BY_NAME[name], **state)
    return number


def test_no_name_stands_twice():
    assert len(BY_NAME) == len(METRICS)


@pytest.mark.parametrize("metric", METRICS, ids=names(METRICS))
def test_names_follow_the_conventions(metric):
    assert re.fullmatch(r"gradwatch_[a-z_]+", metric.name)
    assert metric.name.endswith("_total") == (metric.type == "counter")
    assert metric.name.endswith("_info") == (metric.type == "info")
    if metric.unit:
        assert metric.name.removesuffix("_total").endswith("_" + metric.unit)
    assert metric.help.endswith(".")
    assert metric.group
    assert "monitor" not in metric.labels


@pytest.mark.parametrize("metric", ALWAYS, ids=names(ALWAYS))
def test_every_series_exists_before_the_first_step(metric):
    samples = read(metric)
    assert isinstance(samples, Buckets) or len(list(samples)) > 0


@pytest.mark.parametrize("metric", [m for m in ALWAYS if m.type == "counter"], ids=lambda m: m.name)
def test_every_counter_begins_at_zero(metric):
    assert [number for _, number in read(metric)] == [0.0] * len(list(read(metric)))


def test_process_counters_begin_at_zero_for_everything_they_can_count():
    fresh = Health()
    for name, keys in {
        "gradwatch_internal_errors_total": {(c,) for c in COMPONENTS},
        "gradwatch_scrape_errors_total": {(c,) for c in SCRAPE_COMPONENTS},
        "gradwatch_notifications_total": {(c, o) for c in CHANNELS for o in OUTCOMES},
    }.items():
        assert dict(BY_NAME[name].read(fresh)) == dict.fromkeys(keys, 0.0)


@pytest.mark.parametrize("metric", OF_MONITORS, ids=names(OF_MONITORS))
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_run_gone_bad_gives_no_nan(metric, bad):
    fields = ("norm", "applied_norm", "clip_norm", "clip_scale", "explosion_threshold", "vanishing_threshold")
    numbers = dict.fromkeys((*fields, "score", "median", "max_norm"), bad)
    samples = read(
        metric,
        **numbers,
        norm_sum=bad,
        quantiles=dict.fromkeys((0.05, 0.5, 0.95, 0.99), bad),
        layer_norms={"a": bad},
        loss_scale=bad,
        expected_clip_ratio=0.1,
        extra={"loss": bad, "learning_rate": bad},
    )
    if isinstance(samples, Buckets):
        assert math.isfinite(samples.total)
    else:
        assert not any(math.isnan(number) for _, number in samples)


@pytest.mark.parametrize("metric", OF_MONITORS, ids=names(OF_MONITORS))
def test_samples_have_one_value_for_each_label(metric):
    samples = read(metric, layer_norms={"a": 1.0}, loss_scale=2.0, expected_clip_ratio=0.1, extra={"loss": 1.0})
    if not isinstance(samples, Buckets):
        keys = [values for values, _ in samples]
        assert all(len(values) == len(metric.labels) for values in keys)
        assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    ("name", "state", "expected"),
    [
        ("gradwatch_steps_total", {"steps": 7}, 7.0),
        ("gradwatch_gradient_norm_last", {"norm": 2.5}, 2.5),
        ("gradwatch_gradient_norm_applied", {"applied_norm": 1.5}, 1.5),
        ("gradwatch_gradient_norm_max", {"max_norm": 9.0}, 9.0),
        ("gradwatch_clip_norm", {"clip_norm": 1.25}, 1.25),
        ("gradwatch_clip_scale_ratio", {"clip_scale": 0.5}, 0.5),
        ("gradwatch_clipped_steps_total", {"clipped_steps": 3}, 3.0),
        ("gradwatch_warmup_active", {"warmup": False}, 0.0),
        ("gradwatch_explosion_score", {"score": 4.0}, 4.0),
        ("gradwatch_explosion_threshold", {"explosion_threshold": 6.0}, 6.0),
        ("gradwatch_vanishing_threshold", {"vanishing_threshold": 0.1}, 0.1),
        ("gradwatch_nonfinite_steps_total", {"nonfinite_steps": 2}, 2.0),
        ("gradwatch_nonfinite_streak_steps", {"nonfinite_streak": 1}, 1.0),
        ("gradwatch_loss", {"extra": {"loss": 0.75}}, 0.75),
        ("gradwatch_learning_rate", {"extra": {"learning_rate": 1e-3}}, 1e-3),
        ("gradwatch_loss_scale", {"loss_scale": 1024.0}, 1024.0),
        ("gradwatch_expected_clip_ratio", {"expected_clip_ratio": 0.1}, 0.1),
    ],
)
def test_a_metric_shows_its_field_of_the_snapshot(name, state, expected):
    assert value(name, **state) == expected


@pytest.mark.parametrize("name", ["gradwatch_loss", "gradwatch_learning_rate", "gradwatch_loss_scale"])
def test_what_nobody_told_is_not_shown(name):
    assert list(read(BY_NAME[name])) == []


def test_anomalies_are_shown_by_kind():
    monitor = FakeMonitor()
    monitor.step()
    monitor.begin("trend")
    reading = Reading("run", monitor.snapshot(), last_anomaly_time={"trend": 123.0})
    for name, number in {
        "gradwatch_anomalies_total": 1.0,
        "gradwatch_anomalous_steps_total": 1.0,
        "gradwatch_anomaly_active": 1.0,
        "gradwatch_last_anomaly_step": 2.0,
        "gradwatch_last_anomaly_timestamp_seconds": 123.0,
    }.items():
        expected = {(kind,): 0.0 for kind in KINDS} | {("trend",): number}
        assert dict(BY_NAME[name].read(reading)) == expected


def test_the_histogram_is_the_one_of_the_device():
    monitor = FakeMonitor()
    for norm in (0.5, 5.0, 50.0, math.nan):
        monitor.step(norm)
    buckets = BY_NAME["gradwatch_gradient_norm"].read(Reading("run", monitor.snapshot()))
    assert buckets == Buckets(BOUNDS, (0, 0, 0, 1, 2, 3, 3, 3), 55.5)


def test_the_docs_page_is_current():
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert page == markdown(), "run: python -m gradwatch.exporters.metrics > docs/metrics.md"


def test_the_labels_a_grouping_key_must_not_use_are_all_known():
    assert {"monitor", "le", "kind", "quantile", "component", "channel"} <= LABELS
