"""Short jobs and a real Pushgateway: their last numbers stay, however they end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse
from servers import Server, prometheus, pushgateway, wait_until

ROOT = Path(__file__).parents[2]

JOB = """
import sys
import keras, tensorflow as tf
import gradwatch
from gradwatch.exporters.push import push

gateway, instance, name, end = sys.argv[1:]
model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(1)])
optimizer = keras.optimizers.SGD(0.01)

@gradwatch.watch(name=name)
@tf.function
def step():
    x = tf.random.normal((8, 4))
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(model(x) ** 2)
    optimizer.apply_gradients(zip(tape.gradient(loss, model.trainable_variables), model.trainable_variables))

push(gateway, "short", {"instance": instance})
for _ in range(30):
    step()
if end == "crash":
    raise RuntimeError("the training crashed")
"""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    # Debian's own default keeps the groups of earlier runs in a file
    with pushgateway(tmp_path_factory.mktemp("pushgateway")) as gateway:
        yield gateway


class Job:
    """A finished training: its exit status, and what the gateway showed after it."""

    def __init__(self, gateway: Server, instance: str, name: str, end: str = "well") -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
        command = [sys.executable, "-c", JOB, gateway.address, instance, name, end]
        self.status = subprocess.run(command, env=environment, capture_output=True, timeout=100).returncode
        self.exposition = gateway.get("/metrics")

    def series(self, name: str) -> dict[tuple[str, str], float]:
        """(instance, monitor) -> value"""
        samples = [s for family in parse(self.exposition) for s in family.samples if s.name == name]
        return {(s.labels["instance"], s.labels.get("monitor", "")): s.value for s in samples if s.labels.get("job")}


@pytest.fixture(scope="module")
def well(gateway):
    return Job(gateway, "worker-0", "generator")


@pytest.fixture(scope="module")
def crashed(gateway, well):
    return Job(gateway, "worker-1", "generator", "crash")


@pytest.fixture(scope="module")
def again(gateway, crashed):
    """Worker 0 once more, with another monitor."""
    return Job(gateway, "worker-0", "critic")


def test_a_job_leaves_its_last_numbers_when_it_ends(well):
    worker = "worker-0", "generator"
    assert well.status == 0
    assert well.series("gradwatch_steps_total")[worker] == 30
    assert well.series("gradwatch_gradient_norm_count")[worker] == 30
    assert well.series("gradwatch_run_active")[worker] == 0
    assert well.series("push_failure_time_seconds") == {("worker-0", ""): 0}


def test_a_job_leaves_its_last_numbers_when_it_crashes(crashed):
    worker = "worker-1", "generator"
    assert crashed.status == 1
    assert crashed.series("gradwatch_steps_total")[worker] == 30
    assert crashed.series("gradwatch_run_active")[worker] == 0


def test_the_next_run_of_a_worker_replaces_its_numbers_and_leaves_the_other_workers_alone(crashed, again):
    assert set(crashed.series("gradwatch_steps_total")) == {("worker-0", "generator"), ("worker-1", "generator")}
    assert set(again.series("gradwatch_steps_total")) == {("worker-0", "critic"), ("worker-1", "generator")}


def test_prometheus_sees_the_job_and_the_worker_and_not_the_gateway(gateway, crashed, tmp_path):
    scrape = {"job_name": "pushgateway", "honor_labels": True, "static_configs": [{"targets": [gateway.address]}]}
    with prometheus(tmp_path, {"global": {"scrape_interval": "1s"}, "scrape_configs": [scrape]}) as server:
        query = 'gradwatch_steps_total{job="short", instance="worker-1"}'
        (found,) = wait_until(lambda: server.query(query), 20, "the pushed steps in Prometheus")
    assert float(found["value"][1]) == 30
    assert found["metric"]["monitor"] == "generator"
