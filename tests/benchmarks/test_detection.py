"""The counting of benchmarks/detection.py."""

from __future__ import annotations

import detection
import numpy as np
import pytest
from streams import FAULTS

from gradwatch.core import detectors, norms
from gradwatch.core.xp import NUMPY

# `saturated` judges what became of the update, and not the norm
OF_NORMS = {name: make for name, make in detectors.DETECTORS.items() if name != "saturated"}


@pytest.mark.parametrize("make", OF_NORMS.values(), ids=list(OF_NORMS))
def test_many_streams_at_once_alarm_as_each_by_itself(make):
    rng = np.random.default_rng(0)
    x = rng.lognormal(0, 0.3, (400, 3))
    x[200, 0], x[250:, 1], x[300, 2], x[320:330, 2] = 50, 1e-6, np.nan, np.inf
    x[350:, 0] *= 1.1 ** np.arange(50)
    together = detection.alarms(detection.Ours(make()), x)
    for i in range(3):
        detector = make()
        state, alone = detector.init(1), []
        for value in x[:, i]:
            now = norms.of(NUMPY, np.array([value], np.float32))
            state, alarm, _ = detector.update(NUMPY, state, now)
            alone.append(bool(alarm))
        assert together[:, i].tolist() == alone
    assert together.any()


def test_a_copy_goes_on_without_changing_the_original():
    judge = detection.Ours(detectors.spike())
    detection.alarms(judge, np.random.default_rng(0).lognormal(0, 0.3, (100, 2)))
    before = {key: np.copy(value) for key, value in judge.state[0].items()}
    detection.alarms(judge.clone(), np.full((50, 2), 7.0))
    assert all(np.array_equal(before[key], judge.state[0][key]) for key in before)


@pytest.mark.parametrize(("count", "low", "high"), [(0, 0.0, 3.689), (1, 0.0253, 5.572), (10, 4.795, 18.390)])
def test_the_interval_of_a_rate_is_garwoods(count, low, high):
    # Garwood 1936, Biometrika 28, table for 95 %
    rate, found_low, found_high = detection.poisson_interval(count, 2.0)
    assert rate == count / 2
    assert (found_low, found_high) == (pytest.approx(low / 2, abs=1e-3), pytest.approx(high / 2, abs=1e-3))


def test_recall_counts_alarms_in_time_and_delay_is_the_first():
    found = np.zeros((300, 4), bool)
    found[3, 0] = found[30, 0] = found[250, 1] = found[0, 2] = True
    out = detection._found(found, FAULTS["growth 5 %"])
    assert out["recall"] == 0.5
    assert out["delay"][1] == 0.0
    assert detection._found(found, FAULTS["spike x 3"])["recall"] == 0.25


def test_recovery_is_the_last_alarm_of_the_shifts_own_cluster():
    found = np.zeros((1500, 2), bool)
    found[:40, 0] = found[120, 0] = True
    found[1400, 0] = True  # a false alarm a thousand steps later is none of the shift's
    out = detection._legitimate(found)
    assert out["recovery"][0] == pytest.approx(121 / 2, abs=61)
    assert out["alarm_steps"] == 21.0


def test_after_a_nan_gradwatchs_statistics_are_bit_identical():
    judge = detection.Ours(*[d for d in detectors.default() if d.kind != "saturated"])
    rng = np.random.default_rng(1)
    detection.alarms(judge, rng.lognormal(0, 0.3, (200, 3)))
    out = detection._after_nan(judge, rng.lognormal(0, 0.3, (30, 3)))
    assert out == {"recall": 1.0, "trace_in_the_state": False}


def _found(observed, delay, recall, recovery, trace):
    """What detection.main makes of one stream called "s"."""
    fault = {"recall": recall, "delay": [delay, delay, delay], "trace_in_the_state": trace}
    budgets = {f"{b:g}": [observed, 0.9 * observed, 1.1 * observed] for b in detection.BUDGETS}
    rules = (detection.DEFAULT_POLICY, "percentile(90, window=250)")
    return {
        "false_alarms": {"s": None},
        "budgets": {"s": budgets},
        "faults": {"s": {"gradwatch default": dict.fromkeys([*FAULTS, "NaN, then a spike"], fault)}},
        "clip_rates": {rule: {"recovery_steps": [recovery, recovery]} for rule in rules},
    }


@pytest.mark.parametrize(
    ("result", "missed"),
    [
        ({"observed": 1.0, "delay": 20, "recall": 1.0, "recovery": 200.0, "trace": False}, 0),
        ({"observed": 2.5, "delay": 20, "recall": 1.0, "recovery": 200.0, "trace": False}, 1),
        ({"observed": 0.4, "delay": 20, "recall": 1.0, "recovery": 200.0, "trace": False}, 1),
        ({"observed": 1.0, "delay": 21, "recall": 1.0, "recovery": 200.0, "trace": False}, 1),
        ({"observed": 1.0, "delay": None, "recall": 0.99, "recovery": None, "trace": True}, 6),
    ],
)
def test_goals_are_missed_where_the_numbers_say_so(result, missed):
    rows = detection.goals(_found(**result))
    assert len(rows) == 7
    assert sum(not met for _, _, met in rows) == missed


@pytest.mark.parametrize("stream", ["normal", "log-normal 0.3", "log-normal 0.8", "Pareto 2.5", "AR(1) 0.9"])
@pytest.mark.parametrize("factor", [3.0, 10.0])
def test_the_possible_recall_is_that_of_the_true_quantile(stream, factor):
    from itertools import islice

    from streams import STREAMS

    x = np.array(list(islice(STREAMS[stream](np.random.default_rng(0), 20_000), 20)))
    found = np.mean(factor * x > np.quantile(x, 1 - 1e-2))
    assert detection.possible(stream, factor, 1e-2) == pytest.approx(found, abs=0.02)


def test_spot_is_counted_against_what_it_promises():
    middle, low, high = detection.spot("log-normal 0.3", budget=10_000.0, streams=1, steps=500, seed=1)
    assert low <= middle <= high
    # one alarm in a hundred steps is promised: 5 in 500
    assert middle * 5 == pytest.approx(round(middle * 5))


def test_a_reduced_run_writes_every_part_beside_the_published_results(tmp_path, monkeypatch, capsys):
    import json
    import sys

    monkeypatch.setattr(detection, "QUICK", detection.Amount((5, 300), (1, 100), (1, 50), (1, 100), 1))
    monkeypatch.setattr(detection.setting, "RESULTS", tmp_path)
    flags = ["--quick", "--streams", "log-normal 0.3", "--workers", "2"]
    monkeypatch.setattr(sys, "argv", ["detection.py", *flags])
    detection.main()
    assert [path.name for path in tmp_path.iterdir()] == ["detection-quick.json"]
    result = json.loads((tmp_path / "detection-quick.json").read_text())
    assert list(result["tradeoff"]) == ["log-normal 0.3, growth 5 %"]
    assert set(result["false_alarms"]["log-normal 0.3"]) == set(detection.contenders())
    assert result["spot"]["log-normal 0.3"] is not None
    text = capsys.readouterr().out
    assert "observed over promised" in text
    assert "SPOT" in text
