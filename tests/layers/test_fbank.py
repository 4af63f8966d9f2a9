"""Kaldi's log-mel frames: as the definition has them, frame by frame, and on a stream."""

from __future__ import annotations

import pytest
import torch

from streamenc.layers.fbank import Fbank
from tests.support import hearing
from tests.support.compare import assert_close


@pytest.mark.parametrize("samples", [0, 399, 400, 559, 560, 1601])
def test_it_is_the_definition(samples):
    layer, x = Fbank(16_000, hearing.BANDS), hearing.noise(samples)
    theirs = torch.from_numpy(hearing.plain_fbank(x.numpy()))
    y = layer(x[None, None])[0].t()
    assert y.shape == theirs.shape
    if len(y):
        assert_close(y, theirs, 1e-12)


def test_silence_is_the_floor():
    y = Fbank(16_000, hearing.BANDS)(torch.full((1, 1, 400), 0.3, dtype=torch.float64))
    assert_close(y, torch.full_like(y, -15.942385152878742), 1e-12)


def test_pieces_give_the_same_to_the_bit():
    layer, x = Fbank(16_000, 20), hearing.noise(400 + 9 * 160 + 77)[None, None]
    state, outputs = None, []
    for start, stop in ((0, 400), (400, 880), (880, 1840)):
        y, state = layer.step(x[..., start:stop], state)
        outputs.append(y)
    outputs.append(layer.step(x[..., 1840:], state, end=True)[0])
    assert torch.equal(torch.cat(outputs, -1), layer(x))


def test_its_numbers_stay_in_float32_at_least():
    layer = Fbank(16_000, 20).to(torch.bfloat16)
    layer.prepare()
    assert torch.equal(layer.window, Fbank(16_000, 20).window.float())
    assert layer.filters.dtype == torch.float32
