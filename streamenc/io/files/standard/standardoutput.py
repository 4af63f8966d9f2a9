"""Sound on standard output: WAV for the next program in a pipe, or samples without a header."""

from __future__ import annotations

import os
import sys
from io import FileIO, UnsupportedOperation
from typing import Any, BinaryIO, cast

from streamenc import options
from streamenc.errors import OutputError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.graph.node import BlockingSink
from streamenc.io.files.jsonlines import JsonLinesSink
from streamenc.io.files.soundwriter import KINDS, AudioFileSink

WAVE_FORMATS = KINDS[".wav"][1]
# As files of them are called by FFmpeg, too.
PCM_FORMATS = ("s16le", "s16be", "s24le", "s24be", "s32le", "s32be", "f32le", "f32be")


class PcmSink(AudioFileSink):
    """Writes samples without any header, interleaved: to standard output, a named pipe or a file.

    Takes audio, float32 (channels, samples) in [-1, 1]. What lies outside is clamped and counted.
    `remarks` says of which rate and how many channels they are, as nothing else will.

    format     s16le, s16be, s24le, s24be, s32le, s32be, f32le or f32be.
    max_gap_s  The longest gap to fill with silence, in seconds.
    overwrite  Whether an existing file is replaced; otherwise it is an OutputError.
    """

    def __init__(
        self,
        address: str = "-",
        format: str = "s16le",
        max_gap_s: str | float = 10,
        overwrite: str | bool = True,
    ) -> None:
        super().__init__(address, format, max_gap_s, overwrite)
        self._container_name = self.format

    def open_blocking(self, info: StreamInfo) -> None:
        super().open_blocking(info)
        plural = "s" * (info.shape[0] != 1)
        self.remarks = [
            f"wrote {self.format}, {info.shape[0]} channel{plural}, {int(info.rate)} Hz, without a "
            "header"
        ]

    @staticmethod
    def _kind(address: str) -> tuple[str, dict[str, str]]:
        return "", {format: f"pcm_{format}" for format in PCM_FORMATS}

    def _settings(self) -> dict[str, str]:
        return {}

    def _opened(self) -> BinaryIO:
        return _standard_output() if self.address == "-" else super()._opened()


class WaveOutput(AudioFileSink):
    """Writes WAV to standard output, with a header that says no length."""

    @staticmethod
    def _kind(address: str) -> tuple[str, dict[str, str]]:
        return KINDS[".wav"]

    def _settings(self) -> dict[str, str]:
        return {"fflags": "+bitexact"}

    def _opened(self) -> BinaryIO:
        return _standard_output()


class StandardOutput(BlockingSink):
    """Sound as WAV for the next program, `streamenc decode tokens.arrows - | ...`; all else, and
    sound on a terminal, as JSON lines.

    format  Of sound: s16, s24 or f32 of WAV, or json; "" chooses.
    values  Writes sound, images and features in full, as JSON lines, see `.jsonl`.
    """

    def __init__(self, address: str = "-", format: str = "", values: str | bool = False) -> None:
        self.address = address
        known = ("", "json", *WAVE_FORMATS)
        self.format = options.choice("format", format, known)
        self.values = options.flag("values", values)
        self._sink: BlockingSink | None = None

    def open_blocking(self, info: StreamInfo) -> None:
        """Raises FitError, OutputError."""
        as_wave = info.kind == "audio" and not self.values and self.format != "json"
        if as_wave and (self.format or _takes_bytes()):
            self._sink = WaveOutput(self.address, self.format)
        else:
            self._sink = JsonLinesSink(self.address, self.values)
        self._sink.open_blocking(info)
        self.remarks = self._sink.remarks

    def write_blocking(self, frame: Frame) -> None:
        """Raises OutputError where the reader of standard output went away."""
        assert self._sink is not None
        self._sink.write_blocking(frame)

    def close_blocking(self) -> None:
        if self._sink is not None:
            self._sink.broken = self.broken
            self._sink.close_blocking()


def _takes_bytes() -> bool:
    """Whether standard output leads to a program or a file, rather than to eyes."""
    try:
        sys.stdout.fileno()
    except (UnsupportedOperation, AttributeError):  # a notebook's
        return False
    return not sys.stdout.isatty()


def _standard_output() -> BinaryIO:
    """Of its own, so that nothing is left in a buffer. Raises OutputError on a terminal."""
    if sys.stdout.isatty():
        raise OutputError("standard output is a terminal; pipe it into a program or a file")
    sys.stdout.flush()
    return cast(BinaryIO, _Unseekable(os.dup(sys.stdout.fileno()), "wb"))


class _Unseekable(FileIO):
    """Written from front to back, even where it is a file: others may have written before."""

    def write(self, data: Any) -> int:
        rest = memoryview(data)
        while rest:
            rest = rest[super().write(rest) or 0 :]
        return len(data)

    def seekable(self) -> bool:
        return False
