"""A client of `streamenc serve` that does what a test tells it, and nothing by itself."""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType
from typing import Any, Self

import numpy as np
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from streamenc.io.network.websocket.livemessages import (
    SUBPROTOCOL,
    Ack,
    Close,
    Closed,
    Error,
    GoAway,
    Open,
    Opened,
    Resume,
    Resumed,
    encode_message,
    read_from_server,
)
from streamenc.io.network.wire import (
    Credit,
    Data,
    Info,
    StreamSnapshot,
    decode,
    encode_credit,
    encode_samples,
    encode_snapshot,
)

UNNUMBERED = (Opened, Resumed, Ack, GoAway, Error)


class RawSocket:
    """One stream; `connect` it, `resume` it, and read what comes into `messages`.

    count      Numbered messages that came.
    messages   Those, without doubles: whatever the server sends again is seen as an error.
    """

    def __init__(self, url: str, **headers: str) -> None:
        self.url, self.headers = url, headers
        self.count = 0
        self.messages: list[Any] = []
        self.notices: list[Any] = []
        self.info: Info | None = None
        self.opened: Opened | None = None
        self.token = ""
        self.snapshot = b""
        self.seq = self.pts = 0
        self._socket: ClientConnection | None = None
        self._reader: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self.window = 0
        self.credited = True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: Any, trace: TracebackType | None
    ) -> None:
        await self.leave()

    async def connect(self, query: str = "") -> None:
        self._socket = await connect(
            f"{self.url}/v1/stream{query}",
            subprotocols=[SUBPROTOCOL],  # type: ignore[list-item]
            additional_headers=self.headers,
            max_size=None,
            compression=None,
        )

    async def open(self, **asked: Any) -> Opened:
        if self._socket is None:
            await self.connect()
        snapshot = asked.pop("snapshot", None)
        opening = Open(**asked, snapshot=snapshot is not None)
        self.window = opening.window
        await self.send(encode_message(opening))
        if snapshot is not None:
            await self.send(encode_snapshot(StreamSnapshot(0, snapshot)))
        answer = read_from_server(await self._text())
        assert isinstance(answer, Opened), answer
        self.opened, self.token = answer, answer.token
        self._reader = asyncio.create_task(self._read())
        return answer

    async def resume(self, token: str = "") -> Resumed:
        await self.leave()
        await self.connect("?resume")
        await self.send(encode_message(Resume(token or self.token, self.count, self.window)))
        answer = read_from_server(await self._text())
        assert isinstance(answer, Resumed), answer
        self.token = answer.token
        self._reader = asyncio.create_task(self._read())
        return answer

    async def send(self, message: bytes | str) -> None:
        assert self._socket is not None
        await self._socket.send(message)

    async def sound(self, samples: np.ndarray[Any, Any], *, flags: int = 0) -> None:
        """(samples,) or (channels, samples)."""
        samples = samples[None] if samples.ndim == 1 else samples
        await self.send(encode_samples(samples, self.seq, self.pts, flags))
        self.seq += 1
        self.pts += samples.shape[1]

    async def say(self, message: Any) -> None:
        await self.send(encode_message(message))
        self.seq += 1

    async def until(self, kind: type[Any], seconds: float = 20.0) -> Any:
        """Waits until a message of that kind has come."""
        async with asyncio.timeout(seconds):
            while True:
                for message in (*self.messages, *self.notices):
                    if isinstance(message, kind):
                        return message
                if self._reader is not None and self._reader.done():
                    raise EOFError(f"no {kind.__name__} came before the connection ended")
                self._changed.clear()
                await self._changed.wait()

    async def close(self) -> Closed:
        await self.say(Close())
        closed: Closed = await self.until(Closed)
        await self.leave()
        return closed

    async def ended(self, seconds: float = 20.0) -> None:
        """Waits until the server has ended the connection."""
        assert self._reader is not None
        await asyncio.wait([self._reader], timeout=seconds)

    async def leave(self, *, abort: bool = False) -> None:
        """Ends the connection, and not the stream; aborted, as a broken network does it."""
        if self._socket is None:
            return
        if abort:
            self._socket.transport.abort()
        await self._socket.close()
        if self._reader is not None:
            await asyncio.gather(self._reader, return_exceptions=True)
        self._socket = self._reader = None

    @property
    def data(self) -> list[Data]:
        return [message for message in self.messages if isinstance(message, Data)]

    def codes(self, track: int = 0) -> np.ndarray[Any, Any]:
        """All that came of a track, one behind the other."""
        return np.concatenate([d.data for d in self.data if d.track == track], axis=1)

    async def _text(self) -> str:
        assert self._socket is not None
        answer = await self._socket.recv()
        assert isinstance(answer, str)
        return answer

    async def _read(self) -> None:
        assert self._socket is not None
        try:
            async for message in self._socket:
                await self._took(
                    read_from_server(message) if isinstance(message, str) else decode(message)
                )
                self._changed.set()
        finally:
            self._changed.set()

    async def _took(self, packet: Any) -> None:
        if isinstance(packet, Info):
            self.info = packet
        elif isinstance(packet, StreamSnapshot):
            self.snapshot = packet.blob
        elif isinstance(packet, (Credit, *UNNUMBERED)):
            self.notices.append(packet)
        else:
            if not isinstance(packet, Data):
                assert packet.n >= self.count, f"{packet} came twice"
                self.count = packet.n
            self.messages.append(packet)
            self.count += 1
            if self.window and self.credited and self.count % max(1, self.window // 2) == 0:
                # Where the server has closed already, what it sent before is still to be read.
                with contextlib.suppress(ConnectionClosed):
                    await self.send(encode_credit(Credit(0, self.count, self.window)))
