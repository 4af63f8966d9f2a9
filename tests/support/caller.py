"""A client of `/v1/stream` as docs/server alone has it, which counts all that comes.

It resumes after whatever happens, and fails where a packet is missing, comes twice, or where the
numbers of messages do not go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import websockets
from websockets.asyncio.client import ClientConnection, connect

TRY_SECONDS = 0.2
WINDOW = 64


@dataclass
class Caller:
    """One stream: sound that is sent piece by piece, and the codes that come back.

    Attributes:
        sound: (samples,), int16.
        pace: By how much faster than it lasts sound is sent.
        sources: Whence it went on, each time.
        closes: With which codes connections ended, and 0 where none came.
    """

    url: str
    model: str
    sound: np.ndarray[Any, Any]
    rate: int
    pace: float = 1.0
    piece_seconds: float = 0.04
    headers: dict[str, str] = field(default_factory=dict)
    codes: list[np.ndarray[Any, Any]] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    closes: Counter[int] = field(default_factory=Counter)
    goaways: int = 0
    refusals: Counter[int] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.token = ""
        self.received = 0  # numbered messages
        self.acknowledged = 0  # ordered messages that will never be asked for again
        self.sent_pts = self.sent_seq = 0
        self.closed: dict[str, Any] | None = None
        self.news, self.more_room = asyncio.Event(), asyncio.Event()
        self.socket: ClientConnection | None = None

    @property
    def frames(self) -> int:
        return sum(codes.shape[1] for codes in self.codes)

    async def until_frames(self, frames: int, seconds: float = 60) -> None:
        async with asyncio.timeout(seconds):
            while self.frames < frames:
                self.news.clear()
                await self.news.wait()

    async def run(self) -> np.ndarray[Any, Any]:
        """All codes, (codebooks, frames)."""
        while self.closed is None:
            try:
                await self._connection()
            except websockets.InvalidStatus as refused:
                self.refusals[refused.response.status_code] += 1
            except (websockets.ConnectionClosed, OSError, EOFError, websockets.InvalidMessage) as e:
                received = getattr(e, "rcvd", None)
                self.closes[received.code if received else 0] += 1
            if self.closed is None:
                await asyncio.sleep(TRY_SECONDS)
        return np.concatenate(self.codes, axis=1)

    async def _connection(self) -> None:
        url = f"{self.url}/v1/stream" + ("?resume" if self.token else "")
        async with connect(
            url,
            subprotocols=[websockets.Subprotocol("streamenc.v1")],
            additional_headers=self.headers,
            compression=None,
            open_timeout=30,
        ) as socket:
            self.socket = socket
            if self.token:
                asked = {"type": "resume", "token": self.token, "received": self.received}
            else:
                asked = {"type": "open", "model": self.model, "format": "s16", "rate": self.rate}
            await socket.send(json.dumps({**asked, "window": WINDOW}))
            first = json.loads(await socket.recv())
            if first["type"] == "error":
                assert first["code"] in ("ending", "full", "engine_gone"), first
                return
            self.token = first["token"]
            if first["type"] == "resumed":
                assert first["n"] == self.received and first["exact"], first
                assert first["next_seq"] >= self.acknowledged, first
                self.sent_seq, self.sent_pts = first["next_seq"], first["next_pts"]
                self.sources.append(first["source"])
            self.room = self.sent_seq + first["window"]
            sender = asyncio.create_task(self._send(socket))
            try:
                async for message in socket:
                    await self._take(socket, message)
                self.closes[socket.close_code or 0] += 1
            finally:
                sender.cancel()
                with contextlib.suppress(asyncio.CancelledError, websockets.ConnectionClosed):
                    await sender

    async def _send(self, socket: ClientConnection) -> None:
        piece = round(self.piece_seconds * self.rate)
        while self.sent_pts < len(self.sound):
            await asyncio.sleep(self.piece_seconds / self.pace)
            while self.sent_seq >= self.room:
                self.more_room.clear()
                await self.more_room.wait()
            part = self.sound[self.sent_pts : self.sent_pts + piece]
            body = [0, 0, self.sent_seq, self.sent_pts, len(part), 0, 0, 1.0, "i2", (1, len(part))]
            await socket.send(packet(b"D", [*body, part.tobytes()]))
            self.sent_seq += 1
            self.sent_pts += len(part)
        await socket.send(json.dumps({"type": "close", "seq": self.sent_seq}))

    async def _take(self, socket: ClientConnection, message: str | bytes) -> None:
        if isinstance(message, bytes):
            kind, body = message[4:5], msgspec.msgpack.decode(message[5:])
            if kind == b"D":
                self.received += 1
                dtype, shape, payload = body[8], body[9], body[10]
                self.news.set()
                self.codes.append(np.frombuffer(payload, "<" + dtype).reshape(shape))
                with contextlib.suppress(websockets.ConnectionClosed):  # and there is more to read
                    await socket.send(packet(b"C", [0, self.received, WINDOW]))
            elif kind == b"C":
                self.room = body[1] + body[2]
                self.more_room.set()
            return
        told = json.loads(message)
        assert not (told["type"] == "error" and told["code"].startswith("bad")), told
        if "n" in told:
            assert told["n"] == self.received, told
            self.received += 1
        if told["type"] == "ack":
            self.acknowledged = told["seq"]
        elif told["type"] == "goaway":
            self.goaways += 1
        elif told["type"] == "closed":
            assert told["packets"] == len(self.codes)
            self.closed = told


def packet(kind: bytes, body: list[Any]) -> bytes:
    """As docs/io/wire.md has it."""
    return b"SE\x01\x03" + kind + msgspec.msgpack.encode(body)
