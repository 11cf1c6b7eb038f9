"""A monitor shows itself: in a notebook, as a figure and as a report, with a record and without one."""

from __future__ import annotations

import pytest
import tensorflow as tf

import gradwatch
from gradwatch.reading.reader import reader


@pytest.fixture(autouse=True)
def _own_reader():
    yield
    reader.close()


def trained(**options):
    """Twenty calm steps and an explosion of one of two layers."""
    monitor = gradwatch.Monitor("shown", policy="median(2)", **options)
    variables = [tf.Variable(tf.ones([2])), tf.Variable(tf.ones([3]))]
    for step in range(60):
        monitor.clip([tf.ones([2]), tf.ones([3]) * (1e4 if step == 50 else 1.0)], variables)
        monitor.report(loss=1.0 / (step + 1))
    return monitor


def titles(layout):
    return [figure.title.text for figure in layout.children]


def test_a_monitor_without_a_record_shows_its_last_steps_and_where_it_exploded(tmp_path):
    monitor = trained()
    assert titles(monitor.plot()) == ["Loss: shown", "Gradient norm", "Layers"]
    norm = next(line for line in monitor.plot().children[1].renderers if line.name == "norm")
    assert norm.data_source.data["step"].tolist() == list(range(1, 61))
    html = monitor._repr_html_()
    assert "shown" in html
    assert "explosion at step 51" in html
    assert "<script" not in html
    text = monitor.write_report(tmp_path / "report.html").read_text()
    assert "steps 1 to 60" in text


def test_a_monitor_with_a_record_shows_the_whole_run(tmp_path):
    monitor = trained(record=tmp_path / "runs")
    text = monitor.write_report(tmp_path / "report.html").read_text()
    assert "steps 1 to 60" in text
    assert "explosion" in monitor._repr_html_()
    assert gradwatch.open_run(monitor.record_path)._repr_html_() == monitor._repr_html_()


def test_a_monitor_before_its_first_step_shows_its_name():
    monitor = gradwatch.Monitor("young")
    assert "young" in monitor._repr_html_()
    assert titles(monitor.plot()) == []


def test_a_recorded_run_leaves_its_report_at_the_end_of_the_process_unless_the_environment_wants_none(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("GRADWATCH_REPORT", "")
    trained_one = trained(record=tmp_path / "with")
    monkeypatch.setenv("GRADWATCH_REPORT", "off")
    trained_other = trained(record=tmp_path / "without")
    reader.close()
    assert trained_one.record_path.with_suffix(".html").exists()
    assert not trained_other.record_path.with_suffix(".html").exists()
