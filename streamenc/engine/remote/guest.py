"""Guest: one client of an engine's process, as that process sees it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from streamenc.engine.remote.protocol import (
    HEAVY_BYTES,
    NOBODY,
    Array,
    Block,
    Call,
    Close,
    Frames,
    Limits,
    Open,
    Outgoing,
    Result,
    Turn,
    failure,
    sendable,
)
from streamenc.engine.remote.submission import Answer, Deliver, Outlet, Submission
from streamenc.errors import InputError, StreamencError, UsageError, WireError
from streamenc.models.signal import Scaled, is_signal

if TYPE_CHECKING:
    from streamenc.engine.engine import Engine
    from streamenc.engine.session import Session
    from streamenc.models.model import Model


class Place:
    """A client's session here; `waiting`: its calls that were not answered."""

    def __init__(self, session: Session | None, refused: StreamencError | None) -> None:
        self.session, self.refused = session, refused
        self.waiting = 0


class Guest:
    """What one client has: its sessions, its calls in flight, and the answers that go to it.

    Only the server's thread uses it.

    Args:
        deliver: Takes the answers of this guest from whatever thread they come.
        ident: By which ZeroMQ knows it.
        process: Its number.

    Attributes:
        calls: That it sent. `answered`: of these. `received`: what it has told of those.
        turns: Messages of calls.
    """

    def __init__(
        self,
        engine: Engine,
        find: Callable[[str, bool], Model],
        limits: Limits,
        deliver: Callable[[Guest, list[Answer]], None],
        ident: bytes,
        process: int,
    ) -> None:
        self.ident, self.process = ident, process
        self.deliver: Deliver = partial(deliver, self)
        self.calls = self.answered = self.received = self.turns = 0
        self.outgoing = Outgoing()
        self._outlet = Outlet(self.deliver)
        self._engine, self._find, self._limits = engine, find, limits
        self._places: dict[int, Place] = {}
        self._heavy: dict[int, int] = {}  # by tag: bytes of calls in flight that have many

    @property
    def sessions(self) -> int:
        """That are open, or were refused and not closed yet."""
        return len(self._places)

    def take(self, turn: Turn, frames: Frames, leaving: str) -> None:
        """All that a message says, in its order; a call is answered by `answers`, now or later.

        leaving  Why no more sessions are opened; "" where they are.

        Raises WireError where the client does not keep to the protocol: it is to be dismissed.
        """
        if not self.received <= turn.received <= self.answered:
            raise WireError(
                f"it says that {turn.received} answers came, of {self.answered} that it was sent"
            )
        self.received = turn.received
        self.turns += 1
        self._submission = Submission(self._engine, self._outlet, self.deliver)
        for entry in turn.entries:
            if isinstance(entry, Block):
                self._rows(*frames.block(entry))
            elif isinstance(entry, Call):
                self._call(entry, frames)
            elif isinstance(entry, Open):
                self._open(entry, leaving)
            else:
                self._close(entry)
        frames.end()
        self._submission.send()

    def answers(self, answers: Sequence[Answer]) -> None:
        """Puts answers into the message that goes out next."""
        out = self.outgoing
        for tag, session, result, error in answers:
            place = self._places.get(session)
            if place is not None:
                place.waiting -= 1
            if self._heavy:
                self._heavy.pop(tag, None)
            if error is not None:
                out.entry(session, failure(tag, error))
            elif isinstance(result, bytes):
                out.entry(session, Result(tag, True), result)
            elif is_signal(result):
                out.row((tag, session, 0), arrays_of(result))
            elif session == NOBODY:
                out.entry(session, Result(tag, False, self._engine.statistics()))
            else:
                out.entry(session, Result(tag))
        self.answered += len(answers)

    def go(self) -> None:
        """Gives all places back."""
        for place in self._places.values():
            if place.session is not None:
                place.session.close()
        self._places.clear()

    def _rows(self, records: list[list[int]], arrays: list[Array]) -> None:
        first = arrays[0]
        volumes = arrays[1] if len(arrays) == 2 else None
        nbytes = sum(array[0].nbytes for array in arrays)
        for index, (tag, session, codebooks) in enumerate(records):
            place = self._counted(session)
            if nbytes >= HEAVY_BYTES:
                self._weigh(tag, nbytes)
            chunk: Any = first[index]
            if volumes is not None:
                chunk = scaled_of(chunk, volumes[index])
            self._step(place, tag, session, codebooks if codebooks >= 0 else None, chunk)

    def _call(self, call: Call, frames: Frames) -> None:
        blob = bytes(frames.blob()) if call.what == "restore" else b""
        if call.what == "statistics":
            self._count()
            self.answer_now(call.tag, NOBODY)
            return
        if len(blob) >= HEAVY_BYTES:
            self._weigh(call.tag, len(blob))
        place = self._counted(call.session)
        if call.what == "texts":
            texts: Any = call.texts
            self._step(place, call.tag, call.session, call.codebooks, texts)
            return
        if call.what not in ("flush", "snapshot", "restore"):
            raise WireError(f"it calls {call.what[:20]!r}, which is unknown")
        if self._usable(place, call.tag, call.session, call.codebooks):
            assert place.session is not None
            stream = place.session._seat.stream
            run: Callable[[], Any] = {
                "flush": stream.flush,
                "snapshot": stream.snapshot,
                "restore": lambda: stream.restore(blob),
            }[call.what]
            self._submission.call(place.session._seat, call.tag, call.session, run)

    def _step(
        self, place: Place, tag: int, session: int, codebooks: int | None, chunk: Any
    ) -> None:
        if self._usable(place, tag, session, codebooks):
            assert place.session is not None
            self._submission.step(place.session._seat, tag, session, chunk)

    def _usable(self, place: Place, tag: int, session: int, codebooks: int | None) -> bool:
        """Whether a call can go to the engine; answers it where it cannot."""
        error: StreamencError | None = place.refused
        if place.session is not None:
            seat = place.session._seat
            if seat.closed:
                error = UsageError(seat.closed)
            elif codebooks != seat.stream.codebooks:
                try:
                    place.session.codebooks = codebooks
                except InputError as refused:
                    error = refused
        if error is None:
            return True
        self.answer_now(tag, session, error)
        return False

    def _open(self, wanted: Open, leaving: str) -> None:
        if wanted.session in self._places or wanted.session < 0:
            raise WireError(f"it opens session {wanted.session} twice")
        if len(self._places) >= self._limits.calls:
            raise WireError(f"it has {len(self._places)} sessions, which it never closed")
        session, refused = None, None
        try:
            if leaving:
                raise UsageError(leaving)
            model = self._find(wanted.name, wanted.decode)
            if not 1 <= wanted.hops <= model.spec.input.rate * 3600 / model.spec.hop + 1:
                raise InputError(f"got {wanted.hops} hops a step; wanted 1 to an hour's")
            session = self._engine.open(model, hops=wanted.hops, codebooks=wanted.codebooks)
        except StreamencError as error:
            refused = error
        self._places[wanted.session] = Place(session, refused)
        self._counted(wanted.session)
        self.answer_now(wanted.tag, wanted.session, refused)

    def _close(self, wanted: Close) -> None:
        place = self._places.pop(wanted.session, None)
        if place is None:
            raise WireError(f"it closes session {wanted.session}, which it never opened")
        if place.session is not None:
            place.session.close()

    def answer_now(self, tag: int, session: int, error: StreamencError | None = None) -> None:
        """Answers a call that the engine need not see, in its turn: behind what was sent to it."""
        self.deliver([(tag, session, None, error)])

    def _counted(self, session: int) -> Place:
        self._count()
        place = self._places.get(session)
        if place is None:
            raise WireError(f"it calls session {session}, which it never opened")
        place.waiting += 1
        if place.waiting > self._limits.deep:
            raise WireError(f"it has more than {self._limits.deep} calls of one session in flight")
        return place

    def _weigh(self, tag: int, nbytes: int) -> None:
        if tag in self._heavy:
            raise WireError(f"it has two calls {tag} in flight")
        self._heavy[tag] = nbytes
        if sum(self._heavy.values()) > self._limits.heavy_bytes:
            raise WireError(f"it has more than {self._limits.heavy_bytes} bytes in flight")

    def _count(self) -> None:
        self.calls += 1
        if self.calls - self.received > self._limits.calls:
            raise WireError(f"it has more than {self._limits.calls} calls in flight")


def arrays_of(signal: Any) -> list[Array]:
    """A signal's arrays, as they are sent."""
    parts = list(signal) if isinstance(signal, Scaled) else [signal]
    return [sendable(part.numpy(force=True)) for part in parts]


def scaled_of(codes: Array, volume: Array) -> Scaled:
    """Codes with their volume, as a chunk."""
    import torch

    return Scaled(torch.from_numpy(codes.astype("int64")), torch.from_numpy(volume.copy()))
