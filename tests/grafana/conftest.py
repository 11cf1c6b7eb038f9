"""Most tests here look at each dashboard, panel or query."""

from __future__ import annotations

import pytest
from grafana_boards import BOARDS, panels


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "board" in metafunc.fixturenames:
        metafunc.parametrize("board", BOARDS.values(), ids=BOARDS)
    if "panel" in metafunc.fixturenames:
        found = [panel for board in BOARDS.values() for panel in panels(board)]
        metafunc.parametrize("panel", found, ids=[panel["title"] for panel in found])
    if "target" in metafunc.fixturenames:
        found = [
            (panel["title"], one) for board in BOARDS.values() for panel in panels(board) for one in panel["targets"]
        ]
        metafunc.parametrize(
            "target", [one for _, one in found], ids=[f"{title}-{one['refId']}" for title, one in found]
        )
