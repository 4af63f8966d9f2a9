"""Group: the sessions of one model, the lanes that they are stepped in, and their steps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from streamenc import state as states
from streamenc.engine.buckets import bucket, buckets
from streamenc.engine.cudagraph import GraphedStep
from streamenc.engine.exchange import outputs
from streamenc.engine.exchange.outputs import Output
from streamenc.engine.exchange.staging import Staging, Timing
from streamenc.engine.indexed import IndexedLanes
from streamenc.engine.lanes import Lanes, most_codebooks
from streamenc.engine.seats import Seat
from streamenc.engine.statistics import Meter
from streamenc.errors import InputError
from streamenc.models.model import Model
from streamenc.models.signal import Scaled, Signal, items
from streamenc.models.snapshot import remember_form
from streamenc.state import State
from streamenc.stream import Stream
from streamenc.threads import StepThreads
from streamenc_kernels import FullFloat32

NEVER = 1 << 62  # nanoseconds

# First steps of one shape that are made together: at first so many, and then as many as take no
# longer than this part of a hop, as the last ones did, but no more than the most. So those that are
# under way wait no longer for newcomers than for anybody else, and memory for them is bounded.
FIRST_JOINS, MOST_JOINS, JOINS_SHARE = 8, 256, 0.25

# What a step gave a seat, or raised; None where it was not made after all.
Result: TypeAlias = "Output | Exception | None"


class Group:
    """The sessions of one model.

    started    Those with live streams, past their first step: a tick waits for their hops.
    ready      Those with a hop, in the order in which they had it.
    joining    Those with what their first step takes, in that order.
    due_ns     When the oldest of these hops has waited long enough.
    joined_ns  When the last first steps were done.
    device     The model's.
    warmed     Whether it stays where no session is left, so that the next one finds it warm.
    """

    def __init__(self, model: Model, capacity: int, meter: Meter) -> None:
        self.lanes: Lanes
        self._graphs: GraphedStep | None = None
        # Asked for once: a module finds its tensors by a walk through all of it.
        self.device = model.like.device
        self._on_gpu = model.like.is_cuda
        if self._on_gpu:
            self._graphs = graphs = GraphedStep(model, on_demand=False)
            self.lanes = IndexedLanes(model, capacity, graphs, graphs.after, graphs.forget)
            meter.runs_graphs(model, graphs.reasons)
        else:
            self.lanes = Lanes(model, capacity)
        self.staging = Staging(model)
        self.seats: set[Seat] = set()
        self.started: set[Seat] = set()
        self.ready: dict[Seat, None] = {}
        self.joining: dict[Seat, None] = {}
        self.due_ns = NEVER
        self.joined_ns = 0
        self._joins = FIRST_JOINS
        spec = model.spec
        self._joins_ns = JOINS_SHARE * 1e9 * float(spec.hop / spec.input.rate)
        self._of_codes = spec.output.kind == "codes"
        self.warmed = False

    @property
    def alone(self) -> bool:
        """Whether the one session there is steps by itself: no memory for lanes, no copies. On a
        GPU it has a lane, as graphs step lanes."""
        return len(self.seats) == 1 and not self._on_gpu

    def settle(self, seats: Iterable[Seat]) -> None:
        """Takes note of what calls have made of the seats' streams."""
        left: list[Stream] = []
        for seat in seats:
            stream = seat.stream
            if seat.closed:
                stream.reset()
                seat.row = None
                self.seats.discard(seat)
                self.ready.pop(seat, None)
                self.joining.pop(seat, None)
            if stream.started and stream.hops == 1:
                self.started.add(seat)
            else:
                self.started.discard(seat)
            if stream in self.lanes and not self.lanes.holds(stream):
                left.append(stream)
        if self.alone:
            left += [seat.stream for seat in self.seats if seat.stream in self.lanes]
        if left:
            self.lanes.leave_all(left)

    def newcomers(self) -> list[Seat]:
        """Some of `joining`, whose first steps can be made together: the first, and such of the
        next as have items of its shape."""
        chosen: list[Seat] = []
        for seat in self.joining:
            if _alike(seat, next(iter(self.joining))):
                chosen.append(seat)
                if len(chosen) == self._joins:
                    break
        return chosen

    def begin(self, seats: Sequence[Seat]) -> tuple[list[Result], Timing]:
        """The first steps of `newcomers`, in a batch; on a CPU, if that fails, each by itself."""
        for seat in seats:
            del self.joining[seat]
        self.lanes.model.warm_up(1)
        results: list[Result] = [None] * len(seats)
        with Timing(self.device) as timing:
            members, x = self._inputs(seats, results)
            if members:
                self._begin(seats, members, x, results)
        count = len(seats)
        affordable = int(self._joins_ns * count / max(1, timing.duration_ns))
        self._joins = max(1, min(2 * count, affordable, MOST_JOINS))
        return results, timing

    def hop(self, seats: Sequence[Seat]) -> tuple[list[Result], Timing]:
        """One hop of seats that are `started`, in their lanes, whose output each gets, or what its
        step raised."""
        results: list[Result] = [None] * len(seats)
        with Timing(self.device) as timing:
            if self.alone:
                (seat,) = seats
                results[0] = self._by_itself(seat)
                return results, timing
            together = list(seats)
            if strangers := self.lanes.missing([seat.stream for seat in seats]):
                for at in strangers:
                    if self.lanes.fits(seats[at].stream):
                        self.lanes.join(seats[at].stream)
                    else:  # frames of another size
                        results[at] = self._by_itself(seats[at])
                together = [seat for seat in seats if seat.stream in self.lanes]
            places = list(range(len(seats)))
            if len(together) < len(seats):
                places = [at for at, seat in enumerate(seats) if seat.stream in self.lanes]
            if together:
                got: list[Result] = [None] * len(together)
                members, x = self._inputs(together, got)
                if members:
                    self._step(together, members, x, got)
                for at, result in zip(places, got, strict=True):
                    results[at] = result
        return results, timing

    def _by_itself(self, seat: Seat) -> Result:
        """One step of a stream that is in no lane."""
        results: list[Result] = [None]
        if seat.row is not None:
            members, x = self._inputs([seat], results)
            if members:
                seat.stream.pushed -= x.shape[2]
                seat.stream.put(x)
        if seat.stream.ready:
            try:
                results[0] = self.by_itself(seat)
            except Exception as error:
                results[0] = error
        return results[0]

    def by_itself(self, seat: Seat) -> Output:
        """One step of a stream that is `ready` and in no lane."""
        with torch.inference_mode():
            return self.staging.to_host(seat.stream.step(seat.requests[0].codebooks))

    def _inputs(self, seats: Sequence[Seat], results: list[Result]) -> tuple[list[int], Tensor]:
        """What the seats' next steps take, in a batch, and which of them are in it, in its order.

        The others' chunks were refused, as their results say; where there is none, an exact look
        found the chunk right after all, and it waits as others do.
        """
        staged = [at for at, seat in enumerate(seats) if seat.row is not None]
        members: list[int] = []
        parts: list[Tensor] = []
        with torch.inference_mode():
            if staged:
                matrix = self.staging.matrix([seats[at].row for at in staged])  # type: ignore[misc]
                if unusual := set(self.staging.unusual(matrix)):
                    for row in unusual:
                        seat, seats[staged[row]].row = seats[staged[row]], None
                        try:
                            seat.stream.take(matrix[row : row + 1])
                        except InputError as error:
                            results[staged[row]] = error
                    good = [row for row in range(len(staged)) if row not in unusual]
                    staged, matrix = [staged[row] for row in good], matrix[good]
                if staged:
                    parts.append(self.staging.to_device(matrix))
                shape, count = matrix.shape[1:2], matrix.shape[2]
                for at in staged:
                    seat = seats[at]
                    seat.row = None
                    seat.stream.shape = shape
                    seat.stream.pushed += count
                members += staged
                if len(staged) + len(unusual) == len(seats):
                    return members, parts[0] if parts else torch.empty(0)
            inside = set(members)
            for at, seat in enumerate(seats):
                if at not in inside and results[at] is None and seat.stream.ready:
                    parts.append(seat.stream.next_input())
                    members.append(at)
        return members, torch.cat(parts) if parts else torch.empty(0)

    def _begin(
        self, seats: Sequence[Seat], members: list[int], x: Tensor, results: list[Result]
    ) -> None:
        model = self.lanes.model
        streams = [seats[member].stream for member in members]
        counts = self._codebooks(seats, members)
        try:
            full = FullFloat32(model.like.device.type)
            with torch.inference_mode(), StepThreads(model.spec, 1), full:
                y, state = model.step(x, None)
                signal = model.after(y, most_codebooks(counts))
        except Exception as error:  # out of memory, say, or one stream's numbers
            if len(members) == 1 or x.is_cuda:
                for member in members:
                    results[member] = error
                return
            for row, member in enumerate(members):
                self._begin(seats, [member], x[row : row + 1], results)
            return
        remember_form(model, streams[0].shape, state)
        for stream in streams:
            stream.emitted += items(y)
        self._give_states(streams, state)
        self._share(results, members, self.staging.to_host(signal), counts)

    def _give_states(self, streams: Sequence[Stream], state: State) -> None:
        """Brings a batch of states to where their streams go on from: to lanes, if they can."""
        if state is None:
            return  # each step is a first one
        if not self.alone and self.lanes.takes(streams[0].shape, state):
            self.lanes.join_all(streams, state)
        elif len(streams) == 1:
            streams[0].state = state
        else:
            with torch.inference_mode():
                for index, stream in enumerate(streams):
                    stream.state = states.lane(state, index)

    def _step(
        self, seats: Sequence[Seat], members: list[int], x: Tensor, results: list[Result]
    ) -> None:
        counts = self._codebooks(seats, members)
        streams = [seats[member].stream for member in members]
        for part in self.lanes.step_all(streams, x, most_codebooks(counts)):
            among = [members[at] for at in part.members]
            if isinstance(part.signal, Exception):
                for member in among:
                    results[member] = part.signal
                continue
            whole = self.staging.to_host(part.signal)
            if len(part.members) < len(outputs.values(whole)):
                whole = outputs.first(whole, len(part.members))
            self._share(results, among, whole, [counts[at] for at in part.members])

    def _codebooks(self, seats: Sequence[Seat], members: list[int]) -> list[int | None]:
        if not self._of_codes:
            return [None] * len(members)
        return [seats[member].requests[0].codebooks for member in members]

    @staticmethod
    def _share(
        results: list[Result], members: list[int], whole: Output, counts: Sequence[int | None]
    ) -> None:
        """Hands the rows of a batch's output out."""
        most = outputs.values(whole).shape[1]
        for member, row, count in zip(members, outputs.rows(whole), counts, strict=True):
            results[member] = row if count in (None, most) else outputs.first_books(row, count)

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


def _alike(seat: Seat, other: Seat) -> bool:
    """Whether two first steps take items of one shape."""
    return (seat.row is not None and other.row is not None) or (
        seat.row is None and other.row is None and seat.stream.shape == other.stream.shape
    )


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
