"""Records healthy runs: what a false alarm is counted on.

    nice python benchmarks/healthy.py              about 200 runs of 5,000 steps, an hour on one core; stops and resumes
    python benchmarks/healthy.py --judge           false alarms on what was recorded; a minute, without TensorFlow

Twenty-one kinds of training (`kinds.py`), ten seeds of each (five of the slowest), with a learning rate between half
of and twice the usual one. A run that did not get anywhere is none, and the next seed takes its place. Both sides of
a GAN are recorded, so there are more streams than runs. The file holds the logarithms of the norms and the losses as
float16, by "kind/side/seed".
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import replace
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
    *("heavy tails", "policy gradient", "q-learning", "sarsa", "balance"),
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
    """All runs of the folder in one file, beside the kinds that it holds already."""
    runs: dict[str, Any] = {}
    fresh = {part.stem.rpartition("-")[0] for part in folder.glob("*.npz")}
    if path.exists():
        with np.load(path) as file:
            runs = {name: file[name] for name in file.files if name.split("/")[0] not in fresh}
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


# -- false alarms -----------------------------------------------------------------------------------------

BUDGETS = (10.0, 100.0)


def judge(path: Path) -> dict[str, Any]:
    """Of both splits: alarms by detector and kind, and the losses that were called harmful though nothing was wrong."""
    from detection import Ours, poisson_interval

    from gradwatch.core import detectors

    asked = {f"budget {b:g}": detectors.spike(false_alarms_per_million=b) for b in BUDGETS}
    asked |= {"spike": detectors.spike(), "trend": detectors.trend(), "vanishing": detectors.vanishing()}
    found: dict[str, Any] = {}
    for split in ("design", "judged"):
        runs = load(split, path)
        steps = min(len(norms) for norms, _ in runs.values())
        norms = np.stack([norms[:steps] for norms, _ in runs.values()])
        kinds = np.array([name.split("/")[0] for name in runs])
        part: dict[str, Any] = {"streams": len(runs), "steps": steps, "alarms": {}}
        for name, detector in asked.items():
            watch = Ours(detector)
            alarms = np.array([watch.step(x) for x in norms.T]).sum(0)
            part["alarms"][name] = {
                "kinds": {str(kind): int(alarms[kinds == kind].sum()) for kind in dict.fromkeys(kinds)},
                "per_million": poisson_interval(int(alarms.sum()), norms.size / 1e6),
            }
        harmful = {str(kind): 0 for kind in dict.fromkeys(kinds)}
        for kind, (_, losses) in zip(kinds, runs.values()):
            harmful[str(kind)] += called_harmful(losses)
        found[split] = {**part, "called harmful": harmful}
    return found


def called_harmful(losses: np.ndarray) -> int:
    """How often the losses of a run, by themselves, are called harmful."""
    from gradwatch.core import decode, detectors, policies
    from gradwatch.core.guard import Guard
    from gradwatch.reading.losses import LossWatch

    guard = Guard(policies.observe(), detectors.default())
    snapshot = decode.snapshot(guard, guard.init(1), name="run", paths=["kernel"])
    watch, was, count = LossWatch(), False, 0
    for end in range(10, len(losses) + 1, 10):
        step = np.arange(end - 9, end + 1)
        watch.read(
            replace(snapshot, steps=end), {"step": step, "norm": np.ones(10), "loss": losses[step - 1]}, harmful=False
        )
        count += watch.is_harmful and not was
        was = watch.is_harmful
    return count


def report(found: dict[str, Any]) -> str:
    """Alarms in a million healthy steps, and where they were."""
    import setting

    rows = []
    for split in ("design", "judged"):
        part = found[split]
        for name, row in part["alarms"].items():
            middle, low, high = row["per_million"]
            where = ", ".join(f"{kind} {count}" for kind, count in row["kinds"].items() if count) or "nowhere"
            promised = float(name.split()[1]) if name.startswith("budget") else None
            ratio = (
                "" if promised is None else f"{middle / promised:.2f} ({low / promised:.2f} to {high / promised:.2f})"
            )
            rows.append([split, name, f"{middle:.0f} ({low:.0f} to {high:.0f})", ratio, where])
        where = ", ".join(f"{kind} {count}" for kind, count in part["called harmful"].items() if count) or "nowhere"
        total = sum(part["called harmful"].values()) / (part["streams"] * part["steps"]) * 1e6
        rows.append([split, "loss called harmful", f"{total:.0f} episodes", "", where])
    head = ["kinds", "detector", "alarms in a million steps", "observed over promised", "alarms by kind"]
    sizes = "; ".join(
        f"{s}: {found[s]['streams']} streams of {found[s]['steps']:,} steps" for s in ("design", "judged")
    )
    return f"{sizes}\n\n{setting.table(head, rows)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="*", help="of kinds.py; default: all")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="runs of each kind")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--output", type=Path, default=RESULTS, help="of the published file; the runs lie beside it")
    parser.add_argument("--judge", action="store_true", help="count false alarms on what was recorded")
    options = parser.parse_args()
    if options.judge:
        import setting

        found = judge(options.output)
        print(report(found))
        setting.write(setting.RESULTS / "healthy.json", {"machine": setting.machine(), **found})
        return
    import kinds

    folder = options.output.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    for kind in options.kinds or kinds.KINDS:
        record(kind, folder, options.seeds, options.steps)
    publish(folder, options.output)


if __name__ == "__main__":
    main()
