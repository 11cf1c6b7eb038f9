"""Twenty jobs can be told apart: what a run is called, and where that is shown."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request

import pytest
from telemetry.fake import FakeMonitor
from telemetry.processes import AS_FROM_A_TERMINAL

from gradwatch.errors import ConfigError
from gradwatch.exporters.prometheus import serve
from gradwatch.reading.run_name import run_name


@pytest.mark.parametrize(
    ("environ", "argv", "module", "name"),
    [
        ({}, ["/scratch/jobs/train_lm.py"], "", "train_lm"),
        ({}, ["train"], "", "train"),
        ({}, ["/scratch/jobs/lm/__main__.py"], "", "lm"),
        ({}, ["/scratch/lm/train.py"], "lm.train", "lm.train"),
        ({}, ["/scratch/lm/__main__.py"], "lm.__main__", "lm"),
        ({}, [""], "", ""),
        ({}, ["-c"], "", ""),
        ({}, ["/usr/lib/python3/ipykernel_launcher.py"], "ipykernel_launcher", ""),
        ({}, [], "", ""),
        ({"SLURM_JOB_ID": "77", "SLURM_JOB_NAME": "lm-3e-4"}, ["train.py"], "", "lm-3e-4-77"),
        (
            {"SLURM_JOB_ID": "79", "SLURM_JOB_NAME": "lm", "SLURM_ARRAY_JOB_ID": "78", "SLURM_ARRAY_TASK_ID": "3"},
            ["train.py"],
            "",
            "lm-78_3",
        ),
        ({"SLURM_JOB_ID": "77"}, ["train.py"], "", "77"),
        ({"KUBERNETES_SERVICE_HOST": "192.0.2.1", "HOSTNAME": "lm-0-x7k2p"}, ["train.py"], "", "lm-0-x7k2p"),
        ({"KUBERNETES_SERVICE_HOST": "192.0.2.1", "POD_NAME": "lm-0"}, ["train.py"], "", "lm-0"),
        ({"GRADWATCH_RUN_NAME": "mine", "SLURM_JOB_ID": "77"}, ["train.py"], "", "mine"),
    ],
)
def test_a_run_is_called_after_its_launcher_or_its_script(environ, argv, module, name):
    assert run_name(environ, argv, module) == name


def test_a_name_is_safe_to_show_and_not_long():
    name = run_name({"GRADWATCH_RUN_NAME": "a\n" + "b" * 500})
    assert "\n" not in name
    assert len(name) <= 80


def exposition(server):
    with urllib.request.urlopen(server.metrics_url, timeout=5) as answer:
        return answer.read().decode()


def test_a_monitor_that_does_not_name_its_run_shows_the_runs_name(reader, monkeypatch):
    monkeypatch.setenv("GRADWATCH_RUN_NAME", "lm-3e-4")
    monitor = FakeMonitor("default")
    monitor.run_info["run_name"] = "default"
    reader.register(monitor)
    named = FakeMonitor("other")
    named.run_info["run_name"] = "given"
    reader.register(named)
    reader.poll_now()
    names = {reading.name: reading.run_info["run_name"] for reading in reader.readings()}
    assert names == {"default": "lm-3e-4", "other": "given"}


def test_labels_stand_on_every_series_and_in_the_target_file(reader, tmp_path):
    monitor = FakeMonitor()
    reader.register(monitor)
    reader.poll_now()
    with serve(0, labels={"run": "lm-3e-4", "team": "nlp"}, file_sd=tmp_path) as server:
        series = [line for line in exposition(server).splitlines() if not line.startswith("#")]
        assert [line for line in series if 'run="lm-3e-4"' not in line or 'team="nlp"' not in line] == []
        assert len(series) > 50
        [entry] = json.loads(server.target_file.read_text())
        kept = {name: label for name, label in entry["labels"].items() if not name.startswith("__meta_")}
        assert kept == {"__scheme__": "http", "run": "lm-3e-4", "team": "nlp"}, "Prometheus drops __meta_ labels"


def test_the_target_file_names_the_run_by_itself(reader, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_JOB_NAME", "lm")
    with serve(0, file_sd=tmp_path) as server:
        [entry] = json.loads(server.target_file.read_text())
    assert entry["labels"]["run"] == "lm-77"


@pytest.mark.parametrize("labels", [{"job": "x"}, {"instance": "x"}, {"monitor": "x"}, {"le": "x"}, {"a-b": "x"}])
def test_labels_that_something_else_sets_are_refused(labels):
    with pytest.raises(ConfigError, match="labels"):
        serve(0, labels=labels)


TRAINING = f"""{AS_FROM_A_TERMINAL}
import sys, time
from gradwatch.exporters.prometheus import serve
server = serve(0, file_sd=sys.argv[1])
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
@pytest.mark.parametrize("tests", ["in a terminal", "under nohup"])
def test_a_job_that_is_ended_by_a_signal_takes_its_target_file_along(tmp_path, number, tests, request):
    if tests == "under nohup":  # what this process ignores, its children inherit
        before = signal.signal(number, signal.SIG_IGN)
        request.addfinalizer(lambda: signal.signal(number, before))
    job = subprocess.Popen(
        [sys.executable, "-c", TRAINING, tmp_path], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    job.stdout.readline()
    assert len(list(tmp_path.glob("gradwatch-*.json"))) == 1
    os.kill(job.pid, number)
    assert job.wait(20) == -number  # as without gradwatch
    assert not list(tmp_path.iterdir())
    job.stdout.close()


def test_a_job_that_is_killed_leaves_its_target_file_for_the_alert(tmp_path):
    job = subprocess.Popen([sys.executable, "-c", TRAINING, tmp_path], stdout=subprocess.PIPE)
    job.stdout.readline()
    job.kill()
    job.wait(20)
    job.stdout.close()
    assert len(list(tmp_path.iterdir())) == 1


def test_a_handler_of_the_programs_own_is_left_alone(reader, tmp_path):
    seen = []
    before = signal.signal(signal.SIGTERM, lambda *_: seen.append(1))
    try:
        with serve(0, file_sd=tmp_path):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.05)
        assert seen == [1]
    finally:
        signal.signal(signal.SIGTERM, before)
