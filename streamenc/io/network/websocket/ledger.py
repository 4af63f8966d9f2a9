"""Ledger: what a client keeps of its stream so that any disconnection costs nothing; without I/O.

Two counters, one in each direction: ordered messages that the server has not acknowledged are kept
and sent again, numbered messages that came already are left out. docs/server describes both.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import msgspec

from streamenc.errors import TransportError, WireError
from streamenc.io.network.repacking import flagged
from streamenc.io.network.websocket.livemessages import (
    Ack,
    Closed,
    Dropped,
    Error,
    Flushed,
    FromServer,
    GoAway,
    Mark,
    Marked,
    Open,
    Opened,
    Ordered,
    Resume,
    Resumed,
    SnapshotTaken,
    Speech,
    WasSet,
    encode_message,
    read_from_server,
)
from streamenc.io.network.wire import (
    Credit,
    Data,
    Info,
    StreamSnapshot,
    decode,
    encode_credit,
    encode_snapshot,
)

_NUMBERED = (Marked, Flushed, WasSet, Speech, Dropped, SnapshotTaken, Closed)
# In the place of a message that the server refused: it comes back, and nobody asked for it.
_REFUSED = "\x00refused"


@dataclass(frozen=True, slots=True)
class Piece:
    """A packet of data that came.

    Attributes:
        gap: Numbered messages before it never came.
    """

    data: Data
    gap: bool


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A stream's whole state, to go on with at any server that has the same model.

    Attributes:
        blob: The state; b"" where a disconnection has swallowed it.
        seq: The number of the ordered message that comes next.
        pts: Where the input that comes next begins.
    """

    blob: bytes
    seq: int
    pts: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """The server did not take an ordered message; the stream stands as if it had not been sent."""

    seq: int
    message: str


Came: TypeAlias = Piece | Info | Snapshot | Refusal | FromServer


@dataclass(slots=True)
class _Kept:
    wire: bytes | str

    @property
    def nbytes(self) -> int:
        return len(self.wire)


class Ledger:
    """The books of one stream, over all its connections.

    For each connection: `greeting` is sent, `take` gets all that comes, and `sendable` is sent
    whenever something changed. `lost` ends it.

    Attributes:
        opened: What the server said of the stream; None until then.
        token: What resumes it.
        next_seq: Of the ordered message that is put next.
        acked: Ordered messages before it are not kept any more.
        received: Numbered messages that came.
        unread: Those of them, packets of data, that nobody has taken yet.
        resumed: How often it went on after a disconnection.
        missing: Numbered messages that never came.
        kept_bytes: Of ordered messages that may have to be sent again.
        closed: The server's last word; None before.
    """

    def __init__(self, asked: Open, keep_bytes: int, snapshot: Snapshot | None = None) -> None:
        self._asked, self._snapshot = asked, snapshot
        self._keep_bytes = keep_bytes
        self.opened: Opened | None = None
        self.closed: Closed | None = None
        self.token = ""
        self.next_seq = self.acked = snapshot.seq if snapshot else 0
        self.received = self.unread = self.resumed = self.missing = self.kept_bytes = 0
        self._kept: deque[_Kept] = deque()  # from `acked` on
        self._cursor = self.next_seq  # what is sent next
        self._limit = 0  # from which number on nothing may be sent
        self._stale = 0  # up to where messages were sent before one of them was refused
        self._position = 0  # the number of the numbered message that comes next
        self._credited = 0
        self._gap = self._flag = False
        self._through = self.acked  # what the server has taken
        self._blobs: list[bytes] = []  # of snapshots of which the message comes yet
        self._greeted = False

    # ----- from the client

    def ask_for(self, format: str) -> None:
        """What input is to come as; before a connection is made."""
        self._asked = msgspec.structs.replace(self._asked, format=format)

    @property
    def has_room(self) -> bool:
        """Whether a message may be put; one always may where none is kept."""
        return not self._kept or self.kept_bytes < self._keep_bytes

    @property
    def unsent(self) -> bool:
        """Whether there is something that was never sent."""
        return self._cursor < self.next_seq

    @property
    def kept(self) -> int:
        """Ordered messages that may have to be sent again."""
        return len(self._kept)

    def put(self, make: Callable[[int], bytes]) -> int:
        """Keeps the packet that `make` gives for its number, to be sent in its turn."""
        seq = self.next_seq
        packet = make(seq)
        self._keep(flagged(packet) if self._flag else packet)
        self._flag = False
        return seq

    def put_message(self, message: Ordered) -> int:
        seq = self.next_seq
        self._keep(encode_message(msgspec.structs.replace(message, seq=seq)))
        return seq

    def _keep(self, wire: bytes | str) -> None:
        self._kept.append(_Kept(wire))
        self.kept_bytes += len(wire)
        self.next_seq += 1

    def read(self) -> None:
        """Somebody has taken one of the `unread`."""
        self.unread -= 1

    # ----- a connection

    def greeting(self) -> list[bytes | str]:
        """What a new connection begins with."""
        self._greeted = False
        if not self.token:
            first: list[bytes | str] = [encode_message(self._asked)]
            if self._snapshot:
                first.append(encode_snapshot(StreamSnapshot(0, self._snapshot.blob)))
            return first
        window = self._asked.window
        window = max(1, window - self.unread) if window else 0
        return [encode_message(Resume(self.token, self.received, window))]

    def sendable(self) -> bytes | str | None:
        """The next message that may be sent now: it counts as sent. None where there is none."""
        if not self._greeted:
            return None
        if (credit := self._credit()) is not None:
            return credit
        if self._cursor >= min(self.next_seq, self._limit):
            return None
        wire = self._kept[self._cursor - self.acked].wire
        self._cursor += 1
        return wire

    def _credit(self) -> bytes | None:
        window, through = self._asked.window, self.received - self.unread
        if not window or through - self._credited < max(1, window // 4):
            return None
        self._credited = through
        return encode_credit(Credit(0, through, window))

    def lost(self) -> None:
        """The connection is gone."""
        self._greeted = False
        self._blobs.clear()

    # ----- from the server

    def take(self, message: bytes | str) -> Came | None:
        """What came, if it is news.

        Raises:
            WireError: Where it is malformed.
            TransportError: Where the stream cannot go on with it.
        """
        if isinstance(message, str):
            return self._message(read_from_server(message))
        packet = decode(message)
        if isinstance(packet, Data):
            return self._data(packet)
        if isinstance(packet, Credit):
            self._through = max(self._through, min(packet.received, self._cursor))
            self._limit = max(self._limit, packet.received + packet.window)
        elif isinstance(packet, StreamSnapshot):
            self._blobs.append(packet.blob)
        elif isinstance(packet, Info):
            return packet
        return None

    def _message(self, message: FromServer) -> Came | None:
        if isinstance(message, Opened):
            self._greeted = True
            self.opened, self.token = message, message.token
            self._limit = self.acked + message.window
        elif isinstance(message, Resumed):
            self._go_on(message)
        elif isinstance(message, Ack):
            self._acknowledge(message.seq)
        elif isinstance(message, Error):
            return self._error(message)
        elif isinstance(message, GoAway):
            return message
        else:
            return self._numbered(message)
        return message

    def _go_on(self, message: Resumed) -> None:
        if not self.acked <= message.next_seq <= self.next_seq:
            raise TransportError(
                f"cannot resume: the server wants message {message.next_seq} next; kept are "
                f"{self.acked} to {self.next_seq}; does another client use this stream?"
            )
        self._greeted = True
        self.token = message.token
        self.resumed += 1
        self._cursor, self._stale = message.next_seq, 0
        self._limit = message.next_seq + message.window
        self._skip_to(message.n)
        self._position = message.n
        self._credited = self.received - self.unread

    def forget(self) -> bool:
        """Keeps nothing any more that the server has taken, whether it acknowledged that or not.

        True where that made room. A server that dies before it has written that down cannot be
        gone on with.
        """
        before = self.acked
        self._drop_to(self._through)
        return self.acked > before

    def _acknowledge(self, seq: int) -> None:
        if seq > self._cursor:
            raise WireError(f"got an acknowledgement of message {seq - 1}, which was not sent")
        self._drop_to(seq)

    def _drop_to(self, seq: int) -> None:
        while self.acked < seq:
            self.kept_bytes -= self._kept.popleft().nbytes
            self.acked += 1

    def _error(self, message: Error) -> Came | None:
        seq = message.seq
        if message.fatal or seq is None:
            return message
        if message.code == "bad_sequence" and self.acked <= seq < self._stale:
            return None  # it was on its way when the one before it was refused
        if not self.acked <= seq < self._cursor:
            return message
        # Something must have its number: what came behind it is sent again, with its own.
        was = self._kept[seq - self.acked].wire
        self._replace(seq, encode_message(Mark(_REFUSED, seq)))
        self._stale, self._cursor = self._cursor, seq
        if isinstance(was, bytes):
            self._flag_behind(seq)
        return Refusal(seq, message.message)

    def _flag_behind(self, seq: int) -> None:
        """The next packet does not follow on from what came before `seq`."""
        for later in range(seq + 1, self.next_seq):
            wire = self._kept[later - self.acked].wire
            if isinstance(wire, bytes):
                self._replace(later, flagged(wire))
                return
        self._flag = True

    def _replace(self, seq: int, wire: bytes | str) -> None:
        held = self._kept[seq - self.acked]
        self.kept_bytes += len(wire) - held.nbytes
        held.wire = wire

    def _numbered(self, message: FromServer) -> Came | None:
        assert isinstance(message, _NUMBERED)
        self._skip_to(message.n, told=isinstance(message, Dropped))
        self._position = message.n
        if not self._count():
            return None
        if isinstance(message, SnapshotTaken):
            sizes = [len(blob) for blob in self._blobs]
            at = sizes.index(message.bytes) if message.bytes in sizes else -1
            return Snapshot(self._blobs.pop(at) if at >= 0 else b"", message.seq, message.pts)
        if isinstance(message, Closed):
            self.closed = message
        return None if isinstance(message, Marked) and message.id == _REFUSED else message

    def _data(self, data: Data) -> Piece | None:
        if not self._count():
            return None
        if self._asked.window and self.unread >= 2 * self._asked.window:
            raise TransportError(
                f"the server sends more than it was asked for: {self.unread} packets wait here, of "
                f"a window of {self._asked.window}"
            )
        self.unread += 1
        piece = Piece(data, self._gap)
        self._gap = False
        return piece

    def _count(self) -> bool:
        """Counts a numbered message; False where it came before."""
        self._position += 1
        if self._position <= self.received:
            return False
        self.received = self._position
        return True

    def _skip_to(self, n: int, *, told: bool = False) -> None:
        """`told`: The server has dropped them, and says so."""
        if n > self.received:
            self.missing += 0 if told else n - self.received
            self.received = n
            self._gap = True
