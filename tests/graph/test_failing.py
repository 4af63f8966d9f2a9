"""A node that fails: what was heard is drained, every sink is told, and then it is raised."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable

import pytest

from streamenc.errors import NodeError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.graph.node import AsyncTransform
from tests.support.pipes import BlockingCollect, Collect, Held, Ticks, chain, virtual


@pytest.mark.parametrize("where", ["source", "t0", "sink", "blocking sink", "close"])
def test_an_error_names_its_node_and_closes_everything(where: str) -> None:
    blocking = BlockingCollect(lambda frame: 1 // (3 - frame.seq))
    source = Ticks(None, fail_at=3 if where == "source" else None)
    held = Held(blocking=True, fail_at=3 if where == "t0" else None)
    sink = Collect(fail_at=3 if where == "sink" else None, fail_close=where == "close")
    if where == "close":
        source.count = 5
    graph = chain(source, held, blocking if where == "blocking sink" else sink)
    with pytest.raises(NodeError) as caught:
        graph.run_blocking()
    node = {"blocking sink": "sink", "close": "sink"}.get(where, where)
    assert caught.value.node == node
    assert type(caught.value.__cause__) in (ValueError, OSError, ZeroDivisionError)
    assert (source.closed, held.closed) == (1, 1)
    if where == "blocking sink":
        assert blocking.log[-2:] == ["write", "close"]
    else:
        assert sink.closed == 1
        assert sink.seqs == list(range(len(sink.got)))
    assert graph.report().outcome == "failed"


def test_what_a_source_gave_before_it_failed_is_drained_and_then_told() -> None:
    held, sink = Held(blocking=True), Collect(write_ms=50)
    graph = chain(Ticks(None, fail_at=9), held, sink)
    with pytest.raises(NodeError, match="'source' failed: ValueError: source broke"):
        graph.run_blocking()
    assert sink.seqs == list(range(9))  # the last of them by the flush
    assert sink.broken == "node 'source' failed: ValueError: source broke"
    report = graph.report()
    assert report.outcome == "failed" and report.lost == 0
    assert report["sink"].broken == sink.broken
    assert f"sink: not whole: {sink.broken}" in report.sentences


def test_a_transform_that_fails_ends_its_branch_and_stops_the_sources() -> None:
    graph = virtual()
    source, sink, other = Ticks(None), Collect(write_ms=30), Collect()
    graph.source("source", source)
    graph.transform("first", Held(), "source")
    graph.transform("second", Held(blocking=True, fail_at=6), "first")
    graph.sink("sink", sink, graph.transform("third", Held(), "second"))
    graph.sink("other", other, "source")
    with pytest.raises(NodeError, match="'second'"):
        graph.run_blocking()
    assert source.stopped
    # The second was never asked for the one that it held: it has failed.
    assert sink.seqs == [0, 1, 2, 3, 4]
    assert other.seqs == list(range(len(other.got))) and len(other.got) == source.made
    assert sink.broken == other.broken == "node 'second' failed: ValueError: transform broke"


def test_a_sink_that_fails_takes_no_frame_from_the_others() -> None:
    graph = virtual()
    source, other = Ticks(None), Collect(write_ms=100)
    graph.source("source", source)
    graph.transform("encode", Held(), "source")
    failing = Collect(fail_at=4)
    graph.sink("sink", failing, "encode")
    graph.sink("other", other, "source", capacity=20)
    with pytest.raises(NodeError, match="'sink' failed: OSError: disk full"):
        graph.run_blocking()
    assert len(other.got) == source.made > 5
    assert other.broken == failing.broken == "node 'sink' failed: OSError: disk full"
    assert (failing.closed, other.closed) == (1, 1)
    assert graph.report()["encode"].broken == other.broken


def test_a_branch_that_had_ended_is_whole_though_another_fails() -> None:
    graph = virtual()
    graph.source("short", Ticks(3))
    graph.source("long", Ticks(None, fail_at=30))
    done, cut = Collect(), Collect()
    graph.sink("done", done, "short")
    graph.sink("cut", cut, "long")
    with pytest.raises(NodeError, match="'long'"):
        graph.run_blocking()
    assert (done.broken, len(cut.got)) == ("", 30)
    assert cut.broken.startswith("node 'long' failed")


def test_a_second_failure_is_noted_with_the_first() -> None:
    graph = virtual()
    graph.source("source", Ticks(None, fail_at=3))
    graph.sink("sink", Collect(fail_close=True), "source")
    with pytest.raises(NodeError, match="'source'") as caught:
        graph.run_blocking()
    assert caught.value.__notes__ == ["node 'sink' failed: OSError: trailer not written"]


def test_a_source_that_ends_before_the_end_says_so_to_every_sink() -> None:
    class Half(Ticks):
        broken = ""

        async def frames(self) -> AsyncIterator[Frame]:
            async for frame in super().frames():
                yield frame
            self.broken = "half a file"

    graph = virtual()
    graph.source("a", Half(3))
    graph.source("b", Ticks(3))
    sinks = [Collect() for _ in range(3)]
    graph.transform("held", Held(), "a")
    graph.sink("sink0", sinks[0], "held")
    graph.sink("sink1", sinks[1], graph.merge("mux", ["a", "b"]))
    graph.sink("sink2", sinks[2], "b")
    report = graph.run_blocking()
    assert report.outcome == "ended"
    assert [sink.broken for sink in sinks] == ["half a file", "half a file", ""]
    assert report.sentences == ["sink0, sink1: not whole: half a file"]
    assert report.as_dict()["nodes"][0]["broken"] == "half a file"


def test_a_cancelled_future_in_a_node_is_its_error() -> None:
    class Confused(AsyncTransform):
        async def open(self, info: StreamInfo) -> StreamInfo:
            return info

        async def push(self, frame: Frame) -> Iterable[Frame]:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            future.cancel()
            await future
            return ()

    with pytest.raises(NodeError) as caught:
        chain(Ticks(3), Confused(), Collect()).run_blocking()
    assert caught.value.node == "t0"
    assert isinstance(caught.value.__cause__, asyncio.CancelledError)
