"""Each test gets the reader of this process empty, and a folder for its runs."""

from __future__ import annotations

import pytest
from record.recorded import Recorded
from telemetry.conftest import health, log, reader  # noqa: F401


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "runs"


@pytest.fixture
def recorded(folder, reader):  # noqa: F811
    """A recorded fake monitor."""
    return Recorded(folder)
