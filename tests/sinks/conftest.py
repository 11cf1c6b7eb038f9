"""Each test gets the reader of this process empty."""

from __future__ import annotations

from telemetry.conftest import health, log, reader  # noqa: F401
