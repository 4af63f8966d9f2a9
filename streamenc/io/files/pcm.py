"""Raw PCM from standard input, a named pipe or a file, and to them: `pcm:-`, `pcm:talk.bin`."""

from __future__ import annotations

import logging
import os
import threading
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np

from streamenc import options
from streamenc.errors import MediaError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.graph.node import BlockingSource
from streamenc.io.media.incoming.formats import recognise
from streamenc.io.media.incoming.intake import Intake
from streamenc.io.media.incoming.pipe import Pipe

log = logging.getLogger(__name__)

# name -> (bytes per sample, numpy type to read it as, factor to [-1, 1])
FORMATS = {
    "u8": (1, "u1", 1 / 128),
    "s8": (1, "i1", 1 / 128),
    "s16le": (2, "<i2", 1 / 2**15),
    "s16be": (2, ">i2", 1 / 2**15),
    "s24le": (3, "<i4", 1 / 2**31),
    "s24be": (3, ">i4", 1 / 2**31),
    "s32le": (4, "<i4", 1 / 2**31),
    "s32be": (4, ">i4", 1 / 2**31),
    "f32le": (4, "<f4", 1.0),
    "f32be": (4, ">f4", 1.0),
    "f64le": (8, "<f8", 1.0),
    "f64be": (8, ">f8", 1.0),
    "mulaw": (1, "u1", 1 / 2**15),
    "alaw": (1, "u1", 1 / 2**15),
}
MIN_RATE, MAX_RATE, MAX_CHANNELS = 1000, 1_000_000, 64


class PcmSource(BlockingSource):
    """Interleaved samples without any header, e.g. from `ffmpeg -f s16le -ac 1 -ar 24000 -`.

    Yields audio, float32 (channels, samples), in pieces of `chunk_ms`; time base 1 / rate. A pipe
    is not live: its writer waits while we are busy, and nothing is dropped. What begins with the
    header of a known format is refused, as a MediaError: it would be read as noise.

    rate      Samples per second.
    channels  Interleaved channels.
    format    One of u8, s8, s16le, s16be, s24le, s24be, s32le, s32be, f32le, f32be, f64le, f64be,
              and of telephony (G.711) mulaw and alaw.
    chunk_ms  Length of a frame; the last one may be shorter.
    channel   Which channel is taken, from 0, or which ones, such as 0,1; all if not given.
    scale     What samples are multiplied by, such as 1/32768 for integers written as floats.
    raw       Takes what comes for samples even where it begins as a known format does.

    partial_bytes  Bytes at the very end that did not make up a whole sample of every channel.
    """

    def __init__(
        self,
        address: str,
        rate: str | int = 24000,
        channels: str | int = 1,
        format: str = "s16le",
        chunk_ms: str | float = 20,
        channel: str | int | None = None,
        scale: str | float = 1.0,
        raw: str | bool = False,
    ) -> None:
        self.address = address
        self.replayed = address != "-" and os.path.isfile(address)
        self.rate = options.integer("rate", rate, MIN_RATE, MAX_RATE)
        self.channels = options.integer("channels", channels, 1, MAX_CHANNELS)
        self.format = options.choice("format", format, FORMATS)
        chunk_seconds = options.number("chunk_ms", chunk_ms, 1, 10_000) / 1000
        self.raw = options.flag("raw", raw)
        self.partial_bytes = 0
        self._intake = Intake(channel, scale)
        self._sample_bytes = FORMATS[self.format][0] * self.channels
        self._chunk_bytes = max(1, round(chunk_seconds * self.rate)) * self._sample_bytes
        self._pending = bytearray()
        self._halt = threading.Event()
        self._pipe: Pipe | None = None
        self._looked = self.raw
        self._left: int | None = None  # bytes that are still to come, where that is known
        self._samples = 0
        self._seq = 0

    def take(self, pipe: Pipe, halt: threading.Event, size: int | None = None) -> None:
        """Before `open`: reads this pipe, at which somebody looked, and ends with its event.

        size  Bytes that are samples; None for all.
        """
        self._pipe, self._halt, self._looked = pipe, halt, True
        self._left = size
        if size is not None:
            self.duration_seconds = size / self._sample_bytes / self.rate

    def open_blocking(self) -> StreamInfo:
        """Raises MediaError where the file cannot be opened, or holds anything but samples."""
        if self._pipe is None:
            self._pipe = Pipe(self.address, self._halt)
        if self._pipe.regular:
            self._look(self._pipe)
        return StreamInfo(
            kind="audio",
            time_base=Fraction(1, self.rate),
            rate=Fraction(self.rate),
            shape=(self._intake.channels(self.channels, self.address), None),
            dtype="float32",
        )

    def read(self) -> Frame | None:
        assert self._pipe is not None
        self._look(self._pipe)  # which waits for the first bytes of a pipe
        ended = False
        while len(self._pending) < self._chunk_bytes and not ended:
            wanted = self._chunk_bytes - len(self._pending)
            if self._left is not None:
                wanted = min(wanted, self._left)
            got = self._pipe.read(wanted) if wanted else b""
            self._pending += got
            ended = not got
            if self._left is not None:
                self._left -= len(got)
                if ended and self._left and not self._stopped:
                    self._note_missing(self._left)
        whole = len(self._pending) - len(self._pending) % self._sample_bytes
        if ended and whole < len(self._pending) and not self._stopped:
            self.partial_bytes = len(self._pending) - whole
            log.warning(
                "%s ended %d bytes into a sample of %d bytes; check its format, %s x %d channels",
                self.address, self.partial_bytes, self._sample_bytes, self.format, self.channels,
            )  # fmt: skip
        if not whole:
            return None
        frame = self._frame(bytes(self._pending[:whole]))
        del self._pending[:whole]
        return frame

    def stop(self) -> None:
        super().stop()
        self._halt.set()

    def close_blocking(self) -> None:
        self._halt.set()
        if self._pipe is not None:
            self._pipe.close()

    def _look(self, pipe: Pipe) -> None:
        """Raises MediaError where a known format begins."""
        if self._looked:
            return
        self._looked = True
        head = pipe.look()
        found = recognise(head, pipe.ended)
        if found is not None and not self._stopped:
            name = "standard input" if self.address == "-" else self.address
            raise MediaError(
                f"{name} begins as {found.name}, not as samples without a header; "
                f"{'say - to have it decoded' if self.address == '-' else 'leave out pcm:'}, or "
                f"say raw=true (pcm:{self.address}?raw=true) where it is samples all the same"
            )

    def _note_missing(self, size: int) -> None:
        missing = size / self._sample_bytes / self.rate
        whole = self.duration_seconds or missing
        self.broken = (
            f"{self.address!r} ends after {whole - missing:.2f} s of the {whole:.2f} s that its "
            "header promises"
        )

    def _frame(self, raw: bytes) -> Frame:
        data = self._intake.take(pcm_to_float(raw, self.format, self.channels))
        samples = data.shape[1]
        frame = Frame(data, self._samples, samples, self._seq, arrived_ns=self.clock.now_ns())
        self._samples += samples
        self._seq += 1
        return frame


def pcm_to_float(raw: bytes, format: str, channels: int) -> np.ndarray[Any, Any]:
    """Interleaved samples of one of FORMATS -> float32 (channels, samples), integers in [-1, 1)."""
    size, dtype, factor = FORMATS[format]
    samples: np.ndarray[Any, Any]
    if size == 3:
        padded = np.zeros((len(raw) // size, 4), np.uint8)
        low = int(format == "s24le")
        padded[:, low : low + size] = np.frombuffer(raw, np.uint8).reshape(-1, size)
        samples = padded.view(dtype)[:, 0]
    else:
        samples = np.frombuffer(raw, dtype)
    if format == "u8":
        samples = samples.astype(np.int16) - 128
    elif format in ("mulaw", "alaw"):
        samples = _expanded(format)[samples]
    planar = samples.reshape(-1, channels).T.astype(np.float32, order="C")
    return planar if factor == 1.0 else planar * np.float32(factor)


@cache
def _expanded(law: str) -> np.ndarray[Any, Any]:
    """The 256 samples of ITU-T G.711, int16."""
    codes = np.arange(256)
    bits = codes ^ (0xFF if law == "mulaw" else 0x55)
    exponent, mantissa = bits >> 4 & 7, bits & 15
    if law == "mulaw":
        size = ((2 * mantissa + 33) << exponent + 2) - 132
    else:
        size = np.where(
            exponent == 0, 16 * mantissa + 8, (16 * mantissa + 264) << np.maximum(exponent - 1, 0)
        )
    return np.where(codes & 0x80, size, -size).astype(np.int16)
