"""What clients that mean harm cost a server: a bounded time, and bounded memory."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("websockets", reason="needs the extra serve")
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidMessage, InvalidStatus

from streamenc.serve.limits import Limits
from streamenc.serve.processes.httpdoor import HttpDoor
from tests.serve.processes.doors import a_door

QUICK = Limits(handshake_seconds=0.3, idle_seconds=0.3, sessions=1, max_message_bytes=10_000)
WHO = b"GET /who HTTP/1.1\r\nHost: localhost\r\n\r\n"
UPGRADE = (
    b"GET /v1/stream HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
)


def run(
    folder: Path, test: Callable[[HttpDoor, int], Awaitable[None]], limits: Limits = QUICK
) -> None:
    async def main() -> None:
        async with asyncio.timeout(30), a_door(folder, limits) as (door, port):
            await test(door, port)
            for _ in range(300):
                if not door.server_state.connections:
                    break
                await asyncio.sleep(0.01)
            assert not door.server_state.connections and not door.silent

    asyncio.run(main())


def asking(port: int, **how: Any) -> connect:
    protocols: list[Any] = ["streamenc.v1"]
    return connect(f"ws://127.0.0.1:{port}/v1/stream", subprotocols=protocols, **how)


class Raw:
    """A connection that says any bytes."""

    async def __aenter__(self) -> Raw:
        there = socket.socket()
        there.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**14)
        there.setblocking(False)
        await asyncio.get_running_loop().sock_connect(there, ("127.0.0.1", self.port))
        self.reader, self.writer = await asyncio.open_connection(sock=there)
        return self

    def __init__(self, port: int) -> None:
        self.port = port

    async def __aexit__(self, *error: object) -> None:
        self.writer.close()

    async def say(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def closed(self) -> tuple[bytes, float]:
        """What came until it was closed, and after how many seconds that was."""
        began = time.monotonic()
        try:
            return await self.reader.read(-1), time.monotonic() - began
        except ConnectionError:
            return b"", time.monotonic() - began


@pytest.mark.parametrize("said", [b"", b"GET", WHO[:-2]])
def test_who_does_not_say_what_it_wants(tmp_path: Path, said: bytes) -> None:
    async def test(door: HttpDoor, port: int) -> None:
        async with Raw(port) as raw:
            await raw.say(said)
            came, seconds = await raw.closed()
            assert came == b"" and 0.2 < seconds < 5

    run(tmp_path, test)


def test_one_letter_now_and_then_is_no_head(tmp_path: Path) -> None:
    async def test(door: HttpDoor, port: int) -> None:
        async with Raw(port) as raw:
            closed = asyncio.create_task(raw.closed())
            for letter in UPGRADE[:60]:
                if closed.done():
                    break
                raw.writer.write(bytes((letter,)))
                await asyncio.sleep(0.05)
            assert closed.done() and (await closed)[1] < 2

    run(tmp_path, test)


def test_a_second_request_has_its_time_too(tmp_path: Path) -> None:
    """What was answered once is no licence to hold a connection."""

    async def test(door: HttpDoor, port: int) -> None:
        async with Raw(port) as raw:
            await raw.say(WHO)
            answered = await raw.reader.readuntil(b"\r\n\r\n")
            assert answered.startswith(b"HTTP/1.1 200") and b"server:" not in answered.lower()
            await raw.reader.readexactly(len(f"0 {os.getpid()}"))
            await raw.say(WHO[:20])
            came, seconds = await raw.closed()
            assert came == b"" and seconds < 5

    run(tmp_path, test)


def test_a_body_that_stops_coming(tmp_path: Path) -> None:
    async def test(door: HttpDoor, port: int) -> None:
        head = b"POST /body HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n"
        async with Raw(port) as raw:
            await raw.say(head)
            for _ in range(10):  # as long as something comes it goes on
                await raw.say(b"x" * 50)
                await asyncio.sleep(0.05)
            came, seconds = await raw.closed()
            assert came == b"" and 0.1 < seconds < 5
        async with Raw(port) as raw:
            await raw.say(head)
            for _ in range(10):
                await raw.say(b"x" * 100)
                await asyncio.sleep(0.05)
            assert (await raw.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
            assert await raw.reader.readexactly(4) == b"1000"

    run(tmp_path, test)


@pytest.mark.parametrize(
    "head",
    [
        b"GET /who HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 400_000 + b"\r\n\r\n",
        b"GET /" + b"x" * 400_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /who HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 100_000 + b"\r\n",
        UPGRADE + b"X: " + b"x" * 400_000 + b"\r\n\r\n",
        UPGRADE + b"X: y\r\n" * 300 + b"\r\n",
        UPGRADE + b"X: " + b"x" * 9000 + b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
        b"\r\n" * 200_000,
    ],
    ids=["header", "path", "headers", "ws-header", "ws-headers", "ws-line", "tls", "lines"],
)
def test_heads_that_are_too_long(tmp_path: Path, head: bytes) -> None:
    async def test(door: HttpDoor, port: int) -> None:
        async with Raw(port) as raw:
            await raw.say(head)
            came, seconds = await raw.closed()
            assert came[:10] in (b"", b"HTTP/1.1 4") and seconds < 5
        async with Raw(port) as raw:  # and others are served
            await raw.say(WHO)
            assert (await raw.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")

    run(tmp_path, test)


def test_messages_that_are_too_big(tmp_path: Path) -> None:
    async def test(door: HttpDoor, port: int) -> None:
        async with asking(port) as client:
            assert client.protocol.extensions == []  # nothing is inflated
            await client.send("hello")
            await client.recv()
            await client.send(b"x" * 10_000)
            assert len(await client.recv()) == 10_000
            await client.send(b"x" * 10_001)
            with pytest.raises(ConnectionClosed) as caught:
                await client.recv()
            assert caught.value.rcvd is not None and caught.value.rcvd.code == 1009
        async with asking(port) as client:
            await client.send("hello")
            await client.recv()
            with pytest.raises(ConnectionClosed) as caught:
                await client.send(b"x" * 1000 for _ in range(1000))  # in fragments
                await client.recv()
            assert caught.value.rcvd is not None and caught.value.rcvd.code == 1009

    run(tmp_path, test)


def test_many_that_say_nothing_make_room_for_others(tmp_path: Path) -> None:
    async def test(door: HttpDoor, port: int) -> None:
        door.max_connections = 8
        silent = [Raw(port) for _ in range(20)]
        for raw in silent:
            await raw.__aenter__()
        async with Raw(port) as raw:
            await raw.say(WHO)
            assert (await raw.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
            assert len(door.server_state.connections) <= 8
        for raw in silent:
            await raw.__aexit__()

    run(tmp_path, test, Limits(handshake_seconds=3.0))


def test_so_many_connections_and_no_more(tmp_path: Path) -> None:
    async def test(door: HttpDoor, port: int) -> None:
        door.max_connections = 3
        there = [await asking(port) for _ in range(3)]
        with pytest.raises((InvalidMessage, InvalidStatus, OSError)):
            await asking(port, open_timeout=3)
        for client in there:
            await client.close()
        async with asking(port):
            pass

    run(tmp_path, test)


def test_pings_of_who_does_not_read(tmp_path: Path) -> None:
    """Answers that nobody reads are not kept."""

    async def test(door: HttpDoor, port: int) -> None:
        async with Raw(port) as raw:
            await raw.say(UPGRADE + b"\r\n")
            await raw.reader.readuntil(b"\r\n\r\n")
            ping = b"\x89\xfd\0\0\0\0" + b"x" * 125
            raw.writer.transport.pause_reading()
            for _ in range(40):
                await raw.say(ping * 1000)
            (connection,) = door.server_state.connections
            assert connection.transport.get_write_buffer_size() < 2**18
            raw.writer.transport.abort()

    run(tmp_path, test)
