"""Each test gets a reader, a health and an exposition of its own, put where the modules look for them."""

from __future__ import annotations

import logging

import pytest

from gradwatch.reading import health as health_module
from gradwatch.reading.reader import reader as process_reader


@pytest.fixture
def reader():
    """The reader of this process, empty, and emptied again. It reads at a registration and when asked."""
    process_reader.close()
    process_reader._departed.clear()
    process_reader.set_interval(60)
    yield process_reader
    process_reader.close()
    process_reader._departed.clear()
    process_reader.set_interval(1.0)


@pytest.fixture
def health():
    """The health of this process; what was logged once may be logged again."""
    health_module.health._logged.clear()
    return health_module.health


@pytest.fixture
def log(caplog):
    """What gradwatch logged, from DEBUG up."""
    caplog.set_level(logging.DEBUG, logger="gradwatch")
    return caplog
