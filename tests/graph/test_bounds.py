"""Bounds in time: what live paths give up for its age, and what never is."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from streamenc.errors import FitError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.graph.node import AsyncTransform
from streamenc.graph.report import GraphReport
from streamenc.nodes.pace import Pace
from tests.support.pipes import Collect, Held, Ticks, virtual


class Work(AsyncTransform):
    """Takes `ms` for each frame, like an encoder."""

    def __init__(self, ms: float) -> None:
        self.ms = ms

    async def open(self, info: StreamInfo) -> StreamInfo:
        return info

    async def push(self, frame: Frame) -> Iterable[Frame]:
        await self.clock.sleep_until_ns(self.clock.now_ns() + round(self.ms * 1e6))
        return [frame]


def test_a_path_that_cannot_keep_up_is_bounded_in_time_and_says_which_node_it_is() -> None:
    """20 ms of sound take 30 ms of work: after 10 s, a stream that waits is seconds behind."""

    def run(max_age_ms: float | None) -> tuple[GraphReport, Collect]:
        graph = virtual(max_age_ms=max_age_ms)
        name = graph.transform("held", Held(), graph.source("mic", Ticks(500, live=True)))
        sink = Collect()
        graph.sink("sink", sink, graph.transform("encode", Work(30), name))
        return graph.run_blocking(), sink

    slow = (
        "encode: too slow for a live stream: it works 30 ms on each frame of 20 ms; fewer "
        "codebooks, a smaller model, more threads or another device are faster, and max_age_ms "
        "bounds how late the rest may be"
    )
    unbounded, sink = run(None)
    assert unbounded.sentences == [slow] and len(sink.got) == 500
    report, sink = run(150)
    at_sink = report["sink"].sink
    assert at_sink is not None and at_sink.end_to_end.max_ms <= 150
    assert len(sink.got) + report.dropped == 500
    assert 300 < len(sink.got) < 350  # what 30 ms of work a frame leave of 10 s
    for before, after in zip(sink.got, sink.got[1:], strict=False):
        assert after.discontinuity == (after.seq != before.seq + 1)
    dropped, said = report.sentences
    count = report.dropped
    assert said == slow
    assert dropped == (
        f"held -> encode: {count} frames were dropped, as they were not taken in time; {count} of "
        "them so that none gets older than 150 ms"
    )


def test_a_node_may_have_a_bound_of_its_own() -> None:
    graph = virtual(max_age_ms=1000)
    graph.source("mic", Ticks(100, live=True))
    graph.sink("a", a := Collect(write_ms=50), "mic", max_age_ms=100)
    graph.sink("b", Collect(), "mic")
    report = graph.run_blocking()
    assert [edge.max_age_ms for edge in report.edges] == [100, 1000]
    ages = [t - f.arrived_ns for t, f in zip(a.times_ns, a.got, strict=True)]
    assert max(ages) <= 150_000_000 and report["a"].dropped > 30


def test_a_merge_gives_up_what_is_too_old() -> None:
    graph = virtual(max_age_ms=100)
    a, b = graph.source("a", Ticks(50, live=True)), graph.source("b", Ticks(50, live=True))
    graph.sink("sink", sink := Collect(write_ms=30), graph.merge("mux", [a, b]))
    report = graph.run_blocking()
    assert report.outcome == "ended"
    assert len(sink.got) + report.dropped == 100 and report.dropped > 20


@pytest.mark.parametrize("whole", [True, False])
def test_no_frame_of_a_source_that_would_wait_is_given_up_for_its_age(whole: bool) -> None:
    graph = virtual(max_age_ms=200 if whole else None)
    graph.source("file", Ticks(3))
    graph.sink("sink", Collect(), "file", max_age_ms=None if whole else 200)
    with pytest.raises(FitError, match="max_age_ms=200 .*live sources"):
        graph.run_blocking()


@pytest.mark.parametrize("max_age_ms", [None, 100])
def test_a_paced_file_can_lose_what_a_microphone_would(max_age_ms: float | None) -> None:
    graph = virtual(max_age_ms=max_age_ms)
    paced = graph.transform("paced", Pace(), graph.source("file", Ticks(200, 0)))
    graph.sink("sink", sink := Collect(), graph.transform("encode", Work(40), paced))
    report = graph.run_blocking()
    at_sink = report["sink"].sink
    assert at_sink is not None
    if max_age_ms is None:
        assert len(sink.got) == 200 and at_sink.end_to_end.max_ms > 1000
    else:
        assert 90 < len(sink.got) < 115 and at_sink.end_to_end.max_ms <= 140
    # The one that waits until frames are due is not the slow one.
    assert [s.partition(":")[0] for s in report.sentences if "too slow" in s] == ["encode"]
