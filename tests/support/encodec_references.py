"""The published EnCodec implementations, with random weights of a kind that keeps signals alive."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from streamenc.codec import Codec

SMALL: dict[str, Any] = {
    "num_filters": 4,
    "hidden_size": 16,
    "codebook_size": 64,
    "target_bandwidths": [0.9, 3.6],
}
NARROW: dict[str, Any] = {"filters": 4, "dim": 16, "entries": 64}
# The 48 kHz model's form at a tenth of its rate: segments of 15 frames that share one and a half.
SMALL_SEGMENTS: dict[str, Any] = {
    **SMALL,
    "sampling_rate": 4800,
    "audio_channels": 2,
    "normalize": True,
    "chunk_length_s": 1.0,
    "overlap": 0.1,
    "norm_type": "time_group_norm",
    "use_causal_conv": False,
    "target_bandwidths": [0.18, 0.72],
}


def transformers_model(seed: int = 0, **config: Any) -> Any:
    """transformers' EncodecModel."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import EncodecConfig, EncodecModel

        torch.manual_seed(seed)
        model = EncodecModel(EncodecConfig(**config)).eval()
    books = [layer.codebook for layer in model.quantizer.layers]
    _liven(model, books, model.config.audio_channels, model.config.chunk_length or 6400)
    return model


def encodec_model(
    seed: int = 0,
    *,
    segments: bool = False,
    norm: str = "weight_norm",
    filters: int = 32,
    dim: int = 128,
    entries: int = 1024,
) -> Any:
    """The encodec package's EncodecModel: the published 24 or 48 kHz one, or a narrower one.

    norm  "none" for plain weights: nothing is rounded on their way to ours, so float64 can prove.
    """
    # It wants torchaudio for files only. The stand-in goes again: transformers looks for it.
    with warnings.catch_warnings(), mock.patch.dict(sys.modules, torchaudio=mock.Mock()):
        warnings.simplefilter("ignore")
        encodec = pytest.importorskip("encodec")
        from encodec.modules import SEANetDecoder, SEANetEncoder
        from encodec.quantization import ResidualVectorQuantizer

        torch.manual_seed(seed)
        kind: dict[str, Any] = {"norm": norm, "causal": True}
        rate, channels, bandwidths = 24_000, 1, [1.5, 3.0, 6.0, 12.0, 24.0]
        if segments:
            kind = {"norm": "time_group_norm", "causal": False}
            rate, channels, bandwidths = 48_000, 2, [3.0, 6.0, 12.0, 24.0]
        shape = {"channels": channels, "n_filters": filters, "dimension": dim, **kind}
        model = encodec.EncodecModel(
            SEANetEncoder(**shape),
            SEANetDecoder(**shape),
            ResidualVectorQuantizer(dimension=dim, n_q=16 if segments else 32, bins=entries),
            bandwidths,
            rate,
            channels,
            normalize=segments,
            segment=1.0 if segments else None,
        ).eval()
    books = [layer._codebook for layer in model.quantizer.vq.layers]
    _liven(model, books, channels, 6400)
    return model


def _liven(model: nn.Module, books: list[nn.Module], channels: int, samples: int) -> None:
    """Random gains on the weights, an LSTM that matters, and codebooks of the latents' size."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lstm" in name:
                parameter *= 3
            elif name.endswith(("weight_g", "original0", "conv.weight", "convtr.weight")):
                parameter *= 1.5 * (0.8 + 0.4 * torch.rand_like(parameter))
            elif "norm" in name and name.endswith("weight"):
                parameter *= 0.8 + 0.4 * torch.rand_like(parameter)
            elif "norm" in name and name.endswith("bias"):
                parameter += 0.1 * torch.randn_like(parameter)
        size = model.encoder(torch.randn(1, channels, samples)).std()
        for book in books:
            book.embed.copy_(size * torch.randn_like(book.embed))
            book.embed_avg.copy_(book.embed)
            book.inited.fill_(1)
            size = 0.8 * size


def save_folder(model: Any, folder: Path) -> str:
    """A transformers folder, as the Hub has it."""
    model.save_pretrained(folder)
    return str(folder)


def save_th(model: Any, path: Path) -> str:
    """The encodec package's `.th` file."""
    torch.save(model.state_dict(), path)
    return str(path)


def books_of(model: Any) -> Tensor:
    """All codebooks of either reference, (levels, entries, dim)."""
    quantizer = model.quantizer
    if hasattr(quantizer, "vq"):
        return torch.stack([layer._codebook.embed for layer in quantizer.vq.layers])
    return torch.stack([layer.codebook.embed for layer in quantizer.layers])


def noise(samples: int, *, batch: int = 1, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.5 * torch.randn(batch, 1, samples, generator=generator)


def random_codes(codec: Codec, frames: int, *, batch: int = 1, levels: int = 0) -> Tensor:
    port = codec.decoder.spec.input
    shape = (batch, levels or port.channels, frames)
    generator = torch.Generator().manual_seed(frames)
    return torch.randint(codec.decoder.spec.codebook_size, shape, generator=generator)
