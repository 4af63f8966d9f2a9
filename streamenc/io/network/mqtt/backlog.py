"""Backlog: frames on their way to a broker, and those that it may lose before a reader has them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from streamenc.graph.frames import Frame
from streamenc.io.network.repacking import resent

# What was acknowledged may so long be on its way to a reader that does not say how far it is.
KEEP_S, KEEP_FRAMES = 2.0, 256


@dataclass(slots=True, eq=False)
class Waiting:
    """A frame that is to be published.

    through   Frames of the stream up to this one, all tracks together.
    since_ns  When it was written.
    tries     Connections that broke over it, while the broker was there.
    sent      It was on its way before.
    acked_ns  When the broker acknowledged it last; 0 before.
    """

    frame: Frame
    packet: bytes
    through: int
    since_ns: int
    tries: int = 0
    sent: bool = False
    acked_ns: int = 0
    size_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        self.size_bytes = len(self.packet) + self.frame.data.nbytes

    def next_packet(self, late: bool = False) -> bytes:
        """Its packet, marked where it may have come before, or come `late`."""
        packet = resent(self.packet) if self.sent or late else self.packet
        self.sent = True
        return packet


class Backlog:
    """What was not acknowledged, in `waiting`; and what was, for as long as it may be needed.

    Both have a bound in frames, and one in bytes together.
    """

    def __init__(self, frames: int, bytes_: int) -> None:
        self.waiting: deque[Waiting] = deque()
        self._kept: deque[Waiting] = deque()
        self._frames, self._bytes = frames, bytes_
        self._waiting_bytes = self._kept_bytes = self._evicted = 0

    def __len__(self) -> int:
        return len(self.waiting)

    @property
    def kept(self) -> int:
        """Frames that were acknowledged, and are still here."""
        return len(self._kept)

    @property
    def acked(self) -> int:
        """`through` of the last frame that was acknowledged."""
        return self._kept[-1].through if self._kept else 0

    def has_room(self) -> bool:
        return len(self.waiting) < self._frames and self._waiting_bytes < self._bytes

    def add(self, waiting: Waiting) -> None:
        self.waiting.append(waiting)
        self._waiting_bytes += waiting.size_bytes
        self._trim()

    def pop(self) -> Waiting:
        """Takes the one that has waited for the longest."""
        waiting = self.waiting.popleft()
        self._waiting_bytes -= waiting.size_bytes
        return waiting

    def put_back(self, waiting: Iterable[Waiting]) -> None:
        """Before all others, in their order."""
        for one in reversed(list(waiting)):
            self.waiting.appendleft(one)
            self._waiting_bytes += one.size_bytes

    def keep(self, waiting: Waiting) -> None:
        """The broker has it."""
        waiting.acked_ns = time.monotonic_ns()
        self._kept.append(waiting)
        self._kept_bytes += waiting.size_bytes
        self._trim()

    def forget(self, through: int | None) -> None:
        """What all readers have, and who says nothing will have had by now.

        `through` is how far the last of those is that say it, None where there are none.
        """
        old_ns = time.monotonic_ns() - round(1e9 * KEEP_S)
        while self._kept and (
            self._kept[0].acked_ns < old_ns or (through is not None and self.kept > KEEP_FRAMES)
        ):
            if through is not None and self._kept[0].through > through:
                return
            self._drop_kept()

    def rewind(self, through: int | None) -> int:
        """What was acknowledged, and not read for certain, is to be published again.

        Returns how many frames after `through`, how far the last of the readers is, are not here
        any more.
        """
        gone = 0 if through is None else max(0, self._evicted - through)
        for waiting in self._kept:
            waiting.tries = 0
        self.put_back(self._kept)
        self._kept.clear()
        self._kept_bytes = 0
        return gone

    def _trim(self) -> None:
        while self._kept and (
            len(self._kept) > self._frames or self._kept_bytes + self._waiting_bytes > self._bytes
        ):
            self._evicted = self._kept[0].through
            self._drop_kept()

    def _drop_kept(self) -> None:
        self._kept_bytes -= self._kept.popleft().size_bytes
