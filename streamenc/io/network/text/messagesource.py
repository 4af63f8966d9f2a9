"""What sources of messages of text share: a task that reads, and messages that wait."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections import deque
from collections.abc import AsyncIterator

from streamenc import options
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.graph.node import Source
from streamenc.io.network.packetsource import end_task
from streamenc.io.text.textsource import INFO
from streamenc.io.text.transcript import Reading, Transcript

MAX_QUEUE = 1_000_000


class MessageSource(Source):
    """A source fed by a task that reads messages from a network. Subclasses say how.

    Each message is a segment: UTF-8, or an object of a transcript, and its time is when it came,
    where it does not say another. Where nobody takes them in time, the oldest are lost, counted and
    told, unless the sender can wait.

    queue  Messages that may wait here.
    """

    def __init__(self, reading: Reading, queue: str | int) -> None:
        self._reading = reading
        self._bound = options.integer("queue", queue, 1, MAX_QUEUE)
        self.remarks: list[str] = []
        # Each with when it came; of one that is too long, its size.
        self._messages: deque[tuple[bytes | int, int]] = deque()
        self._missed = 0
        self._changed, self._room = asyncio.Event(), asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._stopped = False

    @abstractmethod
    async def _connect(self) -> None:
        """Raises TransportError where that fails."""

    @abstractmethod
    async def _pump(self) -> None:
        """Calls `_take` with each message, for as long as there are any."""

    @abstractmethod
    async def _disconnect(self) -> None: ...

    def _told(self) -> list[str]:
        """Sentences of the connection's own."""
        return []

    def _full(self) -> bool:
        """Whether taking one now would lose another one."""
        if len(self._messages) < self._bound:
            return False
        self._room.clear()
        return True

    def _take(self, message: bytes) -> None:
        if len(self._messages) >= self._bound:
            self._messages.popleft()
            self._missed += 1
        short = len(message) <= self._reading.most_bytes
        self._messages.append((message if short else len(message), self.clock.now_ns()))
        self._changed.set()

    async def open(self) -> StreamInfo:
        self._transcript = Transcript(self._reading, "message", timeless=False)
        await self._connect()
        self._since_ns = self.clock.now_ns()
        self._task = asyncio.create_task(self._pump())
        self._task.add_done_callback(lambda _: self._changed.set())
        return INFO

    async def frames(self) -> AsyncIterator[Frame]:
        while True:
            while self._messages:
                frame = self._next()
                self._room.set()
                if frame is not None:
                    yield frame
            if self._stopped:
                return
            if self._task is not None and self._task.done():
                self._task.result()
                return
            self._changed.clear()
            await self._changed.wait()

    def _next(self) -> Frame | None:
        missed, self._missed = self._missed, 0
        self._transcript.lose(missed, "taken too late, as more came")
        message, arrived_ns = self._messages.popleft()
        frame = None
        if isinstance(message, int):
            self._transcript.too_long(message)
        else:
            frame = self._transcript.segment(message, arrived_ns, self._since_ns)
        self.lost = self._transcript.lost
        self.remarks = [*self._told(), *self._transcript.remarks]
        return frame

    def stop(self) -> None:
        self._stopped = True
        self._changed.set()

    async def aclose(self) -> None:
        await end_task(self._task)
        await self._disconnect()
