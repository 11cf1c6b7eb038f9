"""The real packages: W&B, offline, and MLflow on a local SQLite. What a person finds there afterwards."""

from __future__ import annotations

import json
import struct
import time

import mlflow
import pytest
import wandb
from sinks.test_sinks import Kept, steps
from wandb.proto.wandb_internal_pb2 import Record

from gradwatch import sinks
from gradwatch.errors import ConfigError

pytestmark = pytest.mark.timeout(300)  # MLflow makes the tables of its database


def train(monitor, sink, health):
    """Thirty calm steps and an explosion; nothing that was sent may be refused."""
    errors = health.internal_errors()["sinks"]
    steps(monitor, [1.0] * 30)
    assert sink.flush(60)
    monitor.begin("explosion", 80.0)
    assert sink.flush(60)
    assert health.internal_errors()["sinks"] == errors


@pytest.fixture
def monitor(reader, tmp_path):
    return Kept(tmp_path / "runs", "one")


# -- W&B ------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path):
    settings = wandb.Settings(silent=True, console="off", disable_git=True, disable_code=True)
    run = wandb.init(mode="offline", project="gradwatch", dir=str(tmp_path), settings=settings)
    yield run
    run.finish()


_BLOCK, _FILE_HEADER, _HEADER = 32768, 7, 7


def records(folder):
    """Everything in the file that W&B would send: records of protobuf in LevelDB's log format."""
    (path,) = folder.rglob("*.wandb")
    data, at, whole = path.read_bytes(), _FILE_HEADER, b""
    assert data[:4] == b":W&B"
    while at + _HEADER <= len(data):
        if _BLOCK - at % _BLOCK < _HEADER:  # too small a rest of a block stays empty
            at += _BLOCK - at % _BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + _HEADER])
        whole += data[at + _HEADER : at + _HEADER + length]
        at += _HEADER + length
        if kind in (1, 4):  # a whole one, or the last part
            record = Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def finished(folder):
    """The records of a run that has ended: wandb's own process may write some after `finish` has returned."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        found = list(records(folder))
        if found and found[-1].WhichOneof("record_type") in ("exit", "final"):
            return found
        time.sleep(0.2)
    raise AssertionError("wandb did not finish its file")


def test_wandb_has_the_scalars_over_the_optimizers_step_the_alert_its_tag_the_verdict_and_the_report(
    run, monitor, health, tmp_path
):
    run.log({"loss": 1.0})
    with sinks.wandb(run) as sink:
        train(monitor, sink, health)
        run.log({"loss": 0.5})  # beside it, the training logs as ever
    run.finish()
    found = finished(tmp_path)
    rows = []
    for record in found:
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            rows.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
    ours = {row["gradwatch/step"]: row["gradwatch/norm"] for row in rows if "gradwatch/step" in row}
    assert ours[31] == 80.0
    assert [row["loss"] for row in rows if "loss" in row] == [1.0, 0.5]
    (alert,) = [record.alert for record in found if record.WhichOneof("record_type") == "alert"]
    assert "explosion at step 31" in alert.text
    assert run.tags == ("gradwatch-explosion",)
    told = {item.key: item.value_json for record in found for item in record.summary.update}
    assert json.loads(told["gradwatch/verdict"])
    artifacts = [r.request.log_artifact.artifact for r in found if r.request.HasField("log_artifact")]
    artifacts += [r.artifact for r in found if r.WhichOneof("record_type") == "artifact"]
    assert [artifact.type for artifact in artifacts] == ["report"]
    assert [entry.path for entry in artifacts[0].manifest.contents] == ["gradwatch-one.html"]


def test_wandb_without_a_run_says_what_to_call():
    assert wandb.run is None
    with pytest.raises(ConfigError, match=r"wandb\.init"):
        sinks.wandb()
    with pytest.raises(ConfigError, match="got 'name'"):
        sinks.wandb("name")


# -- MLflow ---------------------------------------------------------------------------------------------------


@pytest.fixture
def tracking(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = mlflow.create_experiment("gradwatch", artifact_location=(tmp_path / "artifacts").as_uri())
    yield experiment
    mlflow.set_tracking_uri(before)


def test_mlflow_has_the_metrics_at_their_steps_the_tags_and_the_report_or_says_what_to_call(tracking, monitor, health):
    with pytest.raises(ConfigError, match="start_run"):
        sinks.mlflow()
    with mlflow.start_run(experiment_id=tracking) as active:
        with sinks.mlflow(rows_a_look=1000) as sink:
            train(monitor, sink, health)
        client, run_id = mlflow.MlflowClient(), active.info.run_id
        metric = client.get_metric_history(run_id, "gradwatch/norm")
        assert [(m.step, m.value) for m in metric] == [*((step, 1.0) for step in range(1, 31)), (31, 80.0)]
        tags = client.get_run(run_id).data.tags
        assert "explosion at step 31" in tags["gradwatch.explosion"]
        assert tags["gradwatch.verdict"].startswith("Verdict: ")
        assert tags["gradwatch.cause"]
        assert [file.path for file in client.list_artifacts(run_id, "gradwatch")] == ["gradwatch/gradwatch-one.html"]
