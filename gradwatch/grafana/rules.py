"""The recording and alert rules. The runbook for each alert is a section of docs/runbooks.md."""

from __future__ import annotations

from dataclasses import dataclass

from gradwatch.errors import ConfigError
from gradwatch.grafana.queries import increase, series, share_of_both, share_of_steps
from gradwatch.reading.harm import SEVERITIES
from gradwatch.reading.losses import STREAK_STEPS
from gradwatch.reading.state import STALL_SECONDS

#: Share of the steps that should be useful.
OBJECTIVE = 0.99

#: (times the budget, long window, short window): both windows must burn, so that an alert ends soon after the burning.
PAGES = ((14.4, "1h", "5m"), (6.0, "6h", "30m"))
TICKET = (1.0, "3d", "6h")

#: Of the steps that the policy is expected to leave alone, the share that may be clipped all the same.
CLIPPED_TOO_MANY = 0.3

#: Keeps out the targets whose trainings come and go, which `targets/local.json` marks.
NOT_EXPECTED = 'expected!="no"'

#: How long an alert of a run fires on. It is the same for what explains and for what is explained: shorter, and the
#: explained ones would be told, as new, of a run that was stopped; longer, and Alertmanager would never say that they
#: are over.
KEEP = "5m"

CLIPPED = "monitor:gradwatch_clipped_steps:ratio_rate5m"
NONFINITE = "monitor:gradwatch_nonfinite_steps:ratio_rate5m"
OVERHEAD = "monitor:gradwatch_host_overhead:ratio_rate5m"


def wasted(window: str) -> str:
    """Name of the recorded share of steps that were not useful."""
    return f"monitor:gradwatch_wasted_steps:ratio_rate{window}"


@dataclass(frozen=True)
class Alert:
    """One alert rule.

    Attributes:
      name: also the heading of its section in the runbook.
      expr: PromQL; each series of its result is one alert.
      severity: one of `SEVERITIES`: know it, act soon, act now.
      summary: a sentence; the run and the verdict are put around it, see `texts`.
      description: with Prometheus' templates.
      hold: how long it must hold before the alert fires; "" fires at once.
      keep: how long it fires on after it no longer holds; "" ends at once.
      of_run: whether it is about a run, and not about a process.
    """

    name: str
    expr: str
    severity: str
    summary: str
    description: str
    hold: str = ""
    keep: str = ""
    of_run: bool = True

    @property
    def anchor(self) -> str:
        """Of its section in the runbook."""
        return self.name.lower()


def checked_objective(objective: float) -> float:
    """The objective, which the fastest burn must be able to miss.

    Raises:
      ConfigError: it is not a share of steps that can be missed 14.4 times.
    """
    least = 1 - 1 / PAGES[0][0]
    if not least < objective < 1:
        raise ConfigError(
            f"the objective must be a share of useful steps between {least:.3f} and 1, got {objective}; 0.99 is usual: "
            f"below {least:.3f} not even a run of wasted steps burns {PAGES[0][0]:g} times the budget"
        )
    return float(objective)


def recordings() -> dict[str, str]:
    """Name -> PromQL of the recording rules."""
    steps = series("gradwatch_steps_total")
    bad, good = series("gradwatch_wasted_steps_total"), series("gradwatch_useful_steps_total")
    windows = sorted({w for _, *both in (*PAGES, TICKET) for w in both}, key=_seconds)
    return {
        CLIPPED: share_of_steps(series("gradwatch_clipped_steps_total"), steps, "5m"),
        NONFINITE: share_of_steps(series("gradwatch_nonfinite_steps_total"), steps, "5m"),
        OVERHEAD: f"rate({series('gradwatch_host_overhead_seconds_total')}[5m])",
        **{wasted(window): share_of_both(bad, good, window) for window in windows},
    }


def _seconds(window: str) -> int:
    return int(window[:-1]) * {"m": 60, "h": 3600, "d": 86400}[window[-1]]


def _harm(kinds: str, severity: str, *, at_least: bool = False) -> str:
    """An episode of these kinds is open in a run that is under way: an ended one is nobody's emergency any more."""
    matcher = f'kind=~"{kinds}"' if "|" in kinds else f'kind="{kinds}"'
    open_ = (
        f"{series('gradwatch_episode_severity', matcher)} {'>=' if at_least else '=='} {SEVERITIES.index(severity) + 1}"
    )
    on = "and on (job, instance, monitor)" if "|" in kinds else "and ignoring (kind)"
    return f"{open_}\n{on} {_running()}"


def _running() -> str:
    return f"{series('gradwatch_run_active')} == 1"


def _burning(objective: float, burns: tuple[tuple[float, str, str], ...]) -> str:
    """The budget burns in both windows, in a run that is under way and as old as the short one."""
    parts = []
    for times, long, short in burns:
        limit = f"{times * (1 - objective):.6g}"
        old = f"time() - {series('gradwatch_run_start_timestamp_seconds')} > {_seconds(short) // 60} * 60"
        parts.append(f"({wasted(long)} > {limit} and {wasted(short)} > {limit} and {old})")
    return f"({' or '.join(parts)})\nand {_running()}"


def _failures(name: str, by: str, *matchers: str) -> str:
    return f"sum by (job, instance, {by}) ({increase(series(name, *matchers), '15m')}) > 0"


def alerts(objective: float = OBJECTIVE) -> list[Alert]:
    """All alert rules, in the order of the catalogue.

    Args:
      objective: share of the steps that should be useful.

    Raises:
      ConfigError: see `checked_objective`.
    """
    objective = checked_objective(objective)
    where = "{{ $labels.monitor }}{{ with $labels.run }} of {{ . }}{{ end }} on {{ $labels.instance }}"
    clip_norm = series("gradwatch_clip_norm")
    usual = series("gradwatch_gradient_norm_quantile", 'quantile="0.5"')
    implied = series("gradwatch_expected_clip_ratio")
    last = series("gradwatch_last_anomaly_timestamp_seconds", 'kind="explosion"')
    ended = f"max by (job, instance) (last_over_time({series('gradwatch_run_active')}[1d])) == 0"
    budget = f"{1 - objective:.3g}"
    return [
        Alert(
            "GradwatchGradientExplosion",
            # the timestamp, not increase(): a resumed run's counter drops, which looks like new episodes
            f"time() - {last} < 5 * 60",
            "info",
            "A gradient explosion began.",
            f"{where}: an explosion began {{{{ $value | humanizeDuration }}}} ago. If it does harm, "
            "GradwatchTrainingHarmed says so.",
            keep="10m",
        ),
        Alert(
            "GradwatchTrainingHarmed",
            # what became fatal stays: muted by the page, and told to be over at the end
            _harm("explosion|saturated|nonfinite", "warning", at_least=True),
            "warning",
            "An anomaly of the gradients harmed the training.",
            f"{where} ({{{{ $labels.kind }}}}): the loss has not come back, or, where it is not known, the gradients "
            "reached the weights as they came or stood out for 100 steps. Look at the loss before the day is over.",
            keep=KEEP,
        ),
        Alert(
            "GradwatchGradientExplosionSustained",
            _harm("explosion", "critical"),
            "critical",
            "A gradient explosion destroys the training.",
            f"{where}: the loss has been away for 200 steps and two minutes, or is not known and the gradients have "
            "exploded for two minutes. Pause the run, go back to a checkpoint from before it began, and restart with a "
            "lower learning rate.",
            keep=KEEP,
        ),
        Alert(
            "GradwatchGradientTrend",
            _harm("trend", "warning", at_least=True),
            "warning",
            "The gradient norm grows steadily towards an explosion.",
            f"{where}: the gradient norm has been growing step by step, and the loss is worse or not known. A lower "
            "learning rate now can still prevent the explosion.",
            keep=KEEP,
        ),
        Alert(
            "GradwatchGradientNonFinite",
            _harm("nonfinite", "critical"),
            "critical",
            "The gradients hold NaN or Inf, and not only now and then.",
            f"{where}: no finite gradient for {STREAK_STEPS} steps in a row (40 under loss scaling). Stop the run: it "
            "does not learn. Restart from a checkpoint from before it began.",
            keep=KEEP,
        ),
        Alert(
            "GradwatchGradientVanishing",
            _harm("vanishing", "warning", at_least=True),
            "warning",
            "The gradients are vanishing.",
            f"{where}: the gradient norm has been far below its usual level for ten minutes, in a run that has not "
            "learned or whose loss is not known. Look at dead or saturated activations, and at a learning rate "
            "schedule that has run out.",
            hold="10m",
        ),
        Alert(
            "GradwatchUpdatesSaturated",
            _harm("saturated", "critical"),
            "critical",
            "Most of the gradients are clipped away or zeroed, and nothing is learned.",
            f"{where}: for two minutes most steps have been zeroed, skipped or clipped to a small part of their norm, "
            "and the loss is worse, has not fallen or is not known. Stop it, go back to a checkpoint from before it "
            "began, and lower the learning rate.",
            keep=KEEP,
        ),
        Alert(
            "GradwatchLossNotFinite",
            _harm("loss_nonfinite", "critical"),
            "critical",
            "The loss is not finite.",
            f"{where}: the loss has been NaN or Inf for {STREAK_STEPS} steps in a row (40 under loss scaling). Stop "
            "the run: it does not learn. Restart from a checkpoint from before it began.",
            keep=KEEP,
        ),
        Alert(
            "GradwatchLossRising",
            _harm("loss_rising", "warning", at_least=True),
            "warning",
            "The loss has risen and does not come back.",
            f"{where}: the loss has been above its healthy band for 100 steps without an anomaly of the gradients. "
            "Look at what changed: data, learning rate, a term of the loss.",
            keep=KEEP,
        ),
        Alert(
            "GradwatchLossLost",
            _harm("loss_rising", "critical"),
            "critical",
            "The loss is far above that of the first step.",
            f"{where}: the loss has been away for 200 steps and two minutes, and is far above the first one. Stop the "
            "run and go back to a checkpoint from before it began.",
            keep=KEEP,
        ),
        Alert(
            "GradwatchNoProgress",
            _harm("no_progress", "warning", at_least=True),
            "warning",
            "The training has made no progress for long.",
            f"{where}: after 2,000 losses the loss is no lower than at first, or it never came back to where it was.",
            hold="5m",
            keep=KEEP,
        ),
        Alert(
            "GradwatchStepsWastedFast",
            _burning(objective, PAGES),
            "critical",
            "So many steps are wasted that the run is hardly worth its machine.",
            f"{where}: {{{{ $value | humanizePercentage }}}} of the steps were skipped, zeroed, non-finite or in a "
            f"harmful episode, where {budget} of them may be: more than 14.4 times as many for an hour, or 6 times for "
            "six.",
            keep=KEEP,
        ),
        Alert(
            "GradwatchStepsWastedSlow",
            _burning(objective, (TICKET,)),
            "warning",
            "More steps are wasted than the objective allows.",
            f"{where}: {{{{ $value | humanizePercentage }}}} of the steps of the last three days were skipped, zeroed, "
            f"non-finite or in a harmful episode, where {budget} of them may be.",
            keep=KEEP,
        ),
        Alert(
            "GradwatchClippingSaturated",
            f"({CLIPPED} - {implied})\n/ (1 - {implied}) > {CLIPPED_TOO_MANY}",
            "info",
            "Far more steps are clipped than the policy implies.",
            f"{where}: {{{{ $value | humanizePercentage }}}} of the steps that the policy is expected to leave alone "
            "are clipped. The norm outruns the policy: lower the learning rate, or loosen the policy.",
            hold="15m",
        ),
        Alert(
            "GradwatchClipNormDrift",
            # a clip norm that comes up to the usual norm, as after a fall of the learning rate, follows nothing
            f"{clip_norm} < Inf\nand {clip_norm} > 10 * ({clip_norm} offset 1h)\n"
            f"and {clip_norm} > ignoring (quantile) 10 * ({usual} offset 1h)\n"
            f"and time() - {series('gradwatch_run_start_timestamp_seconds')} > 60 * 60",
            "warning",
            "The clip norm has grown tenfold within an hour.",
            f'{where}: the clip norm is {{{{ $value | printf "%.3g" }}}}, more than ten times what it was an hour ago. '
            "The policy follows the norm upward and protects less and less.",
            hold="5m",
        ),
        Alert(
            "GradwatchTrainingStalled",
            f"(time() - {series('gradwatch_last_step_timestamp_seconds')} > {STALL_SECONDS // 60} * 60)\n"
            f"and {_running()}",
            "critical",
            "A training that is under way makes no steps.",
            f"{where}: no step for {{{{ $value | humanizeDuration }}}}. Look for a hung input pipeline, a lost "
            "worker or a deadlock.",
            hold="1m",
        ),
        Alert(
            "GradwatchTargetDown",
            # only what has answered before is missed: a target may be written down for a job that nobody started
            f"{series('up', NOT_EXPECTED)} == 0\n"
            f"and on (job, instance) present_over_time({series('gradwatch_build_info')}[1d])\n"
            f"unless on (job, instance) ({ended})",
            "warning",
            "Prometheus cannot reach a training.",
            "{{ $labels.instance }} ({{ or $labels.run $labels.job }}) answered before and has not answered for five "
            "minutes: the process has crashed, was killed or hangs, or its host cannot be reached.",
            hold="5m",
            of_run=False,
        ),
        Alert(
            "GradwatchOverheadHigh",
            f"{OVERHEAD} > 0.05",
            "info",
            "gradwatch takes more than 5 % of the training thread.",
            f"{where}: {{{{ $value | humanizePercentage }}}} of the training thread's time goes to gradwatch. The "
            "steps are very short, or eager: wrap the step in tf.function.",
            hold="15m",
        ),
        Alert(
            "GradwatchNotificationsFailing",
            _failures("gradwatch_notifications_total", "channel", 'outcome="failed"'),
            "warning",
            "gradwatch cannot deliver its own messages.",
            "{{ $labels.instance }}: messages over {{ $labels.channel }} failed in the last 15 minutes. Try the "
            "address with `gradwatch notify test`.",
            of_run=False,
        ),
        Alert(
            "GradwatchInternalErrors",
            _failures("gradwatch_internal_errors_total", "component")
            + "\nor\n"
            + _failures("gradwatch_scrape_errors_total", "component", 'component="exposition"'),
            "warning",
            "gradwatch itself has failed somewhere; training goes on.",
            "{{ $labels.instance }}: {{ $labels.component }} failed in the last 15 minutes. The training's log has "
            "the cause, once, by the logger gradwatch.",
            of_run=False,
        ),
        Alert(
            "GradwatchLossScaleCollapsed",
            f"{series('gradwatch_loss_scale')} < 1\nand {_running()}",
            "warning",
            "The loss scale has collapsed.",
            f'{where}: the loss scale is {{{{ $value | printf "%.3g" }}}}. Gradients are non-finite at any scale, or '
            "float16 cannot hold them: find the first NaN, or train in bfloat16.",
            hold="5m",
        ),
    ]
