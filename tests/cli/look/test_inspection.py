"""What is in a file: figures that can be checked by hand."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

import streamenc
from streamenc import io
from streamenc.cli.look.drawing import SHOWN_MOMENTS, Look, _moments
from streamenc.cli.look.inspection import KEPT_MOMENTS, Track, inspect_file
from streamenc.errors import FitError, MediaError, UsageError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.graph.node import BlockingSource
from streamenc.io.files.recording import RecordingSink
from streamenc.io.reading import read_file
from streamenc.pipeline.builder import Pipeline
from tests.support import zoo
from tests.support.clips import write_clip
from tests.support.media import write_film, write_wav

CODES = StreamInfo(
    "codes", Fraction(1, 24_000), Fraction(100), (2, None), "uint16", "mine", codebook_size=16
)


def recorded(folder: Path, info: StreamInfo, frames: list[Frame]) -> str:
    sink = RecordingSink(str(folder / "x.arrows"))
    sink.open_blocking(info)
    for frame in frames:
        sink.write_blocking(frame)
    sink.close_blocking()
    return str(folder / "x.arrows")


def codes(pts: int, seq: int, *, flag: bool = False, track: int = 0) -> Frame:
    """Four frames: the first book uses four entries evenly, the second always the same."""
    data = np.array([[0, 1, 2, 3], [7, 7, 7, 7]], np.uint16)
    return Frame(data, pts, 960, seq, flag, track=track)


def test_codes(tmp_path: Path) -> None:
    target = recorded(tmp_path, CODES, [codes(0, 0), codes(960, 1), codes(9600, 3, flag=True)])
    rows = dict(inspect_file(target, tmp_path / "x.png"))
    assert rows["model"] == "mine" and rows["gaps"] == "1"
    assert rows["duration"] == "0.120 s from pts 0" and rows["packets"] == "3 with 12 items"
    assert rows["bitrate"] == "0.80 kbit/s" and rows["perplexity"] == "4 1"
    assert (tmp_path / "x.png").stat().st_size > 1000


def test_a_recording_of_nothing(tmp_path: Path) -> None:
    target = recorded(tmp_path, CODES, [])
    assert dict(inspect_file(target))["duration"] == "0.000 s"
    with pytest.raises(UsageError, match="no frames to plot"):
        inspect_file(target, tmp_path / "x.png")


def test_several_streams_in_one(tmp_path: Path) -> None:
    track = replace(CODES, time_base=Fraction(1, 24_000))
    mux = StreamInfo("mux", track.time_base, track.rate, (), "", tracks=(track, track))
    target = recorded(tmp_path, mux, [codes(0, 0), codes(0, 0, track=1), codes(960, 1, track=1)])
    rows = inspect_file(target)
    assert [value for what, value in rows if what == "packets"] == [
        "1 with 4 items",
        "2 with 8 items",
    ]
    assert ("plot", str(tmp_path / "x.png")) in inspect_file(target, tmp_path / "x.png")


def test_sound(tmp_path: Path) -> None:
    wav = write_wav(tmp_path / "x.wav", np.array([[0, 0.5, -0.25] * 800]), 8000)
    rows = dict(inspect_file(str(wav)))
    assert rows["duration"] == "0.300 s from pts 0" and rows["peak"] == "0.500"
    info, frames = read_file(str(wav))
    assert info.rate == 8000 and sum(frame.data.shape[1] for frame in frames) == 2400


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="does not exist"):
        inspect_file(str(tmp_path / "none.arrows"))
    with pytest.raises(UsageError, match="a stream, not a file"):
        read_file("mic:")


GRID = replace(CODES, shape=(1, None, 2, 3), rate=Fraction(10), time_base=Fraction(1, 1000))


def grid(seq: int, value: int | None = None, **changes: object) -> Frame:
    """2 x 3 entries, all `value`, or 0 to 5; a tenth of a second."""
    data = np.arange(6) if value is None else np.full(6, value)
    frame = Frame(data.reshape(1, 1, 2, 3).astype(np.uint16), 100 * seq, 100, seq)
    return frame.with_(**changes)


def test_codes_on_a_grid_have_one_codebook_for_all_places(tmp_path: Path) -> None:
    target = recorded(tmp_path, GRID, [grid(n) for n in range(5)])
    rows = dict(inspect_file(target, tmp_path / "x.png"))
    assert rows["codebooks"] == "1 of 16 entries" and rows["perplexity"] == "6"
    assert rows["bitrate"] == "0.24 kbit/s"  # 6 places x 4 bits x 10
    assert rows["packets"] == "5 with 5 items" and rows["duration"] == "0.500 s from pts 0"
    assert (tmp_path / "x.png").stat().st_size > 1000


def test_moments_lie_evenly_from_the_first_to_the_last() -> None:
    for count in (1, 3, 6, 7, 50, 1000, 1537):
        track = Track(GRID)
        for seq in range(count):
            track.add(grid(seq))
            assert len(track.moments) < 2 * KEPT_MOMENTS
        moments = _moments(track, "", 0, Look())
        assert len(moments) == min(count, SHOWN_MOMENTS)
        seconds = [moment.seconds for moment in moments]
        even = np.linspace(0, (count - 1) / 10, len(moments))
        np.testing.assert_allclose(seconds, even, atol=max(0.06, 0.025 * count / 10))


def test_entries_that_no_codebook_has(tmp_path: Path) -> None:
    target = recorded(tmp_path, GRID, [grid(0), grid(1, 16)])
    with pytest.raises(MediaError, match="entry 16; the codebooks have 16"):
        inspect_file(target)
    target = recorded(tmp_path, replace(GRID, codebook_size=1 << 30), [grid(0)])
    assert "perplexity" not in dict(inspect_file(target))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """A small clip of 21 images, a model, and what the model makes of them."""
    folder = tmp_path_factory.mktemp("clip")
    (folder / "DV4x8x8").mkdir()
    zoo.save_cosmos_codes(folder / "DV4x8x8")
    film = write_clip(folder / "clip.mkv", count=21, size="64x48")
    with Pipeline() as pipeline:
        model = streamenc.load(folder / "DV4x8x8", part="encoder", mode="window")
        source = pipeline.source("film", str(film), kind="video")
        pipeline.sink("out", str(folder / "x.arrows"), pipeline.encode("codes", model, source))
        pipeline.graph.run_blocking()
    return film, folder / "DV4x8x8", str(folder / "x.arrows")


def test_a_sheet_shows_the_same_image_before_and_after(clip: tuple[Path, Path, str]) -> None:
    film, model, target = clip
    codec = streamenc.load(model, mode="window")
    info, frames = read_file(target)
    track = Track(info)
    for frame in frames:
        track.add(frame)
    moments = _moments(track, target, 0, Look(str(film), codec))
    # The first code is of the first image alone, each further one of four.
    images = [0, 1, 5, 9, 13, 17]
    assert [round(25 * moment.seconds) for moment in moments] == images
    _, shown = _video(film)
    codes = np.concatenate([frame.data for frame in frames], axis=1)[None].astype(np.int64)
    decoded = codec.decode(codes)[0].permute(1, 2, 3, 0)
    for index, (moment, at) in enumerate(zip(moments, images, strict=True)):
        assert moment.original is not None and moment.reconstruction is not None
        np.testing.assert_array_equal(moment.codes, codes[0, :, index])
        np.testing.assert_array_equal(moment.original, shown[at])
        wanted = decoded[at].add(1).mul(127.5).clamp(0, 255).numpy()
        assert np.abs(moment.reconstruction - wanted).max() <= 1
        assert moment.psnr_db is not None and 0 < moment.psnr_db < 60


def test_a_model_that_does_not_fit_the_codes_is_refused(
    clip: tuple[Path, Path, str], tmp_path: Path
) -> None:
    look = Look(decoder=zoo.codec("mimi"))
    with pytest.raises(FitError, match="decodes codes of 64 entries; got codes"):
        inspect_file(clip[2], tmp_path / "x.png", look)


def _video(film: Path) -> tuple[StreamInfo, list[np.ndarray]]:
    source = io.source(str(film), kind="video")
    assert isinstance(source, BlockingSource)
    try:
        info = source.open_blocking()
        return info, [f.data[:, 0].transpose(1, 2, 0) for f in iter(source.read, None)]
    finally:
        source.close_blocking()


def test_an_original_of_another_time_is_refused(clip: tuple[Path, Path, str]) -> None:
    film, _, _ = clip
    for first in (100, -100):
        track = Track(GRID)
        for seq in range(6):
            track.add(grid(seq, pts=1000 * first + 100 * seq))
        with pytest.raises(UsageError, match="name the film that was encoded"):
            _moments(track, "", 0, Look(str(film)))
    track = Track(GRID)
    for seq in range(6):
        track.add(grid(seq, pts=600 * seq))
    shown = [m.original is not None for m in _moments(track, "", 0, Look(str(film)))]
    assert shown == [True, True, False, False, False, False]


def test_a_film_has_both_tracks(tmp_path: Path) -> None:
    film = write_film(tmp_path / "film.mkv", seconds=0.4, width=64, height=48, fps=25)
    rows = inspect_file(str(film))
    assert [value for what, value in rows if what == "kind"] == ["audio", "video"]
    assert ("shape", "3x?x48x64 uint8") in rows
    assert ("packets", "10 with 10 items") in rows
    with pytest.raises(UsageError, match="codes or features"):
        inspect_file(str(film), tmp_path / "x.png")
