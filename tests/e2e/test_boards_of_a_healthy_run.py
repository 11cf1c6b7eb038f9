"""What the dashboards show of a healthy run: something in every panel, and no legend twice.

Two processes train one model each by model.fit, with the defaults and a monitor of one name, as two trainings of one
script have it. A real Prometheus scrapes both.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from as_grafana import ALL, View
from servers import Prometheus, installed, prometheus, stop, wait_until
from test_grafana_queries import scraping

from gradwatch.grafana import fleet, health
from gradwatch.grafana.readme import walk

pytestmark = pytest.mark.timeout(300)

BOARDS = {"gradient-health": health.dashboard(), "gradient-fleet": fleet.dashboard()}
PANELS = [
    pytest.param(name, panel, id=f"{name}: {panel['title']}")
    for name, board in BOARDS.items()
    for panel in walk(board["panels"])
    if panel["type"] != "row"
]

TRAINING = """
import time
import keras, numpy as np
import gradwatch

keras.utils.set_random_seed(SEED)
x = np.random.default_rng(0).normal(size=(3200, 8)).astype("float32")
model = keras.Sequential([keras.layers.Input((8,)), keras.layers.Dense(16, activation="tanh"), keras.layers.Dense(1)])
model.compile(keras.optimizers.Adam(1e-3), "mse")
print(gradwatch.serve(port=0).url, flush=True)
slow = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: time.sleep(0.02))
model.fit(x, x.sum(axis=1), epochs=100, verbose=0, callbacks=[gradwatch.KerasCallback(name="train"), slow])
"""


@contextmanager
def fitting(seed: int) -> Iterator[str]:
    """host:port of a process that trains."""
    process = subprocess.Popen(
        [sys.executable, "-c", TRAINING.replace("SEED", str(seed))], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip().removeprefix("http://").rstrip("/")
    finally:
        stop(process)


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Prometheus, View]]:
    """A Prometheus that has seen two healthy runs for some twenty seconds, and the view of that time."""
    installed("prometheus")
    directory = tmp_path_factory.mktemp("healthy")
    with fitting(1) as one, fitting(2) as two, prometheus(directory, scraping(directory, one, two)) as prom:
        began = time.time()

        def ready() -> bool:
            return len(prom.query("gradwatch_warmup_active == 0 and gradwatch_steps_total > 150")) == 2

        wait_until(ready, 90, "both runs beyond their warm-up")
        time.sleep(3)
        every = {name: [ALL] for name in ("job", "instance", "monitor")}
        yield prom, View({"datasource": ["x"], **every}, began, time.time(), 1)


def shown(prom: Prometheus, view: View, name: str, panel: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """(refId, series) of what the panel's queries find and can be drawn."""
    found = []
    for target in panel["targets"]:
        expr = view.interpolate(target["expr"], BOARDS[name])
        if target["instant"]:
            found += [(target, {**one, "values": [one["value"]]}) for one in prom.query(expr, view.end)]
        else:
            found += [(target, one) for one in prom.query_range(expr, view.start, view.end, view.interval)]
    return [(t, one) for t, one in found if any(v not in ("NaN", "+Inf", "-Inf") for _, v in one["values"])]


@pytest.mark.parametrize(("name", "panel"), PANELS)
def test_no_panel_is_empty_in_a_healthy_run(healthy, name, panel):
    assert shown(*healthy, name, panel)


@pytest.mark.parametrize(("name", "panel"), PANELS)
def test_no_legend_repeats(healthy, name, panel):
    legends = Counter(
        legend(target, one["metric"]) for target, one in shown(*healthy, name, panel) if target["legendFormat"]
    )
    assert [text for text, times in legends.items() if times > 1] == []


def legend(target: dict[str, Any], labels: dict[str, str]) -> str:
    return re.sub(r"{{\s*(\w+)\s*}}", lambda match: labels.get(match[1], ""), target["legendFormat"])


def test_of_a_healthy_run_every_step_is_useful_and_nobody_is_needed(healthy):
    prom, view = healthy
    found = {panel["title"]: panel for board in BOARDS.values() for panel in walk(board["panels"])}
    useful = shown(prom, view, "gradient-health", found["Useful steps"])
    assert len(useful) == 2
    assert all(float(one["values"][-1][1]) > 0.99 for _, one in useful)
    [(_, nobody)] = shown(prom, view, "gradient-fleet", found["These three need you now"])
    assert nobody["metric"] == {"cause": "all runs are well"}
