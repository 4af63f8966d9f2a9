from __future__ import annotations

import json
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamenc.errors import OutputError, UsageError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.io.files.infojson import info_from_json
from streamenc.io.files.jsonlines import JsonLinesSink
from tests.support.disk import tiny_disk

CODES = StreamInfo("codes", Fraction(1, 24000), Fraction(75), (2, None), "uint16", "m", 1024)
SOUND = StreamInfo("audio", Fraction(1, 24000), Fraction(24000), (1, None), "float32")
MUX = StreamInfo("mux", Fraction(1, 48000), Fraction(0), (), "", tracks=(SOUND, CODES))


def lines_of(path: Path, info: StreamInfo, frames: list[Frame], **options: Any) -> list[Any]:
    sink = JsonLinesSink(str(path), **options)
    sink.open_blocking(info)
    for frame in frames:
        sink.write_blocking(frame)
    sink.close_blocking()
    sink.close_blocking()
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_codes_come_as_lists(tmp_path: Path) -> None:
    codes = np.array([[1, 2, 3], [4, 5, 1023]], np.uint16)
    head, first, second = lines_of(
        tmp_path / "a.jsonl",
        CODES,
        [Frame(codes, 480, 960, 0), Frame(codes[:1], 12000, 960, 7, True, scale=0.25)],
    )
    assert info_from_json(head["info"]) == CODES
    assert first == {
        "seq": 0,
        "pts": 480,
        "pts_seconds": 0.02,
        "duration": 960,
        "shape": [2, 3],
        "codes": [[1, 2, 3], [4, 5, 1023]],
    }
    assert second["discontinuity"] is True
    assert second["scale"] == 0.25
    assert second["codes"] == [[1, 2, 3]]


def test_sound_is_summed_up_unless_asked_for(tmp_path: Path) -> None:
    data = np.array([[0.5, -1.0, np.float32(0.1)]], np.float32)
    frame = Frame(data, 0, 3, 0)
    _, line = lines_of(tmp_path / "a.jsonl", SOUND, [frame])
    assert "values" not in line
    assert (line["min"], line["max"]) == (-1.0, 0.5)
    assert line["rms"] == pytest.approx(np.sqrt(1.26 / 3), abs=1e-6)
    _, line = lines_of(tmp_path / "b.jsonl", SOUND, [frame], values="yes")
    assert line["values"] == [[0.5, -1.0, 0.1]]


def test_values_come_back_and_are_short(tmp_path: Path) -> None:
    info = StreamInfo("features", Fraction(1, 50), Fraction(50), (64, None), "float32", "mel")
    data = np.random.default_rng(0).standard_normal((64, 10)).astype(np.float32) ** 9
    path = tmp_path / "a.jsonl"
    _, line = lines_of(path, info, [Frame(data, 0, 10, 0)], values=True)
    assert np.array_equal(np.float32(line["values"]), data)
    assert path.stat().st_size < 14 * data.size
    wide = StreamInfo("features", Fraction(1, 50), Fraction(50), (1, None), "float64", "mel")
    _, line = lines_of(path, wide, [Frame(np.array([[1 / 3]]), 0, 1, 0)], values=True)
    assert line["values"] == [[1 / 3]]
    pixels = StreamInfo("video", Fraction(1, 25), Fraction(25), (3, None, 1, 2), "uint8")
    _, line = lines_of(path, pixels, [Frame(np.ones((3, 1, 1, 2), np.uint8), 0, 1, 0)], values=True)
    assert line["values"] == [[[[1, 1]]]] * 3


def test_the_last_line_says_that_the_stream_was_broken(tmp_path: Path) -> None:
    sink = JsonLinesSink(str(tmp_path / "a.jsonl"))
    sink.open_blocking(CODES)
    sink.write_blocking(Frame(np.ones((2, 1), np.uint16), 0, 320, 0))
    sink.broken = "the connection was lost"
    sink.close_blocking()
    sink.close_blocking()
    lines = (tmp_path / "a.jsonl").read_text().splitlines()
    assert len(lines) == 3
    assert json.loads(lines[-1]) == {"end": "broken", "reason": "the connection was lost"}


@pytest.mark.parametrize("whole", [False, True])
def test_what_json_cannot_say_is_null(tmp_path: Path, whole: bool) -> None:
    data = np.array([[np.nan, np.inf, 1.0]], np.float32)
    _, line, empty = lines_of(
        tmp_path / "a.jsonl",
        SOUND,
        [Frame(data, 0, 3, 0), Frame(data[:, :0], 3, 0, 1)],
        values=whole,
    )
    if whole:
        assert line["values"] == [[None, None, 1.0]]
    else:
        assert line["mean"] is None
    assert empty["shape"] == [1, 0]


def test_a_mux_names_its_tracks(tmp_path: Path) -> None:
    sound = Frame(np.zeros((1, 4), np.float32), 0, 4, 0)
    codes = Frame(np.ones((2, 1), np.uint16), 24000, 320, 0, track=1)
    _, first, second = lines_of(tmp_path / "a.jsonl", MUX, [sound, codes])
    assert (first["track"], "codes" in first) == (0, False)
    assert (second["track"], second["codes"], second["pts_seconds"]) == (1, [[1], [1]], 1.0)


def test_each_line_can_be_read_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    sink = JsonLinesSink(str(path))
    sink.open_blocking(CODES)
    sink.write_blocking(Frame(np.ones((2, 1), np.uint16), 0, 320, 0))
    assert len(path.read_text().splitlines()) == 2
    sink.close_blocking()


def test_standard_output_stays_open(capsys: pytest.CaptureFixture[str]) -> None:
    sink = JsonLinesSink("-")
    sink.open_blocking(CODES)
    sink.close_blocking()
    print("after")
    first, last = capsys.readouterr().out.splitlines()
    assert "info" in json.loads(first)
    assert last == "after"


WRITE_FOREVER = """
from fractions import Fraction
import numpy as np
from streamenc.errors import OutputError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.io.files.jsonlines import JsonLinesSink

sink = JsonLinesSink("-")
sink.open_blocking(StreamInfo("codes", Fraction(1, 75), Fraction(75), (2, None), "uint16", "m", 9))
try:
    for seq in range(10**7):
        sink.write_blocking(Frame(np.ones((2, 1), np.uint16), seq, 1, seq))
except OutputError as error:
    raise SystemExit(7 if "went away" in str(error) else 8)
"""


def test_a_reader_that_leaves_ends_it_without_noise() -> None:
    command = [sys.executable, "-c", WRITE_FOREVER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as writer:
        assert writer.stdout is not None and writer.stderr is not None
        writer.stdout.readline()
        writer.stdout.close()
        noise = writer.stderr.read()
        assert writer.wait(timeout=60) == 7
    assert noise == b""


def test_a_full_disk_is_said(tmp_path: Path) -> None:
    with tiny_disk(tmp_path / "disk") as disk:
        sink = JsonLinesSink(str(disk / "a.jsonl"))
        sink.open_blocking(CODES)
        with pytest.raises(OutputError, match="disk is full"):
            for seq in range(5000):
                sink.write_blocking(Frame(np.ones((2, 9), np.uint16), seq, 1, seq))
        sink.close_blocking()
        with pytest.raises(OutputError, match="closed"):
            sink.write_blocking(Frame(np.ones((2, 1), np.uint16), 0, 1, 0))


def test_files_are_checked(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="mkdir"):
        JsonLinesSink(str(tmp_path / "no" / "a.jsonl")).open_blocking(CODES)
    (tmp_path / "a.jsonl").write_text("precious")
    with pytest.raises(OutputError, match="overwrite"):
        JsonLinesSink(str(tmp_path / "a.jsonl"), overwrite="no").open_blocking(CODES)
    assert (tmp_path / "a.jsonl").read_text() == "precious"
    with pytest.raises(UsageError, match="values"):
        JsonLinesSink(values="perhaps")
