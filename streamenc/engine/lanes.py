"""Lanes: many streams through one model in one batched step; on a GPU by index, see `indexed`.

The lanes in use are dense: a stream that joins takes the next one, and when one leaves, the last
lane moves into the hole. While a stream is in, its `state` is a view of its lane.

What runs. On a CPU every lane costs, and each run costs about as much as `WORTH_A_RUN` lanes, for
reading the weights (Mimi, measured at 1 to 16 lanes). So a step runs on the shortest ranges of
lanes that hold the streams that step, and idle lanes lie within a range only where running them is
cheaper than another run: they are computed along and not committed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TypeAlias

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
        self._views: list[State] = []
        self._index: dict[Stream, int] = {}
        self._form: Form = None  # of each lane's state, while there are any

    def __len__(self) -> int:
        return len(self._streams)

    def __contains__(self, stream: Stream) -> bool:
        return stream in self._index

    def holds(self, stream: Stream) -> bool:
        """Whether a stream that is in still goes on from its lane's state."""
        return stream.state is self._views[self._index[stream]]

    def fits(self, stream: Stream) -> bool:
        """Whether a stream's items and state have the form of the others': frames of video may have
        any size."""
        return not self._streams or (
            stream.shape == self._streams[0].shape and states.form(stream.state) == self._form
        )

    def join(self, stream: Stream) -> None:
        """Copies a stream's state into the next lane; the stream has made its first step.

        Raises:
            UsageError: Where all lanes are taken, or hold streams of another size.
        """
        if len(self) == self.capacity:
            raise UsageError(f"all {self.capacity} lanes are taken; wait until a stream leaves")
        if not self.fits(stream):
            raise UsageError("lanes hold streams of one size; this one's frames have another size")
        assert stream not in self and stream.state is not None and stream.hops == stream.batch == 1
        with torch.inference_mode():
            if not self._streams:
                self._form = states.form(stream.state)
                self._pool = self._reserve(stream.state)
            self._put(len(self), stream)

    def leave(self, stream: Stream) -> None:
        """Frees a stream's lane; a stream whose state still lies there gets a copy of its own."""
        with torch.inference_mode():
            index = self._index.pop(stream)
            if stream.state is self._views[index]:
                stream.state = states.clone(stream.state)
            last, _ = self._streams.pop(), self._views.pop()
            if last is not stream:
                self._put(index, last)
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
        in_full = FullFloat32(self.model.like.device.type)
        with torch.inference_mode(), StepThreads(self.model.spec, 1), in_full:
            outputs: dict[Stream, Signal | Exception] = {}
            for lanes in self._ranges(sorted(self._index[stream] for stream in wanted)):
                outputs |= self._step(lanes, wanted)
            return outputs

    def _step(
        self, lanes: range, wanted: Mapping[Stream, int | None]
    ) -> dict[Stream, Signal | Exception]:
        streams = [s for s in self._streams[lanes.start : lanes.stop] if s in wanted]
        inputs = [stream.next_input() for stream in streams]
        return self._run_on(lanes, streams, inputs, wanted)

    def _run_on(
        self,
        lanes: range,
        streams: Sequence[Stream],
        inputs: Sequence[Tensor],
        wanted: Mapping[Stream, int | None],
    ) -> dict[Stream, Signal | Exception]:
        x = torch.cat(list(inputs))
        rows = torch.tensor([self._index[s] - lanes.start for s in streams], device=x.device)
        active = torch.zeros(len(lanes), dtype=torch.bool, device=x.device)
        active[rows] = True
        some_idle = len(streams) < len(lanes)
        if some_idle:
            x = x.new_zeros(len(lanes), *x.shape[1:]).index_copy_(0, rows, x)
        state = states.map_state(lambda leaf: leaf[lanes.start : lanes.stop], self._pool)
        try:
            y = self.run(x, state, active)
        except Exception as error:  # out of memory, say, or one stream's numbers
            if len(streams) == 1:
                return dict.fromkeys(streams, error)
            # Nothing was committed, so the step can be made again.
            alone: dict[Stream, Signal | Exception] = {}
            for stream, one in zip(streams, inputs, strict=True):
                index = self._index[stream]
                alone |= self._run_on(range(index, index + 1), [stream], [one], wanted)
            return alone
        self.ran += len(lanes)
        if some_idle:
            y = y[rows]
        return dict(zip(streams, self._left(y, streams, wanted), strict=True))

    def _left(
        self,
        y: Tensor,
        streams: Sequence[Stream],
        wanted: Mapping[Stream, int | None],
    ) -> Iterator[Signal]:
        """Each stream's own output, from its row of y, which may have more rows. The batch is
        quantised with the most codebooks that any wants: fewer are the first of them. Copies, so
        that nobody's output is another's memory."""
        counts = [wanted[stream] for stream in streams]
        most = None if None in counts else max(count for count in counts if count)
        signal = (self._after or self.model.after)(y, most)
        for place, (stream, count) in enumerate(zip(streams, counts, strict=True)):
            stream.emitted += items(y)
            if self.model.spec.output.kind != "codes":
                count = None
            yield clone(first_books(row(signal, place), count))

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

    def _put(self, index: int, stream: Stream) -> None:
        """Copies a stream's state into a lane, where it lies from now on."""
        states.put_lane(self._pool, index, stream.state)
        view = states.map_state(lambda leaf: leaf[index : index + 1], self._pool)
        self._streams[index : index + 1] = [stream]
        self._views[index : index + 1] = [view]
        self._index[stream] = index
        stream.state = view


def eagerly(model: Model, x: Tensor, state: State, active: Tensor) -> Tensor:
    """One step, operator by operator; see `Run`."""
    y, after = model.step(x, state)
    states.commit(state, after, active)
    return y
