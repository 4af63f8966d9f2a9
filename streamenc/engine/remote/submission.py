"""Submission: calls of many sessions for the engine, whose answers go back as a batch."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from streamenc.engine.seats import Request, Seat
from streamenc.errors import StreamencError

if TYPE_CHECKING:
    from streamenc.engine.engine import Engine

Answer = tuple[int, int, Any, BaseException | None]  # tag, session, result, error
Deliver = Callable[[list[Answer]], None]


class Outlet:
    """Takes a turn's answers from the engine's worker: in the place of an event loop."""

    def __init__(self, deliver: Deliver) -> None:
        self._deliver = deliver
        self._answers: list[Answer] = []

    def take(self, answer: Answer) -> None:
        self._answers.append(answer)

    def call_soon_threadsafe(self, run: Callable[[Any], None], calls: Any) -> None:
        run(calls)
        answers, self._answers = self._answers, []
        self._deliver(answers)


class NotCancelled:
    """Of a call that nobody can cancel."""

    @staticmethod
    def cancelled() -> bool:
        return False


class Tagged(Request):
    """A call with a tag instead of a future."""

    def __init__(
        self,
        outlet: Outlet,
        seat: Seat,
        tag: int,
        session: int,
        call: Callable[[], Any] | None,
        chunk: Any = None,
    ) -> None:
        self.seat, self.call, self.chunk = seat, call, chunk
        self.loop, self.done = outlet, NotCancelled()  # type: ignore[assignment]
        self.arrived_ns = seat.active_ns = time.perf_counter_ns()
        self.begun = False
        self.codebooks: int | None = None
        self.outputs = []
        self.outlet, self.tag, self.session = outlet, tag, session

    def settle(self, result: Any, error: BaseException | None) -> None:
        self.outlet.take((self.tag, self.session, result, error))


class Submission:
    """Calls that are handed to the engine together."""

    def __init__(self, engine: Engine, outlet: Outlet, deliver: Deliver) -> None:
        self._scheduler = engine._scheduler
        self._outlet, self._deliver = outlet, deliver
        self._requests: list[Tagged] = []

    def step(self, seat: Seat, tag: int, session: int, chunk: Any) -> None:
        self._requests.append(Tagged(self._outlet, seat, tag, session, None, chunk))

    def call(self, seat: Seat, tag: int, session: int, run: Callable[[], Any]) -> None:
        self._requests.append(Tagged(self._outlet, seat, tag, session, run))

    def send(self) -> None:
        """Hands them over; where the engine has ended, answers so."""
        for request in self._requests:
            try:
                self._scheduler.submit(request)
            except StreamencError as error:
                self._deliver([(request.tag, request.session, None, error)])
