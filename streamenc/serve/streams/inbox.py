"""Inbox: a client's ordered messages that wait to be taken, within a bound."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from streamenc.io.network.websocket.livemessages import Ordered, Policy
from streamenc.io.network.wire import Data
from streamenc.serve.streams.outbox import MESSAGE_BYTES


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


def bytes_of(message: Data | Ordered) -> int:
    """What a message counts for."""
    return MESSAGE_BYTES + (message.data.nbytes if isinstance(message, Data) else 0)


class Inbox:
    """A queue; one message always fits.

    Attributes:
        dropped: Packets that were dropped so far.
        came: Set when there is something to take, or to do.
    """

    def __init__(self, max_bytes: int, policy: Policy) -> None:
        self._max_bytes, self.policy = max_bytes, policy
        self._waiting: deque[Waiting] = deque()
        self._bytes = 0
        self.dropped = 0
        self.came = asyncio.Event()
        self._room = asyncio.Event()
        self._gap = False

    def __len__(self) -> int:
        return len(self._waiting)

    def fits(self, nbytes: int) -> bool:
        """Whether there is room for so many bytes more."""
        return not self._waiting or self._bytes + nbytes <= self._max_bytes

    async def room(self) -> None:
        """Waits until something was taken."""
        self._room.clear()
        await self._room.wait()

    def put(self, waiting: Waiting) -> None:
        if self._gap and isinstance(waiting.message, Data):
            waiting.gap, self._gap = True, False
        self._waiting.append(waiting)
        self._bytes += waiting.nbytes
        self.came.set()

    def take(self) -> Waiting | None:
        if not self._waiting:
            self.came.clear()
            return None
        waiting = self._waiting.popleft()
        self._bytes -= waiting.nbytes
        self._room.set()
        return waiting

    def drop_oldest(self) -> bool:
        """Drops the packet that has waited longest, and flags the next one; whether there was
        one."""
        packets = (
            i for i, waiting in enumerate(self._waiting) if isinstance(waiting.message, Data)
        )
        index = next(packets, None)
        if index is None:
            return False
        waiting = self._waiting[index]
        del self._waiting[index]
        self._bytes -= waiting.nbytes
        self.dropped += 1
        for later in list(self._waiting)[index:]:
            if isinstance(later.message, Data):
                later.gap = True
                break
        else:
            self._gap = True
        return True

    def end(self) -> None:
        """Whoever waits for room waits no longer."""
        self._room.set()
        self.came.set()
