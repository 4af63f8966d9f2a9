"""Addresses, ports, dead subscribers and hostile bytes at ZmqSink and ZmqSource."""

from __future__ import annotations

import os
import re
import signal
import socket
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import anyio
import pytest
import zmq

from streamenc.errors import FitError, MediaError, TransportError, UsageError
from streamenc.graph.frames import StreamInfo
from streamenc.io.network.packetsource import end_task
from streamenc.io.network.wire import Credit, encode_credit, encode_info
from streamenc.io.network.zeromq import ZmqSink, ZmqSource
from tests.io.network.test_zeromq import (
    ANY_PORT,
    CODES,
    code_frame,
    finished,
    opened,
    run,
    subscriber,
    until,
)


async def vanish(sink: ZmqSink) -> None:
    """Without a word to the subscribers, as a killed process does."""
    await end_task(sink._task)
    sink._task = None
    await sink._link.aclose(0)


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
            with pytest.raises(TransportError, match="another path"):
                await second.open(CODES)

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
            with pytest.raises(MediaError, match="model was demo, is kyutai/mimi, codebook_size"):
                await anext(frames)

    run(main)


def test_late_joiner_need_not_wait_for_the_next_repetition(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("streamenc.io.network.zeromq.BEAT_S", 5.0)

    async def main() -> None:
        sink = ZmqSink(ANY_PORT)
        async with opened(sink):
            await sink.open(CODES)
            for _ in range(2):
                source = ZmqSource(sink.endpoint, timeout_s=3)
                async with opened(source):
                    await source.open()
                    await sink.write(code_frame(0))

    run(main)
