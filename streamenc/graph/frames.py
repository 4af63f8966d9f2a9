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

# What a stream from a file or a peer may say of itself. Far beyond what is made, and within what
# can be reckoned with: a second of sound at 1 Hz is 48,000 samples for a model, one at 2^63 Hz
# none, and each was said to be sound.
RATES = {
    "audio": (Fraction(1000), Fraction(10_000_000)),
    "video": (Fraction(1, 10_000), Fraction(100_000)),
    "codes": (Fraction(1, 1_000_000), Fraction(10_000_000)),
    "features": (Fraction(1, 1_000_000), Fraction(10_000_000)),
}
TIME_BASES = (Fraction(1, 10**12), Fraction(86_400))
AXES = {"audio": (2, 2), "video": (4, 4), "text": (2, 2), "codes": (2, 8), "features": (2, 8)}
DTYPES = {
    "audio": ("float32", "float16", "float64"),
    "video": ("uint8",),
    "text": ("str",),
    "codes": ("uint8", "uint16", "uint32", "int8", "int16", "int32", "int64"),
    "features": ("float32", "float16", "bfloat16", "float64"),
}
MAX_CHANNELS = {"audio": 1024, "codes": 65_536}
MAX_ITEM_BYTES = 2**28  # of one item along time: an image, a sample of every channel
MAX_MODEL_CHARACTERS = 1024
MAX_TICKS, MAX_PTS_SECONDS, MAX_DURATION_SECONDS = 2**62, 10**11, 10**9
# A frame becomes one piece of work; a model's sample rate may be 48 times its own.
MAX_SOUND_SECONDS = 300
MAX_SCALE = 1e12


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


def stream_fault(info: StreamInfo) -> str:
    """What no stream can be of what a file or a peer says that one is, in words; "" for nothing.

    Every reader of descriptions asks it before anything is opened.
    """
    if len(info.model) > MAX_MODEL_CHARACTERS or not _is_unicode(info.model):
        return f"a model's name is Unicode of up to {MAX_MODEL_CHARACTERS} characters"
    if info.kind == "mux":
        if info.shape or info.dtype or not info.tracks:
            return "a mux has tracks, and no shape or type of its own"
        return next(filter(None, map(stream_fault, info.tracks)), "")
    if info.dtype not in DTYPES[info.kind]:
        return f"{info.kind} is {', '.join(DTYPES[info.kind])}; got {info.dtype or 'no type'}"
    if not TIME_BASES[0] <= info.time_base <= TIME_BASES[1]:
        return f"a tick lasts from 1e-12 to 86400 s; got {float(info.time_base):g} s"
    return _rate_fault(info) or _shape_fault(info) or _books_fault(info)


def _rate_fault(info: StreamInfo) -> str:
    low, high = RATES.get(info.kind, (Fraction(0), Fraction(0)))
    in_segments = not info.rate and info.kind in ("text", "codes", "features")
    if in_segments or low <= info.rate <= high:
        return ""
    what = "samples" if info.kind == "audio" else "items"
    return (
        f"{info.kind} has {float(low):g} to {float(high):g} {what} a second; got "
        f"{float(info.rate):g}"
    )


def _shape_fault(info: StreamInfo) -> str:
    low, high = AXES[info.kind]
    if not low <= len(info.shape) <= high:
        return f"{info.kind} has {low} to {high} axes; got {len(info.shape)}"
    if any(size is not None and size < 1 for size in info.shape) or not info.shape[0]:
        return f"every axis has a size of 1 or more, and the first one says it; got {info.shape}"
    channels = {"text": 1, "video": 3}.get(info.kind)
    if channels is not None and info.shape[0] != channels:
        return f"{info.kind} has {channels} on its first axis; got {info.shape[0]}"
    if info.shape[0] > (most := MAX_CHANNELS.get(info.kind, MAX_ITEM_BYTES)):
        return f"{info.kind} has up to {most} on its first axis; got {info.shape[0]}"
    itemsize = 1 if info.kind == "text" else np.dtype(info.array_dtype).itemsize
    size = itemsize * math.prod(n or 1 for n in (info.shape[0], *info.shape[2:]))
    if size > MAX_ITEM_BYTES:
        return f"one item of it takes {size} bytes; at most {MAX_ITEM_BYTES} are read"
    return ""


def _books_fault(info: StreamInfo) -> str:
    if info.kind != "codes":
        fits = not info.codebook_size
        return "" if fits else f"{info.kind} has no codebooks; got {info.codebook_size} entries"
    most = 2**31 - 1
    if not 1 <= info.codebook_size <= most:
        return f"codebooks have 1 to {most} entries; got {info.codebook_size}"
    return ""


def frame_fault(info: StreamInfo, frame: Frame) -> str:
    """What no frame of the track `info` can be of what a file or a peer says that one is, in words;
    "" for nothing. Its data are as `StreamInfo.fits` wants them.
    """
    up, down = info.time_base.numerator, info.time_base.denominator
    if not (0 <= frame.seq < MAX_TICKS and -1 <= frame.segment < MAX_TICKS):
        return f"a frame's numbers are below 2^62; got seq {frame.seq}, segment {frame.segment}"
    late = abs(frame.pts) * up > MAX_PTS_SECONDS * down or abs(frame.pts) >= MAX_TICKS
    if late or not 0 <= frame.duration < min(MAX_TICKS, MAX_DURATION_SECONDS * down // up + 1):
        return (
            f"no time is beyond {MAX_PTS_SECONDS:g} s, and no frame lasts for more than "
            f"{MAX_DURATION_SECONDS:g} s; got pts {frame.pts}, duration {frame.duration}"
        )
    if not 0 <= frame.scale <= MAX_SCALE:  # nor is it NaN
        return f"a scale is from 0 to {MAX_SCALE:g}; got {frame.scale:g}"
    items = frame.data.shape[1]
    if items and not frame.data.size:
        return f"got {items} items without anything in them"
    if info.kind == "audio" and items > MAX_SOUND_SECONDS * info.rate:
        return (
            f"a frame of sound has up to {MAX_SOUND_SECONDS} s; got {items} samples at "
            f"{float(info.rate):g}/s"
        )
    return ""


def _is_unicode(text: str) -> bool:
    """Whether UTF-8 has it: JSON may say half of a pair."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


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
