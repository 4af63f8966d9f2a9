"""What a client sends, as packets: sound, images, codes, features, texts and bytes of files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any, TypeAlias

import numpy as np

from streamenc.errors import InputError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.io.network.websocket.livemessages import Opened
from streamenc.io.network.wire import (
    DISCONTINUITY,
    encode_bytes,
    encode_frame,
    encode_samples,
)

# What `send` takes: arrays; bytes of media, of an image, of a text; a text.
Samples: TypeAlias = "np.ndarray[Any, Any] | bytes | bytearray | memoryview | str"
# A packet that waits for its number.
Unnumbered: TypeAlias = Callable[[int], bytes]

SOUND = ("s16", "f32")
COMPRESSED = ("opus", "media", "jpeg", "h264", "text")
# What a packet has beside its payload, at most.
HEAD_BYTES = 128


class ClientInput:
    """Cuts what a user gives into packets that the server takes, and counts their time.

    Attributes:
        pts: Where the next input begins, in ticks of `time_base`.
    """

    def __init__(self, opened: Opened, pts: int = 0) -> None:
        self._opened = opened
        self._format = opened.input.format
        self.time_base = Fraction(*opened.input.time_base)
        self.pts = pts
        self._room = max(1, opened.max_message_bytes - HEAD_BYTES)
        self._items = 0  # images, or frames of codes, counted for their times

    def packets(self, given: Samples, pts: int | None, gap: bool) -> Iterator[Unnumbered]:
        """The packets of what was given, in order, each to be kept before the next is asked for.

        All of it is looked at before the first.

        Args:
            given: See ClientStream.send.
            pts: Where it begins; None where it follows on.
            gap: It does not follow on from what came before.

        Raises:
            InputError: Where it does not fit the stream.
        """
        if self._format in COMPRESSED:
            return self._bytes(given, pts, gap)
        if not isinstance(given, np.ndarray):
            raise InputError(f"got {type(given).__name__}; a stream of {self._format} takes arrays")
        if self._format in SOUND:
            return self._sound(given, pts, gap)
        return self._frames(given, pts, gap)

    def _sound(
        self, given: np.ndarray[Any, Any], pts: int | None, gap: bool
    ) -> Iterator[Unnumbered]:
        samples = given[None] if given.ndim == 1 else given
        channels = self._opened.input.channels
        if samples.ndim != 2 or samples.shape[0] != channels:
            raise InputError(
                f"got samples of shape {given.shape}; wanted (samples,) or (channels, samples) of "
                f"{channels} channels, as the stream was opened"
            )
        if self._format == "f32" and samples.dtype == np.int16:
            samples = samples.astype(np.float32) * np.float32(1 / 32768)  # exactly
        wanted = np.int16 if self._format == "s16" else np.float32
        if samples.dtype != wanted:
            other = "; open it with format='f32'" if samples.dtype == np.float32 else ""
            raise InputError(
                f"got samples of {samples.dtype.name}; this stream takes "
                f"{np.dtype(wanted).name}{other}"
            )
        begin = self.pts if pts is None else pts
        return self._cut(samples, begin, gap or begin != self.pts)

    def _cut(self, samples: np.ndarray[Any, Any], begin: int, gap: bool) -> Iterator[Unnumbered]:
        step = max(1, self._room // (samples.itemsize * samples.shape[0]))
        for at in range(0, samples.shape[1], step):
            piece, flags = samples[:, at : at + step], DISCONTINUITY * (gap and at == 0)
            # Only now: whoever stops between two of them goes on from here.
            self.pts = begin + at + piece.shape[1]
            yield lambda seq, piece=piece, pts=begin + at, flags=flags: encode_samples(  # type: ignore[misc]
                piece, seq, pts, flags
            )

    def _bytes(self, given: Samples, pts: int | None, gap: bool) -> Iterator[Unnumbered]:
        if isinstance(given, str):
            given = given.encode()
        if isinstance(given, np.ndarray):
            raise InputError(f"got an array; a stream of {self._format} takes bytes")
        whole = bytes(given)
        flags = DISCONTINUITY * gap
        step = len(whole) or 1
        if self._format == "media":
            step = self._room
        elif len(whole) > self._room:
            raise InputError(
                f"got {len(whole)} bytes of {self._format} at once; the server takes messages of "
                f"up to {self._opened.max_message_bytes}"
            )
        for at in range(0, len(whole), step):
            piece = whole[at : at + step]
            yield lambda seq, piece=piece, flags=flags: encode_bytes(  # type: ignore[misc]
                piece, seq, pts or 0, 0, flags
            )
            flags = 0

    def _frames(
        self, given: np.ndarray[Any, Any], pts: int | None, gap: bool
    ) -> Iterator[Unnumbered]:
        """Pixels, codes or features, whose second axis is time."""
        info, data = self._described(given)
        if data.nbytes > self._room:
            raise InputError(
                f"got {data.nbytes} bytes of {self._format} at once; the server takes messages of "
                f"up to {self._opened.max_message_bytes}: send less at once"
            )
        begin = self.pts if pts is None else pts
        gap = gap or begin != self.pts
        if pts is not None:
            self._items, first = 0, pts
        else:
            first = self.pts - self._ticks(self._items)
        self._items += data.shape[1]
        self.pts = first + self._ticks(self._items)
        frame = Frame(data, begin, self.pts - begin, 0, discontinuity=gap)
        yield lambda seq: encode_frame(frame.with_(seq=seq), info, 0)

    def _ticks(self, items: int) -> int:
        return round(items / (Fraction(self._opened.input.rate) * self.time_base))

    def _described(self, given: np.ndarray[Any, Any]) -> tuple[StreamInfo, np.ndarray[Any, Any]]:
        data = given
        if self._format == "rgb":
            if data.ndim == 3 and data.shape[0] == 3:
                data = data[:, None]
            fits = data.ndim == 4 and data.shape[0] == 3 and data.dtype == np.uint8
            wanted = "uint8 (3, height, width) or (3, images, height, width)"
            kind, dtype = "video", "uint8"
        elif self._format == "codes":
            fits = data.ndim == 2 and data.dtype.kind in "iu"
            wanted = "whole numbers (codebooks, frames)"
            kind, dtype = "codes", "uint32"
        else:
            fits = data.ndim >= 2 and data.dtype in (np.float32, np.float16)
            wanted = "float32 or float16 (channels, frames)"
            kind, dtype = "features", data.dtype.name
        if not fits or not data.size:
            raise InputError(f"got {data.dtype.name} {given.shape}; wanted {wanted}")
        size = self._opened.codebook_size if kind == "codes" else 0
        if size and not 0 <= data.min() <= data.max() < size:
            raise InputError(
                f"got codes from {data.min()} to {data.max()} for books of {size} entries"
            )
        shape = tuple(None if axis == 1 else n for axis, n in enumerate(data.shape))
        info = StreamInfo(
            kind,  # type: ignore[arg-type]
            self.time_base,
            Fraction(self._opened.input.rate),
            shape,
            dtype,
            codebook_size=(size or 2**32) if kind == "codes" else 0,
        )
        return info, data
