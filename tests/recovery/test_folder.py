"""The health files beside snapshots: what a restarted job finds, whatever happened to the one before."""

from __future__ import annotations

import json
import types
from pathlib import Path

import pytest

from gradwatch import recovery
from gradwatch.errors import LayoutError
from gradwatch.recovery import folder

SHAPES = [("dense/kernel", (5, 10)), ("dense/bias", (10,))]


def snapshot(place: Path, name: str, verdict: str = folder.HEALTHY, *, step: int = 1, variables=SHAPES) -> Path:
    prefix = place / name
    prefix.with_name(name + ".index").write_bytes(b"index")
    prefix.with_name(name + ".data-00000-of-00001").write_bytes(b"numbers")
    folder.write_health(prefix, verdict, step, variables, loss=0.5, norm=float("nan"))
    return prefix


def model(*shapes):
    return types.SimpleNamespace(variables=[types.SimpleNamespace(path=p, shape=s) for p, s in shapes])


def test_the_newest_healthy_one_is_found(tmp_path):
    assert recovery.latest_healthy(tmp_path / "nowhere") is None
    assert recovery.latest_healthy(tmp_path) is None
    snapshot(tmp_path, "a", step=10)
    newest = snapshot(tmp_path, "b", step=20)
    for verdict in (folder.CANDIDATE, folder.HARMED, folder.LAST):
        snapshot(tmp_path, f"c-{verdict.replace(' ', '-')}", verdict, step=30)
    assert recovery.latest_healthy(tmp_path) == str(newest)
    assert recovery.latest_healthy(str(tmp_path)) == str(newest)


def test_a_health_file_says_steps_loss_norm_and_verdict(tmp_path):
    snapshot(tmp_path, "a", step=10)
    health = json.loads((tmp_path / "a.health.json").read_text())
    assert (health["step"], health["loss"], health["norm"], health["verdict"]) == (10, 0.5, None, "healthy")
    assert health["files"] == {"a.index": 5, "a.data-00000-of-00001": 7}


@pytest.mark.parametrize(
    "kill",
    [
        lambda place: (place / "b.health.json").unlink(),
        lambda place: (place / "b.health.json").rename(place / "b.health.json.part"),
        lambda place: (place / "b.health.json").write_text('{"version": 1, "verdict"'),
        lambda place: (place / "b.health.json").write_text("[]"),
        lambda place: (place / "b.index").unlink(),
        lambda place: (place / "b.data-00000-of-00001").write_bytes(b"num"),
    ],
    ids=["before the health file", "before its rename", "torn health file", "no health file", "no index", "short data"],
)
def test_a_snapshot_that_was_not_written_to_its_end_is_passed_over(kill, tmp_path):
    whole = snapshot(tmp_path, "a", step=10)
    snapshot(tmp_path, "b", step=20)
    kill(tmp_path)
    assert recovery.latest_healthy(tmp_path) == str(whole)


def test_a_health_file_that_cannot_be_replaced_stays_as_it_was(tmp_path, monkeypatch):
    prefix = snapshot(tmp_path, "a", folder.CANDIDATE)
    before = (tmp_path / "a.health.json").read_text()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        folder.write_health(prefix, folder.HEALTHY, 1, SHAPES)
    assert (tmp_path / "a.health.json").read_text() == before
    assert not list(tmp_path.glob("*.part"))


def test_a_snapshot_of_another_model_is_refused_by_name(tmp_path):
    prefix = snapshot(tmp_path, "a")
    # layers are numbered through a process, so the number says nothing
    assert recovery.latest_healthy(tmp_path, model(("dense_7/kernel", (5, 10)))) == str(prefix)
    with pytest.raises(LayoutError, match=r"of another model: it has no variable like dense/kernel of shape \(5, 12\)"):
        recovery.latest_healthy(tmp_path, model(("dense/kernel", (5, 12)), ("dense/bias", (12,))))
    with pytest.raises(LayoutError, match="no variable like dense_1/bias"):
        recovery.latest_healthy(tmp_path, model(*SHAPES, ("dense_1/bias", (10,))))


def test_a_snapshot_that_is_removed_leaves_its_neighbours(tmp_path):
    snapshot(tmp_path, "run-1")
    other = snapshot(tmp_path, "run-10")
    folder.remove(tmp_path / "run-1")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "run-10.data-00000-of-00001",
        "run-10.health.json",
        "run-10.index",
    ]
    assert recovery.latest_healthy(tmp_path) == str(other)
