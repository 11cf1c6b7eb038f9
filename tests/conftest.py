"""What all tests share: which need TensorFlow, which are end to end, and in which order they run."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

import pytest
from seconds import SECONDS

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("GRADWATCH_REPORT", "off")  # a second for each recorded run; who tests it asks for it

TESTS = Path(__file__).parent

#: Set by .ci/run: there, an end-to-end test that is skipped has failed.
E2E_REQUIRED = bool(os.environ.get("GRADWATCH_E2E_REQUIRED"))


def _floor(path: Path) -> str:
    """The folder below tests/ that a test file stands in; "" for the top."""
    parts = path.relative_to(TESTS).parts
    return parts[0] if len(parts) > 1 else ""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    order = {"core": 0, "reading": 1, "exporters": 1, "": 2, "tf": 3, "e2e": 4}
    for item in items:
        floor = _floor(item.path)
        if floor in ("tf", "e2e"):
            item.add_marker(floor)
    if hasattr(config, "workerinput"):
        # Workers take file after file from one list: the long ones first, so that both end at the same time.
        items.sort(key=lambda item: -SECONDS.get(item.path.stem, 0))
    else:
        # Quick ones first, so that a broken formula is known before TensorFlow has been loaded.
        items.sort(key=lambda item: order.get(_floor(item.path), 2))


def pytest_collection_finish() -> None:
    """What stands by now stays: the collector need not look through the modules of TensorFlow again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def no_exit_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A `sys.exit` that an earlier test caught is no end of this process."""
    process_end = sys.modules.get("gradwatch.reading.process_end")
    if process_end is not None:
        monkeypatch.setattr(process_end, "_given", None)


def _fail_instead(report: pytest.TestReport | pytest.CollectReport) -> None:
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
    report.outcome = "failed"
    report.longrepr = f"an end-to-end test may not be skipped here (GRADWATCH_E2E_REQUIRED is set): {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    report = yield
    skipped = report.skipped and not hasattr(report, "wasxfail")
    if E2E_REQUIRED and skipped and item.get_closest_marker("e2e"):
        _fail_instead(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector):
    report = yield
    if E2E_REQUIRED and report.skipped and TESTS / "e2e" in collector.path.parents:
        _fail_instead(report)
    return report
