"""Video files: which image comes when, in which colours, and what becomes of damaged ones."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from streamenc.errors import MediaError, UsageError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.io.media.videosource import VideoSource
from tests.support.clips import FPS, images, numbers, write_clip
from tests.support.media import write_wav


def play(address: str | Path, **options: Any) -> tuple[StreamInfo, list[Frame], VideoSource]:
    source = VideoSource(str(address), **options)
    try:
        info = source.open_blocking()
        return info, list(iter(source.read, None)), source
    finally:
        source.close_blocking()
        source.close_blocking()


def seconds(info: StreamInfo, frames: list[Frame]) -> list[float]:
    """Presentation times, from the first."""
    return [float((frame.pts - frames[0].pts) * info.time_base) for frame in frames]


def flagged(frames: list[Frame]) -> list[int]:
    return [index for index, frame in enumerate(frames) if frame.discontinuity]


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mp4", "libx264"),
        ("a.mkv", "libx264"),
        ("a.ts", "libx264"),
        ("a.webm", "libvpx-vp9"),
        ("a.mp4", "libsvtav1"),
        ("a.mkv", "ffv1"),
        ("a.avi", "mpeg4"),
    ],
)
def test_every_image_comes_in_order_at_its_time(tmp_path: Path, name: str, codec: str) -> None:
    info, frames, source = play(write_clip(tmp_path / name, codec))
    assert numbers(frames) == list(range(50))
    assert (info.kind, info.rate, info.dtype) == ("video", FPS, "uint8")
    assert info.shape == (3, None, 112, 192)
    assert all(frame.data.shape == (3, 1, 112, 192) for frame in frames)
    assert all(frame.data.dtype == np.uint8 for frame in frames)
    assert seconds(info, frames) == pytest.approx(np.arange(50) / FPS, abs=0.001)
    assert [frame.seq for frame in frames] == list(range(50))
    assert all(type(frame.pts) is int and type(frame.duration) is int for frame in frames)
    ends = [frame.pts + frame.duration for frame in frames]
    assert ends[:-1] == [frame.pts for frame in frames[1:]]
    assert frames[-1].duration * info.time_base == pytest.approx(1 / FPS, abs=0.001)
    assert not flagged(frames) and source.lost == 0 and not source.live
    assert source.duration_seconds == pytest.approx(2, abs=0.1)


def test_lossless_rgb_is_exact(tmp_path: Path) -> None:
    made = list(images(3))
    _, frames, _ = play(write_clip(tmp_path / "a.mkv", "ffv1", 3, pix_fmt="bgr0"))
    for frame, image in zip(frames, made, strict=True):
        np.testing.assert_array_equal(frame.data[:, 0], image)


def test_irregular_times_are_kept_and_are_no_holes(tmp_path: Path) -> None:
    steps = [0.033, 0.05, 0.04, 0.033, 0.1, 0.033, 0.066, 0.04] * 5
    times = np.cumsum([0.0, *steps])
    info, frames, _ = play(
        write_clip(tmp_path / "a.mkv", count=len(times), times=lambda n: float(times[n]))
    )
    assert numbers(frames) == list(range(len(times)))
    assert seconds(info, frames) == pytest.approx(times, abs=0.0011)
    assert [frame.duration for frame in frames[:-1]] == [
        after.pts - frame.pts for frame, after in zip(frames, frames[1:], strict=False)
    ]
    assert not flagged(frames)


def test_a_hole_is_flagged(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mkv", times=lambda n: n / FPS + (3 if n >= 20 else 0))
    info, frames, source = play(clip)
    assert numbers(frames) == list(range(50))
    assert flagged(frames) == [20]
    assert (frames[20].pts - frames[19].pts) * info.time_base == pytest.approx(3.04, abs=0.002)
    # The hole belongs to no frame.
    assert frames[19].duration * info.time_base == pytest.approx(1 / FPS, abs=0.002)
    assert source.lost == 0


@pytest.mark.parametrize("starts", [(0, 60), (60, 0), (0, 36_000, 1)], ids=str)
def test_pieces_of_a_broadcast_keep_their_times(tmp_path: Path, starts: tuple[int, ...]) -> None:
    parts = [
        write_clip(tmp_path / f"{start}.ts", count=25, times=lambda n, s=start: s + n / FPS)
        for start in starts
    ]
    whole = tmp_path / "all.ts"
    whole.write_bytes(b"".join(part.read_bytes() for part in parts))
    info, frames, _ = play(whole)
    assert len(frames) >= 25 * len(starts) - 2
    at = flagged(frames)
    assert len(at) == len(starts) - 1
    for index, start in zip(at, starts[1:], strict=True):
        moved = float((frames[index].pts - frames[0].pts) * info.time_base)
        assert moved == pytest.approx(start - starts[0], abs=0.1)


@pytest.mark.parametrize(("codec", "pix_fmt"), [("mjpeg", "yuvj420p"), ("libx264", "yuv420p")])
def test_damage_in_the_middle_is_skipped_counted_and_flagged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, codec: str, pix_fmt: str
) -> None:
    path = write_clip(tmp_path / "a.mkv", codec, keyframes=1, pix_fmt=pix_fmt)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2 : len(raw) // 2 + 100] = bytes(100)
    path.write_bytes(raw)
    _, frames, source = play(path)
    got = numbers(frames)
    assert source.lost >= 1
    assert "skipping damaged video" in caplog.text
    assert 46 <= len(got) < 50 and got == sorted(got)
    (index,) = flagged(frames)
    assert got[index] > got[index - 1] + 1


def test_damaged_h264_goes_on(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.ts", count=75)
    raw = bytearray(path.read_bytes())
    random = np.random.default_rng(1)
    for at in random.integers(len(raw) // 3, len(raw) // 2, 20):
        raw[at : at + 30] = random.bytes(30)
    path.write_bytes(raw)
    _, frames, source = play(path)
    assert source.lost >= 1 and flagged(frames)
    assert numbers(frames[-20:]) == list(range(55, 75))


def test_another_size_is_scaled_to_the_first_and_flagged(tmp_path: Path) -> None:
    first = write_clip(tmp_path / "a.ts", count=25)
    second = write_clip(tmp_path / "b.ts", count=25, size="384x224", times=lambda n: 1 + n / FPS)
    whole = tmp_path / "c.ts"
    whole.write_bytes(first.read_bytes() + second.read_bytes())
    info, frames, source = play(whole)
    assert info.shape == (3, None, 112, 192)
    assert all(frame.data.shape == (3, 1, 112, 192) for frame in frames)
    assert numbers(frames)[-20:] == list(range(5, 25))
    (index,) = flagged(frames)
    (remark,) = source.remarks
    seconds_in = float(frames[index].pts * info.time_base)
    assert remark == (
        f"from {seconds_in:.2f} s on, images are 384 x 224; they were scaled to the 192 x 112 of "
        "the beginning"
    )


@pytest.mark.parametrize(
    ("name", "fps", "wanted", "step"),
    [
        ("a.mp4", 25, "5", 5),
        ("a.mkv", 30, 15, 2),
        ("a.mkv", Fraction(30_000, 1001), "30000/3003", 3),
        ("a.mp4", 30, 10.0, 3),
        ("a.mp4", 25, 60, 1),
    ],
)
def test_fewer_images_are_chosen_evenly(
    tmp_path: Path, name: str, fps: Any, wanted: Any, step: int
) -> None:
    info, frames, source = play(write_clip(tmp_path / name, fps=fps), fps=wanted)
    assert numbers(frames) == list(range(0, 50, step))
    assert info.rate == Fraction(fps) / step
    assert [frame.seq for frame in frames] == list(range(len(frames)))
    assert frames[-1].duration * info.time_base * info.rate == pytest.approx(1, rel=0.05)
    assert not flagged(frames) and source.lost == 0


def test_uneven_thinning_keeps_the_rate(tmp_path: Path) -> None:
    info, frames, _ = play(write_clip(tmp_path / "a.mp4"), fps=10)
    assert info.rate == 10
    assert numbers(frames) == [0, 3, 5, 8, 10, 13, 15, 18, 20, 23, 25, 28, 30, 33, 35, 38, 40, 43,
                               45, 48]  # fmt: skip


def test_a_flag_is_not_lost_by_thinning(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mkv", times=lambda n: n / FPS + (3 if n >= 21 else 0))
    _, frames, _ = play(clip, fps=5)
    assert [numbers(frames)[index] for index in flagged(frames)] == [21]


def turned(path: Path, matrix: tuple[int, ...]) -> Path:
    """Writes a matrix into the header of an MP4's first track: how it is to be shown."""
    raw = bytearray(path.read_bytes())
    at = raw.index(b"tkhd") + 4 + 40
    sixteen = [value << 16 if index % 3 < 2 else value << 30 for index, value in enumerate(matrix)]
    raw[at : at + 36] = struct.pack(">9i", *sixteen)
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize(
    ("matrix", "turns"),
    [
        ((0, 1, 0, -1, 0, 0, 0, 0, 1), -1),  # x' = -y, y' = x: clockwise, a telephone held upright
        ((0, -1, 0, 1, 0, 0, 0, 0, 1), 1),
        ((-1, 0, 0, 0, -1, 0, 0, 0, 1), 2),
    ],
)
def test_images_that_are_to_be_turned_are(
    tmp_path: Path, matrix: tuple[int, ...], turns: int
) -> None:
    plain = write_clip(tmp_path / "a.mp4", count=3)
    _, upright, _ = play(plain)
    info, frames, _ = play(turned(plain, matrix))
    assert info.shape == ((3, None, 112, 192) if turns == 2 else (3, None, 192, 112))
    for frame, before in zip(frames, upright, strict=True):
        np.testing.assert_array_equal(frame.data, np.rot90(before.data, turns, (2, 3)))


def test_one_of_several_streams_and_no_such_stream(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mkv", sound=np.zeros((1, 48_000), np.float32), count=5)
    with pytest.raises(MediaError, match=r"no video stream 1; it holds 1 video streams \(.*audio"):
        play(path, stream="1")
    path = write_wav(tmp_path / "a.wav", np.zeros((1, 800), np.float32), 8000)
    with pytest.raises(MediaError, match=r"no video stream 0; it holds 0 video streams \(audio\)"):
        play(path)


def test_the_cover_of_a_song_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "a.mp3"
    with av.open(str(path), "w") as container:
        sound = container.add_stream("libmp3lame", rate=44_100, layout="mono")
        cover = container.add_stream("mjpeg", width=64, height=64, pix_fmt="yuvj420p")
        cover.disposition = cover.disposition.attached_pic
        image = av.VideoFrame(64, 64, "yuvj420p")
        container.mux(cover.encode(image))
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4410), np.float32), "fltp", "mono")
        frame.sample_rate = 44_100
        container.mux(sound.encode(frame) + sound.encode(None))
    with pytest.raises(MediaError, match=r"0 video streams \(audio, image\)"):
        play(path)


def test_text_and_missing_files_are_said_plainly(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text("just a note\n" * 20)
    with pytest.raises(MediaError, match="text, not audio or video"):
        play(tmp_path / "a.mp4")
    with pytest.raises(MediaError, match=r"did you mean '.*a\.mp4'"):
        play(tmp_path / "aa.mp4")


def test_close_without_open_and_options() -> None:
    source = VideoSource("a.mp4")
    source.close_blocking()
    assert source.read() is None
    for option, value in (("stream", -1), ("fps", "fast"), ("fps", 0), ("reconnect", "true")):
        with pytest.raises(UsageError, match=option):
            VideoSource("a.mp4", **{option: value})
