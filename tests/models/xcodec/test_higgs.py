"""The Higgs tokenizer: on the parts of X-Codec, by its definition, and beside its own class."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from streamenc.errors import CheckpointError, UsageError
from streamenc.models.xcodec import xcodec
from streamenc.models.xcodec.branches import Resampled
from tests.models.xcodec.test_xcodec import latents, load, mean_of_layers, streamed
from tests.support import references
from tests.support.compare import assert_close, poisoned_memory
from tests.support.speech import as_kept, signal

pytestmark = pytest.mark.usefixtures("poisoned_memory")
__all__ = ["poisoned_memory"]

HOP = 960
MODES: list[dict[str, Any]] = [
    {"chunk_ms": 2000, "norm_seconds": 0},
    {"mode": "sliding", "window_ms": 2000},
    {"mode": "segment", "segment_ms": 2000},
]


def saved(folder: Path) -> Any:
    """X-Codec's parts in float64, and `projections`, saved to `folder` as the Higgs tokenizer."""
    reference = references.higgs(folder)
    as_kept(reference.semantic_model)
    return reference.double()


def at_16_khz(x: Tensor) -> Tensor:
    """24 kHz -> 16 kHz: a sinc of six zeros on each side, under a Hann window, at each sample."""
    base, length = 2 * 0.99, x.shape[-1]
    index = torch.arange(length * 2 // 3)[:, None]
    heard = index * 3 // 2 + torch.arange(-12, 13)
    away = base * (heard.double() / 3 - index / 2)
    weight = torch.cos(away * math.pi / 12) ** 2 * torch.sinc(away) * base / 3
    there = (away.abs() < 6) & (heard >= 0) & (heard < length)
    return (x[..., heard.clamp(0, length - 1)] * torch.where(there, weight, 0.0)).sum(-1)


@torch.no_grad()
def expected_of(reference: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, codes and sound, by the parts and by the definition of projected codebooks."""
    heard = F.pad(at_16_khz(x)[:, 0], (160, 160))
    features = mean_of_layers(reference, heard)[..., ::2]
    both = reference.acoustic_encoder(x), reference.encoder_semantic(features)
    y = reference.fc(torch.cat(both, dim=1).transpose(1, 2))
    left, total, codes = y, torch.zeros_like(y), []
    for level in range(4):
        book, into, into_bias, out_of, out_of_bias = (
            reference.projections[f"quantizer.quantizers.{level}.{name}"].double()
            for name in (
                "codebook.embed",
                "project_in.weight",
                "project_in.bias",
                "project_out.weight",
                "project_out.bias",
            )
        )
        codes.append(torch.cdist(F.linear(left, into, into_bias), book[None]).argmin(dim=-1))
        entry = F.linear(book[codes[-1]], out_of, out_of_bias)
        left, total = left - entry, total + entry
    sound = reference.acoustic_decoder(reference.fc2(total).transpose(1, 2))
    return y.transpose(1, 2), torch.stack(codes, dim=1), sound


@pytest.mark.reference
def test_what_fits_into_a_window_is_the_published_tokenizer(tmp_path):
    """The resampler's filter is kept in float32: what is left of float64 is that."""
    reference = saved(tmp_path)
    x = signal(30 * HOP)
    expected, codes, sound = expected_of(reference, x)
    assert len(codes.unique()) > 20
    for options in MODES:
        encoder = load(tmp_path, "encoder", **options).encoder
        assert_close(encoder.chain(x), expected, 1e-6)
        assert torch.equal(streamed(encoder, x, 4777), codes)
    decoder = load(tmp_path, "decoder").decoder
    assert_close(streamed(decoder, codes, 7), sound, 1e-10)


@pytest.mark.reference
def test_beside_its_own_class(tmp_path):
    pytest.importorskip("torchaudio")
    from transformers import HiggsAudioV2TokenizerModel

    saved(tmp_path)
    theirs = HiggsAudioV2TokenizerModel.from_pretrained(tmp_path).eval()
    as_kept(theirs.semantic_model)
    theirs = theirs.double()
    x = signal(30 * HOP, batch=2)
    with torch.no_grad():
        codes = theirs.encode(x).audio_codes
        sound = theirs.decode(codes).audio_values
    for options in MODES:
        assert torch.equal(streamed(load(tmp_path, "encoder", **options).encoder, x, 4777), codes)
    assert_close(streamed(load(tmp_path, "decoder").decoder, codes, 7), sound, 1e-10)


def test_a_stream_past_every_window_is_one_step(tmp_path):
    saved(tmp_path)
    x = signal(45 * HOP + 7)
    for options in (
        {"chunk_ms": 80, "left": 2, "norm_seconds": 0.2},
        {"mode": "sliding", "window_ms": 240, "hop_ms": 80, "ahead_ms": 0},
    ):
        encoder = load(tmp_path, "encoder", **options).encoder
        whole, _ = encoder.step(x, None, end=True)
        assert whole.shape[-1] == 46
        assert_close(latents(encoder, x), whole, 1e-10)


def test_resampling_by_its_definition():
    layer = Resampled(3, 2).double()
    layer.weight = torch.nn.Parameter(layer.kernel(), requires_grad=False)
    x = signal(300)
    assert_close(layer(x), at_16_khz(x), 1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "xcodec"}, "are projected"),
        ({"sample_rate": 22_050}, "whole kHz"),
        ({"sample_rate": 32_000}, "no whole number"),
        ({"semantic_sample_rate": 8000}, "only 16000"),
        ({"downsample_factor": 160}, "only 320"),
        ({"codebook_dim": 0}, "codebook_dim is 0"),
        ({"codebook_dim": 16}, "do not fit the config"),
    ],
)
def test_configs_that_do_not_fit(tmp_path, change, message):
    saved(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path)


def test_lengths_that_give_no_whole_frames(tmp_path):
    saved(tmp_path)
    with pytest.raises(UsageError, match="multiple of 40"):
        load(tmp_path, mode="segment", segment_ms=20)
    with pytest.raises(UsageError, match="multiples of 40 ms"):
        load(tmp_path, mode="sliding", window_ms=220, hop_ms=80, ahead_ms=0)


def test_codebooks_that_are_not_projected_are_not_its_own(tmp_path):
    saved(tmp_path)
    path = tmp_path / "model.safetensors"
    save_file({k: v for k, v in load_file(path).items() if "project_" not in k}, path)
    with pytest.raises(CheckpointError, match="not projected"):
        load(tmp_path)


def test_the_published_spec():
    spec = xcodec.published_spec("higgs")
    assert spec.name == xcodec.HIGGS and spec.input.rate == 24_000
    assert (spec.output.channels, spec.codebook_size, spec.output.rate) == (8, 1024, 25)
