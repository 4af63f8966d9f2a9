"""Latency histograms of bounded size, for the graph and for the engine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


class LatencyHistogram:
    """Durations in nanoseconds, in buckets that grow by 4 %: percentiles err by 2 % at most.

    That holds from 1 us to 1000 s; what is shorter or longer goes into the first or last bucket.
    Count, mean, least and greatest are exact. It takes 4 KB, however much it counts.
    """

    _FIRST_NS = 1_000
    _LOG_GROWTH = math.log(1.04)
    _WORTH_ARRAYS = 32
    _BUCKETS = 2 + math.ceil(math.log(1e9) / _LOG_GROWTH)

    def __init__(self) -> None:
        self._counts = [0] * self._BUCKETS
        self.count = 0
        self.total_ns = 0
        self.min_ns = 0
        self.max_ns = 0

    def record(self, duration_ns: int) -> None:
        """Counts one duration; a negative one (a clock set back) counts as 0."""
        duration_ns = max(0, duration_ns)
        bucket = 0
        if duration_ns >= self._FIRST_NS:
            bucket = 1 + int(math.log(duration_ns / self._FIRST_NS) / self._LOG_GROWTH)
        self._counts[min(bucket, self._BUCKETS - 1)] += 1
        self.min_ns = min(self.min_ns, duration_ns) if self.count else duration_ns
        self.max_ns = max(self.max_ns, duration_ns)
        self.total_ns += duration_ns
        self.count += 1

    def record_all(self, durations_ns: Sequence[int]) -> None:
        """Counts several; many take little longer than one."""
        if len(durations_ns) < self._WORTH_ARRAYS:
            for duration_ns in durations_ns:
                self.record(duration_ns)
            return
        import numpy as np  # `import streamenc` goes without it

        some = np.maximum(np.asarray(durations_ns, np.int64), 0)
        above = np.maximum(some, self._FIRST_NS) / self._FIRST_NS
        buckets = np.where(
            some < self._FIRST_NS, 0, 1 + (np.log(above) / self._LOG_GROWTH).astype(np.int64)
        )
        counts = np.bincount(np.minimum(buckets, self._BUCKETS - 1))
        for bucket in np.flatnonzero(counts).tolist():
            self._counts[bucket] += int(counts[bucket])
        least, greatest = int(some.min()), int(some.max())
        self.min_ns = min(self.min_ns, least) if self.count else least
        self.max_ns = max(self.max_ns, greatest)
        self.total_ns += int(some.sum())
        self.count += len(some)

    def merge(self, other: LatencyHistogram) -> None:
        """Counts all that `other` has counted."""
        if not other.count:
            return
        self._counts = [a + b for a, b in zip(self._counts, other._counts, strict=True)]
        self.min_ns = min(self.min_ns, other.min_ns) if self.count else other.min_ns
        self.max_ns = max(self.max_ns, other.max_ns)
        self.total_ns += other.total_ns
        self.count += other.count

    def percentile_ns(self, percent: float) -> int:
        """What `percent` of all counted durations do not exceed; 0 where none was counted."""
        rank = math.ceil(self.count * percent / 100)
        if rank >= self.count:
            return self.max_ns
        seen = 0
        for bucket, count in enumerate(self._counts):
            seen += count
            if count and seen >= rank:
                # The geometric middle of the bucket errs the same either way.
                middle = self._FIRST_NS * math.exp((bucket - 0.5) * self._LOG_GROWTH)
                return min(max(round(middle), self.min_ns), self.max_ns)
        raise AssertionError("the buckets hold fewer than were counted")

    def summary(self) -> Latency:
        return Latency(
            count=self.count,
            mean_ms=self.total_ns / self.count / 1e6 if self.count else 0.0,
            p50_ms=self.percentile_ns(50) / 1e6,
            p99_ms=self.percentile_ns(99) / 1e6,
            max_ms=self.max_ns / 1e6,
        )


@dataclass(frozen=True, slots=True)
class Latency:
    """A histogram in five numbers, times in milliseconds."""

    count: int
    mean_ms: float
    p50_ms: float
    p99_ms: float
    max_ms: float

    def __str__(self) -> str:
        if not self.count:
            return "-"
        return " / ".join(three_digits(ms) for ms in (self.p50_ms, self.p99_ms, self.max_ms))


def three_digits(value: float) -> str:
    """About three significant digits, never an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}" if value >= 0.001 else f"{value:.3f}"
