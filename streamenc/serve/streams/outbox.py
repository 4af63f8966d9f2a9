"""Outbox: numbered messages to one client, which are kept until it has acknowledged them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from streamenc.graph.frames import Frame
from streamenc.io.network.websocket.livemessages import Dropped, Numbered, encode_message

# What a message costs beside its bytes, so that many small ones are bounded, too.
MESSAGE_BYTES = 256
TOLD_BYTES = 2 * MESSAGE_BYTES


@dataclass(frozen=True, slots=True)
class Sent:
    """One numbered message to a client.

    Attributes:
        n: Its number.
        what: A frame of the output (whose `track` is 1 for sound of an echo), or an event; None
            where it was made by another process, which the store gave.
        packet: As it goes over a socket: bytes, or JSON.
    """

    n: int
    what: Frame | Numbered | None
    packet: bytes | str


class Outbox:
    """Messages that wait to be sent, and those that were sent and may be asked for again.

    Attributes:
        next: Number of the message that comes next.
        sent: Number of the message that is sent next.
        received: How many the client has acknowledged.
        skip_to: Messages below this number the client has already: they are made once more after
            the process that had made them died, and only counted.
        window: How many the client can hold beyond those; 0 where it acknowledges nothing.
        changed: Set whenever there may be something to send.
    """

    def __init__(self, max_bytes: int, flagged: Callable[[Frame], bytes]) -> None:
        """`flagged` makes the packet of a frame as one that follows what was dropped."""
        self._max_bytes, self._flagged = max_bytes, flagged
        self._waiting: deque[Sent] = deque()
        self._kept: deque[Sent] = deque()
        self._bytes = 0
        self.next = self.sent = self.received = self.skip_to = 0
        self.window = 0
        self.dropped = 0
        self.gap = False  # what comes next follows what was dropped
        self.changed = asyncio.Event()
        self._room = asyncio.Event()

    @property
    def waiting(self) -> int:
        """Messages that were not sent yet."""
        return len(self._waiting)

    def put(self, what: Frame | Numbered | None, packet: bytes | str) -> None:
        """The next message."""
        n = self.next
        self.next += 1
        if n < self.skip_to:
            self.sent = max(self.sent, self.next)
            return
        if self.gap and isinstance(what, Frame):
            packet, self.gap = self._flagged(what), False
        self._waiting.append(Sent(n, what, packet))
        self._bytes += len(packet) + MESSAGE_BYTES
        self._forget_some()
        self.changed.set()

    @property
    def full(self) -> bool:
        """Whether there is more than may wait."""
        return self._bytes > self._max_bytes

    async def room(self) -> None:
        """Waits until it is not full."""
        while self.full:
            self._room.clear()
            await self._room.wait()

    def drop_oldest(self) -> int:
        """Drops packets that were not sent yet until it is not full; how many.

        A message in their place says so, and what follows is flagged. Events stay.
        """
        left: deque[Sent] = deque()
        before, run, last, gap = self.dropped, 0, 0, False
        enough = self._max_bytes - TOLD_BYTES  # that it was dropped takes room, too
        dropping = True
        for message in self._waiting:
            dropping = dropping and self._bytes > enough
            if dropping and isinstance(message.what, Frame):
                self._bytes -= len(message.packet) + MESSAGE_BYTES
                run, last, gap = run + 1, message.n, True
                continue
            if run:
                self._tell(left, last, run)
                run = 0
            if gap and isinstance(message.what, Frame):
                message = Sent(message.n, message.what, self._flagged(message.what))
                gap = False
            left.append(message)
        if run:
            self._tell(left, last, run)
        self.gap = self.gap or gap
        self._waiting = left
        return self.dropped - before

    def peek(self) -> Sent | None:
        """What is to be sent next; None where there is nothing, or the client has no room."""
        if not self._waiting or (self.window and self.sent >= self.received + self.window):
            return None
        return self._waiting[0]

    def went(self) -> None:
        """What `peek` gave is on its way."""
        message = self._waiting.popleft()
        self.sent = message.n + 1
        self._kept.append(message)
        self._forget_some()

    def acknowledge(self, received: int, window: int) -> None:
        """The client has `received`, and can hold `window` more.

        Raises:
            ValueError: For more than was ever sent.
        """
        if received > max(self.sent, self.skip_to):
            raise ValueError(f"{received} messages are acknowledged, and {self.sent} were sent")
        self.received = max(self.received, received)
        self.window = max(1, window)
        while self._kept and self._kept[0].n < self.received:
            self._forget()
        if not self.full:
            self._room.set()
        self.changed.set()

    def again_from(self, received: int) -> bool:
        """Sends from message `received` on; whether all of them are still here."""
        oldest = next((m.n for m in (*self._kept, *self._waiting)), self.next)
        if received < oldest:
            return False
        while self._kept and self._kept[-1].n >= received:
            self._waiting.appendleft(self._kept.pop())
        for messages in (self._kept, self._waiting):
            while messages and messages[0].n < received:
                self._bytes -= len(messages.popleft().packet) + MESSAGE_BYTES
        self.received = self.sent = received
        self.skip_to = max(self.skip_to, received)
        self._room.set()
        self.changed.set()
        return True

    def unacknowledged(self) -> list[Sent]:
        """All that may be asked for again, and what is still to be sent."""
        return [*self._kept, *self._waiting]

    def restore(self, messages: Sequence[Sent], next_n: int) -> None:
        """What was not acknowledged when the stream was written."""
        self._waiting, self._kept = deque(messages), deque()
        self._bytes = sum(len(message.packet) + MESSAGE_BYTES for message in messages)
        self.next = next_n
        self.sent = messages[0].n if messages else next_n

    def _tell(self, left: deque[Sent], n: int, packets: int) -> None:
        self.dropped += packets
        told = Dropped("output", packets, self.dropped, n)
        packet = encode_message(told)
        left.append(Sent(n, told, packet))
        self._bytes += len(packet) + MESSAGE_BYTES

    def _forget_some(self) -> None:
        """For a client that acknowledges nothing, what was sent is kept as there is room."""
        if self.window or not self.full:
            return
        while self.full and self._kept:
            self._forget()
        if not self.full:
            self._room.set()

    def _forget(self) -> None:
        self._bytes -= len(self._kept.popleft().packet) + MESSAGE_BYTES
