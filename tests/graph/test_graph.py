from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable, Sequence
from fractions import Fraction
from functools import partial

import anyio
import anyio.lowlevel
import pytest

from streamenc.errors import FitError, NodeError, UsageError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.graph.graph import Graph
from streamenc.graph.node import AsyncTransform, Transform
from streamenc.graph.report import GraphReport
from tests.support.pipes import AUDIO, DATA, Collect, Held, Ticks, chain, virtual


class Rush(Ticks):
    """Endless, and never lets go of the event loop by itself; gives up after a million frames."""

    def __init__(self) -> None:
        super().__init__(live=True)
        self.made = 0

    async def frames(self) -> AsyncIterator[Frame]:
        for seq in range(10**6):
            self.made += 1
            yield Frame(DATA, 20 * seq, 20, seq)


def test_a_chain_delivers_all_frames_and_flushes_in_order() -> None:
    source, first, second, sink = Ticks(5), Held(), Held(blocking=True), Collect()
    report = chain(source, first, second, sink, deadline_ms=200).run_blocking()
    assert sink.seqs == [0, 1, 2, 3, 4]
    assert sink.info == AUDIO
    assert report.outcome == "ended"
    assert report.lost == report.dropped == 0
    assert [(n.name, n.kind, n.frames_in, n.frames_out) for n in report.nodes] == [
        ("source", "source", 0, 5),
        ("t0", "transform", 5, 5),
        ("t1", "transform", 5, 5),
        ("sink", "sink", 5, 5),
    ]
    assert (source.closed, first.closed, second.closed, sink.closed) == (1, 1, 1, 1)
    assert report["t1"].processing.count == 6  # five pushes and the flush
    at_sink = report["sink"].sink
    assert at_sink is not None
    assert at_sink.media_seconds == pytest.approx(0.1)
    assert at_sink.realtime_factor == pytest.approx(1.0)
    # Two frames were held back by one period each; nobody stamped them but the graph.
    assert at_sink.first_frame_ms == 60
    assert at_sink.end_to_end.count == 5


def test_a_device_that_starts_late_is_not_slow() -> None:
    """Its first block is there 1.5 s after everything was open."""
    seen: list[float] = []

    class Watching(Collect):
        async def write(self, frame: Frame) -> None:
            await super().write(frame)
            at_sink = graph.report()["sink"].sink
            assert at_sink is not None
            seen.append(at_sink.realtime_factor)

    late = Ticks(50, live=True, jitter=lambda seq: 1480 if seq == 0 else 0)
    graph = chain(late, Held(), Watching())
    report = graph.run_blocking()
    # What is held back counts as time, as it is; of the first two, none is written yet.
    assert seen[1:] == pytest.approx([n / (n + 1) for n in range(1, 50)], abs=0.05)
    at_sink = report["sink"].sink
    assert at_sink is not None
    assert at_sink.realtime_factor == pytest.approx(1) and at_sink.first_frame_ms == 1520


def test_an_unstamped_frame_gets_the_time_of_its_newest_input() -> None:
    sink = Collect()
    chain(Ticks(3), Held(), sink).run_blocking()
    # Each frame leaves with the next one's push; the last with the flush.
    assert [frame.arrived_ns for frame in sink.got] == [40_000_000, 60_000_000, 60_000_000]


def test_an_hour_of_paced_frames_takes_the_time_of_its_frames() -> None:
    sink = Collect()
    start = time.monotonic()
    report = chain(Ticks(3600, 1000), Held(), sink).run_blocking()
    assert report.wall_seconds == pytest.approx(3600)
    assert time.monotonic() - start < 60
    assert len(sink.got) == 3600


def test_a_tee_hands_the_same_frame_to_all_and_only_blocking_branches_hold_it_up() -> None:
    graph = virtual()
    mic = graph.source("mic", Ticks(50, live=True))
    fast, slow = Collect(), Collect(write_ms=100)
    graph.sink("slow", slow, mic, capacity=2, policy="drop_oldest")
    graph.sink("fast", fast, mic)
    report = graph.run_blocking()
    assert fast.seqs == list(range(50))
    assert report["fast"].sink is not None and report["fast"].sink.end_to_end.max_ms == 0
    assert report["slow"].dropped == 50 - len(slow.got) > 30
    assert slow.got[0].data is fast.got[0].data
    for before, after in zip(slow.got, slow.got[1:], strict=False):
        assert after.discontinuity == (after.seq != before.seq + 1)
    assert report["slow"].sink is not None and report["fast"].sink is not None
    assert report["slow"].sink.gaps == sum(f.discontinuity for f in slow.got) > 0
    assert report["fast"].sink.gaps == 0

    graph = virtual()
    mic = graph.source("mic", Ticks(50, live=True))
    fast, slow = Collect(), Collect(write_ms=100)
    graph.sink("slow", slow, mic, capacity=2)
    graph.sink("fast", fast, mic)
    report = graph.run_blocking()
    assert slow.seqs == fast.seqs == list(range(50))
    assert fast.times_ns[-1] > 4e9


def test_a_branch_with_room_gets_a_frame_before_the_one_that_is_full_takes_it() -> None:
    graph = virtual()
    mic = graph.source("mic", Ticks(6))
    fast, slow = Collect(), Collect(write_ms=1000)
    graph.sink("slow", slow, mic, capacity=1)
    graph.sink("fast", fast, mic)
    graph.run_blocking()
    # The slow one holds a frame in its hands and one on its edge; the third waits for it.
    assert fast.times_ns[:4] == [20_000_000, 40_000_000, 60_000_000, 1_020_000_000]


def test_nodes_that_never_wait_let_the_rest_of_the_program_run() -> None:
    async def main() -> None:
        graph = Graph()
        mic = graph.source("mic", rush := Rush())
        graph.sink("sink", Collect(), mic, policy="latest")
        with anyio.move_on_after(0.2) as scope:
            await graph.run()
        assert scope.cancelled_caught
        assert rush.made < 10**6

    anyio.run(main)


def test_latest_keeps_a_slow_sink_close_to_now() -> None:
    graph = virtual(deadline_ms=250)
    mic = graph.source("mic", Ticks(100, live=True))
    slow = Collect(write_ms=100)
    graph.sink("slow", slow, mic, policy="latest")
    report = graph.run_blocking()
    at_sink = report["slow"].sink
    assert at_sink is not None
    assert at_sink.end_to_end.max_ms <= 121
    assert at_sink.deadline_misses == 0
    assert report["slow"].frames_in + report["slow"].dropped == 100


def test_late_frames_are_counted_against_the_deadline() -> None:
    report = chain(Ticks(4), Collect(write_ms=lambda seq: 10 * seq), deadline_ms=15).run_blocking()
    at_sink = report["sink"].sink
    assert at_sink is not None
    assert at_sink.deadline_misses == 2  # 0, 10, 20, 30 + 10 ms


def test_a_merge_interleaves_by_presentation_time() -> None:
    graph = virtual()
    other = StreamInfo("audio", Fraction(1, 2000), Fraction(2000), (1, None), "float32")
    a = graph.source("a", Ticks(4))
    b = graph.source("b", Ticks(4, info=other))
    sink = Collect()
    graph.sink("sink", sink, graph.merge("mux", [a, b]))
    report = graph.run_blocking()
    assert sink.info is not None and sink.info.tracks == (AUDIO, other)
    times = [frame.pts * sink.info.track(frame.track).time_base for frame in sink.got]
    assert times == sorted(times) and len(times) == 8
    for track in (0, 1):
        assert [f.seq for f in sink.got if f.track == track] == [0, 1, 2, 3]
    assert report["sink"].sink is not None and report["sink"].sink.gaps == 0


def test_a_merge_does_not_wait_for_a_silent_input_longer_than_its_bound() -> None:
    graph = virtual()
    a = graph.source("a", Ticks(100))
    b = graph.source("b", Ticks(2, 1500))  # first heard after 1.5 s, its pts is 0
    sink = Collect()
    graph.sink("sink", sink, graph.merge("mux", [a, b], max_wait_ms=300))
    report = graph.run_blocking()
    first = [t for t, f in zip(sink.times_ns, sink.got, strict=True) if f.track == 0]
    assert first[0] == 320_000_000
    # Once it is known to be silent, nothing is held back for it.
    assert first[30] == 31 * 20_000_000
    assert [f.seq for f in sink.got if f.track == 1] == [0, 1]
    assert len(sink.got) == 102
    assert not any(f.discontinuity for f in sink.got)
    assert report.dropped == 0


def test_a_branch_that_gives_nothing_does_not_lock_a_merge() -> None:
    class Mute(Transform):
        def open(self, info: StreamInfo) -> StreamInfo:
            return info

        def push(self, frame: Frame) -> Iterable[Frame]:
            return ()

    graph = virtual()
    source = graph.source("source", Ticks(50))
    mute = graph.transform("mute", Mute(), source)
    sink = Collect()
    graph.sink("sink", sink, graph.merge("mux", [mute, source]))
    graph.run_blocking()
    assert [frame.track for frame in sink.got] == [1] * 50


def test_an_async_transform_waits_on_the_graphs_clock() -> None:
    class Slow(AsyncTransform):
        async def open(self, info: StreamInfo) -> StreamInfo:
            return info

        async def push(self, frame: Frame) -> Iterable[Frame]:
            await self.clock.sleep_until_ns(self.clock.now_ns() + 7_000_000)
            return [frame]

    report = chain(Ticks(3), Slow(), Collect()).run_blocking()
    assert report["t0"].processing.max_ms == 7
    assert report["sink"].sink is not None
    assert report["sink"].sink.end_to_end.p50_ms == 7


def test_blocking_work_leaves_the_event_loop_free() -> None:
    class Sleepy(Held):
        def push(self, frame: Frame) -> Iterable[Frame]:
            time.sleep(0.05)
            return super().push(frame)

    async def main() -> None:
        delays: list[float] = []

        async def ticker() -> None:
            while True:
                due = time.monotonic() + 0.005
                await anyio.sleep(0.005)
                delays.append(time.monotonic() - due)

        graph = Graph()
        name = graph.source("source", Ticks(12, 0))
        name = graph.transform("sleepy", Sleepy(blocking=True), name)
        graph.sink("sink", sink := Collect(), name)
        async with anyio.create_task_group() as group:
            group.start_soon(ticker)
            report = await graph.run()
            group.cancel_scope.cancel()
        assert len(sink.got) == 12
        assert report["sleepy"].processing.max_ms >= 50
        # On the loop, at least 12 ticks would be 50 ms late and only about 12 would fit in.
        assert len(delays) > 30
        assert sorted(delays)[len(delays) // 2] < 0.02

    anyio.run(main)


def test_a_report_can_be_taken_while_the_graph_runs() -> None:
    async def main() -> None:
        graph = chain(Ticks(50), sink := Collect())
        seen: list[GraphReport] = []
        original = sink.write

        async def write(frame: Frame) -> None:
            seen.append(graph.report())
            await original(frame)

        sink.write = write  # type: ignore[method-assign]
        assert graph.report()["sink"].frames_in == 0
        await graph.run()
        assert [report["sink"].frames_in for report in seen] == list(range(1, 51))
        assert {report.outcome for report in seen} == {"running"}
        assert {report["sink"].in_flight for report in seen} == {1}
        assert "sink" in str(seen[0])

    anyio.run(main)


def edges(graph: Graph, *pairs: tuple[str, str]) -> Graph:
    """Transforms named by the second of each pair, after the first."""
    for before, name in pairs:
        graph.transform(name, Held(), before)
    return graph


def test_graphs_that_are_none_are_refused() -> None:
    def source_and_sink() -> Graph:
        graph = virtual()
        graph.source("source", Ticks())
        graph.sink("sink", Collect(), "source")
        return graph

    only_sink = virtual()
    only_sink.sink("sink", Collect(), "source")
    only_source = virtual()
    only_source.source("source", Ticks())
    after_sink = source_and_sink()
    after_sink.sink("other", Collect(), "sink")
    cases = [
        (only_sink, "no source"),
        (only_source, "no sink"),
        (edges(source_and_sink(), ("mik", "t")), "no node 'mik' among source, sink, t"),
        (edges(source_and_sink(), ("source", "t")), "nothing takes the frames of 't'"),
        (edges(source_and_sink(), ("b", "a"), ("a", "b")), r"a cycle: [ab] -> [ab] -> [ab]"),
        (after_sink, "a sink gives no frames"),
    ]
    for graph, message in cases:
        with pytest.raises(FitError, match=message):
            graph.run_blocking()


def test_declarations_that_cannot_be_are_refused_at_once() -> None:
    graph = virtual()
    node = Ticks()
    graph.source("source", node)
    with pytest.raises(FitError, match="already has a node named 'source'"):
        graph.sink("source", Collect(), "source")
    with pytest.raises(FitError, match="'sink' is a Ticks; wanted a Sink"):
        graph.sink("sink", node, "source")  # type: ignore[arg-type]
    with pytest.raises(FitError, match="'source' and 'again' are one object"):
        graph.source("again", node)
    with pytest.raises(FitError, match="give it a list of names"):
        graph.merge("mux", "source")
    with pytest.raises(UsageError, match="max_wait_ms"):
        graph.merge("mux", ["source"], max_wait_ms=-1)
    with pytest.raises(UsageError, match="drain_seconds"):
        Graph(drain_seconds=11)


def test_a_graph_runs_once() -> None:
    graph = chain(Ticks(1), Collect())
    graph.run_blocking()
    with pytest.raises(UsageError, match="ran already"):
        graph.run_blocking()


def test_an_event_loop_that_runs_already_is_told_to_await() -> None:
    async def notebook() -> GraphReport:
        graph = chain(Ticks(1), Collect())
        with pytest.raises(UsageError, match=r"a notebook .* `await graph\.run\(\)`"):
            graph.run_blocking()
        return await graph.run()  # nothing has happened to it

    assert anyio.run(notebook).outcome == "ended"


class Picky(Held):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def open(self, info: StreamInfo) -> StreamInfo:
        super().open(info)
        raise self.error


def test_a_misfit_names_both_nodes_and_closes_what_was_opened() -> None:
    source, first, picky, sink = Ticks(), Held(), Picky(FitError("wanted 24 kHz")), Collect()
    with pytest.raises(FitError, match="'t0' -> 't1': wanted 24 kHz") as caught:
        chain(source, first, picky, sink).run_blocking()
    assert caught.value.__cause__ is picky.error
    assert (source.closed, first.closed, picky.closed) == (1, 1, 1)
    assert (source.stopped, sink.info, sink.closed) == (False, None, 0)


def test_any_other_error_in_open_is_a_node_error_with_the_original() -> None:
    source, picky = Ticks(), Picky(ValueError("no such weights"))
    graph = chain(source, picky, Collect())
    with pytest.raises(NodeError, match="'source' -> 't0': cannot open: ValueError: no such") as e:
        graph.run_blocking()
    assert e.value.node == "t0" and e.value.__cause__ is picky.error
    assert graph.report().outcome == "failed"


def test_what_cannot_be_opened_leaves_sinks_that_know_why() -> None:
    graph = virtual()
    early, picky = Collect(), Picky(ValueError("no such weights"))
    graph.source("source", Ticks())
    graph.sink("early", early, "source")
    graph.sink("late", Collect(), graph.transform("picky", picky, "source"))
    with pytest.raises(NodeError, match="no such weights"):
        graph.run_blocking()
    assert (early.closed, "no such weights" in early.broken) == (1, True)


def test_open_must_return_what_goes_out() -> None:
    class Forgetful(Held):
        def open(self, info: StreamInfo) -> StreamInfo:
            return None  # type: ignore[return-value]

    with pytest.raises(FitError, match="'source' -> 't0': open returned None"):
        chain(Ticks(), Forgetful(), Collect()).run_blocking()


@pytest.mark.parametrize("second_live", [False, True])
def test_only_edges_behind_live_sources_alone_may_drop(second_live: bool) -> None:
    graph = virtual()
    a = graph.source("a", Ticks(2, live=True))
    b = graph.source("b", Ticks(2, live=second_live))
    graph.sink("sink", Collect(), graph.merge("mux", [a, b]), policy="latest")
    if second_live:
        graph.run_blocking()
    else:
        with pytest.raises(FitError, match=r"""'mux' -> 'sink': policy "latest" may lose"""):
            graph.run_blocking()


def test_what_a_node_lost_is_told_once() -> None:
    class Lossy(Ticks):
        lost = 3

    class Slow(Collect):
        dropped = 12
        remarks: Sequence[str] = ("12 frames were dropped, as the broker was away",)

    graph = virtual()
    graph.source("mic", Lossy(3))
    graph.sink("sink", Slow(), "mic")
    assert graph.run_blocking().sentences == [
        "mic: 3 frames were lost where they come from: the graph or the machine was late, or the "
        "sender; see the source's options for a longer queue",
        "sink: 12 frames were dropped, as the broker was away",
    ]


def test_nodes_remark_in_the_report() -> None:
    class Remarking(Held):
        remarks: Sequence[str] = ()

        def push(self, frame: Frame) -> Iterable[Frame]:
            self.remarks = (f"{frame.seq + 1} samples clipped",)
            return super().push(frame)

    report = chain(Ticks(3), Remarking(), Collect()).run_blocking()
    assert report["t0"].remarks == ("3 samples clipped",)
    assert report.sentences == ["t0: 3 samples clipped"]
    assert str(report).endswith("\n\nt0: 3 samples clipped")


def test_run_fits_into_a_program_that_cancels_it() -> None:
    async def main() -> None:
        graph = Graph()
        source, sink = Ticks(None, 5, live=True), Collect()
        graph.sink("sink", sink, graph.source("source", source))
        with anyio.move_on_after(0.2) as scope:
            await graph.run()
        assert scope.cancelled_caught
        assert (source.closed, sink.closed) == (1, 1)
        assert graph.report().outcome == "cancelled"

    anyio.run(main)


def test_a_transform_is_tested_without_any_loop() -> None:
    held = Held()
    assert held.open(AUDIO) == AUDIO
    frames = [Frame(AUDIO, pts, 1, pts) for pts in range(3)]  # type: ignore[arg-type]
    out = [made.seq for frame in frames for made in held.push(frame)]
    assert [*out, *(made.seq for made in held.flush())] == [0, 1, 2]


def test_runs_of_the_same_graph_are_the_same() -> None:
    def once() -> list[tuple[int, int, int]]:
        graph = virtual()
        mic = graph.source("mic", Ticks(200, live=True, jitter=lambda seq: seq * 7 % 13))
        held = graph.transform("held", Held(blocking=True), mic, policy="drop_oldest", capacity=2)
        sink = Collect(write_ms=lambda seq: seq * 5 % 47)
        graph.sink("sink", sink, graph.merge("mux", [held, mic]), policy="latest")
        anyio.run(partial(graph.run))
        return [(f.track, f.seq, t) for f, t in zip(sink.got, sink.times_ns, strict=True)]

    assert once() == once()
