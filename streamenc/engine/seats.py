"""Seats of an engine's sessions, and the requests that wait there for its worker."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from streamenc.engine.exchange.door import Batch, Outlet
from streamenc.engine.exchange.outputs import Output
from streamenc.engine.exchange.staging import Staged, Staging
from streamenc.stream import Stream

if TYPE_CHECKING:
    from streamenc.engine.group import Group


class Seat:
    """One session's place, which the worker goes on knowing where the session itself is dropped.

    closed     Why no more steps are taken; "" while it is open.
    active_ns  When it was last called, or answered.
    served_ns  When its last step was done.
    group      That of its model; of the worker, None before its first request.
    row        The staged chunk that its next step takes; of the worker.
    unclaimed  Outputs of steps whose callers were cancelled; of the event loop.
    """

    __slots__ = (
        "__weakref__",
        "active_ns",
        "closed",
        "group",
        "hop_ns",
        "requests",
        "row",
        "served_ns",
        "staging",
        "stream",
        "unclaimed",
    )

    def __init__(self, stream: Stream, staging: Staging | None = None) -> None:
        self.stream = stream
        self.staging = staging or Staging(stream.model)
        self.closed = ""
        self.active_ns = self.served_ns = time.perf_counter_ns()
        self.requests: deque[Request] = deque()
        self.group: Group | None = None
        self.row: bytes | None = None
        self.unclaimed: list[Output] = []
        spec = stream.model.spec
        self.hop_ns = round(1e9 * spec.hop / spec.input.rate)


class Request:
    """A call that waits for the worker; made in the thread of its caller.

    seat    None for a call of the engine itself.
    call    What runs; None for a step of the session, on `chunk` or, where that could be, on what
            was staged of it.
    outlet  Where the answer goes, with `tag`.
    """

    __slots__ = (
        "arrived_ns",
        "begun",
        "call",
        "chunk",
        "codebooks",
        "outlet",
        "outputs",
        "seat",
        "staged",
        "tag",
    )

    def __init__(
        self,
        seat: Seat | None,
        outlet: Outlet,
        tag: Any,
        *,
        call: Callable[[], Any] | None = None,
        chunk: Any = None,
        staged: Staged | None = None,
        arrived_ns: int = 0,
    ) -> None:
        self.seat, self.outlet, self.tag, self.call, self.staged = seat, outlet, tag, call, staged
        # What may be filled anew once the call returns is copied.
        self.chunk = chunk.copy() if staged is None and isinstance(chunk, np.ndarray) else chunk
        self.arrived_ns = arrived_ns or time.perf_counter_ns()
        if seat is not None:
            seat.active_ns = self.arrived_ns
        self.begun = False
        self.codebooks: int | None = None
        self.outputs: list[Output] | None = None


def requests_of(batch: Batch) -> list[Request]:
    """The steps of a batch."""
    seats, chunks, tags, outlet = batch
    now_ns = time.perf_counter_ns()
    staged: list[Staged | None] | list[Staged] | None = None
    if isinstance(chunks, np.ndarray) and chunks.ndim == 3 and seats:
        # One check and one copy for all, where they are of one model.
        first = seats[0].staging
        if all(seat.staging is first for seat in seats):
            staged = first.staged_rows(chunks)
    if staged is None:
        staged = [seat.staging.staged(chunk) for seat, chunk in zip(seats, chunks, strict=True)]
    return [
        Request(seat, outlet, tag, chunk=chunk, staged=numbers, arrived_ns=now_ns)
        for seat, chunk, numbers, tag in zip(seats, chunks, staged, tags, strict=True)
    ]
