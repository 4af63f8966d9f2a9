"""ZmqSink and ZmqSource, with subscribers in this process and in others."""

from __future__ import annotations

import gc
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import anyio
import numpy as np
import pytest
import zmq

from streamenc.errors import FitError, MediaError, TransportError, UsageError
from streamenc.frames import Frame, StreamInfo
from streamenc.io.packets import end_task
from streamenc.io.wire import Credit, encode_credit, encode_info
from streamenc.io.zeromq import ZmqSink, ZmqSource

CODES = StreamInfo(
    kind="codes",
    time_base=Fraction(1, 24000),
    rate=Fraction(25, 2),
    shape=(8, None),
    dtype="uint16",
    model="nano",
    codebook_size=2048,
)
ANY_PORT = "zmq+tcp://127.0.0.1:0"

# A subscriber: prints one JSON line for the stream, one per frame, one at the end.
SUBSCRIBER = """
import json, sys, time
import anyio
from streamenc.io.zeromq import ZmqSource

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
        cwd=Path(__file__).parents[2],
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


async def vanish(sink: ZmqSink) -> None:
    """Without a word to the subscribers, as a killed process does."""
    await end_task(sink._task)
    sink._task = None
    await sink._link.aclose(0)


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
            assert abs(b.arrived_ns - stamp) < 5_000_000  # the same clock, but for its reading

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


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_subscriber_that_dies_is_given_up(
    how: signal.Signals, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        sink = ZmqSink(ANY_PORT, "credit", wait_subscribers=2, timeout_s="2")
        async with opened(sink):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(sink.open, CODES)
                await until(lambda: sink.endpoint != ANY_PORT)
                stays, dies = (
                    subscriber(sink.endpoint, "credit"),
                    subscriber(sink.endpoint, "credit"),
                )
            for seq in range(100):
                await sink.write(code_frame(seq))
            os.kill(dies.pid, how)
            with anyio.fail_after(30):
                for seq in range(100, 200):
                    await sink.write(code_frame(seq))
            assert sink.subscribers == 1
        _, *frames, last = await finished(stays)
        assert [f["seq"] for f in frames] == list(range(200)) and last["lost"] == 0
        dies.kill()
        dies.communicate()

    run(main)
    assert "dropped a subscriber" in caplog.text


@pytest.mark.parametrize("mode", ["pub", "credit"])
def test_restarted_publisher_goes_on_after_a_discontinuity(mode: str, tmp_path: Path) -> None:
    address = f"zmq+ipc://{tmp_path}/stream"
    restart = f"""
import anyio, sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from tests.io.test_zeromq import CODES, ZmqSink, code_frame
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


def test_restart_with_another_stream_says_what_changed(tmp_path: Path) -> None:
    address = f"zmq+ipc://{tmp_path}/stream"

    async def main() -> None:
        source = ZmqSource(address)
        async with opened(source):
            for info in (CODES, replace(CODES, model="kyutai/mimi", codebook_size=1024)):
                sink = ZmqSink(address, wait_subscribers=1)
                async with opened(sink), anyio.create_task_group() as tasks:
                    tasks.start_soon(sink.open, info)
                    if info is CODES:
                        await source.open()
                        await vanish(sink)
            frames = source.frames()
            with pytest.raises(MediaError, match="model was nano, is kyutai/mimi, codebook_size"):
                await anext(frames)

    run(main)


def test_port_in_use(tmp_path: Path) -> None:
    async def main() -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            address = f"zmq+tcp://127.0.0.1:{taken.getsockname()[1]}"
            sink = ZmqSink(address)
            async with opened(sink):
                with pytest.raises(TransportError, match=re.escape(address) + ".*another port"):
                    await sink.open(CODES)
        ipc = f"zmq+ipc://{tmp_path}/stream"
        first, second = ZmqSink(ipc), ZmqSink(ipc)
        async with opened(first, second):
            await first.open(CODES)
            with pytest.raises(TransportError, match="another port"):
                await second.open(CODES)

    run(main)


def test_nobody_publishes() -> None:
    async def main() -> None:
        for mode in ("pub", "credit"):
            source = ZmqSource("zmq+tcp://127.0.0.1:9", mode, timeout_s="0.3")
            async with opened(source):
                with pytest.raises(TransportError, match=r"127.0.0.1:9 within 0.3 s"):
                    await source.open()
        sink = ZmqSink(ANY_PORT, wait_subscribers=2, wait_s=0.2)
        async with opened(sink):
            with pytest.raises(TransportError, match="0 of 2 subscribers"):
                await sink.open(CODES)

    run(main)


def test_publisher_that_vanishes_in_credit_mode() -> None:
    async def main() -> None:
        sink = ZmqSink(ANY_PORT, "credit")
        async with opened(sink):
            await sink.open(CODES)
            source = ZmqSource(sink.endpoint, "credit", timeout_s=1.5)
            async with opened(source):
                await source.open()
                await sink.write(code_frame(0))
                await vanish(sink)
                got = []
                with pytest.raises(TransportError, match="the publisher is gone"):
                    async for frame in source.frames():
                        got.append(frame)
                assert [f.seq for f in got] == [0]

    run(main)


@pytest.mark.parametrize("mode", ["pub", "credit"])
def test_hostile_publisher(mode: str) -> None:
    """Bytes that make no sense are counted and skipped; the stream around them is read."""

    async def main() -> None:
        good, hostile = ZmqSink("zmq+tcp://127.0.0.1:1", mode), zmq.Context()
        source = ZmqSource("zmq+tcp://127.0.0.1:0", mode, bind=True)
        async with opened(source, good):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(source.open)
                await until(lambda: source.endpoint.rpartition(":")[2] != "0")
                good = ZmqSink(source.endpoint, mode, bind=False, wait_subscribers=1)
                await good.open(CODES)
            with hostile, hostile.socket(zmq.PUB if mode == "pub" else zmq.DEALER) as bad:
                bad.connect(source.endpoint.removeprefix("zmq+"))
                info = encode_info(CODES, 5, 0)
                junk = [b"", b"x", b"SE\x01\x00D", info[:20], b"SE\x09\x03I\x90", b"\x91" * 5000]
                with anyio.fail_after(20):
                    while source.malformed < 50:
                        for packet in junk:
                            bad.send(packet)
                        bad.send_multipart([b"two", b"parts"])
                        await anyio.sleep(0.02)
            frames = source.frames()
            for seq in range(5):
                await good.write(code_frame(seq))
                assert (await anext(frames)).seq == seq
            await frames.aclose()
            await good.aclose()

    run(main)


@pytest.mark.parametrize("mode", ["pub", "credit"])
def test_hostile_subscribers(mode: str) -> None:
    async def main() -> None:
        sink, context = ZmqSink(ANY_PORT, mode), zmq.Context()
        async with opened(sink):
            await sink.open(CODES)
            target = sink.endpoint.removeprefix("zmq+")
            with context, context.socket(zmq.XSUB if mode == "pub" else zmq.DEALER) as bad:
                bad.linger = 0
                bad.connect(target)
                host, port = target.removeprefix("tcp://").split(":")
                with socket.create_connection((host, int(port))) as raw:
                    raw.sendall(os.urandom(4096))
                for junk in (b"", b"\x00", b"\x01" * 2000, os.urandom(200), b"\x01other topic"):
                    bad.send(junk)
                    bad.send_multipart([junk, junk, junk])
                if mode == "credit":  # claims that are not true buy no more than the largest window
                    bad.send(encode_credit(Credit(1, 2**63 - 1, 2**63 - 1)))
                bad.send(b"\x01" * 100_000)  # too long: ZeroMQ hangs up
                source = ZmqSource(sink.endpoint, mode)
                async with opened(source):
                    await source.open()
                    frames = source.frames()
                    bad.close()
                    for seq in range(20):
                        with anyio.fail_after(20):
                            await sink.write(code_frame(seq))
                            assert (await anext(frames)).seq == seq
                    await frames.aclose()

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


def test_frames_without_subscribers_are_no_drops() -> None:
    async def main() -> None:
        sink = ZmqSink(ANY_PORT, hwm=1)
        async with opened(sink):
            await sink.open(CODES)
            for seq in range(100):
                await sink.write(code_frame(seq))
            assert (sink.dropped, sink.unheard) == (0, 100)

    run(main)


@pytest.mark.parametrize(
    ("address", "options", "message"),
    [
        ("zmq+tcp://127.0.0.1", {}, "zmq\\+tcp://host:port"),
        ("zmq+tcp://127.0.0.1:99999", {}, "99999"),
        ("zmq+tcp://:5555", {}, "zmq\\+tcp://host:port"),
        ("zmq+ipc://host/path", {}, "zmq\\+ipc:///path"),
        (ANY_PORT, {"mode": "push"}, "'mode' must be one of pub, credit; got 'push'"),
        (ANY_PORT, {"hwm": "0"}, "'hwm'.*got '0'"),
        (ANY_PORT, {"bind": "perhaps"}, "'bind'"),
        (ANY_PORT, {"timeout_s": "soon"}, "'timeout_s'"),
    ],
)
def test_wrong_addresses_and_options(address: str, options: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ZmqSink(address, **options)


def test_a_source_needs_a_host_and_a_port_to_connect_to() -> None:
    with pytest.raises(UsageError, match="a host and a port to connect to"):
        ZmqSource("zmq+tcp://*:5555")
    with pytest.raises(UsageError, match="'window'"):
        ZmqSource("zmq+tcp://127.0.0.1:5555", window="100000")


def test_closing_twice_and_without_open() -> None:
    async def main() -> None:
        for node in (ZmqSink(ANY_PORT), ZmqSource("zmq+tcp://127.0.0.1:5555")):
            await node.aclose()
            await node.aclose()
        sink = ZmqSink(ANY_PORT)
        with pytest.raises(FitError, match="whole numbers for codes"):
            await sink.open(StreamInfo("codes", Fraction(1), Fraction(1), (1,), "float32"))
        await sink.aclose()

    run(main)
