"""What the live page says of the training itself: loss, learning rate, whether it learns, and which of several."""

from __future__ import annotations

import math

import numpy as np
import pytest
from telemetry.fake import FakeMonitor

from gradwatch.exporters.live.store import Store


class Run(FakeMonitor):
    """A monitor that knows its losses and its learning rate; `losses` are those that are known so far."""

    def __init__(self, name="run", **state):
        super().__init__(name, warmup=False, **state)
        self.losses: list[float] = []

    def history(self):
        rows = super().history()
        norm = rows["norm"]
        known = np.full(len(norm), math.nan)
        told = self.losses[: len(norm)]
        known[: len(told)] = told
        rate = 1e-3 * np.arange(len(norm))[::-1]
        return {
            **rows,
            "clip_norm": np.full(len(norm), 2.0),
            "threshold": np.full(len(norm), 5.0),
            "loss": known,
            "learning_rate": rate,
        }


@pytest.fixture
def store(reader):
    made = Store()
    yield made
    made.close()


def look(reader, *runs):
    for run in runs:
        reader.register(run)
    assert reader.poll_now()


def test_a_loss_below_zero_and_a_learning_rate_of_zero_are_drawn(reader, store):
    run = Run()
    for loss in (-1.5, 0.0, 2.0):
        run.step()
        run.losses.append(loss)
    look(reader, run)
    page = store.page()
    assert page["curves"]["loss"] == {"step": [1, 2, 3], "value": [-1.5, 0.0, 2.0]}
    assert page["curves"]["learning_rate"]["value"] == [2e-3, 1e-3, 0.0]
    assert (page["loss"], page["learning_rate"]) == (2.0, 0.0)


def test_a_loss_that_a_step_returns_after_the_look_is_drawn_at_the_next(reader, store):
    run = Run()
    reader.register(run)
    shown = {}
    for number in range(1, 6):
        run.step()  # a look comes before the step has returned its loss
        reader.poll_now()
        page = store.page(key=shown.get("key", ""), since=shown.get("next", 0))
        shown = {"key": page["key"], "next": page["next"]}
        if number > 1:
            assert number - 1 in page["curves"]["loss"]["step"], "it is within what a page asks for anew"
        run.losses.append(float(number))
    run.step()
    reader.poll_now()
    assert store.page()["curves"]["loss"] == {"step": [1, 2, 3, 4, 5], "value": [1.0, 2.0, 3.0, 4.0, 5.0]}


def test_a_loss_that_is_not_finite_is_said_and_not_drawn(reader, store):
    run = Run()
    for loss in (1.0, math.inf):
        run.step()
        run.losses.append(loss)
    look(reader, run)
    page = store.page()
    assert page["curves"]["loss"]["step"] == [1]
    assert page["loss"] == "Infinity"


def test_a_run_that_tells_no_loss_has_none(reader, store):
    run = FakeMonitor("plain")
    run.history = lambda: {**FakeMonitor.history(run), "clip_norm": np.ones(1), "threshold": np.ones(1)}
    run.step()
    look(reader, run)
    assert (store.page()["loss"], store.page()["curves"]["loss"]["step"]) == (None, [])


@pytest.mark.parametrize("kind", ["nonfinite", "saturated"])
def test_no_learning_since_is_said_while_it_lasts_and_not_after(reader, store, kind):
    run = Run()
    for _ in range(4):
        run.step()
    look(reader, run)
    assert store.page()["state"]["no_learning_since"] is None
    run.begin(kind, norm=math.nan if kind == "nonfinite" else 50.0)
    reader.poll_now()
    assert store.page()["state"]["no_learning_since"] == 5
    run.end(kind)
    reader.poll_now()
    assert store.page()["state"]["no_learning_since"] is None


def test_a_loss_scale_that_looks_for_its_highest_value_is_no_loss_of_learning(reader, store):
    run = Run(loss_scale=2.0**15)
    run.step()
    run.begin("nonfinite", norm=math.inf)
    look(reader, run)
    assert store.page()["state"]["no_learning_since"] is None


def test_a_clipped_explosion_is_no_loss_of_learning(reader, store):
    run = Run()
    run.begin("explosion")
    look(reader, run)
    assert store.page()["state"]["no_learning_since"] is None


def test_several_monitors_have_an_overview_with_the_most_urgent_first(reader, store):
    calm, bad = Run("a calm one"), Run("the bad one")
    calm.step()
    calm.losses.append(0.25)
    bad.begin("nonfinite", norm=math.nan)
    look(reader, calm)
    assert "overview" not in store.page(), "one monitor needs none"
    look(reader, bad)
    rows = store.page()["overview"]
    assert [row["monitor"] for row in rows] == ["the bad one", "a calm one"]
    assert rows[0]["state"]["no_learning_since"] == 1
    assert (rows[0]["norm"], rows[1]["loss"], rows[1]["steps"]) == ("NaN", 0.25, 1)


def test_an_unknown_monitor_is_named_as_unknown_and_another_is_shown(reader, store):
    run = Run("known")
    run.step()
    look(reader, run)
    page = store.page(monitor="<script>\n")
    assert page["monitor"] == "known"
    assert page["unknown"].startswith("<script>")
    assert "\n" not in page["unknown"]
    assert "unknown" not in store.page(monitor="known")
    assert "unknown" not in store.page()
