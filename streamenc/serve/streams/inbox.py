"""Inbox: a client's ordered messages, checked and numbered, which wait to be taken."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from streamenc.errors import InputError
from streamenc.io.network.websocket.livemessages import Opened, Ordered, Policy
from streamenc.io.network.wire import Data
from streamenc.serve.inputs.inputbase import Input, JumpError
from streamenc.serve.streams.outbox import MESSAGE_BYTES, TooSlow

# Of which the place in time is counted, sample by sample.
COUNTED = ("s16", "f32")


class SequenceError(InputError):
    """An ordered message ahead of what was expected, or sound that jumps without saying so."""


@dataclass(slots=True)
class Waiting:
    """One message that waits.

    Attributes:
        seq: Its number.
        end_pts: Where what it holds ends, in ticks of the input.
        arrived_ns: When it came, on the monotonic clock.
        gap: What came before it was dropped.
    """

    message: Data | Ordered
    seq: int
    end_pts: int
    nbytes: int
    arrived_ns: int
    gap: bool = False


class Inbox:
    """A queue within a bound; one message always fits.

    Args:
        opened: What the client was told that it may send.
        source: Looks at packets before they are taken.
        dropped: Called when a packet was dropped.

    Attributes:
        next_seq, next_pts: Of the message that is expected next.
        dropped: Packets that were dropped so far.
        came: Set when there is something to take, or to do.
        ended: Nothing more is taken.
    """

    def __init__(
        self, opened: Opened, policy: Policy, source: Input, dropped: Callable[[], None]
    ) -> None:
        self._opened, self._policy, self._source = opened, policy, source
        self._tell_dropped = dropped
        self._counted = source.format in COUNTED
        self._waiting: deque[Waiting] = deque()
        self._bytes = 0
        self.next_seq = self.next_pts = 0
        self.dropped = 0
        self.came = asyncio.Event()
        self._room = asyncio.Event()
        self._gap = False
        self.ended = False

    def __len__(self) -> int:
        return len(self._waiting)

    async def put(self, message: Data | Ordered, still: Callable[[], bool]) -> bool:
        """The client's next message; waits for room where the policy is to block. Whether it is
        news: one that came before, as they do after a resumption, is nothing.

        Args:
            still: Whether the client is still there that sent it. Where another connection has
                resumed the stream, it was told from where on it sends again, in pieces of other
                sizes: what the old one had sent beyond that is nothing.

        Raises:
            SequenceError, InputError: Where it does not fit; another one with its number may.
            TooSlow: Where the policy is to close, and there is no room.
        """
        seq = self.next_seq if message.seq is None else message.seq
        if seq < self.next_seq or not still():
            return False
        if seq > self.next_seq:
            raise SequenceError(
                f"got message {seq}, and message {self.next_seq} is next; send it first"
            )
        end_pts, nbytes = self.next_pts, MESSAGE_BYTES
        if isinstance(message, Data):
            end_pts = self._checked(message)
            nbytes += message.data.nbytes
        while self._waiting and self._bytes + nbytes > self._opened.max_queued_bytes:
            await self._make_room()
            if self.ended or seq != self.next_seq or not still():
                return False
        self.next_seq, self.next_pts = seq + 1, end_pts
        waiting = Waiting(message, seq, end_pts, nbytes, time.monotonic_ns())
        if self._gap and isinstance(message, Data):
            waiting.gap, self._gap = True, False
        self._waiting.append(waiting)
        self._bytes += nbytes
        self.came.set()
        return True

    def take(self) -> Waiting | None:
        """What has waited longest; None where nothing waits."""
        if not self._waiting:
            self.came.clear()
            return None
        waiting = self._waiting.popleft()
        self._bytes -= waiting.nbytes
        self._room.set()
        return waiting

    def take_following(self) -> Waiting | None:
        """What waits next, if it is sound that follows on from what was taken before."""
        if not self._counted or not self._waiting:
            return None
        waiting = self._waiting[0]
        message = waiting.message
        if not isinstance(message, Data) or message.discontinuity or waiting.gap:
            return None
        return self.take()

    def end(self) -> None:
        """Whoever waits for room waits no longer."""
        self.ended = True
        self._room.set()
        self.came.set()

    def _checked(self, data: Data) -> int:
        """Where what a packet holds ends."""
        if data.data.nbytes > self._opened.max_message_bytes:
            raise InputError(
                f"got a packet of {data.data.nbytes} bytes; this stream takes at most "
                f"{self._opened.max_message_bytes}: send shorter ones"
            )
        with contextlib.suppress(JumpError):  # which it sees behind what waits here
            self._source.check(data)
        if not self._counted:
            return data.pts + data.duration
        if self.next_seq and data.pts != self.next_pts and not data.discontinuity:
            raise SequenceError(
                f"got sound from {data.pts} on, and {self.next_pts} is next; where something is "
                "missing, set the flag of a discontinuity"
            )
        return data.pts + int(data.data.shape[1])

    async def _make_room(self) -> None:
        if self._policy == "close":
            raise TooSlow(
                "the server does not keep up with what comes; send slower, or open with another "
                "policy"
            )
        if self._policy == "drop_oldest" and self._drop_oldest():
            self._tell_dropped()
            return
        self._room.clear()
        await self._room.wait()

    def _drop_oldest(self) -> bool:
        """Drops the packet that has waited longest, and flags the next one; whether there was
        one."""
        packets = (
            i for i, waiting in enumerate(self._waiting) if isinstance(waiting.message, Data)
        )
        index = next(packets, None)
        if index is None:
            return False
        self._bytes -= self._waiting[index].nbytes
        del self._waiting[index]
        self.leave_out(index)
        return True

    def leave_out(self, before: int = 0) -> None:
        """Counts a packet that stood, or would have stood, before that place, and flags the next
        one."""
        self.dropped += 1
        for later in list(self._waiting)[before:]:
            if isinstance(later.message, Data):
                later.gap = True
                break
        else:
            self._gap = True
