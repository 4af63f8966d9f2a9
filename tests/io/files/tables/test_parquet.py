from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from streamenc.errors import InputError, MediaError, OutputError
from streamenc.graph.frames import Frame, StreamInfo, round_to_bfloat16
from streamenc.io.files.tables.parquet import ParquetSink, ParquetSource
from tests.io.files.test_recording import (
    CODES,
    FILM,
    GRID,
    HALF,
    LATENTS,
    MUX,
    SOUND,
    VIDEO,
    frames_of,
    same,
)
from tests.support.disk import tiny_disk


def record(path: Path, info: StreamInfo, frames: list[Frame], broken: str = "") -> None:
    sink = ParquetSink(str(path))
    sink.open_blocking(info)
    for frame in frames:
        sink.write_blocking(frame)
    sink.broken = broken
    sink.close_blocking()
    sink.close_blocking()


def play(path: Path) -> tuple[StreamInfo, list[Frame], str]:
    source = ParquetSource(str(path))
    try:
        info = source.open_blocking()
        return info, list(iter(source.read, None)), source.broken
    finally:
        source.close_blocking()


@pytest.mark.parametrize("info", [CODES, HALF, SOUND, MUX, VIDEO, GRID, LATENTS, FILM], ids=str)
def test_what_was_written_comes_back(
    tmp_path: Path, info: StreamInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamenc.io.files.tables.parquet.MAX_ROWS", 20)
    frames = frames_of(info, 50)
    record(tmp_path / "a.parquet", info, frames)
    got_info, got, broken = play(tmp_path / "a.parquet")
    assert got_info == info
    assert not broken
    same(got, frames)
    assert pq.ParquetFile(tmp_path / "a.parquet").num_row_groups == 3
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]


def test_bfloat16_is_numbers_to_others_and_packs_as_two_bytes(tmp_path: Path) -> None:
    info = replace(HALF, dtype="bfloat16", shape=(256, None))
    noise = np.random.default_rng(0).standard_normal((256, 400)).astype("float32")
    data = round_to_bfloat16(noise)
    path = tmp_path / "a.parquet"
    record(path, info, [Frame(data, 0, 320, 0)])
    assert path.stat().st_size < 2 * data.size
    assert np.array_equal(np.array(pq.read_table(path)["values"].to_pylist()[0]).T, data)
    same(play(path)[1], [Frame(data, 0, 320, 0)])


def test_the_reason_of_a_broken_stream_is_kept(tmp_path: Path) -> None:
    record(tmp_path / "a.parquet", CODES, frames_of(CODES, 3), "the camera went away")
    assert play(tmp_path / "a.parquet")[2] == "the camera went away"
    record(tmp_path / "b.parquet", CODES, [])
    assert play(tmp_path / "b.parquet")[1:] == ([], "")


def test_until_the_end_it_has_another_name(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(b"what was there before")
    sink = ParquetSink(str(path))
    sink.open_blocking(CODES)
    sink.write_blocking(frames_of(CODES, 1)[0])
    assert path.read_bytes() == b"what was there before"
    sink.close_blocking()
    assert len(play(path)[1]) == 1
    with pytest.raises(OutputError, match="closed"):
        sink.write_blocking(frames_of(CODES, 1)[0])


def test_frames_of_another_shape_are_refused(tmp_path: Path) -> None:
    sink = ParquetSink(str(tmp_path / "a.parquet"))
    sink.open_blocking(CODES)
    with pytest.raises(InputError, match="the recording is of codes"):
        sink.write_blocking(Frame(np.zeros((9, 1), np.uint16), 0, 1, 0))
    sink.close_blocking()


def test_an_existing_file_is_kept_on_request(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(b"precious")
    with pytest.raises(OutputError, match="overwrite"):
        ParquetSink(str(path), overwrite="false").open_blocking(CODES)
    assert path.read_bytes() == b"precious"


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    with tiny_disk(tmp_path / "disk") as disk:
        sink = ParquetSink(str(disk / "a.parquet"))
        sink.open_blocking(SOUND)
        noise = np.random.default_rng(0).standard_normal((2, 2**20)).astype("float32")
        with pytest.raises(OutputError, match="disk is full"):
            for seq in range(8):
                sink.write_blocking(Frame(noise, 0, 1, seq))
            sink.close_blocking()
        sink.close_blocking()
        assert not list(disk.iterdir())


def foreign(path: Path) -> None:
    import pyarrow as pa

    pq.write_table(pa.table({"n": [1]}), path)


def cut(path: Path) -> None:
    record(path, CODES, frames_of(CODES, 3))
    path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize("make", [foreign, cut, lambda path: None, lambda p: p.write_bytes(b"")])
def test_other_files_are_refused(tmp_path: Path, make: Any) -> None:
    make(tmp_path / "a.parquet")
    with pytest.raises(MediaError, match=r"a\.parquet"):
        play(tmp_path / "a.parquet")


def test_no_file(tmp_path: Path) -> None:
    wanted = r"^cannot open '.*a\.parquet': No such file or directory$"
    with pytest.raises(MediaError, match=wanted):
        play(tmp_path / "a.parquet")


def test_damaged_bytes_are_refused_or_read_but_never_crash(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    record(path, CODES, frames_of(CODES, 12))
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(40):
        raw = bytearray(whole)
        raw[rng.integers(len(raw))] ^= rng.integers(1, 256)
        path.write_bytes(raw)
        try:
            play(path)
        except MediaError:
            continue
