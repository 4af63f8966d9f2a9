"""Codes of real speech in int16 beside those of torch in float32: trained weights, and random ones
of the published size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import streamenc
from bench import weights
from streamenc.errors import InputError
from streamenc.io.reading import read_file
from tests.support.compare import relative_error
from tests.support.zoo import cut

pytest.importorskip("numba", reason="the compiled backend needs numba")
soxr = pytest.importorskip("soxr")

CLIP = Path(__file__).parents[2] / "examples" / "data" / "speech.flac"
LATENTS, CODES = 1e-4, 0.9995


def speech(rate: int) -> Tensor:
    """(1, 1, samples) of the clip of the examples."""
    info, frames = read_file(str(CLIP))
    samples = np.concatenate([frame.data for frame in frames], axis=1).mean(axis=0)
    samples = soxr.resample(samples, float(info.rate), rate)
    return torch.from_numpy(samples.astype(np.float32))[None, None]


@torch.inference_mode()
def streamed(model: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Latents and codes, hop by hop."""
    lead, hop = model.spec.lead, model.spec.hop
    latents, codes = [], []
    state, start = None, 0
    while (stop := start + (hop if start else lead)) <= x.shape[2]:
        y, state = model.step(cut(x, start, stop), state)
        latents.append(y)
        codes.append(model.after(y))
        start = stop
    return torch.cat(latents, dim=2), torch.cat(codes, dim=2)


def check(source: str, x: Tensor, precision: str, books: int, frames: int) -> None:
    plain = streamenc.load(source, part="encoder", backend="torch").encoder
    compiled = streamenc.load(
        source, part="encoder", backend="compiled", precision=precision
    ).encoder
    latents, codes = streamed(plain, x)
    found, given = streamed(compiled, x)
    assert codes.shape == given.shape and codes.shape[1] == books and codes.shape[2] >= frames
    assert relative_error(found, latents) <= (LATENTS if precision == "int16" else 1e-5)
    assert float((codes == given).double().mean()) >= CODES
    # Of the same latents, those that torch's search finds: what differs is what was quantised.
    some = found[..., :100]
    assert torch.equal(given[..., :100], torch.cat([plain.after(y) for y in some.split(1, 2)], 2))


@pytest.mark.parametrize("precision", ["int16", "float32"])
def test_trained_codes_of_speech(precision):
    check("nano", speech(16_000), precision, 16, 600)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_codes_of_speech_at_the_published_size(tmp_path):
    x = speech(24_000)
    x = torch.cat((x, 0.3 * x, x.flip(2)), dim=2)
    check(str(weights.mimi(tmp_path)), x, "int16", 32, 480)


@pytest.mark.parametrize(
    "codes",
    [
        torch.full((1, 16, 1), 1024),
        torch.full((1, 3, 2), -1),
        torch.zeros(1, 17, 1, dtype=torch.int64),
        torch.zeros(1, 16, 1),
        torch.zeros(16, 1, dtype=torch.int64),
    ],
)
def test_codes_that_a_decoder_does_not_take(codes):
    decoders = [
        streamenc.load("nano", part="decoder", backend=backend).decoder
        for backend in ("torch", "compiled")
    ]
    said = []
    for decoder in decoders:
        with pytest.raises(InputError) as caught:
            decoder.before(codes)
        said.append(str(caught.value))
    assert said[0] == said[1]
    few = torch.arange(16).to(torch.uint16).view(1, 8, 2)
    assert torch.equal(*(decoder.before(few) for decoder in decoders))
