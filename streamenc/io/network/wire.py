"""The packet format of token streams on a network, without any I/O: docs/io/wire.md describes it.

A packet is 5 bytes of header (b"SE", major version, minor version, kind) and one msgpack array.
Overhead of a data packet is at most 72 bytes. Reading trusts nothing: every length has a bound, and
whatever is wrong with a packet raises WireError.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np
from msgspec import Meta, Struct

from streamenc.addresses import plain_reason
from streamenc.errors import FitError, InputError, WireError
from streamenc.graph.frames import (
    MAX_MODEL_CHARACTERS,
    Frame,
    Kind,
    StreamInfo,
    bfloat16_bits,
    bfloat16_numbers,
    frame_fault,
    stream_fault,
)

MAJOR, MINOR = 1, 4
MAGIC, HEADER_BYTES = b"SE", 5
MAX_PACKET_BYTES = 16 * 2**20
MAX_INFO_BYTES = 64 * 2**10
MAX_CONTROL_BYTES = 1024
MAX_PAYLOAD_BYTES = MAX_PACKET_BYTES - MAX_CONTROL_BYTES
MAX_AXES = 8
MAX_TRACKS = 64
MAX_REASON_BYTES = 256
# What a payload may consist of: numpy's short names, always little-endian; and bfloat16, the upper
# two bytes of a float32.
DTYPES = ("u1", "u2", "u4", "f2", "f4", "b2")
# Sound on its way to a server may also come as it was recorded; no stream is described so.
PAYLOAD_DTYPES = (*DTYPES, "i2")

DISCONTINUITY, REVISED, RESENT = 1, 2, 4
# As a rate, of what comes in segments: readers of version 1.1 take no 0.
NO_RATE = (1, 1)

_Signed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
_Unsigned = Annotated[int, Meta(ge=0, le=2**63 - 1)]
_Size = Annotated[int, Meta(ge=0, le=2**31 - 1)]
_Positive = Annotated[int, Meta(ge=1, le=2**63 - 1)]
_Track = Annotated[int, Meta(ge=0, lt=MAX_TRACKS)]


@dataclass(frozen=True, slots=True)
class Info:
    """What a stream is: sent before its first data and then about once a second.

    stream          The stream's id, random, so that a restarted publisher is told from the old one.
    opened_unix_ns  When the publisher opened the stream, in nanoseconds since 1970 (UTC).
    """

    stream: int
    opened_unix_ns: int
    info: StreamInfo


@dataclass(frozen=True, slots=True, eq=False)
class Data:
    """One frame. `data` is a read-only view into the packet; times are as in `Frame`.

    arrived_unix_ns  `Frame.arrived_ns` in nanoseconds since 1970 (UTC); 0 where it is not known.
    sent_ms          When it was sent, in milliseconds since the publisher opened the stream; None
                     where it is not known, as from publishers of version 1.0.
    segment, revised  As in `Frame`, since version 1.2.
    resent           It may have come before, or come after later ones, since version 1.4.
    """

    stream: int
    track: int
    seq: int
    pts: int
    duration: int
    discontinuity: bool
    arrived_unix_ns: int
    scale: float
    data: np.ndarray[Any, Any]
    sent_ms: int | None = None
    segment: int = -1
    revised: bool = False
    resent: bool = False


class End(Struct, array_like=True, frozen=True):
    """The stream ended after `frames` frames; `next_seqs` has the seq that would have come next on
    each track, so that a reader knows what it missed at the end. `broken` says in words why the
    stream ended before its end, and is "" where it ended in an orderly way.
    """

    stream: _Unsigned
    frames: _Unsigned
    next_seqs: Annotated[tuple[_Unsigned, ...], Meta(max_length=MAX_TRACKS)]
    broken: Annotated[str, Meta(max_length=MAX_REASON_BYTES)] = ""


class Credit(Struct, array_like=True, frozen=True):
    """From a subscriber in credit mode: it has consumed `received` data packets of `stream` and can
    hold `window` more. `stream` is 0 as long as it knows of none.
    """

    stream: _Unsigned
    received: _Unsigned
    window: _Unsigned


class Bye(Struct, array_like=True, frozen=True):
    """From a subscriber in credit mode: it got the end of `stream`, or it leaves."""

    stream: _Unsigned


class StreamSnapshot(Struct, array_like=True, frozen=True):
    """The whole state of a stream on a server, since version 1.3; see docs/server."""

    stream: _Unsigned
    blob: bytes


class _Stream(Struct, array_like=True):
    kind: Kind
    time_base_numerator: _Positive
    time_base_denominator: _Positive
    rate_numerator: _Unsigned
    rate_denominator: _Positive
    shape: Annotated[tuple[_Size | None, ...], Meta(max_length=MAX_AXES)]
    dtype: str
    model: Annotated[str, Meta(max_length=MAX_MODEL_CHARACTERS)]
    codebook_size: _Size
    segmented: bool = False


class _Info(Struct, array_like=True):
    stream: _Unsigned
    opened_unix_ns: _Unsigned
    described: _Stream
    tracks: Annotated[tuple[_Stream, ...], Meta(max_length=MAX_TRACKS)]


class _Data(Struct, array_like=True):
    stream: _Unsigned
    track: _Track
    seq: _Unsigned
    pts: _Signed
    duration: _Unsigned
    flags: _Unsigned
    arrived_unix_ns: _Unsigned
    scale: float
    dtype: str
    shape: Annotated[tuple[_Size, ...], Meta(max_length=MAX_AXES)]
    payload: memoryview
    sent_ms: _Unsigned | None = None


class _Segment(_Data, array_like=True):
    segment: _Unsigned | None = None


Packet = Info | Data | End | Credit | Bye | StreamSnapshot
_S = TypeVar("_S", bound=Struct)
_LIMITS = {
    b"I": MAX_INFO_BYTES,
    b"D": MAX_PACKET_BYTES,
    b"E": MAX_CONTROL_BYTES,
    b"C": MAX_CONTROL_BYTES,
    b"B": MAX_CONTROL_BYTES,
    b"S": MAX_PACKET_BYTES,
}


def encode_info(info: StreamInfo, stream: int, opened_unix_ns: int) -> bytes:
    """The info packet. Raises FitError where `info` is nothing that packets can carry, as its kind
    or the size of its smallest frame shows.
    """
    tracks = tuple(_describe(track) for track in info.tracks)
    if len(tracks) > MAX_TRACKS or any(track.kind == "mux" for track in tracks):
        raise FitError(
            f"cannot send {info}: a mux may have up to {MAX_TRACKS} tracks and none of them may be "
            "a mux again"
        )
    return _pack(b"I", _Info(stream, opened_unix_ns, _describe(info), tracks))


def encode_frame(
    frame: Frame,
    info: StreamInfo,
    stream: int,
    arrived_unix_ns: int = 0,
    discontinuity: bool | None = None,
    sent_ms: int | None = None,
) -> bytes:
    """The data packet of `frame`, which belongs to `info` or, in a mux, to its track `frame.track`.

    Codes are packed into the smallest unsigned type that holds the codebook, text is UTF-8.
    `discontinuity` overrides the frame's own flag; the times are as in `Data`. Raises InputError
    where the frame does not fit.
    """
    dtype = wire_dtype(info.track(frame.track))
    dtype_of_items, data = dtype, frame.data
    if info.track(frame.track).kind == "text":
        dtype_of_items, data = "u1", _text_bytes(frame)
    elif dtype == "b2":
        dtype_of_items, data = "u2", bfloat16_bits(data)
    if data.dtype != np.dtype(dtype_of_items):
        if (
            dtype[0] == "u"
            and data.size
            and not 0 <= data.min() <= data.max() < 256 ** int(dtype[1])
        ):
            raise InputError(
                f"codes from {data.min()} to {data.max()} do not fit into {np.dtype(dtype).name}, "
                f"the type for {info.track(frame.track).codebook_size} entries"
            )
        data = data.astype(np.dtype("<" + dtype))
    payload = np.ascontiguousarray(data, dtype="<" + dtype_of_items).tobytes()
    if data.ndim > MAX_AXES or len(payload) > MAX_PAYLOAD_BYTES:
        raise InputError(
            f"{frame!r} takes {len(payload)} bytes; a packet carries up to {MAX_PAYLOAD_BYTES} and "
            f"{MAX_AXES} axes; send shorter frames (of a model, --hops 1)"
        )
    flagged = frame.discontinuity if discontinuity is None else discontinuity
    flags = DISCONTINUITY * flagged | REVISED * frame.revised
    fields = (
        stream,
        frame.track,
        frame.seq,
        frame.pts,
        frame.duration,
        flags,
        arrived_unix_ns,
        frame.scale,
        dtype,
        data.shape,
        memoryview(payload),
        sent_ms,
    )
    if frame.segment >= 0:
        return _pack(b"D", _Segment(*fields, frame.segment))
    return _pack(b"D", _Data(*fields))


def encode_end(end: End) -> bytes:
    return _pack(
        b"E", msgspec.structs.replace(end, broken=plain_reason(end.broken, MAX_REASON_BYTES))
    )


def encode_credit(credit: Credit) -> bytes:
    return _pack(b"C", credit)


def encode_bye(bye: Bye) -> bytes:
    return _pack(b"B", bye)


def encode_snapshot(snapshot: StreamSnapshot) -> bytes:
    """Raises FitError where it is longer than a packet may be."""
    return _pack(b"S", snapshot)


def encode_samples(samples: np.ndarray[Any, Any], seq: int, pts: int, flags: int = 0) -> bytes:
    """A data packet of sound on its way to a server: int16 or float32, (channels, samples)."""
    dtype = "i2" if samples.dtype == np.int16 else "f4"
    payload = np.ascontiguousarray(samples, dtype="<" + dtype).tobytes()
    fields = (0, 0, seq, pts, samples.shape[1], flags, 0, 1.0, dtype, samples.shape)
    return _pack(b"D", _Data(*fields, memoryview(payload)))


def encode_bytes(
    payload: bytes, seq: int, pts: int = 0, duration: int = 0, flags: int = 0
) -> bytes:
    """A data packet of bytes on their way to a server: a piece of a file, or an image."""
    fields = (0, 0, seq, pts, duration, flags, 0, 1.0, "u1", (1, len(payload)))
    return _pack(b"D", _Data(*fields, memoryview(payload)))


def decode(packet: bytes) -> Packet:
    """The packet, as what it is. Raises WireError for anything else."""
    if len(packet) <= HEADER_BYTES or packet[:2] != MAGIC:
        raise WireError(
            f"got {len(packet)} bytes that begin with {bytes(packet[:8])!r}; a packet of streamenc "
            f"begins with {MAGIC!r}; does something else publish here?"
        )
    if packet[2] != MAJOR:
        raise WireError(
            f"got a packet of version {packet[2]}.{packet[3]}; this streamenc reads version "
            f"{MAJOR}.{MINOR}; install the same major version on both ends"
        )
    kind = bytes(packet[4:HEADER_BYTES])
    limit = _LIMITS.get(kind)
    if limit is None:
        raise WireError(
            f"got a packet of version {packet[2]}.{packet[3]} and unknown kind {kind!r}; this "
            f"streamenc reads version {MAJOR}.{MINOR}"
        )
    if len(packet) > limit:
        raise WireError(f"got a packet {kind!r} of {len(packet)} bytes; at most {limit} are read")
    body = memoryview(packet)[HEADER_BYTES:]
    if kind == b"D":
        return _read_data(_unpack(_Segment, kind, body))
    if kind == b"I":
        return _read_info(_unpack(_Info, kind, body))
    shapes: dict[bytes, Any] = {b"E": End, b"S": StreamSnapshot, b"C": Credit, b"B": Bye}
    small: Packet = _unpack(shapes[kind], kind, body)
    return small


def wire_dtype(info: StreamInfo) -> str:
    """What frames of `info` are sent as, one of DTYPES. Raises FitError where none fits."""
    kind = np.dtype(info.dtype).kind if info.dtype in np.sctypeDict else ""
    if info.kind == "codes" and kind in ("u", "i"):
        if not info.codebook_size:
            raise FitError(f"cannot send {info}: codes need their codebook_size")
        return "u1" if info.codebook_size <= 2**8 else "u2" if info.codebook_size <= 2**16 else "u4"
    if info.kind == "features" and info.dtype == "bfloat16":
        return "b2"
    if (info.kind, info.dtype) in (("video", "uint8"), ("text", "str")):
        return "u1"
    if info.kind in ("audio", "features") and kind == "f":
        return "f2" if info.dtype == "float16" else "f4"
    carried = "whole numbers for codes, bytes for video and text, floats for audio and features"
    raise FitError(f"cannot send {info}: packets carry {carried}")


def least_bytes(info: StreamInfo) -> int:
    """What the payload of a frame takes at least, with one item along time; in a mux, of the track
    that takes the most. Raises FitError where `info` cannot be sent.
    """
    if info.kind == "mux":
        return max(map(least_bytes, info.tracks), default=0)
    sizes = info.shape[1:] if info.kind == "codes" else info.shape  # there may be fewer codebooks
    return int(wire_dtype(info)[1]) * math.prod(1 if size is None else size for size in sizes)


def fitted(data: Data, info: StreamInfo) -> np.ndarray[Any, Any]:
    """The data of a frame of `info`.

    Raises WireError where the track, type, shape or codes of `data` are not as `info` says, or its
    times are none.
    """
    if info.kind == "mux" and data.track >= len(info.tracks):
        raise WireError(f"got a frame of track {data.track}; the mux has {len(info.tracks)} tracks")
    promised = info.track(data.track)
    got = _text(data.data) if promised.kind == "text" else data.data
    if not promised.fits(got):
        raise WireError(f"got a frame of {got.dtype.name} {got.shape}; the stream is {promised}")
    frame = Frame(got, data.pts, data.duration, data.seq, scale=data.scale, segment=data.segment)
    if fault := frame_fault(promised, frame):
        raise WireError(f"got a frame that is none: {fault}")
    if promised.kind == "codes" and got.size and got.max() >= promised.codebook_size:
        raise WireError(f"got code {got.max()} for books of {promised.codebook_size} entries")
    return got


def _text_bytes(frame: Frame) -> np.ndarray[Any, Any]:
    """(1, bytes), the UTF-8 of a segment. Raises InputError."""
    if frame.data.shape != (1, 1):
        raise InputError(f"got {frame!r}; a packet carries one segment of text")
    try:
        return np.frombuffer(str(frame.data[0, 0]).encode(), np.uint8)[None]
    except UnicodeEncodeError as error:
        raise InputError(f"got {frame!r}, whose text is no Unicode: {error.reason}") from None


def _text(got: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Its bytes as a segment, (1, 1). Raises WireError."""
    if got.dtype != np.uint8 or got.ndim != 2 or got.shape[0] != 1:
        raise WireError(f"got text as {got.dtype.name} {got.shape}; wanted (1, bytes) of UTF-8")
    try:
        return np.array([[got.tobytes().decode()]], np.str_)
    except UnicodeDecodeError as error:
        raise WireError(f"got text that is no UTF-8: {error.reason}") from None


def _pack(kind: bytes, body: Struct) -> bytes:
    packet = MAGIC + bytes((MAJOR, MINOR)) + kind + msgspec.msgpack.encode(body)
    if len(packet) > _LIMITS[kind]:
        raise FitError(f"a packet {kind!r} of {len(packet)} bytes is above {_LIMITS[kind]}")
    return packet


def _unpack(shape: type[_S], kind: bytes, body: memoryview) -> _S:
    try:
        return msgspec.msgpack.decode(body, type=shape)
    # RecursionError: arrays nested a thousand deep, in a place where a newer minor version may add.
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"got a malformed packet {kind!r} of {len(body)} bytes: {error}") from None


def _describe(info: StreamInfo) -> _Stream:
    dtype = "" if info.kind == "mux" else wire_dtype(info)
    if max(info.time_base.denominator, info.rate.numerator, info.rate.denominator) >= 2**63:
        raise FitError(f"cannot send {info}: its rate or time base does not fit into 64 bits")
    if len(info.model) > MAX_MODEL_CHARACTERS or len(info.shape) > MAX_AXES:
        raise FitError(f"cannot send {info}: the model's name or the shape is too long")
    if (least := least_bytes(info)) > MAX_PAYLOAD_BYTES:
        raise FitError(
            f"cannot send {info}: each item along time takes {least} bytes, and a packet carries "
            f"up to {MAX_PAYLOAD_BYTES}; make the images smaller (--size WIDTHxHEIGHT)"
            + (", or send half of the bytes (--dtype float16)" if dtype == "f4" else "")
        )
    segmented = info.kind != "mux" and info.segmented
    return _Stream(
        info.kind,
        *info.time_base.as_integer_ratio(),
        *(NO_RATE if segmented else info.rate.as_integer_ratio()),
        info.shape,
        dtype,
        info.model,
        info.codebook_size,
        segmented,
    )


def _read_info(body: _Info) -> Info:
    if bool(body.tracks) != (body.described.kind == "mux"):
        raise WireError(f"got {len(body.tracks)} tracks for a stream of {body.described.kind}")
    tracks = tuple(_read_stream(track) for track in body.tracks)
    info = _read_stream(body.described, tracks)
    fault = stream_fault(info)
    try:
        _describe(info)  # as we would send it
    except FitError as error:
        fault = fault or str(error)
    if fault:
        raise WireError(f"got a description of no stream: {fault}")
    return Info(body.stream, body.opened_unix_ns, info)


def _read_stream(body: _Stream, tracks: tuple[StreamInfo, ...] = ()) -> StreamInfo:
    if body.kind == "mux":
        dtype = ""
    elif body.kind == "text":
        dtype = "str"
    elif body.dtype in DTYPES and body.rate_numerator:
        dtype = "bfloat16" if body.dtype == "b2" else np.dtype(body.dtype).name
    else:
        raise WireError(
            f"got a stream of type {body.dtype!r:.20} at rate {body.rate_numerator}/"
            f"{body.rate_denominator}; types are {', '.join(DTYPES)}, rates are above 0"
        )
    in_segments = body.segmented or body.kind in ("text", "mux")
    return StreamInfo(
        body.kind,
        Fraction(body.time_base_numerator, body.time_base_denominator),
        Fraction(0 if in_segments else body.rate_numerator, body.rate_denominator),
        body.shape,
        dtype,
        body.model,
        body.codebook_size,
        tracks,
    )


def _read_data(body: _Segment) -> Data:
    if body.dtype not in PAYLOAD_DTYPES:
        raise WireError(
            f"got data of type {body.dtype!r:.20}; types are {', '.join(PAYLOAD_DTYPES)}"
        )
    items = math.prod(body.shape)
    itemsize = int(body.dtype[1])
    # numpy also refuses an empty array whose other axes multiply to something huge.
    if math.prod(max(n, 1) for n in body.shape) > MAX_PACKET_BYTES:
        raise WireError(f"got data of shape {body.shape}; that is more than a packet can hold")
    if items * itemsize != body.payload.nbytes:
        raise WireError(
            f"got {body.payload.nbytes} bytes of {body.dtype} in shape {body.shape}, "
            f"which takes {items * itemsize}"
        )
    if not math.isfinite(body.scale):
        raise WireError(f"got the scale {body.scale}; it must be finite")
    item = "u2" if body.dtype == "b2" else body.dtype
    data = np.frombuffer(body.payload, dtype="<" + item).reshape(body.shape)
    return Data(
        body.stream,
        body.track,
        body.seq,
        body.pts,
        body.duration,
        bool(body.flags & DISCONTINUITY),
        body.arrived_unix_ns,
        body.scale,
        bfloat16_numbers(data) if body.dtype == "b2" else data,
        body.sent_ms,
        -1 if body.segment is None else body.segment,
        bool(body.flags & REVISED),
        bool(body.flags & RESENT),
    )
