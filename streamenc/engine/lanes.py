"""Lanes: many streams through one model in one batched step; on a GPU by index, see `indexed`.

The lanes in use are dense: a stream that joins takes the next one, and when one leaves, the last
lanes move into the holes. While a stream is in, its lane is its state, and its `state` a view of it
that is made when somebody asks.

What runs. On a CPU every lane costs, and each run costs about as much as `WORTH_A_RUN` lanes, for
reading the weights (Mimi, measured at 1 to 16 lanes). So a step runs on the shortest ranges of
lanes that hold the streams that step, and idle lanes lie within a range only where running them is
cheaper than another run: they are computed along and not committed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from streamenc import state as states
from streamenc.errors import UsageError
from streamenc.models.model import Model
from streamenc.models.signal import Signal, clone, first_books, items, row
from streamenc.state import Form, State
from streamenc.stream import Stream
from streamenc.threads import StepThreads
from streamenc_kernels import FullFloat32

WORTH_A_RUN = 3

# (x, state, active) -> y: one step of the lanes in `state`, of which only the active ones move on.
# x (lanes, channels, hop, ...), active (lanes,) bool, y (lanes, channels, time, ...).
Run: TypeAlias = Callable[[Tensor, State, Tensor], Tensor]
# (y, codebooks) -> what the users get; see Model.after.
After: TypeAlias = Callable[[Tensor, "int | None"], Signal]


class Part(NamedTuple):
    """What some streams of a batch got.

    Attributes:
        members: Their places in the batch.
        signal: The output, in a batch whose first rows are theirs in this order; or what their step
            raised.
    """

    members: Sequence[int]
    signal: Signal | Exception


class Lanes:
    """Up to `capacity` streams through `model`, of batch 1 and one hop a step.

    Memory for all lanes is reserved with the first stream, so that none that joins later makes the
    others wait for a copy, and is given back with the last. The system gives it lane by lane, as
    streams come.

    Args:
        run: What computes a step; None for `model.step` and `commit`.
        after: What quantises; None for `model.after`.
        freed: Called once the lanes' memory is given back.

    Attributes:
        ran: Lanes that were computed so far, idle ones among them.
    """

    def __init__(
        self,
        model: Model,
        capacity: int,
        run: Run | None = None,
        after: After | None = None,
        freed: Callable[[], None] | None = None,
    ) -> None:
        self.model = model
        self.capacity = capacity
        self.run: Run = run or partial(eagerly, model)
        self._after = after
        self.freed = freed
        self.ran = 0
        self._pool: State = None
        self._streams: list[Stream] = []
        self._index: dict[Stream, int] = {}
        self._form: Form = None  # of each lane's state, while there are any

    def __len__(self) -> int:
        return len(self._streams)

    def __contains__(self, stream: Stream) -> bool:
        return stream in self._index

    def holds(self, stream: Stream) -> bool:
        """Whether a stream that is in still goes on from its lane's state."""
        return stream.holder is self

    def state_of(self, stream: Stream) -> State:
        """A view of a stream's lane."""
        index = self._index[stream]
        return states.map_state(lambda leaf: leaf[index : index + 1], self._pool)

    def missing(self, streams: Sequence[Stream]) -> list[int]:
        """Which of some streams, by their places, are not in."""
        return [at for at, stream in enumerate(streams) if stream not in self._index]

    def fits(self, stream: Stream) -> bool:
        """Whether a stream's items and state have the form of the others': frames of video may have
        any size."""
        return self.takes(stream.shape, stream.state)

    def takes(self, shape: tuple[int, ...], state: State) -> bool:
        """`fits` of a stream that has such items and this state."""
        if not self._streams:
            return True
        return shape == self._streams[0].shape and states.form(state) == self._form

    def join(self, stream: Stream) -> None:
        """Copies a stream's state into the next lane; the stream has made its first step.

        Raises:
            UsageError: Where all lanes are taken, or hold streams of another size.
        """
        self.join_all([stream], stream.state)

    def join_all(self, streams: Sequence[Stream], state: State) -> None:
        """Copies the states of some streams of one size, a batch in their order, into the next
        lanes: one copy for each of its tensors.

        Raises:
            UsageError: As for `join`.
        """
        start, stop = len(self), len(self) + len(streams)
        if stop > self.capacity:
            raise UsageError(f"all {self.capacity} lanes are taken; wait until a stream leaves")
        if not self.takes(streams[0].shape, state):
            raise UsageError("lanes hold streams of one size; this one's frames have another size")
        with torch.inference_mode():
            if not self._streams:
                self._form = states.form(state)
                self._pool = self._reserve(state)
            for lanes, values in zip(states.leaves(self._pool), states.leaves(state), strict=True):
                lanes[start:stop] = values
        for index, stream in enumerate(streams, start):
            assert stream not in self._index and stream.hops == stream.batch == 1
            self._index[stream] = index
            stream.lend(self)
        self._streams += streams

    def leave(self, stream: Stream) -> None:
        """Frees a stream's lane; a stream whose state still lies there gets a copy of its own."""
        self.leave_all([stream])

    def leave_all(self, streams: Sequence[Stream]) -> None:
        """Frees the lanes of some streams; one copy for each of a state's tensors fills holes."""
        with torch.inference_mode():
            for stream in streams:
                if stream.holder is self:
                    stream.state = states.clone(self.state_of(stream))
            gone = {self._index.pop(stream) for stream in streams}
            count = len(self) - len(gone)
            holes = sorted(index for index in gone if index < count)
            last = [index for index in range(count, len(self)) if index not in gone]
            if holes:
                for leaf in states.leaves(self._pool):
                    leaf[holes] = leaf[last]
            for hole, index in zip(holes, last, strict=True):
                stream = self._streams[hole] = self._streams[index]
                self._index[stream] = hole
            del self._streams[count:]
            if not self._streams:
                self._pool = None
                if self.freed is not None:
                    self.freed()

    def release(self) -> None:
        """Gives memory back that stays where the last stream leaves; there is none here."""

    def step(self, wanted: Mapping[Stream, int | None]) -> dict[Stream, Signal | Exception]:
        """One hop for each of some streams, all `ready`; the others idle, untouched to the bit.

        Args:
            wanted: Streams that are in, with the number of codebooks that each wants; None for all.

        Returns:
            Each stream's output, or what its own step raised: where streams cannot be stepped
            together, each is stepped by itself, so that one harms no other.
        """
        streams, counts = list(wanted), list(wanted.values())
        if self.model.spec.output.kind != "codes":
            counts = [None] * len(counts)
        outputs: dict[Stream, Signal | Exception] = {}
        with torch.inference_mode():
            x = torch.cat([stream.next_input() for stream in streams])
            for part in self.step_all(streams, x, most_codebooks(counts)):
                if isinstance(part.signal, Exception):
                    outputs |= dict.fromkeys((streams[at] for at in part.members), part.signal)
                    continue
                for place, at in enumerate(part.members):
                    # Copies, so that nobody's output is another's memory.
                    outputs[streams[at]] = clone(first_books(row(part.signal, place), counts[at]))
        return outputs

    def step_all(self, streams: Sequence[Stream], x: Tensor, codebooks: int | None) -> list[Part]:
        """`step` on inputs that are there, (streams, channels, hop, ...), with as many codebooks
        for all; fewer are the first of them. Where a step fails, as `step` says."""
        in_full = FullFloat32(self.model.like.device.type)
        with torch.inference_mode(), StepThreads(self.model.spec, 1), in_full:
            places = [self._index[stream] for stream in streams]
            order = sorted(range(len(places)), key=places.__getitem__)
            parts: list[Part] = []
            at = 0
            for lanes in self._ranges([places[member] for member in order]):
                stop = at
                while stop < len(order) and places[order[stop]] < lanes.stop:
                    stop += 1
                members, at = order[at:stop], stop
                parts += self._run_on(lanes, streams, places, members, x, codebooks)
            return parts

    def _run_on(
        self,
        lanes: range,
        streams: Sequence[Stream],
        places: Sequence[int],
        members: Sequence[int],
        x: Tensor,
        codebooks: int | None,
    ) -> list[Part]:
        """One run of `lanes`, in which the streams that are `members` step."""
        some_idle = len(members) < len(lanes)
        own = x
        if list(members) != list(range(len(streams))):
            own = x[torch.tensor(members)]
        if some_idle:
            rows = torch.tensor([places[member] - lanes.start for member in members])
            active = torch.zeros(len(lanes), dtype=torch.bool)
            active[rows] = True
            own = own.new_zeros(len(lanes), *x.shape[1:]).index_copy_(0, rows, own)
        else:
            active = torch.ones(len(lanes), dtype=torch.bool)
        state = states.map_state(lambda leaf: leaf[lanes.start : lanes.stop], self._pool)
        try:
            y = self.run(own, state, active)
        except Exception as error:  # out of memory, say, or one stream's numbers
            if len(members) == 1:
                return [Part(members, error)]
            # Nothing was committed, so the step can be made again.
            alone: list[Part] = []
            for member in members:
                lane = range(places[member], places[member] + 1)
                alone += self._run_on(lane, streams, places, [member], x, codebooks)
            return alone
        self.ran += len(lanes)
        if some_idle:
            y = y[rows]
        return [self._left(y, streams, members, codebooks)]

    def _left(
        self, y: Tensor, streams: Sequence[Stream], members: Sequence[int], codebooks: int | None
    ) -> Part:
        """What `members` got, from the first rows of y; the others are quantised along."""
        signal = (self._after or self.model.after)(y, codebooks)
        count = items(y)
        for member in members:
            streams[member].emitted += count
        return Part(members, signal)

    def _ranges(self, active: Sequence[int]) -> Iterator[range]:
        """The lanes that are computed at once, for the indices of those that step."""
        start = active[0]
        for before, index in zip(active, active[1:], strict=False):
            if index - before - 1 > WORTH_A_RUN:
                yield range(start, before + 1)
                start = index
        yield range(start, active[-1] + 1)

    def _reserve(self, one_lane: State) -> State:
        # Nothing is written, so that the system gives no memory yet.
        return states.map_state(
            lambda leaf: leaf.new_empty((self.capacity, *leaf.shape[1:])), one_lane
        )


def most_codebooks(counts: Sequence[int | None]) -> int | None:
    """The most that any of some streams wants; None for all."""
    found = set(counts)
    return None if None in found else max(count for count in found if count is not None)


def eagerly(model: Model, x: Tensor, state: State, active: Tensor) -> Tensor:
    """One step, operator by operator; see `Run`."""
    y, after = model.step(x, state)
    states.commit(state, after, active)
    return y
