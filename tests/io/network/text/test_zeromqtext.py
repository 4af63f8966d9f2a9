"""Text as plain messages over ZeroMQ: what comes, what is lost, and that all is counted."""

from __future__ import annotations

import gc
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
import zmq

from streamenc import io
from streamenc.errors import TransportError, UsageError
from streamenc.graph.frames import Frame
from streamenc.io.network.text.zeromqtext import ZmqTextSource
from streamenc.io.text.textsource import INFO

ANY_PORT = "text+zmq+tcp://127.0.0.1:0"


@asynccontextmanager
async def talking(kind: int, **options: Any) -> AsyncIterator[tuple[ZmqTextSource, Any]]:
    """A source that binds, and a socket of another program that sends."""
    source = ZmqTextSource(ANY_PORT, bind=True, **options)
    assert await source.open() == INFO
    with zmq.Context() as context, context.socket(kind) as socket:
        socket.linger = 0
        socket.connect(source.endpoint.removeprefix("text+zmq+"))
        try:
            yield source, socket
        finally:
            await source.aclose()


async def take(source: ZmqTextSource, count: int, pause_s: float = 0) -> list[Frame]:
    got: list[Frame] = []
    with anyio.fail_after(20):
        async for frame in source.frames():
            got.append(frame)
            if len(got) == count:
                return got
            await anyio.sleep(pause_s)
    return got


def run(main: Callable[[], Awaitable[None]]) -> None:
    anyio.run(main)
    gc.collect()


def test_messages_are_segments() -> None:
    async def main() -> None:
        async with talking(zmq.PUSH, socket="pull") as (source, socket):
            socket.send("guten Morgen €".encode())
            socket.send_multipart([b"topic", b"two"])
            await anyio.sleep(0.05)
            socket.send(b"three")
            got = await take(source, 3)
            assert [f.data[0, 0] for f in got] == ["guten Morgen €", "two", "three"]
            assert [(f.segment, f.seq) for f in got] == [(0, 0), (1, 1), (2, 2)]
            assert got[2].pts - got[1].pts >= 40 and not source.lost
            assert source.live is False
            source.stop()
            assert await take(source, 1) == []

    run(main)


def test_transcripts_with_revisions() -> None:
    async def main() -> None:
        async with talking(zmq.PUSH, socket="pull", partials=True) as (source, socket):
            for text, final in (("he", False), ("hello", False), ("hello.", True)):
                socket.send_json({"text": text, "id": "u1", "is_final": final, "start": 2.5})
            got = await take(source, 3)
            assert [(f.data[0, 0], f.segment, f.revised, f.pts) for f in got] == [
                ("he", 0, False, 2500),
                ("hello", 0, True, 2500),
                ("hello.", 0, True, 2500),
            ]

    run(main)


def test_what_makes_no_sense_is_counted_and_told() -> None:
    async def main() -> None:
        async with talking(zmq.PUSH, socket="pull", max_bytes=100) as (source, socket):
            for raw in (
                b"one",
                b"\xff\xfe",
                b"x" * 101,
                b"y" * 20_000,
                json.dumps({"a": 1}).encode(),
            ):
                socket.send(raw)
            got = await take(source, 2)
            assert [f.data[0, 0] for f in got] == ["one", '{"a": 1}']
            assert got[1].discontinuity and got[1].segment == 4
            assert source.lost == 3 and len(source.remarks) == 2
            assert "left out 2 messages: more than 100 bytes" in source.remarks[1]

    run(main)


def test_who_takes_them_too_slowly_loses_the_oldest() -> None:
    async def main() -> None:
        async with talking(zmq.PUB, queue=4) as (source, socket):
            await anyio.sleep(0.3)  # until it has subscribed
            for index in range(20):
                socket.send(f"s{index}".encode())
            await anyio.sleep(0.3)
            socket.send(b"last")
            await anyio.sleep(0.2)
            got = await take(source, 4)
            assert got[-1].data[0, 0] == "last" and got[0].discontinuity
            assert source.lost + 4 == got[-1].segment + 1
            assert source.lost > 0 and "taken too late, as more came" in source.remarks[0]

    run(main)


def test_a_sender_that_can_wait_loses_nothing() -> None:
    async def main() -> None:
        async with talking(zmq.PUSH, socket="pull", queue=2) as (source, socket):
            for index in range(50):
                socket.send(f"s{index}".encode())
            got = await take(source, 50)
            assert [f.data[0, 0] for f in got] == [f"s{i}" for i in range(50)]
            assert not source.lost

    run(main)


def test_a_topic() -> None:
    async def main() -> None:
        async with talking(zmq.PUB, topic="en") as (source, socket):
            await anyio.sleep(0.3)
            socket.send_multipart([b"de", b"nein"])
            socket.send_multipart([b"en", b"yes"])
            got = await take(source, 1)
            assert got[0].data[0, 0] == "yes"

    run(main)


def test_addresses() -> None:
    made = io.source("text+zmq+ipc:///tmp/words?socket=pull")
    assert isinstance(made, ZmqTextSource) and made.address == "text+zmq+ipc:///tmp/words"
    with pytest.raises(UsageError, match="socket"):
        io.source("text+zmq+tcp://127.0.0.1:1?socket=req")
    with pytest.raises(UsageError, match="'text.zmq.tcp://h:1' gives text, but audio was wanted"):
        io.source("text+zmq+tcp://h:1", kind="audio")

    async def main() -> None:
        async with talking(zmq.PUB) as (source, _):
            port = source.endpoint.rpartition(":")[2]
            other = ZmqTextSource(f"text+zmq+tcp://127.0.0.1:{port}", bind=True)
            with pytest.raises(TransportError, match="in use"):
                await other.open()
            await other.aclose()

    run(main)
