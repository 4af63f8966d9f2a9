"""ClientStream: a live stream at a server, which goes on by itself when its connection breaks."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeAlias

import msgspec
import numpy as np

from streamenc.errors import InputError, TransportError, UsageError
from streamenc.graph.frames import StreamInfo
from streamenc.io.network.packetsource import end_task
from streamenc.io.network.websocket.answers import Answers
from streamenc.io.network.websocket.clientinput import ClientInput, Samples
from streamenc.io.network.websocket.courier import Courier, Patience
from streamenc.io.network.websocket.dialing import Dialer
from streamenc.io.network.websocket.ending import OpenRefused
from streamenc.io.network.websocket.ledger import Came, Ledger, Piece, Refusal, Snapshot
from streamenc.io.network.websocket.livemessages import (
    Ack,
    Close,
    Closed,
    Dropped,
    Error,
    Flush,
    Flushed,
    GoAway,
    Mark,
    Marked,
    Opened,
    Ordered,
    Resumed,
    Set,
    Speech,
    TakeSnapshot,
    WasSet,
)
from streamenc.io.network.wire import Info, fitted

logger = logging.getLogger(__name__)

MAX_EVENTS = 1024
NOT_OPEN = "the stream is not open; use `async with connect(...) as stream`"
CLOSE_S, LEAVE_S = 10.0, 1.0
# A server writes a stream down about every ten seconds, unless it is told not to.
FORGET_S = 20.0

# What a server tells beside data.
Event: TypeAlias = Speech | Dropped | Marked | Flushed | WasSet | Resumed | GoAway | Error | Refusal


@dataclass(frozen=True, slots=True, eq=False)
class Received:
    """One piece of what comes out: codes, features or sound.

    Attributes:
        data: (codebooks, frames) of codes, (channels, samples) of sound, ... as `ClientStream.info`
            says; of an echo, as its track says.
        seconds: When it begins, on the clock of the input.
        pts: The same in ticks of the `time_base` of its stream.
        duration: In the same ticks.
        discontinuity: Whether it does not follow on from the piece before: something was lost, or
            the input jumped.
        scale: Factor for the decoded waveform.
        track: Of an echo: 0 for codes, 1 for sound.
        seq: Counts the pieces of its track, from 0.
    """

    data: np.ndarray[Any, Any]
    seconds: float
    pts: int
    duration: int
    discontinuity: bool
    scale: float
    track: int
    seq: int


@dataclass(frozen=True, slots=True)
class Passed:
    """A mark that came back: all that was sent before it has come out.

    Attributes:
        pts: The end of the input before it, in ticks of the input.
        round_trip_seconds: From the call of `mark`.
    """

    id: str
    pts: int
    round_trip_seconds: float


@dataclass(frozen=True, slots=True)
class ClientStatistics:
    """What a stream has been through so far.

    Attributes:
        round_trip_seconds: Of the last mark; of the last ping where none came back; 0 before both.
        connections: How many were made.
        resumed: How often it went on after a disconnection.
        missing: Messages that never came, which the server did not have any more.
        dropped: Packets that the policy of the stream dropped, as the server tells.
        refused: Packets that the server did not take.
        events_dropped: Events that nobody took in time.
        bytes_sent, bytes_received: Of messages, those that were sent again among them.
        kept, kept_bytes: What may have to be sent again.
        unread: Pieces that wait here for whoever iterates.
    """

    round_trip_seconds: float
    connections: int
    resumed: int
    missing: int
    dropped: int
    refused: int
    events_dropped: int
    bytes_sent: int
    bytes_received: int
    kept: int
    kept_bytes: int
    unread: int


class ClientStream:
    """What `connect` gives. Sending and receiving do not wait for each other: let each have a task
    of its own, or see that no more than `window` pieces come before somebody iterates.

    Leaving `async with` ends the stream at the server, too.

    Attributes:
        info: What comes out; None until the first of it is there.
    """

    def __init__(
        self,
        ledger: Ledger,
        dialer: Dialer,
        patience: Patience,
        pts: int,
        on_event: Callable[[Event], None] | None,
        formats: Sequence[str],
    ) -> None:
        """`formats`: What sound or images may come as, tried in this order."""
        self._ledger, self._first_pts, self._on_event = ledger, pts, on_event
        self._formats = formats
        self._courier = Courier(ledger, dialer, patience, self._take)
        self.info: StreamInfo | None = None
        self._input: ClientInput | None = None
        self._task: asyncio.Task[None] | None = None
        self._pieces: deque[Received] = deque()
        self._events: deque[Event] = deque()
        self._came = asyncio.Event()
        self._told = asyncio.Event()
        self._room = asyncio.Event()
        self._answers = Answers()
        self._refusals: deque[Refusal] = deque(maxlen=16)
        self._closing = self._leaving = self._unsafe = False
        self._refused = self._events_dropped = 0
        self._dropped: dict[str, int] = {}
        self._round_trip_s = 0.0

    async def __aenter__(self) -> Self:
        """Raises:
        EngineFull: Where the server is full.
        UsageError: Where what was asked for is not there, or the key is wrong.
        TransportError: Where no server answers.
        """
        *guesses, last = self._formats
        for format in guesses:
            with suppress(OpenRefused):
                return await self._opened_as(format)
        return await self._opened_as(last)

    async def _opened_as(self, format: str) -> Self:
        self._ledger.ask_for(format)
        self._task = asyncio.create_task(self._courier.run(), name="stream at a server")
        self._task.add_done_callback(self._ended)
        try:
            while self._ledger.opened is None and not self._task.done():
                self._told.clear()
                await self._told.wait()
            if self._ledger.opened is None:
                self._task.result()
        except BaseException:  # a cancellation among them: the task ends, too
            await end_task(self._task)
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose(CLOSE_S if kind is None else LEAVE_S)

    async def aclose(self, seconds: float = CLOSE_S) -> None:
        """Ends the stream, at the server too where it can be told so within so many seconds; what
        did not come yet is thrown away. May be called twice.
        """
        task = self._task
        if task is None:
            return
        if not self._closing:
            self._put(Close())
        self._closing = self._leaving = True
        while self._pieces:
            self._pop()
        try:
            await asyncio.wait({task}, timeout=seconds)
        finally:
            await end_task(task)

    @property
    def opened(self) -> Opened:
        """What the server said of the stream, but its secret. Raises UsageError before that."""
        if self._ledger.opened is None:
            raise UsageError(NOT_OPEN)
        return msgspec.structs.replace(self._ledger.opened, token="")

    # ----- what goes in

    async def send(
        self, given: Samples, *, pts: int | None = None, discontinuity: bool = False
    ) -> None:
        """Sends the next input; waits while `keep_bytes` are kept already.

        Args:
            given: Sound: int16 or float32 (samples,) or (channels, samples), as it was opened.
                Images: uint8 (3, height, width) as "rgb". Codes and features: (channels, frames).
                Bytes of all other formats; of "media" they may be cut anywhere.
            pts: Where it begins, in ticks of `opened.input.time_base`; None where it follows on.
            discontinuity: It does not follow on; of sound, a `pts` that jumps says so itself.

        Raises:
            InputError: Where it does not fit, or the server refused what was sent before; the
                stream goes on as if that had not been sent.
            TransportError: Where the stream is lost.
            UsageError: After `close`.
        """
        self._check()
        assert self._input is not None
        packets = self._input.packets(given, pts, discontinuity)
        while True:
            while not self._ledger.has_room:
                await self._wait_for_room()
                self._check()
            packet = next(packets, None)
            if packet is None:
                return
            self._ledger.put(packet)
            self._courier.stir()

    async def _wait_for_room(self) -> None:
        self._room.clear()
        try:
            async with asyncio.timeout(FORGET_S):
                await self._room.wait()
        except TimeoutError:
            if self._ledger.forget() and not self._unsafe:
                self._unsafe = True
                logger.warning(
                    "the server has written nothing down for %g s: where it dies, the stream is "
                    "lost; raise keep_bytes, or have it write more often",
                    FORGET_S,
                )

    async def flush(self) -> int:
        """The model's stream ends here, and what comes next starts a new one.

        Returns once all of it came: where the input ended, in its ticks. Raises as `send`.
        """
        answer = await self._ask(Flush(), Flushed)
        return int(answer.pts)

    async def mark(self, id: str = "") -> Passed:
        """Returns once all that was sent before has come out. Raises as `send`."""
        began = time.monotonic()
        answer = await self._ask(Mark(id), Marked)
        return Passed(id, answer.pts, time.monotonic() - began)

    async def set(
        self,
        *,
        codebooks: int | None | msgspec.UnsetType = msgspec.UNSET,
        vad: bool | msgspec.UnsetType = msgspec.UNSET,
    ) -> None:
        """Changes what comes out from the next step on; returns once it is so. Raises as `send`.

        Args:
            codebooks: How many come out; None for all.
            vad: Whether speech is told.
        """
        given = {"type": "set", "codebooks": codebooks, "vad": vad}
        given = {name: value for name, value in given.items() if value is not msgspec.UNSET}
        try:
            message = msgspec.convert(given, Set)
        except msgspec.ValidationError as error:
            raise UsageError(f"cannot set this: {error}") from None
        await self._ask(message, WasSet)

    async def snapshot(self) -> Snapshot:
        """The state of the stream behind all that was sent, for `connect(snapshot=...)`.

        Raises as `send`.
        """
        while True:
            answer = await self._ask(TakeSnapshot(), Snapshot)
            assert isinstance(answer, Snapshot)
            if answer.blob:
                return answer

    async def close(self) -> None:
        """Nothing more will be sent: the rest comes out, and iterating ends behind it.

        Raises as `send`.
        """
        if not self._closing:
            self._check()
            self._closing = True
            self._put(Close())

    async def _ask(self, message: Ordered, answer: type[Any]) -> Any:
        self._check()
        began = time.monotonic()
        seq = self._put(message)
        id = message.id if isinstance(message, Mark) else ""
        got = await self._answers.wait(seq, answer, id)
        if isinstance(message, Mark):
            self._round_trip_s = time.monotonic() - began
        return got

    def _put(self, message: Ordered) -> int:
        seq = self._ledger.put_message(message)
        self._courier.stir()
        return seq

    def _check(self) -> None:
        """Raises what prevents that anything is sent."""
        if self._ledger.opened is None:
            raise UsageError(NOT_OPEN)
        if self._task is not None and self._task.done():
            if failure := self._failure():
                raise failure
            raise TransportError("the stream has ended")
        if self._closing:
            raise UsageError("the stream was closed; nothing more can be sent")
        if self._refusals:
            refusal = self._refusals.popleft()
            raise InputError(
                f"the server did not take message {refusal.seq}: {refusal.message}; the stream "
                "goes on without it"
            )

    # ----- what comes out

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Received:
        """The next piece. Raises what ended the stream otherwise, once all that came is given."""
        assert self._task is not None, "iterate within `async with`"
        while not self._pieces:
            if self._task.done():
                if failure := self._failure():
                    raise failure
                raise StopAsyncIteration
            self._came.clear()
            await self._came.wait()
        return self._pop()

    async def events(self) -> AsyncIterator[Event]:
        """What the server tells beside data, to the end of the stream; of it 1024 may wait."""
        assert self._task is not None, "iterate within `async with`"
        while True:
            while self._events:
                yield self._events.popleft()
            if self._task.done():
                return
            self._told.clear()
            await self._told.wait()

    def statistics(self) -> ClientStatistics:
        ledger, courier = self._ledger, self._courier
        return ClientStatistics(
            round_trip_seconds=self._round_trip_s or courier.ping_seconds,
            connections=courier.connections,
            resumed=ledger.resumed,
            missing=ledger.missing,
            dropped=sum(self._dropped.values()),
            refused=self._refused,
            events_dropped=self._events_dropped,
            bytes_sent=courier.bytes_sent,
            bytes_received=courier.bytes_received,
            kept=ledger.kept,
            kept_bytes=ledger.kept_bytes,
            unread=len(self._pieces),
        )

    def _pop(self) -> Received:
        piece = self._pieces.popleft()
        self._ledger.read()
        self._courier.stir()
        return piece

    def _failure(self) -> BaseException | None:
        task = self._task
        if task is None or not task.done():
            return None
        return TransportError("the stream was closed") if task.cancelled() else task.exception()

    def _ended(self, task: asyncio.Task[None]) -> None:
        why = self._failure() or TransportError("the stream has ended")
        self._answers.fail(why)
        for event in (self._came, self._told, self._room):
            event.set()

    def _take(self, came: Came) -> None:
        """Raises StreamencError where the stream cannot go on with it."""
        match came:
            case Piece():
                self._take_piece(came)
            case Info():
                self.info = came.info
            case Ack():
                self._room.set()
            case Opened():
                self._input = ClientInput(came, self._first_pts)
                self._told.set()
            case Closed():
                pass
            case Snapshot():
                self._answers.give(came)
            case _:
                self._tell(came)

    def _take_piece(self, piece: Piece) -> None:
        if self.info is None:
            raise TransportError("the server sends data before it said what they are")
        data = piece.data
        array = fitted(data, self.info)
        base = self.info.track(data.track).time_base
        self._pieces.append(
            Received(
                data=array,
                seconds=data.pts * base.numerator / base.denominator,
                pts=data.pts,
                duration=data.duration,
                discontinuity=data.discontinuity or piece.gap,
                scale=data.scale,
                track=data.track,
                seq=data.seq,
            )
        )
        if self._leaving:
            self._pop()
        self._came.set()

    def _tell(self, event: Any) -> None:
        match event:
            case Resumed():
                event = msgspec.structs.replace(event, token="")  # who prints events shows it
                self._room.set()
                if not event.exact:
                    logger.warning("the stream goes on, not quite as it was: %s", event.why)
            case Refusal():
                self._refused += 1
                if not self._answers.refuse(event.seq, event.message):
                    self._refusals.append(event)
            case Dropped():
                self._dropped[event.where] = event.total
                logger.warning("the server dropped %d packets of %s", event.packets, event.where)
            case Error():
                logger.warning("the server says %s: %s", event.code, event.message)
            case Marked() | Flushed() | WasSet():
                self._answers.give(event)
        if self._on_event is not None:
            self._on_event(event)
            return
        if len(self._events) == MAX_EVENTS:
            self._events.popleft()
            self._events_dropped += 1
        self._events.append(event)
        self._told.set()
