"""Text, and vectors of it, recorded in each format: numbers of segments and revisions come back."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import streamenc
from streamenc import io
from streamenc.errors import InputError, MediaError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.graph.node import BlockingSink
from streamenc.io.reading import read_file
from tests.support import texts

VECTORS = StreamInfo("features", Fraction(1, 1000), Fraction(0), (3, None), "float32", "bytes")
CODES = StreamInfo(
    "codes", Fraction(1, 24_000), Fraction(25, 2), (8, None), "uint16", "nano", codebook_size=2048
)
SAID = texts.segments("one", "zwei €", "zwei", "a much longer one", "one", revised=(2,))
MADE = [frame.with_(data=np.full((3, 1), frame.seq, np.float32)) for frame in SAID]
# A revision of what came long before: its time is before that of the last one.
LATE = [*MADE, MADE[0].with_(seq=5, revised=True)]


def written(path: Path, info: StreamInfo, frames: list[Frame], **options: bool) -> str:
    sink = io.sink(str(path), **options)
    assert isinstance(sink, BlockingSink)
    sink.open_blocking(info)
    try:
        for frame in frames:
            sink.write_blocking(frame)
    finally:
        sink.close_blocking()
    return str(path)


def same(got: Frame, wanted: Frame) -> bool:
    names = ("pts", "duration", "seq", "discontinuity", "track", "segment", "revised")
    return all(getattr(got, name) == getattr(wanted, name) for name in names) and (
        got.data.tolist() == wanted.data.tolist()
    )


@pytest.mark.parametrize("ending", [".arrows", ".parquet", ".npz", ".jsonl"])
@pytest.mark.parametrize("info", [VECTORS, texts.INFO], ids=lambda info: info.kind)
def test_it_comes_back(info: StreamInfo, ending: str, tmp_path: Path) -> None:
    frames = LATE if info is VECTORS else SAID
    options = {"values": True} if ending == ".jsonl" else {}
    path = written(tmp_path / f"a{ending}", info, frames, **options)
    read, got = read_file(path)
    assert read == info and len(got) == len(frames) and all(map(same, got, frames))


@pytest.mark.parametrize("ending", [".arrows", ".parquet", ".npz"])
def test_as_arrays(ending: str, tmp_path: Path) -> None:
    recording = streamenc.read(written(tmp_path / f"a{ending}", VECTORS, LATE))
    assert recording.segments is not None and recording.revised is not None
    assert recording.segments.tolist() == [0, 1, 1, 2, 3, 0]
    assert recording.revised.tolist() == [False, False, True, False, False, True]
    assert recording.latest.tolist() == [False, False, True, True, True, True]
    assert recording.times.tolist() == [0, 0.5, 0.5, 1, 1.5, 0]
    assert recording.data[0, recording.latest].tolist() == [2, 3, 4, 0]


@pytest.mark.parametrize("ending", [".arrows", ".parquet", ".npz", ".jsonl"])
def test_text_beside_its_vectors(ending: str, tmp_path: Path) -> None:
    info = StreamInfo.mux([texts.INFO, VECTORS])
    frames = [f for a, b in zip(SAID, MADE, strict=True) for f in (a, b.with_(track=1))]
    options = {"values": True} if ending == ".jsonl" else {}
    read, got = read_file(written(tmp_path / f"a{ending}", info, frames, **options))
    assert read == info and len(got) == 10
    for track in (0, 1):  # between tracks, what begins at once has no order
        these, those = ([f for f in some if f.track == track] for some in (got, frames))
        assert all(map(same, these, those))
    if ending != ".jsonl":
        said, made = streamenc.read(tmp_path / f"a{ending}").tracks
        assert said.data[0, said.latest].tolist() == ["one", "zwei", "a much longer one", "one"]
        assert made.segments is not None and made.segments.tolist() == [0, 1, 1, 2, 3]


def test_the_columns(tmp_path: Path) -> None:
    path = written(tmp_path / "a.arrows", StreamInfo.mux([texts.INFO, VECTORS]), SAID)
    with pa.ipc.open_stream(path) as file:
        table = file.read_all()
    assert table.column_names[-4:] == ["segment", "revised", "text_0", "values_1"]
    assert table.column("text_0").to_pylist()[1] == "zwei €"
    assert json.loads(table.schema.metadata[b"streamenc"])["version"] == 3


def test_other_recordings_are_as_they_were(tmp_path: Path) -> None:
    frame = Frame(np.zeros((8, 1), np.uint16), 0, 1920, 0)
    path = written(tmp_path / "a.arrows", CODES, [frame])
    with pa.ipc.open_stream(path) as file:
        schema = file.read_all().schema
    assert "segment" not in schema.names
    assert json.loads(schema.metadata[b"streamenc"])["version"] == 2
    recording = streamenc.read(path)
    assert recording.segments is None and recording.revised is None
    assert recording.latest.tolist() == [True]


def test_several_segments_in_a_frame_are_refused(tmp_path: Path) -> None:
    frame = Frame(np.array([["a", "b"]]), 0, 0, 0)
    with pytest.raises(InputError, match="a segment in each frame"):
        written(tmp_path / "a.arrows", texts.INFO, [frame])


def test_a_segment_that_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    written(path, texts.INFO, SAID[:1])
    path.write_text(path.read_text().replace('[["one"]]', "[[1]]"))
    with pytest.raises(MediaError, match="line 2 is not a whole frame"):
        read_file(str(path))


def test_room_is_counted_as_the_longest_segment_takes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamenc.io.files.tables.npz.MAX_BYTES", 4000)
    with pytest.raises(streamenc.errors.OutputError, match="got more than 4000 bytes"):
        written(tmp_path / "a.npz", texts.INFO, texts.segments("a" * 400, "b", "c", "d"))
