"""MqttSink and MqttSource at a real broker, which the tests start, kill and start again."""

from __future__ import annotations

import gc
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import aiomqtt
import anyio
import numpy as np
import pytest

from streamenc.errors import MediaError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.io.network.mqtt.mqttsink import MqttSink
from streamenc.io.network.mqtt.mqttsource import MqttSource
from tests.support.broker import MOSQUITTO, Broker

pytestmark = [
    pytest.mark.broker,
    pytest.mark.skipif(MOSQUITTO is None, reason="needs the program mosquitto"),
]

CODES = StreamInfo("codes", Fraction(1, 24000), Fraction(25, 2), (8, None), "uint16", "demo", 2048)


def code_frame(seq: int, **fields: object) -> Frame:
    data = np.full((8, 1), seq % 2048, dtype=np.uint16)
    return Frame(data, pts=seq * 1920, duration=1920, seq=seq).with_(**fields)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    made = Broker(tmp_path)
    made.start()
    yield made
    made.kill()


@asynccontextmanager
async def opened(*nodes: MqttSink | MqttSource) -> AsyncIterator[None]:
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


async def collect(source: MqttSource, into: list[Frame]) -> None:
    async for frame in source.frames():
        into.append(frame)


@pytest.mark.parametrize("qos", ["0", "1"])
def test_a_stream_arrives_as_it_was_sent(broker: Broker, qos: str) -> None:
    async def main() -> None:
        sink, source = MqttSink(broker.url(), qos=qos), MqttSource(broker.url())
        async with opened(sink, source):
            await sink.open(CODES)
            assert await source.open() == CODES  # retained: the sink was first
            stamps = []
            for seq in range(100):
                stamps.append(sink.clock.now_ns())
                await sink.write(code_frame(seq, arrived_ns=stamps[-1], scale=0.5))
            await sink.aclose()
            got: list[Frame] = []
            await collect(source, got)
        assert [f.seq for f in got] == list(range(100))
        assert all(np.array_equal(f.data, code_frame(f.seq).data) for f in got)
        assert all((f.pts, f.duration, f.scale) == (f.seq * 1920, 1920, 0.5) for f in got)
        assert not any(f.discontinuity for f in got)
        assert all(abs(f.arrived_ns - t) < 500_000_000 for f, t in zip(got, stamps, strict=True))
        assert source.lost == sink.dropped == source.malformed == 0

    run(main)


def test_source_may_come_first_and_late_joiners_start_where_the_stream_is(broker: Broker) -> None:
    async def main() -> None:
        sink, early, late = MqttSink(broker.url()), *(MqttSource(broker.url()) for _ in "12")
        async with opened(sink, early, late):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(early.open)
                await anyio.sleep(0.2)
                await sink.open(CODES)
            for seq in range(10):
                await sink.write(code_frame(seq))
            frames = early.frames()
            assert [(await anext(frames)).seq for _ in range(10)] == list(range(10))
            await late.open()
            for seq in range(10, 20):
                await sink.write(code_frame(seq))
            await sink.aclose()
            assert [f.seq async for f in frames] == list(range(10, 20))
            got: list[Frame] = []
            await collect(late, got)
            assert [f.seq for f in got] == list(range(10, 20)) and late.lost == 0

    run(main)


def test_qos_1_bridges_a_restart_of_the_broker(broker: Broker) -> None:
    async def main() -> None:
        sink = MqttSink(broker.url(), qos=1)
        source = MqttSource(broker.url())
        got: list[Frame] = []
        async with opened(sink, source), anyio.create_task_group() as tasks:
            await sink.open(CODES)
            await source.open()
            tasks.start_soon(collect, source, got)
            for seq in range(50):
                await sink.write(code_frame(seq))
            await until(lambda: len(got) == 50)
            broker.kill()
            for seq in range(50, 100):  # these wait in the queue
                await sink.write(code_frame(seq))
            await anyio.sleep(0.3)
            await anyio.to_thread.run_sync(broker.start)
            await until(lambda: sink._connected and source._client is not None)
            seq = 100
            while not got or got[-1].seq < 100:
                await sink.write(code_frame(seq))
                seq += 1
                await anyio.sleep(0.02)
            await sink.aclose()
        assert sink.dropped == 0
        assert len(got) + source.lost == seq  # what came before the source was back is counted
        jumps = [b.seq for a, b in zip(got, got[1:], strict=False) if b.seq != a.seq + 1]
        assert [f.seq for f in got if f.discontinuity] == jumps

    run(main)


def test_qos_1_keeps_what_was_not_acknowledged(broker: Broker) -> None:
    async def main() -> None:
        sink = MqttSink(broker.url(), qos=1)
        async with opened(sink):
            await sink.open(CODES)
            assert broker.process is not None
            broker.process.send_signal(signal.SIGSTOP)
            for seq in range(20):
                await sink.write(code_frame(seq))
                await anyio.sleep(0.01)  # some are on their way to a broker that never answers
            waiting = list(sink._queue.waiting)
            assert len(waiting) == 20
            broker.kill()
            await until(lambda: not sink._connected)
            assert list(sink._queue.waiting) == waiting  # all, and in their order
            await anyio.to_thread.run_sync(broker.start)
            await until(lambda: not sink._queue)
            assert sink.dropped == 0

    run(main)


def test_qos_0_counts_what_it_drops_while_the_broker_is_away(broker: Broker) -> None:
    async def main() -> None:
        sink, source = MqttSink(broker.url()), MqttSource(broker.url())
        got: list[Frame] = []
        async with opened(sink, source), anyio.create_task_group() as tasks:
            await sink.open(CODES)
            await source.open()
            tasks.start_soon(collect, source, got)
            await sink.write(code_frame(0))
            await until(lambda: got)
            broker.kill()
            await until(lambda: not sink._connected)
            for seq in range(1, 21):
                await sink.write(code_frame(seq))
            assert sink.dropped == 20
            assert "20 frames were dropped while the broker was away or slow" in sink.remarks[-1]
            await anyio.to_thread.run_sync(broker.start)
            await until(lambda: sink._connected and source._client is not None)
            seq = 21
            while len(got) < 5:
                await sink.write(code_frame(seq))
                seq += 1
                await anyio.sleep(0.02)
            await sink.aclose()
        assert len(got) + source.lost == seq and source.lost >= 20
        assert [f.discontinuity for f in got[:3]] == [False, True, False]

    run(main)


def test_qos_1_waits_for_room_in_its_queue_then_drops(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamenc.io.network.mqtt.mqttsink.BLOCK_S", 0.3)

    async def main() -> None:
        sink = MqttSink(broker.url(), qos=1, queue=10)
        async with opened(sink):
            await sink.open(CODES)
            broker.kill()
            for seq in range(10):
                await sink.write(code_frame(seq))
            began = time.monotonic()
            await sink.write(code_frame(10))
            assert sink.dropped == 1 and time.monotonic() - began > 0.25
            with anyio.move_on_after(0.1) as scope:
                await sink.write(code_frame(11))
            assert scope.cancelled_caught  # it can be cancelled
            began = time.monotonic()
            await sink.aclose()
            assert time.monotonic() - began < 8 and sink.dropped == 11
            for told in (
                "1 frames were dropped as 10 waited for the broker already; raise 'queue'",
                "10 frames were dropped as the broker was away, or slow, when the stream was",
                "the broker did not take the end of the stream within 2 s",
            ):
                assert any(remark.startswith(told) for remark in sink.remarks)

    run(main)


def test_publisher_that_dies_or_ends_leaves_no_info_behind(broker: Broker) -> None:
    program = f"""
import anyio
from tests.io.network.mqtt.test_mqtt import CODES, MqttSink
async def main():
    sink = MqttSink({broker.url()!r})
    await sink.open(CODES)
    print("open", flush=True)
    await anyio.sleep_forever()
anyio.run(main)
"""

    async def retained() -> bool:
        async with aiomqtt.Client("127.0.0.1", broker.port) as client:
            await client.subscribe("speech/info")
            with anyio.move_on_after(0.3):
                async for message in client.messages:
                    return bool(message.payload)
        return False

    root = Path(__file__).parents[4]
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=root
    ) as publisher:
        assert publisher.stdout is not None and publisher.stdout.readline() == b"open\n"
        assert anyio.run(retained)
        publisher.kill()
    assert not anyio.run(retained)

    async def main() -> None:
        sink = MqttSink(broker.url())
        async with opened(sink):
            await sink.open(CODES)
            assert await retained()
        assert not await retained()

    run(main)


def vanish(sink: MqttSink) -> None:
    """Without a word, as a process that is killed."""
    assert sink._task is not None
    client = sink._task.get_coro().cr_frame.f_locals["client"]
    client._client._sock.shutdown(2)
    sink._broker._port = 9


def test_restarted_publisher(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamenc.io.network.mqtt.mqttsink.LINGER_S", 0.1)
    monkeypatch.setattr("streamenc.io.network.packets.SILENT_S", 0.5)

    async def main() -> None:
        source = MqttSource(broker.url())
        got: list[Frame] = []
        first, second, other = (MqttSink(broker.url()) for _ in range(3))
        async with opened(source, first, second, other):
            await first.open(CODES)
            await source.open()
            frames = source.frames()
            for sink in (first, second):
                if sink is second:
                    vanish(first)
                    await until(lambda: source.broken)
                    await sink.open(CODES)
                for seq in range(2):
                    await sink.write(code_frame(seq))
                    got.append(await anext(frames))
            assert [f.discontinuity for f in got] == [False, False, True, False]
            vanish(second)
            await anyio.sleep(0.6)
            await other.open(replace(CODES, shape=(4, None)))
            with pytest.raises(MediaError, match=r"shape was \(8, None\), is \(4, None\)"):
                await anext(frames)

    run(main)


@pytest.mark.parametrize("qos", [0, 1])
def test_slow_reader_loses_what_its_queue_cannot_hold_unless_the_broker_does(
    broker: Broker, qos: int
) -> None:
    async def main() -> None:
        sink, source = MqttSink(broker.url(), qos=qos), MqttSource(broker.url(), queue=10)
        got: list[Frame] = []
        async with opened(sink, source):
            await sink.open(CODES)
            await source.open()
            for seq in range(200):
                await sink.write(code_frame(seq))
            await until(lambda: not sink._queue)
            await anyio.sleep(0.5)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(collect, source, got)
                await until(lambda: len(got) >= 10)
                for seq in range(200, 210):
                    await sink.write(code_frame(seq))
                await sink.aclose()
        assert len(got) + source.lost == 210
        if qos:
            assert source.lost == 0 and not source.remarks
        else:
            assert 10 <= len(got) < 100
            assert any(f.discontinuity for f in got)
            assert f"{source.lost} frames were lost on the way here; use qos=1" in source.remarks[0]

    run(main)


def test_hostile_publisher(broker: Broker) -> None:
    async def main() -> None:
        sink, source = MqttSink(broker.url()), MqttSource(broker.url())
        async with opened(sink, source):
            await sink.open(CODES)
            await source.open()
            junk = [b"", b"x", b"SE\x01\x00D\x9b", b"SE\x02\x00I\x90", b"\x91" * 5000]
            async with aiomqtt.Client("127.0.0.1", broker.port) as bad:
                for topic in ("speech/data", "speech/info"):
                    for payload in junk:
                        await bad.publish(topic, payload, qos=1)
            await sink.write(code_frame(0))
            frames = source.frames()
            assert (await anext(frames)).seq == 0
            await frames.aclose()
            assert source.malformed == 9  # an empty info is none: nobody publishes

    run(main)


def test_closing_twice_and_without_open() -> None:
    async def main() -> None:
        for node in (MqttSink("mqtt://host/topic"), MqttSource("mqtt://host/topic")):
            await node.aclose()
            await node.aclose()

    run(main)
