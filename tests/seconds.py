"""Which test files take long: two workers begin with those. And how to measure it anew.

`python -m pytest -p tests.seconds -m "not e2e" tests/tf` adds a table of the processor seconds of each file, those of
the processes that it starts included.
"""

from __future__ import annotations

import os
from collections import Counter

import pytest

#: Processor seconds of the files that take more than eight, on a core that others used too: for the order only.
SECONDS = {
    "test_table": 187,
    "test_reach": 88,
    "test_fit": 78,
    "test_legacy": 67,
    "test_distribution": 55,
    "test_kept_batches": 51,
    "test_recovery": 50,
    "test_pages": 47,
    "test_traps": 45,
    "test_examples": 42,
    "test_watch": 39,
    "test_core_contract": 30,
    "test_optimizers": 37,
    "test_tutorials": 36,
    "test_check_numerics": 36,
    "test_monitor": 35,
    "test_checkpoint": 31,
    "test_skip": 25,
    "test_two_workers": 23,
    "test_demo": 21,
    "test_recorded_runs": 19,
    "test_detectors": 18,
    "test_long_policies": 18,
    "test_detection": 17,
    "test_export": 17,
    "test_eager": 16,
    "test_long_runs": 16,
    "test_clip": 16,
    "test_methods": 16,
    "test_inputs": 16,
    "test_auto_in_the_graph": 14,
    "test_longrun": 14,
    "test_endings": 13,
    "test_overhead": 12,
    "test_notices": 12,
    "test_engine": 12,
    "test_recovery_fit": 10,
    "test_starts": 9,
    "test_failures": 9,
    "test_tensorboard": 9,
    "test_diagnosed_runs": 9,
}

_measured: Counter[str] = Counter()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item):
    before = sum(os.times()[:4])
    result = yield
    _measured[item.nodeid.split("::")[0]] += sum(os.times()[:4]) - before
    return result


def pytest_terminal_summary(terminalreporter) -> None:
    terminalreporter.section("processor seconds")
    for path, seconds in _measured.most_common():
        terminalreporter.write_line(f"{seconds:7.1f} {path}")
    terminalreporter.write_line(f"{sum(_measured.values()):7.1f} in all")
