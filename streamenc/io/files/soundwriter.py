"""Audio files that a graph writes: WAV, FLAC, and Opus in Ogg."""

from __future__ import annotations

import logging
from fractions import Fraction
from pathlib import PurePath
from typing import Any, BinaryIO

import av
import av.error
import numpy as np

from streamenc import options
from streamenc.errors import FitError, InputError, OutputError, UsageError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.graph.node import BlockingSink
from streamenc.io.files.output import open_output, output_error

log = logging.getLogger(__name__)

# ending -> (container, sample format -> codec). Without a choice of format, the first one is taken.
KINDS = {
    ".wav": ("wav", {"s16": "pcm_s16le", "s24": "pcm_s24le", "f32": "pcm_f32le"}),
    ".flac": ("flac", {"s16": "flac", "s24": "flac"}),
    ".ogg": ("ogg", {"f32": "libopus"}),
    ".opus": ("ogg", {"f32": "libopus"}),
}
# Sample format -> (what the encoder takes, numpy type, bits that count, bits to shift them up).
SAMPLES = {
    "s16": ("s16", "int16", 16, 0),
    "s24": ("s32", "int32", 24, 8),
    "s32": ("s32", "int32", 32, 0),
}
OPUS_RATES = (8000, 12000, 16000, 24000, 48000)


class AudioFileSink(BlockingSink):
    """Writes audio to a file; its ending chooses: `.wav`, `.flac`, `.ogg` or `.opus` (both Opus).

    Takes audio, float32 (channels, samples) in [-1, 1], of any whole sample rate. What lies outside
    is clamped and counted. Opus knows only some rates; others are resampled to 48 kHz.

    Where a frame is flagged discontinuous and its pts lies ahead, silence fills the gap, so that
    the file keeps the stream's timeline. A longer gap than `max_gap_s`, and a jump backward, are
    logged and closed up. Each packet goes to the operating system at once: a file that was left
    behind by a crash plays up to there.

    format     s16 or s24 (WAV, FLAC), f32 (WAV); "" chooses s16.
    max_gap_s  The longest gap to fill with silence, in seconds.
    overwrite  Whether an existing file is replaced; otherwise it is an OutputError.

    clipped    Samples that had to be clamped so far.
    jumps      Times so far that the stream jumped by more than `max_gap_s`, or back.
    """

    def __init__(
        self,
        address: str,
        format: str = "",
        max_gap_s: str | float = 10,
        overwrite: str | bool = True,
    ) -> None:
        self.address = address
        self._container_name, codecs = self._kind(address)
        self.format = options.choice("format", format or next(iter(codecs)), codecs)
        self._samples = self.format.removesuffix("le").removesuffix("be")
        self._codec = codecs[self.format]
        self.max_gap_seconds = options.number("max_gap_s", max_gap_s, 0, 86400)
        self.overwrite = options.flag("overwrite", overwrite)
        self.clipped = self.jumps = 0
        self._file: BinaryIO | None = None
        self._container: Any = None
        self._stream: Any = None
        self._written = 0
        self._next_pts: int | None = None

    @staticmethod
    def _kind(address: str) -> tuple[str, dict[str, str]]:
        """One of KINDS. Raises UsageError."""
        ending = PurePath(address).suffix.lower()
        if ending not in KINDS:
            raise UsageError(f"cannot write audio as {address!r}: known are {', '.join(KINDS)}")
        return KINDS[ending]

    def _settings(self) -> dict[str, str]:
        """Of the container."""
        return {"rf64": "auto"} if self._container_name == "wav" else {}

    def _opened(self) -> BinaryIO:
        """Where it is written. Raises OutputError."""
        return open_output(self.address, self.overwrite)

    def open_blocking(self, info: StreamInfo) -> None:
        """Raises FitError where `info` is not audio that the format holds, OutputError."""
        if info.kind != "audio":
            raise FitError(f"{self.address!r} takes audio; got {info}; decode it first")
        channels, rate = info.shape[0], info.rate
        if rate.denominator != 1 or channels is None or not 1 <= channels <= 64:
            raise FitError(
                f"{self.address!r} needs a whole sample rate and 1 to 64 channels; got {info}"
            )
        self._info, self._rate, self._layout = info, int(rate), f"{channels}c"
        self._file = self._opened()
        codec_rate = self._rate
        if self._codec == "libopus" and self._rate not in OPUS_RATES:
            codec_rate = 48000
        settings = self._settings()
        try:
            self._container = av.open(
                self._file,
                "w",
                format=self._container_name,
                container_options={"flush_packets": "1", **settings},
            )
            self._stream = self._container.add_stream(
                self._codec, rate=codec_rate, layout=self._layout, format=self._encoder_format()
            )
            if self._codec == "flac" and self.format == "s24":
                self._stream.codec_context.options = {"bits_per_raw_sample": "24"}
            self._container.start_encoding()
            self._file.flush()
        except (av.error.FFmpegError, ValueError) as error:
            self._abandon()
            raise FitError(
                f"{self._codec} cannot hold {info} in {self.address!r}: {error}"
            ) from error
        except OSError as error:
            self._abandon()
            raise output_error(self.address, error) from error

    def write_blocking(self, frame: Frame) -> None:
        """Raises OutputError where the disk is full, InputError for another channel count."""
        if frame.data.ndim != 2 or frame.data.shape[0] != self._info.shape[0]:
            raise InputError(f"got {frame!r}; {self.address!r} was opened for {self._info}")
        if frame.discontinuity and self._next_pts is not None:
            self._fill_gap(frame.pts - self._next_pts)
        self._next_pts = frame.pts + frame.duration
        self._encode(frame.data)

    def close_blocking(self) -> None:
        if self._container is None:
            return
        assert self._file is not None
        try:
            self._mux(self._stream.encode(None))
            self._container.close()
            self._file.close()
        except OSError as error:
            raise output_error(self.address, error) from error
        finally:
            self._abandon()

    def _encoder_format(self) -> str:
        return SAMPLES[self._samples][0] if self._samples in SAMPLES else "flt"

    def _fill_gap(self, ticks: int) -> None:
        if not ticks:
            return
        seconds = ticks * self._info.time_base
        if ticks < 0 or seconds > Fraction(self.max_gap_seconds):
            if not self.jumps:
                log.warning(
                    "%s: the stream jumps by %.3f s; the file goes on without a gap",
                    self.address, float(seconds),
                )  # fmt: skip
            self.jumps += 1
            self.remarks = [f"the stream jumped {self.jumps} times; the file has no gaps there"]
            return
        missing = round(seconds * self._rate)
        while missing > 0:
            piece = min(missing, self._rate)
            self._encode(np.zeros((self._info.shape[0] or 1, piece), np.float32))
            missing -= piece

    def _encode(self, data: np.ndarray[Any, Any]) -> None:
        if self._container is None:
            raise OutputError(f"{self.address!r} is closed")
        packed = self._pack(data)
        audio = av.AudioFrame.from_ndarray(packed, self._encoder_format(), self._layout)
        audio.sample_rate = self._rate
        audio.pts = self._written
        audio.time_base = Fraction(1, self._rate)
        self._written += data.shape[1]
        try:
            self._mux(self._stream.encode(audio))
        except OSError as error:
            self._abandon()
            raise output_error(self.address, error) from error
        except av.error.FFmpegError as error:
            self._abandon()
            raise OutputError(f"{self._codec} failed to write {self.address!r}: {error}") from error

    def _mux(self, packets: Any) -> None:
        assert self._file is not None
        for packet in packets:
            self._container.mux_one(packet)
        self._file.flush()

    def _pack(self, data: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """(channels, samples) in [-1, 1] -> (1, samples * channels) as the encoder takes it."""
        outside = int(np.count_nonzero(~(np.abs(data) <= 1)))
        if outside:
            if not self.clipped:
                log.warning("%s: samples outside [-1, 1] are clamped", self.address)
            self.clipped += outside
            data = np.clip(np.nan_to_num(data), -1, 1)
        if self._samples in SAMPLES:
            _, dtype, bits, shift = SAMPLES[self._samples]
            top = 2 ** (bits - 1)
            whole = np.minimum(np.rint(data * np.float64(top)), top - 1).astype(dtype)
            data = whole << shift
        return np.ascontiguousarray(data.T).reshape(1, -1)

    def _abandon(self) -> None:
        """Lets go of the file as it stands; PyAV writes no trailer into a file that is closed."""
        container, file = self._container, self._file
        self._container = self._stream = self._file = None
        if file is not None:
            try:
                file.close()
            except OSError:
                log.debug("%s: closing failed too", self.address)
        if container is not None:
            container.close()
