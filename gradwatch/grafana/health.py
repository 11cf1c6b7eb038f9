"""The dashboard `gradient-health`: one run in depth, from "is it learning?" down to "is gradwatch well?"."""

from __future__ import annotations

from gradwatch.core.snapshot import KINDS
from gradwatch.grafana.panels import (
    BLUE,
    GREEN,
    GREY,
    KIND_COLOURS,
    ORANGE,
    PACE,
    PURPLE,
    RED,
    YELLOW,
    Json,
    annotation,
    arrange,
    board,
    colour,
    heatmap,
    mapping,
    override,
    row,
    stat,
    steps,
    table,
    target,
    timeline,
    timeseries,
)
from gradwatch.grafana.queries import (
    chosen,
    finite,
    increase,
    or_else,
    positive,
    rate,
    share_of_steps,
    useful_share,
)
from gradwatch.grafana.shared import (
    HEALTH_UID,
    NO_STEPS,
    SHARE_STEPS,
    STATES,
    WHO,
    run_link,
    state,
    step_age,
    variables,
)

_NAMES = {
    "nonfinite": "NaN or Inf",
    "explosion": "Explosion",
    "saturated": "Saturated",
    "vanishing": "Vanishing",
    "trend": "Trend",
}
_NO_LOSS = (
    "The training tells no finite loss. A step that returns it and model.fit do; elsewhere: monitor.report(loss=...)."
)
_NO_UPDATE = "No update has been measured: monitor.clip does not see the update, watch and KerasCallback do."


def dashboard() -> Json:
    """`dashboards/gradient-health.json` as data."""
    return board(
        HEALTH_UID,
        "Gradient health",
        "One training run in depth. Read it from the top: is it learning, is it healthy, what was lost; when did it "
        "happen; which layers; did clipping do what the policy is set to; is gradwatch itself well.",
        variables=variables(),
        annotations=[_events(kind) for kind in KINDS],
        panels=arrange(
            [
                row("Is it learning, is it healthy, what was lost"),
                [(_loss_now(), 6, 5), (_useful(), 4, 5), (_verdict(), 7, 5), (_update_ratio_now(), 4, 5)]
                + [(_state(), 3, 5)],
                row("On one time axis: loss, gradient norm, learning rate, events"),
                [(_loss(), 24, 8)],
                [(_norm(), 24, 11)],
                [(_learning_rate(), 24, 6)],
                row("Which layers did it"),
                [(_layer_shares(), 8, 9), (_layer_norms(), 8, 9), (_layer_updates(), 8, 9)],
                row("What went wrong, and when"),
                [(_anomalies(), 24, 4)],
                [(_episodes(), 14, 7), (_last_anomalies(), 10, 7)],
                row("What was done to the gradients"),
                [(_clip_share(), 12, 8), (_clip_scale(), 12, 8)],
                [(_unused_steps(), 12, 8), (_nonfinite_streak(), 12, 8)],
                row("What the ladder did"),
                [(_recoveries(), 8, 7), (_lost_steps(), 8, 7), (_rate_scale(), 8, 7)],
                row("The norm and the update in detail"),
                [(_heatmap(), 24, 9)],
                [(_quantiles(), 9, 8), (_score(), 9, 8), (_largest(), 6, 8)],
                [(_update_ratio(), 12, 8), (_loss_scale(), 12, 8)],
                row("The pace, and gradwatch itself"),
                [(_step_rate(), 8, 4), (_age(), 4, 4), (_clip_share_now(), 6, 4), (_overhead_now(), 6, 4)],
                [(_overhead(), 8, 7), (_reading_time(), 8, 7), (_freshness(), 8, 7)],
                [(_errors(), 8, 7), (_notifications(), 8, 7), (_endpoint(), 8, 7)],
                [(_run_info(), 24, 5)],
            ]
        ),
        time_from="now-15m",
    )


def _events(kind: str) -> Json:
    when = chosen("gradwatch_last_anomaly_timestamp_seconds", f'kind="{kind}"')
    return annotation(
        _NAMES[kind],
        f"{when} * 1000 > 0",
        f"{_NAMES[kind]}: {{{{monitor}}}}",
        "An episode began in {{monitor}} ({{instance}}).",
        ("kind", "monitor"),
        KIND_COLOURS[kind],
    )


# -- is it learning, is it healthy, what was lost -------------------------------------------------------


def _loss_now() -> Json:
    return stat(
        "Loss now",
        "Is it learning? The loss of the last step, and its course behind it: it should fall, or lie still at the end "
        "of a run. A step upwards that stays: the weights are damaged, go back to a checkpoint.",
        [target(finite(chosen("gradwatch_loss")), WHO)],
        unit="short",
        empty=_NO_LOSS,
        thresholds=steps((None, BLUE)),
        sparkline=True,
    )


def _useful() -> Json:
    return stat(
        "Useful steps",
        "What was lost? Share of the steps of this time range that trained the model: neither skipped nor zeroed, no "
        "NaN or Inf, not within a harmful episode. Below 99 %: look at the events on the curves below.",
        [target(useful_share(), WHO, instant=True)],
        unit="percentunit",
        empty=NO_STEPS,
        decimals=2,
        thresholds=steps((None, RED), (0.9, ORANGE), (0.99, GREEN)),
    )


def _update_ratio_now() -> Json:
    return stat(
        "Update ratio now",
        "Is the learning rate right? The share of their norm by which a step moves the weights. About 1e-3 is usual; "
        "1e-1 rewrites the network in ten steps, 1e-6 trains nothing.",
        [target(positive(finite(chosen("gradwatch_update_ratio"))), WHO)],
        unit="sci",
        empty=_NO_UPDATE,
        thresholds=steps((None, YELLOW), (1e-6, GREEN), (1e-1, RED)),
    )


def _verdict() -> Json:
    columns = {"cause": "Cause", "confidence": "Confidence", "monitor": "Monitor", "instance": "Instance"}
    none = {"cause": "none yet", "confidence": "-"}
    told = or_else(chosen("gradwatch_verdict_info"), chosen("gradwatch_run_active"), **none)
    return table(
        "Verdict",
        "Why is the run as it is? The likeliest cause that gradwatch sees in the numbers of the run, and how sure it "
        "is. docs/diagnosis.md tells what each cause means and what to do.",
        [target(told, instant=True, form="table")],
        columns=columns,
        empty="No endpoint: the process has ended, or Prometheus cannot reach it.",
        overrides=[
            override(
                "Cause",
                mappings=mapping({"healthy": ("healthy", GREEN), "none yet": ("none yet", GREY)}),
                thresholds=steps((None, ORANGE)),
                custom__cellOptions={"type": "color-text"},
            )
        ],
    )


def _state() -> Json:
    return stat(
        "State",
        "Is the run well right now? ANOMALY: look at the row below for its kind, then at the norm. Warming up: "
        "the policy still gathers statistics and does not clip by them. No run: it has ended, or has made no "
        "step yet.",
        [target(state(), WHO, instant=True)],
        unit="none",
        empty="No endpoint: the process has ended, or Prometheus cannot reach it.",
        mappings=STATES,
        background=True,
    )


def _step_rate() -> Json:
    return stat(
        "Steps per second",
        "Is it still training, and as fast as before? A drop to half is often a slow input pipeline or a "
        "neighbour on the same device; compare with the overhead on the right before you suspect gradwatch. "
        "Recorded: what reaches the run's record.",
        [
            target(rate(chosen("gradwatch_steps_total")), WHO),
            target(rate(chosen("gradwatch_recorded_steps_total")), f"recorded: {WHO}"),
        ],
        unit=PACE,
        empty=NO_STEPS,
        sparkline=True,
    )


def _age() -> Json:
    return stat(
        "Time since the last step",
        "Does it hang? Minutes, where a step takes seconds: look at the process (py-spy dump), the input "
        "pipeline, the other workers of a collective. Long checkpoints and evaluations look the same.",
        [target(step_age(), WHO, instant=True)],
        unit="s",
        empty="No step has been made yet, or the endpoint is not reachable.",
        thresholds=steps((None, GREEN), (60, YELLOW), (600, RED)),
    )


# -- what went wrong ------------------------------------------------------------------------------------


def _anomalies() -> Json:
    count = f"round(sum by (kind) ({increase(chosen('gradwatch_anomalies_total'), '$__range')}))"
    return stat(
        "Anomalies in this time range",
        "What went wrong, how often? Episodes that began, by kind: an explosion of 40 steps is one. One "
        "explosion that was clipped needs nothing; several an hour need a lower learning rate or a look at "
        "the data. A resume from a checkpoint counts its past once more.",
        [target(count, "{{kind}}", instant=True)],
        unit="none",
        empty="No endpoint was scraped in this time range.",
        decimals=0,
        thresholds=steps((None, GREEN), (1, ORANGE), (10, RED)),
        overrides=[override(kind, displayName=name) for kind, name in _NAMES.items()],
    )


def _clip_share_now() -> Json:
    share = share_of_steps(chosen("gradwatch_clipped_steps_total"), chosen("gradwatch_steps_total"))
    return stat(
        "Clip share",
        "How many of the steps are clipped? Near the policy's own share (see below) is as meant. Near 100 %: "
        "the clip norm is a brake on every step, and the learning rate is not what it says.",
        [target(share, WHO)],
        unit="percentunit",
        empty=NO_STEPS,
        thresholds=steps((None, GREEN), (0.5, YELLOW), (0.9, RED)),
        sparkline=True,
    )


def _overhead_now() -> Json:
    return stat(
        "Overhead",
        "Is gradwatch what makes it slow? Share of the training thread's time spent on gradwatch's host side. "
        "Above 5 %: the steps are very short, or eager; wrap the step in tf.function.",
        [target(rate(chosen("gradwatch_host_overhead_seconds_total")), WHO)],
        unit="percentunit",
        empty="The endpoint was not scraped in this time range.",
        thresholds=SHARE_STEPS,
        sparkline=True,
    )


def _episodes() -> Json:
    return timeline(
        "Anomalies under way",
        "When did it begin, is it over? One bar for each run and kind, coloured while an episode lasts. An "
        "episode between two scrapes is not seen here; the lines across all panels mark where each began.",
        [target(chosen("gradwatch_anomaly_active"), "{{monitor}} {{instance}} {{kind}}")],
        empty="The endpoint was not scraped in this time range.",
        mappings=mapping({0: ("no", "transparent"), 1: ("under way", RED)}),
        overrides=[
            override(
                f"/{kind}$/", regex=True, mappings=mapping({0: ("no", "transparent"), 1: (name, KIND_COLOURS[kind])})
            )
            for kind, name in _NAMES.items()
        ],
    )


def _last_anomalies() -> Json:
    columns = {"kind": "Kind", "Value #A": "Step", "Value #B": "Seen", "monitor": "Monitor", "instance": "Instance"}
    step = chosen("gradwatch_last_anomaly_step")
    seen = chosen("gradwatch_last_anomaly_timestamp_seconds")
    return table(
        "Newest anomaly of each kind",
        "From before which step do I need a checkpoint? The step at which the newest episode began, and when it "
        "was seen. An episode from before a resume has a step but no time.",
        [
            target(f"sum by (monitor, instance, kind) ({step})", instant=True, form="table"),
            target(f"1000 * sum by (monitor, instance, kind) ({seen} > 0)", instant=True, form="table"),
        ],
        columns=columns,
        empty="No endpoint was scraped in this time range.",
        sort="Step",
        overrides=[
            override("Step", mappings=mapping({0: ("none so far", GREY)}), noValue="-"),
            override("Seen", unit="dateTimeFromNow", noValue="-"),
        ],
    )


# -- the norm -------------------------------------------------------------------------------------------


def _norm() -> Json:
    highest = (
        f"histogram_quantile(1, sum by (job, instance, monitor, le) ({rate(chosen('gradwatch_gradient_norm_bucket'))}))"
    )
    return timeseries(
        "Gradient norm, clip norm and threshold",
        "What happened to the gradients? Red line: an explosion began. A rise over many steps is the learning "
        "rate or a loss without bound; a single tooth is the data of one step. Applied below norm: clipping "
        "works. Applied at the norm while the norm passes the threshold: this policy does not clip. The highest "
        "of the interval comes from the histogram and shows the spikes that fall between two scrapes. Reach (SGD) is "
        "the norm which, sustained, moves the weights by their own length in a step: a tenth is too much for long.",
        [
            target(positive(finite(chosen("gradwatch_gradient_norm_last"))), f"norm {WHO}"),
            target(positive(chosen("gradwatch_gradient_norm_applied")), f"applied {WHO}"),
            target(finite(chosen("gradwatch_clip_norm")), f"clip norm {WHO}"),
            target(finite(chosen("gradwatch_explosion_threshold")), f"threshold {WHO}"),
            target(positive(chosen("gradwatch_vanishing_threshold")), f"vanishing below {WHO}"),
            target(positive(highest), f"highest of the interval {WHO}"),
            target(positive(finite(chosen("gradwatch_reach_norm"))), f"reach {WHO}"),
        ],
        unit="sci",
        empty="No finite norm yet: no step was made, or all of them had NaN or Inf.",
        log=True,
        table=True,
        overrides=[
            override("/^norm /", regex=True, color=colour(BLUE)),
            override("/^applied /", regex=True, color=colour(GREEN)),
            override(
                "/^clip norm /", regex=True, color=colour(YELLOW), custom__lineStyle={"fill": "dash", "dash": [8, 6]}
            ),
            override(
                "/^threshold /", regex=True, color=colour(RED), custom__lineStyle={"fill": "dash", "dash": [2, 4]}
            ),
            override(
                "/^vanishing /", regex=True, color=colour(PURPLE), custom__lineStyle={"fill": "dash", "dash": [2, 4]}
            ),
            override(
                "/^reach /", regex=True, color=colour(ORANGE), custom__lineStyle={"fill": "dash", "dash": [12, 4]}
            ),
            override("/^highest /", regex=True, color=colour(GREY), custom__drawStyle="points", custom__pointSize=4),
        ],
    )


def _heatmap() -> Json:
    return heatmap(
        "Distribution of the norm",
        "Is this a new regime or a few stray steps? Every finite step is counted, however rarely it is scraped. "
        "A band that moves up as a whole is the training; a second band far above is bad batches; a band that "
        "sinks to the bottom is vanishing gradients.",
        [target(f"sum by (le) ({increase(chosen('gradwatch_gradient_norm_bucket'))})", "{{le}}", form="heatmap")],
        unit="sci",
        empty=NO_STEPS,
    )


def _quantiles() -> Json:
    return timeseries(
        "Quantiles of the recent norms",
        "How wide is normal? The policy's own view: quantiles with forgetting. 95 % and 50 % drifting apart: "
        "training becomes unsteady before it explodes; lower the learning rate or lengthen its warm-up.",
        [target(positive(chosen("gradwatch_gradient_norm_quantile")), "{{quantile}} {{monitor}} {{instance}}")],
        unit="sci",
        empty="No quantiles yet: they begin with the first finite steps.",
        log=True,
    )


def _score() -> Json:
    return timeseries(
        "Explosion score",
        "How far from normal was the last step? The detector's statistic in its own unit (robust standard "
        "deviations of the log norm). Rising for minutes without an alarm: it is coming.",
        [target(finite(chosen("gradwatch_explosion_score")), WHO)],
        unit="none",
        empty="No finite score yet: the detector is warming up.",
    )


def _largest() -> Json:
    return stat(
        "Largest norm of the run",
        "How bad was the worst step? The largest finite norm so far. Inf steps are counted below.",
        [target(positive(chosen("gradwatch_gradient_norm_max")), WHO, instant=True)],
        unit="sci",
        empty="No finite norm yet.",
    )


# -- what was done --------------------------------------------------------------------------------------


def _clip_share() -> Json:
    share = share_of_steps(chosen("gradwatch_clipped_steps_total"), chosen("gradwatch_steps_total"))
    return timeseries(
        "Clip share against what the policy implies",
        "Does clipping do what I asked for? percentile(90) is expected to clip one step in ten. Far above the dashed "
        "line for long: the norm grows faster than the policy follows, or the policy is too tight. Policies "
        "that imply no share show no dashed line.",
        [
            target(share, f"clipped {WHO}"),
            target(chosen("gradwatch_expected_clip_ratio"), f"implied {WHO}"),
        ],
        unit="percentunit",
        empty=NO_STEPS,
        minimum=0,
        maximum=1,
        overrides=[
            override("/^implied /", regex=True, color=colour(GREY), custom__lineStyle={"fill": "dash", "dash": [8, 6]})
        ],
    )


def _clip_scale() -> Json:
    return timeseries(
        "How hard the last step was clipped",
        "A touch or a hammer? Applied norm over norm of the last step: 1 is untouched, 0.01 means that a "
        "hundredth was left, 0 that the step was dropped.",
        [target(chosen("gradwatch_clip_scale_ratio"), WHO)],
        unit="percentunit",
        empty="The endpoint was not scraped in this time range.",
        minimum=0,
        maximum=1,
    )


def _unused_steps() -> Json:
    total = chosen("gradwatch_steps_total")
    skipped = f"{rate(chosen('gradwatch_skipped_updates_total'))} / ignoring (reason) group_left () ({rate(total)} > 0)"
    return timeseries(
        "Steps with NaN or Inf, and skipped updates",
        "How much of the training is lost? A loss scale that probes its limit costs one step in some thousand. "
        "More than 5 %, or all of them: the weights or the input hold NaN; stop, and restart from a checkpoint "
        "from before it began.",
        [
            target(share_of_steps(chosen("gradwatch_nonfinite_steps_total"), total), f"NaN or Inf {WHO}"),
            target(skipped, "skipped: {{reason}} {{monitor}} {{instance}}"),
        ],
        unit="percentunit",
        empty=NO_STEPS,
        minimum=0,
        soft_maximum=0.05,
        overrides=[override("/^NaN/", regex=True, color=colour(PURPLE))],
    )


def _nonfinite_streak() -> Json:
    return timeseries(
        "Steps with NaN or Inf in a row",
        "Is it one bad step, or will it not end? A loss scale that looks for its value halves once a step, so it needs "
        "some. A line that rises on: the weights hold NaN; restart from a checkpoint from before it began.",
        [target(chosen("gradwatch_nonfinite_streak_steps"), WHO)],
        unit="none",
        decimals=0,
        empty=NO_STEPS,
        minimum=0,
        soft_maximum=1,
    )


# -- recovery -------------------------------------------------------------------------------------------

_NO_LADDER = "The endpoint was not scraped in this time range. Without recover= all of this stays at zero."


def _recoveries() -> Json:
    return timeseries(
        "Answers of the ladder",
        "Did the run need help? Skip: bad batches that were dropped. Lower, rollback, stop: what recover= did; the log "
        "and the alerts say why. Several rollbacks in a row: the data or the model, not the weights.",
        [target(increase(chosen("gradwatch_recoveries_total")), "{{rung}} {{monitor}} {{instance}}")],
        unit="none",
        decimals=0,
        empty=_NO_LADDER,
        minimum=0,
        soft_maximum=1,
        bars=True,
    )


def _lost_steps() -> Json:
    return timeseries(
        "Steps lost to recovery",
        "What did it cost? Steps whose updates were dropped or taken back.",
        [target(increase(chosen("gradwatch_lost_steps_total")), "{{rung}} {{monitor}} {{instance}}")],
        unit="none",
        decimals=0,
        empty=_NO_LADDER,
        minimum=0,
        soft_maximum=1,
    )


def _rate_scale() -> Json:
    return timeseries(
        "Scale of the learning rate",
        "Does the run go at the rate that I set? 1: yes. Below 1: the ladder has lowered it. A line that comes back to "
        "1 was a passing trouble; one that stays below says that the rate is too high for good.",
        [target(chosen("gradwatch_learning_rate_scale_ratio"), WHO)],
        unit="percentunit",
        empty=_NO_LADDER,
        minimum=0,
        maximum=1,
    )


# -- the training ---------------------------------------------------------------------------------------


def _loss() -> Json:
    return timeseries(
        "Loss",
        "Did the loss notice? A jump together with an explosion that does not come back: the weights are "
        "damaged; go back to a checkpoint. A jump that comes back within some hundred steps needs nothing. The lines "
        "across this panel and the next two mark where an anomaly began.",
        [target(finite(chosen("gradwatch_loss")), f"loss {WHO}")],
        unit="short",
        empty=_NO_LOSS,
        table=True,
        overrides=[override("/^loss /", regex=True, custom__lineWidth=2)],
    )


def _learning_rate() -> Json:
    return timeseries(
        "Learning rate",
        "Did the schedule do it? Explosions at the end of the warm-up, at its highest point, or right after a "
        "restart of the schedule are the learning rate's.",
        [target(chosen("gradwatch_learning_rate"), f"learning rate {WHO}")],
        unit="sci",
        empty="No learning rate is known: monitor.clip without optimizer= does not see it. "
        "monitor.report(learning_rate=...) tells it.",
        minimum=0,
        table=True,
    )


def _loss_scale() -> Json:
    scale = or_else(chosen("gradwatch_loss_scale"), f"{chosen('gradwatch_run_active')} >= bool 0")
    return timeseries(
        "Loss scale",
        "Does mixed precision still work? It halves at each overflow and doubles after some thousand clean "
        "steps. Falling without end, below 1: gradients are non-finite at any scale; see the runbook. A run without "
        "loss scaling lies at 1.",
        [target(positive(scale), WHO)],
        unit="sci",
        empty="The endpoint was not scraped in this time range.",
        log=True,
        thresholds=steps((None, RED), (1, GREEN)),
    )


def _update_ratio() -> Json:
    return timeseries(
        "Update ratio",
        "Is the learning rate right? The share of their norm by which a step moves the weights, measured every 50 "
        "steps. About 1e-3 is usual; 1e-1 rewrites the network in ten steps, 1e-6 trains nothing.",
        [target(positive(finite(chosen("gradwatch_update_ratio"))), WHO)],
        unit="sci",
        empty=_NO_UPDATE,
        log=True,
    )


# -- layers ---------------------------------------------------------------------------------------------


_ALL_LAYERS = "all layers together: gradwatch.serve(layers=8) tells them apart"
_LAYER = "{{layer}} {{monitor}} {{instance}}"
_NO_LAYERS = "No step was made yet, or the endpoint was not scraped in this time range."


def _layer_shares() -> Json:
    square = f"({finite(chosen('gradwatch_layer_gradient_norm'))} ^ 2)"
    share = f"{square} / ignoring (layer) group_left () (sum without (layer) ({square}) > 0)"
    whole = f"{positive(chosen('gradwatch_gradient_norm_last'))} >= bool 0"
    return timeseries(
        "Layers with the largest share of the squared norm",
        "Which layer is it? Share among the exported layers, top ten. One layer near 100 % during an explosion: "
        "look at its input and its initial values. All alike: look at the loss and the learning rate.",
        [target(or_else(f"topk(10, {share})", whole, layer=_ALL_LAYERS), _LAYER)],
        unit="percentunit",
        empty=_NO_LAYERS,
        minimum=0,
        maximum=1,
    )


def _layer_norms() -> Json:
    norms = positive(finite(chosen("gradwatch_layer_gradient_norm")))
    whole = positive(finite(chosen("gradwatch_gradient_norm_last")))
    return timeseries(
        "Layer norms",
        "Where do the gradients end? The ten largest. Norms that shrink by orders of magnitude towards the "
        "input are vanishing gradients; a layer that is missing here gets none at all.",
        [target(or_else(f"topk(10, {norms})", whole, layer=_ALL_LAYERS), _LAYER)],
        unit="sci",
        empty=_NO_LAYERS,
        log=True,
    )


def _layer_updates() -> Json:
    ratios = positive(finite(chosen("gradwatch_layer_update_ratio")))
    whole = positive(finite(chosen("gradwatch_update_ratio")))
    return timeseries(
        "Layers with the largest update ratio",
        "Which layer moves too fast? The share of its norm by which a step moves each variable, top ten. One layer far "
        "above the others: its initial values are small, or its learning rate is not the others'.",
        [target(or_else(f"topk(10, {ratios})", whole, layer=_ALL_LAYERS), _LAYER)],
        unit="sci",
        empty=_NO_UPDATE,
        log=True,
    )


# -- gradwatch itself -----------------------------------------------------------------------------------


def _overhead() -> Json:
    return timeseries(
        "Overhead over time",
        "Since when does gradwatch cost that much? Share of the training thread's time. A step up without a "
        "change of the model is worth a report to gradwatch's maintainers.",
        [target(rate(chosen("gradwatch_host_overhead_seconds_total")), WHO)],
        unit="percentunit",
        empty="The endpoint was not scraped in this time range.",
        minimum=0,
        soft_maximum=0.05,
    )


def _reading_time() -> Json:
    rates = f"sum by (job, instance, monitor, le) ({rate(chosen('gradwatch_snapshot_duration_seconds_bucket'))})"
    return timeseries(
        "Time to read the monitor",
        "Is the device so busy that gradwatch cannot read it? Milliseconds are normal. It runs on a thread of "
        "its own and costs the training nothing, but seconds mean old numbers everywhere above.",
        [
            target(f"histogram_quantile(0.5, {rates})", f"median {WHO}"),
            target(f"histogram_quantile(0.99, {rates})", f"99 % {WHO}"),
        ],
        unit="s",
        empty="The monitor was not read in this time range: it has no step yet, or its process is gone.",
        minimum=0,
        soft_maximum=0.01,
    )


def _freshness() -> Json:
    return timeseries(
        "Age of the numbers",
        "Can I trust what I see? Seconds since gradwatch last read the monitor; it reads once a second. "
        "Minutes: its reader thread is stuck, see the errors below and the log. Below zero: the clocks of the "
        "training's host and of Prometheus differ.",
        [target(f"time() - {chosen('gradwatch_snapshot_timestamp_seconds')}", WHO)],
        unit="s",
        empty="The endpoint was not scraped in this time range.",
        soft_maximum=5,
        thresholds=steps((None, GREEN), (60, RED)),
    )


def _errors() -> Json:
    return timeseries(
        "Errors of gradwatch",
        "Is gradwatch itself broken? Failures of its host side by component, failed scrapes, and looks "
        "that the disk of a run's record did not take, which stand under `record` as well. Training goes "
        "on regardless. Each kind is logged once, by the logger `gradwatch`, with its cause.",
        [
            target(increase(chosen("gradwatch_internal_errors_total")), "{{component}} {{instance}}"),
            target(increase(chosen("gradwatch_scrape_errors_total")), "scrape: {{component}} {{instance}}"),
            target(increase(chosen("gradwatch_record_errors_total")), f"record of {WHO}"),
        ],
        unit="none",
        decimals=0,
        empty="The endpoint was not scraped in this time range.",
        minimum=0,
        soft_maximum=1,
        bars=True,
    )


def _notifications() -> Json:
    return timeseries(
        "Messages to people",
        "Would I have been told? Messages that gradwatch sent itself (alerts=[...]). Failed: try the address "
        "with `gradwatch notify test`. Suppressed: held back by the rate limit, on purpose.",
        [target(increase(chosen("gradwatch_notifications_total")), "{{channel}} {{outcome}} {{instance}}")],
        unit="none",
        decimals=0,
        empty="The endpoint was not scraped in this time range.",
        minimum=0,
        soft_maximum=1,
        bars=True,
    )


def _endpoint() -> Json:
    return timeline(
        "Endpoint reachable",
        "Does Prometheus still get through? Not reachable while the run should be alive: the process has "
        "crashed, or it listens on another address (gradwatch.serve binds 127.0.0.1 unless told otherwise).",
        [target(chosen("up"), "{{job}} {{instance}}")],
        empty="Prometheus knows no such target in this time range.",
        mappings=mapping({0: ("not reachable", RED), 1: ("reachable", GREEN)}),
    )


def _run_info() -> Json:
    columns = {
        "job": "Job",
        "instance": "Instance",
        "monitor": "Monitor",
        "Value #B": "Started",
        "run_name": "Run",
        "run_id": "Run id",
        "policy": "Policy",
        "strategy": "Strategy",
        "replicas": "Replicas",
        "precision": "Precision",
    }
    began = chosen("gradwatch_run_start_timestamp_seconds")
    return table(
        "What is running here",
        "Is this the run I think it is? Policy, strategy and precision as gradwatch found them. A new run id "
        "under the same monitor name is a restart. A click on Started shows this run alone, from its first step on.",
        [
            target(chosen("gradwatch_run_info"), instant=True, form="table"),
            target(f"1000 * sum by (job, instance, monitor) ({began})", instant=True, form="table"),
        ],
        columns=columns,
        empty="No run: its process has ended, or Prometheus cannot reach it.",
        overrides=[
            override(
                "Started",
                unit="dateTimeAsIso",
                noValue="-",
                links=[{"title": "This run alone", "url": run_link(), "targetBlank": False}],
            )
        ],
    )
