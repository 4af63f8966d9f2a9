"""What a compressed recording becomes is known before it is unpacked."""

from __future__ import annotations

import io
import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from streamenc.errors import MediaError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.io.files.recording import RecordingSink
from streamenc.io.files.tables.arrowmessages import MAX_UNPACKED_ROWS, ArrowStream
from streamenc.io.files.tables.columns import Columns
from streamenc.io.reading import read, read_file

FEATURES = StreamInfo("features", Fraction(1, 16_000), Fraction(50), (6, None), "float32", "demo")


def packed(table: Any, compression: str | None) -> bytes:
    out = io.BytesIO()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_stream(out, table.schema, options=options) as writer:
        writer.write_table(table)
    return out.getvalue()


def zeros(rows: int, floats: int) -> Any:
    """A recording of that many rows, the last of which has all the floats."""
    schema = Columns(FEATURES).schema
    *common, nested = (field.type for field in schema)
    arrays = [pa.array(np.zeros(rows, kind.to_pandas_dtype()), kind) for kind in common]
    bins = pa.FixedSizeListArray.from_arrays(
        pa.array(np.zeros(floats, np.float32)), type=nested.value_type
    )
    ends = np.zeros(rows + 1, np.int32)
    ends[-1] = len(bins)
    arrays.append(pa.ListArray.from_arrays(pa.array(ends), bins, type=nested))
    return pa.Table.from_arrays(arrays, schema=schema)


@pytest.mark.parametrize("compression", ["lz4", "zstd", None])
def test_what_was_compressed_elsewhere_is_read(tmp_path: Path, compression: str | None) -> None:
    path = tmp_path / "a.arrows"
    path.write_bytes(packed(zeros(5, 600), compression))
    assert read(path).data.shape == (6, 100)


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
@pytest.mark.parametrize(
    ("rows", "floats"), [(1, 6 * 2**23), (MAX_UNPACKED_ROWS + 1, 0)], ids=["bytes", "rows"]
)
def test_bombs(tmp_path: Path, compression: str, rows: int, floats: int) -> None:
    path = tmp_path / "bomb.arrows"
    path.write_bytes(packed(zeros(rows, floats), compression))
    assert path.stat().st_size < 2**20
    before = pa.total_allocated_bytes()
    peak = pa.default_memory_pool().max_memory() or 0
    with pytest.raises(MediaError, match=f"a compressed batch of {rows} rows becomes"):
        read_file(str(path))
    assert pa.total_allocated_bytes() - before < 2**20
    assert (pa.default_memory_pool().max_memory() or 0) == peak  # nor for a moment


def test_the_note_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "a.arrows"
    sink = RecordingSink(str(path))
    sink.open_blocking(FEATURES)
    sink.write_blocking(Frame(np.zeros((6, 1), np.float32), 0, 320, 0))
    sink.broken = "the cable was pulled"
    sink.close_blocking()
    stream = ArrowStream(io.BytesIO(path.read_bytes()))
    notes = [note for _, note in stream.batches()]
    assert notes == [{}, {b"streamenc": b'{"broken": "the cable was pulled"}'}]
    assert read(path).broken == "the cable was pulled"


def test_every_message_that_is_damaged_is_refused(tmp_path: Path) -> None:
    """Each offset in the description of a batch, changed: nothing but an error of ours."""
    whole = packed(zeros(2, 12), "lz4")
    path = tmp_path / "a.arrows"
    start = whole.index(b"\xff\xff\xff\xff", 8)
    (length,) = struct.unpack_from("<i", whole, start + 4)
    taken = 0
    for place in range(start + 8, start + 8 + length, 8):
        for value in (-1, 2**31 - 1):
            damaged = bytearray(whole)
            struct.pack_into("<i", damaged, place, value)
            path.write_bytes(damaged)
            try:
                read_file(str(path))
                taken += 1
            except MediaError:
                pass
    assert taken < length // 4  # of some fields any number will do


@pytest.mark.parametrize("data", [b"", b"\0" * 8, b"\xff\xff\xff\xff\0\0\0\0", b"ARROW1\0\0"])
def test_what_is_none(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.arrows"
    path.write_bytes(data)
    with pytest.raises(MediaError, match="not an Arrow IPC stream"):
        read_file(str(path))
