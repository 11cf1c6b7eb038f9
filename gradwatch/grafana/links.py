"""Where the links of an alert lead: the runbooks, and the dashboard of the run. Both can be opened from a message."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import metadata
from urllib.parse import urlsplit

from gradwatch.errors import DISTRIBUTION, ConfigError
from gradwatch.exporters.metrics import version_of
from gradwatch.grafana.shared import HEALTH_UID

#: Of the stack that is exported, and of the documentation as `make docs` builds it, on this host.
LOCAL_GRAFANA = "http://127.0.0.1:3000"
LOCAL_RUNBOOKS = "http://127.0.0.1:8000/runbooks/"

#: What the dashboard shows of the time around an alert: opened in the morning after, it still shows the night.
BEFORE_SECONDS, AFTER_SECONDS = 3600, 1800


@dataclass(frozen=True)
class Links:
    """Absolute addresses, as the people who are told can reach them.

    Attributes:
      runbooks: of docs/runbooks.md.
      grafana: of Grafana, without a slash at its end.
    """

    runbooks: str = LOCAL_RUNBOOKS
    grafana: str = LOCAL_GRAFANA

    def __post_init__(self) -> None:
        for name in ("runbooks", "grafana"):
            address = getattr(self, name)
            parts = urlsplit(address)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ConfigError(
                    f"{name} must be an absolute http(s) address, which a message can link to, got {address!r}; "
                    f"such as https://wiki.example.org/{name}"
                )
        object.__setattr__(self, "grafana", self.grafana.rstrip("/"))

    def dashboard(self, *, of_run: bool) -> str:
        """The dashboard of an alert's run around the time at which it is told, with Prometheus' templates."""
        chosen = ["job", "instance", *(["monitor"] if of_run else [])]
        words = [f"var-{label}={{{{ $labels.{label} | urlquery }}}}" for label in chosen]
        for name, seconds in (("from", f"- {BEFORE_SECONDS}"), ("to", f"+ {AFTER_SECONDS}")):
            moment = f'query "1000 * (time() {seconds})" | first | value | printf "%.0f"'
            words.append(f"{name}={{{{ {moment} }}}}")
        return f"{self.grafana}/d/{HEALTH_UID}?" + "&".join(words)


def default_runbooks() -> str:
    """The runbooks of this version: in its repository, where that is known, else as `make docs` builds them here.

    The repository is that of the environment variable GRADWATCH_REPOSITORY, else that of the installed distribution.
    """
    repository = os.environ.get("GRADWATCH_REPOSITORY", "") or _published()
    return (
        f"{repository.rstrip('/')}/blob/v{version_of('gradwatch')}/docs/runbooks.md" if repository else LOCAL_RUNBOOKS
    )


def _published() -> str:
    try:
        urls = metadata.metadata(DISTRIBUTION).get_all("Project-URL") or []
    except metadata.PackageNotFoundError:
        return ""
    named = dict(url.split(", ", 1) for url in urls if ", " in url)
    return str(named.get("Source", ""))
