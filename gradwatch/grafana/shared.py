"""What both dashboards have in common."""

from __future__ import annotations

from gradwatch.grafana.panels import (
    BLUE,
    GREEN,
    GREY,
    RED,
    YELLOW,
    Json,
    mapping,
    source_variable,
    steps,
    variable,
)
from gradwatch.grafana.queries import chosen, series

HEALTH_UID = "gradwatch-gradient-health"
FLEET_UID = "gradwatch-gradient-fleet"

#: Said by a panel that is empty because no step was made.
NO_STEPS = "No step was made in this time range, or the endpoint was not scraped."

STATES = mapping({0: ("no run", GREY), 1: ("healthy", GREEN), 2: ("warming up", BLUE), 3: ("ANOMALY", RED)})

#: Shares of steps that are a matter of taste up to a point, and of concern beyond it.
SHARE_STEPS = steps((None, GREEN), (0.01, YELLOW), (0.05, RED))


def variables() -> list[Json]:
    """Data source, job, instance, monitor; each offers what fits the ones before it."""
    build, run = "gradwatch_build_info", "gradwatch_steps_total"
    by_job = series(build, 'job=~"$job"')
    by_both = series(run, 'job=~"$job"', 'instance=~"$instance"')
    return [
        source_variable(),
        variable("job", f"label_values({build}, job)", "Prometheus' name for a group of trainings."),
        variable("instance", f"label_values({by_job}, instance)", "The process: host and port of its endpoint."),
        variable("monitor", f"label_values({by_both}, monitor)", "The monitor's name, as gradwatch.watch got it."),
    ]


def state() -> str:
    """0 no run, 1 healthy, 2 warming up, 3 an anomaly is under way; the worst one wins."""
    active = chosen("gradwatch_run_active")
    warm = chosen("gradwatch_warmup_active")
    anomaly = f"max without (kind) ({chosen('gradwatch_anomaly_active')})"
    return f"{active} * (1 + clamp_max({warm} + 2 * {anomaly}, 2))"


def step_age() -> str:
    """Seconds since the last step; nothing before the first one."""
    return f"time() - ({chosen('gradwatch_last_step_timestamp_seconds')} > 0)"
