"""ModelNode: what Encode and Decode share, one live stream through a session of the engine."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from streamenc.coding.times import CountedTimes, StreamTimes
from streamenc.engine.exchange.outputs import Output
from streamenc.engine.remote.remoteengine import RemoteEngine
from streamenc.engine.remote.remotemodel import RemoteModel
from streamenc.engine.remote.remotesession import RemoteSession
from streamenc.errors import FitError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.graph.node import AsyncTransform

if TYPE_CHECKING:  # on an engine in another process it goes without torch
    from streamenc.engine.engine import Engine
    from streamenc.engine.session import Session
    from streamenc.models.model import Model


class ModelNode(AsyncTransform):
    """Pushes frames of any length into a session and dates what comes out.

    A discontinuity ends the stream as the model treats an end, and starts a new one whose first
    frame is flagged.

    restarts  How often that happened.
    """

    _model: Model | RemoteModel
    _times: StreamTimes  # which `_agree` makes

    def __init__(
        self, engine: Engine | RemoteEngine, *, hops: int = 1, codebooks: int | None = None
    ) -> None:
        self._engine = engine
        self._hops, self._codebooks = hops, codebooks
        self._session: Session | RemoteSession | None = None
        self._started = False
        self._seq = 0
        self._arrived_ns = 0
        self._flag = False
        self.restarts = 0

    async def open(self, info: StreamInfo) -> StreamInfo:
        out = self._agree(info)
        # What may be refused comes before what takes long.
        if isinstance(self._model, RemoteModel):
            assert isinstance(self._engine, RemoteEngine)
            self._session = self._engine.open(
                self._model, hops=self._hops, codebooks=self._codebooks
            )
            await self._session.admitted()
        else:
            assert not isinstance(self._engine, RemoteEngine)
            await self._open_here(self._engine, self._model)
        return out

    async def _open_here(self, engine: Engine, model: Model) -> None:
        self._session = engine.open(model, hops=self._hops, codebooks=self._codebooks)
        with self.clock.busy():
            await asyncio.to_thread(model.warm_up, self._hops)
            if self._hops == 1 and model.like.is_cuda:  # graphs, where there are none yet
                await engine.warm(model, codebooks=self._codebooks, sessions=engine.sessions)

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
            self._times.start(frame.pts)
        self._took(frame)
        self._arrived_ns = frame.arrived_ns
        with self.clock.busy():
            output = await self._session.step(await self._chunk(frame))
            return out + await self._frames(output, last=False)

    async def flush(self) -> Iterable[Frame]:
        return await self._end_stream() if self._started else ()

    async def aclose(self) -> None:
        if self._session is not None:
            self._session.close()

    async def _end_stream(self) -> list[Frame]:
        assert self._session is not None
        with self.clock.busy():
            output = await self._session.flush()
            out = await self._frames(output, last=True)
        self._started = False
        return out

    @abstractmethod
    def _agree(self, info: StreamInfo) -> StreamInfo:
        """What goes out for what comes in, and when. Raises FitError."""

    def _took(self, frame: Frame) -> None:
        """Notes when what goes in is presented."""
        self._times.took(frame.data.shape[1], frame.pts, frame.duration)

    @abstractmethod
    async def _chunk(self, frame: Frame) -> Any:
        """A frame as the session takes it."""

    @abstractmethod
    async def _frames(self, output: Output, *, last: bool) -> list[Frame]:
        """The session's output as frames; `last` where the stream ends with it."""

    def _counted(self, info: StreamInfo) -> CountedTimes:
        spec = self._model.spec
        rate = spec.input.rate * spec.hop_out / spec.hop
        return CountedTimes(rate, info.time_base, covering=spec.scaled)

    def _grid(self, info: StreamInfo) -> tuple[int, ...]:
        """Rows and columns of what comes out for `info`; () where it has none, and of a model in
        another process, which does not tell them."""
        port = self._model.spec.input
        shape = (1, port.channels, 0, *(size or 0 for size in info.shape[2:]))
        return self._model.output_shape(shape)[3:]

    def _check_grid(self, info: StreamInfo, name: str) -> None:
        """Raises FitError where items do not have the axes of the model's, or images not a size
        that it takes."""
        port = self._model.spec.input
        if len(info.shape) != 2 + port.axes or None in info.shape[2:]:
            wanted = "(channels, time, height, width)" if port.axes else "(channels, time)"
            raise FitError(f"{name} takes {port.kind} of {wanted}; got {info}")
        if (image := port.image) is None:
            return
        height, width = (size or 0 for size in info.shape[2:])
        if image.size is not None and (height, width) != image.size:
            wanted = f"images of {image.size[1]} x {image.size[0]} pixels"
        elif not height or not width or height % image.unit or width % image.unit:
            wanted = f"a width and a height in multiples of {image.unit}"
        else:
            return
        raise FitError(f"{name} wants {wanted}; got {width} x {height}: put Fit before it")

    def _frame(self, data: Any, pts: int, duration: int, scale: float = 1.0) -> Frame:
        frame = Frame(data, pts, duration, self._seq, self._flag, self._arrived_ns, scale)
        self._seq += 1
        self._flag = False
        return frame
