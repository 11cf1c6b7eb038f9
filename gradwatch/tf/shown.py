"""What a monitor looks like: in a notebook, as a figure, as a report."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from gradwatch.diagnosis.opening import seen
from gradwatch.errors import RecordError
from gradwatch.record.run import open_run
from gradwatch.report import card, figures, page
from gradwatch.report.material import Material, of_monitor

_FLUSH_SECONDS = 5.0


class Shown:
    """The part of `Monitor` that shows itself: its record if it has one, else its last 1,024 steps."""

    def plot(self) -> Any:
        """Loss, learning rate, norms, update ratio and layers over the steps, as a Bokeh layout for a notebook.

            from bokeh.io import output_notebook, show
            output_notebook()
            show(monitor.plot())

        Raises:
          MissingExtra: Bokeh is not installed.
        """
        return figures.column(self._material())

    def write_report(self, path: str | os.PathLike[str]) -> Path:
        """Write the report as it stands: one HTML file that opens offline. Returns where it is.

        Raises:
          MissingExtra: Bokeh is not installed.
          OSError: the file cannot be written.
        """
        target = Path(path)
        page.write(target, page.report(self._material()))
        return target

    def _repr_html_(self) -> str:
        return card.card(self._material())

    def _material(self: Any) -> Material:
        if self.record_path is not None:
            self.flush_record(_FLUSH_SECONDS)
            try:
                return open_run(self.record_path).material()
            except RecordError:  # the disk did not take it: the monitor still has its last steps
                pass
        now = self.read()
        facts = self.run_facts
        return of_monitor(now.snapshot, now.history, facts, seen(self, now.snapshot, now.history, facts))
