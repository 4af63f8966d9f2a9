"""Frame and StreamInfo: what travels along an edge of the graph."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Literal, Self

import numpy as np

from streamenc.errors import FitError

Kind = Literal["audio", "video", "text", "codes", "features", "mux"]


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """What one edge carries. Both ends agree on it once, when the graph is built.

    Attributes:
        kind: "audio" (float32 in [-1, 1]), "video" (RGB pixels, uint8), "text" (numpy's "str",
            an item for each segment: a sentence, a caption), "codes" (unsigned integers),
            "features" (floats), or "mux" (several interleaved streams, see `tracks`).
        time_base: Seconds per tick of `pts` and `duration`. It is the *source's* time base to the
            very sink, so streams that come from one source align without drift.
        rate: Items per second along time: samples of audio, images of video, frames of codes or
            features. Of live or irregular video it is nominal: what counts are the pts. 0 of text
            and what is made of it, which comes in segments, each when it comes.
        shape: Shape of a frame's data; the second axis is time. None where a frame may have any
            length: (channels, None) for audio, (codebooks, None) for codes, (bins, None) for
            features, (1, None) for text, (3, None, height, width) for video, (channels, None, rows,
            columns) for codes and features on a grid. The first axis of codes is the most that may
            come; a frame may carry fewer codebooks.
        dtype: numpy's name of the data's type: "float32", "uint16", "str", ...; or "bfloat16",
            which numpy has not: float32 arrays of numbers that bfloat16 holds, two bytes each where
            they are recorded or sent.
        model: Name of the model that made it, as `streamenc.load` takes it; "" for raw media.
        codebook_size: Number of entries per codebook; 0 where the data are not codes.
        tracks: For "mux": the streams inside, `Frame.track` counts them from 0.
    """

    kind: Kind
    time_base: Fraction
    rate: Fraction
    shape: tuple[int | None, ...]
    dtype: str
    model: str = ""
    codebook_size: int = 0
    tracks: tuple[StreamInfo, ...] = ()

    @classmethod
    def mux(cls, tracks: Sequence[StreamInfo]) -> Self:
        """Streams interleaved in one. Its tick is the longest of which each track's is a whole
        multiple.

        Raises:
            FitError: Where a track is itself a mux.
        """
        for info in tracks:
            if info.kind == "mux":
                raise FitError(f"got {info}; give all inputs to one merge instead of nesting them")
        denominator = math.lcm(*(info.time_base.denominator for info in tracks))
        numerator = math.gcd(*(int(info.time_base * denominator) for info in tracks))
        time_base = Fraction(numerator, denominator)
        return cls("mux", time_base, Fraction(0), (), "", tracks=tuple(tracks))

    def track(self, index: int) -> StreamInfo:
        """The stream that a frame with `track == index` belongs to; this one, except for a mux."""
        return self.tracks[index] if self.kind == "mux" else self

    @property
    def segmented(self) -> bool:
        """Whether it comes in segments, text or what is made of it; of a mux, any track."""
        if self.kind == "mux":
            return any(track.segmented for track in self.tracks)
        return self.kind == "text" or not self.rate

    def fits(self, data: np.ndarray[Any, Any]) -> bool:
        """Whether a frame of this stream may hold `data`."""
        text = self.array_dtype == "str" and data.dtype.kind == "U"  # of any length
        known = text or data.dtype.name == self.array_dtype
        if not known or data.ndim != len(self.shape):
            return False
        for axis, (size, wanted) in enumerate(zip(data.shape, self.shape, strict=True)):
            fewer_codebooks = self.kind == "codes" and axis == 0
            if wanted is not None and size != wanted and not (fewer_codebooks and size < wanted):
                return False
        return True

    def length(self, frame: Frame) -> Fraction:
        """How long a frame of it lasts, in seconds."""
        return frame.duration * self.track(frame.track).time_base

    @property
    def array_dtype(self) -> str:
        """numpy's name of the type that the arrays have."""
        return "float32" if self.dtype == "bfloat16" else self.dtype

    def __str__(self) -> str:
        if self.kind == "mux":
            return "mux of [" + "; ".join(map(str, self.tracks)) + "]"
        shape = "x".join("?" if n is None else str(n) for n in self.shape)
        model = f" of {self.model}" if self.model else ""
        rate = f"at {float(self.rate):g}/s" if self.rate else "in segments"
        return f"{self.kind}{model} {shape} {self.dtype} {rate}"


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One piece of a stream. The edge's StreamInfo says what `data` is.

    Attributes:
        data: numpy array, its second axis is time; of video it may be a view with any strides.
            Nobody writes into it: a tee hands the same array on.
        pts: Presentation time of the first item, in ticks of the edge's `time_base`; in a mux, of
            the track's.
        duration: In the same ticks.
        seq: Counts the frames of one stream from 0; a jump means that frames were lost.
        discontinuity: This frame does not follow on from the one before it: something was lost or
            skipped in between, or an encoder restarted.
        arrived_ns: Time on the graph's clock when the newest input that went into this frame
            entered the graph; the end-to-end latency is counted from here.
        scale: Factor for the decoded waveform (EnCodec 48 kHz keeps each segment's volume apart).
        track: Index of the stream within a "mux" edge; 0 everywhere else.
        segment: Of text and what is made of it, the source's number of the segment; -1 where it has
            none.
        revised: It replaces what an earlier frame of the same segment said. That is no
            discontinuity.
    """

    data: np.ndarray[Any, Any]
    pts: int
    duration: int
    seq: int
    discontinuity: bool = False
    arrived_ns: int = 0
    scale: float = 1.0
    track: int = 0
    segment: int = -1
    revised: bool = False

    def with_(self, **changes: Any) -> Frame:
        """A copy with some fields changed."""
        return replace(self, **changes)

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.data.shape))
        flag = f", segment={self.segment}" if self.segment >= 0 else ""
        flag += ", revised" * self.revised + ", discontinuity" * self.discontinuity
        return (
            f"Frame({self.data.dtype.name} {shape}, pts={self.pts}, duration={self.duration}, "
            f"seq={self.seq}{flag})"
        )


def round_to_bfloat16(data: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """float32 rounded to what bfloat16 holds, ties to even; still float32."""
    return bfloat16_numbers(bfloat16_bits(data))


def bfloat16_bits(data: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """float32 -> the upper 16 bits of each number, uint16, rounded, ties to even."""
    bits = np.ascontiguousarray(data, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
    # Rounding up would carry a NaN's payload over into another number.
    rounded = np.where(np.isnan(data), (bits >> np.uint32(16)) | np.uint32(0x40), rounded)
    return rounded.astype(np.uint16)


def bfloat16_numbers(bits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """uint16 -> float32, exactly."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
