from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

import streamenc
from streamenc import io
from streamenc.errors import FitError, InputError, MediaError, UsageError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.graph.node import BlockingSink
from streamenc.io.reading import read, read_file, tracks_of
from tests.io.files.test_recording import CODES, FILM, frames_of
from tests.support.web import camera, jpegs, web


def record(path: Path, info: StreamInfo, frames: list[Frame], broken: str = "") -> None:
    sink = io.sink(str(path))
    assert isinstance(sink, BlockingSink)
    sink.open_blocking(info)
    for frame in frames:
        sink.write_blocking(frame)
    sink.broken = broken
    sink.close_blocking()


def codes(seq: int, discontinuity: bool = False, books: int = 8) -> Frame:
    data = np.random.default_rng(seq).integers(0, 2048, (books, 3)).astype(np.uint16)
    return Frame(data, seq * 3 * 3528, 3 * 3528, seq, discontinuity)


@pytest.mark.parametrize("ending", [".arrows", ".parquet", ".npz"])
def test_a_recording_is_one_array(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a{ending}"
    frames = [codes(0), codes(1), codes(3, True), codes(4)]
    record(path, CODES, frames, "the microphone was unplugged")
    recording = streamenc.read(path)
    assert isinstance(recording, streamenc.Recording)
    wanted = np.concatenate([frame.data for frame in frames], axis=1)
    np.testing.assert_array_equal(recording.data, wanted, strict=True)
    assert np.allclose(recording.times, np.r_[0:6, 9:15] * 0.08, rtol=0, atol=1e-12)
    assert recording.gaps.tolist() == [6]
    assert recording.info == CODES
    assert recording.scales is None
    assert recording.broken == "the microphone was unplugged"
    assert "1 gaps" in repr(recording) and "unplugged" in repr(recording)


@pytest.mark.parametrize("ending", [".arrows", ".parquet", ".npz"])
def test_a_mux_has_tracks(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"film{ending}"
    frames = [codes(0), *(f for f in frames_of(FILM, 12) if f.track == 1)]
    record(path, FILM, frames)
    recording = read(path)
    assert [track.info for track in recording.tracks] == list(FILM.tracks)
    np.testing.assert_array_equal(recording.tracks[0].data, frames[0].data)
    images = np.concatenate([frame.data for frame in frames[1:]], axis=1)
    np.testing.assert_array_equal(recording.tracks[1].data, images)
    with pytest.raises(UsageError, match=r"2 tracks .*\.tracks\[0\]"):
        _ = recording.data
    assert tracks_of(str(path)) == FILM.tracks


def test_frames_that_are_missing_are_a_gap_also_where_nobody_said_so(tmp_path: Path) -> None:
    record(tmp_path / "a.arrows", CODES, [codes(0), codes(2), codes(3)])
    assert read(tmp_path / "a.arrows").gaps.tolist() == [3]


def test_another_number_of_codebooks_is_refused_or_cut(tmp_path: Path) -> None:
    record(tmp_path / "a.arrows", CODES, [codes(0), codes(1, books=4), codes(2)])
    with pytest.raises(InputError, match=r"at 0.240 s has 4 codebooks, and 8 .* codebooks=N"):
        read(tmp_path / "a.arrows")
    assert read(tmp_path / "a.arrows", codebooks=4).data.shape == (4, 9)
    with pytest.raises(InputError, match="has 4 codebooks, and 6"):
        read(tmp_path / "a.arrows", codebooks=6)


def test_sound_is_read_with_the_options_of_its_source(tmp_path: Path) -> None:
    sound = np.random.default_rng(0).uniform(-0.5, 0.5, (4000, 2)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", sound, 8000, subtype="FLOAT")
    recording = read(tmp_path / "a.wav")
    np.testing.assert_array_equal(recording.data, sound.T)
    assert np.allclose(recording.times, np.arange(4000) / 8000, rtol=0, atol=1e-12)
    with pytest.raises(UsageError, match="no option 'codec'"):
        read(tmp_path / "a.wav", codec=1)


def test_sound_is_read_at_the_rate_that_is_wanted(tmp_path: Path) -> None:
    sound = np.random.default_rng(0).uniform(-0.5, 0.5, (44_100, 2)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", sound, 44_100, subtype="FLOAT")
    recording = read(tmp_path / "a.wav", sample_rate=16_000, channels=1)
    wanted = soxr.resample(sound.mean(axis=1), 44_100, 16_000)
    np.testing.assert_allclose(recording.data[0], wanted, rtol=0, atol=1e-6)
    assert np.allclose(recording.times, np.arange(16_000) / 16_000, rtol=0, atol=1e-4)
    assert read(tmp_path / "a.wav", channels=1).data.shape == (1, 44_100)
    record(tmp_path / "a.arrows", CODES, [codes(0)])
    with pytest.raises(FitError, match="takes audio"):
        read(tmp_path / "a.arrows", sample_rate=16_000)


def test_an_ecdc_is_read(tmp_path: Path) -> None:
    info = StreamInfo(
        "codes", CODES.time_base, CODES.rate, (8, None), "uint16", "encodec_24khz", 1024
    )
    data = np.random.default_rng(0).integers(0, 1024, (8, 75)).astype(np.uint16)
    record(tmp_path / "a.ecdc", info, [Frame(data, 0, 44100, 0)])
    recording = read(tmp_path / "a.ecdc")
    np.testing.assert_array_equal(recording.data, data)
    assert np.allclose(recording.times, np.arange(75) / 75, rtol=0, atol=1e-12)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"streamenc\.subscribe\('zmq"):
        read("zmq+tcp://127.0.0.1:5555")
    with pytest.raises(UsageError, match="takes no options"):
        read(tmp_path / "a.npz", codebooks=3)
    with pytest.raises(MediaError, match=r"none\.arrows"):
        read(tmp_path / "none.arrows")
    with pytest.raises(MediaError, match=r"none\.arrows"):
        read_file(str(tmp_path / "none.arrows"))
    for wrong in (0, -1):
        with pytest.raises(UsageError, match="codebooks"):
            read(tmp_path / "none.arrows", codebooks=wrong)


def test_what_turns_out_to_be_live_is_refused() -> None:
    with web(camera(jpegs(2), fps=50)) as server:
        with pytest.raises(UsageError, match="is a stream, not a file"):
            read(f"{server.address}/stream", kind="video")
