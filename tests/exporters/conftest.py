"""Each test gets a reader, a health and a log of its own."""

from __future__ import annotations

from telemetry.conftest import health, log, reader  # noqa: F401
