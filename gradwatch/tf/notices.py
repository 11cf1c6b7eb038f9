"""What a person should hear once, at the first step: what their optimizer does beside or before gradwatch."""

from __future__ import annotations

import logging
import weakref
from typing import Any

from gradwatch.core import policies
from gradwatch.tf import legacy, updates

logger: logging.Logger = logging.getLogger("gradwatch")

_told: weakref.WeakKeyDictionary[Any, set[str]] = weakref.WeakKeyDictionary()  # engine -> keys


def _once(monitor: Any, key: str, text: str) -> None:
    told = _told.setdefault(monitor._engine, set())
    if key not in told:
        told.add(key)
        logger.warning("monitor %r: %s", monitor.name, text)


def clips_twice(monitor: Any, optimizer: Any) -> None:
    """Say it where the policy clips, and the optimizer, or one that it wraps, clips too."""
    if monitor.guard.policy.scope == policies.NONE:
        return
    for one in updates.chain(optimizer):
        own = [
            f"{name}={value}"
            for name in updates.OWN_CLIPPING
            if (value := getattr(one, name, None)) and not legacy.is_old(one)
        ]
        if own:
            _once(
                monitor,
                "clips twice",
                f"the optimizer {type(one).__name__}({', '.join(own)}) clips as well. gradwatch clips first, the "
                f"optimizer clips what is left. Remove {' and '.join(text.split('=')[0] for text in own)}, or let "
                "gradwatch only watch, with policy='observe()'",
            )


def overflow_unseen(monitor: Any, scaler: Any) -> None:
    """Say it where a loss scaler drops micro-batches before the optimizer that accumulates them."""
    if updates.loss_scaler(scaler) is not None:
        _once(
            monitor,
            "overflow unseen",
            "LossScaleOptimizer drops a micro-batch that overflows before the optimizer that accumulates gets it. "
            "gradwatch watches the means of the others: such a micro-batch is in no count (nonfinite_steps, "
            "skipped_updates), and fewer updates are made. Watch the loss scale, snapshot().loss_scale: it falls with "
            "each of them",
        )
