"""EngineStatistics: what an engine has done so far, and Meter, which counts it."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from streamenc.latency import Latency, LatencyHistogram

if TYPE_CHECKING:  # what is told of an engine in another process needs no torch
    from streamenc.models.model import Model


class WithoutGraphs(NamedTuple):
    """Why a model on a GPU runs operator by operator.

    Attributes:
        model: Its name, and what it makes of what: "mimi, audio to codes".
        part: "step", or "after", the quantiser.
    """

    model: str
    part: str
    reason: str


# Upper ends of the buckets that ticks of a model are counted in.
TICK_SECONDS = (
    0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56
)  # fmt: skip


class Ticks(NamedTuple):
    """Runs of one model on about so many lanes.

    Attributes:
        model: As in WithoutGraphs.
        lanes: At most so many, and more than half: a power of two.
        seconds: All together.
        buckets: How many took at most as long as each of TICK_SECONDS, and longer than the one
            before; then those that took longer than all.
    """

    model: str
    lanes: int
    seconds: float
    buckets: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class EngineStatistics:
    """All since the engine was started.

    Attributes:
        sessions: Open now.
        opened: Opened in all.
        refused: Not opened, as the engine was full.
        timed_out: Closed by the engine, as nobody called them.
        dropped: Never closed, and found by the garbage collector.
        ticks: Runs of a model, of one session or many.
        hops: Steps of single sessions in them.
        lanes: Lanes that were computed for them; idle ones among them are the price of batches.
        tick: How long a tick takes: on a GPU by its own events, from the first copy to the last; on
            a CPU by the clock.
        by_events: How many ticks events have measured.
        wait: From when a step could run to its tick's beginning.
        answer: From a session's call to the end of its last step; of calls that completed a step.
        late: Of these, how many took longer than the sound of their steps lasts.
        without_graphs: Models on a GPU that run without CUDA graphs now, or did when they last ran.
        by_model: The ticks, by model and lanes.
    """

    sessions: int
    opened: int
    refused: int
    timed_out: int
    dropped: int
    ticks: int
    hops: int
    lanes: int
    by_events: int
    tick: Latency
    wait: Latency
    answer: Latency
    late: int
    without_graphs: tuple[WithoutGraphs, ...]
    by_model: tuple[Ticks, ...] = ()

    @property
    def hops_per_tick(self) -> float:
        return self.hops / self.ticks if self.ticks else 0.0

    @property
    def lanes_per_tick(self) -> float:
        return self.lanes / self.ticks if self.ticks else 0.0

    def __str__(self) -> str:
        """A few lines; times are p50 / p99 / max in milliseconds."""
        ways = (f"{self.timed_out} timed out", f"{self.dropped} dropped")
        return "\n".join(
            [
                f"sessions  {self.sessions} open of {self.opened}, {', '.join(ways)}; "
                f"{self.refused} refused",
                f"ticks     {self.ticks}, of {self.hops_per_tick:.1f} hops on "
                f"{self.lanes_per_tick:.1f} lanes; {self.tick} ms",
                f"wait      {self.wait} ms",
                f"answer    {self.answer} ms; {self.late} of {self.answer.count} late",
                *(
                    f"no graphs {model}, {part}: {reason}"
                    for model, part, reason in self.without_graphs
                ),
            ]
        )


# So many durations are counted at once: arrays that are long are worth their while.
MANY = 1024


class Meter:
    """Counts for EngineStatistics."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # of durations and what they are counted in
        self.opened = self.refused = self.timed_out = self.dropped = 0
        self.ticks = self.hops = self.lanes = self.by_events = self.late = 0
        self._tick, self._wait, self._answer = (LatencyHistogram() for _ in range(3))
        self._waits_ns: list[int] = []
        self._answers_ns: list[int] = []
        # Of each model by its name and identity, as two may have one name.
        self._reasons: dict[tuple[str, int], dict[str, str]] = {}
        # By label and lanes: nanoseconds, and buckets.
        self._ticks: dict[tuple[str, int], tuple[list[int], list[int]]] = {}

    def ran(
        self, model: Model, duration_ns: int, hops: int, lanes: int, *, by_events: bool = False
    ) -> None:
        """Counts a tick."""
        key = _label(model), 1 << (lanes - 1).bit_length() if lanes else 0
        ticks = self._ticks.get(key)
        if ticks is None:
            ticks = self._ticks.setdefault(key, ([0], [0] * (len(TICK_SECONDS) + 1)))
        ticks[0][0] += duration_ns
        ticks[1][bisect_left(TICK_SECONDS, duration_ns / 1e9)] += 1
        self.ticks += 1
        self.hops += hops
        self.lanes += lanes
        self.by_events += by_events
        self._tick.record(duration_ns)

    def waited(self, durations_ns: Sequence[int]) -> None:
        """Counts what steps waited for their tick."""
        with self._lock:
            self._waits_ns += durations_ns
            if len(self._waits_ns) >= MANY:
                self._count()

    def answered(self, durations_ns: Sequence[int], late: int) -> None:
        """Counts calls, of which so many took longer than the sound of their steps lasts."""
        with self._lock:
            self._answers_ns += durations_ns
            if len(self._answers_ns) >= MANY:
                self._count()
        self.late += late

    def _count(self) -> None:
        """Counts the durations that wait for it."""
        self._wait.record_all(self._waits_ns)
        self._answer.record_all(self._answers_ns)
        self._waits_ns, self._answers_ns = [], []

    def runs_graphs(self, model: Model, reasons: dict[str, str]) -> None:
        """Takes note of a model that runs by CUDA graphs but for `reasons`, which may change."""
        self._reasons[_label(model), id(model)] = reasons

    def statistics(self, sessions: int) -> EngineStatistics:
        # The worker may write meanwhile: each is copied before it is gone through.
        without_graphs = tuple(
            WithoutGraphs(label, part, reason)
            for (label, _), reasons in self._reasons.copy().items()
            for part, reason in reasons.copy().items()
        )
        with self._lock:
            self._count()
            wait, answer = self._wait.summary(), self._answer.summary()
        return EngineStatistics(
            sessions=sessions,
            opened=self.opened,
            refused=self.refused,
            timed_out=self.timed_out,
            dropped=self.dropped,
            ticks=self.ticks,
            hops=self.hops,
            lanes=self.lanes,
            by_events=self.by_events,
            tick=self._tick.summary(),
            wait=wait,
            answer=answer,
            late=self.late,
            without_graphs=without_graphs,
            by_model=tuple(
                Ticks(label, lanes, total_ns[0] / 1e9, tuple(buckets))
                for (label, lanes), (total_ns, buckets) in self._ticks.copy().items()
            ),
        )


def _label(model: Model) -> str:
    spec = model.spec
    return f"{spec.name}, {spec.input.kind} to {spec.output.kind}"
