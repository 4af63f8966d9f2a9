"""Group: the sessions of one model, and the lanes that they are stepped in."""

from __future__ import annotations

from streamenc.engine.cudagraph import GraphedStep
from streamenc.engine.indexed import IndexedLanes
from streamenc.engine.lanes import Lanes
from streamenc.engine.seats import Seat
from streamenc.engine.statistics import Meter
from streamenc.models.model import Model

NEVER = 1 << 62  # nanoseconds


class Group:
    """The sessions of one model.

    started  Those with live streams, past their first step: a tick waits for their hops.
    ready    Those with a hop, in the order in which they had it.
    due_ns   When the oldest of these hops has waited long enough.
    """

    def __init__(self, model: Model, capacity: int, meter: Meter) -> None:
        self.lanes: Lanes
        if model.like.is_cuda:
            graphs = GraphedStep(model)
            self.lanes = IndexedLanes(model, capacity, graphs, graphs.after, graphs.forget)
            meter.runs_graphs(model, graphs.reasons)
        else:
            self.lanes = Lanes(model, capacity)
        self.seats: set[Seat] = set()
        self.started: set[Seat] = set()
        self.ready: dict[Seat, None] = {}
        self.due_ns = NEVER

    @property
    def alone(self) -> bool:
        """Whether the one session there is steps by itself: no memory for lanes, no copies. On a
        GPU it has a lane, as graphs step lanes."""
        return len(self.seats) == 1 and not self.lanes.model.like.is_cuda

    def settle(self, seat: Seat) -> None:
        """Takes note of what a call has made of a seat's stream."""
        stream = seat.stream
        if seat.closed:
            stream.reset()
            self.seats.discard(seat)
            self.ready.pop(seat, None)
        if stream.state is not None and stream.hops == 1:
            self.started.add(seat)
        else:
            self.started.discard(seat)
        if stream in self.lanes and not self.lanes.holds(stream):
            self.lanes.leave(stream)
        if self.alone:
            for last in self.seats:
                if last.stream in self.lanes:
                    self.lanes.leave(last.stream)
