"""Room: one producer at a time, many listeners; and all rooms of a process, by their names."""

from __future__ import annotations

import asyncio
import hmac
import re
import secrets
from collections.abc import Callable

from streamenc.errors import EngineFull, InputError, UsageError
from streamenc.io.network.websocket.livemessages import Listen
from streamenc.io.network.wire import Data, End, Info, encode_end, fitted
from streamenc.serve.limits import Limits
from streamenc.serve.rooms.listener import Listener

_NAME = re.compile(r"[A-Za-z0-9._~-]{1,64}")
SECRET_BYTES = 24


class Occupied(UsageError):
    """Somebody else produces in this room."""


class Production:
    """One stream that somebody brings into a room, over one connection after the other.

    Attributes:
        token: With which its producer comes back.
        received: Packets of data that came.
        session: Of the stream that the server makes; "" where it came encoded.
        next_n: Of that stream, the number of the message that comes next.
        over: Set where another connection has taken it over.
    """

    def __init__(self) -> None:
        self.token = secrets.token_urlsafe(SECRET_BYTES)
        self.received = self.next_n = 0
        self.session = ""
        self.over = asyncio.Event()
        self.info: Info | None = None
        self._next_seqs: list[int] = []

    def describe(self, got: Info) -> bool:
        """What it is; whether that is news. Raises InputError where it was something else."""
        if self.info is None:
            self.info = got
            self._next_seqs = [0] * max(1, len(got.info.tracks))
            return True
        if got.stream != self.info.stream or got.info != self.info.info:
            raise InputError("got another stream; end this one first, and produce that anew")
        return False

    def check(self, data: Data) -> None:
        """Raises InputError, WireError where it does not fit the stream."""
        if self.info is None:
            raise InputError("got data of a stream that nothing has described; send info first")
        if data.stream != self.info.stream:
            raise InputError(f"got data of stream {data.stream:x}; wanted {self.info.stream:x}")
        if data.track >= len(self._next_seqs):
            raise InputError(f"got track {data.track} of {len(self._next_seqs)}")
        fitted(data, self.info.info)

    def count(self, data: Data) -> None:
        self.received += 1
        self._next_seqs[data.track] = data.seq + 1

    def end(self, broken: str) -> bytes:
        """The packet that ends it."""
        stream = self.info.stream if self.info else 1
        return encode_end(End(stream, self.received, tuple(self._next_seqs), broken))


class Room:
    """Who is in it, and what was said last."""

    def __init__(self, name: str, limits: Limits, forget: Callable[[Room], None]) -> None:
        self.name, self._limits, self._forget = name, limits, forget
        self.listeners: set[Listener] = set()
        self._production: Production | None = None
        self._present = 0
        self._info = b""
        self._waits: dict[Listener, asyncio.TimerHandle] = {}
        self._timer: asyncio.TimerHandle | None = None

    @property
    def producing(self) -> bool:
        return self._production is not None

    def token_of(self, session: str) -> str:
        """Of the production that the server makes in this session; "" where there is none."""
        now = self._production
        return now.token if now is not None and now.session == session else ""

    # ----- the producer

    def produce(self, token: str = "") -> Production:
        """A new production, or that of the token, which this connection takes over.

        Raises:
            Occupied: Where somebody else produces here.
        """
        now = self._production
        if now is not None:
            if not (token and hmac.compare_digest(now.token.encode(), token.encode())):
                raise Occupied(
                    f"somebody produces in the room {self.name!r} already; take another name, or "
                    "come back with the token"
                )
            now.over.set()
            now.over = asyncio.Event()
        else:
            self._production = now = Production()
        self._stop_timer()
        self._present += 1
        return now

    def left(self, production: Production) -> None:
        """A connection of a producer is gone: it may come back for a while."""
        self._present -= 1
        if production is self._production and not self._present:
            if production.info is None:  # nobody has heard of it
                self._production = None
            else:
                gone = production.end("the producer did not come back")
                self._timer = asyncio.get_running_loop().call_later(
                    self._limits.resume_seconds, self.finish, production, gone
                )
        self.look()

    def describe(self, info: bytes) -> None:
        self._info = info
        for listener in self.listeners:
            listener.describe(info)

    async def publish(self, packet: bytes) -> None:
        """A packet of data, to all; waits for those who want that, for a while."""
        slow = [each for each in self.listeners if each.policy == "block" and each.full]
        if slow:
            waits = [asyncio.ensure_future(each.room()) for each in slow]
            _, late = await asyncio.wait(waits, timeout=self._limits.room_block_seconds)
            for wait in late:
                wait.cancel()
            for each in slow:
                if each.full:  # it had its chance, and the others wait no more for it
                    each.policy = "drop_oldest"
        for listener in self.listeners:
            listener.offer(packet)

    def finish(self, production: Production, last: bytes) -> None:
        """The stream has ended, for all."""
        if production is not self._production:
            return
        self._production, self._info = None, b""
        self._stop_timer()
        for listener in self.listeners:
            listener.finish(last)
        self.look()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # ----- listeners

    def join(self, asked: Listen) -> Listener:
        """Raises EngineFull where as many are here as there may be."""
        most = self._limits.room_listeners
        if len(self.listeners) >= most:
            raise EngineFull(most, f"{most} listen in this room already; try later")
        listener = Listener(asked, self._limits.max_queued_bytes)
        if self._info:
            listener.describe(self._info)
        self.listeners.add(listener)
        self._await_producer(listener)
        return listener

    def _await_producer(self, listener: Listener) -> None:
        seconds = self._limits.room_wait_seconds

        def look() -> None:
            if self._production is None:
                listener.end("idle", f"nobody produced in this room for {seconds:g} s")
            else:
                self._await_producer(listener)

        self._waits[listener] = asyncio.get_running_loop().call_later(seconds, look)

    def part(self, listener: Listener) -> None:
        self.listeners.discard(listener)
        self._waits.pop(listener).cancel()
        listener.end("closed", "it went")
        self.look()

    def look(self) -> None:
        """A room in which nobody is, and to which nobody comes back, is forgotten."""
        if not (self._production or self.listeners or self._present):
            self._forget(self)


class Rooms:
    """The rooms of one process. A room is there while somebody is in it."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._rooms: dict[str, Room] = {}

    def __len__(self) -> int:
        return len(self._rooms)

    def enter(self, name: str) -> Room:
        """The room of this name; whoever enters calls its `look` in the end.

        Raises:
            InputError: For what is no name.
            EngineFull: Where there are as many as there may be.
        """
        if not _NAME.fullmatch(name):
            raise InputError(
                "a room's name has up to 64 letters, digits and . _ ~ -, all of them ASCII"
            )
        room = self._rooms.get(name)
        if room is None:
            if len(self._rooms) >= self._limits.rooms:
                raise EngineFull(self._limits.rooms, "there are no more rooms now; try later")
            room = self._rooms[name] = Room(name, self._limits, self._left)
        return room

    def _left(self, room: Room) -> None:
        if self._rooms.get(room.name) is room:
            del self._rooms[room.name]
