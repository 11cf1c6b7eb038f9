"""A monitor made of plain numbers: what the host side needs of one, with real snapshots."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Any

import numpy as np

from gradwatch.core.snapshot import KINDS, VERDICTS, Event, Snapshot

BOUNDS = tuple(10.0**e for e in range(-3, 4))


def snapshot(name: str = "run", **changes: Any) -> Snapshot:
    """A monitor before its first step, with `changes`."""
    base = Snapshot(
        name=name,
        policy="percentile(90)",
        time=time.time(),
        steps=0,
        norm=0.0,
        applied_norm=0.0,
        clip_norm=float("inf"),
        clip_scale=1.0,
        verdict="pass",
        explosion_threshold=float("inf"),
        vanishing_threshold=0.0,
        score=0.0,
        median=0.0,
        quantiles={0.05: 0.0, 0.5: 0.0, 0.95: 0.0, 0.99: 0.0},
        clipped_steps=0,
        nonfinite_steps=0,
        nonfinite_streak=0,
        skipped_updates=0,
        skipped_by_reason={"nonfinite": 0, "explosion": 0},
        explosions=0,
        max_norm=0.0,
        warmup=True,
        layer_norms={},
        anomalies=dict.fromkeys(KINDS, 0),
        anomalous_steps=dict.fromkeys(KINDS, 0),
        active=dict.fromkeys(KINDS, False),
        last_events=dict.fromkeys(KINDS),
        norm_bounds=BOUNDS,
        norm_counts=(0,) * (len(BOUNDS) + 1),
        norm_sum=0.0,
    )
    return replace(base, **changes)


class FakeMonitor:
    """Behaves like a Monitor; `step`, `begin` and `end` do what training would do to it."""

    def __init__(self, name: str = "run", **state: Any) -> None:
        self.name = name
        self.run_id = f"{name}-1"
        self.run_info = {"strategy": "", "replicas": "1", "precision": "float32", "run_name": "test"}
        self.host_seconds = 0.0
        self.recorded = (0, 0)
        self.alert_sinks: list[Any] = []
        self.rows: list[tuple[int, float, float, int, float, float]] = []
        self.snapshots = 0
        self.state = snapshot(name, **state)

    def snapshot(self) -> Snapshot:
        self.snapshots += 1
        return replace(self.state, time=time.time())

    def history(self) -> dict[str, np.ndarray]:
        rows = self.rows[-1024:]
        step, norm, applied, verdict, threshold, loss = zip(*rows) if rows else ((),) * 6
        return {
            "step": np.array(step, np.int64),
            "norm": np.array(norm),
            "applied_norm": np.array(applied),
            "verdict": np.array(verdict, np.int32),
            "threshold": np.array(threshold),
            "loss": np.array(loss),
        }

    def step(
        self,
        norm: float = 1.0,
        applied: float | None = None,
        verdict: str = "pass",
        *,
        threshold: float = math.inf,
        loss: float = math.nan,
        **changes: Any,
    ) -> None:
        """One training step, seen by a snapshot as a whole, as the real one. A loss of NaN is not known."""
        s = self.state
        applied = norm if applied is None else applied
        finite = bool(np.isfinite(norm))
        counts = tuple(c + (finite and norm <= b) for c, b in zip(s.norm_counts, (*BOUNDS, np.inf)))
        self.rows.append((s.steps + 1, norm, applied, VERDICTS.index(verdict), threshold, loss))
        self.state = replace(
            s,
            steps=s.steps + 1,
            norm=norm,
            applied_norm=applied,
            verdict=verdict,
            clipped_steps=s.clipped_steps + (verdict == "clip"),
            nonfinite_steps=s.nonfinite_steps + (not finite),
            nonfinite_streak=0 if finite else s.nonfinite_streak + 1,
            norm_counts=counts,
            norm_sum=s.norm_sum + (norm if finite else 0.0),
            **changes,
        )

    def begin(
        self,
        kind: str,
        norm: float = 50.0,
        threshold: float = 5.0,
        verdict: str = "clip",
        *,
        loss: float = math.nan,
        **shares: float,
    ) -> None:
        """A step that begins an episode of `kind`."""
        event = Event(kind, self.state.steps + 1, norm, threshold, shares or {"dense/kernel": 0.7, "dense/bias": 0.3})
        self.step(
            norm,
            1.0 if verdict == "clip" else 0.0,
            verdict,
            threshold=threshold if kind == "explosion" else math.inf,
            loss=loss,
            anomalies=self._with("anomalies", kind, self.state.anomalies[kind] + 1),
            anomalous_steps=self._with("anomalous_steps", kind, self.state.anomalous_steps[kind] + 1),
            active=self._with("active", kind, True),
            last_events=self._with("last_events", kind, event),
        )

    def end(self, kind: str, loss: float = math.nan) -> None:
        """A step that ends the episode."""
        self.step(1.0, loss=loss, active=self._with("active", kind, False))

    def _with(self, field: str, kind: str, value: Any) -> dict[str, Any]:
        return {**getattr(self.state, field), kind: value}
