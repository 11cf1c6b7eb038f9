"""Queries are checked while they are put together."""

from __future__ import annotations

import pytest

from gradwatch.errors import ConfigError
from gradwatch.grafana.queries import chosen, finite, series, share_of_steps


@pytest.mark.parametrize("name", ["gradwatch_gradient_nrom", "gradwatch_steps", "node_load1", "gradwatch_loss_bucket"])
def test_a_metric_that_is_not_in_the_catalogue_is_refused(name):
    with pytest.raises(ConfigError, match=f"no series '{name}'"):
        series(name)


def test_a_histogram_has_no_series_of_its_own_name():
    with pytest.raises(ConfigError, match="gradwatch_gradient_norm"):
        series("gradwatch_gradient_norm")
    assert series("gradwatch_gradient_norm_bucket", 'le="+Inf"') == 'gradwatch_gradient_norm_bucket{le="+Inf"}'


def test_a_label_that_the_metric_has_not_is_refused():
    with pytest.raises(ConfigError, match=r"gradwatch_steps_total has no label 'kind'; it has instance, job, monitor"):
        series("gradwatch_steps_total", 'kind="explosion"')


def test_a_dashboard_narrows_process_metrics_without_the_monitor():
    assert "monitor" in chosen("gradwatch_steps_total")
    assert "monitor" in chosen("gradwatch_gradient_norm_bucket")
    assert chosen("gradwatch_build_info") == 'gradwatch_build_info{job=~"$job", instance=~"$instance"}'
    assert chosen("up") == 'up{job=~"$job", instance=~"$instance"}'


def test_helpers_give_the_promql_they_promise():
    assert finite("x") == "(x < Inf)"
    assert share_of_steps("a", "b", "5m") == "rate(a[5m]) / (rate(b[5m]) > 0)"
