"""How a graph ends when it is told to: drain, cancel, hard stop, signals, nothing left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import anyio
import pytest

from streamenc.errors import NodeError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.graph.graph import Graph
from streamenc.graph.node import AsyncTransform, BlockingSource
from streamenc.graph.report import GraphReport
from tests.support.pipes import AUDIO, DATA, BlockingCollect, Collect, Held, Ticks, until


async def run_and_stop(graph: Graph, ready: object, stops: int = 1) -> tuple[GraphReport, float]:
    """The report, and the seconds from the first `stop` to the end of `run`."""
    reports: list[GraphReport] = []

    async def run() -> None:
        reports.append(await graph.run())

    async with anyio.create_task_group() as group:
        group.start_soon(run)
        await until(ready)  # type: ignore[arg-type]
        start = time.monotonic()
        for _ in range(stops):
            graph.stop()
            await anyio.sleep(0.02)
    return reports[0], time.monotonic() - start


def live_graph(sink: Collect | BlockingCollect, **options: float) -> tuple[Graph, Ticks, Held]:
    graph = Graph(**options)  # type: ignore[arg-type]
    source, held = Ticks(None, 5, live=True), Held(blocking=True)
    name = graph.transform("held", held, graph.source("mic", source))
    graph.sink("sink", sink, name)
    return graph, source, held


def new_threads(before: set[threading.Thread]) -> list[str]:
    deadline = time.monotonic() + 10
    while (new := set(threading.enumerate()) - before) and time.monotonic() < deadline:
        time.sleep(0.01)
    return [thread.name for thread in new]


def test_stop_drains_a_live_stream_to_its_last_frame() -> None:
    sink = Collect()
    graph, source, held = live_graph(sink)
    report, seconds = anyio.run(run_and_stop, graph, lambda: len(sink.got) > 5)
    assert seconds < 5
    assert report.outcome == "stopped"
    assert report.lost == report.dropped == 0
    assert sink.seqs == list(range(report["mic"].frames_out))
    assert sink.broken == report["sink"].broken == ""  # an end that was asked for is one
    assert (source.closed, held.closed, sink.closed) == (1, 1, 1)


def test_what_does_not_drain_in_time_is_cancelled_and_counted() -> None:
    sink = Collect(write_ms=3_600_000)
    graph, source, held = live_graph(sink, drain_seconds=0.3, hard_stop_seconds=5)

    def congested() -> bool:
        report = graph.report()
        full = [edge.in_flight == edge.capacity for edge in report.edges]
        return len(full) == 2 and all(full) and report["mic"].in_flight > 0

    report, seconds = anyio.run(run_and_stop, graph, congested)
    assert 0.3 <= seconds < 5
    assert report.outcome == "cancelled"
    assert len(sink.got) == 0 and len(held.held) == 1
    assert sink.broken == report["sink"].broken == "the graph was cancelled"
    made = report["mic"].frames_out + report["mic"].in_flight
    assert made == report.lost + len(held.held) >= 10
    assert sink.closed == 1


def test_a_source_that_does_not_hear_stop_is_cancelled() -> None:
    sink = Collect()
    graph = Graph(drain_seconds=0.2)
    source = Ticks(None, 5, deaf=True)
    graph.sink("sink", sink, graph.source("source", source))
    report, seconds = anyio.run(run_and_stop, graph, lambda: len(sink.got) > 2)
    assert report.outcome == "cancelled"
    assert seconds < 5
    assert (source.closed, sink.closed) == (1, 1)


def test_a_slow_node_has_its_time_after_a_failure() -> None:
    # Each write takes longer than what a stop would leave for all of them.
    graph = Graph(drain_seconds=0.1)
    sink = Collect(write_ms=150)
    graph.sink("sink", sink, graph.source("source", Ticks(None, 1, fail_at=6)), capacity=6)
    with pytest.raises(NodeError, match="'source'"):
        graph.run_blocking()
    assert sink.seqs == list(range(6))
    assert graph.report().lost == 0


@pytest.mark.parametrize("how", ["deaf", "stuck", "stopped"])
def test_a_failure_comes_out_though_the_rest_does_not_end(how: str) -> None:
    graph = Graph(drain_seconds=60 if how == "stopped" else 0.1, hard_stop_seconds=120)
    other, sink = Ticks(None, 5, deaf=how == "deaf"), Collect(0 if how == "deaf" else 3_600_000)
    graph.sink("sink", sink, graph.source("other", other))
    graph.sink("rest", Collect(), graph.source("source", Ticks(None, 5, fail_at=3)))

    async def main() -> None:
        async with anyio.create_task_group() as group:
            if how == "stopped":
                group.start_soon(stop_twice)
            with pytest.raises(NodeError, match="'source'"):
                await graph.run()

    async def stop_twice() -> None:
        await until(lambda: bool(graph.report()["source"].broken))
        graph.stop()
        graph.stop()

    start = time.monotonic()
    anyio.run(main)
    assert time.monotonic() - start < 20
    assert sink.closed == 1 and sink.broken.startswith("node 'source' failed")
    assert graph.report().outcome == "failed"


def test_a_second_stop_cancels_at_once() -> None:
    sink = Collect(write_ms=3_600_000)
    graph, _, held = live_graph(sink, drain_seconds=60, hard_stop_seconds=120)
    report, seconds = anyio.run(run_and_stop, graph, lambda: held.held, 2)
    assert seconds < 30
    assert report.outcome == "cancelled"


@pytest.mark.parametrize("stops", [1, 3])
def test_a_thread_that_hangs_is_left_behind(stops: int) -> None:
    release = threading.Event()
    hung = threading.Event()

    def hang(frame: Frame) -> None:
        hung.set()
        release.wait()

    other, sink = Collect(), BlockingCollect(hang)
    drain, hard = (0.2, 0.5) if stops == 1 else (60, 120)
    graph, source, _ = live_graph(sink, drain_seconds=drain, hard_stop_seconds=hard)
    graph.sink("other", other, "held")
    report, seconds = anyio.run(run_and_stop, graph, hung.is_set, stops)
    assert seconds < 20
    assert report.abandoned == ("sink",)
    assert report.outcome == "cancelled" and report.lost > 0
    assert sink.log == ["open", "write"]  # not closed under the thread that still writes
    assert (source.closed, other.closed) == (1, 1)
    release.set()


def test_a_close_that_hangs_is_left_behind() -> None:
    class Clinging(Collect):
        async def aclose(self) -> None:
            self.closed += 1
            await anyio.sleep_forever()

    sink = Clinging()
    graph, source, _ = live_graph(sink, drain_seconds=0.2, hard_stop_seconds=0.5)
    report, seconds = anyio.run(run_and_stop, graph, lambda: len(sink.got) > 2)
    assert seconds < 20
    assert report.abandoned == ("sink",)
    assert source.closed == 1


def test_a_node_that_swallows_a_cancellation_once_ends_soon() -> None:
    class Stubborn(AsyncTransform):
        swallowed = 0

        async def open(self, info: StreamInfo) -> StreamInfo:
            return info

        async def push(self, frame: Frame) -> Iterable[Frame]:
            try:
                await anyio.sleep(0 if frame.seq < 3 else 3600)
            except asyncio.CancelledError:
                self.swallowed += 1
                await asyncio.sleep(3600)
            return [frame]

    graph = Graph(drain_seconds=0.2)
    node, sink = Stubborn(), Collect()
    name = graph.transform("stubborn", node, graph.source("mic", Ticks(None, 5)))
    graph.sink("sink", sink, name)
    report, seconds = anyio.run(run_and_stop, graph, lambda: len(sink.got) == 3)
    assert node.swallowed == 1
    assert seconds < 4
    assert report.outcome == "cancelled"


def test_stop_before_run_and_while_opening() -> None:
    class SlowToOpen(Ticks):
        async def open(self) -> StreamInfo:
            await super().open()
            await anyio.sleep(3600)
            return AUDIO

    early = Graph()
    source = Ticks(None)
    early.sink("sink", Collect(), early.source("source", source))
    early.stop()
    assert early.run_blocking().outcome == "cancelled"
    assert source.closed == source.opened

    graph = Graph()
    source = SlowToOpen(None)
    graph.sink("sink", Collect(), graph.source("source", source))
    report, seconds = anyio.run(run_and_stop, graph, lambda: source.opened)
    assert seconds < 5
    assert report.outcome == "cancelled"
    assert source.closed == 1


def test_an_open_that_hangs_in_a_thread_is_left_behind() -> None:
    release, hung = threading.Event(), threading.Event()

    class Dead(BlockingCollect):
        def open_blocking(self, info: StreamInfo) -> None:
            hung.set()
            release.wait()

    graph = Graph(drain_seconds=0.1, hard_stop_seconds=0.3)
    graph.sink("sink", Dead(), graph.source("source", source := Ticks()))
    report, seconds = anyio.run(run_and_stop, graph, hung.is_set)
    assert seconds < 20
    assert report.abandoned == ("sink",) and report.outcome == "cancelled"
    assert source.closed == 1
    release.set()


def test_a_blocking_write_under_way_is_waited_for_before_the_close() -> None:
    sink = BlockingCollect(lambda frame: time.sleep(0.2))
    graph = Graph()
    broken = Ticks(None, 5, fail_at=8)
    graph.sink("sink", sink, graph.source("source", broken))
    with pytest.raises(NodeError, match="'source'"):
        graph.run_blocking()
    assert sink.log[-2:] == ["wrote", "close"]


class Tape(BlockingSource):
    """Endless; each read blocks for a while."""

    def __init__(self) -> None:
        self.seq = 0
        self.closed = 0

    def open_blocking(self) -> StreamInfo:
        return AUDIO

    def read(self) -> Frame:
        time.sleep(0.01)
        frame = Frame(DATA, 20 * self.seq, 20, self.seq)
        self.seq += 1
        return frame

    def close_blocking(self) -> None:
        self.closed += 1


def test_a_blocking_source_delivers_all_that_it_read() -> None:
    tape, sink = Tape(), BlockingCollect()
    graph = Graph()
    graph.sink("sink", sink, graph.source("tape", tape))
    report, _ = anyio.run(run_and_stop, graph, lambda: len(sink.got) > 5)
    assert [frame.seq for frame in sink.got] == list(range(tape.seq))
    assert all(frame.arrived_ns for frame in sink.got)
    assert report.outcome == "stopped" and tape.closed == 1


@pytest.mark.parametrize("how", ["stop", "error"])
def test_a_generator_left_half_way_is_finished_before_its_node_closes(how: str) -> None:
    class Tidy(Ticks):
        def __init__(self) -> None:
            super().__init__(None, 5)
            self.log: list[str] = []

        async def frames(self) -> AsyncIterator[Frame]:
            try:
                async for frame in super().frames():
                    yield frame
            finally:
                await anyio.sleep(0.01)
                self.log.append("finished")

        async def aclose(self) -> None:
            self.log.append("closed")

    # The sink is stuck, so the generator waits at its yield for the edge to take the frame.
    source, sink = Tidy(), Collect(write_ms=3_600_000)
    graph = Graph(drain_seconds=0)
    graph.sink("sink", sink, graph.source("source", source))
    if how == "error":
        broken = graph.source("broken", Ticks(None, 500, fail_at=1))
        graph.sink("other", Collect(), broken)
        with pytest.raises(NodeError, match="'broken'"):
            graph.run_blocking()
    else:

        def stuck() -> bool:
            node = graph.report()["source"]
            return node.frames_out == 5 and node.in_flight == 1

        anyio.run(run_and_stop, graph, stuck)
    assert source.log == ["finished", "closed"]


@pytest.mark.parametrize("how", ["end", "stop", "error", "misfit", "cancel"])
def test_no_task_and_no_thread_is_left_behind(how: str) -> None:
    before = set(threading.enumerate())

    async def main() -> None:
        tape, sink = Tape(), BlockingCollect()
        graph = Graph(drain_seconds=1)
        if how in ("end", "error", "misfit"):
            source: object = Ticks(8, 5, fail_at=5 if how == "error" else None)
        else:
            source = tape
        a = graph.source("a", source)  # type: ignore[arg-type]
        b = graph.source("b", Ticks(20 if how == "end" else None, 5))
        held = graph.transform("held", Held(blocking=True), a)
        mux = graph.merge("mux", [held, b], max_wait_ms=50)
        if how == "misfit":
            mux = graph.merge("mux of mux", [mux, b])
        graph.sink("sink", sink, mux)
        if how in ("error", "misfit"):
            with pytest.raises(Exception, match="a|mux"):
                await graph.run()
        elif how == "cancel":
            with anyio.move_on_after(0.2):
                await graph.run()
        elif how == "stop":
            await run_and_stop(graph, lambda: len(sink.got) > 5)
        else:
            await graph.run()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    anyio.run(main)
    assert new_threads(before) == []


PROGRAM = """
import os, signal, sys, time
from streamenc.graph.graph import Graph
from tests.support.pipes import BlockingCollect, Collect, Ticks

graph = Graph(drain_seconds={drain}, hard_stop_seconds={hard})
sink = Collect()
mic = graph.source("mic", Ticks(None, 5, live=True))
graph.sink("sink", sink, mic)
{more}
class Announce(Collect):
    async def write(self, frame):
        await super().write(frame)
        if len(self.got) == 5:
            print("running", flush=True)
            {itself}
graph.sink("announce", Announce(), mic, policy="drop_oldest")
report = graph.run_blocking()
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
assert sink.closed == 1 and sink.seqs == list(range(len(sink.got)))
print(report.outcome, report.lost, *report.abandoned, flush=True)
"""


def program(more: str = "", itself: str = "pass", drain: float = 5, hard: float = 10) -> list[str]:
    text = PROGRAM.format(more=textwrap.dedent(more), itself=itself, drain=drain, hard=hard)
    return [sys.executable, "-W", "error", "-c", text]


def interrupt(
    command: list[str], *signals: signal.Signals, apart_seconds: float = 0.7
) -> tuple[list[str], float]:
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "running\n"
            start = time.monotonic()
            for number in signals:
                os.kill(process.pid, number)
                time.sleep(apart_seconds)
            rest, _ = process.communicate(timeout=60)
        finally:
            process.kill()
        assert process.returncode == 0
        return rest.split(), time.monotonic() - start


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_drains_and_exits_cleanly(number: signal.Signals) -> None:
    words, seconds = interrupt(program(), number)
    assert words == ["stopped", "0"]
    assert seconds < 5


def test_a_signal_that_comes_twice_at_once_is_one_wish() -> None:
    """As from `timeout -s INT`, to the process and to its group."""
    words, _ = interrupt(program(), signal.SIGINT, signal.SIGINT, apart_seconds=0.005)
    assert words == ["stopped", "0"]


def test_a_program_may_interrupt_itself() -> None:
    words, _ = interrupt(program(itself="os.kill(os.getpid(), signal.SIGINT)"))
    assert words == ["stopped", "0"]


HUNG = """
import threading
graph.sink("hung", BlockingCollect(lambda frame: threading.Event().wait()), mic, policy="latest")
"""


def test_a_hung_thread_keeps_neither_the_graph_nor_the_process() -> None:
    words, seconds = interrupt(program(HUNG, drain=0.3, hard=0.6), signal.SIGINT)
    assert words[0] == "cancelled" and words[2:] == ["hung"]
    assert seconds < 20


def test_the_third_interrupt_does_not_wait_for_threads() -> None:
    words, seconds = interrupt(program(HUNG, drain=100, hard=200), *[signal.SIGINT] * 3)
    assert words[0] == "cancelled" and words[2:] == ["hung"]
    assert seconds < 50


def test_signals_are_left_alone_outside_the_main_thread() -> None:
    graph = Graph()
    graph.sink("sink", sink := Collect(), graph.source("source", Ticks(3, 1)))
    thread = threading.Thread(target=graph.run_blocking)
    thread.start()
    thread.join(30)
    assert sink.seqs == [0, 1, 2]


def test_a_stop_that_comes_too_late_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """From another thread, in the moment between the end of the graph and that of its loop."""
    loop = asyncio.new_event_loop()
    loop.close()
    graph = Graph()
    monkeypatch.setattr(graph, "_loop", loop)
    graph.stop()
