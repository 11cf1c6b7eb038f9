"""Why a run went wrong: the causes that its numbers speak for, the likeliest first.

`observation` is what is known of a run, `signs` are the statistics of it, `causes` is the one table (what a cause
predicts, what to do), `diagnose` ranks them, `verdict` is the answer. Works on the host, after the steps.
"""

from __future__ import annotations

from gradwatch.rooms import modules_of

__all__: list[str] = []

__getattr__ = modules_of(__name__)
