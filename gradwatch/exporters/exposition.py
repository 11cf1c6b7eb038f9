"""The newest readings in Prometheus' format. With `push`, the only module that knows `prometheus_client`."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    SummaryMetricFamily,
)
from prometheus_client.utils import floatToGoString

from gradwatch.errors import ConfigError
from gradwatch.exporters.metrics import METRICS, Buckets, Metric
from gradwatch.reading.health import Health, health
from gradwatch.reading.reader import Reader, reader
from gradwatch.reading.reading import Reading
from gradwatch.reading.text import clean

#: No more layer series than this for one monitor, whatever is asked for.
MOST_LAYERS = 200

_CACHE_SECONDS = 1.0

#: A WSGI application.
App = Callable[[Mapping[str, Any], Callable[..., Any]], Iterable[bytes]]


class Collector:
    """The catalogue over the newest readings, for a `prometheus_client` registry.

    Args:
      layers: layer series for each monitor, spread evenly over its variables in the model's order; the set
        is fixed when the first layers are seen. 0: none. At most `MOST_LAYERS`.
      labels: further labels of every series.
      departed: also show monitors that are gone, as they were last (for `push`).
      ended: show every run as over.
    """

    def __init__(
        self,
        layers: int = 0,
        labels: Mapping[str, str] | None = None,
        *,
        departed: bool = False,
        ended: bool = False,
        source: Reader = reader,
        process: Health = health,
    ) -> None:
        if not 0 <= layers <= MOST_LAYERS:
            raise ConfigError(
                f"layers must be between 0 and {MOST_LAYERS} (each is a time series per monitor), got {layers}"
            )
        self._layers = layers
        self._labels = dict(labels or {})
        self._departed = departed
        self._ended = ended
        self._reader = source
        self._health = process
        self._chosen: dict[tuple[str, str], frozenset[str]] = {}

    def describe(self) -> list[Any]:
        """Nothing: names are unique in the table, and a collection just to learn them would be waste."""
        return []

    def collect(self) -> Iterator[Any]:
        """One family for each metric of the table. A value that cannot be read is left out and counted."""
        readings = self._reader.readings(departed=self._departed)
        if self._ended:
            readings = [replace(reading, active=False) for reading in readings]
        self._choose_layers(readings)
        common = tuple(self._labels.values())
        for metric in METRICS:
            family = _family(metric, tuple(self._labels))
            if metric.scope == "process":
                self._add(family, metric, common, self._health)
            else:
                for reading in readings:
                    self._add(family, metric, (*common, reading.name), reading)
            yield family

    def _add(self, family: Any, metric: Metric, labels: tuple[str, ...], source: Any) -> None:
        try:
            samples = metric.read(source)
            if isinstance(samples, Buckets):
                family.add_metric(labels, *_buckets(samples))
                return
            rows = list(samples)
            if "layer" in metric.labels:
                chosen = self._chosen.get((source.name, source.run_id), frozenset())
                rows = [((clean(values[0]),), value) for values, value in rows if values[0] in chosen]
            for values, value in rows:
                if metric.type == "info":
                    family.add_metric(labels, dict(zip(metric.labels, values)))
                elif metric.type == "summary":  # its own add_metric knows no quantiles
                    names = (*self._labels, "monitor", *metric.labels)
                    family.add_sample(metric.name, dict(zip(names, labels + values)), value)
                else:
                    family.add_metric(labels + values, value)
        except Exception:
            health.scrape_failed("exposition", f"metric {metric.name} cannot be read", exc_info=True)

    def _choose_layers(self, readings: list[Reading]) -> None:
        if not self._layers:
            return
        keys = {(reading.name, reading.run_id) for reading in readings}
        chosen = {key: names for key, names in self._chosen.items() if key in keys}
        for reading in readings:
            names = list(reading.snapshot.layer_norms)
            if names and (reading.name, reading.run_id) not in chosen:
                chosen[reading.name, reading.run_id] = frozenset(_spread(names, self._layers))
        self._chosen = chosen


def _spread(names: list[str], count: int) -> list[str]:
    """`count` of the names at even distances, the first and the last among them."""
    if count >= len(names):
        return names
    if count == 1:
        return names[:1]
    return [names[round(i * (len(names) - 1) / (count - 1))] for i in range(count)]


_FAMILIES: dict[str, Any] = {
    "counter": CounterMetricFamily,
    "gauge": GaugeMetricFamily,
    "histogram": HistogramMetricFamily,
    "summary": SummaryMetricFamily,
}


def _family(metric: Metric, common: tuple[str, ...]) -> Any:
    scope = (*common, "monitor") if metric.scope == "monitor" else common
    if metric.type == "info":
        return InfoMetricFamily(metric.name.removesuffix("_info"), metric.help, labels=scope)
    return _FAMILIES[metric.type](metric.name, metric.help, labels=scope + metric.labels, unit=metric.unit)


def _buckets(b: Buckets) -> tuple[list[tuple[str, float]], float]:
    if len(b.counts) != len(b.bounds) + 1:
        raise ValueError(f"{len(b.bounds)} bounds need {len(b.bounds) + 1} counts, got {len(b.counts)}")
    bounds = [floatToGoString(bound) for bound in (*b.bounds, math.inf)]  # type: ignore[no-untyped-call]
    return list(zip(bounds, map(float, b.counts))), b.total


def registry(
    layers: int = 0, labels: Mapping[str, str] | None = None, *, departed: bool = False, ended: bool = False
) -> CollectorRegistry:
    """A fresh registry with nothing but gradwatch's metrics; arguments as for `Collector`."""
    fresh = CollectorRegistry(auto_describe=False)
    fresh.register(Collector(layers, labels, departed=departed, ended=ended))
    return fresh


def metrics_app(layers: int = 0, labels: Mapping[str, str] | None = None) -> App:
    """The exposition as a WSGI app; arguments as for `Collector`."""
    return _cached(make_wsgi_app(registry(layers, labels)))


def _cached(app: App) -> App:
    """`app`, with its answers kept until there are new readings: a storm of scrapes costs one formatting.

    At most for a second: the counters of the process are not part of the readings.
    """
    lock = threading.Lock()
    answers: dict[tuple[Any, ...], tuple[int, float, tuple[Any, ...], list[bytes]]] = {}

    def cached(environ: Mapping[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        keys = ("REQUEST_METHOD", "QUERY_STRING", "HTTP_ACCEPT", "HTTP_ACCEPT_ENCODING")
        key = tuple(environ.get(name) for name in keys)
        with lock:  # also has a storm format once
            version, now = reader.version(), time.monotonic()
            known = answers.get(key)
            if known is None or known[0] != version or now - known[1] > _CACHE_SECONDS:
                if len(answers) >= 8:
                    answers.clear()
                started: list[Any] = []
                body = list(app(environ, lambda *args: started.extend(args)))
                known = answers[key] = (version, now, tuple(started), body)
        start_response(*known[2])
        return known[3]

    return cached
