"""ZmqSink and ZmqSource, with subscribers in this process and in others."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from fractions import Fraction
from pathlib import Path

import anyio
import numpy as np
import pytest

from streamenc.graph.frames import Frame, StreamInfo
from streamenc.graph.graph import Graph
from streamenc.io.network.zeromq import ZmqSink, ZmqSource
from tests.support.pipes import Given

CODES = StreamInfo(
    kind="codes",
    time_base=Fraction(1, 24000),
    rate=Fraction(25, 2),
    shape=(8, None),
    dtype="uint16",
    model="demo",
    codebook_size=2048,
)
ANY_PORT = "zmq+tcp://127.0.0.1:0"

# A subscriber: prints one JSON line for the stream, one per frame, one at the end.
SUBSCRIBER = """
import json, sys, time
import anyio
from streamenc.io.network.zeromq import ZmqSource

async def main(address, mode, pause_s, options):
    source = ZmqSource(address, mode=mode, **options)
    try:
        info = await source.open()
        print(json.dumps({"info": str(info)}), flush=True)
        async for f in source.frames():
            time.sleep(pause_s)
            print(json.dumps({"seq": f.seq, "flag": f.discontinuity, "sum": int(f.data.sum())}),
                  flush=True)
        print(json.dumps({"lost": source.lost, "malformed": source.malformed}), flush=True)
    finally:
        await source.aclose()

anyio.run(main, sys.argv[1], sys.argv[2], float(sys.argv[3]), json.loads(sys.argv[4]))
"""


def code_frame(seq: int, columns: int = 1, **fields: object) -> Frame:
    data = np.full((8, columns), seq % 2048, dtype=np.uint16)
    return Frame(data, pts=seq * 1920, duration=1920, seq=seq).with_(**fields)


def subscriber(
    address: str, mode: str, pause_s: float = 0.0, **options: object
) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", SUBSCRIBER, address, mode, str(pause_s), json.dumps(options)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[3],
        text=True,
    )


async def finished(process: subprocess.Popen) -> list[dict]:
    """What the subscriber printed."""
    out, _ = await anyio.to_thread.run_sync(lambda: process.communicate(timeout=60))
    assert process.returncode == 0
    return [json.loads(line) for line in out.splitlines()]


@asynccontextmanager
async def opened(*nodes: ZmqSink | ZmqSource) -> AsyncIterator[None]:
    """Closes all of them, whoever opens them."""
    try:
        yield
    finally:
        for node in nodes:
            await node.aclose()


async def until(condition: Callable[[], object], seconds: float = 20) -> None:
    with anyio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110 - many conditions, none with an event
            await anyio.sleep(0.01)


def run(main: Callable[[], Awaitable[None]]) -> None:
    """Runs the test; whatever it leaves open warns, and warnings are errors."""
    anyio.run(main)
    gc.collect()


@pytest.mark.parametrize("mode", ["pub", "credit"])
def test_subscriber_in_another_process_gets_every_frame(mode: str) -> None:
    async def main() -> None:
        sink = ZmqSink(ANY_PORT, mode=mode, wait_subscribers="1", hwm="1000")
        async with opened(sink):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(sink.open, CODES)
                await until(lambda: sink.endpoint != ANY_PORT)
                process = subscriber(sink.endpoint, mode)
            for seq in range(200):
                await sink.write(code_frame(seq))
        first, *frames, last = await finished(process)
        assert first["info"] == str(CODES)
        assert [f["seq"] for f in frames] == list(range(200))
        assert [f["sum"] for f in frames] == [8 * seq for seq in range(200)]
        assert not any(f["flag"] for f in frames)
        assert last == {"lost": 0, "malformed": 0}
        assert sink.dropped == sink.unheard == 0

    run(main)


@pytest.mark.parametrize("mode", ["pub", "credit"])
@pytest.mark.parametrize("source_binds", [False, True])
def test_a_stream_arrives_as_it_was_sent(mode: str, source_binds: bool, tmp_path: Path) -> None:
    mux = StreamInfo(
        kind="mux",
        time_base=Fraction(1, 90000),
        rate=Fraction(0),
        shape=(),
        dtype="",
        tracks=(
            CODES,
            StreamInfo("features", Fraction(1, 90000), Fraction(50), (80, None), "float16"),
        ),
    )
    sent = [
        code_frame(0, scale=0.25),
        Frame(np.ones((80, 3), np.float16), pts=-7, duration=5400, seq=0, track=1),
        code_frame(1, columns=2, discontinuity=True),
        Frame(np.zeros((80, 0), np.float16), pts=5393, duration=0, seq=1, track=1),
    ]
    address = f"zmq+ipc://{tmp_path}/stream"

    async def main() -> None:
        sink = ZmqSink(address, mode, bind=not source_binds, wait_subscribers=1)
        source = ZmqSource(address, mode, bind=source_binds)
        async with opened(sink, source):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(sink.open, mux)
                assert await source.open() == mux
            stamps = []
            for frame in sent:
                stamps.append(sink.clock.now_ns())
                await sink.write(frame.with_(arrived_ns=stamps[-1]))
            await sink.aclose()
            got = [frame async for frame in source.frames()]
        for a, b, stamp in zip(sent, got, stamps, strict=True):
            assert np.array_equal(a.data, b.data) and a.data.dtype == b.data.dtype
            assert (a.pts, a.duration, a.seq, a.scale, a.track) == (
                b.pts, b.duration, b.seq, b.scale, b.track
            )  # fmt: skip
            assert a.discontinuity == b.discontinuity
            assert abs(b.arrived_ns - stamp) < 500_000_000

    run(main)


@pytest.mark.parametrize("mode", ["pub", "credit"])
def test_late_joiner_starts_where_the_stream_is(mode: str) -> None:
    async def main() -> None:
        sink = ZmqSink(ANY_PORT, mode, wait_subscribers=1)
        async with opened(sink), anyio.create_task_group() as tasks:
            tasks.start_soon(sink.open, CODES)
            await until(lambda: sink.endpoint != ANY_PORT)
            early, late = ZmqSource(sink.endpoint, mode), ZmqSource(sink.endpoint, mode)
            async with opened(early, late):
                await early.open()
                got: dict[ZmqSource, list[Frame]] = {early: [], late: []}

                async def read(source: ZmqSource) -> None:
                    async for frame in source.frames():
                        got[source].append(frame)

                tasks.start_soon(read, early)
                for seq in range(30):
                    await sink.write(code_frame(seq))
                await late.open()
                await until(lambda: sink.subscribers == 2)
                tasks.start_soon(read, late)
                for seq in range(30, 60):
                    await sink.write(code_frame(seq))
                await sink.aclose()
                await until(lambda: all(g and g[-1].seq == 59 for g in got.values()))
        assert [f.seq for f in got[early]] == list(range(60))
        assert [f.seq for f in got[late]] == list(range(30, 60))
        assert early.lost == late.lost == 0
        assert not any(f.discontinuity for f in got[late])

    run(main)


def test_slow_subscriber_misses_frames_that_are_counted_and_flagged() -> None:
    async def main() -> None:
        sink = ZmqSink(ANY_PORT, hwm=4)
        async with opened(sink):
            await sink.open(CODES)
            source = ZmqSource(sink.endpoint, hwm=4)
            async with opened(source):
                await source.open()
                big = 4000  # 64 kB a packet, so that the kernel's buffers fill up too
                for seq in range(1000):
                    await sink.write(code_frame(seq, columns=big))
                assert sink.dropped > 0
                got: list[Frame] = []

                async def read() -> None:
                    async for frame in source.frames():
                        got.append(frame)

                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(read)
                    seq = 1000  # goes on as a live stream would, until something gets through
                    while not got or got[-1].seq < 1000:
                        await sink.write(code_frame(seq, columns=big))
                        await anyio.sleep(0.02)
                        seq += 1
                    await sink.aclose()
        assert len(got) + source.lost == seq
        assert source.lost == sink.dropped
        jumps = [b.seq for a, b in zip(got, got[1:], strict=False) if b.seq != a.seq + 1]
        assert jumps and [f.seq for f in got if f.discontinuity] == jumps

    run(main)


def test_slow_subscriber_costs_the_others_nothing() -> None:
    async def main() -> None:
        sink = ZmqSink(ANY_PORT, hwm=8)
        async with opened(sink):
            await sink.open(CODES)
            slow, quick = ZmqSource(sink.endpoint, hwm=4), ZmqSource(sink.endpoint, hwm=1000)
            async with opened(slow, quick):
                await slow.open()
                await quick.open()
                for seq in range(1000):
                    await sink.write(code_frame(seq, columns=4000))
                    if seq % 4 == 3:
                        await until(lambda seq=seq: quick._reader.received == seq + 1)
                assert sink.dropped > 0
                assert quick.lost == 0

    run(main)


def test_credit_waits_for_the_slow_and_loses_nothing() -> None:
    async def main() -> None:
        sink = ZmqSink(ANY_PORT, "credit", wait_subscribers=1)
        async with opened(sink):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(sink.open, CODES)
                await until(lambda: sink.endpoint != ANY_PORT)
                process = subscriber(sink.endpoint, "credit", pause_s=0.01, window=4)
            for seq in range(150):
                await sink.write(code_frame(seq))
        _, *frames, last = await finished(process)
        assert [f["seq"] for f in frames] == list(range(150))
        assert last == {"lost": 0, "malformed": 0} and sink.dropped == 0

    run(main)


def test_credit_never_sends_more_than_the_window() -> None:
    async def main() -> None:
        sink = ZmqSink(ANY_PORT, "credit")
        async with opened(sink):
            await sink.open(CODES)
            with anyio.move_on_after(0.2) as nobody:
                await sink.write(code_frame(0))
            assert nobody.cancelled_caught  # it waits for a first subscriber
            source = ZmqSource(sink.endpoint, "credit", window=5)
            async with opened(source):
                await source.open()
                written = 0
                with anyio.move_on_after(1.5):
                    for seq in range(100):
                        await sink.write(code_frame(seq))
                        written += 1
                assert written == 5
                frames = source.frames()
                for _ in range(3):
                    await anext(frames)
                with anyio.fail_after(10):
                    for seq in range(5, 8):
                        await sink.write(code_frame(seq))
                with anyio.move_on_after(1.5) as full:
                    await sink.write(code_frame(8))
                assert full.cancelled_caught
                assert [(await anext(frames)).seq for _ in range(5)] == [3, 4, 5, 6, 7]
                await frames.aclose()

    run(main)


@pytest.mark.parametrize("mode", ["pub", "credit"])
def test_restarted_publisher_goes_on_after_a_discontinuity(mode: str, tmp_path: Path) -> None:
    address = f"zmq+ipc://{tmp_path}/stream"
    restart = f"""
import anyio, sys
sys.path.insert(0, {str(Path(__file__).parents[3])!r})
from tests.io.network.test_zeromq import CODES, ZmqSink, code_frame
async def main():
    sink = ZmqSink({address!r}, {mode!r}, wait_subscribers=1)
    await sink.open(CODES)
    for seq in range(10):
        await sink.write(code_frame(seq))
    print("sent", flush=True)
    await anyio.sleep_forever()
anyio.run(main)
"""

    def publisher() -> subprocess.Popen:
        return subprocess.Popen([sys.executable, "-c", restart], stdout=subprocess.PIPE, text=True)

    async def main() -> None:
        source = ZmqSource(address, mode)
        first = publisher()
        async with opened(source):
            try:
                await source.open()
                frames = source.frames()
                got = [await anext(frames) for _ in range(10)]
            finally:
                first.kill()
                first.communicate()
            second = publisher()
            try:
                with anyio.fail_after(30):
                    got += [await anext(frames) for _ in range(10)]
            finally:
                second.kill()
                second.communicate()
            await frames.aclose()
        assert [f.seq for f in got] == [*range(10), *range(10)]
        assert [i for i, f in enumerate(got) if f.discontinuity] == [10]

    run(main)


@pytest.mark.parametrize("mode", ["pub", "credit"])
def test_stop_ends_at_once_and_delivers_what_was_read(mode: str) -> None:
    async def main() -> None:
        sink = ZmqSink(ANY_PORT, mode)
        async with opened(sink):
            await sink.open(CODES)
            source = ZmqSource(sink.endpoint, mode)
            async with opened(source):
                await source.open()
                for seq in range(3):
                    await sink.write(code_frame(seq))
                await until(lambda: source._reader.received == 3)
                frames = source.frames()
                got = [await anext(frames)]
                source.stop()
                got += [frame async for frame in frames]
                assert [f.seq for f in got] == [0, 1, 2]

                source._stopped = False  # and while it waits
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(anyio.sleep, 0.05)
                    tasks.start_soon(lambda: until(lambda: source.stop() is None))
                    began = time.monotonic()
                    assert [frame async for frame in source.frames()] == []
                    assert time.monotonic() - began < 1

    run(main)


def test_write_in_credit_mode_can_be_cancelled() -> None:
    async def main() -> None:
        sink = ZmqSink(ANY_PORT, "credit")
        async with opened(sink):
            await sink.open(CODES)
            with anyio.move_on_after(0.1) as scope:
                await sink.write(code_frame(0))
            assert scope.cancelled_caught

    run(main)


def test_a_stream_in_credit_mode_that_is_stopped_waits_for_nobody() -> None:
    async def main() -> None:
        sink, graph = ZmqSink(ANY_PORT, "credit"), Graph()
        source = graph.source("frames", Given(CODES, [code_frame(seq) for seq in range(3)]))
        graph.sink("out", sink, source)
        async with anyio.create_task_group() as group:
            with anyio.fail_after(4):  # a drain may take 5 s

                async def stop() -> None:
                    await anyio.sleep(0.2)
                    graph.stop()

                group.start_soon(stop)
                report = await graph.run()
        assert sink.dropped == 3 and report.outcome == "stopped"
        assert "3 frames were dropped, as nobody was subscribed" in sink.remarks[0]

    run(main)


def test_frames_without_subscribers_are_no_drops() -> None:
    async def main() -> None:
        sink = ZmqSink(ANY_PORT, hwm=1)
        async with opened(sink):
            await sink.open(CODES)
            for seq in range(100):
                await sink.write(code_frame(seq))
            assert (sink.dropped, sink.unheard) == (0, 100)

    run(main)
