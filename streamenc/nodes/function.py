"""Plain functions as transforms and sinks.

A function takes a frame, or a frame and the StreamInfo that says what it holds: it does so where it
has a second parameter without a default, or one that is called `info`. It may be a coroutine
function. One that takes long (more than milliseconds) and is none runs in a thread: `blocking`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from streamenc.errors import InputError, UsageError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.graph.node import AsyncTransform, Sink
from streamenc.graph.worker import Worker

InfoOf = StreamInfo | Callable[[StreamInfo], StreamInfo]


class _Function:
    """What both have in common: how the function is called."""

    def __init__(self, function: Callable[..., Any], blocking: bool) -> None:
        self.name = getattr(function, "__qualname__", type(function).__name__)
        if isinstance(function, type) or not callable(function):
            what = f"the class {self.name}" if isinstance(function, type) else repr(function)
            raise UsageError(f"got {what}; wanted a function, or a node that is made already")
        if blocking and inspect.iscoroutinefunction(function):
            raise UsageError(f"{self.name} is a coroutine function; leave out blocking=True")
        self.worker = Worker(self.name) if blocking else None
        self._function, self._takes_info = function, _takes_info(function, self.name)

    async def call(self, frame: Frame, info: StreamInfo, clock: Any) -> Any:
        """What it returned, awaited; a generator has run to its end."""
        given = (frame, info) if self._takes_info else (frame,)
        if self.worker is not None:
            with clock.busy():
                made = await self.worker.call(lambda: _ended(self._function(*given)))
        else:
            made = self._function(*given)
        if inspect.isawaitable(made):
            made = await made
        if inspect.isasyncgen(made):
            return [each async for each in made]
        return _ended(made)

    def close(self) -> None:
        if self.worker is not None:
            self.worker.close()


class FunctionSink(Sink):
    """Calls `function` with each frame; what it returns is not looked at.

    blocking  Calls it in a thread of its own.

    Raises UsageError where it cannot be called so.
    """

    def __init__(self, function: Callable[..., Any], *, blocking: bool = False) -> None:
        self._call = _Function(function, blocking)

    @property
    def worker(self) -> Worker | None:
        return self._call.worker

    async def open(self, info: StreamInfo) -> None:
        self._info = info

    async def write(self, frame: Frame) -> None:
        await self._call.call(frame, self._info.track(frame.track), self.clock)

    async def aclose(self) -> None:
        self._call.close()


class FunctionTransform(AsyncTransform):
    """Passes on what `function` makes of each frame: nothing (None), a Frame, an array in place of
    the frame's data, or several Frames.

    Frames are numbered anew. Where the function left some out, the next one is flagged as not
    following on.

    info      What goes out, or a function of what comes in that says it; None where that does not
              change.
    blocking  Calls it in a thread of its own.

    Raises UsageError where it cannot be called so.
    """

    def __init__(
        self, function: Callable[..., Any], *, info: InfoOf | None = None, blocking: bool = False
    ) -> None:
        self._call = _Function(function, blocking)
        self._wanted = info
        self._tracks: dict[int, _Passed] = {}

    @property
    def worker(self) -> Worker | None:
        return self._call.worker

    async def open(self, info: StreamInfo) -> StreamInfo:
        self._came = info
        wanted = self._wanted
        if wanted is None:
            self._goes = info
        else:
            self._goes = wanted if isinstance(wanted, StreamInfo) else wanted(info)
        return self._goes

    async def push(self, frame: Frame) -> Iterable[Frame]:
        made = await self._call.call(frame, self._came.track(frame.track), self.clock)
        frames = [self._checked(each, frame) for each in self._several(made)]
        passed = self._tracks.setdefault(frame.track, _Passed())
        if not frames:
            passed.left_out(frame)
        return [self._tracks.setdefault(each.track, _Passed()).pass_on(each) for each in frames]

    async def aclose(self) -> None:
        self._call.close()

    def _several(self, made: Any) -> list[Any]:
        if made is None:
            return []
        if isinstance(made, Frame) or hasattr(made, "__array__"):
            return [made]
        if isinstance(made, list | tuple):
            if len(made) > 1 and not all(isinstance(each, Frame) for each in made):
                raise InputError(
                    f"{self._call.name} made {len(made)} things of one frame, and not all are "
                    "Frames: return Frames, each with its own pts and duration"
                )
            return list(made)
        raise InputError(
            f"{self._call.name} returned {type(made).__name__}; wanted None, a Frame, an array in "
            "place of its data, or several Frames"
        )

    def _checked(self, made: Any, frame: Frame) -> Frame:
        passed = made if isinstance(made, Frame) else frame.with_(data=np.asarray(made))
        track, data = self._goes.track(passed.track), passed.data
        if not track.fits(data):
            raise InputError(
                f"{self._call.name} returned {data.dtype.name} of shape {data.shape}; "
                f"{track} goes out of it: convert it, or say with info=StreamInfo(...) what it is"
            )
        return passed


class _Passed:
    """What went out of one track."""

    def __init__(self) -> None:
        self._seq = 0
        self._end: int | None = None  # of the last frame that went out
        self._left_out = self._flagged = False

    def left_out(self, frame: Frame) -> None:
        self._left_out = True
        self._flagged = self._flagged or frame.discontinuity

    def pass_on(self, frame: Frame) -> Frame:
        # One that gathered frames before it gave this has left nothing out.
        gap = self._left_out and self._end is not None and frame.pts != self._end
        flagged = frame.discontinuity or self._flagged or gap
        passed = frame.with_(seq=self._seq, discontinuity=flagged)
        self._seq += 1
        self._end = frame.pts + frame.duration
        self._left_out = self._flagged = False
        return passed


def _ended(made: Any) -> Any:
    """A generator or another iterator as a list."""
    single = made is None or isinstance(made, Frame | str | bytes | Mapping)
    if single or hasattr(made, "__array__") or not isinstance(made, Iterable):
        return made
    return list(made)


def _takes_info(function: Callable[..., Any], name: str) -> bool:
    """Whether it is called with a frame and its info. Raises UsageError where with neither."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # some builtins do not say
        return False
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    needed = [p for p in positional if p.default is p.empty]
    more = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    takes_any = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    if len(needed) > 2 or more or not (positional or takes_any):
        raise UsageError(
            f"{name}{inspect.signature(function)} cannot be called with a frame, or with a frame "
            "and its StreamInfo"
        )
    return len(needed) == 2 or [p.name for p in positional[1:2]] == ["info"]
