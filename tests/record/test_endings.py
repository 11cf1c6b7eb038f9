"""However a recorded run ends, its record says so and a report stands beside it; and no training fails by that."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from record.recorded import Recorded

from gradwatch.reading.reader import mark_active
from gradwatch.record import recorder
from gradwatch.record.folder import summaries
from gradwatch.record.run import Run, open_run
from gradwatch.record.writer import keep

pytestmark = pytest.mark.timeout(300)  # a process and a report each, on a busy machine

TESTS = Path(__file__).parents[1]

CODE = """
import os, signal, sys, time
sys.path[:0] = {paths!r}
from pathlib import Path
from gradwatch.reading.reader import reader
{before}
from record.recorded import Recorded
reader.set_interval(0.05)
monitor = Recorded(Path({folder!r}), report=True)
for _ in range(200):
    monitor.step(float(monitor.state.steps + 1))
    time.sleep(0.001)
{then}
"""
WAIT = "print('ready', flush=True)\nfor _ in range(600): time.sleep(0.1)"


def start(folder, then, before="", **environment):
    code = CODE.format(paths=[str(TESTS), str(TESTS.parent)], folder=str(folder), before=before, then=then)
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def terminate(process):
    """Sends SIGTERM once the steps are made; (what it prints afterwards, its status)."""
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=90)
    return output, process.returncode


def report_of(folder):
    (path,) = folder.glob("*.html")
    return path.read_text()


def test_sigterm_closes_the_record_with_its_last_step_writes_the_report_and_ends_the_process_by_the_signal(folder):
    _, status = terminate(start(folder, WAIT))
    assert status == -signal.SIGTERM
    run = open_run(folder)
    assert run.info["ended"] == "SIGTERM"
    assert run.steps["step"][-1] == 200
    assert "SIGTERM" in report_of(folder)


def test_a_handler_of_the_training_still_gets_its_sigterm_and_decides_what_it_means(folder):
    before = """
def told(*_):
    global stop
    print('told', flush=True)
    stop = True
stop = False
signal.signal(signal.SIGTERM, told)
"""
    then = "print('ready', flush=True)\nwhile not stop: time.sleep(0.05)\nmonitor.step(7.0)"
    output, status = terminate(start(folder, then, before))
    assert (output, status) == ("told\n", 0)
    run = open_run(folder)
    assert run.steps["step"][-1] == 201  # it went on after the signal
    assert run.info["ended"] == "SIGTERM"
    assert report_of(folder)


def test_a_handler_that_ends_the_process_at_once_finds_everything_written(folder):
    before = "signal.signal(signal.SIGTERM, lambda *_: os._exit(3))"
    _, status = terminate(start(folder, WAIT, before))
    assert status == 3
    assert open_run(folder).steps["step"][-1] == 200
    assert report_of(folder)


def test_who_ignores_sigterm_goes_on_ignoring_it(folder):
    then = "print('ready', flush=True)\ntime.sleep(1)\nprint('alive', flush=True)"
    output, status = terminate(start(folder, then, "signal.signal(signal.SIGTERM, signal.SIG_IGN)"))
    assert (output, status) == ("alive\n", 0)
    assert open_run(folder).info["ended"] == "finished"


def test_a_forked_child_dies_of_sigterm_as_ever_and_ends_no_run(folder):
    then = """
child = os.fork()
if child == 0:
    time.sleep(60)
    os._exit(0)
time.sleep(0.3)
os.kill(child, signal.SIGTERM)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
    output, _ = start(folder, then).communicate(timeout=90)
    assert output == "-15\n"
    assert open_run(folder).info["ended"] == "finished"


def test_an_exception_leaves_a_report_that_names_it_and_its_traceback_is_printed_as_ever(folder):
    process = start(folder, "raise ValueError('no more data')")
    _, errors = process.communicate(timeout=90)
    assert process.returncode == 1
    assert errors.rstrip().endswith("ValueError: no more data")
    assert "exception: ValueError: no more data" in report_of(folder)


def test_a_run_of_an_environment_that_wants_none_gets_no_report(monkeypatch):
    for value in ("0", "off", "No"):
        monkeypatch.setenv(recorder.REPORT_VARIABLE, value)
        assert not recorder.wants_report()
    monkeypatch.setenv(recorder.REPORT_VARIABLE, "")
    assert recorder.wants_report()


# -- in one process -------------------------------------------------------------------------------------------


@pytest.fixture
def reported(folder, reader):
    return Recorded(folder, report=True)


def test_the_end_of_the_process_writes_the_report(reported, reader, folder):
    reported.step()
    reported.look()
    assert list(folder.glob("*.html")) == []
    reader.close()
    assert "finished" in report_of(folder)
    (found,) = summaries(folder)
    assert found.verdict == open_run(folder).info["diagnosis"]["verdict"] != ""


def test_a_report_that_cannot_be_written_for_want_of_an_extra_is_missed_in_one_line(
    reported, reader, folder, monkeypatch, caplog
):
    monkeypatch.setitem(sys.modules, "bokeh", None)
    monkeypatch.setitem(sys.modules, "bokeh.plotting", None)
    with caplog.at_level("WARNING", "gradwatch"):
        for _ in range(2):
            reported.step()
            reported.look()
            reported.recorder._report()
    assert not list(folder.glob("*.html"))
    lines = [record.getMessage() for record in caplog.records if "no report" in record.getMessage()]
    assert len(lines) == 1
    assert "pip install 'gradwatch-tf[live]'" in lines[0]


def test_a_verdict_in_the_record_is_told_as_long_as_it_is_of_all_its_steps(reported, reader, folder):
    reported.step()
    reported.look()
    keep(reported.recorder.path, diagnosis={"verdict": "As it was.", "causes": [{"kind": "healthy"}], "steps": 1})
    assert [(run.verdict, run.cause) for run in summaries(folder)] == [("As it was.", "healthy")]
    reported.step()
    reported.look()
    assert summaries(folder)[0].verdict not in ("", "As it was.")


def test_the_end_of_fit_writes_the_report_once_and_a_fit_that_goes_on_writes_it_anew(
    reported, reader, folder, monkeypatch
):
    monkeypatch.setattr(recorder, "_CALM_SECONDS", 0.0)
    written = []
    monkeypatch.setattr(recorder, "_write_report", lambda path: written.append(Run(path).info["last_step"]))

    def looks():
        for _ in range(3):
            reported.look()
            assert recorder._reporting.flush(20)

    reported.step()
    looks()
    assert written == []  # under way
    mark_active(reported, False)
    looks()
    assert written == [1]
    reported.step()
    mark_active(reported, False)
    looks()
    assert written == [1, 2]
    reader.close()
    assert written == [1, 2]  # there is one of this very step


def test_a_report_that_cannot_be_written_is_one_line_of_the_log_and_the_record_is_whole(
    reported, reader, folder, log, health, monkeypatch
):
    def fails(path):
        raise OSError("no space left on device")

    monkeypatch.setattr(recorder, "_write_report", fails)
    errors = health.internal_errors()["record"]
    reported.step()
    reader.close()
    assert open_run(folder).info["ended"] == "finished"
    assert next(r.getMessage() for r in log.records if "report" in r.getMessage()).startswith("the report of ")
    assert health.internal_errors()["record"] == errors + 1


def test_without_bokeh_a_run_ends_as_ever(reported, reader, folder, health, monkeypatch):
    monkeypatch.setitem(sys.modules, "bokeh.plotting", None)
    errors = health.internal_errors()["record"]
    reported.step()
    reader.close()
    assert open_run(folder).info["ended"] == "finished"
    assert health.internal_errors()["record"] == errors
    assert list(folder.glob("*.html")) == []
