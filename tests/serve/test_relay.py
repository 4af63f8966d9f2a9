"""Connections that came to another process than the one that has what they ask for."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("websockets", reason="needs the extra serve")
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from streamenc.serve.guard import ADMITTED, Admission, Guard
from streamenc.serve.keyring import Keyring, keys_of
from streamenc.serve.relay import Relay
from tests.serve.processes.doors import siblings

KEY = "0123456789abcdef"
GUARD = Guard(Keyring(keys_of([f"robot {KEY}"], "here")))


def asking(port: int, path: str = "/v1/stream", key: str = KEY, **how: object) -> connect:
    return connect(
        f"ws://127.0.0.1:{port}{path}",
        subprotocols=["streamenc.v1", f"key.{key}"],  # type: ignore[list-item]
        compression=None,
        **how,  # type: ignore[arg-type]
    )


def run(test: Callable[..., Awaitable[None]], folder: Path, count: int = 2) -> None:
    async def main() -> None:
        async with asyncio.timeout(30), siblings(folder, count, GUARD) as there:
            await test(there)

    asyncio.run(main())


async def who(client: ClientConnection, first: str = "here") -> list[str]:
    await client.send(first)
    said = await client.recv()
    assert isinstance(said, str)
    return said.split()


def test_a_token_of_another_process(tmp_path: Path) -> None:
    async def test(there: list) -> None:
        (port, _, relay, _), (_, other, _, inner) = there
        async with asking(port, "/v1/stream?resume") as client:
            assert await who(client, "1.secret") == ["1", str(other.pid), "robot"]
            assert client.subprotocol == "streamenc.v1"
            assert (relay.passing, other.connected) == (1, 1)
            for message in ("text", b"bytes", b"x" * 2**20):
                await client.send(message)
                assert await client.recv() == message
            await client.close(1000, "bye")
        for _ in range(200):
            if not other.connected and not relay.passing:
                break
            await asyncio.sleep(0.01)
        assert (relay.passing, other.connected) == (0, 0)
        assert not inner.server_state.connections

    run(test, tmp_path)


@pytest.mark.parametrize("token", ["0.secret", "7.secret", "x.secret", "-1.s", "²¹.s", ""])
def test_tokens_that_stay_here(tmp_path: Path, token: str) -> None:
    async def test(there: list) -> None:
        async with asking(there[0][0]) as client:
            assert (await who(client, token))[0] == "0"

    run(test, tmp_path)


def test_the_other_one_closes(tmp_path: Path) -> None:
    async def test(there: list) -> None:
        async with asking(there[0][0]) as client:
            await who(client, "1.secret")
            await client.send("close 4409")
            with pytest.raises(ConnectionClosed) as caught:
                await client.recv()
            assert caught.value.rcvd is not None
            assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (4409, "as asked")

    run(test, tmp_path)


def test_the_other_one_dies(tmp_path: Path) -> None:
    """A client is told to come again; and who comes then, and cannot be passed on, stays here."""

    async def test(there: list) -> None:
        (port, _, relay, _), (_, _, _, inner) = there
        async with asking(port) as client:
            await who(client, "1.secret")
            for connection in list(inner.server_state.connections):
                connection.transport.abort()
            with pytest.raises(ConnectionClosed) as caught:
                await client.recv()
            assert caught.value.rcvd is not None and caught.value.rcvd.code == 1012
        inner.servers[0].close()
        async with asking(port) as client:
            assert (await who(client, "1.secret"))[0] == "0"
        assert relay.passing == 0

    run(test, tmp_path)


def test_what_was_passed_on_once_is_not_again() -> None:
    relay = Relay(0, ["io-0", "io-1"])
    direct: Any = SimpleNamespace(scope={})
    passed_on: Any = SimpleNamespace(scope={ADMITTED: Admission("robot")})
    assert (relay.of_token(direct, "1.secret"), relay.of_token(passed_on, "1.secret")) == (1, None)
    assert relay.of_room(passed_on, room(1, 2)) is None


def room(of: int, count: int) -> str:
    return next(n for n in map("room{}".format, range(99)) if zlib.crc32(n.encode()) % count == of)


def test_rooms(tmp_path: Path) -> None:
    """Each is at one process, whichever the client came to; a refusal comes before the upgrade."""

    async def test(there: list) -> None:
        for number in range(3):
            for port, *_ in there:
                async with asking(port, f"/v1/room/{room(number, 3)}?a=%20b") as client:
                    assert (await who(client))[::2] == [str(number), "robot"]
        has_it = zlib.crc32(b"closed") % 3
        for port, *_ in there:
            with pytest.raises(InvalidStatus) as caught:
                async with asking(port, "/v1/room/closed"):
                    pass
            response = caught.value.response
            assert (response.status_code, response.headers["Retry-After"]) == (503, "7")
            assert response.body == b'{"error":{"code":"full","message":"no place"}}'
        assert not any(service.connected for _, service, *_ in there) and has_it in range(3)

    run(test, tmp_path, 3)


def test_nobody_names_himself(tmp_path: Path) -> None:
    """The header by which processes tell whom they admitted is of no use from outside."""

    async def test(there: list) -> None:
        for way in ({}, {"additional_headers": {"x-streamenc-admitted": "robot"}}):
            with pytest.raises(InvalidStatus) as caught:
                async with asking(there[0][0], "/v1/stream?resume", "0123456789abcdeX", **way):
                    pass
            assert caught.value.response.status_code == 401

    run(test, tmp_path)


def test_a_slow_reader_fills_no_memory(tmp_path: Path) -> None:
    """Of a client that does not read, the process between holds some messages and no more."""

    async def test(there: list) -> None:
        async with asking(there[0][0], write_limit=2**16, max_queue=1) as client:
            await who(client, "1.secret")
            sent = 0
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(2):
                    while True:
                        await client.send(b"x" * 2**18)
                        sent += 1
            # What sockets hold on six ways, and what each process holds; without bounds it would
            # be thousands.
            assert sent < 200
            for _ in range(sent):
                assert await client.recv() == b"x" * 2**18

    run(test, tmp_path)
