"""Both ends of a packet stream, whatever carries the packets: numbering, gaps, clocks, restarts."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import secrets
import time
from abc import abstractmethod
from collections import deque
from collections.abc import AsyncIterator

from streamenc.errors import MediaError, TransportError, WireError
from streamenc.graph.clock import Clock
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.graph.node import Source
from streamenc.io.network.wire import (
    Bye,
    Credit,
    Data,
    End,
    Info,
    check_fits,
    decode,
    encode_end,
    encode_frame,
    encode_info,
)

logger = logging.getLogger(__name__)

WARN_EVERY_S = 10.0


class Complaints:
    """Warnings that somebody else can provoke: one every 10 s at most, with the number so far."""

    def __init__(self) -> None:
        self.count = 0
        self._next = 0.0

    def warn(self, message: str) -> None:
        self.count += 1
        now = time.monotonic()
        if now >= self._next:
            self._next = now + WARN_EVERY_S
            logger.warning("%s (%d so far)", message, self.count)


class PacketWriter:
    """Frames to packets of one stream. Raises FitError where `info` cannot be sent.

    stream  The id of this stream.
    info    The packet that describes it, to be repeated for those who join late.
    """

    def __init__(self, info: StreamInfo, clock: Clock) -> None:
        self.stream = secrets.randbits(63) | 1  # never 0
        self.info = encode_info(info, self.stream, time.time_ns())
        self._info = info
        self._clock = clock
        self._frames = 0
        self._next_seqs = [0] * max(1, len(info.tracks))
        self._gaps: set[int] = set()

    def packet(self, frame: Frame) -> bytes:
        """The packet of the stream's next frame: to be followed by `sent` or `dropped`."""
        arrived = frame.arrived_ns and frame.arrived_ns + time.time_ns() - self._clock.now_ns()
        flagged = frame.discontinuity or frame.track in self._gaps
        return encode_frame(frame, self._info, self.stream, max(0, arrived), flagged)

    def sent(self, frame: Frame) -> None:
        self._count(frame)
        self._gaps.discard(frame.track)

    def dropped(self, frame: Frame) -> None:
        """The frame will never go out: the next one of its track gets flagged."""
        self._count(frame)
        self._gaps.add(frame.track)

    def end(self) -> bytes:
        return encode_end(End(self.stream, self._frames, tuple(self._next_seqs)))

    def _count(self, frame: Frame) -> None:
        self._frames += 1
        self._next_seqs[frame.track] = frame.seq + 1


class PacketReader:
    """Packets of one stream to frames.

    info       What the stream is; None until its first info packet came.
    stream     The id of the stream that is being read; 0 until then.
    lost       Frames that are missing between those that came.
    malformed  Packets that were skipped, as they made no sense.
    received   Data packets of this stream so far.
    ended      The publisher ended the stream.
    """

    def __init__(self, clock: Clock) -> None:
        self.info: StreamInfo | None = None
        self.stream = 0
        self.lost = 0
        self.received = 0
        self.ended = False
        self._clock = clock
        self._next_seqs: dict[int, int] = {}
        self._restarted: set[int] = set()
        self._malformed = Complaints()

    @property
    def malformed(self) -> int:
        return self._malformed.count

    def feed(self, packet: bytes) -> Frame | None:
        """The frame in `packet`, if it has one that is news.

        Raises MediaError where a restarted publisher sends another kind of stream.
        """
        try:
            got = decode(packet)
            if isinstance(got, Data):
                return self._data(got)
            if isinstance(got, Credit | Bye):
                raise WireError(f"got {type(got).__name__}, which only subscribers send")
        except WireError as error:
            self._malformed.warn(f"skipped a packet: {error}")
            return None
        if isinstance(got, Info):
            self._agree(got)
        elif got.stream == self.stream:
            for track, seq in enumerate(got.next_seqs):
                # A track of which nothing came has no gap: its reader joined late.
                self.lost += max(0, seq - self._next_seqs.get(track, seq))
            self.ended = True
        return None

    def _agree(self, got: Info) -> None:
        if got.stream == self.stream:
            return
        if self.info is None:
            logger.info("reading a stream: %s", got.info)
        elif got.info == self.info:
            logger.warning("the publisher started a new stream; it goes on after a discontinuity")
            self._restarted = set(range(max(1, len(got.info.tracks))))
        else:
            changes = _changes(self.info, got.info)
            raise MediaError(
                f"the publisher was restarted with another stream: {changes}; restart this end too"
            )
        self.info = got.info
        self.stream = got.stream
        self.received = 0
        self._next_seqs.clear()

    def _data(self, got: Data) -> Frame | None:
        if self.info is None:
            return None
        if got.stream != self.stream:
            self.lost += 1
            return None
        self.received += 1
        check_fits(got, self.info)
        missing = got.seq - self._next_seqs.get(got.track, got.seq)
        if missing < 0:
            return None  # a broker may deliver a packet twice
        self.lost += missing
        flagged = got.discontinuity or missing > 0 or got.track in self._restarted
        self._next_seqs[got.track] = got.seq + 1
        self._restarted.discard(got.track)
        now_ns = self._clock.now_ns()
        age_ns = max(0, time.time_ns() - got.arrived_unix_ns) if got.arrived_unix_ns else 0
        return Frame(
            data=got.data,
            pts=got.pts,
            duration=got.duration,
            seq=got.seq,
            discontinuity=flagged,
            arrived_ns=now_ns - age_ns,
            scale=got.scale,
            track=got.track,
        )


def _changes(old: StreamInfo, new: StreamInfo) -> str:
    names = (field.name for field in dataclasses.fields(StreamInfo))
    return ", ".join(
        f"{name} was {getattr(old, name)}, is {getattr(new, name)}"
        for name in names
        if getattr(old, name) != getattr(new, name)
    )


class PacketSource(Source):
    """A source fed by a task that reads packets from a network. Subclasses say how.

    malformed  Packets that were skipped, as they made no sense.
    """

    malformed: int = 0

    def __init__(self, address: str, timeout_s: float, bound: int) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self._bound = bound
        self._frames: deque[Frame] = deque()
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
        if len(self._frames) < self._bound:
            return True
        self._room.clear()
        return False

    def _take(self, packet: bytes) -> None:
        frame = self._reader.feed(packet)
        self.lost, self.malformed = self._reader.lost, self._reader.malformed
        if frame is not None and not self._stopped:
            self._frames.append(frame)
        self._changed.set()

    async def open(self) -> StreamInfo:
        self._reader = PacketReader(self.clock)
        await self._connect()
        self._task = asyncio.create_task(self._pump())
        self._task.add_done_callback(lambda _: self._changed.set())
        try:
            async with asyncio.timeout(self._timeout_s):
                while (info := self._reader.info) is None:
                    await self._wait()
        except TimeoutError:
            raise TransportError(
                f"nothing was published at {self._address} within {self._timeout_s:g} s; "
                "is the publisher running, and is the address right?"
            ) from None
        return info

    async def frames(self) -> AsyncIterator[Frame]:
        while True:
            while self._frames:
                yield self._frames.popleft()
                self._consumed()
            if self._stopped or self._reader.ended:
                return
            await self._wait()

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


async def end_task(task: asyncio.Task[None] | None) -> None:
    """Cancels a task and waits for its end, whatever that is."""
    if task is not None:
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # or asyncio complains that nobody looked
