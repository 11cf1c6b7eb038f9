"""Whatever happens to the disk, the process or the file: training goes on, nothing but the last look is lost, and who
reads the file is told what it is."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from record.recorded import Recorded

from gradwatch.errors import RecordError
from gradwatch.exporters.metrics import BY_NAME
from gradwatch.reading import health as health_module
from gradwatch.reading.steps import StepCursor
from gradwatch.record import recorder as recorder_module
from gradwatch.record.run import open_run
from gradwatch.record.schema import VERSION

TESTS = Path(__file__).parents[1]


def lines(log):
    return [r.getMessage() for r in log.records if r.levelname == "WARNING" and "recorded" in r.getMessage()]


def metric(name, reader):
    (reading,) = reader.readings()
    ((_, number),) = BY_NAME[name].read(reading)
    return number


def fail_twice_then(recorded, reader, log):
    """Two looks that fail: one line, an error for each, and the training still steps."""
    errors = recorded.recorder.errors
    for _ in range(2):
        recorded.step()
        recorded.look()
    assert len(lines(log)) == 1
    assert str(recorded.recorder.path) in lines(log)[0]
    assert recorded.recorder.errors - errors == 2
    reader.poll_now()  # a look at which there is nothing to write
    assert metric("gradwatch_record_errors_total", reader) == errors + 2


def test_a_step_between_the_snapshot_and_the_history_of_a_look_is_of_the_next_look(recorded):
    real = recorded.recorder._history

    def history():
        if not recorded.state.steps:
            recorded.step()  # the training goes on while the reader reads
        return real()

    recorded.recorder._history = history
    looks = []
    write = recorded.recorder._write
    recorded.recorder._write = lambda look: (looks.append(look), write(look))
    for _ in range(2):
        recorded.recorder.flush(20)
    assert [look.rows["step"].tolist() for look in looks] == [[1]]


# -- the disk ---------------------------------------------------------------------------------------------


def test_a_full_disk_costs_the_steps_of_its_time_and_the_record_goes_on(recorded, reader, log, health):
    recorded.step()
    recorded.look()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))  # as a disk that takes no more
    try:
        recorded.begin("explosion")
        fail_twice_then(recorded, reader, log)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    recorded.step()
    run = recorded.look()
    assert run.steps["step"].tolist() == [1, 2, 5]
    assert run.steps["verdict"].tolist() == ["pass", "gap", "pass"]
    assert run.steps["missed"].tolist() == [0, 3, 0]
    assert run.events["step"].tolist() == [2]  # what happened is not lost with the steps
    assert metric("gradwatch_recorded_steps_total", reader) <= 2


def test_a_folder_that_cannot_be_written_costs_one_line(reader, log, health):
    recorded = Recorded(Path("/proc/gradwatch"))  # even root cannot make a folder there
    fail_twice_then(recorded, reader, log)
    assert recorded.state.steps == 2


def test_a_folder_that_is_a_file_costs_one_line(tmp_path, reader, log, health):
    (tmp_path / "file").write_text("")
    fail_twice_then(Recorded(tmp_path / "file"), reader, log)


def test_a_folder_that_vanishes_costs_one_line_and_when_it_is_back_the_record_goes_on(
    recorded, folder, reader, log, health
):
    recorded.step()
    recorded.look()
    folder.rename(folder.with_name("away"))
    fail_twice_then(recorded, reader, log)
    folder.with_name("away").rename(folder)
    recorded.step()
    assert recorded.look().steps["step"].tolist() == [1, 2, 4]


def test_a_folder_that_was_deleted_is_not_made_again(recorded, folder, reader, log, health):
    recorded.step()
    recorded.look()
    shutil.rmtree(folder)
    fail_twice_then(recorded, reader, log)
    assert not folder.exists()


def test_a_flush_behind_a_slow_disk_brings_every_step(recorded, reader, monkeypatch):
    write = recorder_module.Recorder._write

    def slowly(self, look):
        time.sleep(0.2)
        write(self, look)

    monkeypatch.setattr(recorder_module.Recorder, "_write", slowly)
    monkeypatch.setattr(StepCursor, "next_look_seconds", lambda self: 60.0)  # no look but those that are asked for
    for _ in range(20):
        recorded.step()
        assert reader.poll_now()
    assert recorded.recorder.flush(20)
    assert open_run(recorded.recorder.path).steps["step"].tolist() == list(range(1, 21))


# -- the process ------------------------------------------------------------------------------------------

STEPPING = """
import sys, time
sys.path[:0] = {paths!r}
from pathlib import Path
from record.recorded import Recorded
from gradwatch.reading.reader import reader
reader.set_interval(0.05)
monitor = Recorded(Path({folder!r}), run_id=sys.argv[1])
end = time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    monitor.step(float(monitor.state.steps + 1))
    print(monitor.state.steps, flush=True)
    time.sleep(0.001)
{last}
"""


def start(folder, run_id, seconds, last=""):
    code = STEPPING.format(paths=[str(TESTS), str(TESTS.parent)], folder=str(folder), last=last)
    command = [sys.executable, "-c", code, run_id, str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


@pytest.mark.parametrize("after", [0.5, 0.8, 1.1])
def test_a_process_that_is_killed_in_mid_step_loses_its_last_second_at_most(folder, after):
    process = start(folder, "killed", 60)
    while not list(folder.glob("*")):  # its first steps are being written
        process.stdout.readline()
    end = time.monotonic() + after
    at = {}
    while time.monotonic() < end:
        made = int(process.stdout.readline())
        at[made] = time.monotonic()
    os.kill(process.pid, signal.SIGKILL)
    killed = time.monotonic()
    process.wait()
    process.stdout.close()
    run = open_run(folder)
    steps = run.steps
    assert run.info["ended"] == "killed"
    assert np.array_equal(steps["norm"], steps["step"])
    assert steps["step"].tolist() == list(range(1, len(steps["step"]) + 1))
    assert all(step <= steps["step"][-1] for step, when in at.items() if when < killed - 1.0)


def test_two_processes_record_into_one_folder(folder):
    processes = [start(folder, run_id, 1.0) for run_id in ("one", "two")]
    made = [int(process.communicate(timeout=60)[0].split()[-1]) for process in processes]
    runs = {run.info["id"]: run for run in map(open_run, folder.iterdir())}
    assert {run_id: int(run.steps["step"][-1]) for run_id, run in runs.items()} == dict(zip(("one", "two"), made))
    assert [run.info["ended"] for run in runs.values()] == ["finished", "finished"]


def test_an_exception_that_ends_the_process_is_told(folder):
    start(folder, "broken", 0.2, "raise ValueError('no more data')").communicate(timeout=60)
    assert open_run(folder).info["ended"] == "exception: ValueError: no more data"


def test_a_forked_child_leaves_the_record_of_its_parent_alone(folder):
    child = "if os.fork() == 0:\n    monitor.recorder.note('child', 1)\n    sys.exit()\n"
    last = f"import os\n{child}os.wait()\nmonitor.step()"
    output = start(folder, "parent", 0.3, last).communicate(timeout=60)[0]
    run = open_run(folder)
    assert run.info["ended"] == "finished"
    assert run.steps["step"][-1] == int(output.split()[-1]) + 1
    assert run.notes["text"].tolist() == []


# -- the file ---------------------------------------------------------------------------------------------


@pytest.fixture
def path(recorded, reader):
    for _ in range(300):
        recorded.step()
    recorded.look()
    reader.close()
    return recorded.recorder.path


def refused(path, match):
    with pytest.raises(RecordError, match=match) as error:
        open_run(path).steps  # noqa: B018
    assert path.name in str(error.value)


def test_a_file_half_written_says_so_and_how_to_save_the_rest(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refused(path, r"cannot be read.*\.recover")


def test_a_file_that_was_begun_and_never_written_is_called_empty(path):
    path.write_bytes(b"")
    refused(path, "is empty: the run was killed before its first steps")


def test_a_record_of_a_newer_gradwatch_says_so(path):
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version={VERSION + 1}")
    db.close()
    refused(path, f"newer gradwatch .schema {VERSION + 1}.*update gradwatch")


@pytest.mark.parametrize("name", ["input_rms", "score"])
def test_a_record_of_an_older_gradwatch_is_read_and_what_it_did_not_record_is_not_known(path, name):
    before = open_run(path).steps
    with sqlite3.connect(path) as db:
        db.execute(f"ALTER TABLE steps DROP COLUMN {name}")
    db.close()
    run = open_run(path)
    steps = run.steps
    assert np.isnan(steps[name]).all()
    others = steps.keys() - {name}
    assert all(np.array_equal(steps[k], before[k], equal_nan=steps[k].dtype.kind == "f") for k in others)
    assert run.material().diagnosis is not None
    assert run.material().steps == 300


def test_a_file_of_another_program_says_so(path):
    path.unlink()
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE run (key, value)")
    db.close()
    refused(path, "of another program")


def test_a_file_that_is_no_database_says_so(path):
    path.write_text("step,norm\n1,2\n" * 100)
    refused(path, "not a database")


def test_a_file_that_is_not_there_says_so(tmp_path):
    refused(tmp_path / "no.sqlite", "there is no file")


def test_a_folder_without_runs_says_how_to_record_one(tmp_path):
    with pytest.raises(RecordError, match=r"holds no record.*watch"):
        open_run(tmp_path)


def test_a_variable_that_is_not_there_names_those_that_are(path):
    with pytest.raises(RecordError, match=r"no variable 'a/kernl'.*such as a/kernel"):
        open_run(path).layers("a/kernl")


def test_each_failure_has_a_series_from_the_start():
    assert health_module.Health().internal_errors()["record"] == 0
