"""Files of streams: changed bytes, absurd contents in a right form, and what unpacks to much."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from functools import cache
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from streamenc.cli.look.inspection import inspect_file
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.graph.node import BlockingSink
from streamenc.io.files.ecdc import EcdcSink
from streamenc.io.files.infojson import info_to_json
from streamenc.io.files.jsonlines import JsonLinesSink
from streamenc.io.files.recording import RecordingSink
from streamenc.io.files.tables.columns import METADATA_KEY, Columns
from streamenc.io.files.tables.npz import NpzSink
from streamenc.io.files.tables.parquet import ParquetSink
from streamenc.io.reading import read
from tests.campaign.target import mutated

CODES = StreamInfo("codes", Fraction(1, 24000), Fraction(25, 2), (8, None), "uint16", "demo", 2048)
ENCODEC = replace(CODES, rate=Fraction(75), model="facebook/encodec_24khz", codebook_size=1024)
FEATURES = StreamInfo("features", Fraction(1, 16000), Fraction(50), (6, None), "float32", "demo")
HALVES = replace(FEATURES, dtype="bfloat16")
SOUND = StreamInfo("audio", Fraction(1, 16000), Fraction(16000), (2, None), "float32")
VIDEO = StreamInfo("video", Fraction(1, 90000), Fraction(25), (3, None, 4, 6), "uint8")
TEXT = StreamInfo("text", Fraction(1, 1000), Fraction(0), (1, None), "str")
INFOS = (CODES, FEATURES, HALVES, SOUND, VIDEO, TEXT, StreamInfo.mux([SOUND, VIDEO]))
NUMBERS = (0, 1, -1, 2, 255, 2**31 - 1, 2**31, 2**53, 2**62, 2**63 - 1, -(2**63))
VALUES = (
    None, True, "", "x", "\ud800", "a\x1b[2J", "0/1", "1/0", "-1/2", "1/24000", "9" * 40 + "/1",
    "1/" + "9" * 39, [], [None], [8, None], [0, None], [None, None], [8, None, 2**40], [2**31] * 8,
    {}, 1.5, -1, 0, 2**31, 2**63, 10**30, "codes", "audio", "video", "text", "features", "mux",
    "uint8", "float32", "float64", "bfloat16", "str", "int64",
)  # fmt: skip


def frames_of(info: StreamInfo, count: int) -> list[Frame]:
    made = []
    for seq in range(count):
        track = seq % max(1, len(info.tracks))
        one = info.track(track)
        shape = [size or 2 for size in one.shape]
        data: Any = np.full(shape, seq % 200).astype(one.array_dtype)
        if one.kind == "text":
            data = np.array([[f"segment {seq}"]])
        made.append(Frame(data, seq * 100, 100, seq, track=track))
    return made


@cache
def seed_of(suffix: str, info: StreamInfo, count: int = 8) -> bytes:
    """A whole file."""
    made: dict[str, Callable[[str], BlockingSink]] = {
        ".arrows": RecordingSink,
        ".parquet": ParquetSink,
        ".npz": NpzSink,
        ".ecdc": EcdcSink,
        ".jsonl": lambda path: JsonLinesSink(path, values=True),
    }
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"seed{suffix}"
        sink = made[suffix](str(path))
        sink.open_blocking(info)
        for frame in frames_of(info, count):
            sink.write_blocking(frame)
        sink.close_blocking()
        return path.read_bytes()


def absurd_table(rng: Random) -> Any:
    """A table of Arrow whose schema or contents are no stream's."""
    info = rng.choice(INFOS)
    columns = Columns(info, bits=rng.random() < 0.8)
    rows = [columns.row(frame, 0) for frame in frames_of(info, rng.choice((1, 3, 9)))]
    batch = columns.batch(rows)
    described = json.loads(columns.schema.metadata[METADATA_KEY])
    for _ in range(rng.choice((0, 1, 1, 2))):
        wheres = [described, *[described["info"]] * 4]
        if isinstance(described["info"], dict):
            tracks = described["info"].get("tracks")
            wheres += tracks if isinstance(tracks, list) else []
        where = rng.choice([where for where in wheres if where and isinstance(where, dict)])
        where[rng.choice(list(where))] = rng.choice((*VALUES, *NUMBERS))
    arrays = batch.columns
    if rng.random() < 0.6:
        place = rng.randrange(len(arrays))
        arrays[place] = _absurd_column(arrays[place], rng)
    fields = [pa.field(f.name, a.type) for f, a in zip(batch.schema, arrays, strict=True)]
    if rng.random() < 0.9:
        fields = [f.with_nullable(g.nullable) for f, g in zip(fields, batch.schema, strict=True)]
    if rng.random() < 0.1:
        place = rng.randrange(len(fields))
        fields[place] = fields[place].with_name(rng.choice(("", "x" * 10_000, "\x1b[2J", "codes")))
    metadata = {METADATA_KEY: json.dumps(described).encode()}
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields, metadata=metadata))


def _absurd_column(column: Any, rng: Random) -> Any:
    if pa.types.is_integer(column.type):
        numbers = [rng.choice(NUMBERS) for _ in range(len(column))]
        made = pa.array(np.array(numbers, np.int64))
        return made if rng.random() < 0.1 else made.cast(column.type, safe=False)
    if pa.types.is_floating(column.type):
        odd = (float("nan"), float("inf"), -1.0, 0.0, 1e300, 1e-40)
        return pa.array([rng.choice(odd) for _ in range(len(column))]).cast(column.type, safe=False)
    if rng.random() < 0.3:
        return pa.nulls(len(column), column.type)
    if pa.types.is_list(column.type):
        values = column.flatten()
        ends = sorted(rng.randrange(len(values) + 1) for _ in range(len(column) - 1))
        offsets = pa.array([0, *ends, len(values)], pa.int32())
        return pa.ListArray.from_arrays(offsets, values, type=column.type)
    return column


def packed_arrow(table: Any, compression: str | None) -> bytes:
    out = io.BytesIO()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_stream(out, table.schema, options=options) as writer:
        writer.write_table(table)
    return out.getvalue()


def packed_parquet(table: Any, rng: Random) -> bytes:
    out = io.BytesIO()
    try:
        pq.write_table(table, out, compression=rng.choice(("zstd", "none", "gzip", "snappy")))
    except (pa.ArrowException, OSError):  # nulls where there can be none
        return b"PAR1"
    return out.getvalue()


class Files:
    """Files that `streamenc inspect` and `streamenc.read` take."""

    seconds, peak_bytes = 2.0, 200 << 20

    def __init__(self, folder: Path, suffix: str, made: Callable[[Random], bytes]) -> None:
        self._path = folder / f"file{suffix}"
        self._made = made

    def case(self, rng: Random) -> bytes:
        return self._made(rng)

    def take(self, data: bytes) -> None:
        self._path.write_bytes(data)
        try:
            inspect_file(str(self._path))
        finally:
            read(str(self._path))


def _recording(rng: Random) -> bytes:
    what = rng.random()
    if what < 0.3:
        return mutated(seed_of(".arrows", rng.choice(INFOS)), rng)
    table = absurd_table(rng) if what < 0.7 else _table(rng.choice(INFOS))
    packed = packed_arrow(table, rng.choice((None, "lz4", "zstd")))
    if what < 0.7:
        return packed
    return mutated(packed, rng) if what < 0.98 else _bomb(rng)


@cache
def _table(info: StreamInfo) -> Any:
    columns = Columns(info)
    rows = [columns.row(frame, 0) for frame in frames_of(info, 8)]
    return pa.Table.from_batches([columns.batch(rows)])


@cache
def _bomb_of(rows: int, compression: str) -> bytes:
    """Half a gigabyte, or millions of rows, in some kB."""
    schema = Columns(FEATURES).schema
    floats = 0 if rows > 1 else 6 * 2**24
    *common, nested = (field.type for field in schema)
    arrays = [
        pa.array(np.zeros(rows, bool), t) if t == pa.bool_() else _zeros(rows, t) for t in common
    ]
    items = _zeros(floats, pa.float32())
    bins = pa.FixedSizeListArray.from_arrays(items, type=nested.value_type)
    ends = np.full(rows + 1, len(bins), np.int32)
    ends[0] = 0
    arrays.append(pa.ListArray.from_arrays(pa.array(ends), bins, type=nested))
    return packed_arrow(pa.Table.from_arrays(arrays, schema=schema), compression)


def _zeros(count: int, kind: Any) -> Any:
    return pa.array(np.zeros(count, kind.to_pandas_dtype()), kind)


def _bomb(rng: Random) -> bytes:
    return _bomb_of(rng.choice((1, 2**21)), rng.choice(("zstd", "lz4")))


def recordings(folder: Path) -> Files:
    return Files(folder, ".arrows", _recording)


def parquet(folder: Path) -> Files:
    def made(rng: Random) -> bytes:
        if rng.random() < 0.6:
            return mutated(seed_of(".parquet", rng.choice(INFOS)), rng)
        return packed_parquet(absurd_table(rng), rng)

    return Files(folder, ".parquet", made)


def npz(folder: Path) -> Files:
    def made(rng: Random) -> bytes:
        seed = seed_of(".npz", rng.choice(INFOS))
        if rng.random() < 0.5:
            return mutated(seed, rng)
        arrays = dict(np.load(io.BytesIO(seed)))
        for _ in range(rng.choice((1, 1, 2))):
            name = rng.choice(list(arrays))
            if rng.random() < 0.3 and str(arrays["info"]).startswith("{"):
                described = json.loads(str(arrays["info"]))
                described[rng.choice(list(described))] = rng.choice((*VALUES, *NUMBERS))
                arrays["info"] = np.array(json.dumps(described))
            elif rng.random() < 0.2:
                del arrays[name]
            else:
                arrays[name] = rng.choice(_ODD_ARRAYS)
            if "info" not in arrays:
                break
        out = io.BytesIO()
        rng.choice((np.savez, np.savez_compressed))(out, **arrays)
        if rng.random() < 0.03:
            _add_zeros(out)
        return out.getvalue()

    return Files(folder, ".npz", made)


_ODD_ARRAYS: tuple[Any, ...] = (
    np.zeros(0), np.zeros((8, 0), np.uint16), np.zeros((8, 16), np.uint16), np.array("x"),
    np.array(["\x1b[2J"]), np.full((8, 3), 2**63 - 1), np.full((8, 3), -(2**63)),
    np.full(16, np.nan), np.full(16, np.inf, np.float32), np.zeros((1,) * 30, bool),
    np.array([[0, 2**62, 2**62]]), np.array([[0, 0, -1], [1, 0, 0]]), np.zeros(3, "M8[ns]"),
    np.zeros(3, "V9"), np.zeros(3, complex),
)  # fmt: skip


def _add_zeros(out: io.BytesIO) -> None:
    """An array of 300 MB in 300 kB."""
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        head, {"descr": "<u2", "fortran_order": False, "shape": (8, 150_000_000 // 8)}
    )
    with (
        zipfile.ZipFile(out, "a", zipfile.ZIP_DEFLATED) as archive,
        archive.open("codes2.npy", "w") as file,
    ):
        file.write(head.getvalue())
        for _ in range(300):
            file.write(bytes(1_000_000))


def ecdc(folder: Path) -> Files:
    def made(rng: Random) -> bytes:
        seed = seed_of(".ecdc", ENCODEC)
        if rng.random() < 0.5:
            return mutated(seed, rng)
        header = {"m": "encodec_24khz", "al": 5120, "nc": 8, "lm": False}
        name = rng.choice(list(header))
        odd = ("encodec_48khz", 2**40, 2**41, 10**400, float("nan"), 32, 33, [[]] * 100)
        header[name] = rng.choice((*VALUES, *NUMBERS, *odd))
        text = json.dumps(header).encode()
        if rng.random() < 0.1:
            text = rng.choice((b"[" * 4096, b'{"m":' * 700, b"1" * 4096, b"\xff" * 9))
        return (
            b"ECDC\x00"
            + len(text).to_bytes(4, "big")
            + text
            + rng.randbytes(rng.choice((0, 80, 5000)))
        )

    return Files(folder, ".ecdc", made)


def jsonlines(folder: Path) -> Files:
    def made(rng: Random) -> bytes:
        info = rng.choice(INFOS)
        seed = seed_of(".jsonl", info)
        if rng.random() < 0.4:
            return mutated(seed, rng)
        if rng.random() < 0.02:
            start = json.dumps({"info": info_to_json(CODES)}).encode() + b"\n"
            return start + rng.choice((b"[" * 10**6, b'{"codes": [' + b"[]," * 10**6, b"1" * 10**6))
        lines = [json.loads(line) for line in seed.splitlines()]
        for _ in range(rng.choice((1, 1, 2, 3))):
            line = rng.choice(lines)
            where = line["info"] if "info" in line else line
            where[rng.choice([*where, "track", "scale", "segment", "end"])] = rng.choice(
                (*VALUES, *NUMBERS, float("nan"), 1e308, [[[]]], [["a", 1]], [[1.5]], [[1], [2, 3]])
            )
        return b"\n".join(json.dumps(line).encode() for line in lines)

    return Files(folder, ".jsonl", made)
