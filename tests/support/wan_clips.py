"""Wan's VAE of several kinds beside diffusers' models, and its original names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import streamenc
from tests.support import references

diffusers = pytest.importorskip("diffusers")

SMALL: dict[str, Any] = {
    "base_dim": 3,
    "z_dim": 4,
    "dim_mult": [1, 2, 3, 3],
    "num_res_blocks": 1,
    "latents_mean": [0.5, -1.0, 0.0, 2.0],
    "latents_std": [2.0, 0.5, 1.0, 3.0],
}
GROUPED: dict[str, Any] = {
    "dim_mult": [1, 2, 4, 4],
    "is_residual": True,
    "patch_size": 2,
    "in_channels": 12,
    "out_channels": 12,
    "decoder_base_dim": 4,
}
# What differs from SMALL: Wan 2.1's order of samplers, all in time, and Wan 2.2.
CONFIGS: dict[str, dict[str, Any]] = {
    "2.1": {"num_res_blocks": 2},
    "in time at once": {"dim_mult": [1, 1, 2], "temperal_downsample": [True, True]},
    "2 frames": {"dim_mult": [2, 1], "temperal_downsample": [True]},
    "2.2": GROUPED,
}
_BLOCK = {
    "norm1": "residual.0",
    "conv1": "residual.2",
    "norm2": "residual.3",
    "conv2": "residual.6",
}


def wan(kind: str = "AutoencoderKLWan", **overrides: Any) -> Any:
    """diffusers' model, small, with random weights."""
    model = getattr(diffusers, kind)(**{**SMALL, **overrides}).eval()
    references.randomise(model)
    for name, tensor in model.named_parameters():
        if name.endswith("gamma"):
            # Drawn as a kernel of one tap; wanted near 1.
            tensor.data.mul_(0.2).add_(1)
        elif name.startswith("decoder.conv_out"):
            tensor.data.mul_(0.3)  # few pixels are cut
    return model


def pair(folder: Path, config: str, dtype: torch.dtype, **options: Any) -> tuple[Any, Any]:
    """diffusers' model, and ours from its folder."""
    theirs = wan(**CONFIGS[config])
    theirs.save_pretrained(folder)
    return theirs.to(dtype), streamenc.load(folder, dtype=dtype, **options)


def repeated_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pixels are repeated in the model's own type, where the published code goes by float32."""
    from diffusers.models.autoencoders import autoencoder_kl_qwenimage, autoencoder_kl_wan

    for kind in (autoencoder_kl_wan.WanUpsample, autoencoder_kl_qwenimage.QwenImageUpsample):
        monkeypatch.setattr(kind, "forward", nn.Upsample.forward)


def original_tensors(tensors: dict[str, Tensor], grouped: bool) -> dict[str, Tensor]:
    """As Wan2.1_VAE.pth and Wan2.2_VAE.pth have them, whose layers are numbered through, in all or
    in each level; the tensors are in the order of the network."""
    numbered: dict[str, dict[str, int]] = {}
    renamed = {}
    for name, tensor in tensors.items():
        renamed[_original(name, numbered, grouped)] = tensor.clone()
    return renamed


def _original(name: str, numbered: dict[str, dict[str, int]], grouped: bool) -> str:
    for ours, theirs in (("quant_conv.", "conv1."), ("post_quant_conv.", "conv2.")):
        if name.startswith(ours):
            return theirs + name[len(ours) :]
    side, rest = name.split(".", 1)
    for ours, theirs in {
        "conv_in": "conv1",
        "norm_out": "head.0",
        "conv_out": "head.2",
        "mid_block.resnets.0": "middle.0",
        "mid_block.attentions.0": "middle.1",
        "mid_block.resnets.1": "middle.2",
    }.items():
        if rest.startswith(f"{ours}."):
            rest = theirs + rest[len(ours) :]
    inner = f"{'down' if side == 'encoder' else 'up'}samples"
    level = re.match(r"(?:down|up)_blocks\.(\d+)\.", rest)
    if level:
        place = re.match(
            r"(?:down|up)_blocks\.\d+\.(?:(?:resnets\.\d+|downsampler|upsampler|upsamplers\.0)\.)?",
            rest,
        )
        assert place is not None
        order = numbered.setdefault(f"{side} {level[1] if grouped else ''}", {})
        index = order.setdefault(place[0], len(order))
        within = f"{inner}.{level[1]}." if grouped else ""
        rest = f"{within}{inner}.{index}.{rest[place.end() :]}"
    for ours, theirs in _BLOCK.items():
        rest = re.sub(rf"\b{ours}\.", f"{theirs}.", rest) if not rest.startswith("conv1.") else rest
    return f"{side}.{rest.replace('conv_shortcut.', 'shortcut.')}"
