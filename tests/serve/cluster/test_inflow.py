"""A connection holds no more than its bound, though nothing on the way holds its client up."""

from __future__ import annotations

import asyncio
from typing import Any

from streamenc.serve.cluster.inflow import bounded

Message = dict[str, Any]


class Peer:
    """Messages that come, at once, and those that went out."""

    def __init__(self, messages: list[Message]) -> None:
        self._messages, self.sent, self.read = messages, [], 0  # type: ignore[var-annotated]

    async def receive(self) -> Message:
        if self.read == len(self._messages):
            await asyncio.Event().wait()
        self.read += 1
        return self._messages[self.read - 1]

    async def send(self, message: Message) -> None:
        self.sent.append(message)


def piece(nbytes: int) -> Message:
    return {"type": "websocket.receive", "bytes": b"." * nbytes}


def run(peer: Peer, app: Any, kind: str = "websocket", max_bytes: int = 10_000) -> None:
    async def go() -> None:
        async with asyncio.timeout(5):
            await bounded(app, max_bytes, 5_000)({"type": kind}, peer.receive, peer.send)

    asyncio.run(go())


def test_all_comes_in_order_and_the_end_stays_the_end() -> None:
    end = {"type": "websocket.disconnect", "code": 1001}
    peer = Peer([{"type": "websocket.connect"}, piece(1), piece(2), end])
    got: list[Message] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        got.extend([await receive() for _ in range(5)])
        await send({"type": "websocket.close"})

    run(peer, app)
    assert [message["type"][10:] for message in got[:3]] == ["connect", "receive", "receive"]
    assert got[3:] == [end, end]
    assert peer.sent == [{"type": "websocket.close"}]


def test_too_much_closes_the_connection_while_the_application_is_busy() -> None:
    peer = Peer([piece(3000) for _ in range(100)])

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0.01)
        assert await receive() == {"type": "websocket.disconnect", "code": 1008}
        await send({"type": "websocket.send", "text": "into the void"})

    run(peer, app)
    assert [(message["type"], message["code"]) for message in peer.sent] == [
        ("websocket.close", 1008)
    ]
    assert peer.read == 4


def test_a_body_that_is_read_may_be_long_and_one_that_is_not_may_not() -> None:
    body = [{"type": "http.request", "body": b"." * 3000, "more_body": True} for _ in range(100)]
    peer = Peer([*body])

    async def reads(scope: Any, receive: Any, send: Any) -> None:
        for _ in range(100):
            assert (await receive())["type"] == "http.request"

    async def waits(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0.01)
        assert (await receive())["type"] == "http.disconnect"

    run(Peer([*body[:3]]), lambda *a: asyncio.sleep(0))
    run(peer, waits, "http")
    assert peer.read == 4
    slow = Peer([*body])
    receive_all = slow.receive

    async def paced() -> Message:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return await receive_all()

    slow.receive = paced  # type: ignore[method-assign]
    run(slow, reads, "http")


def test_a_message_is_as_long_as_it_may_be() -> None:
    peer = Peer([piece(5000), piece(5001)])

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert (await receive())["bytes"] == b"." * 5000
        go.set()
        assert (await receive())["code"] == 1009

    async def held() -> Message:
        if peer.read:
            await go.wait()
        return await at_once()

    go, at_once = asyncio.Event(), peer.receive
    peer.receive = held  # type: ignore[method-assign]
    run(peer, app)
    assert [message["code"] for message in peer.sent] == [1009]
