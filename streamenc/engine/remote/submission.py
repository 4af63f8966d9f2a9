"""Submission: calls of many sessions for the engine, whose answers go back as a batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from streamenc.engine.seats import Request, Seat
from streamenc.errors import StreamencError

if TYPE_CHECKING:
    from streamenc.engine.engine import Engine

# Seat (None: nothing that its session has to be charged for), tag, result, error.
Answer = tuple[Seat | None, int, Any, BaseException | None]
Deliver = Callable[[list[Answer]], None]


class Outlet:
    """Takes a turn's answers from the engine's worker: in the place of an event loop."""

    def __init__(self, deliver: Deliver) -> None:
        self._deliver = deliver
        self.answers: list[Answer] = []

    def call_soon_threadsafe(self, run: Callable[[Any], None], calls: Any) -> None:
        run(calls)
        answers, self.answers = self.answers, []
        self._deliver(answers)


class NotCancelled:
    """Of a call that nobody can cancel."""

    @staticmethod
    def cancelled() -> bool:
        return False


class Tagged(Request):
    """A call with a tag instead of a future."""

    def __init__(
        self, outlet: Outlet, seat: Seat, tag: int, call: Callable[[], Any] | None, chunk: Any
    ) -> None:
        self.seat, self.call, self.chunk = seat, call, chunk
        self.loop, self.done = outlet, NotCancelled()  # type: ignore[assignment]
        self.arrived_ns = seat.active_ns = time.perf_counter_ns()
        self.begun = False
        self.codebooks: int | None = None
        self.outputs = []
        self.outlet, self.tag = outlet, tag

    def settle(self, result: Any, error: BaseException | None) -> None:
        self.outlet.answers.append((self.seat, self.tag, result, error))


class Submission:
    """Calls that are handed to the engine together."""

    def __init__(self, engine: Engine, outlet: Outlet, deliver: Deliver) -> None:
        self._scheduler = engine._scheduler
        self._outlet, self._deliver = outlet, deliver
        self._requests: list[Tagged] = []

    def steps(self, seats: Sequence[Seat], tags: Sequence[int], chunks: Iterable[Any]) -> None:
        """A step of each seat."""
        self._requests += [
            Tagged(self._outlet, seat, tag, None, chunk)
            for seat, tag, chunk in zip(seats, tags, chunks, strict=True)
        ]

    def call(self, seat: Seat, tag: int, run: Callable[[], Any]) -> None:
        """What the worker is to run in the seat's turn."""
        self._requests.append(Tagged(self._outlet, seat, tag, run, None))

    def send(self) -> None:
        """Hands them over; where the engine has ended, answers so."""
        for request in self._requests:
            try:
                self._scheduler.submit(request)
            except StreamencError as error:
                self._deliver([(request.seat, request.tag, None, error)])
