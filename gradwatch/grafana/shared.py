"""What both dashboards have in common."""

from __future__ import annotations

from gradwatch.grafana.panels import (
    BLUE,
    GREEN,
    GREY,
    RED,
    SOURCE,
    YELLOW,
    Json,
    mapping,
    steps,
)
from gradwatch.grafana.queries import chosen, series

HEALTH_UID = "gradwatch-gradient-health"
FLEET_UID = "gradwatch-gradient-fleet"

#: Legend of a run: two processes may have a monitor of one name.
WHO = "{{monitor}} {{instance}}"

#: Said by a panel that is empty because no step was made.
NO_STEPS = "No step was made in this time range, or the endpoint was not scraped."

STATES = mapping({0: ("no run", GREY), 1: ("healthy", GREEN), 2: ("warming up", BLUE), 3: ("ANOMALY", RED)})

#: Shares of steps that are a matter of taste up to a point, and of concern beyond it.
SHARE_STEPS = steps((None, GREEN), (0.01, YELLOW), (0.05, RED))


def _variable(name: str, query: str, description: str) -> Json:
    """A choice at the top of the dashboard: several values, or all."""
    return {
        "type": "query",
        "name": name,
        "label": name.title(),
        "description": description,
        "datasource": SOURCE,
        "query": query,
        "refresh": 2,  # when the time range changes: yesterday's runs can be chosen too
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".+",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "options": [],
        "regex": "",
        "hide": 0,
        "skipUrlSync": False,
    }


def _source_variable() -> Json:
    """The data source as a choice: a fixed one fails where the dashboard is provisioned."""
    return {
        "type": "datasource",
        "name": "datasource",
        "label": "Data source",
        "description": "The Prometheus that scrapes the trainings.",
        "query": "prometheus",
        "refresh": 1,
        "multi": False,
        "includeAll": False,
        "current": {},
        "options": [],
        "regex": "",
        "hide": 0,
        "skipUrlSync": False,
    }


def variables() -> list[Json]:
    """Data source, job, instance, monitor; each offers what fits the ones before it."""
    build, run = "gradwatch_build_info", "gradwatch_steps_total"
    by_job = series(build, 'job=~"$job"')
    by_both = series(run, 'job=~"$job"', 'instance=~"$instance"')
    return [
        _source_variable(),
        _variable("job", f"label_values({build}, job)", "Prometheus' name for a group of trainings."),
        _variable("instance", f"label_values({by_job}, instance)", "The process: host and port of its endpoint."),
        _variable("monitor", f"label_values({by_both}, monitor)", "The monitor's name, as gradwatch.watch got it."),
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


def run_link() -> str:
    """From a row of a table with the columns Job, Instance, Monitor and Started: the health of this run, from its
    start on, so that a run of two minutes fills the axis."""
    chosen_run = "".join(
        f"&var-{name.lower()}=${{__data.fields.{name}:percentencode}}" for name in ("Job", "Instance", "Monitor")
    )
    return (
        f"/d/{HEALTH_UID}?var-datasource=${{datasource:percentencode}}{chosen_run}"
        "&from=${__data.fields.Started}&to=now"
    )
