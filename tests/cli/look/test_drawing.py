"""What inspect draws: every track, at its times, beside what it was encoded from."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from streamenc.cli.look.drawing import Look, _sound, kind_in
from streamenc.cli.look.inspection import Track, inspect_file
from streamenc.errors import UsageError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.io.files.recording import RecordingSink
from tests.support.clips import write_clip
from tests.support.media import write_film, write_wav

CODES = StreamInfo("codes", Fraction(1, 100), Fraction(50), (2, None), "uint16", codebook_size=8)
GRID = replace(CODES, rate=Fraction(10), shape=(1, None, 2, 3))
SOUND = StreamInfo("audio", Fraction(1, 100), Fraction(1000), (1, None), "float32")


def codes(at: int, **changes: object) -> Frame:
    """Two frames of 20 ms that begin at `at` hundredths of a second."""
    return Frame(np.full((2, 2), at % 8, np.uint16), at, 4, at // 4).with_(**changes)


def record(path: Path, info: StreamInfo, frames: list[Frame]) -> str:
    sink = RecordingSink(str(path))
    sink.open_blocking(info)
    for frame in frames:
        sink.write_blocking(frame)
    sink.close_blocking()
    return str(path)


def film_of(folder: Path) -> str:
    """Sound, codes of it, codes of images, and a track on which nothing came."""
    mux = StreamInfo("mux", CODES.time_base, CODES.rate, (), "", tracks=(SOUND, CODES, GRID, CODES))
    grid = np.arange(6, dtype=np.uint16).reshape(1, 1, 2, 3)
    frames = []
    for n in range(10):
        frames += [
            Frame(np.zeros((1, 4), np.float32), 4 * n, 4, n),
            codes(4 * n, track=1),
            Frame(grid, 10 * n, 10, n, track=2),
        ]
    return record(folder / "film.arrows", mux, frames)


def test_all_tracks_are_drawn_and_others_are_named(tmp_path: Path) -> None:
    heights = []
    for name, info, frames in (
        ("codes", CODES, [codes(0)]),
        ("grid", GRID, [Frame(np.zeros((1, 1, 2, 3), np.uint16), 0, 10, 0)]),
    ):
        target = record(tmp_path / f"{name}.arrows", info, frames)
        inspect_file(target, tmp_path / "x.png")
        with Image.open(tmp_path / "x.png") as page:
            heights.append(page.height)
    rows = inspect_file(film_of(tmp_path), tmp_path / "x.png")
    assert [value for what, value in rows if what == "not drawn"] == [
        "track 0, audio: it is not encoded",
        "track 3, codes: it has no frames",
    ]
    with Image.open(tmp_path / "x.png") as page:
        assert page.height > sum(heights)


def test_sound_stands_above_its_codes(tmp_path: Path) -> None:
    target = record(tmp_path / "x.arrows", CODES, [codes(4 * n) for n in range(10)])
    wav = write_wav(tmp_path / "x.wav", np.sin(np.arange(8000))[None], 8000)
    inspect_file(target, tmp_path / "alone.png")
    inspect_file(target, tmp_path / "both.png", Look(str(wav)))
    with Image.open(tmp_path / "alone.png") as alone, Image.open(tmp_path / "both.png") as both:
        assert both.height > alone.height
        blue = (np.abs(np.asarray(both).astype(int) - (0x33, 0x5C, 0x81)) < 12).all(axis=2)
    assert blue[: both.height // 2].sum() > 10_000


def test_sound_has_the_outline_of_all_its_channels(tmp_path: Path) -> None:
    wave = np.zeros((2, 8000))
    wave[:, 4000] = 0.5, 0.25
    wave[0, 4001] = -0.5
    sound = _sound(str(write_wav(tmp_path / "x.wav", wave, 8000)), needed=True)
    assert sound is not None and len(sound.seconds) == len(sound.values)
    assert sound.values.max() == pytest.approx(0.375, abs=1e-4)
    assert sound.values.min() == pytest.approx(-0.25, abs=1e-4)
    assert sound.seconds[sound.values.argmax()] == pytest.approx(0.5, abs=0.001)


def test_an_original_that_is_not_of_it_is_refused(tmp_path: Path) -> None:
    target = record(tmp_path / "x.arrows", CODES, [codes(4 * n) for n in range(10)])
    png, silent = tmp_path / "x.png", write_clip(tmp_path / "a.mkv", count=2)
    with pytest.raises(Exception, match="no audio stream"):
        inspect_file(target, png, Look(str(silent)))
    late = record(tmp_path / "late.arrows", CODES, [codes(40_000 + 4 * n) for n in range(10)])
    wav = write_wav(tmp_path / "x.wav", np.zeros((1, 8000)), 8000)
    with pytest.raises(UsageError, match=r"no sound at 400\.00 to 400\.40 s"):
        inspect_file(late, png, Look(str(wav)))
    with pytest.raises(UsageError, match="decodes images"):
        inspect_file(target, png, Look(decoder=object()))
    assert not png.exists()


def test_frames_stand_at_their_times() -> None:
    track = Track(CODES)
    for at, flag in ((100, False), (104, False), (120, True), (124, False)):
        track.add(codes(at, discontinuity=flag))
    data, first, last = track.over_time()
    assert (first, last) == (1.0, pytest.approx(1.28))
    assert data.shape == (2, 14)
    assert data[0].tolist() == [4, 4, 0, 0, *[None] * 6, 0, 0, 4, 4]
    assert track.gaps_seconds == [pytest.approx(1.2)]
    # A clock that starts anew follows on.
    track.add(codes(0, discontinuity=True))
    track.add(codes(4))
    data, first, last = track.over_time()
    assert (first, last) == (1.0, pytest.approx(1.36))
    assert data[0, -4:].tolist() == [0, 0, 4, 4]


def test_what_is_in_a_file(tmp_path: Path) -> None:
    assert kind_in(str(write_wav(tmp_path / "x.wav", np.zeros((1, 80)), 8000))) == "audio"
    assert kind_in(str(write_clip(tmp_path / "a.mkv", count=2))) == "video"
    assert kind_in(str(write_film(tmp_path / "b.mkv", seconds=0.2))) == "av"
    Image.new("RGB", (8, 8)).save(tmp_path / "a.avif")
    assert kind_in(str(tmp_path / "a.avif")) == "video"
