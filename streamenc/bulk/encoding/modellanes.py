"""ModelLanes: many items at once through one model, each in a lane of its own.

A stream's first step is made together with those of others, its further ones in lanes, and its end
by itself: no item is padded, and none waits for one of its length. On a GPU each of these batches
has one size, filled up with lanes that nobody reads: so what an item gives does not depend on which
others were there. On a CPU a batch is as large as the streams that step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from streamenc import state as states
from streamenc.bulk.encoding.modelpass import Gathered
from streamenc.bulk.items import Tokens
from streamenc.bulk.tokenizejob import ModelAsk
from streamenc.codec import Codec
from streamenc.engine.cudagraph import GraphedStep
from streamenc.engine.exchange import outputs
from streamenc.engine.exchange.staging import Staging
from streamenc.engine.indexed import IndexedLanes
from streamenc.engine.lanes import Lanes
from streamenc.errors import StreamencError
from streamenc.models.model import Model
from streamenc.models.signal import Signal
from streamenc.spec import ScaledCodes
from streamenc.state import State
from streamenc.stream import MAX_SAMPLE, Stream
from streamenc.threads import StepThreads
from streamenc_kernels import FullFloat32

# A step in lanes covers about so much: of 256 lanes, what it costs in Python is then little. On a
# CPU lanes are few, or one at the end of a long item, and each of its small operations is a call.
STEP_SECONDS, CPU_STEP_SECONDS = 0.08, 0.5
# Models with longer hops take much of an item at once by themselves, and 256 times that is a lot.
LONGEST_HOP_SECONDS = 1.0
FIRST_STEPS = 16  # that are made together
# What is complete and no longer goes by itself in one step, its first and its last one.
WHOLE_SECONDS = 1.0
# Of a GPU's memory, what lanes take at most.
MEMORY_SHARE = 0.4

Samples = np.ndarray[Any, Any]


def in_lanes(model: Model) -> bool:
    """Whether items go through a model in lanes: sound, by short hops, that `before` leaves as it
    is. Whisper, whose hop is 30 s, and models of images take items alone."""
    spec = model.spec
    short = spec.hop <= LONGEST_HOP_SECONDS * spec.input.rate
    return spec.input.kind == "audio" and short and Staging(model).direct


class LanePass:
    """One item through one model, in a lane.

    Attributes:
        stream: Its stream, whose state lies in the lane.
        done: Whether all of it is through.
        error: Why it cannot be; nothing more is made of it then.
    """

    def __init__(self, lanes: ModelLanes, gathered: Gathered) -> None:
        self._lanes, self._gathered = lanes, gathered
        self.stream = lanes.stream()
        self.done = False
        self.error: StreamencError | None = None
        self._ended = False
        # What waits, by stretches without a gap; of the first, from where on in its first array.
        self._stretches: deque[list[Samples]] = deque([[]])
        self._at = self._have = 0
        self._pushed = 0  # of the last stretch

    def push(self, data: Samples, anew: bool = False) -> None:
        """Takes some of the item. Raises InputError for samples that no model takes."""
        if anew and self._pushed:
            self._stretches.append([])
            self._pushed = 0
        count = data.shape[1]
        if not count:
            return
        limit = self.stream.model.spec.limit
        usual = (
            data.max() <= MAX_SAMPLE and data.min() >= -MAX_SAMPLE
        )  # false for what is no number
        if not usual or 0 < limit < self._pushed + count:
            probe = self._lanes.stream()
            probe.pushed, probe.shape = self._pushed, data.shape[:1]
            probe.take(torch.from_numpy(data))  # which says what is wrong
        self._stretches[-1].append(data)
        self._pushed += count
        if len(self._stretches) == 1:
            self._have += count

    def end(self) -> None:
        """All of the item has been pushed."""
        self._ended = True

    @property
    def size(self) -> int:
        """What its next step takes."""
        return self._lanes.step_size if self.stream.started else self.stream.model.spec.lead

    @property
    def ready(self) -> bool:
        """Whether its next step can be made, together with those of others."""
        return self._have >= self.size and not self._goes_whole and self.error is None

    @property
    def complete(self) -> bool:
        """Whether all of this stretch is there, up to a gap or the end."""
        return self._ended or len(self._stretches) > 1

    @property
    def ends(self) -> bool:
        """Whether what is left of a stretch is to be encoded by itself."""
        return not self.done and self.error is None and self.complete and not self.ready

    @property
    def hungry(self) -> bool:
        """Whether more of the item should come."""
        return not self.complete and self._have < max(2 * self.size, self._lanes.second)

    def cut(self, into: Samples) -> None:
        """Hands out what its next step takes, (channels, items)."""
        stretch, at, count = self._stretches[0], 0, into.shape[1]
        while at < count:
            first = stretch[0]
            some = first[:, self._at : self._at + count - at]
            into[:, at : at + some.shape[1]] = some
            at += some.shape[1]
            self._at += some.shape[1]
            if self._at == first.shape[1]:
                del stretch[0]
                self._at = 0
        self._have -= count

    def take(self, data: np.ndarray, scales: np.ndarray | None) -> None:
        """Its own of a step, (rows, frames) and (frames,), which others do not keep."""
        try:
            self._gathered.put(data, scales)
        except StreamencError as error:
            self.error = error

    def end_stretch(self) -> None:
        """Encodes what is left of a stretch; its stream is in no lane."""
        try:
            self._gathered.add(self._flushed())
            self._stretches.popleft()
            if self._stretches:
                self._gathered.break_off()
        except StreamencError as error:
            self.error = error
            return
        self.done = not self._stretches
        if not self.done:
            self._have = sum(part.shape[1] for part in self._stretches[0])

    def finish(self, nothing: np.ndarray) -> Tokens:
        """All that was made of it."""
        return self._gathered.tokens(nothing)

    def _flushed(self) -> Signal:
        rest = np.empty((self.stream.model.spec.input.channels, self._have), np.float32)
        self.cut(rest)
        if rest.shape[1]:
            with torch.inference_mode():
                self.stream.put(self._lanes.on_device(rest[None]))
        return self.stream.flush()

    @property
    def _goes_whole(self) -> bool:
        return self.complete and not self.stream.started and self._have <= self._lanes.whole_size


class ModelLanes:
    """The lanes of one model, for any number of items one after the other.

    Args:
        count: How many there are at most; of a GPU, as many as MEMORY_SHARE of it holds.
        by_index: Whether they are a GPU's; None for what the model's device is.

    Attributes:
        step_size: Samples of a step in a lane.
        ran: Steps that were made, of all lanes at once.
    """

    def __init__(
        self, codec: Codec, ask: ModelAsk, layout: str, count: int, by_index: bool | None = None
    ) -> None:
        self._codec, self._ask, self._layout, self._count = codec, ask, layout, count
        self.model = model = codec.encoder
        spec = model.spec
        self._by_index = model.like.is_cuda if by_index is None else by_index
        rate = float(spec.input.rate)
        step = STEP_SECONDS if self._by_index else CPU_STEP_SECONDS
        self.step_size = max(1, round(step * rate / spec.hop)) * spec.hop
        self.second = round(rate)
        self.whole_size = max(spec.lead, round(WHOLE_SECONDS * rate))
        self._staging = Staging(model)
        self._lanes: Lanes | None = None
        self._stateless = False  # each step is a first one
        self.ran = 0

    def new_pass(self) -> LanePass:
        return LanePass(self, Gathered(self._codec, self._ask, self._layout))

    def stream(self) -> Stream:
        return Stream(self.model, codebooks=self._ask.codebooks)

    def on_device(self, matrix: Samples) -> torch.Tensor:
        """(batch, channels, samples) as a step takes it."""
        return self._staging.to_device(matrix)

    def run(self, passes: Sequence[LanePass]) -> bool:
        """One step of all that are ready, and the ends of all that have come to one; whether there
        was anything to do."""
        ending = [each for each in passes if each.ends]
        self._leave(ending)
        for each in ending:
            each.end_stretch()
        ready = [each for each in passes if each.ready]
        started = [each for each in ready if each.stream.started]
        if started:
            self._step(started)
        self._begin([each for each in ready if not each.stream.started])
        return bool(ending or ready)

    def drop(self, one: LanePass) -> None:
        """Frees the lane of an item that nobody wants any more."""
        self._leave([one])

    def _leave(self, passes: Sequence[LanePass]) -> None:
        lanes = self._lanes
        if lanes is not None:
            inside = [each.stream for each in passes if each.stream in lanes]
            if inside:
                lanes.leave_all(inside)

    def _begin(self, passes: Sequence[LanePass]) -> None:
        """First steps, as many at once as there are free lanes."""
        free = self._count if self._stateless else 1  # which tells how many lanes there can be
        if self._lanes is not None:
            free = self._lanes.capacity - len(self._lanes)
        for start in range(0, min(free, len(passes)), FIRST_STEPS):
            some = passes[start : min(free, start + FIRST_STEPS)]
            self.model.warm_up(1)
            x = self._inputs(some, FIRST_STEPS if self._by_index else len(some))
            model = self.model
            full = FullFloat32(model.like.device.type)
            with torch.inference_mode(), StepThreads(model.spec, 1), full:
                y, state = model.step(x, None)
                self._share(some, model.after(y, self._ask.codebooks))
            self.ran += 1
            self._stateless = state is None
            if state is not None:
                self._join(some, state)

    def _join(self, passes: Sequence[LanePass], state: State) -> None:
        if self._lanes is None:
            self._lanes = self._reserved(state)
        count = len(passes)
        own = states.map_state(lambda leaf: leaf[:count], state)
        self._lanes.join_all([each.stream for each in passes], own)

    def _reserved(self, state: State) -> Lanes:
        model, count = self.model, self._count
        if not self._by_index:
            return Lanes(model, count)
        if model.like.is_cuda:
            lane_bytes = sum(leaf[:1].nbytes for leaf in states.leaves(state))
            memory = torch.cuda.get_device_properties(model.like.device).total_memory
            count = max(1, min(count, int(MEMORY_SHARE * memory / max(1, lane_bytes))))
        graphs = GraphedStep(model)
        return IndexedLanes(model, count, graphs, graphs.after, graphs.forget, whole_batches=True)

    def _step(self, passes: Sequence[LanePass]) -> None:
        lanes = self._lanes
        assert lanes is not None
        x = self._inputs(passes, len(passes))
        for part in lanes.step_all([each.stream for each in passes], x, self._ask.codebooks):
            if isinstance(part.signal, Exception):
                raise part.signal
            self._share([passes[member] for member in part.members], part.signal)
        self.ran += 1

    def _inputs(self, passes: Sequence[LanePass], batch: int) -> torch.Tensor:
        size = passes[0].size
        matrix = np.zeros((batch, self.model.spec.input.channels, size), self._staging.dtype)
        for each, row in zip(passes, matrix, strict=False):
            each.cut(row)
            each.stream.pushed += size
            each.stream.shape = matrix.shape[1:2]
        with torch.inference_mode():
            return self.on_device(matrix)

    def _share(self, passes: Sequence[LanePass], signal: Signal) -> None:
        whole = outputs.first(self._staging.to_host(signal), len(passes))
        if not outputs.items(whole):
            return
        data = outputs.values(whole)
        scales = whole.scale if isinstance(whole, ScaledCodes) else None
        for at, each in enumerate(passes):
            # Copies, which keep no others' alive.
            each.take(data[at].copy(), None if scales is None else scales[at, 0].copy())
