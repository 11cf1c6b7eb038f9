"""The queries that docs/prometheus.md gives for a job of several workers count each step once."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import yaml
from servers import installed

DOCS = Path(__file__).parents[2] / "docs" / "prometheus.md"

SERIES = {
    # series: (value of each minute, how much it grows a minute)
    "gradwatch_steps_total": (0, 60),
    "gradwatch_clipped_steps_total": (0, 6),
    "gradwatch_gradient_norm": (2.5, 0),
}
EXPECTED = [1.0, 0.1, 2.5]  # steps a second, share of clipped steps, norm: of the job, not of its workers together


def queries() -> list[str]:
    section = DOCS.read_text().split("### One job on several workers")[1]
    return re.search(r"```promql\n(.*?)```", section, re.DOTALL)[1].strip().splitlines()


def test_two_workers_that_count_the_same_steps_are_one_job(tmp_path):
    asked = queries()
    assert len(asked) == len(EXPECTED)
    labels = 'job="training", monitor="lm", instance="worker-{}:9464"'
    content = {
        "evaluation_interval": "15s",
        "tests": [
            {
                "interval": "1m",
                "input_series": [
                    {"series": f"{name}{{{labels.format(worker)}}}", "values": f"{start}+{growth}x20"}
                    for name, (start, growth) in SERIES.items()
                    for worker in (0, 1)
                ],
                "promql_expr_test": [
                    {
                        "expr": expr,
                        "eval_time": "15m",
                        "exp_samples": [
                            {
                                "labels": '{job="training", monitor="lm"}',
                                "value": value,
                            }
                        ],
                    }
                    for expr, value in zip(asked, EXPECTED)
                ],
            }
        ],
    }
    path = tmp_path / "workers.test.yml"
    path.write_text(yaml.safe_dump(content))
    done = subprocess.run([installed("promtool"), "test", "rules", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCESS" in done.stdout
