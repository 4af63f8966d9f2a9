"""Guest: one client of an engine's process, as that process sees it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from operator import sub
from typing import TYPE_CHECKING, Any, NamedTuple

from streamenc.engine.exchange.door import Answer
from streamenc.engine.exchange.outputs import Output, is_output
from streamenc.engine.remote.protocol import (
    HEAVY_BYTES,
    Array,
    Block,
    Call,
    Choose,
    Close,
    Form,
    Frames,
    Limits,
    Open,
    Outgoing,
    Result,
    Turn,
    failure,
    sendable,
)
from streamenc.engine.remote.submission import Submission
from streamenc.errors import InputError, StreamencError, UsageError, WireError
from streamenc.spec import ScaledCodes

if TYPE_CHECKING:
    from streamenc.engine.engine import Engine
    from streamenc.engine.seats import Seat
    from streamenc.engine.session import Session
    from streamenc.models.model import Model
    from streamenc.stream import Stream


class Restored(NamedTuple):
    """A session's number of codebooks after its stream was restored."""

    codebooks: int | None


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
        self.calls = self.answered = self.received = self.turns = 0
        self.outgoing = Outgoing(of_client=False)
        self._deliver = deliver
        self._engine, self._find, self._limits = engine, find, limits
        # By the client's numbers. What was refused is known until the client closes it.
        self._sessions: dict[int, Session] = {}
        self._seats: dict[int, Seat] = {}
        self._refused: dict[int, StreamencError] = {}
        # Calls that came of each seat, and that were answered.
        self._came: Counter[Seat] = Counter()
        self._went: Counter[Seat] = Counter()
        self._heavy: dict[int, int] = {}  # by tag: bytes of calls in flight that have many

    @property
    def sessions(self) -> int:
        """That are open, or were refused and not closed yet."""
        return len(self._sessions) + len(self._refused)

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
        submission = Submission(self._engine, self)
        for entry in turn.entries:
            if isinstance(entry, Block):
                tags, numbers = frames.numbers(entry), frames.numbers(entry)
                self._rows(tags, numbers, frames.arrays(entry), submission)
            elif isinstance(entry, Call):
                self._call(entry, frames, submission)
            elif isinstance(entry, Open):
                self._open(entry, leaving)
            elif isinstance(entry, Choose):
                self._choose(entry)
            else:
                self._close(entry)
        frames.end()
        submission.send()

    def answers(self, answers: Sequence[Answer]) -> None:
        """Puts answers into the message that goes out next."""
        self.answered += len(answers)
        seats, tags, results, errors = zip(*answers, strict=True)
        self._went.update(seats)
        if len(self._went) > len(self._came) + 1:  # of seats that are closed
            self._went = Counter({seat: self._went[seat] for seat in self._came})
        if self._heavy:
            for tag in tags:
                self._heavy.pop(tag, None)
        out = self.outgoing
        if not any(errors) and all(map(is_output, results)):
            arrays = [arrays_of(result) for result in results]
            forms = {tuple((a.dtype, a.shape) for a in each) for each in arrays}
            if len(forms) == 1 and len(arrays[0]) == 1:
                (first,) = arrays[0]
                out.rows(tags, Form(first.dtype.str, first.shape), [each[0] for each in arrays])
                return
        for seat, tag, result, error in answers:
            session = id(seat)
            if error is not None:
                out.entry(session, failure(tag, error))
            elif is_output(result):
                out.row(tag, session, arrays_of(result))
            elif isinstance(result, bytes):
                out.entry(session, Result(tag, blob=True), result)
            elif isinstance(result, Restored):
                out.entry(session, Result(tag, codebooks=result.codebooks))
            elif seat is None:
                out.entry(session, Result(tag, statistics=self._engine.statistics()))
            else:
                out.entry(session, Result(tag))

    def deliver(self, answers: list[Answer]) -> None:
        """From any thread; see Outlet."""
        self._deliver(self, answers)

    def go(self) -> None:
        """Gives all places back."""
        for session in self._sessions.values():
            session.close()
        for known in (self._sessions, self._seats, self._refused):
            known.clear()

    def _rows(
        self, tags: list[int], numbers: list[int], arrays: list[Array], submission: Submission
    ) -> None:
        if sum(array[0].nbytes for array in arrays) >= HEAVY_BYTES:
            for index, tag in enumerate(tags):
                self._weigh(tag, sum(array[index].nbytes for array in arrays))
        chunks: Any = arrays[0] if len(arrays) == 1 else map(ScaledCodes, *arrays)
        self._count(len(tags))
        seats: list[Any] = list(map(self._seats.get, numbers))
        if None in seats:  # of sessions that were refused
            kept = []
            for seat, tag, number, chunk in zip(seats, tags, numbers, chunks, strict=True):
                if seat is None:
                    self._refuse(tag, number)
                else:
                    kept.append((seat, tag, chunk))
            if not kept:
                return
            seats, tags, chunks = zip(*kept, strict=True)  # type: ignore[assignment]
        self._charge(seats)
        submission.steps(seats, tags, chunks)

    def _call(self, call: Call, frames: Frames, submission: Submission) -> None:
        blob = bytes(frames.blob()) if call.what == "restore" else b""
        self._count(1)
        if call.what == "statistics":
            self._answer(None, call.tag)
            return
        if len(blob) >= HEAVY_BYTES:
            self._weigh(call.tag, len(blob))
        seat = self._seats.get(call.session)
        if seat is None:
            self._refuse(call.tag, call.session)
            return
        self._charge([seat])
        if call.what == "texts":
            submission.steps([seat], [call.tag], [call.texts])
            return
        runs: dict[str, Callable[[], Any]] = {
            "flush": seat.stream.flush,
            "snapshot": seat.stream.snapshot,
            "restore": partial(_restore, seat.stream, blob),
        }
        if (run := runs.get(call.what)) is None:
            raise WireError(f"it calls {call.what[:20]!r}, which is unknown")
        submission.call(seat, call.tag, run)

    def _open(self, wanted: Open, leaving: str) -> None:
        number = wanted.session
        if number in self._seats or number in self._refused:
            raise WireError(f"it opens session {number} twice")
        if len(self._refused) > self._limits.calls:
            raise WireError(f"it has {len(self._refused)} refused sessions that it never closed")
        self._count(1)
        try:
            if leaving:
                raise UsageError(leaving)
            model = self._find(wanted.name, wanted.decode)
            if not 1 <= wanted.hops <= model.spec.input.rate * 3600 / model.spec.hop + 1:
                raise InputError(f"got {wanted.hops} hops a step; wanted 1 to an hour's")
            session = self._engine.open(model, hops=wanted.hops, codebooks=wanted.codebooks)
        except StreamencError as error:
            self._refused[number] = error
            self._refuse(wanted.tag, number)
            return
        self._sessions[number] = session
        seat = self._seats[number] = session._seat
        self._charge([seat])
        self._answer(seat, wanted.tag)

    def _choose(self, wanted: Choose) -> None:
        seat = self._seats.get(wanted.session)
        if seat is not None:
            try:
                seat.stream.codebooks = wanted.codebooks
            except InputError as error:
                raise WireError(f"it chooses what its session cannot give: {error}") from error
        elif wanted.session not in self._refused:
            raise WireError(f"it calls session {wanted.session}, which it never opened")

    def _close(self, wanted: Close) -> None:
        seat = self._seats.pop(wanted.session, None)
        if seat is not None:
            self._came.pop(seat)
            self._sessions.pop(wanted.session).close()
        elif self._refused.pop(wanted.session, None) is None:
            raise WireError(f"it closes session {wanted.session}, which it never opened")

    def _answer(self, seat: Seat | None, tag: int, error: StreamencError | None = None) -> None:
        """Answers what the engine need not see, behind what it has answered."""
        self.deliver([(seat, tag, None, error)])

    def _refuse(self, tag: int, number: int) -> None:
        error = self._refused.get(number)
        if error is None:
            raise WireError(f"it calls session {number}, which it never opened")
        self._answer(None, tag, error)

    def _count(self, calls: int) -> None:
        self.calls += calls
        if self.calls - self.received > self._limits.calls:
            raise WireError(f"it has more than {self._limits.calls} calls in flight")

    def _charge(self, seats: Sequence[Seat]) -> None:
        """Notes that a call of each is in flight; without a line of Python for each."""
        came, went = self._came, self._went
        came.update(seats)
        if max(map(sub, map(came.__getitem__, seats), map(went.__getitem__, seats))) > (
            self._limits.deep
        ):
            raise WireError(f"it has more than {self._limits.deep} calls of a session in flight")

    def _weigh(self, tag: int, nbytes: int) -> None:
        if tag in self._heavy:
            raise WireError(f"it has two calls {tag} in flight")
        self._heavy[tag] = nbytes
        if sum(self._heavy.values()) > self._limits.heavy_bytes:
            raise WireError(f"it has more than {self._limits.heavy_bytes} bytes in flight")


def arrays_of(output: Output) -> list[Array]:
    """An output's arrays, as they are sent."""
    parts = output if isinstance(output, ScaledCodes) else (output,)
    return [sendable(part) for part in parts]


def _restore(stream: Stream, blob: bytes) -> Restored:
    stream.restore(blob)
    return Restored(stream.codebooks)
