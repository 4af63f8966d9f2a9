"""Microphone and Speaker: `mic:NAME` is a source, `speaker:NAME` a sink."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import AsyncIterator
from fractions import Fraction
from typing import Any

import anyio
import numpy as np

from streamenc import options
from streamenc.errors import FitError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.graph.node import Sink, Source
from streamenc.io.devices.portaudio import Device, DeviceStream, Kind, list_devices
from streamenc.io.media.incoming.intake import Intake

__all__ = ["Device", "Microphone", "Speaker", "list_devices"]

MAX_OVERFLOW_SECONDS = 60.0  # a longer gap is a device's clock that was set, not lost sound


class Microphone(DeviceStream, Source):
    """Records from a sound device: `mic:` is the default one, `mic:NAME` one by name or index.

    Frames are (channels, samples), float32 in [-1, 1]; one tick is one sample, counted by the
    device. What gets lost is counted too: the pts jumps over it, and the next frame is flagged.
    Where the graph is too slow, that is exact; where the device itself overflows, it is as exact as
    the device's clock, and where that shows nothing, the flag stands alone.

    rate          Samples per second; None is the device's own.
    channels      How many to record.
    channel       Which channel is taken, from 0, or which ones, such as 0,1; all if not given.
    block_ms      Length of a frame.
    latency       "low" or "high" as the device sees it, or seconds: the system's buffer.
    max_queue_ms  Sound kept for a graph that is late; what comes beyond is lost.
    api           A part of the name of the system's sound interface, where a device has several:
                  WASAPI, DirectSound, MME, ALSA, ...; by default that of the default device.
    lost          Frames lost so far.

    Raises DeviceError from `open` where no one device fits or it refuses, and from `frames` when
    the device stops by itself or is silent for 5 s.
    """

    live = True
    kind: Kind = "input"

    def __init__(
        self,
        address: str = "",
        rate: int | str | None = None,
        channels: int | str = 1,
        block_ms: float | str = 20,
        latency: str | float = "low",
        max_queue_ms: float | str = 1000,
        channel: int | str | None = None,
        api: str = "",
    ) -> None:
        super().__init__(address, latency, api)
        self.rate = None if rate is None else options.integer("rate", rate, 1000, 768_000)
        self.channels = options.integer("channels", channels, 1, 64)
        self._intake = Intake(channel)
        if self._intake.channel is not None:  # whatever is in front of it has to come, too
            self.channels = max(self.channels, max(self._intake.channel) + 1)
        self.block_ms = options.number("block_ms", block_ms, 1, 1000)
        self.max_queue_ms = options.number("max_queue_ms", max_queue_ms, self.block_ms, 60_000)
        self._max_blocks = math.ceil(self.max_queue_ms / self.block_ms)
        self._blocks: deque[Frame] = deque()
        self._stopped = False
        self._pts = 0  # of the next block, and its number
        self._seq = 0
        self._flag = False
        self._late = 0  # of the blocks that were lost, those that the graph did not take in time
        self._heard_until: float | None = None  # end of the block before, on the device's clock

    async def open(self) -> StreamInfo:
        rate = await self._start(self.channels, self.rate, self.block_ms / 1000)
        channels = self._intake.channels(self.channels, self.address)
        return StreamInfo("audio", Fraction(1, rate), Fraction(rate), (channels, None), "float32")

    async def frames(self) -> AsyncIterator[Frame]:
        while True:
            self._news.clear()
            while self._blocks:
                yield self._blocks.popleft()
            if self._stopped:
                return
            # What was heard comes before the failure: blocks may have come while one was taken.
            if self._ended or not await self._wait():
                if self._blocks:
                    continue
                raise self._gone()

    def stop(self) -> None:
        self._stopped = True
        self._wake()

    async def aclose(self) -> None:
        self._stopped = True
        await self._close()

    def _callback(self, data: Any, count: int, times: Any, status: Any) -> None:
        if self._stopped:
            return
        arrived_ns = self.clock.now_ns()
        began, rate = times.inputBufferAdcTime, self._rate
        if status.input_overflow and self._heard_until is not None:
            missing = self._overflow(began - self._heard_until, count, rate)
            missing_frames = max(1, math.ceil(missing / count))
            self._pts += missing
            self._seq += missing_frames
            self._lose(missing_frames, late=False)
        self._heard_until = began + count / rate
        if len(self._blocks) < self._max_blocks:
            # A copy: PortAudio uses the buffer again.
            samples = self._intake.take(data.T.copy())
            self._blocks.append(Frame(samples, self._pts, count, self._seq, self._flag, arrived_ns))
            self._flag = False
            self._wake()
        else:
            self._lose(1, late=True)
        self._pts += count
        self._seq += 1

    def _lose(self, blocks: int, *, late: bool) -> None:
        self._flag = True
        self.lost += blocks
        self._late += blocks * late
        losses = (
            (
                self._late,
                f"here, as the graph was more than {self.max_queue_ms:g} ms late: max_queue_ms "
                "keeps more, and a faster graph loses none",
            ),
            (
                self.lost - self._late,
                "in the device, as the machine did not take them in time: latency=high keeps more",
            ),
        )
        self.remarks = [
            f"{count} blocks of {self.block_ms:g} ms were lost {where}"
            for count, where in losses
            if count
        ]

    @staticmethod
    def _overflow(gap_seconds: float, count: int, rate: float) -> int:
        """Samples lost; 0 where the device's clock tells nothing (it stands still, or jitters)."""
        plausible = count / rate / 2 <= gap_seconds <= MAX_OVERFLOW_SECONDS
        return round(gap_seconds * rate) if plausible else 0


class Speaker(DeviceStream, Sink):
    """Plays audio: `speaker:` is the default device, `speaker:NAME` one by name or index.

    Opens the device at the stream's own rate and channels. It starts once `buffer_ms` of sound are
    there and the device runs smoothly, and `write` waits while there is more: that paces a stream
    from a file. When the sound runs out, it plays silence until `buffer_ms` are there again.
    `aclose` plays what is left.

    buffer_ms   Sound kept against jitter; a part of the delay to the ear.
    latency     "low" or "high" as the device sees it, or seconds: the system's buffer.
    api         As of Microphone.
    underflows  How often the sound ran out, here or in the device.

    Raises FitError from `open` for what is no audio, DeviceError where no one device fits or it
    refuses the rate, and from `write` when the device stops.
    """

    kind: Kind = "output"

    def __init__(
        self,
        address: str = "",
        buffer_ms: float | str = 100,
        latency: str | float = "high",
        api: str = "",
    ) -> None:
        super().__init__(address, latency, api)
        self.buffer_ms = options.number("buffer_ms", buffer_ms, 1, 60_000)
        self.underflows = 0
        self._queue: deque[np.ndarray[Any, Any]] = deque()  # (samples, channels)
        self._offset = 0  # samples of the first that were played already
        self._written = 0  # samples: written here, played in the callback
        self._played = 0
        self._silence = 0  # samples of it that the device played without an underflow
        self._playing = False
        self._writing = False
        self._draining = False

    async def open(self, info: StreamInfo) -> None:
        if info.kind != "audio" or not info.shape[0] or info.rate.denominator != 1:
            raise FitError(f"a speaker plays audio at a whole rate; got {info}: decode it first")
        self._channels = info.shape[0]
        self._buffer = math.ceil(info.rate * Fraction(self.buffer_ms) / 1000)
        # With blocks of its own choice, ALSA on PulseAudio can underflow at each of them, for ever.
        await self._start(self._channels, int(info.rate), 0.01)

    async def write(self, frame: Frame) -> None:
        self._writing = True
        self._queue.append(np.ascontiguousarray(frame.data.T, np.float32))
        self._written += frame.data.shape[1]
        if not await self._played_down_to(self._buffer):
            raise self._gone()
        self._writing = False

    async def aclose(self) -> None:
        """Plays what is left, unless a `write` was cancelled or failed: then it stops at once."""
        self._draining = True
        with anyio.CancelScope(shield=True):
            play_out = self._stream is not None and not self._writing
            if play_out and self._written:
                # Stopping loses what the device itself still holds: that shall be silence.
                held = round(2 * self._delay_seconds * self._rate)
                self._queue.append(np.zeros((held, self._channels), np.float32))
                self._written += held
                play_out = await self._played_down_to(0)
            await self._close(play_out=play_out)

    async def _played_down_to(self, samples: int) -> bool:
        """Waits until no more than `samples` are queued; False when the device stopped."""
        while True:
            self._news.clear()
            if self._ended:
                return False
            if self._written - self._played <= samples:
                return True
            if not await self._wait():
                return False

    def _callback(self, data: Any, count: int, times: Any, status: Any) -> None:
        if self._playing:
            self.underflows += bool(status.output_underflow)
        else:
            # A device that just started may throw its first blocks away.
            self._silence = 0 if status.output_underflow else self._silence + count
            steady = self._silence >= 2 * self._delay_seconds * self._rate
            queued = self._written - self._played
            self._playing = steady and (queued >= self._buffer or self._draining)
        filled = self._fill(data) if self._playing else 0
        data[filled:] = 0
        if self._playing and filled < count and not self._draining:
            self.underflows += 1
            self._playing = False
        if filled:
            self._wake()

    def _fill(self, out: Any) -> int:
        """Moves queued samples to `out` (samples, channels); returns how many there were."""
        filled = 0
        while filled < len(out) and self._queue:
            head = self._queue[0]
            part = head[self._offset : self._offset + len(out) - filled]
            out[filled : filled + len(part)] = part
            filled += len(part)
            self._offset += len(part)
            if self._offset == len(head):
                self._queue.popleft()
                self._offset = 0
        self._played += filled
        return filled
