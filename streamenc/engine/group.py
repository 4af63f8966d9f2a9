"""Group: the sessions of one model, and the lanes that they are stepped in."""

from __future__ import annotations

from functools import partial

import torch

from streamenc.engine.buckets import bucket, buckets
from streamenc.engine.cudagraph import GraphedStep
from streamenc.engine.indexed import IndexedLanes
from streamenc.engine.lanes import Lanes
from streamenc.engine.seats import Seat
from streamenc.engine.statistics import Meter
from streamenc.models.model import Model
from streamenc.models.signal import Scaled, Signal
from streamenc.stream import Stream
from streamenc_kernels import FullFloat32

NEVER = 1 << 62  # nanoseconds


class Group:
    """The sessions of one model.

    started  Those with live streams, past their first step: a tick waits for their hops.
    ready    Those with a hop, in the order in which they had it.
    due_ns   When the oldest of these hops has waited long enough.
    warmed   Whether it stays where no session is left, so that the next one finds it warm.
    """

    def __init__(self, model: Model, capacity: int, meter: Meter) -> None:
        self.lanes: Lanes
        self._graphs: GraphedStep | None = None
        if model.like.is_cuda:
            self._graphs = graphs = GraphedStep(model, on_demand=False)
            self.lanes = IndexedLanes(model, capacity, graphs, graphs.after, graphs.forget)
            meter.runs_graphs(model, graphs.reasons)
        else:
            self.lanes = Lanes(model, capacity)
        self.seats: set[Seat] = set()
        self.started: set[Seat] = set()
        self.ready: dict[Seat, None] = {}
        self.due_ns = NEVER
        self.warmed = False

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

    def warm(self, codebooks: int | None, sessions: int) -> list[int]:
        """Runs a stream from its first step to its end, beside all others: what takes time at a
        first step is done then.

        sessions  How many will be open at once, at most.
        Returns the numbers of lanes to call `warm_lanes` for, the largest first: the smaller ones
        find room in its memory.
        """
        self.warmed = True
        model = self.lanes.model
        model.warm_up()
        stream = _begun(model, codebooks)
        if stream is not None:
            with torch.inference_mode():
                stream.step(codebooks)
            has_state = stream.state is not None
            stream.flush()
        if stream is None or not has_state or self._graphs is None:
            return []  # nothing tells what goes in, or each step is alone
        capacity = self.lanes.capacity
        # What cannot be captured gains nothing from steps of other sizes.
        most = 1 if model.uncapturable else min(sessions, capacity)
        largest = min(bucket(most), capacity)
        return [size for size in reversed(buckets(capacity)) if size <= largest]

    def warm_lanes(self, lanes: int, codebooks: int | None) -> None:
        """Makes the graphs for steps of so many lanes, on a GPU."""
        stream = _begun(self.lanes.model, codebooks)
        assert stream is not None and self._graphs is not None
        assert isinstance(self.lanes, IndexedLanes)
        with FullFloat32("cuda"):
            self.lanes.warm(stream, lanes, partial(self._graphs.warm, codebooks=codebooks))

    def close(self) -> None:
        """Gives the lanes' memory back, where there is no session any more."""
        self.lanes.release()


def _begun(model: Model, codebooks: int | None) -> Stream | None:
    """A stream of silence, or of the first entries, past its first step and with another hop; None
    where the spec alone does not tell what goes in."""
    spec = model.spec
    image = spec.input.image
    size: tuple[int, ...] = ()
    if spec.input.kind == "text" or (spec.input.axes and (image is None or image.size is None)):
        return None
    if spec.input.axes:
        assert image is not None and image.size is not None
        size = image.size
    shape = (1, spec.input.channels, spec.lead + spec.hop, *size)
    codes = spec.input.kind == "codes"
    silence = torch.zeros(shape, dtype=torch.int64 if codes else model.like.dtype)
    signal: Signal = silence
    if codes and spec.scaled:
        signal = Scaled(silence, torch.ones(1, 1, shape[2], dtype=model.like.dtype))
    stream = Stream(model, codebooks=codebooks)
    with torch.inference_mode():
        stream.take(signal)
        stream.step(codebooks)
    return stream
