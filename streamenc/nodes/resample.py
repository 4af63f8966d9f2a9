"""Sample rate and channels of audio, changed as a stream, equal to soxr on the whole signal."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from fractions import Fraction
from typing import Any, Literal, get_args

import numpy as np
import soxr

from streamenc import options
from streamenc.errors import FitError, InputError, UsageError
from streamenc.graph.frames import RATES, Frame, StreamInfo
from streamenc.graph.node import Transform
from streamenc.graph.timeline import Timeline
from streamenc.nodes.mixing import Mixing

Samples = np.ndarray[Any, Any]
Quality = Literal["QQ", "LQ", "MQ", "HQ", "VHQ"]
# It runs on the event loop: what a frame of few samples at a low rate becomes is bounded.
MAX_MADE_SAMPLES, MAX_UPSAMPLING = 2**25, 8


class Resample(Transform):
    """Resamples to `rate` samples per second and mixes to `channels`.

    In what frames the input comes does not matter: all output together is what `soxr.resample`
    makes of the whole signal, round(samples * ratio) samples. It is aligned with the input (a pulse
    stays where it was to within 0.02 input samples), so the output's pts is the input's at the same
    sound, in the source's time base. `arrived_ns` is that of the input frame in which the output's
    last sample sounds, so the resampler's own delay counts in the latency.

    A discontinuity (a flag, or a pts that is off by more than a tick plus a sample) completes the
    stream and starts a new one, flagged. Where rate and channels fit already, frames pass
    untouched.

    quality, measured from 48 to 24 kHz in frames of 20 ms:

             held back, mean/max   passband (-3 dB)   aliases at 12.6 kHz
        QQ          0 ms           12.0 kHz             0 dB: not filtered at all
        LQ      11 / 20 ms          9.7 kHz          -124 dB
        MQ      21 / 39 ms         11.4 kHz          -126 dB
        HQ      21 / 38 ms         11.4 kHz          -141 dB
        VHQ     21 / 37 ms         11.4 kHz          -158 dB

    HQ is the default: LQ is 10 ms earlier, little against an encoder's hop of 20 to 80 ms, but cuts
    the top 2 kHz off that its model was trained with; MQ gains nothing. From 8 to 24 kHz, HQ holds
    back 43 / 73 ms and LQ 22 / 40. All but QQ work in blocks and often emit nothing for 20 ms.

    Samples that no sound has are bounded first, see Mixing; `remarks` tells of them, and of
    channels that cancel each other out.

    channels       1 mixes down by the mean, 2 doubles a mono signal, and mixes 5.1 and 7.1 by
                   ITU-R BS.775; None leaves them as they are.
    channel        Which channel is taken before that, from 0, or which ones: 1, or "0,1"; None for
                   all.
    delay_samples  The most that was held back behind a push so far, in output samples.

    Raises UsageError where an option is out of range; FitError from `open` for what is no sound,
    and InputError from `push` for a frame that would become one of gigabytes.
    """

    def __init__(
        self,
        rate: int,
        channels: Literal[1, 2] | None = None,
        quality: Quality = "HQ",
        channel: str | int | None = None,
    ) -> None:
        if rate < 1:
            raise UsageError(f"got rate={rate}; it is samples per second, at least 1")
        if channels not in (1, 2, None):
            raise UsageError(f"got channels={channels}; it is 1, 2 or None (as they come)")
        self.rate = rate
        self.channels = channels
        self.channel = None if channel is None else options.indices("channel", channel)
        self.quality = options.choice("quality", quality, get_args(Quality))
        self.delay_samples = 0
        self._mixing: Mixing | None = None
        self._stream: soxr.ResampleStream | None = None
        self._arrivals: deque[tuple[int, int]] = deque()  # samples in up to there, arrived_ns
        self._taken = 0  # samples since the anchor: in, out
        self._given = 0
        self._seq = 0
        self._anchored = False
        self._flag = False

    def open(self, info: StreamInfo) -> StreamInfo:
        if info.kind != "audio" or not info.shape[0]:
            raise FitError(f"Resample takes audio; got {info}")
        low, high = RATES["audio"]
        if not low <= info.rate <= high:
            raise FitError(
                f"got sound of {float(info.rate):g} Hz; wanted {low} to {high} Hz: is it a "
                "measurement? Such are no sound, and no model was made for them"
            )
        self._mixing = Mixing(float(info.rate), info.shape[0], self.channels, self.channel)
        self.remarks = self._mixing.remarks
        if info.rate != self.rate:
            width = self._mixing.width
            self._stream = soxr.ResampleStream(
                float(info.rate), self.rate, width, dtype="float32", quality=self.quality
            )
            self._nothing = np.zeros((0, width) if width > 1 else 0, np.float32)
        self._ratio = self.rate / info.rate
        self._input = Timeline(info.rate, info.time_base)
        self._output = Timeline(Fraction(self.rate), info.time_base)
        return replace(
            info, rate=Fraction(self.rate), shape=(self._mixing.channels, *info.shape[1:])
        )

    def push(self, frame: Frame) -> Iterable[Frame]:
        if self._stream is None:
            return (self._mixed(frame),)
        made = float(frame.data.size * self._ratio)
        if made > MAX_MADE_SAMPLES and self._ratio > MAX_UPSAMPLING:
            raise InputError(
                f"got {frame!r}, which becomes {made:.3g} samples at {self.rate} Hz, and at most "
                f"{MAX_MADE_SAMPLES} are made at once; send shorter frames"
            )
        out: list[Frame] = []
        if self._anchored and (frame.discontinuity or self._input.gap(self._taken, frame.pts) != 0):
            self._drain(out)
            self._flag = True
        if not self._anchored:
            self._anchor(frame)
        assert self._mixing is not None
        samples = self._mixing.push(frame.data)
        self._taken += samples.shape[-1]
        self._arrivals.append((self._taken, frame.arrived_ns))
        planar = samples.reshape(-1) if samples.size == samples.shape[-1] else samples.T
        self._emit(self._stream.resample_chunk(np.ascontiguousarray(planar, np.float32)), out)
        held_back = round(self._taken * self._ratio) - self._given
        self.delay_samples = max(self.delay_samples, held_back)
        return out

    def flush(self) -> Iterable[Frame]:
        out: list[Frame] = []
        if self._mixing is not None:
            self._mixing.flush()
        if self._anchored:
            self._drain(out)
        return out

    def close(self) -> None:
        self._stream = None
        self._anchored = False

    def _mixed(self, frame: Frame) -> Frame:
        assert self._mixing is not None
        data = self._copied(self._mixing.push(frame.data))
        return frame if data is frame.data else frame.with_(data=data)

    def _copied(self, data: Samples) -> Samples:
        assert self._mixing is not None
        copies = self._mixing.copies
        return data if copies == 1 else np.repeat(data, copies, axis=0)

    def _anchor(self, frame: Frame) -> None:
        self._input.anchor(frame.pts)
        self._output.anchor(frame.pts)
        self._taken = self._given = 0
        self._arrivals.clear()
        self._flag = self._flag or frame.discontinuity
        self._anchored = True

    def _drain(self, out: list[Frame]) -> None:
        """What soxr still holds back; the next input starts a new stream."""
        assert self._stream is not None
        self._emit(self._stream.resample_chunk(self._nothing, last=True), out)
        self._stream.clear()
        self._anchored = False

    def _emit(self, samples: Samples, out: list[Frame]) -> None:
        """`samples` as soxr gives them: (samples,) or (samples, channels)."""
        if not len(samples):
            return
        pts = self._output.pts(self._given)
        self._given += len(samples)
        while len(self._arrivals) > 1 and self._arrivals[0][0] * self._ratio < self._given:
            self._arrivals.popleft()
        data = samples[None, :] if samples.ndim == 1 else np.ascontiguousarray(samples.T)
        frame = Frame(
            self._copied(data),
            pts=pts,
            duration=self._output.pts(self._given) - pts,
            seq=self._seq,
            discontinuity=self._flag,
            arrived_ns=self._arrivals[0][1],
        )
        self._seq += 1
        self._flag = False
        out.append(frame)
