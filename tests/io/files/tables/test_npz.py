from __future__ import annotations

import gc
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamenc.errors import InputError, MediaError, OutputError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.io.files.tables.npz import NpzSink, NpzSource, read_npz
from streamenc.io.files.tables.stacked import Track
from tests.io.files.test_recording import CODES, FILM, HALF, LATENTS, SOUND, frames_of, same
from tests.support.disk import tiny_disk


def record(path: Path, info: StreamInfo, frames: list[Frame], broken: str = "") -> None:
    sink = NpzSink(str(path))
    sink.open_blocking(info)
    for frame in frames:
        sink.write_blocking(frame)
    sink.broken = broken
    sink.close_blocking()
    sink.close_blocking()


def codes_of(count: int, seed: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 2048, (8, count)).astype(np.uint16)


def test_numpy_alone_reads_it(tmp_path: Path) -> None:
    first, second = codes_of(3, 0), codes_of(2, 1)
    frames = [
        Frame(first, 0, 3 * 3528, 0),
        Frame(second, 44100, 2 * 3528, 1, discontinuity=True, scale=0.5),
    ]
    record(tmp_path / "a.npz", CODES, frames)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as found:
        assert np.array_equal(found["codes"], np.concatenate([first, second], axis=1))
        assert found["codes"].dtype == np.uint16
        assert np.allclose(found["times"], [0, 0.08, 0.16, 1, 1.08], rtol=0, atol=1e-12)
        assert found["gaps"].tolist() == [3]
        assert found["scales"].tolist() == [1, 1, 1, 0.5, 0.5]
        assert (found["rate"], found["model"]) == (12.5, "kyutai/mimi")
        assert json.loads(str(found["info"]))["codebook_size"] == 2048
        assert found["broken"] == ""


def test_each_track_of_a_mux_has_its_arrays(tmp_path: Path) -> None:
    grid = np.arange(15, dtype=np.uint16).reshape(1, 1, 3, 5)
    frames = [Frame(codes_of(2, 0), 0, 7056, 0), Frame(grid, 90_000, 24_000, 0, track=1)]
    record(tmp_path / "a.npz", FILM, frames, "the camera went away")
    with np.load(tmp_path / "a.npz") as found:
        assert found["codes_1"].tolist() == grid.tolist() and found["times_1"].tolist() == [1.0]
        assert {"codes_0", "gaps_0", "rate_0", "model_1"} < set(found.files)
    recording = read_npz(str(tmp_path / "a.npz"))
    assert [track.info for track in recording.tracks] == [CODES, FILM.tracks[1]]
    assert np.array_equal(recording.tracks[1].data, grid)
    assert recording.broken == "the camera went away"


@pytest.mark.parametrize("info", [HALF, SOUND, LATENTS, CODES, replace(HALF, dtype="bfloat16")])
def test_what_was_written_comes_back(tmp_path: Path, info: StreamInfo) -> None:
    shape = [size or 4 for size in info.shape]
    data = np.random.default_rng(0).integers(0, 9, shape).astype(info.array_dtype)
    path = str(tmp_path / "a.npz")
    record(tmp_path / "a.npz", info, [Frame(data, 5, 7, 0)])
    track = read_npz(path).tracks[0]
    assert track.info == info and track.scales is None and not len(track.gaps)
    np.testing.assert_array_equal(track.data, data, strict=True)
    assert track.times[0] == pytest.approx(float(5 * info.time_base))
    record(tmp_path / "a.npz", info, [])
    assert read_npz(path).data.shape[1] == 0


def test_frames_of_one_item_each_come_back(tmp_path: Path) -> None:
    runs = replace(CODES, shape=(1, 1))
    data = np.array([[7]], CODES.dtype)
    record(tmp_path / "a.npz", runs, [Frame(data, 5 * n, 5, n) for n in range(3)])
    assert read_npz(str(tmp_path / "a.npz")).data.tolist() == [[7, 7, 7]]


@pytest.mark.parametrize("info", [CODES, HALF, FILM, SOUND, LATENTS], ids=str)
def test_it_is_played_back_frame_by_frame(tmp_path: Path, info: StreamInfo) -> None:
    frames = [f for f in frames_of(info, 40) if f.data.shape[1]]
    if info.tracks or info.kind == "codes":
        frames = [f.with_(data=f.data[:1]) for f in frames]  # one number of codebooks
    seqs = [0, 0]
    wanted = []
    for frame in frames:
        wanted.append(frame.with_(seq=seqs[frame.track]))
        seqs[frame.track] += 1
    wanted.sort(key=lambda frame: frame.pts * info.track(frame.track).time_base)
    record(tmp_path / "a.npz", info, wanted, "cut off")
    source = NpzSource(str(tmp_path / "a.npz"))
    assert source.open_blocking() == info
    assert source.broken == "cut off"
    same(list(iter(source.read, None)), wanted)
    source.close_blocking()


def test_where_its_frames_begin_has_to_be_there(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    record(path, CODES, [Frame(codes_of(2, 0), 0, 7056, 0), Frame(codes_of(1, 1), 7056, 3528, 1)])
    with np.load(path) as found:
        arrays = dict(found)
    starts = arrays.pop("frames")
    for frames in (None, starts[1:], starts[[0, 0]], starts[:, :2], starts.astype(float)):
        np.savez(path, **arrays, **({} if frames is None else {"frames": frames}))
        with pytest.raises(MediaError, match=r"where the frames .*streamenc\.read"):
            NpzSource(str(path)).open_blocking()
    assert read_npz(str(path)).data.shape == (8, 3)
    record(path, CODES, [])
    source = NpzSource(str(path))
    source.open_blocking()
    assert source.read() is None


def test_the_file_is_there_once_it_is_whole(tmp_path: Path) -> None:
    sink = NpzSink(str(tmp_path / "a.npz"))
    sink.open_blocking(CODES)
    sink.write_blocking(Frame(codes_of(1, 0), 0, 3528, 0))
    assert not (tmp_path / "a.npz").exists()
    sink.close_blocking()
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]
    with pytest.raises(OutputError, match="closed"):
        sink.write_blocking(Frame(codes_of(1, 0), 0, 3528, 0))


def test_another_number_of_codebooks_is_refused(tmp_path: Path) -> None:
    sink = NpzSink(str(tmp_path / "a.npz"))
    sink.open_blocking(CODES)
    sink.write_blocking(Frame(codes_of(1, 0), 0, 3528, 0))
    with pytest.raises(InputError, match=r"at 0.080 s has 4 codebooks, and 8"):
        sink.write_blocking(Frame(codes_of(1, 0)[:4], 3528, 3528, 1))
    sink.close_blocking()


def test_more_than_memory_should_hold_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamenc.io.files.tables.npz.MAX_BYTES", 40)
    sink = NpzSink(str(tmp_path / "a.npz"))
    sink.open_blocking(CODES)
    sink.write_blocking(Frame(codes_of(2, 0), 0, 3528, 0))
    with pytest.raises(OutputError, match=r"\.parquet"):
        sink.write_blocking(Frame(codes_of(1, 0), 3528, 3528, 1))
    sink.close_blocking()


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    with tiny_disk(tmp_path / "disk") as disk:
        sink = NpzSink(str(disk / "a.npz"))
        sink.open_blocking(SOUND)
        noise = np.random.default_rng(0).standard_normal((2, 2**20)).astype("float32")
        for seq in range(2):
            sink.write_blocking(Frame(noise, 0, 1, seq))
        with pytest.raises(OutputError, match="disk is full"):
            sink.close_blocking()
        sink.close_blocking()
        assert not list(disk.iterdir())


def other(path: Path) -> None:
    np.savez(path, codes=np.zeros(3))


def wrong_shape(path: Path) -> None:
    record(path, CODES, [Frame(codes_of(2, 0), 0, 3528, 0)])
    with np.load(path) as found:
        arrays = dict(found)
    np.savez(path, **{**arrays, "times": np.zeros(3)})


def elsewhere(name: str, array: Any) -> Any:
    def make(path: Path) -> None:
        record(path, CODES, [Frame(codes_of(2, 0), 0, 3528, 0)])
        with np.load(path) as found:
            arrays = dict(found)
        np.savez(path, **{**arrays, name: array})

    return make


def damaged(path: Path) -> None:
    """Saved anew, compressed."""
    record(path, CODES, [Frame(codes_of(200, 0), 0, 352_800, 0)])
    with np.load(path) as found:
        arrays = dict(found)
    np.savez_compressed(path, **arrays)
    raw = bytearray(path.read_bytes())
    raw[300:340] = bytes(range(40))
    path.write_bytes(raw)


def encrypted(path: Path) -> None:
    record(path, CODES, [Frame(codes_of(2, 0), 0, 3528, 0)])
    raw = path.read_bytes()
    entry = raw.index(b"PK\x01\x02")
    path.write_bytes(raw[: entry + 8] + b"\x01" + raw[entry + 9 :])


def one_array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


def pickled(path: Path) -> None:
    np.savez(path, info=np.array([{}], object))


@pytest.mark.parametrize(
    "make",
    [
        other,
        wrong_shape,
        elsewhere("gaps", np.array([1, 1])),
        elsewhere("gaps", np.array([2])),
        elsewhere("gaps", np.array([-1])),
        elsewhere("scales", np.ones(3, np.float32)),
        damaged,
        encrypted,
        one_array,
        pickled,
        lambda p: p.write_bytes(b"PK"),
        lambda p: None,
    ],
)
def test_other_files_are_refused(tmp_path: Path, make: Any) -> None:
    make(tmp_path / "a.npz")
    with pytest.raises(MediaError, match=r"a\.npz") as raised:
        read_npz(str(tmp_path / "a.npz"))
    del raised
    gc.collect()  # a file that was left open would be told of now


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=r"^cannot open '.*a\.npz': No such file or directory$"):
        read_npz(str(tmp_path / "a.npz"))


def test_pieces_without_a_gap_within() -> None:
    track = Track(CODES, codes_of(5, 0), np.arange(5.0), np.array([0, 3]))
    assert [piece.shape[1] for piece in track.unbroken()] == [3, 2]
    assert repr(track) == "Track(codes of kyutai/mimi, 8x5 uint16, 2 gaps)"
