"""ModelNode: what Encode and Decode share, one live stream through a session of the engine."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

from streamenc.engine.session import Engine, Session
from streamenc.frames import Frame, StreamInfo
from streamenc.models.base import Model, Signal
from streamenc.node import AsyncTransform
from streamenc.nodes.timeline import Timeline


class ModelNode(AsyncTransform):
    """Pushes frames of any length into a session and dates what comes out.

    A discontinuity ends the stream as the model treats an end, and starts a new one whose first frame is
    flagged.

    restarts  How often that happened.
    """

    def __init__(
        self, model: Model, engine: Engine, *, hops: int = 1, codebooks: int | None = None
    ) -> None:
        self._model, self._engine = model, engine
        self._hops, self._codebooks = hops, codebooks
        self._session: Session | None = None
        self._timeline: Timeline
        self._seq = 0
        self._arrived_ns = 0
        self._flag = False
        self.restarts = 0

    async def open(self, info: StreamInfo) -> StreamInfo:
        out = self._agree(info)
        self._session = self._engine.open(self._model, hops=self._hops, codebooks=self._codebooks)
        self._timeline = Timeline(self._model.spec, info)
        return out

    async def push(self, frame: Frame) -> Iterable[Frame]:
        assert self._session is not None
        out: list[Frame] = []
        if frame.discontinuity:
            if self._timeline.started:
                out += await self._end_stream()
                self.restarts += 1
            self._flag = True
        self._timeline.take(frame.pts, frame.duration)
        self._arrived_ns = frame.arrived_ns
        return out + self._frames(await self._session.step(self._chunk(frame)), last=False)

    async def flush(self) -> Iterable[Frame]:
        return await self._end_stream() if self._timeline.started else ()

    async def aclose(self) -> None:
        if self._session is not None:
            self._session.close()

    async def _end_stream(self) -> list[Frame]:
        assert self._session is not None
        out = self._frames(await self._session.flush(), last=True)
        self._timeline.restart()
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

    def _frame(self, data: Any, pts: int, duration: int, scale: float = 1.0) -> Frame:
        frame = Frame(data, pts, duration, self._seq, self._flag, self._arrived_ns, scale)
        self._seq += 1
        self._flag = False
        return frame
