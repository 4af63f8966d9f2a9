"""Calls of a client: those that wait for their credit, those in flight, and what comes of them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from streamenc.engine.exchange.loopoutlet import answer
from streamenc.engine.exchange.outputs import Output
from streamenc.engine.remote.protocol import HEAVY_BYTES, Array, Limits
from streamenc.errors import StreamencError, WireError

if TYPE_CHECKING:
    from streamenc.engine.remote.remotemodel import RemoteModel


@dataclass(frozen=True, slots=True)
class ClientStatistics:
    """What went through one RemoteEngine.

    Attributes:
        sessions: That are open.
        calls: That were sent.
        answered: Of these, with an output or an error.
        lost: Of these, what will never be answered, as the engine went.
        waiting: Calls that have no credit yet.
    """

    sessions: int
    calls: int
    answered: int
    lost: int
    waiting: int


class RemoteCall:
    """A call that waits for its credit or its answer.

    Attributes:
        what: "step", of `arrays`, or as `Call.what` says; or "open".
        extra: A snapshot, or texts.
    """

    __slots__ = ("arrays", "codebooks", "extra", "future", "nbytes", "seat", "what")

    def __init__(
        self,
        seat: RemoteSeat,
        what: str,
        future: asyncio.Future[Any],
        arrays: Sequence[Array] = (),
        extra: Any = None,
    ) -> None:
        self.seat, self.what, self.future = seat, what, future
        self.arrays, self.extra = arrays, extra
        self.codebooks = seat.codebooks
        self.nbytes = sum(array.nbytes for array in arrays)

    def settle(self, result: Any) -> None:
        """Answers the caller; an output that nobody waits for is kept for the next call."""
        answer(self.future, self.seat, result)

    def fail(self, error: StreamencError) -> None:
        """Answers the caller, where there is one, that it got nothing."""
        if not self.future.done():
            self.future.set_exception(error)


class RemoteSeat:
    """What the engine's client knows of a session, also where that was dropped.

    Attributes:
        number: By which the client calls it.
        told_codebooks: What the engine knows of its number of codebooks.
        closed: Why it takes no more calls; "" while it is open.
        in_flight: Calls that were sent and not answered.
        waiting: Calls that have no credit yet.
        unclaimed: Outputs of steps whose callers were cancelled.
        opened: The answer to its opening.
    """

    def __init__(self, number: int, model: RemoteModel | None, codebooks: int | None) -> None:
        self.number, self.codebooks, self.told_codebooks = number, codebooks, codebooks
        self._model = model
        self.closed = ""
        self.in_flight = 0
        self.waiting: deque[RemoteCall] = deque()
        self.unclaimed: list[Output] = []
        self.opened: asyncio.Future[None] | None = None

    @property
    def model(self) -> RemoteModel:
        assert self._model is not None  # but for the engine's own
        return self._model


class Calls:
    """All calls of a client, and which of them have credit.

    Attributes:
        sent: In all. `answered`: of these.
    """

    def __init__(self, limits: Limits) -> None:
        self.sent = self.answered = 0
        self._limits = limits
        self._pending: dict[int, RemoteCall] = {}
        self._held: dict[RemoteSeat, None] = {}  # with calls that wait, in the order of their turn
        self._heavy = 0

    @property
    def waiting(self) -> int:
        return sum(len(seat.waiting) for seat in self._held)

    @property
    def in_flight(self) -> int:
        return len(self._pending)

    def admit(self, call: RemoteCall) -> int | None:
        """The tag to send a call by; None where it waits, behind the earlier ones of its session,
        until `released` gives it."""
        seat = call.seat
        if seat.waiting or not self._has_credit(call):
            seat.waiting.append(call)
            self._held[seat] = None
            return None
        return self._sent(call)

    def settled(self, tag: int) -> RemoteCall:
        """The call that was answered. Raises WireError where there is none."""
        call = self._pending.pop(tag, None)
        if call is None:
            raise WireError(f"it answers call {tag}, which is none")
        call.seat.in_flight -= 1
        self.answered += 1
        if call.nbytes >= HEAVY_BYTES:
            self._heavy -= call.nbytes
        return call

    def released(self) -> Iterator[tuple[int, RemoteCall]]:
        """Calls that have a credit now, with their tags; of each session in turn."""
        for seat in list(self._held):
            if self.in_flight >= self._limits.calls:
                return
            del self._held[seat]
            while seat.waiting and self._has_credit(seat.waiting[0]):
                call = seat.waiting.popleft()
                yield self._sent(call), call
            if seat.waiting:
                self._held[seat] = None

    def forget(self, seat: RemoteSeat) -> list[RemoteCall]:
        """A session is closed: its calls that wait, which nobody will send."""
        waiting = list(seat.waiting)
        seat.waiting.clear()
        self._held.pop(seat, None)
        return waiting

    def end(self) -> list[RemoteCall]:
        """Nothing will be answered any more: all calls, in flight and waiting."""
        calls = [*self._pending.values()]
        for seat in list(self._held):
            calls += self.forget(seat)
        self._pending.clear()
        return calls

    def _has_credit(self, call: RemoteCall) -> bool:
        limits = self._limits
        return (
            call.seat.in_flight < limits.deep
            and len(self._pending) < limits.calls
            and (call.nbytes < HEAVY_BYTES or self._heavy + call.nbytes <= limits.heavy_bytes)
        )

    def _sent(self, call: RemoteCall) -> int:
        self.sent += 1
        self._pending[self.sent] = call
        call.seat.in_flight += 1
        if call.nbytes >= HEAVY_BYTES:
            self._heavy += call.nbytes
        return self.sent
