"""RemoteEngine: an engine in another process, which is used as one in this; without torch."""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, Self

from streamenc.engine.remote.connection import MAX_READS, Connection
from streamenc.engine.remote.protocol import (
    BEAT_SECONDS,
    MAX_TABLE_BYTES,
    NOBODY,
    Array,
    Beat,
    Block,
    Bye,
    Call,
    Choose,
    Close,
    Failure,
    Frames,
    Leaving,
    Open,
    Outgoing,
    Refused,
    Told,
    Turn,
    head,
    raised,
    read_engine,
)
from streamenc.engine.remote.remotecalls import (
    Calls,
    ClientStatistics,
    RemoteCall,
    RemoteSeat,
)
from streamenc.engine.remote.remotemodel import RemoteCodec, RemoteModel
from streamenc.engine.remote.remotesession import RemoteSession
from streamenc.engine.statistics import EngineStatistics
from streamenc.errors import (
    EngineFull,
    InputError,
    StreamencError,
    TransportError,
    UsageError,
    WireError,
)
from streamenc.spec import ScaledCodes

# Calls of so long go as one message; the first after a pause goes at once. Where they are many, a
# message costs more than its rows, on both sides.
GATHER_FEW_SECONDS, FEW = 0.001, 4
GATHER_SECONDS = 0.004
RETRY_SECONDS = 0.002


class RemoteEngine:
    """An engine in another process, with the sessions of one in this.

    Calls of one event loop's turn, or of 4 ms where there are many, go as one message, and answers
    come as one; the loop never waits for the socket. Where a session has 8 calls in flight,
    or this engine 8,192, further ones wait for their turn here.

    It is used from one event loop at a time. A context manager, or call `close`.

    Args:
        address: ipc:///path or tcp://127.0.0.1:port, where `streamenc engine` or EngineServer is.
        timeout_seconds: How long it may take to answer at first, which this waits for (on an event
            loop use `connect`), and how long it may be silent later.

    Attributes:
        models: All that the engine serves.
        max_sessions: Of all clients together.

    Raises:
        UsageError: For another address.
        TransportError: Where no engine is there, or one of another version.
    """

    def __init__(self, address: str, *, timeout_seconds: float = 10.0) -> None:
        if not timeout_seconds > 0:
            raise UsageError(f"got timeout_seconds={timeout_seconds:g}; wanted more than 0")
        self._timeout_seconds = timeout_seconds
        self._process = os.getpid()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._gone = ""  # why nothing goes any more
        self._leaving = ""
        self._seats: dict[int, RemoteSeat] = {}
        self._outgoing = Outgoing(of_client=True)
        self._scheduled = False
        self._next_send = 0.0
        self._watcher: asyncio.TimerHandle | None = None
        self._number = self._turn = self._lost = 0
        self._places: deque[tuple[int, int]] = deque()  # turns, and the places that they took
        self._connection = Connection(address, timeout_seconds)
        self.address = self._connection.address
        welcome = self._connection.welcome
        self.models = tuple(
            RemoteModel(m.name, m.decode, m.public_name, m.spec, m.fingerprint)
            for m in welcome.models
        )
        self.max_sessions = welcome.max_sessions
        self._engine_process = welcome.process
        self._limits = welcome.limits
        self._calls = Calls(welcome.limits)
        self._free = welcome.free
        self._statistics = welcome.statistics
        self._heard = time.monotonic()
        self._itself = RemoteSeat(NOBODY, None, None)

    @classmethod
    async def connect(cls, address: str, *, timeout_seconds: float = 10.0) -> Self:
        """A new one, without holding up the event loop."""
        return await asyncio.to_thread(cls, address, timeout_seconds=timeout_seconds)

    def model(self, name: str, *, decode: bool = False) -> RemoteModel:
        """What the engine serves by that name: its encoder, or its decoder. Raises UsageError."""
        for model in self.models:
            if model.name == name and model.decode == decode:
                return model
        what = "decoder" if decode else "encoder"
        there = ", ".join(m.name for m in self.models if m.decode == decode) or "none"
        raise UsageError(f"the engine at {self.address} serves no {what} {name!r}; it has {there}")

    def codec(self, name: str) -> RemoteCodec:
        """Both of that name, as Encode and Decode take them. Raises UsageError."""
        ways = {model.decode: model for model in self.models if model.name == name}
        if not ways:
            there = ", ".join(sorted({model.name for model in self.models}))
            raise UsageError(f"the engine at {self.address} serves no {name!r}; it has {there}")
        public_name = next(iter(ways.values())).public_name
        return RemoteCodec(name, public_name, False in ways, True in ways, ways)

    def open(
        self,
        model: str | RemoteModel,
        *,
        decode: bool = False,
        hops: int = 1,
        codebooks: int | None = None,
    ) -> RemoteSession:
        """A new session, from a fresh state; on the event loop that is to use it.

        Args:
            model: A name that the engine serves, or what `model` gave.
            decode: Whether it is the name of a decoder.
            hops: Hops a step; see Engine.open.
            codebooks: How many come out; None for all.

        Raises:
            EngineFull: Where the engine has no free place, as far as is known here. Where others
                took the last ones meanwhile, the session's first call raises it, or `admitted`.
            UsageError: For a name that the engine does not serve.
            TransportError: Where the engine has ended, or is about to.
        """
        loop = self._attached()
        if isinstance(model, str):
            model = self.model(model, decode=decode)
        elif model not in self.models:
            raise UsageError(f"{model.name} is of another engine; ask this one for its models")
        if type(hops) is not int or hops < 1:
            raise InputError(f"hops are at least 1; got {hops!r}")
        if codebooks is not None:
            model.check_codebooks(codebooks)
        if self._leaving:
            raise TransportError(self._leaving)
        if self.free <= 0:
            raise EngineFull(self.max_sessions)
        self._number += 1
        seat = RemoteSeat(self._number, model, codebooks)
        self._seats[seat.number] = seat
        seat.opened = loop.create_future()
        seat.opened.add_done_callback(_seen)
        self._places.append((self._turn + 1, -1))
        self._admit(RemoteCall(seat, "open", seat.opened, extra=hops))
        return RemoteSession(self, seat)

    @property
    def sessions(self) -> int:
        """Sessions of this client that are open; `statistics().sessions` are those of all."""
        return len(self._seats)

    @property
    def free(self) -> int:
        """Places that are free, as far as is known here."""
        return self._free + sum(change for _, change in self._places)

    @property
    def ended(self) -> str:
        """Why nothing goes any more, in words: it was closed, or its process is gone; else ""."""
        return self._gone

    @property
    def leaving(self) -> str:
        """Where the engine has told that it is about to end, a sentence that says so; else ""."""
        return self._leaving

    def statistics(self) -> EngineStatistics:
        """What the engine has done so far, as it last told: a second ago at most."""
        return self._statistics

    async def fresh_statistics(self) -> EngineStatistics:
        """What the engine has done until now."""
        loop = self._attached()
        call = RemoteCall(self._itself, "statistics", loop.create_future())
        self._admit(call)
        await call.future
        return self._statistics

    def client_statistics(self) -> ClientStatistics:
        """What went through here so far."""
        calls = self._calls
        return ClientStatistics(
            len(self._seats), calls.sent, calls.answered, self._lost, calls.waiting
        )

    def close(self) -> None:
        """Closes all sessions and says goodbye; may be called twice. Waiting calls raise."""
        if os.getpid() != self._process or self._gone:
            return
        self._flush_outgoing()
        self._connection.send([head(Bye())])
        self._fail("this engine is closed; open another one", UsageError)

    async def aclose(self) -> None:
        """`close`, by the name that it has in Engine."""
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        self.close()

    # ----- what sessions call

    def _called(
        self, seat: RemoteSeat, what: str, arrays: Sequence[Array] = (), extra: Any = None
    ) -> asyncio.Future[Any]:
        loop = self._attached()
        opened = seat.opened
        if opened is not None and opened.done():
            if (error := opened.exception()) is not None:
                raise error
            seat.opened = None
        if seat.closed:
            raise UsageError(seat.closed)
        call = RemoteCall(seat, what, loop.create_future(), arrays, extra)
        if what in ("restore", "texts"):
            call.nbytes = len(extra) if what == "restore" else sum(map(len, extra)) * 4
        most = min(self._limits.message_bytes - MAX_TABLE_BYTES, self._limits.heavy_bytes)
        if call.nbytes > (MAX_TABLE_BYTES // 2 if what == "texts" else most):
            raise InputError(
                f"got {call.nbytes} bytes for one {what}; the engine takes at most {most}: give "
                "it in pieces"
            )
        self._admit(call)
        return call.future

    def _close_seat(self, seat: RemoteSeat, why: str) -> None:
        if self._seats.pop(seat.number, None) is None:
            return
        seat.closed = why
        waiting = self._calls.forget(seat)
        for call in waiting:
            call.fail(UsageError(why))
        if self._gone or any(call.what == "open" for call in waiting):
            return  # the engine never heard of it
        self._outgoing.entry(seat.number, Close(seat.number))
        self._places.append((self._turn + 1, 1))
        self._wake()

    def _drop_seat(self, seat: RemoteSeat) -> bool:
        """From any thread, and in the middle of anything; whether the session was open."""
        loop = self._loop
        if os.getpid() != self._process or self._gone or loop is None:
            return False
        try:
            loop.call_soon_threadsafe(self._close_seat, seat, "this session was dropped")
        except RuntimeError:  # the loop was closed
            self._close_seat(seat, "this session was dropped")
        return True

    # ----- of the event loop

    def _attached(self) -> asyncio.AbstractEventLoop:
        """The running event loop, which this is used from."""
        if self._gone:
            raise self._error(self._gone)
        if os.getpid() != self._process:
            raise UsageError(
                f"this engine was connected in process {self._process}, and process {os.getpid()} "
                "is a fork of it: connect another one there"
            )
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            if self._loop is not None and not self._loop.is_closed():
                raise UsageError("this engine is used from another event loop; connect one here")
            self._loop = loop
            self._scheduled = False
            self._connection.watch(loop, self._read, self._look)
            self._watch()
            if self._gone:  # already, as is only seen now
                raise self._error(self._gone)
        return loop

    def _admit(self, call: RemoteCall) -> None:
        tag = self._calls.admit(call)
        if tag is not None:
            self._put(tag, call)

    def _put(self, tag: int, call: RemoteCall) -> None:
        """Puts a call that has credit into the next message."""
        if self._outgoing.nbytes + call.nbytes > self._limits.message_bytes // 2:
            self._flush_outgoing()
        out, seat = self._outgoing, call.seat
        number, what = seat.number, call.what
        if call.codebooks != seat.told_codebooks and what != "open":
            out.entry(number, Choose(number, call.codebooks))
        seat.told_codebooks = call.codebooks
        if call.arrays:
            out.row(tag, number, call.arrays)
        elif what == "open":
            model = seat.model
            out.entry(
                number, Open(tag, number, model.name, model.decode, call.extra, call.codebooks)
            )
        elif what == "restore":
            out.entry(number, Call(tag, number, what), call.extra)
        else:
            out.entry(number, Call(tag, number, what, call.extra or []))
        call.arrays, call.extra = (), None
        if out.full:
            self._flush_outgoing()
        self._wake()

    def _wake(self) -> None:
        loop = self._loop
        if self._scheduled or loop is None or loop.is_closed():
            return
        self._scheduled = True
        wait = self._next_send - loop.time()
        if wait <= 0:
            loop.call_soon(self._send)
        else:
            loop.call_later(wait, self._send)

    def _send(self) -> None:
        self._scheduled = False
        if self._gone or self._loop is None:
            return
        few = self._outgoing.count < FEW
        self._flush_outgoing()
        if self._connection.unsent:
            self._scheduled = True
            self._loop.call_later(RETRY_SECONDS, self._send)
        self._next_send = self._loop.time() + (GATHER_FEW_SECONDS if few else GATHER_SECONDS)
        # Sending may have taken note of what came, and then nothing else tells of it.
        self._read()

    def _flush_outgoing(self) -> None:
        """Sends what there is, and what the socket did not take before."""
        out = self._outgoing
        if out.count:
            self._outgoing = Outgoing(of_client=True)
            self._turn += 1
            self._connection.send(out.frames(Turn(self._calls.answered, out.table)))
        else:
            self._connection.send_rest()

    def _read(self) -> None:
        if self._read_some() and self._loop is not None:
            self._loop.call_soon(self._read)

    def _read_some(self) -> bool:
        """Whether there may be more."""
        for _ in range(MAX_READS):
            if self._gone:
                return False
            parts = self._connection.receive()
            if parts is None:
                return False
            self._heard = time.monotonic()
            try:
                self._take(parts)
            except WireError as error:
                self._fail(f"it talks nonsense ({error})")
        return True

    def _take(self, parts: list[memoryview]) -> None:
        message = read_engine(parts)
        if isinstance(message, Told):
            self._told(message, Frames(parts))
        elif isinstance(message, Beat):
            self._statistics = message.statistics
            self._know(message)
        elif isinstance(message, Leaving):
            self._leaving = (
                f"the engine at {self.address} ends in {message.seconds:.0f} s and opens no more "
                "sessions: flush yours, or take snapshots, and go on with another engine"
            )
        elif isinstance(message, Refused):
            self._fail(message.why)

    def _told(self, message: Told, frames: Frames) -> None:
        for entry in message.entries:
            if isinstance(entry, Block):
                tags, arrays = frames.numbers(entry), frames.arrays(entry)
                rows: Any = zip(*arrays, strict=True) if len(arrays) == 2 else arrays[0].copy()
                for tag, row in zip(tags, rows, strict=True):
                    output = ScaledCodes(*(part.copy() for part in row)) if arrays[1:] else row
                    self._calls.settled(tag).settle(output)
            elif isinstance(entry, Failure):
                call, error = self._calls.settled(entry.tag), raised(entry)
                call.fail(error)
                if call.what == "open":
                    self._close_seat(call.seat, str(error))
            else:
                self._statistics = entry.statistics or self._statistics
                call = self._calls.settled(entry.tag)
                if call.what == "restore":
                    call.seat.codebooks = call.seat.told_codebooks = entry.codebooks
                call.settle(bytes(frames.blob()) if entry.blob else None)
        frames.end()
        self._know(message)
        for tag, call in self._calls.released():
            self._put(tag, call)

    def _know(self, message: Told | Beat) -> None:
        """How many places are free: as it says, without what it had not heard of then."""
        while self._places and self._places[0][0] <= message.turns:
            self._places.popleft()
        self._free = message.free

    def _look(self) -> None:
        """The connection is gone; what came before that is read first."""
        if self._gone or not self._connection.broken:
            return
        while self._read_some():
            pass
        self._fail("its process ended, or the connection to it broke")

    def _watch(self) -> None:
        """Each second, as a connection may be there where the engine is not any more."""
        if self._gone or self._loop is None:
            return
        while self._read_some():
            pass
        self._look()
        if self._gone:
            return
        if time.monotonic() - self._heard > self._timeout_seconds:
            self._fail(f"it was silent for {self._timeout_seconds:g} s")
        else:
            self._watcher = self._loop.call_later(BEAT_SECONDS, self._watch)

    def _fail(self, why: str, kind: type[StreamencError] = TransportError) -> None:
        """Ends this: all that waits raises, and so does all that comes later."""
        if self._gone:
            return
        if kind is TransportError:
            why = (
                f"the engine at {self.address} (process {self._engine_process}) is gone: {why}; "
                "connect to another one, and go on from your snapshots"
            )
        self._gone, self._error = why, kind
        self._lost = self._calls.in_flight
        calls = self._calls.end()
        for seat in self._seats.values():
            seat.closed = seat.closed or why
        self._seats.clear()
        if self._loop is not None and not self._loop.is_closed():
            self._connection.unwatch(self._loop)
            for call in calls:
                call.fail(kind(why))
        if self._watcher is not None:
            self._watcher.cancel()
        self._connection.close()


def _seen(opened: asyncio.Future[None]) -> None:
    """A session may be closed before anybody asks whether it was admitted."""
    if not opened.cancelled():
        opened.exception()
