"""Outbox: numbered messages to one client, which are kept until it has acknowledged them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from streamenc.errors import InputError
from streamenc.graph.frames import Frame
from streamenc.io.network.websocket.livemessages import (
    Dropped,
    Numbered,
    Policy,
    encode_message,
)

# What a message costs beside its bytes, so that many small ones are bounded, too.
MESSAGE_BYTES = 256
TOLD_BYTES = 2 * MESSAGE_BYTES


class TooSlow(InputError):
    """A queue was full, and the policy is to close."""


@dataclass(frozen=True, slots=True)
class Sent:
    """One numbered message to a client.

    Attributes:
        n: Its number.
        what: A frame of the output (whose `track` is 1 for sound of an echo), or an event; None
            where it was made by another process, which the store gave.
        packet: As it goes over a socket: bytes, or JSON.
        before: A packet without a number that goes ahead of it; b"" for none.
    """

    n: int
    what: Frame | Numbered | None
    packet: bytes | str
    before: bytes = b""

    @property
    def nbytes(self) -> int:
        """What it costs while it is kept."""
        return len(self.packet) + len(self.before) + MESSAGE_BYTES


class Outbox:
    """Messages that wait to be sent, and those that were sent and may be asked for again.

    Attributes:
        next: Number of the message that comes next.
        sent: Number of the message that is sent next.
        received: How many the client has acknowledged.
        kept_from: Number of the message from which on a client may ask again.
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
        self.kept_from = 0  # what came before this number is not here any more
        self.window = 0
        self.dropped = 0
        self.gap = False  # what comes next follows what was dropped
        self.changed = asyncio.Event()
        self._room = asyncio.Event()

    @property
    def waiting(self) -> int:
        """Messages that were not sent yet."""
        return len(self._waiting)

    def put(self, what: Frame | Numbered | None, packet: bytes | str, before: bytes = b"") -> None:
        """The next message; `before` goes ahead of it each time that it is sent."""
        n = self.next
        self.next += 1
        last = self._waiting[-1] if self._waiting else None
        if isinstance(what, Dropped) and last is not None and isinstance(last.what, Dropped):
            self._waiting.pop()
            self._bytes -= last.nbytes
            self._tell(self._waiting, [last, Sent(n, what, packet)])
            return
        if n < self.skip_to:
            self.sent = max(self.sent, self.next)
            return
        if self.gap and isinstance(what, Frame):
            packet, self.gap = self._flagged(what), False
        message = Sent(n, what, packet, before)
        self._waiting.append(message)
        self._bytes += message.nbytes
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

    async def make_room(self, policy: Policy) -> int:
        """Where it is full, what the policy says; how many packets were dropped.

        Raises:
            TooSlow: Where the policy is to close.
        """
        if not self.full:
            return 0
        if policy == "close":
            raise TooSlow(
                "the client does not take what comes out: read faster, ask for less, or open with "
                "another policy"
            )
        if policy == "drop_oldest":
            return self.drop_oldest()
        await self.room()
        return 0

    def drop_oldest(self) -> int:
        """Drops packets that were not sent yet until it is not full; how many.

        A message in their place says so, and what follows is flagged. Events stay.
        """
        left: deque[Sent] = deque()
        before, gap = self.dropped, False
        # That it was dropped takes room, too; and to look at all that waits for each packet that
        # comes would take the time of everybody else.
        enough = self._max_bytes - max(TOLD_BYTES, self._max_bytes // 16)
        dropping = True
        run: list[Sent] = []  # what is told in one
        for message in self._waiting:
            what = message.what
            dropping = dropping and self._bytes > enough
            if isinstance(what, Dropped) or (dropping and isinstance(what, Frame)):
                if isinstance(what, Frame):
                    self.dropped, gap = self.dropped + 1, True
                run.append(message)
                self._bytes -= message.nbytes
                continue
            self._tell(left, run)
            run.clear()
            if gap and isinstance(what, Frame):
                message = Sent(message.n, what, self._flagged(what))
                gap = False
            left.append(message)
        self._tell(left, run)
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
        if received < self.kept_from:
            return False
        self.kept_from = received
        while self._kept and self._kept[-1].n >= received:
            self._waiting.appendleft(self._kept.pop())
        for messages in (self._kept, self._waiting):
            while messages and messages[0].n < received:
                self._bytes -= messages.popleft().nbytes
        self.received = self.sent = received
        self.skip_to = max(self.skip_to, received)
        self._room.set()
        self.changed.set()
        return True

    def unacknowledged(self) -> list[Sent]:
        """All that may be asked for again, and what is still to be sent."""
        return [*self._kept, *self._waiting]

    def restore(self, messages: Sequence[Sent], next_n: int, kept_from: int) -> None:
        """What was not acknowledged when the stream was written."""
        self.kept_from = kept_from
        self._waiting, self._kept = deque(messages), deque()
        self._bytes = sum(message.nbytes for message in messages)
        self.next = next_n
        self.sent = messages[0].n if messages else next_n

    def _tell(self, left: deque[Sent], run: Sequence[Sent]) -> None:
        """Puts what is said of a run of packets, and of others before them, in their place."""
        packets, total = {"output": 0, "input": 0}, {"output": self.dropped, "input": 0}
        for message in run:
            what = message.what
            if isinstance(what, Dropped):
                packets[what.where] += what.packets
                if what.where == "input":
                    total["input"] = what.total
            else:
                packets["output"] += 1
        wheres: list[Literal["input", "output"]] = [w for w in ("input", "output") if packets[w]]
        for where, message in zip(wheres, run[len(run) - len(wheres) :], strict=True):
            told = Dropped(where, packets[where], total[where], message.n)
            left.append(Sent(message.n, told, encode_message(told)))
            self._bytes += left[-1].nbytes

    def _forget_some(self) -> None:
        """For a client that acknowledges nothing, what was sent is kept as there is room."""
        if self.window or not self.full:
            return
        while self.full and self._kept:
            self._forget()
        if not self.full:
            self._room.set()

    def _forget(self) -> None:
        message = self._kept.popleft()
        self.kept_from = message.n + 1
        self._bytes -= message.nbytes
