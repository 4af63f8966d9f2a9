"""What frames hold: bfloat16 as float32."""

from __future__ import annotations

import numpy as np
import torch

from streamenc.frames import bfloat16_bits, round_to_bfloat16


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
