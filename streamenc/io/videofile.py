"""Video files that a graph writes: pictures and the sound beside them, as MP4, MKV or WebM."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from fractions import Fraction
from pathlib import PurePath
from typing import Any, BinaryIO

import av
import av.error
import numpy as np
from av.video.reformatter import VideoReformatter

from streamenc.errors import FitError, InputError, OutputError, UsageError
from streamenc.frames import Frame, StreamInfo
from streamenc.io import options
from streamenc.io.files import open_output, output_error
from streamenc.io.pixels import BT709, EXACT, FULL_RANGE, LIMITED_RANGE
from streamenc.node import BlockingSink

log = logging.getLogger(__name__)

# ending -> (container, codec of pictures, codec of sound).
KINDS = {
    ".mp4": ("mp4", "libx264", "aac"),
    ".mov": ("mov", "libx264", "aac"),
    ".mkv": ("matroska", "libx264", "aac"),
    ".webm": ("webm", "libvpx-vp9", "libopus"),
}
RATES = {
    "aac": (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000),
    "libopus": (8000, 12000, 16000, 24000, 48000),
}
# A file that was left behind by a crash plays up to its last fragment, of so many seconds.
FRAGMENT_SECONDS = 2
FRAGMENTS = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower")


class VideoFileSink(BlockingSink):
    """Writes pictures, or pictures and sound, to a file; its ending chooses what kind.

    Takes video, uint8 (3, pictures, height, width), or a mux of one such track and one of audio. In
    `.mp4`, `.mov` and `.mkv` they become H.264 and AAC, in `.webm` VP9 and Opus; the colours are
    tagged as BT.709, limited range. Pictures of an odd width or height keep all their chroma, as
    H.264 has no half ones.

    The first frame of the stream is at 0 in the file. From there on every picture keeps its own
    time, also where the rate varies. Sound is counted by its samples, as players do; where a frame
    is flagged and lies ahead, silence fills the gap, and where it lies behind, it goes on without.
    A file that was left behind by a crash plays up to its last 2 s.

    crf        Quality of the pictures, 0 to 51, less is better (VP9: to 63).
    preset     Of H.264: "ultrafast" to "slower", which makes smaller files.
    max_gap_s  The longest gap in the sound to fill with silence.
    overwrite  Whether an existing file is replaced; otherwise it is an OutputError.

    moved  Pictures that had to be moved behind the one before, so far.
    """

    def __init__(
        self,
        address: str,
        crf: str | int = 20,
        preset: str = "veryfast",
        max_gap_s: str | float = 60,
        overwrite: str | bool = True,
    ) -> None:
        self.address = address
        ending = PurePath(address).suffix.lower()
        if ending not in KINDS:
            raise UsageError(f"cannot write video as {address!r}: known are {', '.join(KINDS)}")
        self._kind, self._picture_codec, self._sound_codec = KINDS[ending]
        self.crf = options.integer("crf", crf, 0, 51)
        self.preset = options.choice("preset", preset, PRESETS)
        self.max_gap_seconds = options.number("max_gap_s", max_gap_s, 0, 86_400)
        self.overwrite = options.flag("overwrite", overwrite)
        self._file: BinaryIO | None = None
        self._container: Any = None
        self._tracks: list[_Pictures | _Sound] = []
        self._origin: Fraction | None = None  # seconds on the stream's clock

    @property
    def moved(self) -> int:
        return sum(track.moved for track in self._tracks if isinstance(track, _Pictures))

    def open_blocking(self, info: StreamInfo) -> None:
        """Raises FitError where `info` is not what such a file holds, OutputError."""
        tracks = info.tracks or (info,)
        kinds = sorted(track.kind for track in tracks)
        if kinds not in (["video"], ["audio", "video"]):
            raise FitError(
                f"{self.address!r} takes video, or video and audio; got {info}: decode it first, "
                "or write sound into .wav, .flac or .ogg"
            )
        self._info = info
        self._file = open_output(self.address, self.overwrite)
        fragments = FRAGMENTS if self._kind in ("mp4", "mov") else {}
        try:
            self._container = av.open(
                self._file,
                "w",
                format=self._kind,
                container_options={"flush_packets": "1", **fragments},
            )
            self._tracks = [self._track(track) for track in tracks]
            self._container.start_encoding()
            self._file.flush()
        except OSError as error:
            self._abandon()
            raise output_error(self.address, error) from error
        except (av.error.FFmpegError, ValueError) as error:
            self._abandon()
            raise FitError(f"{self.address!r} cannot hold {info}: {error}") from error

    def write_blocking(self, frame: Frame) -> None:
        """Raises OutputError where the disk is full, InputError for frames of another shape."""
        info = self._info.track(frame.track)
        for size, wanted in zip(frame.data.shape, info.shape, strict=False):
            if wanted not in (None, size) or frame.data.ndim != len(info.shape):
                raise InputError(f"got {frame!r}; {self.address!r} was opened for {info}")
        if self._container is None:
            raise OutputError(f"{self.address!r} is closed")
        seconds = frame.pts * info.time_base
        if self._origin is None:
            self._origin = seconds
        self._mux(self._encoding(self._tracks[frame.track], frame, seconds - self._origin))

    def close_blocking(self) -> None:
        if self._container is None:
            return
        assert self._file is not None
        try:
            for track in self._tracks:
                self._mux(track.flush())
            self._container.close()
            self._file.close()
        except OSError as error:
            raise output_error(self.address, error) from error
        finally:
            self._abandon()

    def _track(self, info: StreamInfo) -> _Pictures | _Sound:
        if info.kind == "audio":
            return _Sound(self._container, self._sound_codec, info, self.max_gap_seconds)
        quality = {"crf": str(self.crf), "g": str(round(FRAGMENT_SECONDS * info.rate) or 1)}
        if self._picture_codec == "libx264":
            quality["preset"] = self.preset
        else:
            quality |= {"deadline": "realtime", "cpu-used": "5"}
        return _Pictures(self._container, self._picture_codec, info, quality)

    def _encoding(self, track: _Pictures | _Sound, frame: Frame, seconds: Fraction) -> list[Any]:
        try:
            return track.encode(frame, seconds)
        except (av.error.FFmpegError, ValueError) as error:
            self._abandon()
            raise OutputError(f"cannot encode {frame!r} into {self.address!r}: {error}") from error

    def _mux(self, packets: Iterable[Any]) -> None:
        assert self._file is not None
        try:
            for packet in packets:
                self._container.mux_one(packet)
            self._file.flush()
        except OSError as error:
            self._abandon()
            raise output_error(self.address, error) from error

    def _abandon(self) -> None:
        """Lets go of the file as it stands; PyAV writes no trailer into a file that is closed."""
        container, file = self._container, self._file
        self._container = self._file = None
        if file is not None:
            try:
                file.close()
            except OSError:
                log.debug("%s: closing failed too", self.address)
        if container is not None:
            container.close()


class _Pictures:
    """The track of pictures. moved: those that had to go behind the one before."""

    def __init__(
        self, container: Any, codec: str, info: StreamInfo, quality: dict[str, str]
    ) -> None:
        height, width = info.shape[2], info.shape[3]
        assert height and width
        self._format = "yuv444p" if height % 2 or width % 2 else "yuv420p"
        self._seconds_per_tick = info.time_base
        # Encoders refuse finer clocks than a 32-bit count of ticks in a second can say.
        self._time_base = max(info.time_base, Fraction(1, 1_000_000))
        rate = info.rate.limit_denominator(1001)
        self._stream = container.add_stream(
            codec, rate=rate, width=width, height=height, pix_fmt=self._format, options=quality
        )
        context = self._stream.codec_context
        context.time_base = self._time_base
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range = LIMITED_RANGE
        self._reformatter = VideoReformatter()
        self._next = 0
        self.moved = 0

    def encode(self, frame: Frame, seconds: Fraction) -> list[Any]:
        """Packets of a frame that begins `seconds` after the film."""
        packets = []
        pictures = frame.data.shape[1]
        lasts = frame.duration * self._seconds_per_tick / max(1, pictures)
        for index in range(pictures):
            pts = round((seconds + index * lasts) / self._time_base)
            if pts < self._next:
                self.moved += 1
                pts = self._next
            self._next = pts + 1
            pixels = np.ascontiguousarray(frame.data[:, index].transpose(1, 2, 0))
            picture = self._reformatter.reformat(
                av.VideoFrame.from_ndarray(pixels, "rgb24"),
                format=self._format,
                dst_colorspace=BT709,
                src_color_range=FULL_RANGE,
                dst_color_range=LIMITED_RANGE,
                interpolation=EXACT,
            )
            picture.pts, picture.time_base = pts, self._time_base
            packets += self._stream.encode(picture)
        return packets

    def flush(self) -> list[Any]:
        return list(self._stream.encode(None))


class _Sound:
    """The track of sound."""

    def __init__(
        self, container: Any, codec: str, info: StreamInfo, max_gap_seconds: float
    ) -> None:
        channels, rate = info.shape[0], info.rate
        if rate.denominator != 1 or channels not in (1, 2):
            raise FitError(f"sound beside pictures is mono or stereo at a whole rate; got {info}")
        self._rate, self._layout = int(rate), "mono" if channels == 1 else "stereo"
        self._max_gap_seconds = max_gap_seconds
        coded = self._rate if self._rate in RATES[codec] else 48_000
        self._stream = container.add_stream(codec, rate=coded, layout=self._layout)
        self._written: int | None = None

    def encode(self, frame: Frame, seconds: Fraction) -> list[Any]:
        """Packets of a frame that begins `seconds` after the film."""
        data = np.ascontiguousarray(np.clip(frame.data, -1, 1), np.float32)
        due = round(seconds * self._rate)
        if self._written is None:
            self._written = max(0, due)
        packets = []
        missing = due - self._written
        if frame.discontinuity and 0 < missing <= self._max_gap_seconds * self._rate:
            packets = self._samples(np.zeros((len(data), missing), np.float32))
        return packets + self._samples(data)

    def flush(self) -> list[Any]:
        return list(self._stream.encode(None))

    def _samples(self, data: np.ndarray[Any, Any]) -> list[Any]:
        assert self._written is not None
        packets = []
        for start in range(0, data.shape[1], self._rate):
            block = np.ascontiguousarray(data[:, start : start + self._rate])
            audio = av.AudioFrame.from_ndarray(block, "fltp", self._layout)
            audio.sample_rate = self._rate
            audio.pts, audio.time_base = self._written, Fraction(1, self._rate)
            self._written += block.shape[1]
            packets += self._stream.encode(audio)
        return packets
