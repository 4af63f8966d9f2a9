"""Submission: calls of many sessions for the engine, whose answers go back as a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from streamenc.engine.exchange.door import Batch, Outlet
from streamenc.engine.seats import Request, Seat, requests_of
from streamenc.errors import StreamencError

if TYPE_CHECKING:
    from streamenc.engine.engine import Engine


class Submission:
    """Calls that are handed to the engine together."""

    def __init__(self, engine: Engine, outlet: Outlet) -> None:
        self._scheduler = engine._scheduler
        self._outlet = outlet
        self._requests: list[Request] = []

    def steps(self, seats: Sequence[Seat], tags: Sequence[int], chunks: Iterable[Any]) -> None:
        """A step of each seat."""
        rows: Any = chunks if isinstance(chunks, np.ndarray) else list(chunks)
        if isinstance(rows, np.ndarray) and rows.ndim == 4 and rows.shape[1] == 1:
            rows = rows[:, 0]  # each of a batch of one: they are checked and copied at once
        self._requests += requests_of(Batch(seats, rows, tags, self._outlet))

    def call(self, seat: Seat, tag: int, run: Callable[[], Any]) -> None:
        """What the worker is to run in the seat's turn."""
        self._requests.append(Request(seat, self._outlet, tag, call=run))

    def send(self) -> None:
        """Hands them over; where the engine has ended, answers so."""
        try:
            self._scheduler.submit(self._requests)
        except StreamencError as error:
            self._outlet.deliver([(r.seat, r.tag, None, error) for r in self._requests])
