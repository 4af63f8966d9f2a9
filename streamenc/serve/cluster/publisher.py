"""Publisher: a replica's counts are told to Ray, whose exporters have those of all replicas."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

from streamenc.serve.meter import COUNTERS, GAUGES, HISTOGRAMS, STEP_SECONDS, Labels, Meter

PREFIX = "streamenc_"
UPPER_ENDS = (*map(str, STEP_SECONDS), "+Inf")

# Makes a metric of Ray's: its kind, its name, what it says, and its labels.
Make: TypeAlias = Callable[[Literal["counter", "gauge"], str, str, Labels], Any]


class Publisher:
    """Tells what has changed since it told last.

    Histograms go as counters of what was at most as long as `le`, which PromQL's
    `histogram_quantile` takes: Ray's own ones take one observation at a time.

    Args:
        meter: Of the replica.
    """

    def __init__(self, meter: Meter, make: Make | None = None) -> None:
        self._meter, self._make = meter, make or _made
        self._metrics: dict[str, Any] = {}
        self._told: dict[tuple[str, Labels], float] = {}

    def publish(self) -> None:
        counts = self._meter.counts()
        for name, (words, labels) in COUNTERS.items():
            for values, total in counts.counters[name]:
                self._count(name, words, labels, values, total)
        for name, (words, labels) in GAUGES.items():
            for values, number in counts.gauges[name]:
                gauge = self._metric("gauge", name, words, labels)
                gauge.set(number, tags=dict(zip(labels, values, strict=True)))
        for name, (words, labels) in HISTOGRAMS.items():
            for values, histogram in counts.histograms[name]:
                so_far = 0
                for upper, count in zip(UPPER_ENDS, histogram.buckets, strict=True):
                    so_far += count
                    self._count(f"{name}_bucket", words, (*labels, "le"), (*values, upper), so_far)
                self._count(f"{name}_sum", words, labels, values, histogram.seconds)

    def _count(self, name: str, words: str, labels: Labels, values: Labels, total: float) -> None:
        grown = total - self._told.get((name, values), 0)
        if grown > 0:
            self._told[name, values] = total
            counter = self._metric("counter", name, words, labels)
            counter.inc(grown, tags=dict(zip(labels, values, strict=True)))

    def _metric(
        self, kind: Literal["counter", "gauge"], name: str, words: str, labels: Labels
    ) -> Any:
        if name not in self._metrics:
            self._metrics[name] = self._make(kind, PREFIX + name, words, labels)
        return self._metrics[name]


def _made(kind: Literal["counter", "gauge"], name: str, words: str, labels: Labels) -> Any:
    from ray.serve import metrics  # these have the replica's name as a label

    metric = metrics.Counter if kind == "counter" else metrics.Gauge
    return metric(name, description=words, tag_keys=labels)
