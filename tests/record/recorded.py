"""A fake monitor that is recorded as a real one is: through the reader, on real threads, into a real file."""

from __future__ import annotations

import numpy as np
from telemetry.fake import FakeMonitor

from gradwatch.reading.reader import reader
from gradwatch.record import recorder
from gradwatch.record.run import Run

FACTS = {
    "policy": "fixed(1)",
    "detectors": ["spike(5)"],
    "optimizer": "SGD",
    "optimizer_settings": {"learning_rate": np.float32(0.5)},
    "variables": {"a/kernel": (3, 2), "b": ()},
}


class Recorded(FakeMonitor):
    """`look` has the reader read it and the file written."""

    def __init__(self, folder, name="run", run_id=None, resumed_at=0, report=False):
        super().__init__(name)
        self.run_id = run_id or f"{name}-1"
        self.recorder = recorder.Recorder(folder, report=report)
        self.recorder.resume(resumed_at)
        self.losses = []
        reader.register(self)
        self.recorder.begin(self, lambda: FACTS, lambda: history_of(self.rows, self.losses))

    @property
    def recorded(self):
        return (0, 0) if not hasattr(self, "recorder") else (self.recorder.steps, self.recorder.errors)

    @recorded.setter
    def recorded(self, _):
        pass

    def history(self):
        return history_of(self.rows, self.losses)

    def step(self, norm=1.0, *arguments, loss=float("nan"), **changes):
        self.losses.append(loss)
        super().step(norm, *arguments, **changes)

    def look(self):
        assert reader.poll_now()
        assert recorder._writing.flush(20)
        return Run(self.recorder.path)


def history_of(rows, losses):
    rows, losses = rows[-1024:], losses[-1024:]
    step, norm, applied, verdict, threshold, _ = zip(*rows) if rows else ((),) * 6
    return {
        "step": np.array(step, np.int64),
        "norm": np.array(norm, np.float32),
        "applied_norm": np.array(applied, np.float32),
        "verdict": np.array(verdict, np.int8),
        "threshold": np.array(threshold, np.float32),
        "loss": np.array(losses, np.float32),
    }
