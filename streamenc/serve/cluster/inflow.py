"""Inflow: what a client sends, within a bound, where nothing on the way holds it up.

Ray Serve reads from a socket whatever comes, and keeps it for the replica however much it is. So it
is taken from there at once, and a connection of which too much waits is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

TOO_SLOW, TOO_BIG = 1008, 1009
# What a message costs beside its bytes.
MESSAGE_BYTES = 200


def bounded(app: ASGIApp, max_bytes: int, max_message_bytes: int) -> ASGIApp:
    """`app`, for which no more than `max_bytes` wait of a connection, and a WebSocket's messages
    are no longer than `max_message_bytes`."""

    async def within(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await app(scope, receive, send)
            return
        inflow = Inflow(scope["type"], receive, send, max_bytes, max_message_bytes)
        try:
            await app(scope, inflow.receive, inflow.send)
        finally:
            await inflow.aclose()

    return within


class Inflow:
    """The `receive` and `send` of one connection."""

    def __init__(
        self, kind: str, receive: Receive, send: Send, max_bytes: int, max_message_bytes: int
    ) -> None:
        self._kind, self._receive, self._send = kind, receive, send
        self._max_bytes = max_bytes
        self._max_message_bytes = max_message_bytes if kind == "websocket" else max_bytes
        self._waiting: deque[Message] = deque()
        self._nbytes = 0
        self._news = asyncio.Event()
        self._over: Message | None = None
        self._closed = False
        self._task = asyncio.create_task(self._read())

    async def receive(self) -> Message:
        while not self._waiting:
            if self._over is not None:
                return self._over
            self._news.clear()
            await self._news.wait()
        message = self._waiting.popleft()
        self._nbytes -= _nbytes(message)
        return message

    async def send(self, message: Message) -> None:
        if not self._closed:
            self._closed = message["type"] == "websocket.close"
            await self._send(message)

    async def aclose(self) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _read(self) -> None:
        try:
            while self._over is None:
                message = await self._receive()
                if message["type"].endswith(".disconnect"):
                    self._over = message
                elif _nbytes(message) > self._max_message_bytes + MESSAGE_BYTES:
                    most = self._max_message_bytes
                    await self._refuse(TOO_BIG, f"a message has {most} bytes at most here")
                elif self._nbytes + _nbytes(message) > self._max_bytes:
                    why = "more came than fits: send no more than the window that credits tell"
                    await self._refuse(TOO_SLOW, why)
                else:
                    self._nbytes += _nbytes(message)
                    self._waiting.append(message)
                self._news.set()
        finally:
            if self._over is None:  # whatever failed: nothing will come any more
                self._over = {"type": f"{self._kind}.disconnect", "code": 1006}
                self._news.set()

    async def _refuse(self, code: int, reason: str) -> None:
        self._waiting.clear()
        self._nbytes = 0
        self._over = {"type": f"{self._kind}.disconnect", "code": code}
        if self._kind == "websocket":
            await self.send({"type": "websocket.close", "code": code, "reason": reason})


def _nbytes(message: Message) -> int:
    body = message.get("bytes") or message.get("text") or message.get("body") or b""
    return len(body) + MESSAGE_BYTES
