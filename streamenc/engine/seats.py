"""Seats of an engine's sessions, and the requests that wait there for its worker."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from streamenc.models.signal import Signal, cat, first_books, is_signal, items, values
from streamenc.stream import Stream


class Seat:
    """One session's place, which the worker goes on knowing where the session itself is dropped.

    closed     Why no more steps are taken; "" while it is open.
    active_ns  When it was last called, or answered.
    unclaimed  Outputs of steps whose callers were cancelled; of the event loop.
    """

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.closed = ""
        self.active_ns = self.served_ns = time.perf_counter_ns()
        self.requests: deque[Request] = deque()
        self.unclaimed: list[Signal] = []
        spec = stream.model.spec
        self.hop_ns = round(1e9 * spec.hop / spec.input.rate)


class Request:
    """A call that waits for the worker; made on the event loop that awaits `done`.

    seat   None for a call of the engine itself.
    call   What runs; None for a step of the session, on `chunk`.
    """

    def __init__(self, seat: Seat | None, call: Callable[[], Any] | None, chunk: Any = None):
        self.seat, self.call, self.chunk = seat, call, chunk
        self.loop = asyncio.get_running_loop()
        self.done: asyncio.Future[Any] = self.loop.create_future()
        self.arrived_ns = time.perf_counter_ns()
        if seat is not None:
            seat.active_ns = self.arrived_ns
        self.begun = False
        self.codebooks: int | None = None
        self.outputs: list[Signal] = []

    def settle(self, result: Any, error: BaseException | None) -> None:
        """Answers the caller; on its event loop. Outputs that nobody waits for are kept."""
        seat = self.seat
        if error is not None:
            # A chunk that was refused left the stream as it was.
            if not self.done.cancelled():
                self.done.set_exception(error)
        elif seat is None or not is_signal(result):
            if not self.done.cancelled():
                self.done.set_result(result)
        elif self.done.cancelled():
            seat.unclaimed.append(result)
        else:
            earlier, seat.unclaimed = seat.unclaimed, []
            self.done.set_result(one_after_the_other([*earlier, result]))


def one_after_the_other(outputs: list[Signal]) -> Signal:
    """Several outputs of one session, of the fewest codebooks that any of them has."""
    some = [y for y in outputs if items(y)]
    if not some:
        return outputs[-1]
    if len(some) == 1:
        return some[0]
    fewest = min(values(y).shape[1] for y in some)
    return cat([first_books(y, fewest) for y in some])
