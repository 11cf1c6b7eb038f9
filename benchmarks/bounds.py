"""Two pictures of what `policies.auto` stands on.

    python benchmarks/bounds.py

writes docs/pictures/auto-rates.png, the best constant against the learning rate, from the published results, and
docs/pictures/auto-run.png, one run of the character RNN with the norms, the bounds and clip_norm.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")

import efficacy
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import runs
import setting
from finals import Cells
from peers import Seen, Verdict
from tasks import TASKS

from gradwatch.core import policies
from gradwatch.tf.reach import initial_norm

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
STEPS = 2000


class Recorder(efficacy.Gradwatch):
    """`auto`, and what it was made of in each step."""

    def __init__(self) -> None:
        super().__init__(policies.auto())
        self.rows: list[dict[str, float]] = []

    def step(self, norms: np.ndarray, loss: float, seen: Seen | None = None) -> Verdict:
        verdict = super().step(norms, loss, seen)
        self.rows.append({"norm": float(np.sqrt((norms**2).sum())), "clip_norm": verdict.clip_norm, **self.info})
        return verdict


def best_constants(cells: Cells, task: str) -> tuple[list[float], list[float]]:
    """The learning rates of a task, and the best constant at each where clipping is best."""
    rates, constants = [], []
    for name, rate in cells.cells:
        best = cells.oracle(task, rate) if name == task else ""
        if best.startswith("fixed "):
            rates.append(rate)
            constants.append(float(best.removeprefix("fixed ").split(",")[0]))
    return rates, constants


def draw_rates(path: Path) -> None:
    cells = Cells(runs.load(setting.results_file("efficacy", False)), STEPS, list(efficacy.methods()))
    figure, axes = plt.subplots(figsize=(6.4, 4.2))
    for task, colour in (("rnn-sgd", "tab:blue"), ("heavy-tails", "tab:orange")):
        rates, constants = best_constants(cells, task)
        made = TASKS[task]()
        start = made.init(np.random.default_rng([0, 0]))
        weights = max(math.sqrt(sum(float((p**2).sum()) for p in start)), initial_norm(p.shape for p in start))
        product = math.exp(np.mean(np.log(np.array(rates) * np.array(constants))))
        axes.plot(rates, constants, "o", color=colour, label=f"{task}: best of six constants, five seeds")
        line = np.array([min(rates) / 2, max(rates) * 2])
        share = product / (0.1 * weights)
        label = f"{task}: {share:.2g} of the reach of its first weights"
        axes.plot(line, product / line, "-", color=colour, alpha=0.6, label=label)
    axes.set(xscale="log", yscale="log", xlabel="learning rate", ylabel="best constant clip_norm")
    axes.set_title("The best constant goes as 1 / learning rate")
    axes.legend(fontsize=8, loc="lower left")
    axes.set_ylim(bottom=5e-4)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_run(path: Path, task: str = "rnn-sgd", rate: float = 0.3, seed: int = 100) -> None:
    recorder = Recorder()
    efficacy.train(TASKS[task](), rate, seed, {"auto": recorder}, STEPS)
    steps = np.arange(1, STEPS + 1)
    column = {name: np.array([row.get(name, math.nan) for row in recorder.rows]) for name in recorder.rows[-1]}
    figure, axes = plt.subplots(figsize=(7.6, 4.4))
    axes.plot(steps, column["norm"], ".", markersize=2, color="0.75", label="gradient norm")
    for name, colour in (("quantile", "tab:green"), ("displacement", "tab:blue"), ("descent", "tab:red")):
        bound = column[f"{name}_bound"]
        axes.plot(
            steps,
            np.where(bound < 1e30, bound, math.nan),
            color=colour,
            linewidth=3.5,
            alpha=0.5,
            label=f"{name} bound",
        )
    axes.plot(steps, column["clip_norm"], color="black", linewidth=1.2, label="clip_norm")
    axes.set(yscale="log", xlabel="step", ylabel="global norm", ylim=(0.1, None))
    axes.set_title(f"Character RNN, SGD with momentum, learning rate {rate:g}: the lowest bound holds")
    axes.legend(fontsize=8, ncol=2)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    for draw, name in ((draw_rates, "auto-rates.png"), (draw_run, "auto-run.png")):
        draw(PICTURES / name)
        print(f"written: docs/pictures/{name}")


if __name__ == "__main__":
    main()
