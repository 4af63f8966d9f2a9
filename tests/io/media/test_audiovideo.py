"""Sound and images of one file: both on one clock, each with its own holes."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamenc import io
from streamenc.errors import MediaError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.io.media.audiovideo import AudioVideoSource
from streamenc.io.media.pattern import read_number
from tests.support.clips import FPS, RATE, write_clip
from tests.support.media import write_wav


def play(
    address: str | Path, **options: Any
) -> tuple[StreamInfo, list[Frame], list[Frame], AudioVideoSource]:
    source = AudioVideoSource(str(address), **options)
    try:
        info = source.open_blocking()
        frames = list(iter(source.read, None))
    finally:
        source.close_blocking()
    audio, video = ([frame for frame in frames if frame.track == n] for n in (0, 1))
    assert len(audio) + len(video) == len(frames)
    return info, audio, video, source


def beeps(seconds: float) -> np.ndarray[Any, Any]:
    """(1, samples): 20 ms of a tone from each whole second on."""
    at = np.arange(round(seconds * RATE))
    wave = 0.5 * np.sin(2 * np.pi * 1000 * at / RATE) * (at % RATE < RATE // 50)
    return wave[None].astype(np.float32)


def onsets_seconds(info: StreamInfo, audio: list[Frame]) -> list[float]:
    """When it becomes loud, on the clock of the container."""
    found, quiet_until = [], -1.0
    for frame in audio:
        for index in np.flatnonzero(np.abs(frame.data[0]) > 0.2):
            at = float((frame.pts + int(index)) * info.track(0).time_base)
            if at > quiet_until:
                found.append(at)
            quiet_until = at + 0.5
    return found


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.ts", "libx264"), ("a.webm", "libvpx-vp9")],
)
def test_both_tell_the_same_time(tmp_path: Path, name: str, codec: str) -> None:
    path = write_clip(tmp_path / name, codec, count=4 * FPS, sound=beeps(4))
    info, audio, video, source = play(path)
    assert info.kind == "mux" and [track.kind for track in info.tracks] == ["audio", "video"]
    assert info.tracks[0].time_base == Fraction(1, RATE)
    assert all((t.time_base / info.time_base).denominator == 1 for t in info.tracks)
    assert [read_number(frame.data) for frame in video] == list(range(100))
    for frames in (audio, video):
        assert [frame.seq for frame in frames] == list(range(len(frames)))
        assert not any(frame.discontinuity for frame in frames)
    # Image 25 n is presented when the beep begins; encoders shift sound by up to a millisecond.
    shown = [float(video[n].pts * info.track(1).time_base) for n in (25, 50, 75)]
    heard = onsets_seconds(info, audio)[-3:]
    assert heard == pytest.approx(shown, abs=0.003)
    assert not source.live and source.lost == 0
    assert source.duration_seconds == pytest.approx(4, abs=0.15)


def test_they_are_what_the_single_sources_give(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mkv", sound=beeps(2))
    info, audio, video, _ = play(path)
    for kind, track, frames in (("audio", 0, audio), ("video", 1, video)):
        alone: Any = io.source(str(path), kind=kind)
        assert alone.open_blocking() == info.track(track)
        for frame, other in zip(frames, iter(alone.read, None), strict=True):
            np.testing.assert_array_equal(frame.data, other.data)
            assert (frame.pts, frame.duration, frame.seq) == (other.pts, other.duration, other.seq)
        alone.close_blocking()


def test_a_hole_in_one_is_flagged_on_that_one_alone(tmp_path: Path) -> None:
    path = write_clip(
        tmp_path / "a.mkv", sound=beeps(4), times=lambda n: n / FPS + (1.5 if n >= 20 else 0)
    )
    _, audio, video, _ = play(path)
    assert [read_number(frame.data) for frame in video if frame.discontinuity] == [20]
    assert not any(frame.discontinuity for frame in audio)


@pytest.mark.parametrize("late_seconds", [1.5, -1.5])
def test_one_may_begin_later(tmp_path: Path, late_seconds: float) -> None:
    sound_late, images_late = max(late_seconds, 0), max(-late_seconds, 0)
    path = write_clip(
        tmp_path / "a.mkv",
        sound=beeps(2),
        sound_shift=sound_late,
        times=lambda n: images_late + n / FPS,
    )
    info, audio, video, _ = play(path)
    lag = audio[0].pts * info.track(0).time_base - video[0].pts * info.track(1).time_base
    assert float(lag) == pytest.approx(late_seconds, abs=0.03)
    assert len(video) == 50
    assert not any(frame.discontinuity for frame in audio + video)


def test_fewer_images_and_all_of_the_sound(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mkv", sound=beeps(2))
    info, audio, video, _ = play(path, fps=5)
    assert info.tracks[1].rate == 5
    assert [read_number(frame.data) for frame in video] == list(range(0, 50, 5))
    assert sum(frame.duration for frame in audio) == pytest.approx(2 * RATE, abs=2000)


def test_both_have_to_be_there(tmp_path: Path) -> None:
    mute = write_clip(tmp_path / "a.mp4", count=3)
    with pytest.raises(MediaError, match=r"0 audio streams \(video\), .* model of images"):
        play(mute)
    sound = write_wav(tmp_path / "a.wav", np.zeros((1, 800), np.float32), 8000)
    with pytest.raises(MediaError, match="no video stream 0"):
        play(sound)
    both = write_clip(tmp_path / "b.mkv", sound=beeps(1), count=3)
    with pytest.raises(MediaError, match="no audio stream 1"):
        play(both, audio_stream="1")
    with pytest.raises(MediaError, match="no video stream 1"):
        play(both, video_stream="1")
