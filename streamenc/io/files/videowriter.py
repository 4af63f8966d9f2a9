"""Video files that a graph writes: images and the sound beside them, as MP4, MKV or WebM."""

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

from streamenc import options
from streamenc.errors import FitError, InputError, OutputError, UsageError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.graph.node import BlockingSink
from streamenc.io.files.output import open_output, output_error
from streamenc.io.media.pictures.pixels import BT709, EXACT, FULL_RANGE, LIMITED_RANGE

log = logging.getLogger(__name__)

# ending -> (container, codec of images, codec of sound).
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
PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower")
CRF = {"libx264": 20, "libvpx-vp9": 30}
KEYFRAME_SECONDS = 2
# A file that was left behind by a crash plays up to its last fragment or cluster. Only where `moov`
# waits for the first fragment does it tell by how much the encoders' delay shifts each track.
FRAGMENTS = {"movflags": "frag_keyframe+delay_moov+default_base_moof", "frag_duration": "1000000"}
CLUSTERS = {"cluster_time_limit": "1000"}
# A track that falls silent holds the other one's packets back for so many microseconds.
INTERLEAVING = {"max_interleave_delta": "1000000"}
# Until both tracks of a mux have begun, their frames wait, but no more of them than this.
MAX_HELD_BYTES = 64 * 2**20
# What lies back by more did not overlap: the stream began again (a film that is played in a loop).
MAX_OVERLAP_SECONDS = Fraction(1, 2)


class VideoFileSink(BlockingSink):
    """Writes images, or images and sound, to a file; its ending chooses what kind.

    Takes video, uint8 (3, images, height, width), or a mux of one such track and one of audio,
    float32 in [-1, 1] (what lies outside is clamped). In `.mp4`, `.mov` and `.mkv` they become
    H.264 and AAC, in `.webm` VP9 and Opus; the colours are BT.709 in limited range, and tagged so.
    Images of an odd width or height keep their size: H.264 has no half chroma, so theirs is not
    halved (yuv444p, which fewer players know).

    The earliest frame is at 0 in the file. Every image keeps its own time from there on, also
    where the rate varies (Matroska and WebM round it to 1 ms). Sound is counted by its samples from
    its own first pts, as players do. Where a frame is flagged and lies ahead, the image before
    stands, and silence fills the sound; what overlaps is cut off the sound, and such images are
    left out, and counted in `dropped`. A longer gap, and a jump back by more than 0.5 s, is closed
    up, in both tracks by the same time: `jumps` counts them.

    A file that was left behind by a crash plays up to about its last 2 s.

    crf        Quality of the images, 0 to 51 (VP9: 63), less is better; 20 (VP9: 30).
    preset     "ultrafast" to "slower", which makes smaller files.
    fps        Nominal images per second, for the encoder to plan with; 0 takes the stream's.
    max_gap_s  The longest gap to keep, in seconds.
    overwrite  Whether an existing file is replaced; otherwise it is an OutputError.
    """

    def __init__(
        self,
        address: str,
        crf: str | int | None = None,
        preset: str = "veryfast",
        fps: str | float = 0,
        max_gap_s: str | float = 60,
        overwrite: str | bool = True,
    ) -> None:
        self.address = address
        self.jumps = 0
        ending = PurePath(address).suffix.lower()
        if ending not in KINDS:
            raise UsageError(f"cannot write video as {address!r}: known are {', '.join(KINDS)}")
        self._kind, self._image_codec, self._sound_codec = KINDS[ending]
        best = CRF[self._image_codec] if crf is None else crf
        self.crf = options.integer("crf", best, 0, 51 if ending != ".webm" else 63)
        self.preset = options.choice("preset", preset, PRESETS)
        self.fps = options.number("fps", fps, 0, 1000)
        self.max_gap_seconds = options.number("max_gap_s", max_gap_s, 0, 86_400)
        self.overwrite = options.flag("overwrite", overwrite)
        self._file: BinaryIO | None = None
        self._container: Any = None
        self._tracks: list[_Images | _Sound] = []
        self._held: list[Frame] = []
        self._origin: Fraction | None = None  # seconds on the stream's clock
        self._shift = Fraction(0)  # by which the latest jump is closed up

    def open_blocking(self, info: StreamInfo) -> None:
        """Raises FitError where `info` is not what such a file holds, OutputError."""
        tracks = info.tracks or (info,)
        kinds = sorted(track.kind for track in tracks)
        if kinds not in (["video"], ["audio", "video"]):
            raise FitError(
                f"{self.address!r} takes video, or video and audio; got {info}: decode it first, "
                "or write sound into .wav, .flac or .ogg"
            )
        for track in tracks:
            _check(track)
        self._info = info
        self._file = open_output(self.address, self.overwrite)
        crash = FRAGMENTS if self._kind in ("mp4", "mov") else CLUSTERS
        try:
            self._container = av.open(
                self._file,
                "w",
                format=self._kind,
                container_options={"flush_packets": "1", **crash, **INTERLEAVING},
            )
            self._tracks = [self._track(track) for track in tracks]
            self._container.start_encoding()
            self._file.flush()
        except (av.error.FFmpegError, ValueError) as error:
            self._abandon()
            raise FitError(f"{self.address!r} cannot hold {info}: {error}") from error
        except OSError as error:
            self._abandon()
            raise output_error(self.address, error) from error

    def write_blocking(self, frame: Frame) -> None:
        """Raises OutputError where the disk is full, InputError for frames of another shape."""
        info = self._info.track(frame.track)
        shape, wanted = frame.data.shape, info.shape
        fits = len(shape) == len(wanted) and frame.data.dtype.name == info.dtype
        if not fits or any(n not in (None, m) for m, n in zip(shape, wanted, strict=True)):
            raise InputError(f"got {frame!r}; {self.address!r} was opened for {info}")
        if self._container is None:
            raise OutputError(f"{self.address!r} is closed")
        if self._origin is not None:
            self._encode(frame)
            return
        self._held.append(frame)
        begun = {held.track for held in self._held}
        size = sum(held.data.nbytes for held in self._held)
        if len(begun) == len(self._tracks) or size > MAX_HELD_BYTES:
            self._release()

    def close_blocking(self) -> None:
        if self._container is None:
            return
        assert self._file is not None
        try:
            self._release()
            for track in self._tracks:
                self._mux(track.flush())
            self._container.close()
            self._file.close()
        except OSError as error:
            raise output_error(self.address, error) from error
        finally:
            self._abandon()

    def _track(self, info: StreamInfo) -> _Images | _Sound:
        if info.kind == "audio":
            return _Sound(self._container, self._sound_codec, info)
        rate = Fraction(self.fps or info.rate or 25).limit_denominator(1001)
        quality = {"crf": str(self.crf), "g": str(max(1, round(KEYFRAME_SECONDS * rate)))}
        if self._image_codec == "libx264":
            quality["preset"] = self.preset
        else:
            speed = len(PRESETS) - PRESETS.index(self.preset)
            quality |= {"deadline": "realtime", "cpu-used": str(speed), "row-mt": "1"}
        return _Images(self._container, self._image_codec, info, rate, quality)

    def _release(self) -> None:
        """Begins the file with what was held back."""
        held, self._held = self._held, []
        if held:
            self._origin = min(f.pts * self._info.track(f.track).time_base for f in held)
        for frame in held:
            self._encode(frame)

    def _encode(self, frame: Frame) -> None:
        assert self._origin is not None
        track = self._tracks[frame.track]
        seconds = frame.pts * self._info.track(frame.track).time_base - self._origin
        if not track.started and seconds > Fraction(self.max_gap_seconds):
            track.shift = max(each.end for each in self._tracks) - seconds
            log.warning(
                "%s: a track begins %.0f s after the other; it is put beside it",
                self.address, float(seconds),
            )  # fmt: skip
        if track.started and self._jumps(track, frame, seconds + track.shift):
            if self._jumps(track, frame, seconds + self._shift):
                self._shift = max(each.end for each in self._tracks) - seconds
                self._note_jump(float(seconds + track.shift - track.end))
            track.shift = self._shift
        try:
            packets = track.encode(frame, seconds + track.shift)
        except (av.error.FFmpegError, ValueError) as error:
            self._abandon()
            raise OutputError(f"cannot encode {frame!r} into {self.address!r}: {error}") from error
        if track.skipped > self.dropped and not self.dropped:
            log.warning("%s: images that are not behind the last one are dropped", self.address)
        self.dropped = sum(each.skipped for each in self._tracks)
        self._mux(packets)

    def _note_jump(self, seconds: float) -> None:
        if not self.jumps:
            log.warning(
                "%s: the stream jumps by %.3f s; the file goes on without a gap",
                self.address, seconds,
            )  # fmt: skip
        self.jumps += 1
        self.remarks = [f"the stream jumped {self.jumps} times; the file has no gaps there"]

    def _jumps(self, track: _Images | _Sound, frame: Frame, seconds: Fraction) -> bool:
        if not (frame.discontinuity or track.is_dated):
            return False
        ahead = seconds - track.end
        gone = frame.discontinuity and ahead > Fraction(self.max_gap_seconds)
        return gone or ahead < -track.lasts - MAX_OVERLAP_SECONDS

    def _mux(self, packets: Iterable[Any]) -> None:
        assert self._file is not None
        try:
            for packet in packets:
                self._container.mux_one(packet)
            self._file.flush()
        except OSError as error:
            self._abandon()
            raise output_error(self.address, error) from error
        except av.error.FFmpegError as error:
            self._abandon()
            raise OutputError(f"cannot write {self.address!r}: {error}") from error

    def _abandon(self) -> None:
        """Lets go of the file as it stands; PyAV writes no trailer into a file that is closed."""
        container, file = self._container, self._file
        self._container = self._file = None
        self._held.clear()
        if file is not None:
            try:
                file.close()
            except OSError:
                log.debug("%s: closing failed too", self.address)
        if container is not None:
            container.close()


def _check(info: StreamInfo) -> None:
    """Raises FitError where no encoder takes such a track."""
    if info.kind == "audio" and (info.rate.denominator != 1 or info.shape[0] not in (1, 2)):
        raise FitError(f"sound beside images is mono or stereo at a whole rate; got {info}")
    if info.kind == "video" and (
        info.dtype != "uint8" or len(info.shape) != 4 or None in info.shape[2:]
    ):
        raise FitError(f"a video file holds uint8 images of one known size; got {info}")


class _Track:
    """One stream of the file; times are seconds in it.

    is_dated  Each frame is put at its own time; otherwise only the first one and flagged ones are.
    end       Where the next frame would follow on.
    lasts     How long the last image does; 0 for sound.
    shift     Added to the stream's times, to close jumps up.
    skipped   Images that were left out.
    """

    is_dated = False

    def __init__(self) -> None:
        self.started = False
        self.end = self.lasts = self.shift = Fraction(0)
        self.skipped = 0
        self._stream: Any = None

    def flush(self) -> list[Any]:
        return list(self._stream.encode(None))


class _Images(_Track):
    is_dated = True

    def __init__(
        self, container: Any, codec: str, info: StreamInfo, rate: Fraction, quality: dict[str, str]
    ) -> None:
        super().__init__()
        height, width = info.shape[2:]
        assert height and width
        whole = codec != "libx264" or not (height % 2 or width % 2)
        self._format = "yuv420p" if whole else "yuv444p"
        self._seconds_per_tick = info.time_base
        # Fine enough for an offset to the sound, and no finer than encoders and containers count.
        ticks = info.time_base.denominator
        while ticks < 90_000:
            ticks *= 2
        self._time_base = Fraction(1, min(ticks, 1_000_000))
        self._stream = container.add_stream(
            codec, rate=rate, width=width, height=height, pix_fmt=self._format, options=quality
        )
        context = self._stream.codec_context
        context.time_base = self._time_base
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range = LIMITED_RANGE
        self._reformatter = VideoReformatter()
        self._next = 0
        self._durations: dict[int, int] = {}  # of the images within the encoder, by pts

    def encode(self, frame: Frame, seconds: Fraction) -> list[Any]:
        """Packets of a frame that begins at `seconds`."""
        packets: list[Any] = []
        count = frame.data.shape[1]
        lasts = frame.duration * self._seconds_per_tick / max(1, count)
        for index in range(count):
            start = seconds + index * lasts
            pts = round(start / self._time_base)
            if pts < self._next:
                self.skipped += 1
                continue
            self.started, self._next = True, pts + 1
            self.lasts, self.end = lasts, start + lasts
            pixels = np.ascontiguousarray(frame.data[:, index].transpose(1, 2, 0))
            image = self._reformatter.reformat(
                av.VideoFrame.from_ndarray(pixels, "rgb24"),
                format=self._format,
                dst_colorspace=BT709,
                src_color_range=FULL_RANGE,
                dst_color_range=LIMITED_RANGE,
                interpolation=EXACT,
            )
            image.pts, image.time_base = pts, self._time_base
            self._durations[pts] = round(lasts / self._time_base)
            packets += self._encoded(image)
        return packets

    def flush(self) -> list[Any]:
        return self._encoded(None)

    def _encoded(self, image: Any) -> list[Any]:
        packets = list(self._stream.encode(image))
        for packet in packets:
            # Encoders put the nominal duration there, and the file would end too early or too late.
            packet.duration = self._durations.pop(packet.pts, packet.duration)
        return packets


class _Sound(_Track):
    def __init__(self, container: Any, codec: str, info: StreamInfo) -> None:
        super().__init__()
        self._rate = int(info.rate)
        self._layout = "mono" if info.shape[0] == 1 else "stereo"
        coded = self._rate if self._rate in RATES[codec] else 48_000
        self._stream = container.add_stream(codec, rate=coded, layout=self._layout)
        self._written = 0
        self._overlap = 0  # samples to come that are there already

    def encode(self, frame: Frame, seconds: Fraction) -> list[Any]:
        """Packets of a frame that begins at `seconds`."""
        data = np.clip(frame.data, -1, 1)
        packets = []
        if frame.discontinuity or not self.started:
            missing = round(seconds * self._rate) - self._written
            packets = self._silence(missing)
            self._overlap = max(0, -missing)
        self.started = True
        packets += self._samples(data[:, self._overlap :])
        self._overlap = max(0, self._overlap - data.shape[1])
        self.end = Fraction(self._written, self._rate)
        return packets

    def _silence(self, samples: int) -> list[Any]:
        packets = []
        channels = 1 if self._layout == "mono" else 2
        while samples > 0:
            piece = min(samples, self._rate)
            packets += self._samples(np.zeros((channels, piece), np.float32))
            samples -= piece
        return packets

    def _samples(self, data: np.ndarray[Any, Any]) -> list[Any]:
        if not data.shape[1]:
            return []
        audio = av.AudioFrame.from_ndarray(np.ascontiguousarray(data), "fltp", self._layout)
        audio.sample_rate = self._rate
        audio.pts, audio.time_base = self._written, Fraction(1, self._rate)
        self._written += data.shape[1]
        return list(self._stream.encode(audio))
