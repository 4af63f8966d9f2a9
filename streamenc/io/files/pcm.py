"""Raw PCM from standard input, a named pipe or a file: `-`, `talk.pcm`, `talk.raw`."""

from __future__ import annotations

import logging
import os
import select
import sys
from fractions import Fraction
from typing import Any

import numpy as np

from streamenc import options
from streamenc.errors import MediaError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.graph.node import BlockingSource

log = logging.getLogger(__name__)

# name -> (bytes per sample, numpy type to read it as, factor to [-1, 1])
FORMATS = {
    "u8": (1, "u1", 1 / 128),
    "s16le": (2, "<i2", 1 / 2**15),
    "s16be": (2, ">i2", 1 / 2**15),
    "s24le": (3, "<i4", 1 / 2**31),
    "s32le": (4, "<i4", 1 / 2**31),
    "s32be": (4, ">i4", 1 / 2**31),
    "f32le": (4, "<f4", 1.0),
    "f64le": (8, "<f8", 1.0),
}
WAIT_MS = 100


class PcmSource(BlockingSource):
    """Interleaved samples without any header, e.g. from `ffmpeg -f s16le -ac 1 -ar 24000 -`.

    Yields audio, float32 (channels, samples), in pieces of `chunk_ms`; time base 1 / rate. A pipe
    is not live: its writer waits while we are busy, and nothing is dropped.

    rate      Samples per second.
    channels  Interleaved channels.
    format    One of u8, s16le, s16be, s24le, s32le, s32be, f32le, f64le.
    chunk_ms  Length of a frame; the last one may be shorter.

    partial_bytes  Bytes at the very end that did not make up a whole sample of every channel.
    """

    def __init__(
        self,
        address: str,
        rate: str | int = 24000,
        channels: str | int = 1,
        format: str = "s16le",
        chunk_ms: str | float = 20,
    ) -> None:
        self.address = address
        self.replayed = address != "-" and os.path.isfile(address)
        self.rate = options.integer("rate", rate, 1, 1_000_000)
        self.channels = options.integer("channels", channels, 1, 64)
        self.format = options.choice("format", format, FORMATS)
        chunk_seconds = options.number("chunk_ms", chunk_ms, 1, 10_000) / 1000
        self.partial_bytes = 0
        self._sample_bytes = FORMATS[self.format][0] * self.channels
        self._chunk_bytes = max(1, round(chunk_seconds * self.rate)) * self._sample_bytes
        self._pending = bytearray()
        self._fd: int | None = None
        self._samples = 0
        self._seq = 0

    def open_blocking(self) -> StreamInfo:
        """Raises MediaError where the file cannot be opened."""
        try:
            self._fd = self._open()
        except OSError as error:
            raise MediaError(f"cannot open {self.address!r}: {error.strerror or error}") from error
        return StreamInfo(
            kind="audio",
            time_base=Fraction(1, self.rate),
            rate=Fraction(self.rate),
            shape=(self.channels, None),
            dtype="float32",
        )

    def read(self) -> Frame | None:
        ended = False
        while len(self._pending) < self._chunk_bytes and not ended and not self._stopped:
            if self._wait():
                got = self._read_some(self._chunk_bytes - len(self._pending))
                self._pending += got
                ended = not got
        whole = len(self._pending) - len(self._pending) % self._sample_bytes
        if ended and whole < len(self._pending):
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

    def close_blocking(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _open(self) -> int:
        if self.address == "-":
            if sys.stdin.isatty():
                raise MediaError("standard input is a terminal; pipe raw PCM into it")
            return os.dup(sys.stdin.fileno())
        if os.path.isdir(self.address):
            raise MediaError(f"{self.address!r} is a folder; name a file of raw PCM in it")
        # Without O_NONBLOCK, opening a named pipe waits for its writer and cannot be stopped.
        return os.open(self.address, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))

    def _wait(self) -> bool:
        """Whether there is something to read now (the end of the file counts)."""
        assert self._fd is not None
        if not hasattr(select, "poll"):
            return True
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return bool(poll.poll(WAIT_MS))

    def _read_some(self, size: int) -> bytes:
        assert self._fd is not None
        try:
            return os.read(self._fd, size)
        except OSError as error:
            raise MediaError(f"cannot read {self.address!r}: {error.strerror}") from error

    def _frame(self, raw: bytes) -> Frame:
        data = pcm_to_float(raw, self.format, self.channels)
        samples = data.shape[1]
        frame = Frame(data, self._samples, samples, self._seq, arrived_ns=self.clock.now_ns())
        self._samples += samples
        self._seq += 1
        return frame


def pcm_to_float(raw: bytes, format: str, channels: int) -> np.ndarray[Any, Any]:
    """Interleaved samples of one of FORMATS -> float32 (channels, samples), integers in [-1, 1)."""
    size, dtype, factor = FORMATS[format]
    if format == "s24le":
        padded = np.zeros((len(raw) // size, 4), np.uint8)
        padded[:, 1:] = np.frombuffer(raw, np.uint8).reshape(-1, size)
        samples: np.ndarray[Any, Any] = padded.view(dtype)[:, 0]
    else:
        samples = np.frombuffer(raw, dtype)
    if format == "u8":
        samples = samples.astype(np.int16) - 128
    planar = samples.reshape(-1, channels).T.astype(np.float32, order="C")
    return planar if factor == 1.0 else planar * np.float32(factor)
