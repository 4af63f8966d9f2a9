"""What sources of packets share: a task that reads, frames that wait, and words for losses."""

from __future__ import annotations

import asyncio
import time
from abc import abstractmethod
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

from streamenc import options
from streamenc.errors import TransportError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.graph.node import Source
from streamenc.io.network.packets import PacketReader

# What may wait in frames that nobody has taken, however few they are.
MAX_WAITING_BYTES = 64 << 20


class PacketSource(Source):
    """A source fed by a task that reads packets from a network. Subclasses say how.

    shared     Whether strangers may publish at the address, as in PacketReader.
    malformed  Packets that were skipped, as they made no sense.
    stale      Frames that were older than `max_age_ms`, and dropped; they count as `lost`.
    """

    shared: bool = False
    malformed: int = 0
    stale: int = 0

    def __init__(
        self, address: str, timeout_s: float | str, max_age_ms: float | str, bound: int, cure: str
    ) -> None:
        """`cure` says what a user can do about frames that were lost on the way."""
        self.address = address
        self._timeout_s = options.number("timeout_s", timeout_s, 0.1, 86_400.0)
        self._max_age_ms = options.number("max_age_ms", max_age_ms, 0.0, 86_400_000.0)
        self._bound = bound
        self._cure = cure
        # Each with the time of `PacketReader.left_ns`.
        self._frames: deque[tuple[Frame, int]] = deque()
        self._waiting_bytes = 0
        self._gaps: set[int] = set()
        self._counts: tuple[int, ...] = (0,) * 6
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._stopped = False

    @abstractmethod
    async def _connect(self) -> None:
        """Raises TransportError where that fails."""

    @abstractmethod
    async def _pump(self) -> None:
        """Calls `_take` with each packet while there is `_has_room`, until the stream ends."""

    @abstractmethod
    async def _disconnect(self) -> None: ...

    def _consumed(self) -> None:
        """A frame was taken by whoever iterates over `frames`."""
        self._room.set()

    def _has_room(self) -> bool:
        if len(self._frames) < self._bound and self._waiting_bytes < MAX_WAITING_BYTES:
            return True
        self._room.clear()
        return False

    def _take(self, packet: bytes) -> None:
        frame = self._reader.feed(packet)
        if frame is not None and not self._stopped:
            self._frames.append((frame, self._reader.left_ns))
            self._waiting_bytes += frame.data.nbytes
        self._tell()
        self._changed.set()

    def _settle(self) -> None:
        """Nothing came for as long as `PacketReader.ends_in_s` said."""
        self._reader.settle()
        self._tell()
        self._changed.set()

    def _gone(self, why: str) -> None:
        """The publisher seems to be gone, until something comes from it again."""
        self._reader.gone(why)
        self._tell()

    def _tell(self) -> None:
        reader = self._reader
        self.malformed, self.broken = reader.malformed, reader.broken
        self.lost = reader.lost + self.stale
        others = reader.strangers, reader.rivals
        counts = reader.lost, self.stale, reader.missed, *others, reader.malformed
        if counts != self._counts:
            self._counts = counts
            self.remarks = self._sentences()

    def _sentences(self) -> list[str]:
        reader = self._reader
        told = {
            f"joined late: {reader.missed} frames had been sent before the first one that came; "
            "to have them, start this end first, and the publisher after it": reader.missed,
            f"{reader.lost} frames were lost on the way here; {self._cure}": reader.lost,
            f"{self.stale} frames were older than max_age_ms={self._max_age_ms:g} and dropped; "
            "what takes them is too slow": self.stale,
            f"another publisher sends to {self.address}; {reader.strangers} frames of it were left "
            "out; give each publisher an address of its own": reader.strangers + reader.rivals,
            f"{reader.malformed} packets made no sense and were skipped; does something else "
            f"publish at {self.address}?": reader.malformed,
        }
        return [sentence for sentence, count in told.items() if count]

    async def open(self) -> StreamInfo:
        self._reader = PacketReader(self.clock, self.shared)
        await self._connect()
        self._task = asyncio.create_task(self._pump())
        self._task.add_done_callback(lambda _: self._changed.set())
        try:
            async with asyncio.timeout(self._timeout_s):
                while (info := self._reader.info) is None:
                    await self._wait()
        except TimeoutError:
            raise TransportError(
                f"nothing was published at {self.address} within {self._timeout_s:g} s; "
                "is the publisher running, and is the address right?"
            ) from None
        return info

    async def frames(self) -> AsyncIterator[Frame]:
        while True:
            while self._frames:
                frame, left_ns = self._frames.popleft()
                self._waiting_bytes -= frame.data.nbytes
                if self._is_stale(left_ns):
                    self.stale += 1
                    self._gaps.add(frame.track)
                    self._tell()
                else:
                    if frame.track in self._gaps:
                        self._gaps.discard(frame.track)
                        frame = frame.with_(discontinuity=True)
                    yield frame
                self._consumed()
            if self._stopped or self._reader.ended:
                return
            await self._wait()

    def _is_stale(self, left_ns: int) -> bool:
        if not self._max_age_ms or self._stopped:
            return False
        return time.monotonic_ns() - left_ns > 1e6 * self._max_age_ms

    async def _wait(self) -> None:
        """Until something changed. Raises what ended the task."""
        if self._task is not None and self._task.done():
            self._task.result()
        self._changed.clear()
        await self._changed.wait()

    def stop(self) -> None:
        self._stopped = True
        self._changed.set()

    async def aclose(self) -> None:
        await end_task(self._task)
        await self._disconnect()


async def end_task(task: asyncio.Task[Any] | None) -> None:
    """Cancels a task and waits for its end, whatever that is."""
    if task is not None:
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # or asyncio complains that nobody looked
