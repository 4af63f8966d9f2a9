"""A service without an engine: a toy model of 20 ms hops, whose codes tell what went in."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

import numpy as np

from streamenc.errors import EngineFull, InputError, UsageError
from streamenc.graph.frames import Frame
from streamenc.io.network.websocket.livemessages import (
    Close,
    Closed,
    Flush,
    Flushed,
    InputFacts,
    Mark,
    Marked,
    Open,
    Opened,
    Set,
    Speech,
    WasSet,
    encode_message,
)
from streamenc.io.network.wire import Data
from streamenc.serve.limits import Limits
from streamenc.serve.streams.outbox import Sent

BOOKS, SIZE = 8, 2048


def codes_of(samples: np.ndarray[Any, Any], hop: int, books: int = BOOKS) -> np.ndarray[Any, Any]:
    """What the toy makes of one stream, (books, hops), its tail filled up with zeros."""
    mono = np.atleast_2d(samples).astype(np.int64).sum(0)
    mono = np.pad(mono, (0, -len(mono) % hop)).reshape(-(-len(mono) // hop), hop)
    sums = np.abs(mono).sum(1)
    return ((sums[None] + np.arange(books)[:, None]) % SIZE).astype(np.uint16)


class StandinService:
    """As Service, of one model, "toy"."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.draining, self.ready = "", True
        self.live: list[StandinLive] = []
        self.asked: list[tuple[Open, str]] = []

    async def open(self, asked: Open, owner: str = "") -> StandinLive:
        if asked.model != "toy":
            raise UsageError(f"no model {asked.model!r} here")
        if (asked.codebooks or 0) > BOOKS:
            raise InputError(f"got {asked.codebooks} codebooks; toy has {BOOKS}")
        if len(self.live) >= self.limits.sessions:
            raise EngineFull(self.limits.sessions)
        self.asked.append((asked, owner))
        self.live.append(StandinLive(asked))
        return self.live[-1]

    async def forget(self, live: StandinLive) -> None:
        live.end("closed", "it was closed")
        if live in self.live:
            self.live.remove(live)


class StandinLive:
    """As LiveStream. It computes nothing while `running` is not set."""

    def __init__(self, asked: Open) -> None:
        self._asked = asked
        rate = asked.rate or 24_000
        self.hop = round(rate / 50)
        self.books = asked.codebooks or BOOKS
        facts = InputFacts(asked.format, rate, asked.channels or 1, (1, round(rate)))
        self.opened = Opened(
            session="s-1",
            token="secret",
            model="toy",
            direction="encode",
            fingerprint="f",
            equality="offline",
            input=facts,
            model_rate=rate,
            lead=self.hop,
            hop=self.hop,
            delay_ms=0.0,
            rate=50.0,
            codebooks=self.books,
            codebook_size=SIZE,
            window=64,
            max_message_bytes=2**20,
            max_queued_bytes=2**22,
            resume_seconds=60.0,
            vad="energy" if asked.vad else "",
        )
        self.running = asyncio.Event()
        self.running.set()
        self.got: list[Data] = []
        self._inputs: asyncio.Queue[Any] = asyncio.Queue(64)
        self.attachment = StandinAttachment()
        self._rest = np.zeros(0, np.int64)
        self._end = self._frames = self._quiet = 0
        self._speaking = False
        self._worker = asyncio.create_task(self._work())
        self._worker.add_done_callback(lambda _: self.attachment.end("internal", "it failed"))

    async def put(self, message: Any) -> None:
        await self._inputs.put(message)

    def attach(self, *, received: int = 0, window: int = 0) -> tuple[StandinAttachment, None]:
        return self.attachment, None

    def end(self, code: str, message: str) -> None:
        self._worker.cancel()
        self.attachment.end(code, message)

    async def _work(self) -> None:
        while True:
            message = await self._inputs.get()
            await self.running.wait()
            send = self.attachment.send
            if isinstance(message, Data):
                self.got.append(message)
                self._take(message)
            elif isinstance(message, Flush):
                self._step(len(self._rest), codes_of(self._rest, self.hop, self.books))
                send(Flushed(self._end, self.attachment.next))
            elif isinstance(message, Mark):
                send(Marked(message.id, self._end, self.attachment.next))
            elif isinstance(message, Set):
                self.books = message.codebooks or BOOKS
                send(WasSet(self.books, self.attachment.next))
            elif isinstance(message, Close):
                self._step(len(self._rest), codes_of(self._rest, self.hop, self.books))
                send(Closed(self.attachment.next, self._frames, 0.0))
                self.attachment.end("closed", "the client closed it")

    def _take(self, data: Data) -> None:
        mono = data.data.astype(np.int64).sum(0)
        if data.discontinuity:
            self._rest = np.zeros(0, np.int64)
        if not len(self._rest):
            self._end = data.pts
        self._rest = np.concatenate([self._rest, mono])
        while len(self._rest) >= self.hop:
            hop = self._rest[: self.hop]
            if self._asked.vad:
                self._hear(hop)
            self._step(self.hop, codes_of(hop, self.hop, self.books))

    def _hear(self, hop: np.ndarray[Any, Any]) -> None:
        assert self._asked.vad is not None
        loud = np.abs(hop).max() > 1000
        self._quiet = 0 if loud else self._quiet + 20
        if loud and not self._speaking:
            self.attachment.send(Speech("started", self._end, self.attachment.next))
            self._speaking = True
        elif self._speaking and self._quiet >= self._asked.vad.silence_ms:
            self.attachment.send(Speech("stopped", self._end, self.attachment.next))
            self._speaking = False

    def _step(self, samples: int, codes: np.ndarray[Any, Any]) -> None:
        if samples:
            self.attachment.send(Frame(codes, self._end, samples, self._frames))
            self._frames += 1
            self._end += samples
            self._rest = self._rest[samples:]


class StandinAttachment:
    """As Attachment."""

    def __init__(self) -> None:
        self.ended = self.message = ""
        self.next = 0
        self.received = 0
        self._sent: deque[Sent | None] = deque()
        self._changed = asyncio.Event()

    def send(self, what: Any) -> None:
        packet = what.data.tobytes() if isinstance(what, Frame) else encode_message(what)
        self._sent.append(Sent(self.next, what, packet))
        self.next += 1
        self._changed.set()

    def end(self, code: str, message: str) -> None:
        if self.ended:
            return
        self.ended, self.message = code, message
        self._sent.append(None)
        self._changed.set()

    def credit(self, received: int, window: int) -> None:
        self.received = received

    def detach(self) -> None:
        pass

    def __aiter__(self) -> StandinAttachment:
        return self

    async def __anext__(self) -> Sent:
        while not self._sent:
            self._changed.clear()
            await self._changed.wait()
        sent = self._sent.popleft()
        if sent is None:
            raise StopAsyncIteration
        return sent
