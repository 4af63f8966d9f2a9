"""wav2vec 2.0, HuBERT and WavLM: references with random weights, and how tests run ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import streamenc
from streamenc.models.model import Model
from streamenc.stream import Stream
from tests.support import references

VARIANTS = {
    "group": {},
    "layer": references.LAYER_NORM,
    "stable": references.STABLE,
    "stable-group": {"do_stable_layer_norm": True},
}


def signal(samples: int, batch: int = 1, seed: int = 0) -> Tensor:
    """Noise whose level rises, so that statistics over time change."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, 1, samples, generator=generator, dtype=torch.float64)
    return x * torch.linspace(0.1, 0.6, samples, dtype=torch.float64) + 0.05


def saved(folder: Path, family: str, **overrides: Any) -> Any:
    """A reference in float64, saved to `folder`."""
    reference = references.speech(family, **overrides)
    reference.save_pretrained(folder)
    return as_kept(reference)


def as_kept(reference: Any) -> Any:
    positions = reference.encoder.pos_conv_embed.conv.double()
    torch.nn.utils.parametrize.remove_parametrizations(positions, "weight")
    with torch.no_grad():  # weights are kept in float32, those that weight norm makes as well
        positions.weight.copy_(positions.weight.float())
    return reference.double()


def masked_layer(layer: Any, h: Tensor, mask: Tensor, bias: Tensor | None) -> tuple[Tensor, Any]:
    """A layer of transformers' under a mask, (frames, frames), and WavLM's bias for the next one.

    WavLM's takes masks of keys alone: there the mask goes in along with the gated bias.
    """
    if not hasattr(layer.attention, "gru_rel_pos_linear"):
        h = layer(h, attention_mask=mask[None, None].expand(h.shape[0], 1, -1, -1))
        return (h[0] if isinstance(h, tuple) else h), None
    attend = layer.attention.torch_multi_head_self_attention
    layer.attention.torch_multi_head_self_attention = lambda h, _, gated: attend(
        h, None, gated + mask
    )
    h, bias = layer(h, position_bias=bias)
    del layer.attention.torch_multi_head_self_attention
    return h, bias


def load(folder: Path, **options: Any) -> Model:
    return streamenc.load(str(folder), part="encoder", dtype=torch.float64, **options).encoder


def streamed(model: Model, x: Tensor, size: int = 777) -> Tensor:
    stream = Stream(model, batch=x.shape[0])
    return torch.cat([*(stream.push(part) for part in x.split(size, dim=-1)), stream.flush()], -1)


def z_normalised(x: Tensor) -> Tensor:
    """As transformers' feature extractor does it."""
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, correction=0, keepdim=True)
    return (x - mean) / (variance + 1e-7).sqrt()
