"""Meter: what a server counts, for Prometheus.

Counting is adding to numbers of this process, as it happens with each packet. Where a server has
several processes, each writes its counts once a second into a file of its own in a folder that they
share; whoever is asked adds up all files. So what a process that died had counted is still there.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
from msgspec import Struct

log = logging.getLogger(__name__)

# Upper ends, in seconds.
STEP_SECONDS = (
    0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.12, 0.16, 0.25, 0.5, 1.0, 2.5, 5.0
)  # fmt: skip
WRITE_SECONDS = 1.0
# A file that was not written for so long is of a process that is gone.
SILENT_SECONDS = 5.0
ENDING = ".counts"

Labels: TypeAlias = tuple[str, ...]


class Histogram(Struct, array_like=True):
    """Durations.

    Attributes:
        buckets: How many were at most as long as each of STEP_SECONDS, and longer than the one
            before; then those that were longer than all.
    """

    buckets: list[int] = msgspec.field(default_factory=lambda: [0] * (len(STEP_SECONDS) + 1))
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        self.buckets[bisect_left(STEP_SECONDS, seconds)] += 1
        self.seconds += seconds

    def merge(self, other: Histogram) -> None:
        self.buckets = [a + b for a, b in zip(self.buckets, other.buckets, strict=True)]
        self.seconds += other.seconds


class Counts(Struct):
    """What one process counted, or several.

    Attributes:
        counters: Of each name, by its labels, see COUNTERS.
        gauges: What is so now, of processes that live.
        histograms: As `counters`.
    """

    counters: dict[str, list[tuple[Labels, float]]]
    gauges: dict[str, list[tuple[Labels, float]]]
    histograms: dict[str, list[tuple[Labels, Histogram]]]


# By name, what it says and its labels. None of these comes from a client.
COUNTERS = {
    "sessions_opened": ("Streams that were opened.", ("model", "direction")),
    "sessions_ended": ("Streams that ended.", ("model", "direction", "reason")),
    "refusals": ("Requests and streams that were refused.", ("reason",)),
    "resumes": ("Streams that went on after a disconnection.", ("source",)),
    "dropped_packets": ("Packets that a policy dropped, of input or output.", ("reason",)),
    "bytes": ("Bytes that came in or went out.", ("direction",)),
    "steps_late": ("Packets that took longer to their codes than they last.", ("model",)),
    "http_requests": ("Requests that were answered.", ("method", "path", "status")),
}
GAUGES = {"sessions": ("Streams that are open, detached ones too.", ("model", "direction"))}
HISTOGRAMS = {
    "queue_seconds": ("How long packets of input waited before they were taken.", ()),
    "step_seconds": ("From a packet's coming to its codes.", ("model",)),
}


class Meter:
    """Counts of one I/O process.

    Args:
        folder: Which the server's processes share, each with a name of its own; "" for none.
    """

    def __init__(self, folder: str = "", name: str = "") -> None:
        self._counters: dict[str, Counter[Labels]] = {each: Counter() for each in COUNTERS}
        self._gauges: dict[str, Counter[Labels]] = {each: Counter() for each in GAUGES}
        self._histograms: dict[str, dict[Labels, Histogram]] = {each: {} for each in HISTOGRAMS}
        self._queue = self._histogram("queue_seconds", ())
        self._path: Path | None = None
        if folder:
            # A process that comes after another one does not overwrite what that had counted.
            unique = f"{name or 'process'}-{os.getpid()}-{time.time_ns()}"
            self._path = Path(folder) / f"{unique}{ENDING}"

    def opened(self, model: str, direction: str) -> None:
        """A new stream."""
        self._counters["sessions_opened"][model, direction] += 1
        self._gauges["sessions"][model, direction] += 1

    def came_back(self, model: str, direction: str) -> None:
        """A stream that another process had opened."""
        self._gauges["sessions"][model, direction] += 1

    def ended(self, model: str, direction: str, why: str) -> None:
        """A stream is gone: closed, expired, failed, ..."""
        self._counters["sessions_ended"][model, direction, why] += 1
        self._gauges["sessions"][model, direction] -= 1

    def refused(self, why: str) -> None:
        """A request or a stream was refused: full, key, origin, ending, ..."""
        self._counters["refusals"][why,] += 1

    def resumed(self, source: str) -> None:
        """A stream goes on: from "memory" or "store"."""
        self._counters["resumes"][source,] += 1

    def dropped(self, where: str, packets: int) -> None:
        """Packets that a policy dropped, of "input" or "output"."""
        self._counters["dropped_packets"][where,] += packets

    def moved(self, direction: str, nbytes: int) -> None:
        """Bytes that came "in" or went "out"."""
        self._counters["bytes"][direction,] += nbytes

    def waited(self, seconds: float) -> None:
        """How long a packet of input waited before it was taken."""
        self._queue.add(seconds)

    def stepped(self, model: str, seconds: float, late: bool) -> None:
        """How long a packet took from its coming to its codes; `late` if longer than it lasts."""
        found = self._histograms["step_seconds"].get((model,))
        (found or self._histogram("step_seconds", (model,))).add(seconds)
        if late:
            self._counters["steps_late"][model,] += 1

    def answered(self, method: str, path: str, status: int) -> None:
        """A request was answered; `path` is a route's own, not the client's."""
        self._counters["http_requests"][method, path, str(status)] += 1

    def counts(self) -> Counts:
        """Of this process."""
        return Counts(
            {name: list(counts.items()) for name, counts in self._counters.items()},
            {name: list(counts.items()) for name, counts in self._gauges.items()},
            {name: list(found.items()) for name, found in self._histograms.items()},
        )

    async def keep(self) -> None:
        """Leaves the counts for the others, every second, until it is cancelled."""
        while True:
            await asyncio.to_thread(self.write)
            await asyncio.sleep(WRITE_SECONDS)

    def write(self) -> None:
        """Leaves the counts as they are now."""
        if self._path is None:
            return
        part = self._path.with_suffix(".part")
        try:
            part.write_bytes(msgspec.msgpack.encode(self.counts()))
            part.replace(self._path)
        except OSError as error:  # a full disk is no reason to end streams
            log.warning("what was counted could not be written: %s", error)

    def leave(self) -> None:
        """Writes them for the last time: nothing is so now of this process."""
        for gauges in self._gauges.values():
            gauges.clear()
        self.write()

    def gathered(self) -> Counts:
        """Of all processes, also those that are gone."""
        counts = [self.counts(), *self._others()]
        return Counts(
            {name: _added(c.counters.get(name, []) for c in counts) for name in COUNTERS},
            {name: _added(c.gauges.get(name, []) for c in counts) for name in GAUGES},
            {name: _merged(c.histograms.get(name, []) for c in counts) for name in HISTOGRAMS},
        )

    def _others(self) -> Iterator[Counts]:
        if self._path is None:
            return
        for path in sorted(self._path.parent.glob(f"*{ENDING}")):
            if path == self._path:
                continue
            try:
                counts = _counts.decode(path.read_bytes())
                silent_seconds = time.time() - path.stat().st_mtime
            except (OSError, msgspec.DecodeError) as error:
                log.warning("counts of another process cannot be read: %s", error)
                continue
            if silent_seconds > SILENT_SECONDS:
                counts.gauges = {}
            yield counts

    def _histogram(self, name: str, labels: Labels) -> Histogram:
        return self._histograms[name].setdefault(labels, Histogram())


_counts = msgspec.msgpack.Decoder(Counts)


def _added(found: Iterable[list[tuple[Labels, float]]]) -> list[tuple[Labels, float]]:
    sums: Counter[Any] = Counter()
    for counts in found:
        sums.update(dict(counts))
    return list(sums.items())


def _merged(found: Iterable[list[tuple[Labels, Histogram]]]) -> list[tuple[Labels, Histogram]]:
    sums: dict[Labels, Histogram] = {}
    for histograms in found:
        for labels, histogram in histograms:
            sums.setdefault(labels, Histogram()).merge(histogram)
    return list(sums.items())
