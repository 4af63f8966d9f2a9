"""Channel: the bounded edge between two nodes, and what it does when it is full."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

import anyio
from anyio.lowlevel import checkpoint

from streamenc.graph.clock import Clock, MonotonicClock
from streamenc.graph.edge import DEFAULT_CAPACITY, ChannelStatistics, Edge, Policy
from streamenc.graph.frames import Frame
from streamenc.latency import LatencyHistogram


class Channel:
    """One sender, one receiver, at most `capacity` frames between them.

    The sender never waits on the dropping policies. The next frame delivered after a loss (on a
    mux: of the same track) is flagged as a discontinuity.

    Four outcomes, each with anyio's exception: ClosedResourceError, we closed our own end;
    EndOfStream, the sender closed and everything was received; BrokenResourceError, the receiver
    is gone; WouldBlock, only from the calls that do not wait. For one event loop, not for threads.

    Args:
        policy: "block": a full channel makes the sender wait (backpressure); "drop_oldest": a full
            channel gives up its oldest frame for the new one; "latest": only the newest frame is
            kept: a capacity of 1, whatever is asked for
        max_age_ms: Frames that would be older than this, from their arrival in the graph, once they
            are through are given up when one is taken or room is needed, and what waits behind them
            too, but for the newest of a track: one gap disturbs less than many. None keeps all
        ahead_ns: What a frame will take from here on, so far as is known; up to half of
            `max_age_ms` is allowed for it
        arrival: Set with each change that the receiver may wait for. The channels of a merge share
            one, which the merge clears before it looks.

    Attributes:
        queue_wait: Histogram of the time from send to receive.
        broken: Why what was sent is not the whole stream, as the sender said when it closed; "".

    Raises:
        UsageError: Where `capacity` is below 1, `policy` is unknown, or `max_age_ms` is no time.
    """

    def __init__(
        self,
        capacity: int = DEFAULT_CAPACITY,
        policy: Policy = "block",
        *,
        max_age_ms: float | None = None,
        ahead_ns: Callable[[], int] = lambda: 0,
        name: str = "",
        clock: Clock | None = None,
        arrival: asyncio.Event | None = None,
    ) -> None:
        Edge(capacity, policy, max_age_ms).check(f"edge {name!r}")
        self.name = name
        self.policy = policy
        self.capacity = 1 if policy == "latest" else capacity
        self.max_age_ms = max_age_ms
        self._max_age_ns = None if max_age_ms is None else round(max_age_ms * 1e6)
        self._ahead_ns = ahead_ns
        self.arrival = arrival or asyncio.Event()
        self.queue_wait = LatencyHistogram()
        self.broken = ""
        self._clock = clock or MonotonicClock()
        self._frames: deque[tuple[Frame, int]] = deque()
        self._room = asyncio.Event()
        self._lossy_tracks: set[int] = set()
        self._sender_closed = False
        self._receiver_closed = False
        self._sent = self._received = self._dropped = self._expired = self._high_water = 0

    async def send(self, frame: Frame) -> None:
        """Waits for room where the policy is "block". A cancelled send has not sent.

        Raises:
            ClosedResourceError: After `close_send`.
            BrokenResourceError: After `close_receive`.
        """
        await checkpoint()
        while True:
            try:
                return self.send_nowait(frame)
            except anyio.WouldBlock:
                self._room.clear()
                await self._room.wait()

    def send_nowait(self, frame: Frame) -> None:
        """Like `send`, but raises WouldBlock where that would wait."""
        if self._sender_closed:
            raise anyio.ClosedResourceError
        if self._receiver_closed:
            raise anyio.BrokenResourceError
        if len(self._frames) == self.capacity:
            self._expire()
        if len(self._frames) == self.capacity:
            if self.policy == "block":
                raise anyio.WouldBlock
            self._drop_oldest()
        self._frames.append((frame, self._clock.now_ns()))
        self._sent += 1
        self._high_water = max(self._high_water, len(self._frames))
        self.arrival.set()

    async def receive(self) -> Frame:
        """The next frame; waits for it. A cancelled receive has not taken any.

        Raises:
            EndOfStream: Where there will be none.
            ClosedResourceError: After `close_receive`.
        """
        await checkpoint()
        while True:
            try:
                return self.receive_nowait()
            except anyio.WouldBlock:
                self.arrival.clear()
                await self.arrival.wait()

    def receive_nowait(self) -> Frame:
        """Like `receive`, but raises WouldBlock where that would wait."""
        if self._receiver_closed:
            raise anyio.ClosedResourceError
        self._expire()
        if not self._frames:
            raise anyio.EndOfStream if self._sender_closed else anyio.WouldBlock
        frame, sent_ns = self._frames.popleft()
        self._received += 1
        self.queue_wait.record(self._clock.now_ns() - sent_ns)
        self._room.set()
        if frame.track in self._lossy_tracks:
            self._lossy_tracks.discard(frame.track)
            frame = frame.with_(discontinuity=True)
        return frame

    def peek(self) -> Frame | None:
        """The frame that would be received next, not flagged yet; None where none is waiting."""
        self._expire()
        return self._frames[0][0] if self._frames else None

    @property
    def unheard(self) -> bool:
        """Whether the receiver is gone."""
        return self._receiver_closed

    @property
    def full(self) -> bool:
        """Whether a sender has to wait now, or something would be dropped."""
        return len(self._frames) >= self.capacity

    @property
    def ended(self) -> bool:
        """Whether the sender closed and everything was received."""
        return self._sender_closed and not self._frames

    def __aiter__(self) -> Channel:
        return self

    async def __anext__(self) -> Frame:
        try:
            return await self.receive()
        except anyio.EndOfStream:
            raise StopAsyncIteration from None

    def close_send(self, broken: str = "") -> None:
        """The sender's end: what was sent can still be received. May be called twice.

        Args:
            broken: Why the stream ended before its end; "" where it did not.
        """
        self._sender_closed = True
        self.broken = self.broken or broken
        self.arrival.set()
        self._room.set()

    def close_receive(self) -> None:
        """The receiver's end: what still waits stays in flight, for ever. May be called twice."""
        self._receiver_closed = True
        self.arrival.set()
        self._room.set()

    def statistics(self) -> ChannelStatistics:
        return ChannelStatistics(
            name=self.name,
            policy=self.policy,
            capacity=self.capacity,
            sent=self._sent,
            received=self._received,
            dropped=self._dropped,
            in_flight=len(self._frames),
            high_water=self._high_water,
            max_age_ms=self.max_age_ms,
            expired=self._expired,
        )

    def _expire(self) -> None:
        """Gives up what is too old."""
        if self._max_age_ns is None or not self._frames:
            return
        # Were nothing taken where it takes too long, it would never be seen to be faster.
        most_ns = self._max_age_ns - min(self._ahead_ns(), self._max_age_ns // 2)
        born_ns = self._clock.now_ns() - most_ns
        while self._frames and self._frames[0][0].arrived_ns < born_ns:
            track = self._frames[0][0].track
            waiting = [item for item in self._frames if item[0].track == track]
            for item in waiting[:-1] or waiting:
                self._frames.remove(item)
                self._count_dropped(item[0])
                self._expired += 1
            self._room.set()

    def _drop_oldest(self) -> None:
        self._count_dropped(self._frames.popleft()[0])

    def _count_dropped(self, frame: Frame) -> None:
        self._dropped += 1
        self._lossy_tracks.add(frame.track)

    def __repr__(self) -> str:
        return f"Channel({self.name!r}, {self.policy}, {len(self._frames)}/{self.capacity})"
