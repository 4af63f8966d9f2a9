"""JSON lines are the stream again that was written."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from streamenc.errors import MediaError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.io.files.jsonlines import JsonLinesSink
from streamenc.io.files.standard.jsonsource import JsonLinesSource
from streamenc.io.reading import read_file

CODES = StreamInfo(
    "codes", Fraction(1, 24_000), Fraction(25, 2), (8, None), "uint16", "nano", codebook_size=2048
)
FEATURES = StreamInfo("features", Fraction(1, 100), Fraction(50), (2, None), "float32", "mel")
NOT_EVEN = np.array([[0.1, 2.0], [-3.5e-7, 1 / 3]], np.float32)


def frames_of(dtype: str) -> list[Frame]:
    return [
        Frame(np.full((2, 1), 7 * seq, dtype), 100 * seq, 100, seq, seq == 2, scale=1 + seq)
        for seq in range(4)
    ]


def written(path: Path, info: StreamInfo, frames: list[Frame], *values: bool) -> Path:
    sink = JsonLinesSink(str(path), *values)
    sink.open_blocking(info)
    for frame in frames:
        sink.write_blocking(frame)
    sink.close_blocking()
    return path


def same(got: Frame, wanted: Frame) -> bool:
    names = ("pts", "duration", "seq", "discontinuity", "track", "scale")
    return all(getattr(got, name) == getattr(wanted, name) for name in names) and (
        got.data.dtype == wanted.data.dtype and np.array_equal(got.data, wanted.data)
    )


def test_codes(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", CODES, frames_of("uint16"))
    info, got = read_file(str(path))
    assert info == CODES
    assert all(map(same, got, frames_of("uint16"))) and len(got) == 4


def test_a_mux(tmp_path: Path) -> None:
    info = StreamInfo.mux([CODES, CODES])
    frames = [frame.with_(track=frame.seq % 2) for frame in frames_of("uint16")]
    read, got = read_file(str(written(tmp_path / "a.jsonl", info, frames)))
    assert read == info and all(map(same, got, frames))


def lines_of(frames: list[dict[str, object]], info: StreamInfo = FEATURES) -> str:
    from streamenc.io.files.infojson import info_to_json

    return "".join(json.dumps(line) + "\n" for line in [{"info": info_to_json(info)}, *frames])


FRAME = {"seq": 0, "pts": 0, "duration": 4, "shape": [2, 2]}


def test_values(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(lines_of([{**FRAME, "values": [[0.1, 2.0], [-3.5e-7, None]]}]))
    _, (frame,) = read_file(str(path))
    assert frame.data.dtype == np.float32 and np.isnan(frame.data[1, 1])
    np.testing.assert_array_equal(frame.data[0], NOT_EVEN[0])


def test_what_ended_too_early_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    for text, broken in (
        (lines_of([{"end": "broken", "reason": "unplugged"}]), "unplugged"),
        (lines_of([]) + '{"seq": 0, "pt', "ends within line 2"),
        (lines_of([]), ""),
    ):
        path.write_text(text)
        source = JsonLinesSource(str(path))
        source.open_blocking()
        assert source.read() is None
        assert broken in source.broken and bool(source.broken) == bool(broken)
        source.close_blocking()


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        ({**FRAME, "min": 0, "max": 1}, "line 2 is not a whole frame; .*values=true"),
        ({**FRAME, "values": [[1, 2]]}, "line 2 is not a whole frame"),
        ({**FRAME, "values": [[1, 2], [3, "x"]]}, "line 2 is not a whole frame"),
        ({**FRAME, "values": [[1, 2], [3, 4]], "track": 3}, "line 2 is not a whole frame"),
        ({**FRAME, "values": [[1, 2], [3, 1e39]]}, "line 2 is not a whole frame"),
        ({**FRAME, "values": [[1], [2]], "shape": [2]}, "not a frame of features of mel"),
        ({**FRAME, "values": [[1, 2, 3, 4]], "shape": [1, 4]}, "not a frame of features of mel"),
        ({**FRAME, "values": [[1, 2], [3, 4]], "duration": -4}, "got pts 0, duration -4"),
        ({**FRAME, "values": [[1, 2], [3, 4]], "seq": -1}, "got seq -1"),
        ({**FRAME, "values": [[1, 2], [3, 4]], "scale": math.nan}, "got nan"),
        ({**FRAME, "values": [[1, 2], [3, 4]], "pts": 2**62}, "got pts 4611686018427387904"),
        ({**FRAME, "values": [[]] * 300_000}, "is not of up to 4000000 items and 250000 lists"),
        ([1, 2], "line 2 is not a JSON object"),
    ],
)
def test_lines_that_are_no_frames(tmp_path: Path, frame: object, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(lines_of([frame]))  # type: ignore[list-item]
    with pytest.raises(MediaError, match=message):
        read_file(str(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}\n", "line 1 is not the description of its stream"),
        ("", "line 0 is not the description"),
        ("no\n", "line 1 is not JSON"),
        ('{"info": {"kind": "odd"}}\n', "unknown kind"),
    ],
)
def test_files_that_are_no_streams(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(text)
    with pytest.raises(MediaError, match=message):
        read_file(str(path))


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (70_000, "line 2 is not a whole frame"),
        (7.5, "line 2 is not a whole frame"),
        (2048, "line 2 is not a frame of codes of nano.* of 2048 entries; got .*values up to 2048"),
    ],
)
def test_an_entry_that_no_book_has(tmp_path: Path, code: float, message: str) -> None:
    path = tmp_path / "a.jsonl"
    line = {"seq": 0, "pts": 0, "duration": 1, "shape": [1, 1], "codes": [[code]]}
    path.write_text(lines_of([line], CODES))
    with pytest.raises(MediaError, match=message):
        read_file(str(path))


def test_the_last_line_needs_no_end_of_line(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", CODES, frames_of("uint16"))
    path.write_bytes(path.read_bytes().removesuffix(b"\n"))
    source = JsonLinesSource(str(path))
    source.open_blocking()
    assert len(list(iter(source.read, None))) == 4 and not source.broken
    source.close_blocking()


def test_a_line_without_an_end_is_not_gathered_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamenc.io.files.standard.jsonsource.MAX_LINE_BYTES", 1000)
    path = tmp_path / "a.jsonl"
    path.write_text(lines_of([]) + "[" * 2000)
    with pytest.raises(MediaError, match="line . is not shorter than 1000 bytes"):
        read_file(str(path))
