"""ModelNode: what Encode and Decode share, one live stream through a session of the engine."""

from __future__ import annotations

import asyncio
import math
from abc import abstractmethod
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

from streamenc.engine.session import Engine, Session
from streamenc.frames import Frame, StreamInfo
from streamenc.models.base import Model, Signal
from streamenc.node import AsyncTransform
from streamenc.nodes.timeline import Timeline


class ModelNode(AsyncTransform):
    """Pushes frames of any length into a session and dates what comes out.

    A discontinuity ends the stream as the model treats an end, and starts a new one whose first
    frame is flagged.

    restarts  How often that happened.
    """

    _model: Model

    def __init__(self, engine: Engine, *, hops: int = 1, codebooks: int | None = None) -> None:
        self._engine = engine
        self._hops, self._codebooks = hops, codebooks
        self._session: Session | None = None
        self._timeline: Timeline
        self._started = False
        self._end = 0  # pts of the end of what went in
        self._out = 0  # items that came out since the stream's start
        self._seq = 0
        self._arrived_ns = 0
        self._flag = False
        self.restarts = 0

    async def open(self, info: StreamInfo) -> StreamInfo:
        out = self._agree(info)
        with self.clock.busy():
            await asyncio.to_thread(self._model.ready, self._hops)
        self._session = self._engine.open(self._model, hops=self._hops, codebooks=self._codebooks)
        spec = self._model.spec
        self._out_rate = spec.input.rate * spec.hop_out / spec.hop
        self._time_base = info.time_base
        self._timeline = Timeline(self._out_rate, info.time_base)
        return out

    async def push(self, frame: Frame) -> Iterable[Frame]:
        assert self._session is not None
        out: list[Frame] = []
        if frame.discontinuity:
            if self._started:
                out += await self._end_stream()
                self.restarts += 1
            self._flag = True
        if not self._started:
            self._started = True
            self._anchor, self._out = frame.pts, 0
            self._timeline.anchor(frame.pts)
        self._end = frame.pts + frame.duration
        self._arrived_ns = frame.arrived_ns
        with self.clock.busy():
            signal = await self._session.step(self._chunk(frame))
        return out + self._frames(signal, last=False)

    async def flush(self) -> Iterable[Frame]:
        return await self._end_stream() if self._started else ()

    async def aclose(self) -> None:
        if self._session is not None:
            self._session.close()

    async def _end_stream(self) -> list[Frame]:
        assert self._session is not None
        with self.clock.busy():
            signal = await self._session.flush()
        out = self._frames(signal, last=True)
        self._started = False
        return out

    @abstractmethod
    def _agree(self, info: StreamInfo) -> StreamInfo:
        """What goes out for what comes in. Raises FitError."""

    @abstractmethod
    def _chunk(self, frame: Frame) -> Any:
        """A frame as the session takes it."""

    @abstractmethod
    def _frames(self, signal: Signal, *, last: bool) -> list[Frame]:
        """The session's output as frames; `last` where the stream ends with it."""

    @property
    def _left(self) -> int:
        """Items that still lie within the input so far; what a model pads beyond does not."""
        seconds = (self._end - self._anchor) * self._time_base
        return math.floor(seconds * self._out_rate + Fraction(1, 2)) - self._out

    def _frame(self, data: Any, *, scale: float = 1.0, last: bool = False) -> Frame:
        """The next items, dated; the stream's last ones end where its input ended."""
        pts = self._timeline.pts(self._out)
        self._out += data.shape[1]
        end = self._timeline.pts(self._out)
        if last:
            # Segments overlap, so a short last one covers more time than its frames are apart.
            end = max(pts, self._end if self._model.spec.scaled else min(end, self._end))
        frame = Frame(data, pts, end - pts, self._seq, self._flag, self._arrived_ns, scale)
        self._seq += 1
        self._flag = False
        return frame
