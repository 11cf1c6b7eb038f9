"""Records healthy runs: what a false alarm is counted on.

    nice python benchmarks/healthy.py              about 165 runs of 5,000 steps, an hour on one core; stops and resumes
    python benchmarks/healthy.py --seeds 1 --steps 500 --output FOLDER     a look at it

Seventeen kinds of training (`kinds.py`), ten seeds of each (five of the slowest), with a learning rate between half
of and twice the usual one. A run that did not get anywhere is none, and the next seed takes its place. Both sides of
a GAN are recorded, so there are more streams than runs. The file holds the logarithms of the norms and the losses as
float16, by "kind/side/seed".
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

ROOT = Path(__file__).parent
RESULTS = ROOT / "results" / "healthy_runs.npz"
SEEDS = 10
#: Seeds that are tried for the runs of a kind.
MOST_SEEDS = 20
#: Kinds that detectors may be tuned on, and those that nothing was tuned on.
DESIGN = (
    *("perceptron", "convolutional", "recurrent", "gan", "skip-gram", "autoencoder", "warm restarts"),
    "heavy tails",
)
JUDGED = (
    *("residual", "transformer", "fine-tuning", "actor-critic", "wasserstein", "recommender"),
    *("half precision", "variational", "contrastive"),
)


def packed(losses: np.ndarray, norms: np.ndarray) -> np.ndarray:
    """Log norms and losses of one side, shape [2, steps], float16; NaN where a norm is not finite or 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(norms)
    return np.stack([np.where(np.isfinite(logs), logs, np.nan), losses]).astype(np.float16)


def record(kind: str, folder: Path, seeds: int, steps: int) -> None:
    """The runs of one kind, a file each; what is there already stays."""
    import kinds

    found, training = len(list(folder.glob(f"{kind}-*.npz"))), None
    done = [int(path.stem.rpartition("-")[2]) for path in folder.glob(f"{kind}-*.*")]
    for seed in range(max(done, default=-1) + 1, MOST_SEEDS):
        if found >= seeds:
            return
        training = training or kinds.KINDS[kind]()
        began = time.process_time()
        losses, norms = training.train(training.restart(seed), steps)
        healthy = training.is_healthy(losses, norms)
        path = folder / f"{kind}-{seed}.npz"
        if healthy:
            sides = {str(i): packed(losses[:, i], norms[:, i]) for i in range(losses.shape[1])}
            np.savez_compressed(path, **sides)  # type: ignore[arg-type]
            found += 1
        else:
            path.with_suffix(".ill").touch()
        shown = ", ".join(f"{losses[0, i]:.3g} -> {np.median(losses[-200:, i]):.3g}" for i in range(losses.shape[1]))
        print(f"{kind} {seed}: loss {shown}, rate x {training.factor:.2f}, {time.process_time() - began:.0f} s"
              + ("" if healthy else ", not healthy"), flush=True)  # fmt: skip


def publish(folder: Path, path: Path) -> None:
    """All runs of the folder in one file."""
    runs: dict[str, Any] = {}
    for part in sorted(folder.glob("*.npz")):
        kind, _, seed = part.stem.rpartition("-")
        with np.load(part) as file:
            runs |= {f"{kind}/{side}/{int(seed):02}": file[side] for side in file.files}
    np.savez_compressed(path, **runs)
    print(f"{len(runs)} streams, {path.stat().st_size / 1e6:.1f} MB: {path}")


def load(split: str, path: Path = RESULTS) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """ "kind/side/seed" -> (norms, losses) of the kinds of "design" or "judged".

    Steps without a finite norm are left out.

    Raises:
      FileNotFoundError: nothing was recorded.
    """
    found = {}
    with np.load(path) as file:
        for name in sorted(file.files):
            if (name.split("/")[0] in JUDGED) == (split == "judged"):
                logs, losses = file[name].astype(np.float64)
                good = np.isfinite(logs)
                found[name] = np.exp(logs[good]), losses[good]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="*", help="of kinds.py; default: all")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="runs of each kind")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--output", type=Path, default=RESULTS, help="of the published file; the runs lie beside it")
    options = parser.parse_args()
    import kinds

    folder = options.output.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    for kind in options.kinds or kinds.KINDS:
        record(kind, folder, options.seeds, options.steps)
    publish(folder, options.output)


if __name__ == "__main__":
    main()
