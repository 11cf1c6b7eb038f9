"""The dashboard `gradient-fleet`: many runs on one page, the worst first."""

from __future__ import annotations

from gradwatch.grafana.panels import (
    BLUE,
    GREEN,
    KIND_COLOURS,
    ORANGE,
    PACE,
    RED,
    YELLOW,
    Json,
    arrange,
    board,
    colour,
    override,
    row,
    stat,
    steps,
    table,
    target,
    timeseries,
)
from gradwatch.grafana.queries import (
    chosen,
    finite,
    firing,
    increase,
    per_run,
    positive,
    rate,
    share_of_steps,
    useful_share,
)
from gradwatch.grafana.ranking import HARMED, LOST, named, run_names, stalled, trouble
from gradwatch.grafana.rules import NOT_EXPECTED
from gradwatch.grafana.shared import FLEET_UID, NO_STEPS, STATES, WHO, run_link, state, step_age, variables
from gradwatch.reading.state import STALL_SECONDS

#: Trouble below this is a bad step now and then.
_WORTH_A_LOOK = 0.05
_COLOURED = {"type": "color-background", "mode": "basic"}
_TROUBLE_STEPS = steps((None, GREEN), (_WORTH_A_LOOK, YELLOW), (HARMED, ORANGE), (LOST, RED))

#: Legend of a run in a fleet: the name of the run, before what `WHO` says.
_WHOSE = "{{run_name}} " + WHO

_NO_RULES = "No gradwatch alert is firing (or Prometheus has not loaded rules.yml)."


def dashboard() -> Json:
    """`dashboards/gradient-fleet.json` as data."""
    return board(
        FLEET_UID,
        "Gradient fleet",
        "All training runs that Prometheus scrapes, the worst first. Click a run for its gradient health.",
        variables=variables(),
        annotations=[],
        panels=arrange(
            [
                row("Now"),
                [(_runs(), 4, 4), (_active(), 4, 4), (_in_trouble(), 4, 4), (_stalled(), 4, 4)]
                + [(_down(), 4, 4), (_firing(), 4, 4)],
                [(_first_three(), 14, 5), (_alerts(), 10, 5)],
                [(_worst_first(), 24, 12)],
                [(_which_are_down(), 24, 5)],
                row("Over time"),
                [(_headroom(), 12, 8), (_anomalous_steps(), 12, 8)],
                [(_clip_shares(), 12, 8), (_slowest(), 12, 8)],
                [(_nonfinite(), 12, 8), (_overheads(), 12, 8)],
            ]
        ),
        time_from="now-6h",
    )


# -- now ------------------------------------------------------------------------------------------------


def _runs() -> Json:
    return stat(
        "Runs",
        "How many do I watch? Fewer than you started: some have no endpoint that Prometheus can reach.",
        [target(f"count({chosen('gradwatch_run_active')})", instant=True)],
        unit="none",
        empty="No run: no process with gradwatch is scraped now.",
    )


def _active() -> Json:
    return stat(
        "Training now",
        "How many make steps? A process that has ended its run, or has not made a step, is not counted.",
        [target(f"sum({chosen('gradwatch_run_active')})", instant=True)],
        unit="none",
        empty="No run: no process with gradwatch is scraped now.",
    )


def _in_trouble() -> Json:
    anomaly = f"max without (kind) ({chosen('gradwatch_anomaly_active')})"
    return stat(
        "With an anomaly now",
        "Must I act now? These runs are at the top of the table below.",
        [target(f"sum({anomaly})", instant=True)],
        unit="none",
        empty="No run: no process with gradwatch is scraped now.",
        thresholds=steps((None, GREEN), (1, RED)),
        background=True,
    )


def _stalled() -> Json:
    return stat(
        "Stalled",
        "Does one burn money without training? Runs under way without a step for ten minutes: hung input, "
        "a lost worker, a deadlock. Open the run, then look at its process.",
        [target(f"sum({stalled()})", instant=True)],
        unit="none",
        empty="No run: no process with gradwatch is scraped now.",
        thresholds=steps((None, GREEN), (1, RED)),
        background=True,
    )


def _down() -> Json:
    return stat(
        "Endpoints down",
        "Has a process died? Targets that Prometheus knows and cannot reach; the table below the runs names them. "
        'Left out are those that may come and go (expected="no", such as prometheus/targets/local.json).',
        [target(f"sum({chosen('up', NOT_EXPECTED)} == bool 0) or on () (0 * count({chosen('up')}))", instant=True)],
        unit="none",
        empty="Prometheus knows no such target.",
        thresholds=steps((None, GREEN), (1, ORANGE)),
        background=True,
    )


def _firing() -> Json:
    return stat(
        "Alerts by severity",
        "What would have woken me? Those that fire now; the list is below the table.",
        [
            target(
                f"count by (severity) ({firing()}) or on () "
                f'label_replace(0 * {_all_runs()}, "severity", "none fires", "", "")',
                "{{severity}}",
                instant=True,
            )
        ],
        unit="none",
        empty=_NO_RULES,
        overrides=[
            override("critical", color=colour(RED)),
            override("warning", color=colour(ORANGE)),
            override("info", color=colour(BLUE)),
        ],
    )


def _first_three() -> Json:
    worst = f"topk(3, {trouble()} >= {_WORTH_A_LOOK})"
    nobody = f'label_replace({_all_runs()}, "cause", "all runs are well", "", "")'
    why = f"sum by (job, instance, monitor, cause) ({chosen('gradwatch_verdict_info')}) and on (job, instance, monitor)"
    began = f"1000 * {per_run(chosen('gradwatch_run_start_timestamp_seconds'))} and on (job, instance, monitor)"
    columns = {
        "run_name": "Run",
        "monitor": "Monitor",
        "cause": "Verdict",
        "Value #A": "Trouble",
        "Value #C": "Started",
        "instance": "Instance",
        "job": "Job",
    }
    return table(
        "These three need you now",
        "Where do I look first? At most three runs, the worst first, with what gradwatch says of the cause. Trouble is "
        "explained at the table of all runs below. Click a monitor for its gradient health.",
        [
            target(f"{worst} or on () (0 * {nobody})", instant=True, form="table"),
            target(f"{why} ({worst})", instant=True, form="table"),
            target(f"{began} ({worst})", instant=True, form="table"),
            target(f"{run_names()} and on (job, instance, monitor) ({worst})", instant=True, form="table"),
        ],
        columns=columns,
        empty="No run: no process with gradwatch is scraped now.",
        sort="Trouble",
        overrides=[
            *_which_and_how_bad(),
            override("Started", unit="dateTimeFromNow", noValue="–"),
        ],
    )


def _all_runs() -> str:
    """One series, whenever there is a run."""
    return f"count({chosen('gradwatch_run_active')})"


def _which_and_how_bad() -> list[Json]:
    """Of a table of runs: its monitor leads to the dashboard of that run, its trouble is coloured."""
    return [
        override("Monitor", links=[{"title": "Gradient health", "url": run_link(), "targetBlank": False}]),
        override("Trouble", decimals=2, noValue="–", thresholds=_TROUBLE_STEPS, custom__cellOptions=_COLOURED),
    ]


def _worst_first() -> Json:
    steps_total = chosen("gradwatch_steps_total")
    clipped = share_of_steps(chosen("gradwatch_clipped_steps_total"), steps_total)
    began = chosen("gradwatch_run_start_timestamp_seconds")
    queries = {
        "Trouble": trouble(),
        "State": per_run(state()),
        "Since last step": per_run(step_age()),
        "Steps per second": per_run(rate(steps_total)),
        "Anomalies": f"round({per_run(increase(chosen('gradwatch_anomalies_total'), '$__range'))})",
        "Clip share": per_run(clipped),
        "Norm / threshold": per_run(_over_threshold()),
        "Loss": per_run(finite(chosen("gradwatch_loss"))),
        "Useful steps": per_run(useful_share()),
        "Started": f"1000 * {per_run(began)}",
    }
    columns = {"run_name": "Run", "monitor": "Monitor", "instance": "Instance", "job": "Job"}
    columns |= {f"Value #{chr(ord('A') + index)}": name for index, name in enumerate(queries)}
    return table(
        "Runs, worst first",
        "Which one first? Trouble: its hundreds are the harm: 300 for a run that is lost, stalls or has a critical "
        "alert, 200 for harm, 100 for an anomaly without; then 16 for NaN or Inf under way, 8 for an explosion, 4 for "
        "saturated clipping, 2 for vanishing, 1 for a trend; behind the point the share of bad steps in this time "
        "range. Click a monitor for its gradient health, from the start of its run on.",
        [target(query, instant=True, form="table") for query in (*queries.values(), run_names())],
        columns=columns,
        empty="No run: no process with gradwatch is scraped now.",
        sort="Trouble",
        overrides=[
            *_which_and_how_bad(),
            override("State", mappings=STATES, noValue="–", custom__cellOptions=_COLOURED),
            override(
                "Since last step",
                unit="s",
                noValue="no step yet",
                thresholds=steps((None, GREEN), (60, YELLOW), (STALL_SECONDS, RED)),
            ),
            override("Steps per second", unit=PACE, noValue="–"),
            override("Anomalies", decimals=0, noValue="–"),
            override("Clip share", unit="percentunit", noValue="–"),
            override("Norm / threshold", unit="percentunit", noValue="–"),
            override("Loss", unit="short", noValue="not told"),
            override("Useful steps", unit="percentunit", noValue="–"),
            override("Started", unit="dateTimeAsIso", noValue="–"),
        ],
    )


def _which_are_down() -> Json:
    down = f"{chosen('up', NOT_EXPECTED)} == 0"
    none = _all_runs()
    for label, value in (("run", "none is down"), ("instance", "–"), ("job", "–")):
        none = f'label_replace({none}, "{label}", "{value}", "", "")'
    return table(
        "Which endpoints are down",
        "Which run has died? An endpoint that does not answer has no row above. Its process failed, crashed, was "
        "killed or hangs, or its host cannot be reached: look at its log. Run is the name in its target file.",
        [target(f"({down}) or on () {none}", instant=True, form="table")],
        columns={"run": "Run", "instance": "Instance", "job": "Job"},
        empty="No endpoint is down, or Prometheus knows none.",
    )


def _over_threshold() -> str:
    norm = finite(chosen("gradwatch_gradient_norm_last"))
    return f"{norm} / {positive(finite(chosen('gradwatch_explosion_threshold')))}"


def _alerts() -> Json:
    columns = {
        "severity": "Severity",
        "alertname": "Alert",
        "monitor": "Monitor",
        "instance": "Instance",
        "job": "Job",
    }
    return table(
        "Alerts firing",
        "What does Prometheus say? Each has its section in docs/runbooks.md: what it means, how to confirm it, "
        "what to do.",
        [
            target(
                f'{firing()} or on () label_replace({_all_runs()}, "alertname", "none fires", "", "")',
                instant=True,
                form="table",
            )
        ],
        columns=columns,
        empty=_NO_RULES,
    )


# -- over time ------------------------------------------------------------------------------------------


def _headroom() -> Json:
    return timeseries(
        "Norm over explosion threshold, highest ten",
        "Who explodes next? Above 100 % is an explosion; a curve that climbs towards it step by step is one "
        "that a lower learning rate can still prevent.",
        [target(named(f"topk(10, {positive(_over_threshold())})"), _WHOSE)],
        unit="percentunit",
        empty="No run has a finite norm and a threshold: they are warming up, or made no step.",
        log=True,
        thresholds=steps((None, GREEN), (1, RED)),
    )


def _anomalous_steps() -> Json:
    bad = f"sum by (kind) ({rate(chosen('gradwatch_anomalous_steps_total'))})"
    return timeseries(
        "Anomalous steps of all runs, by kind",
        "Is it one run or all of them? Many runs at the same minute: a shared cause, such as new data, a new "
        "image, a storage that returns garbage.",
        [target(bad, "{{kind}}")],
        unit=PACE,
        empty="The endpoints were not scraped in this time range.",
        minimum=0,
        soft_maximum=1,
        overrides=[override(kind, color=colour(name)) for kind, name in KIND_COLOURS.items()],
    )


def _clip_shares() -> Json:
    share = share_of_steps(chosen("gradwatch_clipped_steps_total"), chosen("gradwatch_steps_total"))
    return timeseries(
        "Clip share, highest ten",
        "Who is on the brake all the time? Near 100 %: the clip norm decides the step size. Loosen the policy or "
        "lower the learning rate.",
        [target(named(f"topk(10, {share})"), _WHOSE)],
        unit="percentunit",
        empty=NO_STEPS,
        minimum=0,
        maximum=1,
    )


def _slowest() -> Json:
    active = f"{chosen('gradwatch_run_active')} == 1"
    return timeseries(
        "Steps per second, slowest ten under way",
        "Who has slowed down? All runs of one host at once: the host. One run alone: its input or its workers.",
        [target(named(f"bottomk(10, {rate(chosen('gradwatch_steps_total'))} and {active})"), _WHOSE)],
        unit=PACE,
        empty="No run is under way in this time range.",
        minimum=0,
    )


def _nonfinite() -> Json:
    share = share_of_steps(chosen("gradwatch_nonfinite_steps_total"), chosen("gradwatch_steps_total"))
    return timeseries(
        "Steps with NaN or Inf, highest ten",
        "Who trains on garbage? Above 5 %, and not mixed precision finding its scale: stop it, and go back to a "
        "checkpoint.",
        [target(named(f"topk(10, {share})"), _WHOSE)],
        unit="percentunit",
        empty=NO_STEPS,
        minimum=0,
        soft_maximum=0.05,
    )


def _overheads() -> Json:
    return timeseries(
        "gradwatch's overhead, highest ten",
        "Does watching cost too much anywhere? Share of the training thread's time. Above 5 %: very short or "
        "eager steps; wrap them in tf.function.",
        [target(named(f"topk(10, {rate(chosen('gradwatch_host_overhead_seconds_total'))})"), _WHOSE)],
        unit="percentunit",
        empty="The endpoints were not scraped in this time range.",
        minimum=0,
        soft_maximum=0.05,
    )
