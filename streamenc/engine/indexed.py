"""Lanes by index: many streams through one model on a GPU, of which those step that are ready.

A tick takes the lanes of the streams that have a hop, in any order, as one batch: as many as they
are, rounded up to a bucket, since each size is a graph of its own. So idle streams cost nothing,
and none moves when another leaves. `pages` says how a step reaches its lanes.

This is the only way on a GPU, also for few streams. A prefix of the lanes under a mask would save a
gather for each type of small leaves, and read a position more directly: some microseconds of a step
that takes hundreds; and it computes all lanes whenever one is ready.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from streamenc import state as states
from streamenc.engine.buckets import bucket
from streamenc.engine.lanes import After, Lanes, Part
from streamenc.engine.pages import Pages, by_index
from streamenc.errors import UsageError
from streamenc.models.model import Model
from streamenc.state import State
from streamenc.stream import Stream
from streamenc.threads import StepThreads
from streamenc_kernels import FullFloat32

# (x, pages, places) -> y: one step of the lanes at `places`, committed; see `Pages.step`.
RunByIndex: TypeAlias = Callable[[Tensor, Pages, Tensor], Tensor]


class IndexedLanes(Lanes):
    """As `Lanes`, by index.

    The lanes' memory, which graphs know the place of, stays when the last stream leaves: one that
    was alone, and flushed, goes on where it was. `release` gives it back.

    Args:
        run: What computes a step; None for `Pages.step`.
        whole_batches: Whether each step is one of `capacity` lanes, however few of them step: what
            a stream gives then does not depend on how many others there are.
    """

    def __init__(
        self,
        model: Model,
        capacity: int,
        run: RunByIndex | None = None,
        after: After | None = None,
        freed: Callable[[], None] | None = None,
        *,
        whole_batches: bool = False,
    ) -> None:
        super().__init__(model, capacity, None, after, freed)
        self.run_by_index: RunByIndex = run or partial(by_index, model)
        self._whole_batches = whole_batches
        self._pages: Pages | None = None
        self._free: list[int] = []
        self._shape: tuple[int, ...] = ()  # of an item, while there are streams

    def __len__(self) -> int:
        return len(self._index)

    def state_of(self, stream: Stream) -> State:
        assert self._pages is not None
        return self._pages.lane(self._index[stream])

    def takes(self, shape: tuple[int, ...], state: State) -> bool:
        return not self._index or (shape == self._shape and states.form(state) == self._form)

    def join_all(self, streams: Sequence[Stream], state: State) -> None:
        if len(self) + len(streams) > self.capacity:
            raise UsageError(f"all {self.capacity} lanes are taken; wait until a stream leaves")
        if not self.takes(streams[0].shape, state):
            raise UsageError("lanes hold streams of one size; this one's frames have another size")
        with torch.inference_mode():
            self._reserved(streams[0].shape, state)
            assert self._pages is not None
            lanes = [self._free.pop() for _ in streams]
            self._pages.put(lanes, state)
        for index, stream in zip(lanes, streams, strict=True):
            assert stream not in self._index and stream.hops == stream.batch == 1
            self._index[stream] = index
            stream.lend(self)

    def leave_all(self, streams: Sequence[Stream]) -> None:
        with torch.inference_mode():
            for stream in streams:
                if self.holds(stream):
                    stream.state = states.clone(self.state_of(stream))
                self._free.append(self._index.pop(stream))

    def release(self) -> None:
        """Gives the lanes' memory back; all streams have left."""
        assert not self._index
        if self._pages is not None:
            self._pages = None
            if self.freed is not None:
                self.freed()

    def warm(self, stream: Stream, batch: int, warm: Callable[[Tensor, Pages], None]) -> None:
        """Has graphs made for steps of so many lanes at once.

        stream  One of the kind that will come, past its first step, with items for another one.
        warm    See GraphedStep.warm.
        """
        with torch.inference_mode():
            if not self.fits(stream):
                return  # others are under way, of another size
            self._reserved(stream.shape, stream.state)
            assert self._pages is not None
            x = stream.next_input()
            warm(x.new_zeros(batch, *x.shape[1:]), self._pages)

    def step_all(self, streams: Sequence[Stream], x: Tensor, codebooks: int | None) -> list[Part]:
        """As `Lanes.step_all`, but what a step raises is every stream's."""
        assert self._pages is not None
        in_full = FullFloat32(self.model.like.device.type)
        members = range(len(streams))
        with torch.inference_mode(), StepThreads(self.model.spec, 1), in_full:
            count = self.capacity if self._whole_batches else len(streams)
            batch = min(bucket(count), self.capacity)
            places = self._pages.places([self._index[stream] for stream in streams], batch)
            if batch > len(streams):
                x = torch.cat((x, x.new_zeros(batch - len(streams), *x.shape[1:])))
            try:
                y = self.run_by_index(x, self._pages, places)
            except Exception as error:  # out of memory, say
                return [Part(members, error)]
            self.ran += batch
            # Spare rows are quantised along: a shape for each bucket, as graphs need it.
            return [self._left(y, streams, members, codebooks)]

    def _reserved(self, shape: tuple[int, ...], state: State) -> None:
        """Reserves memory for such states, where there is none; the first one is a spare lane's."""
        form = states.form(state)
        if self._pages is not None and (form, shape) != (self._form, self._shape):
            self.release()  # frames of another size
        if self._pages is None:
            self._form, self._shape = form, shape
            self._pages = Pages(self.model, states.lane(state, 0), self.capacity)
            self._free = list(reversed(range(self.capacity)))
