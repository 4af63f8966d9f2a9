from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamenc.errors import FitError, InputError, MediaError, OutputError, UsageError
from streamenc.graph.frames import Frame, StreamInfo, round_to_bfloat16
from streamenc.io.files.infojson import info_to_json
from streamenc.io.files.recording import RecordingSink, RecordingSource
from streamenc.io.files.tables.columns import METADATA_KEY, Columns
from streamenc.io.files.tables.firstversion import SCHEMA as FIRST_SCHEMA
from streamenc.io.reading import read_file
from tests.support.disk import tiny_disk
from tests.support.profile import examples

CODES = StreamInfo(
    "codes", Fraction(1, 44100), Fraction(25, 2), (8, None), "uint16", "kyutai/mimi", 2048
)
HALF = StreamInfo("features", Fraction(1, 16000), Fraction(50), (5, None), "float16", "mel")
SOUND = StreamInfo("audio", Fraction(1, 48000), Fraction(48000), (2, None), "float32")
MUX = StreamInfo("mux", Fraction(1, 1000), Fraction(0), (), "", tracks=(CODES, HALF, SOUND))
VIDEO = StreamInfo("video", Fraction(1, 90_000), Fraction(30_000, 1001), (3, None, 5, 12), "uint8")
GRID = StreamInfo(
    "codes", Fraction(1, 90_000), Fraction(15, 4), (1, None, 3, 5), "uint16", "dv", 64_000
)
LATENTS = StreamInfo("features", Fraction(1, 25), Fraction(25), (16, None, 3, 5), "float16", "cv")
FILM = StreamInfo("mux", Fraction(1, 720_000), Fraction(0), (), "", tracks=(CODES, GRID))


def frames_of(info: StreamInfo, count: int, seed: int = 0) -> list[Frame]:
    rng = np.random.default_rng(seed)
    tracks = info.tracks or (info,)
    made = []
    for seq in range(count):
        track = seq % len(tracks)
        rows, items = tracks[track].shape[0], int(rng.integers(0, 7))
        grid = tracks[track].shape[2:]
        if grid:
            data: Any = rng.integers(0, 256, (rows, items, *grid)).astype(tracks[track].dtype)
        elif tracks[track].kind == "codes":
            rows = int(rng.integers(1, 9))  # as many codebooks as this frame happens to have
            data = rng.integers(0, 2048, (rows, items)).astype("uint16")
        else:
            data = rng.standard_normal((rows, items)).astype(tracks[track].dtype)
        made.append(
            Frame(
                data,
                pts=-7 + seq * 3528,
                duration=3528,
                seq=seq // len(tracks),
                discontinuity=bool(rng.integers(0, 2)),
                arrived_ns=seq * 1000,
                scale=float(np.float32(rng.random())),
                track=track,
            )
        )
    return made


def record(path: Path, info: StreamInfo, frames: list[Frame], **options: Any) -> None:
    sink = RecordingSink(str(path), **options)
    sink.open_blocking(info)
    for frame in frames:
        sink.write_blocking(frame)
    sink.close_blocking()
    sink.close_blocking()


def play(path: Path) -> tuple[StreamInfo, list[Frame], bool]:
    source = RecordingSource(str(path))
    try:
        info = source.open_blocking()
        return info, list(iter(source.read, None)), bool(source.broken)
    finally:
        source.close_blocking()
        source.close_blocking()


def same(got: list[Frame], wanted: list[Frame]) -> None:
    assert len(got) == len(wanted)
    for a, b in zip(got, wanted, strict=True):
        for name in ("pts", "duration", "seq", "discontinuity", "scale", "track"):
            assert getattr(a, name) == getattr(b, name)
        assert a.data.dtype == b.data.dtype
        if b.data.size:  # of nothing, nobody asks how many codebooks it has
            np.testing.assert_array_equal(a.data, b.data, strict=True)
        assert a.data.shape[1:] == b.data.shape[1:]


@pytest.mark.parametrize("info", [CODES, HALF, SOUND, MUX, VIDEO, GRID, LATENTS, FILM], ids=str)
@pytest.mark.parametrize("flush_ms", [0, "60000"])
def test_what_was_written_comes_back(tmp_path: Path, info: StreamInfo, flush_ms: Any) -> None:
    frames = frames_of(info, 50)
    record(tmp_path / "a.arrows", info, frames, flush_ms=flush_ms)
    got_info, got, truncated = play(tmp_path / "a.arrows")
    assert got_info == info
    assert not truncated
    same(got, frames)


def test_views_and_other_byte_orders_are_written_as_they_read(tmp_path: Path) -> None:
    data = np.arange(24, dtype=">u2").reshape(3, 8)[:, ::2]
    record(tmp_path / "a.arrows", CODES, [Frame(data, 0, 1, 0)])
    _, (frame,), _ = play(tmp_path / "a.arrows")
    np.testing.assert_array_equal(frame.data, data)


def test_plain_pyarrow_gets_the_codes(tmp_path: Path) -> None:
    frames = frames_of(CODES, 5)
    record(tmp_path / "a.arrows", CODES, frames)
    rows = pa.ipc.open_stream(str(tmp_path / "a.arrows")).read_all().to_pylist()
    for row, frame in zip(rows, frames, strict=True):
        assert row["codes"] == frame.data.T.tolist()
        assert row["seconds"] == frame.pts / 44100


def test_each_track_of_a_mux_has_a_column(tmp_path: Path) -> None:
    frames = frames_of(FILM, 4)
    record(tmp_path / "a.arrows", FILM, frames)
    table = pa.ipc.open_stream(str(tmp_path / "a.arrows")).read_all()
    assert table["codes_0"].to_pylist()[1::2] == table["codes_1"].to_pylist()[::2] == [None] * 2
    grid = table["codes_1"].to_pylist()[1]
    assert grid == np.moveaxis(frames[1].data, 1, 0).tolist()


def test_the_reason_of_a_broken_stream_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.arrows"
    sink = RecordingSink(str(path))
    sink.open_blocking(CODES)
    frames = frames_of(CODES, 3)
    for frame in frames:
        sink.write_blocking(frame)
    sink.broken = "the microphone was unplugged"
    sink.close_blocking()
    source = RecordingSource(str(path))
    source.open_blocking()
    same(list(iter(source.read, None)), frames)
    assert source.broken == "the microphone was unplugged"
    source.close_blocking()
    assert pa.ipc.open_stream(str(path)).read_all().num_rows == 3  # readers of Arrow need not know


def test_write_keeps_no_more_than_a_megabyte(tmp_path: Path) -> None:
    path = tmp_path / "a.arrows"
    sink = RecordingSink(str(path), flush_ms=60_000)
    sink.open_blocking(SOUND)
    data = np.zeros((2, 16384), np.float32)  # 128 KiB
    for seq in range(16):
        sink.write_blocking(Frame(data, 0, 16384, seq))
    assert path.stat().st_size > 2 * 2**20
    sink.close_blocking()


def test_many_small_frames_are_written_in_batches(tmp_path: Path) -> None:
    frames = frames_of(CODES, 2500)
    record(tmp_path / "a.arrows", CODES, frames, flush_ms=60_000)
    with pa.ipc.open_stream(str(tmp_path / "a.arrows")) as reader:
        assert [batch.num_rows for batch in reader] == [1024, 1024, 452]


RECORD_FOREVER = """
import itertools, sys
from fractions import Fraction
import numpy as np
from streamenc.graph.frames import Frame, StreamInfo, round_to_bfloat16
from streamenc.io.files.infojson import info_to_json
from streamenc.io.files.recording import RecordingSink

sink = RecordingSink(sys.argv[1], flush_ms=0)
sink.open_blocking(
    StreamInfo("codes", Fraction(1, 24000), Fraction(75), (2, None), "uint16", "m", 1024)
)
for seq in itertools.count():
    sink.write_blocking(Frame(np.full((2, 3), seq % 1024, np.uint16), 320 * seq, 320, seq))
    print(seq, flush=True)
"""


def test_a_killed_recorder_leaves_all_that_was_flushed(tmp_path: Path) -> None:
    path = tmp_path / "a.arrows"
    command = [sys.executable, "-c", RECORD_FOREVER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as recorder:
        assert recorder.stdout is not None
        for line in recorder.stdout:
            if int(line) == 200:
                break
        os.kill(recorder.pid, signal.SIGKILL)
        acknowledged = max([200, *map(int, recorder.stdout.read().splitlines())])
    _, frames, truncated = play(path)
    assert truncated
    assert len(frames) >= acknowledged + 1
    assert [frame.seq for frame in frames] == list(range(len(frames)))
    assert all((frame.data == frame.seq % 1024).all() for frame in frames)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Frame], list[int]]:
    """A recording, its frames, and the file's size after each of them."""
    path = tmp_path_factory.mktemp("whole") / "a.arrows"
    frames, sizes = frames_of(CODES, 12), []
    sink = RecordingSink(str(path), flush_ms=0)
    sink.open_blocking(CODES)
    for frame in frames:
        sink.write_blocking(frame)
        sizes.append(path.stat().st_size)
    sink.close_blocking()
    return path, frames, sizes


@settings(max_examples=examples(150, fast=30), deadline=None)
@given(cut=st.floats(0, 1, exclude_max=True))
def test_a_cut_anywhere_leaves_the_whole_batches(
    whole: tuple[Path, list[Frame], list[int]], cut: float
) -> None:
    path, frames, sizes = whole
    raw = path.read_bytes()
    size = int(cut * len(raw))
    short = path.with_name("cut.arrows")
    short.write_bytes(raw[:size])
    try:
        _, got, truncated = play(short)
    except MediaError:
        assert size < sizes[0]  # not even the schema is whole
        return
    assert truncated
    same(got, frames[: sum(end <= size for end in sizes)])


@settings(max_examples=examples(150, fast=30), deadline=None)
@given(
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1)
)
def test_damaged_bytes_are_refused_or_read_but_never_crash(
    whole: tuple[Path, list[Frame], list[int]], flips: list[tuple[float, int]]
) -> None:
    path, _, _ = whole
    raw = bytearray(path.read_bytes())
    for position, change in flips:
        raw[int(position * len(raw))] ^= change
    damaged = path.with_name("damaged.arrows")
    damaged.write_bytes(raw)
    try:
        info, got, _ = play(damaged)
    except MediaError:
        return
    assert all(frame.data.dtype == info.dtype for frame in got)


SCHEMA = Columns(replace(CODES, shape=(2, None))).schema


def write_rows(
    path: Path, rows: list[dict[str, Any]], described: Any, schema: Any = SCHEMA
) -> None:
    with pa.OSFile(str(path), "wb") as file:
        marked = schema.with_metadata({METADATA_KEY: json.dumps(described).encode()})
        with pa.ipc.new_stream(file, marked) as writer:
            writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=schema))


INFO_JSON = {
    "kind": "codes",
    "time_base": "1/24000",
    "rate": "75/1",
    "shape": [2, None],
    "dtype": "uint16",
    "model": "m",
    "codebook_size": 1024,
}
FIRST_ROW = {
    "track": 0, "seq": 0, "pts": 0, "duration": 320, "discontinuity": False, "arrived_unix_ns": 0,
    "scale": 1.0, "dtype": "uint16", "shape": [2, 3], "data": bytes(12),
}  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [2, 4]},
        {"shape": []},
        {"shape": [-2, -3]},
        {"shape": [2, 3] + [1] * 8},
        {"shape": [2**31 - 1, 2**31 - 1]},
        {"data": bytes(13)},
        {"dtype": "object", "data": bytes(48)},
        {"dtype": "float32", "data": bytes(24)},
        {"track": 1},
        {"duration": -1},
        {"seq": -1},
    ],
    ids=str,
)
def test_rows_of_the_first_version_that_contradict_themselves_are_refused(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    path = tmp_path / "a.arrows"
    rows = [FIRST_ROW, {**FIRST_ROW, **change}]
    write_rows(path, rows, {"version": 1, "info": INFO_JSON}, FIRST_SCHEMA)
    source = RecordingSource(str(path))
    source.open_blocking()
    assert source.read() is not None
    with pytest.raises(MediaError, match="row 1"):
        source.read()
    source.close_blocking()


def test_recordings_of_the_first_version_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.arrows"
    codes = np.arange(6, dtype="<u2")
    rows = [FIRST_ROW, {**FIRST_ROW, "seq": 1, "pts": 320, "data": codes.tobytes()}]
    write_rows(path, rows, {"version": 1, "info": INFO_JSON}, FIRST_SCHEMA)
    _, (zeros, frame), _ = play(path)
    assert not zeros.data.any()
    same([frame], [Frame(codes.reshape(2, 3), 320, 320, 1)])


ROW = {
    "track": 0, "seq": 0, "pts": 0, "duration": 320, "seconds": 0.0, "discontinuity": False,
    "arrived_unix_ns": 0, "scale": 1.0, "codes": [[1, 2], [3, 4]],
}  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"codes": [[1, 2], [3]]},
        {"codes": [[1, 2, 3]]},  # more codebooks than the header says
        {"track": 1},
        {"duration": -1},
        {"seq": -1},
    ],
    ids=str,
)
def test_rows_that_contradict_themselves_are_refused(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    path = tmp_path / "a.arrows"
    write_rows(path, [ROW, {**ROW, **change}], {"version": 2, "info": INFO_JSON})
    source = RecordingSource(str(path))
    source.open_blocking()
    assert source.read() is not None
    with pytest.raises(MediaError, match="row 1"):
        source.read()
    source.close_blocking()


@pytest.mark.parametrize("change", [{"codes": [[1, None]]}, {"codes": [None]}, {"seq": None}])
def test_missing_values_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "a.arrows"
    loose = pa.schema([pa.field(field.name, field.type) for field in SCHEMA])
    codes = loose.get_field_index("codes")
    loose = loose.set(codes, pa.field("codes", pa.list_(pa.list_(pa.uint16()))))
    write_rows(path, [ROW, {**ROW, **change}], {"version": 2, "info": INFO_JSON}, loose)
    with pytest.raises(MediaError, match="missing value"):
        play(path)


@pytest.mark.parametrize(
    ("described", "message"),
    [
        ({"version": 3, "info": INFO_JSON}, "version 3"),
        ([], "version None"),
        ({"version": 1}, "JSON object"),
        ({"version": 2}, "JSON object"),
        ({"version": 2, "info": {**INFO_JSON, "rate": "75/0"}}, "rate"),
        ({"version": 2, "info": {**INFO_JSON, "rate": "9" * 5000 + "/1"}}, "rate"),
        ({"version": 2, "info": {**INFO_JSON, "dtype": "object"}}, "dtype"),
        ({"version": 2, "info": {**INFO_JSON, "shape": [3]}}, "axes"),
        ({"version": 2, "info": {**INFO_JSON, "dtype": "uint8"}}, "columns"),
        ({"version": 2, "info": {**INFO_JSON, "kind": "mux", "tracks": [7]}}, "JSON object"),
    ],
)
def test_foreign_metadata_is_refused(tmp_path: Path, described: Any, message: str) -> None:
    path = tmp_path / "a.arrows"
    write_rows(path, [ROW], described)
    with pytest.raises(MediaError, match=message):
        play(path)


def other_arrow(path: Path) -> None:
    write_rows(path, [{"n": 1}], {"version": 1}, pa.schema([("n", pa.int64())]))


@pytest.mark.parametrize(
    "make",
    [lambda path: path.write_bytes(b""), lambda path: path.write_bytes(b"RIFF" * 40), other_arrow],
)
def test_other_files_are_refused(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / "a.arrows"
    make(path)
    with pytest.raises(MediaError, match=r"a\.arrows"):
        play(path)


def test_a_missing_file_is_a_media_error(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="No such file"):
        play(tmp_path / "none.arrows")


def test_a_length_field_of_terabytes_allocates_nothing(
    whole: tuple[Path, list[Frame], list[int]], tmp_path: Path
) -> None:
    raw = whole[0].read_bytes()
    huge = tmp_path / "huge.arrows"
    huge.write_bytes(raw[:4] + (2**31 - 8).to_bytes(4, "little") + raw[8:])
    with pytest.raises(MediaError):
        play(huge)


def test_missing_folder_names_the_cure(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="mkdir"):
        RecordingSink(str(tmp_path / "no" / "a.arrows")).open_blocking(CODES)


def test_an_existing_file_is_kept_on_request(tmp_path: Path) -> None:
    path = tmp_path / "a.arrows"
    path.write_bytes(b"precious")
    with pytest.raises(OutputError, match="overwrite"):
        RecordingSink(str(path), overwrite="false").open_blocking(CODES)
    assert path.read_bytes() == b"precious"


def test_frames_of_another_shape_are_refused_when_they_are_read(tmp_path: Path) -> None:
    """Whoever wrote them: what the header promises is what later nodes are built for."""
    path = tmp_path / "a.arrows"
    for shape in ((1, 1, 3, 6), (1, 1, 3), (2, 1, 3, 5)):
        row = {**FIRST_ROW, "shape": shape, "data": bytes(2 * np.prod(shape))}
        write_rows(path, [row], {"version": 1, "info": info_to_json(GRID)}, FIRST_SCHEMA)
        with pytest.raises(MediaError, match=r"row 0 of .* has shape"):
            play(path)


def test_frames_of_another_shape_are_refused_when_they_are_written(tmp_path: Path) -> None:
    sink = RecordingSink(str(tmp_path / "a.arrows"))
    sink.open_blocking(GRID)
    for shape in ((1, 1, 3, 6), (1, 1, 3), (2, 1, 3, 5), (0, 1, 3, 5)):
        with pytest.raises(InputError, match="the recording is of codes of dv"):
            sink.write_blocking(Frame(np.zeros(shape, np.uint16), 0, 1, 0))
    with pytest.raises(InputError, match="track 1"):
        sink.write_blocking(Frame(np.zeros((1, 1, 3, 5), np.uint16), 0, 1, 0, track=1))
    sink.close_blocking()
    assert not play(tmp_path / "a.arrows")[1]


def test_frames_of_another_type_are_refused(tmp_path: Path) -> None:
    sink = RecordingSink(str(tmp_path / "a.arrows"))
    sink.open_blocking(CODES)
    with pytest.raises(InputError, match="float32"):
        sink.write_blocking(Frame(np.zeros((2, 3), np.float32), 0, 1, 0))
    sink.close_blocking()
    with pytest.raises(OutputError, match="closed"):
        sink.write_blocking(frames_of(CODES, 1)[0])


def test_types_that_cannot_be_recorded_do_not_fit(tmp_path: Path) -> None:
    odd = StreamInfo("features", Fraction(1, 10), Fraction(10), (1, None), "complex64")
    with pytest.raises(FitError, match="complex64"):
        RecordingSink(str(tmp_path / "a.arrows")).open_blocking(odd)


def test_a_bad_option_is_named() -> None:
    with pytest.raises(UsageError, match="flush_ms"):
        RecordingSink("a.arrows", flush_ms="soon")


def test_a_full_disk_is_said_and_what_was_written_reads_back(tmp_path: Path) -> None:
    frames = frames_of(SOUND, 2000)
    with tiny_disk(tmp_path / "disk") as disk:
        path = disk / "a.arrows"
        sink = RecordingSink(str(path), flush_ms=0)
        sink.open_blocking(SOUND)
        with pytest.raises(OutputError, match="disk is full"):
            for frame in frames:
                sink.write_blocking(frame)
        sink.close_blocking()
        _, got, truncated = play(path)
    assert truncated
    assert got
    same(got, frames[: len(got)])


def test_bfloat16_takes_two_bytes_and_comes_back(tmp_path: Path) -> None:
    info = replace(HALF, dtype="bfloat16")
    data = round_to_bfloat16(np.random.default_rng(0).standard_normal((5, 6)).astype("float32"))
    path = tmp_path / "a.arrows"
    record(path, info, [Frame(data, 0, 320 * 6, 0)])
    source = RecordingSource(str(path))
    assert source.open_blocking() == info
    frame = source.read()
    source.close_blocking()
    assert frame is not None and frame.data.dtype == np.float32
    assert np.array_equal(frame.data, data)
    (row,) = pa.ipc.open_stream(path).read_all().to_pylist()
    bits = np.array(row["bfloat16"], np.uint16)
    assert np.array_equal((bits.astype(np.uint32) << 16).view(np.float32).T, data)


def test_a_damaged_name_of_a_column_is_said(tmp_path: Path) -> None:
    path = tmp_path / "a.arrows"
    record(path, CODES, [])
    path.write_bytes(path.read_bytes().replace(b"duration", b"dur\xf5tion", 1))
    with pytest.raises(MediaError, match=r"a\.arrows' has damaged names of columns"):
        read_file(str(path))


def test_the_first_frame_waits_for_no_import_of_pandas(tmp_path: Path) -> None:
    """Arrow imports it with the first list that it is given, which takes most of a second."""
    code = f"""
import sys
from fractions import Fraction
from streamenc import io
from streamenc.graph.frames import StreamInfo
info = StreamInfo("codes", Fraction(1, 16000), Fraction(50), (8, None), "uint16", "nano")
sink = io.sink({str(tmp_path / "a.arrows")!r})
assert "pandas" not in sys.modules
sink.open_blocking(info)
print("pandas" in sys.modules)
sink.close_blocking()
"""
    pytest.importorskip("pandas")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "True\n", done.stderr
