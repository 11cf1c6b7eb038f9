"""What a policy and detectors would have done with the norms of a recorded run: the code of the graph, on numpy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from gradwatch.core import counters, policies
from gradwatch.core import detectors as _detectors
from gradwatch.core.guard import Guard
from gradwatch.core.norms import decode
from gradwatch.core.snapshot import KINDS, VERDICTS
from gradwatch.core.xp import NUMPY
from gradwatch.errors import ConfigError, RecordError
from gradwatch.report.facts import number

#: A replay can say no more than this.
CAVEAT = (
    "These are the norms that the run had under its own policy. Clipped otherwise, the weights and so the norms after "
    "the first difference would have been others."
)

_MOST_STEPS = 20  # at which an anomaly began, in the answer


@dataclass(frozen=True)
class Side:
    """What happened to the gradients of a run, or would have.

    Attributes:
      policy, detectors: as texts.
      clipped, zeroed, skipped: steps.
      clip_norm: its median over the steps in which it bounded anything; NaN for none.
      applied_norm: the largest norm that reached the weights, of the finite ones; NaN without a step.
      episodes: kind -> anomalies.
      began: kind -> the steps at which the first ones began.
    """

    policy: str
    detectors: tuple[str, ...]
    clipped: int
    zeroed: int
    skipped: int
    clip_norm: float
    applied_norm: float
    episodes: Mapping[str, int]
    began: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Replay:
    """A run beside what another policy or other detectors would have made of its norms.

    Attributes:
      steps: replayed.
      missed: steps that were not recorded, which the replay cannot know.
      was, would: the run, and the replay.
      first_difference: the first step whose gradients would have been treated otherwise; 0 for none.
      differ: how many steps would have been treated otherwise.
    """

    steps: int
    missed: int
    was: Side
    would: Side
    first_difference: int
    differ: int

    def as_json(self) -> dict[str, Any]:
        """All of it, and what it cannot say."""
        out = asdict(self)
        for side in ("was", "would"):
            for name in ("clip_norm", "applied_norm"):
                out[side][name] = _json(out[side][name])
        return {**out, "caveat": CAVEAT}


def of(run: Any, policy: Any = None, detectors: Any = None, last: int | None = None) -> Replay:
    """Replay a `Run`.

    Args:
      run: the `gradwatch.Run`.
      policy: a policy or its text, such as "median(2)"; None for that of the run.
      detectors: detectors or their texts; None for those of the run.
      last: replay only so many steps, the last ones. None for all.

    Raises:
      ConfigError: a text is no policy or detector, or the policy needs the norm of each variable at each step.
      RecordError: the record cannot be read, or holds no step.
    """
    info = run.info
    guard = Guard(
        policies.parse(_known(info, "policy") if policy is None else policy),
        _detectors.parse_all(_known(info, "detectors") if detectors is None else detectors),
        None if policy is not None else info.get("on_nonfinite"),
        info.get("on_explosion") or "clip",
    )
    if guard.policy.scope in (policies.VARIABLE, policies.VALUE):
        raise ConfigError(
            f"{guard.policy.name} bounds each variable or each number by itself, and a record has the global norm of "
            "each step only; replay a policy of the global norm, such as median(2) or fixed(1)"
        )
    rows = run.steps
    kept = (rows["verdict"] != "gap") & _newest(rows["step"])
    rows = {name: column[kept][-(last or 0) :] for name, column in rows.items()}
    if not len(rows["step"]):
        raise RecordError(f"{run.path} holds no step yet; a replay needs some")
    verdict, clip_norm, applied, episodes, began = _replayed(guard, rows, weights(run, rows["step"]))
    was = np.array([VERDICTS.index(word) for word in rows["verdict"].tolist()])
    told = run.events
    kinds = {kind: told["kind"] == kind for kind in KINDS}
    differ = np.flatnonzero((was != verdict) | ~_alike(rows["applied_norm"], applied))
    return Replay(
        steps=len(was),
        missed=int(run.steps["missed"].sum()),
        was=_side(
            str(info.get("policy", "")),
            tuple(info.get("detectors") or ()),
            was,
            rows["clip_norm"],
            rows["applied_norm"],
            {kind: int(told["episodes"][at].sum()) for kind, at in kinds.items()},
            {kind: tuple(told["step"][at].tolist()) for kind, at in kinds.items()},
        ),
        would=_side(
            guard.policy.name,
            tuple(repr(detector) for detector in guard.detectors),
            verdict,
            clip_norm,
            applied,
            episodes,
            began,
        ),
        first_difference=int(rows["step"][differ[0]]) if len(differ) else 0,
        differ=len(differ),
    )


def weights(run: Any, steps: np.ndarray) -> np.ndarray:
    """|w| at each step, as far as the looks say it; NaN before the first."""
    squares: dict[int, float] = {}
    for path in run.variables:
        layer = run.layers(path)
        for step, norm in zip(layer["step"].tolist(), layer["weight_norm"].tolist()):
            squares[step] = squares.get(step, 0.0) + norm * norm
    looks = np.array(sorted(squares), np.int64)
    values = np.sqrt(np.array([squares[step] for step in looks.tolist()], np.float64))
    looks, values = looks[np.isfinite(values)], values[np.isfinite(values)]
    if not len(looks):
        return np.full(len(steps), math.nan)
    at = np.searchsorted(looks, steps, side="right") - 1
    return np.asarray(np.where(at >= 0, values[np.maximum(at, 0)], math.nan))


def _replayed(
    guard: Guard, rows: Mapping[str, np.ndarray], lengths: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, int], dict[str, tuple[int, ...]]]:
    f32 = np.float32
    state: Mapping[str, Any] = guard.init(1)
    before = np.append(math.nan, rows["loss"][:-1])
    columns = zip(*(rows[name].astype(f32) for name in ("norm", "reach")), before.astype(f32), lengths.astype(f32))
    verdict, clip_norm, applied = (np.empty(len(before), f32) for _ in range(3))
    began: dict[str, list[int]] = {kind: [] for kind in KINDS}
    seen = dict.fromkeys(KINDS, -1)
    with np.errstate(all="ignore"):
        for i, (norm, reach, loss, length) in enumerate(columns):
            state, decision = guard.step(NUMPY, state, norm.reshape(1), reach=reach, loss=loss, weights=length)
            verdict[i], clip_norm[i], applied[i] = decision.verdict, decision.clip_norm, decision.applied_norm
            for kind in KINDS:
                row = state["episodes"][kind]
                at = counters.whole(row["step_low"], row["step_high"])
                if at and at != seen[kind]:
                    seen[kind] = at
                    began[kind].append(int(rows["step"][i]))
    count = counters.exact(state["count"])
    episodes = {kind: count[f"episodes_{kind}"] for kind in KINDS}
    return verdict.astype(int), decode(clip_norm), applied, episodes, {k: tuple(v) for k, v in began.items()}


def _side(
    policy: str,
    detectors: tuple[str, ...],
    verdict: np.ndarray,
    clip_norm: np.ndarray,
    applied: np.ndarray,
    episodes: Mapping[str, int],
    began: Mapping[str, tuple[int, ...]],
) -> Side:
    bounds, norms = clip_norm[np.isfinite(clip_norm)], applied[np.isfinite(applied)]
    clipped, zeroed, skipped = (int(np.sum(verdict == VERDICTS.index(word))) for word in ("clip", "zero", "skip"))
    return Side(
        policy=policy,
        detectors=detectors,
        clipped=clipped,
        zeroed=zeroed,
        skipped=skipped,
        clip_norm=float(np.median(bounds)) if len(bounds) else math.nan,
        applied_norm=float(norms.max()) if len(norms) else math.nan,
        episodes=episodes,
        began={kind: steps[:_MOST_STEPS] for kind, steps in began.items() if steps},
    )


def text(replay: Replay) -> str:
    """The answer for a terminal."""
    was, would = replay.was, replay.would

    def share(count: int) -> str:
        return f"{count:,} ({count / replay.steps:.1%})"

    lines = [
        ("", "the run", "the replay"),
        ("policy", was.policy, would.policy),
        ("detectors", ", ".join(was.detectors), ", ".join(would.detectors)),
        ("clipped steps", share(was.clipped), share(would.clipped)),
        ("zeroed or skipped steps", share(was.zeroed + was.skipped), share(would.zeroed + would.skipped)),
        ("median clip_norm", number(was.clip_norm), number(would.clip_norm)),
        ("largest norm applied", number(was.applied_norm), number(would.applied_norm)),
        *((f"anomalies: {kind}", _began(was, kind), _began(would, kind)) for kind in KINDS),
    ]
    widths = [max(len(line[i]) for line in lines) for i in range(2)]
    out = [f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c}".rstrip() for a, b, c in lines]
    missed = f" {replay.missed:,} steps were not recorded." if replay.missed else ""
    if replay.differ:
        out.append(
            f"\n{replay.differ:,} of {replay.steps:,} steps would have been treated otherwise, the first of them "
            f"step {replay.first_difference:,}.{missed}"
        )
    else:
        out.append(f"\nAll {replay.steps:,} steps would have been treated alike.{missed}")
    return "\n".join([*out, CAVEAT])


def _began(side: Side, kind: str) -> str:
    count, steps = side.episodes.get(kind, 0), side.began.get(kind, ())
    if not count:
        return "0"
    return f"{count:,}, at step {', '.join(f'{step:,}' for step in steps[:3])}{' ...' if count > 3 else ''}"


def _known(info: Mapping[str, Any], name: str) -> Any:
    if info.get(name) is None:
        option = "--policy" if name == "policy" else "--detector"
        raise ConfigError(f"the record does not say the run's {name}; name one with {option}")
    return info[name]


def _newest(steps: np.ndarray) -> np.ndarray:
    """Which rows are not made again further down, after a return to a checkpoint."""
    least_after = np.minimum.accumulate(steps[::-1])[::-1]
    return np.append(steps[:-1] < least_after[1:], True) if len(steps) else np.zeros(0, bool)


def _alike(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.asarray(np.isclose(a, b, rtol=1e-4, atol=0.0, equal_nan=True))


def _json(value: float) -> float | None:
    return value if math.isfinite(value) else None
