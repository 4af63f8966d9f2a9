"""Video files: colours, sizes, times and sync as another decoder sees them; what a crash leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from streamenc.errors import FitError, InputError, OutputError, UsageError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.io import sink as sink_of
from streamenc.io.files.videowriter import VideoFileSink
from tests.support.clips import encoded
from tests.support.disk import fill, tiny_disk
from tests.support.drive import audio_info, video_info

TICKS = 90_000
NAMES = ["a.mp4", "a.mov", "a.mkv", "a.webm"]
FAST = {"preset": "ultrafast"}
LEVELS = np.array(
    [[255, 0, 0], [0, 255, 0], [0, 0, 255], [0, 0, 0], [255, 255, 255], [90, 130, 40]]
)


def flat(level: int, size: tuple[int, int] = (48, 64)) -> np.ndarray[Any, Any]:
    """One grey image, (3, 1, height, width)."""
    return np.full((3, 1, *size), level, np.uint8)


def mux_of(video: StreamInfo, audio: StreamInfo) -> StreamInfo:
    return StreamInfo("mux", Fraction(1, 14_400_000), Fraction(0), (), "", tracks=(video, audio))


def write(path: Path, info: StreamInfo, frames: Iterable[Frame], **options: Any) -> VideoFileSink:
    codec = {".webm": "libvpx-vp9"}.get(path.suffix, "libx264")
    encoded(codec)
    sink = VideoFileSink(str(path), **{**FAST, **options})
    sink.open_blocking(info)
    for frame in frames:
        sink.write_blocking(frame)
    sink.close_blocking()
    sink.close_blocking()
    return sink


def plane_of(image: Any, index: int = 0) -> np.ndarray[Any, Any]:
    """(height, width) of one plane, without what lies behind its lines."""
    plane = image.planes[index]
    rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
    return rows[: plane.height, : plane.width].copy()


class Film:
    """What PyAV alone reads: seconds and images, and the sound as it lies on the same clock."""

    def __init__(self, path: Path) -> None:
        with av.open(str(path)) as container:
            self.images = list(container.decode(video=0))
        self.seconds = [float(p.pts * p.time_base) for p in self.images]
        self.planes = [plane_of(p) for p in self.images]
        self.sound, self.rate = np.zeros(0), 0
        with av.open(str(path)) as container:
            self.ends_seconds = (container.duration or 0) / 1e6
            if container.streams.audio:
                for frame in container.decode(audio=0):
                    self.rate = frame.sample_rate
                    at = round(float(frame.pts * frame.time_base) * self.rate)
                    data = frame.to_ndarray()[0]
                    if len(self.sound) < at + len(data):
                        self.sound = np.pad(self.sound, (0, at + len(data) - len(self.sound)))
                    self.sound[at : at + len(data)] = data

    @property
    def levels(self) -> list[float]:
        return [float(plane.mean()) for plane in self.planes]

    @property
    def flash_seconds(self) -> float:
        return self.seconds[int(np.argmax(self.levels))]

    @property
    def click_seconds(self) -> float:
        """Where a short tone begins."""
        return float(np.flatnonzero(np.abs(self.sound) > 0.25)[0] / self.rate)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.webm"])
@pytest.mark.parametrize("size", [(96, 192), (95, 191)])
def test_colours_are_bt709_and_tagged(tmp_path: Path, name: str, size: tuple[int, int]) -> None:
    data = np.repeat(LEVELS.T[:, None, None, :], 32, axis=3)[..., : size[1]].repeat(size[0], 2)
    frames = [Frame(data.astype(np.uint8), 40 * i, 40, i) for i in range(3)]
    write(tmp_path / name, video_info(*size), frames, crf=5)
    first = Film(tmp_path / name).images[0]
    assert (first.height, first.width) == size
    assert (first.colorspace, first.color_primaries, first.color_trc) == (1, 1, 1)
    assert first.color_range == 1
    # The definition: luma from the primaries of BT.709, chroma from differences to it.
    red, green, blue = LEVELS.T / 255
    luma = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    wanted = (
        16 + 219 * luma,
        128 + 112 * (blue - luma) / (1 - 0.0722),
        128 + 112 * (red - luma) / (1 - 0.2126),
    )
    for index, values in enumerate(wanted):
        plane = plane_of(first, index)
        middle = [round((16 + 32 * i) * plane.shape[1] / size[1]) for i in range(6)]
        np.testing.assert_allclose(plane[plane.shape[0] // 2, middle], values, atol=2)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(48, 64), (47, 64), (48, 63), (33, 17)])
def test_sizes_stay_what_they_are(tmp_path: Path, name: str, size: tuple[int, int]) -> None:
    data = np.random.default_rng(0).integers(40, 210, (3, 1, *size), np.uint8)
    data = np.sort(data, axis=3)  # a gradient, which a codec holds
    write(tmp_path / name, video_info(*size), [Frame(data, 0, 40, 0)], crf=1)
    (image,) = Film(tmp_path / name).images
    assert (image.height, image.width) == size
    red, green, blue = data[:, 0].astype(float) / 255
    luma = 16 + 219 * (0.2126 * red + 0.7152 * green + 0.0722 * blue)
    assert np.abs(plane_of(image) - luma).mean() < 2


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ticks", [1000, 30_000, 1_000_000_000])
def test_every_image_keeps_its_time(tmp_path: Path, name: str, ticks: int) -> None:
    """Irregular, from a beginning far from 0; the last one's duration counts."""
    generator = np.random.default_rng(ticks)
    durations = generator.integers(ticks // 100, ticks // 5, 40)
    starts = 10**12 + np.concatenate(([0], np.cumsum(durations)))
    frames = [Frame(flat(i), int(starts[i]), int(durations[i]), i) for i in range(len(durations))]
    write(tmp_path / name, video_info(48, 64, 25, ticks), frames)
    film = Film(tmp_path / name)
    wanted = (starts - starts[0]) / ticks
    rounding = 0.5e-3 if name in ("a.mkv", "a.webm") else 1e-6
    np.testing.assert_allclose(film.seconds, wanted[:-1], atol=rounding + 1e-9)
    assert film.ends_seconds == pytest.approx(wanted[-1], abs=2e-3)


def test_how_images_are_packed_into_frames_does_not_matter(tmp_path: Path) -> None:
    x = np.arange(64) + 3 * np.arange(24)[:, None, None] + np.arange(48)[:, None]
    clip = np.stack([x % 251, x // 2 % 251, 250 - x % 251]).astype(np.uint8)  # (3, 24, 48, 64)
    packed = np.ascontiguousarray(clip.transpose(1, 2, 3, 0)).transpose(3, 0, 1, 2)
    info = video_info(48, 64, 25, 1000)
    files = []
    for video, sizes in ((clip, [1] * 24), (packed, [1, 8, 8, 7]), (clip, [0, 5, 0, 19])):
        frames, at = [], 0
        for size in sizes:
            frames.append(Frame(video[:, at : at + size], 40 * at, 40 * size, len(frames)))
            at += size
        write(tmp_path / "a.mkv", info, frames)
        film = Film(tmp_path / "a.mkv")
        files.append((film.seconds, np.stack(film.planes)))
    assert len(files[0][0]) == 24
    for seconds, planes in files[1:]:
        assert seconds == files[0][0]
        np.testing.assert_array_equal(planes, files[0][1])


def flash_and_click(
    rate: int, *, channels: int = 1, video_starts: float = 0.0, audio_starts: float = 0.0
) -> tuple[StreamInfo, list[Frame]]:
    """A mux of 2.4 s in which the image flashes and a tone begins at 1.2 s of the stream's clock,
    frames in the order of their times; its clock begins at 100 s."""
    info = mux_of(video_info(48, 64, 25, TICKS), audio_info(rate, channels))
    frames = []
    for index in range(round(25 * video_starts), 60):
        level = 255 if index == 30 else 60
        frames.append(Frame(flat(level), 100 * TICKS + 3600 * index, 3600, index))
    tone = 0.8 * np.sin(2 * np.pi * 1000 * np.arange(rate // 25) / rate)
    for index in range(round(25 * audio_starts), 60):
        on = 30 <= index < 33
        data = np.tile((tone if on else 0 * tone).astype(np.float32), (channels, 1))
        pts = 100 * rate + len(tone) * index
        frames.append(Frame(data, pts, len(tone), index, track=1))
    return info, sorted(frames, key=lambda f: f.pts * info.track(f.track).time_base)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "rate, channels, video_starts, audio_starts",
    [(48_000, 2, 0, 0), (16_000, 1, 0, 0.32), (24_000, 1, 0.4, 0), (22_000, 1, 0.04, 0)],
)
def test_sound_and_images_are_in_sync(
    tmp_path: Path, name: str, rate: int, channels: int, video_starts: float, audio_starts: float
) -> None:
    """At a rate that no encoder knows, too; and where one of both begins later."""
    info, frames = flash_and_click(
        rate, channels=channels, video_starts=video_starts, audio_starts=audio_starts
    )
    write(tmp_path / name, info, frames)
    film = Film(tmp_path / name)
    assert film.seconds[0] == pytest.approx(video_starts, abs=0.001)
    assert film.flash_seconds == pytest.approx(1.2, abs=0.001)
    assert film.click_seconds == pytest.approx(1.2, abs=0.004)
    assert film.seconds[-1] == pytest.approx(59 / 25, abs=0.001)
    assert len(film.sound) / film.rate == pytest.approx(2.4, abs=0.05)


@pytest.mark.parametrize("first", [0, 1])
def test_a_track_that_comes_late_but_is_earlier_is_in_sync(tmp_path: Path, first: int) -> None:
    info, frames = flash_and_click(16_000, video_starts=0.04 * first)
    late = [frame for frame in frames if frame.track != first]
    frames = [frame for frame in frames if frame.track == first]
    write(tmp_path / "a.mp4", info, [*frames[:40], *late, *frames[40:]])
    film = Film(tmp_path / "a.mp4")
    assert film.flash_seconds == pytest.approx(1.2, abs=0.001)
    assert film.click_seconds == pytest.approx(1.2, abs=0.004)


@pytest.mark.parametrize("silent", [0, 1])
def test_a_track_that_never_comes_holds_nothing_back(tmp_path: Path, silent: int) -> None:
    info, frames = flash_and_click(16_000)
    write(tmp_path / "a.mp4", info, [frame for frame in frames if frame.track != silent])
    film = Film(tmp_path / "a.mp4")
    if silent:
        assert len(film.images) == 60 and film.flash_seconds == pytest.approx(1.2)
    else:
        assert film.click_seconds == pytest.approx(1.2, abs=0.004)


def test_what_waits_for_the_other_track_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamenc.io.files.videowriter.MAX_HELD_BYTES", 20_000)
    info, frames = flash_and_click(16_000)
    images = [frame for frame in frames if not frame.track]
    sink = VideoFileSink(str(tmp_path / "a.mp4"), **FAST)
    sink.open_blocking(info)
    for frame in images[:40]:
        sink.write_blocking(frame)
        assert sum(held.data.nbytes for held in sink._held) <= 20_000
    sink.close_blocking()
    assert len(Film(tmp_path / "a.mp4").images) == 40


def moved(frames: Sequence[Frame], info: StreamInfo, seconds: float, seq: int) -> list[Frame]:
    """From image or block number `seq` on, this much later, flagged."""
    return [
        f.with_(
            pts=f.pts + round(seconds / info.track(f.track).time_base), discontinuity=f.seq == seq
        )
        if f.seq >= seq
        else f
        for f in frames
    ]


def test_gaps_keep_their_time(tmp_path: Path) -> None:
    info, frames = flash_and_click(16_000)
    write(tmp_path / "a.mp4", info, moved(frames, info, 3.0, 20))
    film = Film(tmp_path / "a.mp4")
    assert film.flash_seconds == pytest.approx(4.2, abs=0.001)
    assert film.click_seconds == pytest.approx(4.2, abs=0.004)
    assert film.seconds[20] - film.seconds[19] == pytest.approx(3.04, abs=0.001)
    assert np.abs(film.sound[16_000 : 4 * 16_000]).max() < 1e-3


@pytest.mark.parametrize("jump", [-50.0, 500.0])
def test_jumps_are_closed_up_in_both_tracks(
    tmp_path: Path, jump: float, caplog: pytest.LogCaptureFixture
) -> None:
    """A film in a loop, or a clock that was set."""
    info, frames = flash_and_click(16_000)
    sink = write(tmp_path / "a.mkv", info, moved(frames, info, jump, 20))
    film = Film(tmp_path / "a.mkv")
    assert len(film.images) == 60 and not sink.dropped
    assert film.flash_seconds == pytest.approx(1.2, abs=0.001)
    assert film.click_seconds == pytest.approx(1.2, abs=0.004)
    assert ["jumps by" in record.getMessage() for record in caplog.records] == [True]


def test_many_jumps_are_told_once_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    info, frames = flash_and_click(16_000)
    for at in (20, 30, 40):
        frames = moved(frames, info, 500.0, at)
    sink = write(tmp_path / "a.mkv", info, frames)
    assert len(caplog.records) == 1 and sink.jumps == 3
    assert sink.remarks == ["the stream jumped 3 times; the file has no gaps there"]


def test_what_overlaps_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    info, frames = flash_and_click(16_000)
    sink = write(tmp_path / "a.mkv", info, moved(frames, info, -0.2, 20))
    film = Film(tmp_path / "a.mkv")
    assert sink.dropped == 5 and len(film.images) == 55
    assert film.flash_seconds == pytest.approx(1.0, abs=0.001)
    assert film.click_seconds == pytest.approx(1.0, abs=0.004)
    assert ["dropped" in record.getMessage() for record in caplog.records] == [True]


WRITE_FOREVER = """
import itertools, sys
from fractions import Fraction
import numpy as np
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.io.files.videowriter import VideoFileSink

base = Fraction(1, 16000)
video = StreamInfo("video", base, Fraction(25), (3, None, 48, 64), "uint8")
audio = StreamInfo("audio", base, Fraction(16000), (1, None), "float32")
sink = VideoFileSink(sys.argv[1])
sink.open_blocking(StreamInfo("mux", base, Fraction(0), (), "", tracks=(video, audio)))
for seq in itertools.count():
    image = np.full((3, 1, 48, 64), seq % 200, np.uint8)
    sink.write_blocking(Frame(image, 640 * seq, 640, seq))
    sink.write_blocking(Frame(np.zeros((1, 640), np.float32), 640 * seq, 640, seq, track=1))
    print(seq, flush=True)
"""


@pytest.mark.parametrize("name", NAMES)
def test_a_killed_writer_leaves_a_file_that_plays(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    encoded("libvpx-vp9" if name == "a.webm" else "libx264")
    command = [sys.executable, "-c", WRITE_FOREVER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        for line in writer.stdout:
            if int(line) == 150:
                break
        os.kill(writer.pid, signal.SIGKILL)
        acknowledged = max([150, *map(int, writer.stdout.read().splitlines())])
    film = Film(path)
    assert len(film.images) >= acknowledged - 2.5 * 25
    assert film.seconds == pytest.approx([i / 25 for i in range(len(film.images))], abs=1e-3)
    assert len(film.sound) / film.rate >= acknowledged / 25 - 2.5


def test_a_full_disk_is_said_and_what_was_written_plays(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    with tiny_disk(tmp_path / "disk") as disk:
        sink = VideoFileSink(str(disk / "a.mkv"), crf=30, **FAST)
        sink.open_blocking(video_info(48, 64))
        with pytest.raises(OutputError, match="disk is full"):
            for index in range(500):
                data = generator.integers(0, 256, (3, 1, 48, 64), np.uint8)
                sink.write_blocking(Frame(data, 40 * index, 40, index))
        with pytest.raises(OutputError, match="closed"):
            sink.write_blocking(Frame(flat(0), 0, 40, 0))
        sink.close_blocking()
        assert len(Film(disk / "a.mkv").images) > 5


def test_a_disk_that_fills_up_at_the_end_is_said(tmp_path: Path) -> None:
    with tiny_disk(tmp_path / "disk") as disk:
        sink = VideoFileSink(str(disk / "a.mp4"))
        sink.open_blocking(video_info(48, 64))
        fill(disk)
        with pytest.raises(OutputError, match="disk is full"):
            # What waits in the encoder goes out at the end.
            for index in range(30):
                data = np.random.default_rng(index).integers(0, 256, (3, 1, 48, 64), np.uint8)
                sink.write_blocking(Frame(data, 40 * index, 40, index))
            sink.close_blocking()
        sink.close_blocking()


def test_what_does_not_fit_is_refused_before_there_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    video, audio = video_info(48, 64), audio_info(16_000)
    codes = StreamInfo("codes", Fraction(1, 75), Fraction(75), (2, None), "uint16", "m", 1024)
    floats = StreamInfo("video", Fraction(1, 25), Fraction(25), (3, None, 8, 8), "float32")
    for info, words in (
        (codes, "decode it first"),
        (audio, "write sound into .wav"),
        (mux_of(video, video), "takes video, or video and audio"),
        (mux_of(video, audio_info(16_000, 6)), "mono or stereo"),
        (floats, "uint8 images"),
    ):
        with pytest.raises(FitError, match=words):
            VideoFileSink(str(path)).open_blocking(info)
        assert not path.exists()
    sink = VideoFileSink(str(path))
    sink.open_blocking(mux_of(video, audio))
    for wrong in (
        Frame(flat(0, (48, 66)), 0, 40, 0),
        Frame(flat(0)[:, 0], 0, 40, 0),
        Frame(flat(0).astype(np.float32), 0, 40, 0),
        Frame(np.zeros((2, 5), np.float32), 0, 5, 0, track=1),
    ):
        with pytest.raises(InputError, match="was opened for"):
            sink.write_blocking(wrong)
    sink.close_blocking()


def test_files_and_options_are_checked(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="mkdir"):
        VideoFileSink(str(tmp_path / "no" / "a.mp4")).open_blocking(video_info(48, 64))
    (tmp_path / "a.mp4").write_bytes(b"precious")
    with pytest.raises(OutputError, match="overwrite"):
        VideoFileSink(str(tmp_path / "a.mp4"), overwrite="false").open_blocking(video_info(48, 64))
    assert (tmp_path / "a.mp4").read_bytes() == b"precious"
    for option, value in (
        ("crf", "52"),
        ("preset", "warp"),
        ("fps", "-1"),
        ("max_gap_s", "soon"),
        ("overwrite", "perhaps"),
    ):
        with pytest.raises(UsageError, match=option):
            VideoFileSink("a.mp4", **{option: value})
    with pytest.raises(UsageError, match=r"a\.avi"):
        VideoFileSink("a.avi")
    VideoFileSink("a.mp4").close_blocking()


@pytest.mark.parametrize("name", NAMES)
def test_endings_find_it(name: str) -> None:
    sink = sink_of(f"{name}?crf=30&preset=fast&fps=10")
    assert isinstance(sink, VideoFileSink) and (sink.crf, sink.fps) == (30, 10)


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_stream_closes_in_peace(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, video_info(48, 64), [])
    write(tmp_path / name, mux_of(video_info(48, 64), audio_info(16_000)), [])
