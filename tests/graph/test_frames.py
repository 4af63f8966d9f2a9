"""What frames hold: bfloat16 as float32; and what streams are together."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from streamenc.errors import FitError
from streamenc.graph.frames import (
    Frame,
    StreamInfo,
    bfloat16_bits,
    frame_fault,
    round_to_bfloat16,
    stream_fault,
)


def test_bfloat16_is_torchs() -> None:
    rng = np.random.default_rng(0)
    any_bits = rng.integers(0, 2**32, 100_000, dtype=np.uint64).astype(np.uint32).view(np.float32)
    # Ties, the largest numbers, which round to infinity, the least ones, and what is none.
    edges = np.array([0x3F808000, 0x3F818000, 0x7F7FFFFF, 1, 0x80000000, 0x7F800000], np.uint32)
    some = np.concatenate((any_bits[np.isfinite(any_bits)], edges.view(np.float32)))
    expected = torch.from_numpy(some).bfloat16().float().numpy()
    assert np.array_equal(round_to_bfloat16(some), expected)
    odd = np.array([0x7FFFFFFF, 0x7F800001, 0xFFC00000], np.uint32).view(np.float32)
    assert np.isnan(round_to_bfloat16(odd)).all()
    assert bfloat16_bits(some).dtype == np.uint16


def test_a_mux_counts_in_ticks_that_fit_all_its_tracks() -> None:
    sound = StreamInfo("audio", Fraction(1, 48_000), Fraction(48_000), (2, None), "float32")
    video = StreamInfo("video", Fraction(1001, 30_000), Fraction(30), (3, None, 8, 8), "uint8")
    film = StreamInfo.mux([sound, video])
    assert (film.kind, film.tracks, film.rate) == ("mux", (sound, video), 0)
    assert film.time_base == Fraction(1, 240_000)
    with pytest.raises(FitError, match="instead of nesting"):
        StreamInfo.mux([film, sound])


SOUND = StreamInfo("audio", Fraction(1, 48_000), Fraction(48_000), (2, None), "float32")
CODES = StreamInfo("codes", Fraction(1, 24_000), Fraction(25, 2), (8, None), "uint16", "demo", 2048)
VIDEO = StreamInfo("video", Fraction(1, 90_000), Fraction(30), (3, None, 8, 8), "uint8")
TEXT = StreamInfo("text", Fraction(1, 1000), Fraction(0), (1, None), "str")
FEATURES = StreamInfo("features", Fraction(1, 16_000), Fraction(50), (80, None), "bfloat16")
FILM = StreamInfo.mux([SOUND, VIDEO])


@pytest.mark.parametrize(
    "info",
    [
        *(SOUND, CODES, VIDEO, TEXT, FEATURES, FILM),
        replace(SOUND, rate=Fraction(1000)),
        replace(CODES, shape=(1, 1)),
        replace(CODES, shape=(1, None, 4, 4), rate=Fraction(0)),
        replace(VIDEO, rate=Fraction(1, 1000), time_base=Fraction(1, 10**9)),
    ],
)
def test_a_stream_that_may_be(info: StreamInfo) -> None:
    assert not stream_fault(info)


@pytest.mark.parametrize(
    ("info", "changes", "fault"),
    [
        (SOUND, {"rate": Fraction(999)}, "1000 to 1e+07 samples a second; got 999"),
        (SOUND, {"rate": Fraction(2**63 - 1)}, "got 9.22337e+18"),
        (SOUND, {"shape": (2,)}, "2 to 2 axes; got 1"),
        (SOUND, {"shape": (None, None)}, "the first one says it"),
        (SOUND, {"shape": (1025, None)}, "up to 1024 on its first axis"),
        (SOUND, {"dtype": "bfloat16"}, "audio is float32, float16, float64; got bfloat16"),
        (SOUND, {"codebook_size": 4}, "audio has no codebooks"),
        (SOUND, {"time_base": Fraction(1, 2**63)}, "a tick lasts"),
        (SOUND, {"time_base": Fraction(10**6)}, "a tick lasts"),
        (SOUND, {"model": "\ud800"}, "a model's name is Unicode"),
        (SOUND, {"model": "m" * 1025}, "up to 1024 characters"),
        (CODES, {"dtype": "float32"}, "got float32"),
        (CODES, {"shape": ()}, "2 to 8 axes; got 0"),
        (CODES, {"shape": (0, None)}, "a size of 1 or more"),
        (CODES, {"codebook_size": 0}, "codebooks have 1 to 2147483647 entries; got 0"),
        (CODES, {"rate": Fraction(1, 2**63)}, "codes has 1e-06"),
        (VIDEO, {"shape": (3, None, 0, 8)}, "a size of 1 or more"),
        (VIDEO, {"shape": (4, None, 8, 8)}, "3 on its first axis; got 4"),
        (VIDEO, {"shape": (3, None, 2**20, 2**20)}, "one item of it takes 3298534883328 bytes"),
        (VIDEO, {"rate": Fraction(0)}, "video has 0.0001"),
        (TEXT, {"rate": Fraction(1)}, "text has 0 to 0 items a second; got 1"),
        (FILM, {"dtype": "float32"}, "a mux has tracks, and no shape"),
        (FILM, {"tracks": ()}, "a mux has tracks"),
        (FILM, {"tracks": (SOUND, replace(VIDEO, dtype="str"))}, "video is uint8; got str"),
    ],
)
def test_no_stream_is_like_that(info: StreamInfo, changes: dict[str, Any], fault: str) -> None:
    assert fault in stream_fault(replace(info, **changes))


def test_what_no_frame_can_be() -> None:
    data = np.zeros((2, 5), np.float32)
    assert not frame_fault(SOUND, Frame(data, -1, 0, 2**62 - 1, scale=0.5))
    assert not frame_fault(SOUND, Frame(data[:, :0], 0, 10**9 * 48_000, 0))
    for frame, fault in (
        (Frame(data, 0, 5, 2**62), "got seq 4611686018427387904"),
        (Frame(data, 0, 5, -1), "got seq -1"),
        (Frame(data, 0, 5, 0, segment=2**62), "segment 4611686018427387904"),
        (Frame(data, 10**11 * 48_000 + 1, 5, 0), "beyond 1e+11 s"),
        (Frame(data, 0, 10**9 * 48_000 + 1, 0), "for more than 1e+09 s"),
        (Frame(data, 0, -1, 0), "duration -1"),
        (Frame(data, 0, 5, 0, scale=float("nan")), "a scale is from 0 to 1e+12; got nan"),
        (Frame(data, 0, 5, 0, scale=-1), "got -1"),
        (Frame(data[:0], 0, 5, 0), "got 5 items without anything in them"),
    ):
        assert fault in frame_fault(SOUND, frame)
    longest = np.broadcast_to(np.float32(0), (2, 300 * 48_000 + 1))
    assert "14400001 samples at 48000/s" in frame_fault(SOUND, Frame(longest, 0, 5, 0))
    of_years = replace(SOUND, time_base=Fraction(86_400))
    assert not frame_fault(of_years, Frame(data, 0, 10**9 // 86_400, 0))
    assert frame_fault(of_years, Frame(data, 0, 10**9 // 86_400 + 1, 0))
