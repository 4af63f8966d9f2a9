"""A live device on the graph's clock, so that its sound or images fit those of another device."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable
from typing import Any

import numpy as np
import soxr

from streamenc.errors import FitError, UsageError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.graph.node import Transform
from streamenc.graph.timeline import Timeline
from streamenc.nodes.deviceclock import JUMP_SECONDS, MAX_DRIFT, DeviceClock

log = logging.getLogger(__name__)

LEARN_SECONDS = 0.5
MAX_LATENCY_MS = 10_000


class Epoch:
    """Time 0 of all Aligns of a graph: when the first of them began.

    start_ns  On the graph's clock; None until then.
    """

    start_ns: int | None = None

    def seconds(self, now_ns: int) -> float:
        """Since the epoch; of the first call, 0."""
        if self.start_ns is None:
            self.start_ns = now_ns
        return (now_ns - self.start_ns) / 1e9


class Align(Transform):
    """Brings a live stream from its device's clock onto the graph's.

    Each device counts time by a crystal of its own, some 10 to 200 millionths off: two of them are
    up to a second apart after an hour. Frames come out with pts on one clock, counted from an epoch
    that all Aligns of a graph share. Video gets other times, by a smooth mapping (DeviceClock), at
    regular distances. Sound is resampled by those millionths (soxr, variable rate), so that a
    second of it is a second of the clock, and later nodes may count samples; it is held back by
    240 samples, 10 ms at 24 kHz. A segment of text ends when it came, whatever times it says.

    The first half second is held back to learn the offset, and then comes at once. After a
    discontinuity the stream goes on at its time, flagged. Where the device's clock jumps, it is
    learnt anew, flagged.

    latency_ms  How long the device takes from the event to the frame, beyond the frame's length.

    drift_ppm   By how many millionths the device is faster than the clock.
    offset_ms   How far the mapping is from what was measured last.
    jumps       How often the device's clock jumped.

    Raises UsageError where `latency_ms` is out of range.
    """

    def __init__(self, epoch: Epoch, *, latency_ms: float = 0.0) -> None:
        if not -MAX_LATENCY_MS <= latency_ms <= MAX_LATENCY_MS:
            raise UsageError(f"got latency_ms={latency_ms}; wanted up to {MAX_LATENCY_MS} ms")
        self.latency_ms = latency_ms
        self.jumps = 0
        self._epoch = epoch
        self._device = DeviceClock()
        self._learning: list[tuple[Frame, bool]] | None = []  # and whether each breaks
        self._origin: int | None = None  # pts of device time 0
        self._end: int | None = None  # where the next frame should begin, in the device's pts
        self._flag = False
        self._seq = 0

    @property
    def drift_ppm(self) -> float:
        return -1e6 * self._device.learnt

    @property
    def offset_ms(self) -> float:
        return 1e3 * self._device.error

    def open(self, info: StreamInfo) -> StreamInfo:
        if info.kind not in ("audio", "video", "text"):
            raise FitError(f"Align takes audio, video or text as it comes; got {info}")
        self._info = info
        self._tick = float(info.time_base)
        self._media: _Sound | _Images
        self._media = _Sound(info) if info.kind == "audio" else _Images(info)
        return info

    def push(self, frame: Frame) -> Iterable[Frame]:
        if self._info.kind == "text":
            return (self._ending(frame),)
        out: list[Frame] = []
        if self._origin is None:
            self._origin = frame.pts
        broken = frame.discontinuity or self._breaks(frame.pts)
        self._end = frame.pts + frame.duration
        self._device.arrive(self._complete(frame), self._epoch.seconds(frame.arrived_ns))
        if self._learning is None and (self._device.jumped or (broken and self._elsewhere(frame))):
            self._jump(frame, out)
            broken = False
        if self._learning is None:
            out += self._taken(frame, broken)
        else:
            self._learning.append((frame, broken))
            if self._complete(frame) - self._complete(self._learning[0][0]) >= LEARN_SECONDS:
                self._learnt(out)
        return out

    def _ending(self, frame: Frame) -> Frame:
        """A segment of text at the time of its arrival."""
        ends = self._epoch.seconds(frame.arrived_ns) - self.latency_ms / 1e3
        return frame.with_(pts=round(ends / self._tick) - frame.duration)

    def flush(self) -> Iterable[Frame]:
        out: list[Frame] = []
        if self._info.kind == "text":
            return out
        if self._learning:
            self._learnt(out)
        return [*out, *self._numbered(self._media.end())]

    def _complete(self, frame: Frame) -> float:
        """Device time at which a frame was there: of sound at its end, an image at once."""
        assert self._origin is not None
        ticks = frame.pts - self._origin
        return self._tick * (ticks + frame.duration if self._info.kind == "audio" else ticks)

    def _mapped(self, pts: int) -> float:
        """Seconds since the epoch at which the device's `pts` was."""
        assert self._origin is not None
        return self._tick * (pts - self._origin) + self._device.offset - self.latency_ms / 1e3

    def _breaks(self, pts: int) -> bool:
        if self._end is None:
            return False
        if self._info.kind == "video":  # whose images come when they come
            return abs(pts - self._end) * self._tick > JUMP_SECONDS
        # A block may begin a tick and a sample off, by rounding.
        return abs(pts - self._end) > 1 + 1 / (self._info.rate * self._info.time_base)

    def _elsewhere(self, frame: Frame) -> bool:
        """Whether what follows a break comes at quite another time than its pts say."""
        arrived = self._epoch.seconds(frame.arrived_ns)
        return abs(arrived - self._complete(frame) - self._device.offset) > JUMP_SECONDS

    def _jump(self, frame: Frame, out: list[Frame]) -> None:
        log.warning("the device's clock jumped; it is learnt anew at pts %d", frame.pts)
        self.jumps += 1
        out += self._numbered(self._media.end())
        self._device.forget()
        self._device.arrive(self._complete(frame), self._epoch.seconds(frame.arrived_ns))
        self._learning, self._flag = [], True

    def _learnt(self, out: list[Frame]) -> None:
        frames, self._learning = self._learning or [], None
        self._device.anchor()
        first, broken = frames[0]
        self._media.start(self._mapped(first.pts))
        self._flag = self._flag or broken
        for index, (frame, broken) in enumerate(frames):
            out += self._taken(frame, broken and index > 0)

    def _taken(self, frame: Frame, broken: bool) -> list[Frame]:
        out: list[Frame] = []
        if broken:
            out += self._numbered(self._media.end())
            self._media.start(self._mapped(frame.pts))
            self._flag = True
        return out + self._numbered(self._media.take(frame, self._device))

    def _numbered(self, frames: list[Frame]) -> list[Frame]:
        numbered = []
        for frame in frames:
            numbered.append(frame.with_(seq=self._seq, discontinuity=self._flag))
            self._seq += 1
            self._flag = False
        return numbered


class _Images:
    """Images at the mapped times."""

    def __init__(self, info: StreamInfo) -> None:
        self._tick = float(info.time_base)
        self._next: int | None = None

    def start(self, seconds: float) -> None:
        self._shift = seconds
        self._first: int | None = None

    def take(self, frame: Frame, device: DeviceClock) -> list[Frame]:
        if self._first is None:
            self._first, self._offset = frame.pts, device.offset
        seconds = self._shift + device.offset - self._offset
        pts = frame.pts - self._first + round(seconds / self._tick)
        if self._next is not None:
            pts = max(pts, self._next)
        self._next = pts + 1
        return [frame.with_(pts=pts)]

    def end(self) -> list[Frame]:
        return []


class _Sound:
    """Sound whose samples are counted on the graph's clock."""

    def __init__(self, info: StreamInfo) -> None:
        self._info = info
        self._rate = float(info.rate)
        self._timeline = Timeline(info.rate, info.time_base)
        width = info.shape[0] or 1
        self._stream = soxr.ResampleStream(
            1 + 2 * MAX_DRIFT, 1.0, width, dtype="float32", quality="HQ", vr=True
        )
        self._nothing = np.zeros((0, width) if width > 1 else 0, np.float32)
        self._started = False

    def start(self, seconds: float) -> None:
        self._timeline.anchor(round(seconds / float(self._info.time_base)))
        self._stream.clear()
        self._due = 0.0  # samples that what went in makes
        self._given = 0
        self._arrivals: deque[tuple[float, int]] = deque()
        self._started = True

    def take(self, frame: Frame, device: DeviceClock) -> list[Frame]:
        samples = frame.data.shape[1]
        if not samples:
            return []
        ratio = 1 / (1 + device.drift)
        self._stream.set_io_ratio(ratio, 1.0, 0)
        self._due += samples / ratio
        self._arrivals.append((self._due, frame.arrived_ns))
        planar = frame.data[0] if len(frame.data) == 1 else frame.data.T
        return self._made(self._stream.resample_chunk(np.ascontiguousarray(planar, np.float32)))

    def end(self) -> list[Frame]:
        """What soxr still holds back."""
        if not self._started:
            return []
        self._started = False
        return self._made(self._stream.resample_chunk(self._nothing, last=True))

    def _made(self, samples: np.ndarray[Any, Any]) -> list[Frame]:
        if not len(samples):
            return []
        pts = self._timeline.pts(self._given)
        self._given += len(samples)
        while len(self._arrivals) > 1 and self._arrivals[0][0] < self._given:
            self._arrivals.popleft()
        data = samples[None] if samples.ndim == 1 else np.ascontiguousarray(samples.T)
        duration = self._timeline.pts(self._given) - pts
        return [Frame(data, pts, duration, 0, arrived_ns=self._arrivals[0][1])]
