"""Parquet and Arrow files: which column is encoded, keys, parts, and what is passed through."""

from __future__ import annotations

import datetime
import decimal
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import streamenc
from streamenc.bulk.inputs.tables.mediacolumn import MediaColumn
from streamenc.bulk.items import Blob, Fault, Item, Local, Remote
from streamenc.errors import UsageError
from tests.support.bulksets import RATE, all_of, items_of, opened, sounds, spans_of, wav

SOUND = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def struct(data: bytes | None, path: str | None = None) -> dict[str, Any]:
    return {"bytes": data, "path": path}


def table(count: int = 10) -> pa.Table:
    held = sounds(count)
    return pa.table(
        {
            "audio": pa.array([struct(data, f"{k}.wav") for k, data in held.items()], SOUND),
            "text": [f"text of {key}" for key in held],
        }
    )


def blobs(found: list[Item]) -> list[bytes]:
    return [item.media.data for item in found if isinstance(item.media, Blob)]


def test_rows_in_their_order(tmp_path: Path):
    pq.write_table(table(), tmp_path / "a.parquet")
    found = items_of(opened(tmp_path / "a.parquet", tmp_path / "kept"))
    assert [item.key for item in found] == [f"a.parquet:{n}" for n in range(10)]
    assert blobs(found) == list(sounds().values())
    assert found[3].columns == {"text": "text of clip03"}
    assert found[3].media.name == "a.parquet:3 (clip03.wav)"


@pytest.mark.parametrize(
    ("groups", "most", "parts"),
    [
        ([10], 4, [4, 4, 2]),
        ([10], 1000, [10]),
        ([3, 3, 3, 1], 7, [6, 4]),
        ([3, 3, 3, 1], 3, [3, 3, 3, 1]),
        ([2, 7, 1], 3, [2, 3, 3, 2]),
        ([2, 7, 1], 1, [1] * 10),
    ],
)
def test_parts_end_with_row_groups(tmp_path: Path, groups: list[int], most: int, parts: list[int]):
    rows, at = table(), 0
    with pq.ParquetWriter(tmp_path / "a.parquet", rows.schema) as writer:
        for size in groups:
            writer.write_table(rows.slice(at, size))
            at += size
    pq.write_table(table(2), tmp_path / "b.parquet")
    input = opened(tmp_path, tmp_path / "kept")
    spans = spans_of(input, most)
    here = [span.items for span in spans if span.source == "a.parquet"]
    assert here == parts
    assert sum(span.items for span in spans) == 12
    found = items_of(input, most)
    assert blobs(found) == [*sounds().values(), *sounds(2).values()]
    assert found[-1].key == "b.parquet:1"


def test_types_of_columns_stay_what_they_are(tmp_path: Path):
    held = {
        "text": pa.array(["a", None], pa.large_string()),
        "ns": pa.array([1, None], pa.timestamp("ns", "UTC")),
        "day": pa.array([datetime.date(2026, 1, 2), None]),
        "price": pa.array([decimal.Decimal("1.50"), None], pa.decimal128(9, 2)),
        "half": pa.array(np.array([0.5, 1.5], np.float16)),
        "words": pa.array([[{"word": "a", "start": 0.5}], []]),
        "speaker": pa.array(["x", "y"]).dictionary_encode(),
        "vector": pa.array([[1, 2], [3, 4]], pa.list_(pa.int8(), 2)),
        "raw": pa.array([b"\0", b""]),
        "seconds": pa.array([1.0, 2.0]),
    }
    whole = table(2).append_column("image", pa.array([struct(b"jpg")] * 2, SOUND))
    for name, column in held.items():
        whole = (
            whole.append_column(name, column)
            if name != "text"
            else whole.set_column(1, name, column)
        )
    pq.write_table(whole, tmp_path / "a.parquet")
    input = opened(tmp_path / "a.parquet", tmp_path / "kept", column="audio")
    assert input.columns().names == list(held)  # other media are not passed through
    for at, item in enumerate(items_of(input)):
        for name, column in held.items():
            assert input.columns().field(name).type == column.type
            again = pa.array([item.columns[name]], column.type)
            assert again.to_pylist() == column[at : at + 1].to_pylist(), name


def test_forms_of_media(tmp_path: Path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.wav").write_bytes(wav(0))
    samples = np.linspace(-0.5, 0.5, 999, dtype=np.float32)
    pairs = pa.struct([("array", pa.list_(pa.float64())), ("sampling_rate", pa.int64())])
    for number, (columns, expected) in enumerate(
        [
            ({"audio": pa.array([struct(None, "sub/a.wav")], SOUND)}, Local),
            ({"audio": pa.array([struct(None, "s3://bucket/a.wav")], SOUND)}, Remote),
            ({"file": ["sub/a.wav"], "text": ["a"]}, Local),
            ({"audio": ["https://example.org/a.wav"], "path": ["x"]}, Remote),
            ({"wav": [wav(0)], "raw": [b"x"]}, Blob),
            ({"bytes": [wav(0)], "text": ["a"]}, Blob),
            ({"speech": [samples], "sampling_rate": [RATE], "embedding": [samples]}, Blob),
            ({"audio": pa.array([{"array": samples, "sampling_rate": RATE}], pairs)}, Blob),
        ]
    ):
        path = tmp_path / f"{number}.parquet"
        pq.write_table(pa.table(columns), path)
        (item,) = items_of(opened(path, tmp_path / f"kept{number}"))
        assert isinstance(item.media, expected), columns
        if isinstance(item.media, Local):
            assert item.media.path == str(tmp_path / "sub" / "a.wav")
    assert isinstance(item.media, Blob)
    (tmp_path / "made.wav").write_bytes(item.media.data)
    read = streamenc.read(str(tmp_path / "made.wav"))
    assert read.info.rate == RATE
    np.testing.assert_array_equal(read.data[0], samples)


@pytest.mark.parametrize(
    ("columns", "takes", "words"),
    [
        ({"text": ["a"]}, "audio", "no column of sound among text"),
        ({"a": [b"1"], "b": [b"2"]}, "audio", "several columns hold sound: a, b"),
        ({"speech": [[0.5]]}, "audio", "there is no sampling_rate"),
    ],
)
def test_a_table_without_media_is_refused(columns: Any, takes: str, words: str):
    with pytest.raises(UsageError, match=words):
        MediaColumn(pa.table(columns).schema, takes)


def test_which_column(tmp_path: Path):
    def noted(**kinds: str) -> dict[bytes, bytes]:
        features = {name: {"_type": kind} for name, kind in kinds.items()}
        return {b"huggingface": json.dumps({"info": {"features": features}}).encode()}

    fields = [("a", SOUND), ("b", SOUND), ("c", pa.string()), ("d", pa.binary())]
    said = pa.schema(fields, noted(a="Image", b="Audio"))
    assert MediaColumn(said, "audio").name == "b"
    assert MediaColumn(said, "video").name == "a"
    assert MediaColumn(said, "audio").others == {"a"}
    assert MediaColumn(said, "audio", "d").name == "d"
    assert (
        MediaColumn(pa.schema([("x", pa.binary()), ("Audio", pa.binary())]), "audio").name
        == "Audio"
    )
    for bad, words in (("e", "there is no column 'e'; there are a "), ("n", "'n' holds int64")):
        with pytest.raises(UsageError, match=words):
            MediaColumn(pa.schema([*fields, ("n", pa.int64())]), "audio", bad)


def test_keys(tmp_path: Path):
    for number, (columns, keys, passed) in enumerate(
        [
            ({"key": ["x", "y"]}, ["x", "y"], []),
            ({"id": [7, 8]}, ["7", "8"], ["id"]),
            ({"id": [7, 7], "utt_id": ["u", "v"]}, ["u", "v"], ["id", "utt_id"]),
            ({"id": ["x", None]}, ["{}:0", "{}:1"], ["id"]),
            ({"key": [0.5, 1.5]}, ["{}:0", "{}:1"], ["key"]),
        ]
    ):
        path = tmp_path / f"{number}.parquet"
        pq.write_table(pa.table({**columns, "audio": [wav(0), wav(1)]}), path)
        input = opened(path, tmp_path / f"kept{number}")
        assert [i.key for i in items_of(input)] == [key.format(path.name) for key in keys]
        assert input.columns().names == passed
    for number in range(2):  # numbers that begin anew in each file
        (tmp_path / "two").mkdir(exist_ok=True)
        pq.write_table(
            pa.table({"id": [0, 1], "audio": [wav(0)] * 2}), tmp_path / f"two/{number}.pq"
        )
    keys = [item.key for item in items_of(opened(tmp_path / "two", tmp_path / "kept"))]
    assert keys == ["0.pq:0", "0.pq:1", "1.pq:0", "1.pq:1"]


def test_rows_that_are_none(tmp_path: Path):
    rows = [
        None,
        struct(None),
        struct(b""),
        struct(wav(0)),
        struct(None, "udp://group"),
        struct(None, ""),
    ]
    pq.write_table(
        pa.table({"audio": pa.array(rows, SOUND), "id": [1, 2, 3, 4, 5, 6]}), tmp_path / "a.parquet"
    )
    found = all_of(opened(tmp_path / "a.parquet", tmp_path / "kept"))
    assert [each.key for each in found] == ["1", "2", "3", "4", "5", "6"]
    assert [type(each) for each in found] == [Fault, Fault, Fault, Item, Fault, Fault]
    reasons = [each.reason for each in found if isinstance(each, Fault)]
    assert "nothing in this row" in reasons[0] and "neither bytes nor a path" in reasons[1]
    assert "no bytes" in reasons[2] and "in no store" in reasons[3]


def test_files_that_differ(tmp_path: Path):
    pq.write_table(pa.table({"audio": [wav(0)], "text": ["a"], "n": [1]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"audio": [wav(1)], "more": ["a"], "n": ["x"]}), tmp_path / "b.parquet")
    pq.write_table(pa.table({"sound": [wav(1)]}), tmp_path / "c.parquet")
    a, b, c = all_of(opened(tmp_path, tmp_path / "kept"))
    assert isinstance(a, Item) and a.columns == {"text": "a", "n": 1}
    assert isinstance(b, Item) and b.columns == {"n": "x"}  # which the shard makes null, flagged
    assert isinstance(c, Fault) and "no column 'audio'" in c.reason


def test_damaged_files(tmp_path: Path):
    for name in ("a", "b", "c", "d"):
        pq.write_table(table(6), tmp_path / f"{name}.parquet", row_group_size=2, compression="none")
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(b"")
    (tmp_path / "b.parquet").write_bytes(whole[: len(whole) // 2])
    middle = pq.ParquetFile(io.BytesIO(whole)).metadata.row_group(1).column(0).data_page_offset
    (tmp_path / "c.parquet").write_bytes(whole[:middle] + b"\xff" * 40 + whole[middle + 40 :])
    input = opened(tmp_path, tmp_path / "kept")
    found = all_of(input, 4)
    assert [each.key for each in found] == [
        "a.parquet",
        "b.parquet",
        *(f"{name}.parquet:{row}" for name in "cd" for row in range(6)),
    ]
    # Of c, the second of three row groups is lost.
    is_item = [True] * 2 + [False] * 2 + [True] * 8
    assert [isinstance(each, Item) for each in found] == [False, False, *is_item]
    assert all("no table" in each.reason for each in found if isinstance(each, Fault))


@pytest.mark.parametrize("kind", ["file", "stream"])
def test_arrow_files(tmp_path: Path, kind: str):
    whole, path = table(), tmp_path / "a.arrow"
    make = pa.ipc.new_file if kind == "file" else pa.ipc.new_stream
    with open(path, "wb") as sink, make(sink, whole.schema) as writer:
        writer.write_table(whole, max_chunksize=3)
    input = opened(path, tmp_path / "kept")
    assert [span.items for span in spans_of(input, 4)] == [3, 3, 4]
    assert blobs(items_of(input, 4)) == list(sounds().values())
    path.write_bytes(path.read_bytes()[:-60_000])
    assert isinstance(all_of(opened(path, tmp_path / "again"))[-1], Fault)


def test_a_table_in_a_store(tmp_path: Path):
    fsspec = pytest.importorskip("fsspec")
    store = fsspec.filesystem("memory")
    held = io.BytesIO()
    pq.write_table(table(), held, row_group_size=3)
    try:
        for name in ("a", "b"):
            store.pipe(f"/set/{name}.parquet", held.getvalue())
        for number, address in enumerate(("memory://set", "memory://set/*.parquet")):
            found = items_of(opened(address, tmp_path / f"kept{number}"), 4)
            assert blobs(found) == [*sounds().values()] * 2
        assert found[-1].key == "b.parquet:9"
    finally:
        store.rm("/set", recursive=True)


def test_rows_are_read_a_few_at_a_time(tmp_path: Path):
    """64 MiB in one row group: a few of its pages are in memory."""
    noise = np.random.default_rng(0).bytes(2**20)
    column = [noise[n:] + noise[:n] for n in range(64)]
    whole = pa.table({"audio": column})
    pq.write_table(whole, tmp_path / "a.parquet", compression="none", write_batch_size=1)
    del column, whole
    input = opened(tmp_path / "a.parquet", tmp_path / "kept")
    (span,) = spans_of(input)
    pool = pa.default_memory_pool()
    before, most = pool.bytes_allocated(), 0
    for item in input.items(span):
        assert isinstance(item, Item) and len(blobs([item])[0]) == 2**20
        most = max(most, pool.bytes_allocated() - before)
    assert most < 16 * 2**20
