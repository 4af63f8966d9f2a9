"""Counts in the text format that Prometheus reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from streamenc.engine.statistics import TICK_SECONDS, EngineStatistics
from streamenc.latency import Latency
from streamenc.serve.meter import COUNTERS, GAUGES, HISTOGRAMS, STEP_SECONDS, Counts

CONTENT_TYPE = CONTENT_TYPE_LATEST
PREFIX = "streamenc_"
QUANTILES = ("0.5", "0.99", "1")


def exposition(counts: Counts, engines: Sequence[EngineStatistics]) -> bytes:
    """All that a server counts, and what its engines do."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(counts, engines))
    return generate_latest(registry)


class _Collector(Collector):
    def __init__(self, counts: Counts, engines: Sequence[EngineStatistics]) -> None:
        self._counts, self._engines = counts, engines

    def collect(self) -> Iterator[Any]:
        for name, (says, labels) in COUNTERS.items():
            counter = CounterMetricFamily(PREFIX + name, says, labels=labels)
            for values, count in self._counts.counters[name]:
                counter.add_metric(values, count)
            yield counter
        for name, (says, labels) in GAUGES.items():
            gauge = GaugeMetricFamily(PREFIX + name, says, labels=labels)
            for values, count in self._counts.gauges[name]:
                gauge.add_metric(values, count)
            yield gauge
        for name, (says, labels) in HISTOGRAMS.items():
            family = HistogramMetricFamily(PREFIX + name, says, labels=labels)
            for values, histogram in self._counts.histograms[name]:
                cumulated = _cumulated(STEP_SECONDS, histogram.buckets)
                family.add_metric(values, cumulated, histogram.seconds)
            yield family
        yield from self._of_engines()

    def _of_engines(self) -> Iterator[Any]:
        for name, says in (
            ("sessions", "Sessions that are open."),
            ("opened", "Sessions that were opened."),
            ("refused", "Sessions that found no place."),
            ("timed_out", "Sessions that nobody called any more."),
            ("ticks", "Runs of a model, of one session or many."),
            ("hops", "Steps of single sessions in them."),
            ("lanes", "Lanes that were computed for them."),
            ("late", "Answers that took longer than the sound of their steps lasts."),
        ):
            kind = GaugeMetricFamily if name == "sessions" else CounterMetricFamily
            family: Any = kind(f"{PREFIX}engine_{name}", says, labels=("engine",))
            for number, engine in enumerate(self._engines):
                family.add_metric((str(number),), getattr(engine, name))
            yield family
        for name, says in (
            ("tick", "How long a run of a model takes."),
            ("wait", "From when a step could run to when it did."),
            ("answer", "From a session's call to the end of its last step."),
        ):
            gauge = GaugeMetricFamily(
                f"{PREFIX}engine_{name}_quantile_seconds", says, labels=("engine", "quantile")
            )
            for number, engine in enumerate(self._engines):
                latency: Latency = getattr(engine, name)
                values_ms = (latency.p50_ms, latency.p99_ms, latency.max_ms)
                for quantile, milliseconds in zip(QUANTILES, values_ms, strict=True):
                    gauge.add_metric((str(number), quantile), milliseconds / 1000)
            yield gauge
        histogram = HistogramMetricFamily(
            f"{PREFIX}engine_tick_seconds",
            "How long a run of a model takes, by the lanes that it had, up to so many.",
            labels=("engine", "model", "lanes"),
        )
        for number, engine in enumerate(self._engines):
            for ticks in engine.by_model:
                labels = (str(number), ticks.model, str(ticks.lanes))
                histogram.add_metric(labels, _cumulated(TICK_SECONDS, ticks.buckets), ticks.seconds)
        yield histogram


def _cumulated(ends: Sequence[float], buckets: Sequence[int]) -> list[tuple[str, float]]:
    """As Prometheus wants them: how many were at most as long as each end."""
    found: list[tuple[str, float]] = []
    total = 0
    for end, count in zip((*map(str, ends), "+Inf"), buckets, strict=True):
        total += count
        found.append((end, total))
    return found
