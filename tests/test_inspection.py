"""What is in a file: figures that can be checked by hand."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from streamenc.errors import MediaError, UsageError
from streamenc.frames import Frame, StreamInfo
from streamenc.inspection import inspect_file, read_file
from streamenc.io.recording import RecordingSink
from tests.media import write_wav

CODES = StreamInfo(
    "codes", Fraction(1, 24_000), Fraction(100), (2, None), "uint16", "mine", codebook_size=16
)


def recorded(folder: Path, info: StreamInfo, frames: list[Frame]) -> str:
    sink = RecordingSink(str(folder / "x.arrows"))
    sink.open_blocking(info)
    for frame in frames:
        sink.write_blocking(frame)
    sink.close_blocking()
    return str(folder / "x.arrows")


def codes(pts: int, seq: int, *, flag: bool = False, track: int = 0) -> Frame:
    """Four frames: the first book uses four entries evenly, the second always the same."""
    data = np.array([[0, 1, 2, 3], [7, 7, 7, 7]], np.uint16)
    return Frame(data, pts, 960, seq, flag, track=track)


def test_codes(tmp_path: Path) -> None:
    target = recorded(tmp_path, CODES, [codes(0, 0), codes(960, 1), codes(9600, 3, flag=True)])
    rows = dict(inspect_file(target, tmp_path / "x.png"))
    assert rows["model"] == "mine" and rows["gaps"] == "1"
    assert rows["duration"] == "0.120 s from pts 0" and rows["packets"] == "3 with 12 items"
    assert rows["bitrate"] == "0.80 kbit/s" and rows["perplexity"] == "4 1"
    assert (tmp_path / "x.png").stat().st_size > 1000


def test_a_recording_of_nothing(tmp_path: Path) -> None:
    target = recorded(tmp_path, CODES, [])
    assert dict(inspect_file(target))["duration"] == "0.000 s"
    with pytest.raises(UsageError, match="no frames to plot"):
        inspect_file(target, tmp_path / "x.png")


def test_several_streams_in_one(tmp_path: Path) -> None:
    track = replace(CODES, time_base=Fraction(1, 24_000))
    mux = StreamInfo("mux", track.time_base, track.rate, (), "", tracks=(track, track))
    target = recorded(tmp_path, mux, [codes(0, 0), codes(0, 0, track=1), codes(960, 1, track=1)])
    rows = inspect_file(target)
    assert [value for what, value in rows if what == "packets"] == [
        "1 with 4 items",
        "2 with 8 items",
    ]
    assert ("plot", str(tmp_path / "x.png")) in inspect_file(target, tmp_path / "x.png")


def test_sound(tmp_path: Path) -> None:
    wav = write_wav(tmp_path / "x.wav", np.array([[0, 0.5, -0.25] * 800]), 8000)
    rows = dict(inspect_file(str(wav)))
    assert rows["duration"] == "0.300 s from pts 0" and rows["peak"] == "0.500"
    info, frames = read_file(str(wav))
    assert info.rate == 8000 and sum(frame.data.shape[1] for frame in frames) == 2400


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="does not exist"):
        inspect_file(str(tmp_path / "none.arrows"))
    with pytest.raises(UsageError, match="a stream, not a file"):
        read_file("mic:")
