"""Which run of a fleet comes first, and what it is called: the queries that the board of the fleet shares."""

from __future__ import annotations

from gradwatch.core.snapshot import KINDS
from gradwatch.grafana.queries import RUN, chosen, firing, increase, per_run
from gradwatch.reading.harm import SEVERITIES
from gradwatch.reading.state import STALL_SECONDS

#: Trouble by harm: the worst open episode or firing alert of a run, as many hundreds as its severity has rank.
HARM = 100
LOST, HARMED = (HARM * (SEVERITIES.index(severity) + 1) for severity in ("critical", "warning"))

#: What an episode under way adds to a run's trouble: powers of two below `HARM`, so that the sum tells which.
WEIGHTS = {kind: 2**i for i, kind in enumerate(reversed(KINDS))}


def trouble() -> str:
    """How bad it is: hundreds = harm, whole part below = what is under way (`WEIGHTS`), rest = share of bad steps."""
    under_way = " + ignoring (kind) ".join(
        f"{WEIGHTS[kind]} * " + chosen("gradwatch_anomaly_active", f'kind="{kind}"') for kind in KINDS
    )
    bad = f"sum without (kind) ({increase(chosen('gradwatch_anomalous_steps_total'), '$__range')})"
    made = increase(chosen("gradwatch_steps_total"), "$__range")
    share = f"clamp_max({bad} / clamp_min({made}, 1), 0.99)"
    return f"{per_run(f'({under_way}) + ignoring (kind) {share}')} + {harm()}"


def harm() -> str:
    """0, or `HARM` times the severity of what harms a run that is under way: an open episode, a stall, an alert."""
    found = [f"{HARM} * {chosen('gradwatch_episode_severity')}", stalled(LOST)]
    # steps that were wasted are an alert only: no episode of theirs need be open
    for severity, rank in (("critical", LOST), ("warning", HARMED)):
        found.append(f"{rank} * " + firing(f'severity="{severity}"'))
    worst = per_run(" or ".join(found), "max")
    return f"{worst} * on ({', '.join(RUN)}) {per_run(chosen('gradwatch_run_active'), 'max')}"


def named(expression: str) -> str:
    """With the label `run_name`, for series of single runs."""
    one = f"topk by ({', '.join(RUN)}) (1, {chosen('gradwatch_run_info')})"
    return f"{expression} * on ({', '.join(RUN)}) group_left (run_name) {one}"


def run_names() -> str:
    """One series for each run, with its name: a table merges it with what else it knows of that run."""
    return f"max by ({', '.join(RUN)}, run_name) ({chosen('gradwatch_run_info')})"


def stalled(weight: int = 1) -> str:
    """`weight` for a run that is under way and has made no step for ten minutes, else 0."""
    last = chosen("gradwatch_last_step_timestamp_seconds")
    return f"{weight} * {chosen('gradwatch_run_active')} * (time() - {last} > bool {STALL_SECONDS})"
