"""What frames hold: bfloat16 as float32; and what streams are together."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from streamenc.errors import FitError
from streamenc.graph.frames import StreamInfo, bfloat16_bits, round_to_bfloat16


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
