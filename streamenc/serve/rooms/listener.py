"""Listener: one who listens in a room, and what waits for it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator

from streamenc.io.network.repacking import flagged
from streamenc.io.network.websocket.livemessages import Dropped, Listen


class Listener:
    """An async iterator of what goes to it: packets (bytes), and what was dropped.

    The first packet of data, and each behind what was dropped, has the flag of a discontinuity.

    Args:
        max_bytes: That may wait.

    Attributes:
        dropped: Packets of data that it did not get.
        ended: Why it ended, a code of docs/server: "closed" where the stream has.
    """

    def __init__(self, asked: Listen, max_bytes: int) -> None:
        self._window, self._max_bytes = asked.window, max_bytes
        self.policy = asked.policy
        self._info = b""
        self._last = b""
        self._waiting: deque[bytes] = deque()
        self._bytes = 0
        self._gap = True
        self._untold = self._sent = self.dropped = 0
        self.ended = self.message = ""
        self._changed = asyncio.Event()
        self._room = asyncio.Event()

    @property
    def full(self) -> bool:
        return len(self._waiting) >= self._window or self._bytes > self._max_bytes

    def describe(self, info: bytes) -> None:
        """What comes."""
        self._info = info
        self._changed.set()

    def offer(self, packet: bytes) -> None:
        """A packet of data: whatever its policy says, there is room for it afterwards."""
        if self.ended:
            return
        if self.full and self.policy == "close":
            self.end("too_slow", f"{len(self._waiting)} packets waited; read faster")
            return
        while self.full and self._waiting:
            self._bytes -= len(self._waiting.popleft())
            self.dropped += 1
            self._untold += 1
            self._gap = True
        self._waiting.append(packet)
        self._bytes += len(packet)
        self._changed.set()

    async def room(self) -> None:
        """Waits until it is not full, or has ended."""
        while self.full and not self.ended:
            self._room.clear()
            await self._room.wait()

    def finish(self, last: bytes) -> None:
        """The stream has ended: what waits is sent yet, and then this."""
        self._last = last
        self.end("closed", "the stream ended")

    def end(self, code: str, message: str) -> None:
        if not self.ended:
            self.ended, self.message = code, message
        self._changed.set()
        self._room.set()

    async def __aiter__(self) -> AsyncIterator[bytes | Dropped]:
        while True:
            self._changed.clear()
            if self.ended and self.ended != "closed":
                return
            if self._info:
                info, self._info = self._info, b""
                yield info
            elif self._untold:
                packets, self._untold = self._untold, 0
                self._sent += 1
                yield Dropped("output", packets, self.dropped, self._sent - 1)
            elif self._waiting:
                packet = self._waiting.popleft()
                self._bytes -= len(packet)
                self._room.set()
                self._sent += 1
                if self._gap:
                    packet, self._gap = flagged(packet), False
                yield packet
            elif self._last:
                last, self._last = self._last, b""
                yield last
            elif self.ended:
                return
            else:
                await self._changed.wait()
