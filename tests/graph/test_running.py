"""Accounting over whole graphs: whatever the timing and the policies, every frame is somewhere."""

from __future__ import annotations

import random
from dataclasses import dataclass

import anyio
from hypothesis import given, settings
from hypothesis import strategies as st

from streamenc.graph.clock import VirtualClock
from streamenc.graph.frames import Frame
from streamenc.graph.graph import Graph
from streamenc.graph.report import GraphReport
from tests.support.pipes import Collect, Held, Ticks
from tests.support.profile import examples

POLICIES = ("block", "drop_oldest", "latest")


@dataclass
class Edge:
    policy: str
    capacity: int
    max_age_ms: float | None

    @property
    def options(self) -> dict[str, object]:
        return vars(self)


edge = st.builds(
    Edge, st.sampled_from(POLICIES), st.integers(1, 5), st.sampled_from([None, None, 25.0, 80.0])
)


def check_flows(report: GraphReport) -> None:
    """What goes into each edge comes out, was dropped, or is on its way."""
    for statistics in report.edges:
        assert statistics.sent == statistics.received + statistics.dropped + statistics.in_flight
        assert statistics.in_flight <= statistics.high_water <= statistics.capacity
        before, after = statistics.name.split(" -> ")
        # In the middle of a tee some branches already have the frame that is in hand.
        assert 0 <= statistics.sent - report[before].frames_out <= report[before].in_flight
        assert report[after].frames_in >= statistics.received


class Auditor(Collect):
    """Checks the accounts of the whole running graph at each write."""

    graph: Graph

    async def write(self, frame: Frame) -> None:
        check_flows(self.graph.report())
        await super().write(frame)


def check_received(got: list[Frame]) -> None:
    """In order within each track, and each loss is followed by a flagged frame."""
    for track in {frame.track for frame in got}:
        last = -1
        for frame in (frame for frame in got if frame.track == track):
            assert frame.seq > last
            assert frame.discontinuity or frame.seq == last + 1
            last = frame.seq


@settings(max_examples=examples(40, fast=10), deadline=None)
@given(
    seed=st.integers(0, 2**32),
    sources=st.integers(1, 3),
    edges=st.lists(edge, min_size=8, max_size=8),
    blocking=st.booleans(),
    stop_after=st.none() | st.integers(1, 30),
    max_wait_ms=st.sampled_from([0, 30, 10_000]),
)
def test_every_frame_is_delivered_dropped_or_on_its_way(
    seed: int,
    sources: int,
    edges: list[Edge],
    blocking: bool,
    stop_after: int | None,
    max_wait_ms: float,
) -> None:
    dice = random.Random(seed)

    def pause(most_ms: int) -> list[int]:
        return [dice.choice((0, 0, dice.randint(0, most_ms))) for _ in range(64)]

    graph = Graph(clock=VirtualClock(), deadline_ms=50)
    sinks: list[Auditor] = []

    def add_sink(after: str, edge: Edge) -> None:
        pauses = pause(60)
        sink = Auditor(write_ms=lambda seq: pauses[seq % 64])
        sink.graph = graph
        sinks.append(sink)
        graph.sink(f"sink{len(sinks)}", sink, after, **edge.options)  # type: ignore[arg-type]

    branches = []
    for i in range(sources):
        jitter = pause(40)
        ticks = Ticks(40, 10, live=True, jitter=lambda seq, jitter=jitter: jitter[seq % 64])
        name = graph.source(f"mic{i}", ticks)
        add_sink(name, edges[i])
        held = Held(blocking=blocking)
        branches.append(graph.transform(f"held{i}", held, name, **edges[3 + i].options))  # type: ignore[arg-type]
    add_sink(graph.merge("mux", branches, max_wait_ms=max_wait_ms), edges[6])
    add_sink("mux", edges[7])
    if stop_after is not None:
        original = sinks[0].write

        async def write(frame: Frame) -> None:
            if frame.seq >= stop_after:
                graph.stop()
            await original(frame)

        sinks[0].write = write  # type: ignore[method-assign]

    report = anyio.run(graph.run)

    check_flows(report)
    assert stop_after is not None or report.outcome == "ended"
    if report.outcome in ("ended", "stopped"):
        assert report.lost == 0
    for i, sink in enumerate(sinks, 1):
        check_received(sink.got)
        assert len(sink.got) == report[f"sink{i}"].frames_out
        at_sink = report[f"sink{i}"].sink
        assert at_sink is not None
        assert at_sink.gaps == sum(frame.discontinuity for frame in sink.got)
    for statistics in report.edges:
        if report.outcome == "ended":
            assert statistics.sent == report[statistics.name.split(" -> ")[0]].frames_out
        if statistics.policy == "block":
            assert statistics.dropped == statistics.expired
        assert statistics.max_age_ms is not None or statistics.expired == 0
